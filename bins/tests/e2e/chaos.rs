//! Kill −9 at any time: what was accepted is answered, what was acknowledged is kept, and nothing is
//! left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openlambda_core::bundle;
use openlambda_core::conformance::times;
use openlambda_core::function::{Digest, FunctionName, Version};
use openlambda_core::registry::Registry;
use openlambda_registry::native::RemoteRegistry;
use rustix::process::Signal;

use crate::common::{
    Answer, Cluster, Place, client, example, kill, post, secret, send, texts, wait_for,
};
use crate::table::wait_for_call;

/// A thousand calls at once through two workers, one of which is killed and started again: only calls
/// that had started there may fail, each with 502 and `x-openlambda-error: worker`.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_calls_survive_the_death_of_a_worker() {
    let cluster = Cluster::start(&[]);
    let (client, url) = (client(), cluster.deploy_example("echo"));
    let pid = cluster.worker_pid("worker-1").unwrap();
    let done = Arc::new(AtomicUsize::new(0));
    let calls: Vec<_> = (0..1000)
        .map(|n| {
            let (client, url, done) = (client.clone(), url.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let answer = post(&client, &url, &format!("{{\"call\": {n}}}")).await;
                done.fetch_add(1, Ordering::SeqCst);
                answer
            })
        })
        .collect();
    while done.load(Ordering::SeqCst) < 100 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    kill(pid, Signal::KILL);
    let mut failed = 0;
    for (n, call) in calls.into_iter().enumerate() {
        let answer = call.await.unwrap();
        if answer.status == 200 {
            assert_eq!(answer.body, format!("{{\"call\": {n}}}"));
            continue;
        }
        failed += 1;
        let Answer { status, .. } = answer;
        assert_eq!((status, answer.header("x-openlambda-error")), (502, "worker"), "{answer:?}");
        assert_eq!(answer.header("x-openlambda-worker"), "worker-1", "{answer:?}");
    }
    // No more than the worker had running or waiting when it died.
    assert!(failed < 900, "{failed} calls failed");
    // It comes back into the rotation.
    let back = wait_for(|| {
        let status = cluster.status();
        let worker = &status["workers"][0];
        (worker["state"] == "ready" && worker["pid"].as_i64() != Some(pid.into())).then_some(())
    });
    assert!(back.is_some(), "{}", cluster.status());
    let calls = (0..100).map(|n| {
        let (client, url) = (client.clone(), url.clone());
        async move { (n, post(&client, &url, &n.to_string()).await) }
    });
    let mut workers = BTreeMap::<String, u32>::new();
    for (n, answer) in futures_util::future::join_all(calls).await {
        assert_eq!((answer.status, answer.body.clone()), (200, n.to_string()), "{answer:?}");
        *workers.entry(answer.header("x-openlambda-worker").to_owned()).or_default() += 1;
    }
    assert_eq!(workers.len(), 2, "{workers:?}");
}

