//! How `ol` behaves towards the person, the shell and the script that call it: what is printed where, with
//! which status it ends, and what it says while it waits.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{Cluster, Daemon, Place, from_a_terminal, kill, program, texts, wait_for};

const SLOW: &str = "import time\ndef f(event):\n    print('begun', event)\n    time.sleep(event)\n";

/// The lines that come, each when it comes.
fn lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// The next line that holds `text`.
fn until(lines: &Receiver<String>, text: &str) -> String {
    let mut before = Vec::new();
    loop {
        let Ok(line) = lines.recv_timeout(Duration::from_secs(60)) else {
            panic!("no line with {text:?} came after {before:#?}");
        };
        if line.contains(text) {
            return line;
        }
        before.push(line);
    }
}

/// An `ol up` that stays in the foreground, when it serves.
fn foreground(place: &Place, args: &[&str]) -> (Child, String, Receiver<String>) {
    let up = [&["up", "--listen", "127.0.0.1:0", "--workers", "1"], args].concat();
    let mut command = from_a_terminal(&place.command(&up));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let said = lines(child.stderr.take().unwrap());
    let mut url = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut url).unwrap();
    until(&said, "Ctrl-C does too");
    (child, url.trim().to_owned(), said)
}

/// The next two lines; that of a log first, whichever was written down first.
fn two(said: &Receiver<String>) -> [String; 2] {
    let mut two = [(); 2].map(|()| said.recv_timeout(Duration::from_secs(60)).unwrap());
    two.sort_by_key(|line| line.contains("POST"));
    two
}

#[test]
fn output_that_cannot_be_written_fails_and_a_reader_that_leaves_does_not() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let place = &cluster.place;
    let folder = place.function("f", &[("f.py", "def f(event):\n    print('hi')\n    return 1\n")]);
    let folder = folder.to_str().unwrap();
    let fresh = place.function("", &[]).join("fresh");
    place.ol(&["deploy", folder]);
    place.ol(&["deploy", folder]);
    place.ol(&["invoke", "f"]);
    assert!(wait_for(|| place.run(&["logs", "f"]).status.success().then_some(())).is_some());
    for args in [
        &["--help"][..],
        &["--version"],
        &["help", "up"],
        &["up", "--detach"],
        &["status"],
        &["status", "--json"],
        &["ls"],
        &["ls", "--json"],
        &["deploy", folder],
        &["invoke", "f"],
        &["invoke", "f", "--json"],
        &["describe", "f"],
        &["versions", "f"],
        &["alias", "f", "live", "1"],
        &["alias", "f"],
        &["rollback", "f", "1"],
        &["logs", "f"],
        &["logs", "f", "-f"],
        &["policies"],
        &["config", "show"],
        &["doctor"],
        &["completions", "bash"],
        &["new", fresh.to_str().unwrap()],
        &["sim", "--invocations", "100", "--policy", "random"],
    ] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = place.command(args).stdout(full).output().unwrap();
        let (_, err) = texts(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {err}");
        let expected = "cannot write to standard output: No space left on device";
        assert!(err.contains(expected) && !err.contains("os error"), "{args:?}: {err}");
        // Whoever reads has gone before anything comes.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        // What is made by the first call is there at the second.
        let _ = fs::remove_dir_all(&fresh);
        let output = place.command(args).stdout(OwnedFd::from(writer)).output().unwrap();
        let (_, err) = texts(&output);
        assert!(output.status.success(), "{args:?}: {err}");
        assert!(!err.contains("cannot write"), "{args:?}: {err}");
    }
}

