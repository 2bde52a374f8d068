//! Ends and limits under load: what was accepted is answered, what is refused says when to come
//! again, and a slot is counted until its handler is through.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{
    Cluster, Daemon, HttpClient, Place, client, kill, post, raw, raw_inside, wait_for,
};

const SLEEPS: &str = "import time\ndef f(event):\n    time.sleep(event)\n    return event\n";

/// Says in its volume that it has begun, waits for the file `open` there, and says that it ends.
const GATED: &str = "
import os, time
def f(event):
    folder = os.environ['OPENLAMBDA_VOLUME_GATE']
    def say(text):
        with open(folder + '/log', 'a') as log: log.write(f'{event} {text}\\n')
    say('begins')
    while not os.path.exists(folder + '/open'): time.sleep(0.005)
    say('ends')
    return event
";
const GATE: &str = "max_instances = 1\n[[volumes]]\nname = \"gate\"\npath = \"/gate\"";

pub fn stats(address: SocketAddr) -> Value {
    let answer =
        raw_inside(address, b"GET /stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// The address in a URL.
fn address(url: &Value) -> SocketAddr {
    url.as_str().unwrap().strip_prefix("http://").unwrap().parse().unwrap()
}

/// A request for `function` that closes its connection.
fn request(function: &str, body: &str) -> Vec<u8> {
    format!(
        "POST /run/{function} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Workers come and go under load, and no client sees it.
#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_stopped_under_load_drop_no_call() {
    let cluster = Cluster::start(&["--workers", "2"]);
    let (client, url) = (client(), cluster.deploy("sleeps", &[("f.py", SLEEPS)]));
    assert_eq!(post(&client, &url, "0").await.status, 200);
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..12)
        .map(|n| {
            let (client, url) = (client.clone(), url.clone());
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            tokio::spawn(async move {
                let mut workers = BTreeMap::<String, u32>::new();
                while !stop.load(Ordering::SeqCst) {
                    let body = format!("0.0{n:02}");
                    let answer = post(&client, &url, &body).await;
                    assert_eq!(answer.status, 200, "{answer:?}");
                    answered.fetch_add(1, Ordering::SeqCst);
                    *workers.entry(answer.header("x-openlambda-worker").to_owned()).or_default() +=
                        1;
                }
                workers
            })
        })
        .collect();
    for worker in ["worker-1", "worker-2", "worker-1"] {
        let before = answered.load(Ordering::SeqCst);
        let flows = async || {
            while answered.load(Ordering::SeqCst) < before + 50 {
                assert!(!callers.iter().any(tokio::task::JoinHandle::is_finished), "one failed");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), flows()).await.expect("calls are answered");
        let pid = cluster.worker_pid(worker).unwrap();
        kill(pid, Signal::TERM);
        // The other one takes all until this one is back, as another process.
        let back = wait_for(|| {
            let status = cluster.status();
            let workers = status["workers"].as_array().unwrap().clone();
            let ready = workers.iter().all(|worker| worker["state"] == "ready");
            (ready && cluster.worker_pid(worker) != Some(pid)).then_some(())
        });
        assert!(back.is_some(), "{}", cluster.status());
    }
    stop.store(true, Ordering::SeqCst);
    let mut workers = BTreeMap::<String, u32>::new();
    for caller in callers {
        for (worker, count) in caller.await.unwrap() {
            *workers.entry(worker).or_default() += count;
        }
    }
    assert!(workers.len() == 2, "both took part: {workers:?}");
}

/// A balancer that is told to end answers what it has accepted, and then ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_that_is_stopped_answers_what_it_has_accepted() {
    let place = Place::new();
    let functions = place.function(
        "gated",
        &[("f.py", GATED), ("ol.toml", "[[volumes]]\nname = \"gate\"\npath = \"/gate\"")],
    );
    let registry = format!("dir={}", functions.parent().unwrap().display());
    let state = place.data_dir().join("worker");
    let worker = Daemon::start(
        env!("CARGO_BIN_EXE_ol-worker"),
        &[
            "--name=w",
            "--sandbox=process",
            "--state-dir",
            state.to_str().unwrap(),
            "--registry",
            &registry,
        ],
    );
    let mut lb = Daemon::start(
        env!("CARGO_BIN_EXE_ol-lb"),
        &["--registry", &registry, "--worker", &worker.url],
    );
    let balancer = lb.address();
    wait_for(|| (stats(balancer)["workers_ready"] == 1).then_some(())).unwrap();
    let calls: Vec<_> = (0..12)
        .map(|n| {
            tokio::task::spawn_blocking(move || raw(balancer, &request("gated", &n.to_string())))
        })
        .collect();
    // A connection that is kept, and one whose request is not whole yet.
    let mut idle = TcpStream::connect(balancer).unwrap();
    idle.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    idle.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert!(idle.read(&mut [0; 4096]).unwrap() > 0);
    wait_for(|| (stats(balancer)["in_flight"] == 12).then_some(())).unwrap();
    lb.terminate();
    // It takes no more connections, and closes the one without a call.
    wait_for(|| TcpStream::connect(balancer).is_err().then_some(())).unwrap();
    let mut rest = Vec::new();
    assert!(idle.read_to_end(&mut rest).is_err() || rest.is_empty());
    let gate = state.join("volumes/default/gated/gate");
    wait_for(|| gate.exists().then_some(())).expect("a call has come to the worker");
    std::fs::write(gate.join("open"), "").unwrap();
    for (n, call) in calls.into_iter().enumerate() {
        let answer = call.await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with(&format!("\r\n\r\n{n}")),
            "{answer}"
        );
    }
    assert!(lb.ended().success());
}