/// A worker of containers that is killed while 200 calls run and wait there: each call is answered, and
/// the worker that is started in its place removes what is left of all of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_200_calls_leaves_nothing_that_the_next_does_not_remove() {
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", "sock"]);
    let code = "import subprocess, time\ndef f(event):\n    if event is None: return 'here'\n    \
                subprocess.Popen(['setsid', 'sleep', '1000'])\n    time.sleep(1000)\n";
    let manifest = "memory_mb = 32\nmax_instances = 100\ntimeout_seconds = 600";
    let url = cluster.deploy("sleeper", &[("f.py", code), ("ol.toml", manifest)]);
    let client = client();
    let calls: Vec<_> = (0..200)
        .map(|n| {
            let (client, url) = (client.clone(), url.clone());
            tokio::spawn(async move { post(&client, &url, &n.to_string()).await })
        })
        .collect();
    let left_by = |what: &str| {
        let processes = cluster.place.processes();
        processes.iter().filter(|process| process.contains(what)).count()
    };
    let in_the_middle = wait_for(|| (left_by("sleep 1000") >= 60).then_some(()));
    assert!(in_the_middle.is_some(), "{:?}", cluster.place.processes());
    let pid = cluster.worker_pid("worker-1").unwrap();
    kill(pid, Signal::KILL);
    for call in calls {
        let answer = call.await.unwrap();
        // Those that waited may be told by the balancer that there is no worker.
        assert!(matches!(answer.status, 502 | 503), "{answer:?}");
    }
    let back = wait_for(|| {
        let status = cluster.status();
        let worker = &status["workers"][0];
        (worker["state"] == "ready" && worker["pid"].as_i64() != Some(pid.into())).then_some(())
    });
    assert!(back.is_some(), "{}", cluster.status());
    assert_eq!(wait_for_call(&client, &url, "null").await.body, "\"here\"");
    let gone = wait_for(|| (left_by("sleep 1000") == 0).then_some(()));
    assert!(gone.is_some(), "{:?}", cluster.place.processes());
    // In each hierarchy the worker's folder, and the groups of the few instances that it has made.
    let groups = cluster.place.cgroups();
    assert!(groups.len() <= 4 * 4, "{groups:?}");
    let sandboxes = cluster.place.data_dir().join("workers/worker-1/sandboxes");
    assert_eq!(std::fs::read_dir(sandboxes).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_balancer_comes_back_at_its_address() {
    let cluster = Cluster::start(&[]);
    let (client, url) = (client(), cluster.deploy_example("echo"));
    assert_eq!(post(&client, &url, "1").await.body, "1");
    for _ in 0..3 * times() {
        let pid = cluster.status()["balancer_pid"].as_i64().unwrap();
        kill(pid as i32, Signal::KILL);
        assert_eq!(wait_for_call(&client, &url, "2").await.body, "2");
        let changed = wait_for(|| {
            let status = cluster.status();
            (status["balancer_pid"].as_i64() != Some(pid)).then_some(())
        });
        assert!(changed.is_some());
    }
}

/// Kill the supervisor and all daemons, in any order, at any time: `ol down` leaves nothing, and the
/// next `ol up` serves what was deployed.
#[test]
fn after_kill_9_of_everything_down_leaves_nothing() {
    for sandbox in ["process", "auto"] {
        kill_everything(sandbox);
    }
}

fn kill_everything(sandbox: &str) {
    let place = Place::new();
    for round in 0..6 * times() {
        place.ol(&["up", "--detach", "--listen", "127.0.0.1:0", "--sandbox", sandbox]);
        if round == 0 {
            place.ol(&["deploy", example("echo").to_str().unwrap()]);
            place.ol(&["deploy", place.copy_of_example("pychat").to_str().unwrap()]);
        }
        // Instances of all kinds: idle, busy, and one that left a process of its own session.
        let escapes = "import subprocess, time\ndef f(event):\n    \
                       subprocess.Popen(['setsid', 'sleep', '1000'])\n    \
                       time.sleep(event)\n    return event\n";
        let folder = place.function("escapes", &[("f.py", escapes)]);
        place.ol(&["deploy", folder.to_str().unwrap()]);
        assert_eq!(place.ol(&["invoke", "echo", "-d", "1"]), "1");
        assert_eq!(place.ol(&["invoke", "escapes", "-d", "0"]), "0");
        let mut busy = place
            .command(&["invoke", "escapes", "-d", "100"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(50 * (round % 6)));
        let status = place.json(&["status", "--json"]);
        let mut pids = [
            status["pid"].as_i64(),
            status["balancer_pid"].as_i64(),
            status["registry"]["pid"].as_i64(),
            status["workers"][0]["pid"].as_i64(),
            status["workers"][1]["pid"].as_i64(),
        ];
        pids.rotate_left(round as usize % 5);
        // On a busy machine much time may be between two kills: in it the supervisor would start a worker again,
        // which cleans up at once, and a worker would end in good order, because its supervisor is gone.
        for signal in [Signal::STOP, Signal::KILL] {
            for pid in pids.iter().copied().flatten() {
                // Its parent's death may have ended it already.
                if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
                    let _ = rustix::process::kill_process(pid, signal);
                }
            }
        }
        // A container takes everything in it along.
        assert!(
            sandbox == "auto"
                || place.processes().iter().any(|process| process.contains("sleep 1000")),
            "nothing escaped, so nothing is shown: {:?}",
            place.processes()
        );
        if round % 2 == 0 {
            place.ol(&["down"]);
            place.assert_nothing_left();
        }
        assert!(!busy.wait().unwrap().success(), "its worker was killed");
    }
}

/// The kernel takes its time with a supervisor that was killed, and the lock is held until then: that is no
/// cluster that runs.
#[test]
fn a_cluster_is_started_when_a_dying_one_lets_go() {
    let place = Place::new();
    let up = ["up", "--detach", "--listen", "127.0.0.1:0", "--workers", "1"];
    place.ol(&up);
    let status = place.json(&["status", "--json"]);
    kill(status["pid"].as_i64().unwrap() as i32, Signal::KILL);
    let lock = std::fs::File::open(place.data_dir().join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let gone = wait_for(|| place.processes().is_empty().then_some(()));
    assert!(gone.is_some(), "{:?}", place.processes());
    let mut again = place.command(&up).stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(again.try_wait().unwrap(), None, "nothing serves yet");
    drop(lock);
    assert!(again.wait().unwrap().success());
    let status = place.json(&["status", "--json"]);
    assert!(status["pid"].is_i64(), "{status}");
    place.ol(&["down"]);
}

/// Who starts a cluster where several do at once has the one that comes of it.
#[test]
fn several_that_start_a_cluster_at_once_start_one() {
    let place = Place::new();
    let up = ["up", "--detach", "--listen", "127.0.0.1:0", "--workers", "1"];
    for _ in 0..3 {
        let callers: Vec<_> = (0..6)
            .map(|_| {
                let mut command = place.command(&up);
                command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        let urls: BTreeSet<String> = callers
            .into_iter()
            .map(|caller| {
                let (out, err) = texts(&caller.wait_with_output().unwrap());
                assert!(out.starts_with("http://"), "{out}{err}");
                out
            })
            .collect();
        assert_eq!(urls.len(), 1, "{urls:?}");
        let status = place.json(&["status", "--json"]);
        assert_eq!(urls.first().unwrap().trim(), status["url"].as_str().unwrap());
        place.ol(&["down"]);
        place.assert_nothing_left();
    }
}

/// That a balancer has no time to say so does not make its cluster another one than that which runs.
#[test]
fn a_cluster_whose_balancer_is_slow_to_answer_runs() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let balancer = cluster.status()["balancer_pid"].as_i64().unwrap() as i32;
    kill(balancer, Signal::STOP);
    let up = cluster.place.run(&["up", "--detach"]);
    let status = cluster.place.run(&["status"]);
    kill(balancer, Signal::CONT);
    let (out, err) = texts(&up);
    assert!(up.status.success(), "{out}{err}");
    assert_eq!(out.trim(), cluster.url);
    assert!(err.contains("the cluster runs already"), "{err}");
    assert!(err.contains("its balancer takes long to answer"), "{err}");
    let (out, err) = texts(&status);
    assert!(out.contains("the balancer takes long to answer"), "{out}{err}");
    assert!(out.contains("worker-1  unknown"), "{out}{err}");
}

/// A worker that stands still takes no call with it that it has not begun: the calls go to the other one.
#[tokio::test(flavor = "multi_thread")]
async fn calls_pass_by_a_worker_that_stands_still() {
    let cluster =
        Cluster::start(&["--workers", "2", "--sandbox", "process", "--policy", "round-robin"]);
    let url = cluster.deploy(
        "hi",
        &[("f.py", "def f(event): return event"), ("ol.toml", "timeout_seconds = 3")],
    );
    let client = client();
    for _ in 0..4 {
        assert_eq!(post(&client, &url, "1").await.status, 200);
    }
    // Until no connection is kept.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let pid = cluster.worker_pid("worker-2").unwrap();
    kill(pid, Signal::STOP);
    let calls = (0..6).map(|_| post(&client, &url, "1"));
    let answers =
        tokio::time::timeout(Duration::from_secs(30), futures_util::future::join_all(calls)).await;
    kill(pid, Signal::CONT);
    for answer in answers.expect("they do not wait for it") {
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// Versions that were acknowledged are there, whole, whenever the registry was killed.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_registry_acknowledged_survives_kill_9() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let spec = cluster.status()["registry"]["spec"].as_str().unwrap().to_owned();
    let registry = RemoteRegistry::connect(spec.strip_prefix("native=").unwrap()).unwrap();
    let registry = registry.with_secret(Some(secret().known()));
    let stop = Arc::new(AtomicBool::new(false));
    let publishers: Vec<_> = (0..4)
        .map(|n| {
            let (registry, stop) = (registry.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let name: FunctionName = format!("f{n}").parse().unwrap();
                let mut acknowledged = Vec::<(Version, Digest)>::new();
                let mut count = 0;
                while !stop.load(Ordering::SeqCst) {
                    count += 1;
                    let tar = packed(&format!("{n} {count}"));
                    let stream = futures_util::stream::once(async { Ok(Bytes::from(tar)) });
                    match registry.publish(&name, Box::pin(stream)).await {
                        Ok(published) => {
                            acknowledged.push((published.version, published.digest));
                        }
                        // It is being killed and started again.
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                }
                (name, acknowledged)
            })
        })
        .collect();
    let mut last = None;
    for round in 0..8 * times() {
        tokio::time::sleep(Duration::from_millis(150 + 37 * (round % 8))).await;
        let pid = wait_for(|| {
            let pid = cluster.status()["registry"]["pid"].as_i64();
            pid.filter(|pid| Some(*pid) != last)
        });
        last = pid;
        kill(pid.expect("it was started again") as i32, Signal::KILL);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::SeqCst);
    let mut total = 0;
    for publisher in publishers {
        let (name, acknowledged) = publisher.await.unwrap();
        total += acknowledged.len();
        assert!(acknowledged.is_sorted(), "numbers grow");
        for (version, digest) in acknowledged {
            let resolved = registry.resolve(&format!("{name}:{version}").parse().unwrap()).await;
            assert_eq!(resolved.unwrap().digest, digest, "{name}:{version}");
            let into = tempfile::tempdir().unwrap();
            // Fetching checks the digest over every byte.
            registry.fetch(&digest, into.path()).await.unwrap();
        }
    }
    assert!(total > 20, "too few publications to tell anything: {total}");
}

fn packed(text: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let code = format!("def f(event):\n    return {text:?}\n");
    std::fs::write(folder.path().join("f.py"), code).unwrap();
    let mut tar = Vec::new();
    bundle::pack_dir(folder.path(), &mut tar).unwrap();
    tar
}

/// Whichever process dies under load, the cluster heals, and every call gets an answer that says
/// whose fault it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_loses_any_process_heals() {
    let cluster = Cluster::start(&[]);
    let (client, url) = (client(), cluster.deploy_example("echo"));
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (client, url, stop) = (client.clone(), url.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut answers = BTreeMap::<(u16, String), u32>::new();
                while !stop.load(Ordering::SeqCst) {
                    let request = http::Request::post(&url).body("7").unwrap();
                    let key = match send(&client, request).await {
                        Ok(answer) => {
                            if answer.status == 200 {
                                assert_eq!(answer.body, "7");
                            }
                            (answer.status, answer.header("x-openlambda-error").to_owned())
                        }
                        // The balancer itself is away.
                        Err(_) => {
                            tokio::time::sleep(Duration::from_millis(10)).await;
                            (0, String::new())
                        }
                    };
                    *answers.entry(key).or_default() += 1;
                }
                answers
            })
        })
        .collect();
    let each = ["registry", "worker-1", "worker-2", "balancer"];
    for victim in each.into_iter().cycle().take(each.len() * times() as usize) {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let status = cluster.status();
        let pid = match victim {
            "registry" => status["registry"]["pid"].as_i64(),
            "balancer" => status["balancer_pid"].as_i64(),
            worker => cluster.worker_pid(worker).map(i64::from),
        };
        kill(pid.unwrap() as i32, Signal::KILL);
        assert_eq!(wait_for_call(&client, &url, "7").await.body, "7");
        let whole = wait_for(|| {
            let status = cluster.status();
            let workers = status["workers"].as_array().unwrap();
            let ready = workers.iter().all(|worker| worker["state"] == "ready");
            let there = status["registry"]["pid"].is_i64() && status["balancer_pid"].is_i64();
            (ready && there).then_some(())
        });
        assert!(whole.is_some(), "after {victim}: {}", cluster.status());
    }
    stop.store(true, Ordering::SeqCst);
    for caller in callers {
        let answers = caller.await.unwrap();
        for (status, culprit) in answers.keys() {
            let expected = match status {
                0 | 200 => "",
                502 => "worker",
                503 => "balancer",
                other => panic!("an answer with status {other}: {answers:?}"),
            };
            assert_eq!(culprit, expected, "{answers:?}");
        }
        assert!(answers[&(200, String::new())] > 10, "{answers:?}");
    }
}
