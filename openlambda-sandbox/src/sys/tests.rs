use std::io::Read;
use std::time::Duration;

use super::*;

/// The nursery's own, which is a program without tests.
#[cfg(feature = "sock")]
#[path = "nursery/c.rs"]
#[allow(dead_code, unreachable_pub, reason = "it is another program's")]
mod c;

fn shell(script: &str) -> CommandSpec {
    CommandSpec::new("/bin/sh").arg("-c").arg(script)
}

/// A mark that no other test uses.
fn own_mark(name: &str) -> String {
    format!("sys-test-{}-{name}", std::process::id())
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never happened: {what}");
}

#[tokio::test]
async fn a_child_gets_its_environment_folder_and_pipes_and_its_status_is_told() {
    let spawner = Spawner::start().unwrap();
    let mut spec = shell("echo $A $HOME $(pwd); echo err >&2; exit 7").env("A", "1");
    spec.cwd = Some("/usr".into());
    (spec.stdout, spec.stderr) = (Output::Pipe, Output::Pipe);
    let mut child = spawner.spawn(spec).await.unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    File::from(child.take_stdout().unwrap()).read_to_string(&mut out).unwrap();
    File::from(child.take_stderr().unwrap()).read_to_string(&mut err).unwrap();
    assert_eq!((&*out, &*err), ("1 /usr\n", "err\n"));
    assert_eq!(child.wait().await.code(), Some(7));
    assert_eq!(child.wait().await.code(), Some(7), "waiting again tells the same");
}

#[tokio::test]
async fn errors_say_what_is_missing() {
    let spawner = Spawner::start().unwrap();
    let error = spawner.spawn(CommandSpec::new("/nonexistent/x")).await.unwrap_err();
    assert!(error.to_string().contains("cannot start /nonexistent/x: there is no such program"));
    let mut spec = shell("true");
    spec.cwd = Some("/nonexistent".into());
    let error = spawner.spawn(spec).await.unwrap_err();
    assert!(error.to_string().contains("working folder /nonexistent is missing"), "{error}");
    let error = spawner.spawn(CommandSpec::new("/etc/passwd")).await.unwrap_err();
    assert!(error.to_string().contains("chmod +x /etc/passwd"), "{error}");
}

#[tokio::test]
async fn the_group_dies_with_its_leader_and_with_the_handle() {
    let spawner = Spawner::start().unwrap();
    let mark = own_mark("group");
    let child = spawner.spawn(shell("sleep 1000 & sleep 1000").env(MARK, &mark)).await.unwrap();
    eventually("all three run", || processes_with_mark(&mark).len() == 3).await;
    drop(child);
    eventually("none is left", || processes_with_mark(&mark).is_empty()).await;

    let child = spawner.spawn(shell("sleep 1000 & exit 3").env(MARK, &mark)).await.unwrap();
    assert_eq!(child.wait().await.code(), Some(3));
    eventually("the orphan is gone", || processes_with_mark(&mark).is_empty()).await;
    child.kill_group();
}

#[tokio::test]
async fn a_dropped_spawn_leaves_no_process() {
    let spawner = Spawner::start().unwrap();
    let mark = own_mark("dropped");
    for _ in 0..20 {
        let spawn = spawner.spawn(shell("exec sleep 1000").env(MARK, &mark));
        let _ = tokio::time::timeout(Duration::ZERO, spawn).await;
    }
    // The thread works in order: when this one is through, so are those before it.
    spawner.spawn(shell("true")).await.unwrap().wait().await;
    eventually("none is left", || processes_with_mark(&mark).is_empty()).await;
}

#[tokio::test]
async fn children_outlive_the_spawner_but_not_their_handle() {
    let spawner = Spawner::start().unwrap();
    let child = spawner.spawn(shell("exec sleep 1000")).await.unwrap();
    drop(spawner);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(child.status(), None, "the thread ended too early");
    child.signal(Signal::TERM);
    assert_eq!(child.wait().await.signal(), Some(libc::SIGTERM));
}

