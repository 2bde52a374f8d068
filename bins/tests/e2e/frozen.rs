//! Instances run while they have a call, and are frozen between calls.

use std::time::Duration;

use crate::common::{Cluster, client, inside, kill, post, send, wait_for};

/// A thread counts; a call answers how often it has, since the first call.
const TICKS: &str = "
import threading, time
ticks = 0
def count():
    global ticks
    while True:
        time.sleep(0.01)
        ticks += 1
threading.Thread(target=count, daemon=True).start()
def f(event):
    return ticks
";

/// How often the thread of a function counts in three seconds without a call: some three hundred times,
/// if it runs.
async fn ticks_between_calls(url: &str) -> u64 {
    let client = client();
    let ticks = async || {
        let answer = post(&client, url, "null").await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        (answer.body.parse::<u64>().unwrap(), answer.header("x-openlambda-start").to_owned())
    };
    let (before, _) = ticks().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (after, start) = ticks().await;
    assert_eq!(start, "warm", "it is another instance");
    after - before
}

/// Waits until the one worker has one paused instance.
async fn until_one_is_paused(cluster: &Cluster) {
    let url = cluster.status()["workers"][0]["url"].as_str().unwrap().to_owned();
    let one = "ol_sandboxes{state=\"paused\"} 1\n";
    let mut metrics = String::new();
    for _ in 0..600 {
        let request = http::Request::get(format!("{url}/metrics")).body(String::new()).unwrap();
        metrics = send(&inside(), request).await.unwrap().body;
        if metrics.contains(one) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nothing is paused: {metrics}");
}

async fn frozen_unless_they_say_otherwise(kind: &str, flags: &[&str]) {
    let mut all = vec!["--workers", "1", "--sandbox", kind];
    all.extend(flags);
    let cluster = Cluster::start(&all);
    let never = ("ol.toml", "pause_after_seconds = \"never\"");
    let frozen = cluster.deploy("frozen", &[("f.py", TICKS)]);
    let runs_on = cluster.deploy("runs-on", &[("f.py", TICKS), never]);
    let (frozen, runs_on) =
        tokio::join!(ticks_between_calls(&frozen), ticks_between_calls(&runs_on));
    // The two have the same processors; a busy machine takes from both.
    assert!(frozen * 2 < runs_on, "{kind}: {frozen} and {runs_on} ticks");
}

#[tokio::test(flavor = "multi_thread")]
async fn background_threads_take_no_processor_between_calls_in_sock() {
    frozen_unless_they_say_otherwise("sock", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn background_threads_take_no_processor_between_calls_in_process() {
    frozen_unless_they_say_otherwise("process", &["--pause-after-seconds", "0.1"]).await;
}

/// What is frozen cannot hear a signal: it has to go all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_frozen_ends_with_its_worker() {
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", "sock"]);
    let url = cluster.deploy("f", &[("f.py", TICKS)]);
    assert_eq!(post(&client(), &url, "null").await.status, 200);
    until_one_is_paused(&cluster).await;
    let before = cluster.place.processes().len();
    let worker = cluster.worker_pid("worker-1").unwrap();
    kill(worker, rustix::process::Signal::KILL);
    // The next worker has no instance, and nothing of the old one is left.
    wait_for(|| {
        let new = cluster.worker_pid("worker-1");
        (new.is_some_and(|pid| pid != worker) && cluster.place.processes().len() < before)
            .then_some(())
    })
    .unwrap_or_else(|| panic!("left: {:#?}", cluster.place.processes()));
    wait_for(|| cluster.place.run(&["invoke", "f"]).status.success().then_some(()))
        .expect("the function runs again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_bounds_how_long_instances_run_on() {
    let flags = ["--workers", "1", "--sandbox", "process", "--allow-pause-after-seconds", "5"];
    let cluster = Cluster::start(&flags);
    for (manifest, refused) in [
        (
            "pause_after_seconds = \"never\"",
            Some("pause_after_seconds = \"never\", and the operator allows at most 5"),
        ),
        (
            "pause_after_seconds = 6",
            Some("pause_after_seconds = 6, and the operator allows at most 5"),
        ),
        ("pause_after_seconds = 5", None),
        ("", None),
    ] {
        let folder = cluster.place.function("f", &[("f.py", TICKS), ("ol.toml", manifest)]);
        let folder = folder.to_str().unwrap();
        match refused {
            None => drop(cluster.place.ol(&["deploy", folder])),
            Some(why) => {
                let error = cluster.place.fails(&["deploy", folder]);
                assert!(error.contains("ol.toml, line 1") && error.contains(why), "{error}");
            }
        }
    }
}