#[test]
fn a_wrong_call_ends_with_status_2_and_a_failure_with_1() {
    let place = Place::with_its_own_secret();
    fs::create_dir_all(place.data_dir()).unwrap();
    for args in [
        &["up", "--policy", "no-such"][..],
        &["up", "--policy", "bounded-load,epsilon=many"],
        &["up", "--keep-alive", "no-such"],
        &["up", "--queue-policy", "no-such"],
        &["up", "--sandbox", "no-such"],
        &["up", "--registry", "no-such=place"],
        &["up", "--registry", "native=nowhere"],
        &["up", "--access-log", "-"],
        &["up", "--workers", "2", "--records", "r"],
        &["up", "--drain-seconds", "41"],
        &["invoke", "f", "-H", "nocolon"],
        &["invoke", "f", "-H", "a b: c"],
        &["invoke", "f", "-X", "A B"],
        &["sim", "--policy", "no-such"],
        &["sim", "--rate", "0"],
        &["sim", "--invocations", "many"],
        &["bench", "start", "--sandbox", "no-such"],
        &["daemon", "worker"],
        &["daemon", "lb", "--registry", "dir=/tmp"],
    ] {
        let output = place.run(args);
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {out}{err}");
        for word in ["f64", "u32", "u64", "usize", "invalid digit", "literal", "struct", "os error"]
        {
            assert!(!err.contains(word), "{args:?} says {word}: {err}");
        }
    }
    // By a variable, too; what a file says is no call.
    let output = place.command(&["up"]).env("OPENLAMBDA_POLICY", "no-such").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{:?}", texts(&output));
    fs::write(place.data_dir().join("config.toml"), "policy = \"no-such\"\n").unwrap();
    assert!(place.fails(&["up"]).contains("no-such"));
}

#[test]
fn up_where_a_cluster_runs_says_what_is_otherwise_than_it_is_asked_for() {
    let policy = "bounded-load,epsilon=0.5";
    let cluster = Cluster::start(&["--workers", "1", "--policy", policy, "--sandbox", "process"]);
    let place = &cluster.place;
    let port = cluster.url.rsplit(':').next().unwrap();
    let listen = format!("127.0.0.1:{port}");
    for same in [
        &[][..],
        &["--workers", "1"],
        &["--policy", "bounded-load,epsilon=0.50"],
        &["--listen", "127.0.0.1:0"],
        &["--listen", &listen],
        &["--ttl-seconds", "600"],
        &["--keep-alive", "ttl,seconds=600"],
        &["--sandbox", "process", "--registry", "native"],
    ] {
        let out = place.ol(&[&["up", "--detach"], same].concat());
        assert_eq!(out.trim(), cluster.url, "{same:?}");
        assert_eq!(place.ol(&[&["up"], same].concat()).trim(), cluster.url, "{same:?}");
    }
    let file = place.function("", &[]).join("three.toml");
    fs::write(&file, "workers = 3\n").unwrap();
    let file = file.to_str().unwrap();
    for (other, expected) in [
        (&["--workers", "3"][..], "--workers 3: the cluster has 1"),
        (&["--policy", "random"], &format!("--policy random: the cluster has {policy}")),
        (
            &["--policy", "bounded-load"],
            &format!("--policy bounded-load: the cluster has {policy}"),
        ),
        (&["--listen", "127.0.0.1:1"], &format!("--listen 127.0.0.1:1: the cluster has {listen}")),
        (&["--listen", "127.0.0.2:0"], &format!("the cluster has {listen}")),
        (&["--registry", "dir"], "--registry dir: the cluster has native"),
        (&["--records", "{name}.jsonl"], "{name}.jsonl: the cluster has none"),
        (&["--secret-file", "/dev/null"], "--secret-file /dev/null: the cluster has /"),
        (&["--config", file], &format!("workers = 3 in {file}: the cluster has 1")),
    ] {
        for up in [&["up", "--detach"][..], &["up"]] {
            let said = place.fails(&[up, other].concat());
            assert!(said.contains(expected), "{other:?}: {said}");
            assert!(said.contains("`ol down`, then the same again"), "{said}");
        }
    }
    // Both of two are told; what is as it should be is not.
    let said = place.fails(&["up", "--workers", "2", "--seed", "3", "--retries", "2"]);
    assert!(said.contains("--workers 2") && said.contains("--seed 3: the cluster has 0"), "{said}");
    assert!(!said.contains("--retries"), "{said}");
    // What holds for the next start is no demand.
    let output = place.command(&["up"]).env("OPENLAMBDA_WORKERS", "4").output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success() && out.trim() == cluster.url, "{err}");
    assert!(err.contains("OPENLAMBDA_WORKERS=4: the cluster has 1"), "{err}");
    fs::write(place.data_dir().join("config.toml"), "workers = 5\n").unwrap();
    let output = place.run(&["up"]);
    assert!(output.status.success(), "{output:?}");
    assert!(texts(&output).1.contains("workers = 5 in "), "{output:?}");
    // Nothing was started or changed by any of them.
    assert_eq!(cluster.status()["workers"].as_array().unwrap().len(), 1);
}