/// More calls than there is room for: each is answered or told when to come again, and all who do
/// are served in the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_bounded_queue_refuses_the_rest_and_serves_who_comes_again() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let client = client();
    let manifest = "max_instances = 2\nqueue = 5";
    let url = cluster.deploy("sleeps", &[("f.py", SLEEPS), ("ol.toml", manifest)]);
    assert_eq!(post(&client, &url, "0").await.status, 200);
    let worker = address(&cluster.status()["workers"][0]["url"]);
    let refused = Arc::new(AtomicUsize::new(0));
    let callers = (0..60).map(|_| {
        let (client, url, refused) = (client.clone(), url.clone(), Arc::clone(&refused));
        tokio::spawn(async move {
            loop {
                let answer = post(&client, &url, "0.02").await;
                if answer.status == 200 {
                    return;
                }
                assert_eq!((answer.status, answer.header("x-openlambda-started")), (429, "no"));
                assert_eq!(answer.json()["error"], "queue_full");
                refused.fetch_add(1, Ordering::SeqCst);
                let after = answer.header("retry-after").parse().expect("it says when");
                tokio::time::sleep(Duration::from_secs(after)).await;
            }
        })
    });
    let callers = futures_util::future::join_all(callers);
    let watch = async {
        loop {
            let counts = stats(worker)["counts"].clone();
            let count = |name: &str| counts[name].as_u64().unwrap();
            // A call whose instance is being started takes no place in the queue.
            assert!(count("waiting") <= 5 + count("starting"), "{counts}");
            assert!(count("running") <= 2, "{counts}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        done = tokio::time::timeout(Duration::from_secs(120), callers) => {
            done.expect("all are served").into_iter().for_each(Result::unwrap);
        }
        () = watch => {}
    }
    assert!(refused.load(Ordering::SeqCst) > 0, "it was never full, so nothing is shown");
}

fn gate(cluster: &Cluster) -> std::path::PathBuf {
    cluster.place.data_dir().join("volumes/default/gated/gate")
}

fn lines(folder: &Path) -> Vec<String> {
    let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
    log.lines().map(str::to_owned).collect()
}

/// A client that leaves gives up its place in the queue, not a slot whose handler runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_whose_client_has_left_is_counted_until_the_handler_is_through() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let url = cluster.deploy("gated", &[("f.py", GATED), ("ol.toml", GATE)]);
    let worker = address(&cluster.status()["workers"][0]["url"]);
    let folder = gate(&cluster);
    let counts = |name: &'static str, count: u64| {
        let got = wait_for(|| (stats(worker)["counts"][name] == count).then_some(()));
        assert!(got.is_some(), "{name} is not {count}: {}", stats(worker));
    };
    let start = |body: &str| {
        let mut stream = TcpStream::connect(cluster.address()).unwrap();
        stream.write_all(&request("gated", body)).unwrap();
        stream
    };
    let first = start("1");
    wait_for(|| (lines(&folder) == ["1 begins"]).then_some(())).expect("it begins");
    let second = start("2");
    counts("waiting", 1);
    drop(second);
    counts("waiting", 0);
    drop(first);
    let third = tokio::spawn(async move { post(&client(), &url, "3").await });
    counts("waiting", 1);
    // The first is still at it, whoever has left, and holds the only slot.
    assert_eq!(
        (lines(&folder), &stats(worker)["counts"]["running"]),
        (vec!["1 begins".to_owned()], &json!(1))
    );
    std::fs::write(folder.join("open"), "").unwrap();
    assert_eq!(third.await.unwrap().body, "3");
    assert_eq!(lines(&folder), ["1 begins", "1 ends", "3 begins", "3 ends"]);
    counts("running", 0);
    assert_eq!(stats(cluster.address())["in_flight"], 0);
}

/// What remains of a call's time, as its handler sees it.
const REMAINS: &str = "
import time
def lambda_handler(event, context):
    before = context.get_remaining_time_in_millis()
    time.sleep(0.3)
    return [before, context.get_remaining_time_in_millis()]
";

#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_goes_on_to_the_function() {
    for kind in ["process", "sock"] {
        let cluster = Cluster::start(&["--workers", "1", "--sandbox", kind]);
        let client = client();
        let manifest = "timeout_seconds = 20\nmax_instances = 1";
        let url =
            cluster.deploy("remains", &[("lambda_function.py", REMAINS), ("ol.toml", manifest)]);
        // The time in the queue is not the function's.
        let calls = (0..3).map(|_| remains(&client, &url));
        for (before, after) in futures_util::future::join_all(calls).await {
            assert!(before <= 20_000 && before > 10_000, "{kind}: {before}");
            assert!(after + 300 <= before, "{kind}: {before}, {after}");
        }
    }
}

async fn remains(client: &HttpClient, url: &str) -> (u64, u64) {
    let answer = post(client, url, "").await;
    let remains = answer.json();
    (remains[0].as_u64().unwrap(), remains[1].as_u64().unwrap())
}