#[tokio::test]
async fn descendants_in_sessions_of_their_own_are_found_by_their_mark() {
    let spawner = Spawner::start().unwrap();
    let mark = own_mark("session");
    let spec = shell("setsid sleep 1000 & setsid sleep 1000 & wait");
    let child = spawner.spawn(spec.env(MARK, format!("{mark}/7"))).await.unwrap();
    let own_sessions = || {
        let found = processes_with_mark(&mark);
        found.iter().filter(|pid| rustix::process::getsid(Some(**pid)) == Ok(**pid)).count()
    };
    eventually("the shell and both have sessions of their own", || own_sessions() == 3).await;
    child.kill_group();
    child.wait().await;
    assert_eq!(processes_with_mark(&mark).len(), 2);
    assert_eq!(kill_marked(&format!("{mark}/70")), 0);
    let count = tokio::task::spawn_blocking(move || kill_marked(&mark)).await.unwrap();
    assert_eq!(count, 2);
}

#[tokio::test]
async fn limits_are_set_and_no_descriptor_is_inherited() {
    let spawner = Spawner::start().unwrap();
    // A descriptor without close-on-exec, as a C library could leave one.
    let file = File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
    let mut spec = shell("ulimit -n; ls /proc/self/fd | wc -l").env("PATH", "/usr/bin:/bin");
    spec.limits = vec![(Resource::Nofile, 77)];
    spec.stdout = Output::Pipe;
    let mut child = spawner.spawn(spec).await.unwrap();
    let mut out = String::new();
    File::from(child.take_stdout().unwrap()).read_to_string(&mut out).unwrap();
    // 0, 1, 2 and the folder that ls reads.
    assert_eq!(out, "77\n4\n");
}

/// Between two programs a process has no environment for a moment.
#[tokio::test]
async fn a_process_that_runs_program_after_program_is_always_found() {
    let spawner = Spawner::start().unwrap();
    let mark = own_mark("exec");
    let spec = shell(r#"exec /bin/sh -c "$0" "$0""#).arg(r#"exec /bin/sh -c "$0" "$0""#);
    let child = spawner.spawn(spec.env(MARK, &mark)).await.unwrap();
    for _ in 0..300 {
        assert_eq!(processes_with_mark(&mark), [child.pid()]);
    }
}

#[cfg(feature = "sock")]
#[test]
fn a_message_of_the_nursery_comes_whole_or_not_at_all() {
    use std::os::fd::AsRawFd;

    let (one, other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let (from, to) = (one.as_raw_fd(), other.as_raw_fd());
    let (mut ended, open) = std::io::pipe().unwrap();
    let mut room = [0; 8];
    assert_eq!(c::send(from, b"x", &[open.as_raw_fd(); 17]), Err(c::EINVAL));
    c::send(from, b"x", &[open.as_raw_fd(); 16]).unwrap();
    let (length, descriptors) = c::receive(to, &mut room).unwrap();
    assert_eq!((length, descriptors.len()), (1, 16));
    drop(descriptors);
    c::send(from, b"longer than the room", &[open.as_raw_fd()]).unwrap();
    assert_eq!(c::receive(to, &mut room).unwrap_err(), c::EMSGSIZE);
    c::send(from, b"x", &[]).unwrap();
    assert_eq!(c::receive(to, &mut room).unwrap().0, 1);
    // Of the one that was cut, no descriptor stays.
    drop(open);
    assert_eq!(ended.read(&mut room).unwrap(), 0);
}

/// By this the watchdog sees that a sandbox rests.
#[test]
fn the_time_of_cores_of_another_process_stands_still_while_it_rests() {
    let mut rests = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let mut works =
        std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
    let pid = |child: &std::process::Child| child.id() as i32;
    // Until it sleeps.
    let time = loop {
        let time = super::time_of_cores(pid(&rests)).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        if super::time_of_cores(pid(&rests)) == Some(time) {
            break time;
        }
    };
    let before = super::time_of_cores(pid(&works)).unwrap();
    while super::time_of_cores(pid(&works)).unwrap() == before {
        std::thread::yield_now();
    }
    assert_eq!(super::time_of_cores(pid(&rests)), Some(time));
    for child in [&mut rests, &mut works] {
        child.kill().unwrap();
        let gone = pid(child);
        child.wait().unwrap();
        assert_eq!(super::time_of_cores(gone), None);
    }
}