/// Whoever of two that start a cluster at once is second finds it, in whatever way they were called.
#[test]
fn of_two_that_start_a_cluster_at_once_both_succeed() {
    for (round, detached) in [[true, true], [true, false], [false, true], [false, false]]
        .into_iter()
        .cycle()
        .take(8)
        .enumerate()
    {
        let place = Place::new();
        let start = |detach: bool| {
            let up = ["up", "--listen", "127.0.0.1:0", "--workers", "1", "--sandbox", "process"];
            let mut command = place.command(&up);
            if detach {
                command.arg("--detach");
            }
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let mut both = [start(detached[0]), start(detached[1])];
        let urls = both.each_mut().map(|child| {
            let mut line = String::new();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            line
        });
        assert!(urls[0].starts_with("http://"), "{round}: {urls:?}");
        assert_eq!(urls[0], urls[1], "{round}");
        let status = place.json(&["status", "--json"]);
        assert_eq!(status["url"], urls[0].trim(), "{round}");
        place.ol(&["down"]);
        for child in both {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{round}: {:?}", texts(&output));
        }
        place.assert_nothing_left();
    }
}

/// Of two that ask for different clusters, one has its own and the other is told.
#[test]
fn of_two_that_start_different_clusters_at_once_one_is_told() {
    let place = Place::new();
    let start = |workers: &str| {
        let up = ["up", "--detach", "--listen", "127.0.0.1:0", "--sandbox", "process"];
        let mut command = place.command(&up);
        command.args(["--workers", workers]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let both = [start("1"), start("2")].map(|child| child.wait_with_output().unwrap());
    let has = place.json(&["status", "--json"])["workers"].as_array().unwrap().len();
    for (output, asked) in both.iter().zip([1, 2]) {
        let (out, err) = texts(output);
        assert_eq!(output.status.success(), asked == has, "{asked} of {has}: {out}{err}");
        let told = err.contains(&format!("--workers {asked}: the cluster has {has}"));
        assert_eq!(told, asked != has, "{err}");
    }
}

#[test]
fn a_foreground_cluster_shows_calls_and_logs_as_they_come() {
    let place = Place::new();
    let folder = place.function("slow", &[("f.py", SLOW)]);
    let (mut child, url, said) = foreground(&place, &[]);
    place.ol(&["deploy", folder.to_str().unwrap()]);
    place.ol(&["invoke", "slow", "-d", "0"]);
    let [log, call] = two(&said);
    assert!(log.ends_with("Z slow: begun 0"), "{log}");
    assert!(call.contains("Z POST /run/slow 200 "), "{call}");
    assert!(call.ends_with(" ms cold worker-1"), "{call}");
    let missing = place.run(&["invoke", "missing"]);
    assert_eq!(missing.status.code(), Some(1));
    until(&said, "POST /run/missing 404 ");
    // At the end it says what it waits for, and waits for it.
    let call = place.command(&["invoke", "slow", "-d", "2"]).stdout(Stdio::null()).spawn();
    until(&said, "slow: begun 2");
    kill(child.id() as i32, Signal::INT);
    let line = until(&said, "stopping");
    assert!(line.contains("when 1 call under way has come to its end"), "{line}");
    until(&said, "POST /run/slow 200 ");
    assert!(call.unwrap().wait().unwrap().success(), "{url}");
    assert!(child.wait().unwrap().success());
    place.assert_nothing_left();
    // The next one shows what is new, and what an own access log says is shown as well.
    let log = place.data_dir().join("own.jsonl");
    let (mut child, _, said) = foreground(&place, &["--access-log", log.to_str().unwrap()]);
    place.ol(&["invoke", "slow", "-d", "0"]);
    let [printed, call] = two(&said);
    assert!(printed.ends_with("slow: begun 0") && call.contains(" 200 "), "{printed}{call}");
    assert!(fs::read_to_string(log).unwrap().contains("/run/slow"));
    kill(child.id() as i32, Signal::INT);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_second_ctrl_c_ends_a_cluster_at_once() {
    let place = Place::new();
    let folder = place.function("slow", &[("f.py", SLOW)]);
    let (mut child, _, said) = foreground(&place, &[]);
    place.ol(&["deploy", folder.to_str().unwrap()]);
    let mut call =
        place.command(&["invoke", "slow", "-d", "25"]).stdout(Stdio::null()).spawn().unwrap();
    until(&said, "slow: begun 25");
    kill(child.id() as i32, Signal::INT);
    until(&said, "Ctrl-C again cuts it off");
    kill(child.id() as i32, Signal::INT);
    until(&said, "calls under way were cut off");
    assert_eq!(child.wait().unwrap().code(), Some(1));
    // It would have been answered.
    assert!(!call.wait().unwrap().success());
    place.assert_nothing_left();
}

#[test]
fn a_terminal_that_is_gone_ends_a_cluster_as_sigterm_does() {
    let place = Place::new();
    let folder = place.function("slow", &[("f.py", SLOW)]);
    let (mut child, _, said) = foreground(&place, &[]);
    place.ol(&["deploy", folder.to_str().unwrap()]);
    let mut call =
        place.command(&["invoke", "slow", "-d", "2"]).stdout(Stdio::null()).spawn().unwrap();
    until(&said, "slow: begun 2");
    kill(child.id() as i32, Signal::HUP);
    assert!(child.wait().unwrap().success());
    assert!(call.wait().unwrap().success(), "the call under way was cut off");
    place.assert_nothing_left();
    // Daemons as well.
    let store = place.data_dir().join("store");
    let mut daemon = Daemon::start(
        program("ol-registry").to_str().unwrap(),
        &["--store", store.to_str().unwrap()],
    );
    daemon.signal(Signal::HUP);
    assert!(daemon.ended().success());
    // Who asked for a cluster that outlives its terminal gets one.
    let mut command = Command::new("nohup");
    command.arg(program("ol")).args(["up", "--listen", "127.0.0.1:0", "--workers", "1"]);
    command.env("OPENLAMBDA_DATA_DIR", place.data_dir()).process_group(0);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut url = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut url).unwrap();
    kill(child.id() as i32, Signal::HUP);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(place.ol(&["invoke", "slow", "-d", "0"]), "null");
    assert_eq!(child.try_wait().unwrap(), None);
    place.ol(&["down"]);
    assert!(child.wait().unwrap().success());
}

/// What a command prints to a terminal that is so wide, which Python makes.
fn on_a_terminal(place: &Place, columns: u32, args: &[&str]) -> String {
    let script = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)";
    let narrow = format!("stty rows 40 cols {columns}; exec \"$0\" \"$@\"");
    let mut command = Command::new("python3");
    command.args(["-c", script, "sh", "-c", &narrow]).arg(program("ol")).args(args);
    command.env("OPENLAMBDA_DATA_DIR", place.data_dir()).env("TERM", "xterm");
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{args:?}: {out}{err}");
    out
}

#[test]
fn help_is_as_wide_as_the_terminal() {
    let place = Place::new();
    for args in [&["--help"][..], &["up", "--help"], &["sim", "-h"], &["invoke", "--help"]] {
        for columns in [70, 120] {
            let help = on_a_terminal(&place, columns, args);
            let mut plain = String::new();
            for part in help.split("\u{1b}[") {
                // What stands before the first escape, and behind each.
                plain.push_str(part.split_once('m').map_or(part, |(code, rest)| {
                    if code.bytes().all(|byte| byte.is_ascii_digit() || byte == b';') {
                        rest
                    } else {
                        part
                    }
                }));
            }
            let widest = plain.lines().map(|line| line.trim_end().chars().count()).max().unwrap();
            assert!(widest <= columns as usize, "{args:?} in {columns}: {widest}\n{plain}");
        }
    }
}

#[test]
fn a_simulation_and_a_bench_tell_how_far_they_are() {
    let place = Place::new();
    let sim = ["sim", "--policy", "random", "--invocations", "600000", "--threads", "1"];
    let shown = on_a_terminal(&place, 100, &sim);
    assert!(shown.contains(" of 600000 calls, ") && shown.contains(" s left"), "{shown:?}");
    assert!(texts(&place.run(&sim)).1.is_empty());
    let bench = ["bench", "resume", "--sandbox", "sock", "--rounds", "4", "--seconds", "0.5"];
    let shown = on_a_terminal(&place, 100, &bench);
    assert!(shown.contains("2 of 4 parts, ") && shown.contains(" s left"), "{shown:?}");
}

#[test]
fn a_large_deployment_tells_how_far_it_is() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let folder = cluster.place.function("large", &[("f.py", "def f(event): return event\n")]);
    let data = fs::File::create(folder.join("data")).unwrap();
    let deploy = ["deploy", folder.to_str().unwrap()];
    for (mib, version) in [(127, 1), (31, 2)] {
        data.set_len(mib << 20).unwrap();
        if version == 1 {
            let shown = on_a_terminal(&cluster.place, 100, &deploy);
            let told = [" of 128 MiB, ", " a second, ", " s left"];
            assert!(told.iter().all(|told| shown.contains(told)), "{shown:?}");
        } else {
            // Nothing of that where nobody sees it.
            let (_, err) = texts(&cluster.place.run(&deploy));
            assert!(err.starts_with("large version 2 is deployed\n"), "{err}");
        }
    }
}

/// What a command says within two seconds, and its name.
fn says(place: &Place, args: &[&str], text: &str) {
    let mut child =
        place.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (sender, all) = channel();
    let streams: [Box<dyn Read + Send>; 2] =
        [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
    for stream in streams {
        let sender = sender.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
    }
    let line = until(&all, text);
    assert!(!line.is_empty());
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn whoever_waits_for_a_daemon_that_stands_still_is_told_which() {
    let cluster =
        Cluster::start(&["--workers", "2", "--sandbox", "process", "--policy", "round-robin"]);
    let place = &cluster.place;
    let folder = place.function("f", &[("f.py", "def f(event):\n    return event\n")]);
    let folder = folder.to_str().unwrap();
    place.ol(&["deploy", folder]);
    assert_eq!(cluster.status()["silent"], json!([]));
    let status = cluster.status();
    let pid = |value: &Value| value.as_i64().unwrap() as i32;
    let (balancer, registry) = (pid(&status["balancer_pid"]), pid(&status["registry"]["pid"]));
    let (worker, supervisor) = (pid(&status["workers"][1]["pid"]), pid(&status["pid"]));
    for (stopped, name, waiting) in [
        (balancer, "the balancer", &[&["invoke", "f"][..], &["deploy", folder], &["rm", "f"]][..]),
        (
            registry,
            "the registry",
            &[
                &["ls"],
                &["describe", "f"],
                &["versions", "f"],
                &["alias", "f", "live", "1"],
                &["rollback", "f", "1"],
                &["logs", "f"],
            ],
        ),
        (worker, "worker-2", &[]),
        (supervisor, "the supervisor", &[]),
    ] {
        kill(stopped, Signal::STOP);
        let expected = format!("`kill -CONT {stopped}` lets it go on");
        let text = place.ol(&["status"]);
        let told = text.lines().find(|line| line.contains(&expected));
        assert!(told.is_some_and(|line| line.starts_with(name)), "{name}: {text}");
        assert_eq!(place.json(&["status", "--json"])["silent"], json!([name]));
        for args in waiting {
            says(place, args, &expected);
        }
        kill(stopped, Signal::CONT);
    }
    // Stopping does not wait for those who would never hear it.
    kill(worker, Signal::STOP);
    kill(supervisor, Signal::STOP);
    place.ol(&["down"]);
}
