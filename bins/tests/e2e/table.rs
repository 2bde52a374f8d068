//! The table of errors, row by row, through the balancer.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::common::{
    Answer, Cluster, Daemon, HttpClient, Place, client, inside, kill, post, raw, send,
};

/// The parts that every failure has.
fn check(answer: &Answer, status: u16, code: &str, culprit: &str, started: &str) -> Value {
    assert_eq!(answer.status, status, "{answer:?}");
    let body = answer.json();
    assert_eq!(body["error"], code, "{answer:?}");
    assert!(!body["message"].as_str().unwrap().is_empty());
    assert_eq!(body["request_id"], answer.header("x-openlambda-request-id"), "{answer:?}");
    assert_eq!(answer.header("x-openlambda-error"), culprit, "{answer:?}");
    assert_eq!(answer.header("x-openlambda-started"), started, "{answer:?}");
    if [429, 503].contains(&status) {
        assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    }
    body
}

const SLEEPS: &str = "import time\ndef f(event):\n    time.sleep(event)\n    return event\n";

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_400() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let client = client();
    let echo = cluster.deploy_example("echo");
    let bad_name = post(&client, &format!("{}/run/a%20b", cluster.url), "").await;
    check(&bad_name, 400, "bad_request", "client", "no");
    let no_name = post(&client, &format!("{}/run/", cluster.url), "").await;
    check(&no_name, 400, "bad_request", "client", "no");
    let bad_json = post(&client, &echo, "{").await;
    let body = check(&bad_json, 400, "bad_request", "client", "no");
    assert!(body["message"].as_str().unwrap().contains("not JSON"), "{body}");
    let request =
        http::Request::post(&echo).header("x-openlambda-request-id", "a b").body("1").unwrap();
    check(&send(&client, request).await.unwrap(), 400, "bad_request", "client", "no");
    // Not even HTTP: refused, and the balancer lives.
    assert!(raw(cluster.address(), b"hello\r\n\r\n").starts_with("HTTP/1.1 400"));
    assert_eq!(post(&client, &echo, "1").await.body, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_gets_404() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let client = client();
    let echo = cluster.deploy_example("echo");
    for path in ["/run/nothing", "/run/echo:7", "/run/echo:live", "/ns/team/run/echo", "/nowhere"] {
        let answer = post(&client, &format!("{}{path}", cluster.url), "").await;
        check(&answer, 404, "not_found", "client", "no");
    }
    assert_eq!(post(&client, &format!("{echo}:1"), "1").await.body, "1");
    assert_eq!(post(&client, &format!("{}/runLambda/echo", cluster.url), "1").await.body, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_is_not_in_the_manifest_gets_405() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let client = client();
    let code = "def f(event):\n    return 'yes'\n";
    let url = cluster.deploy("get", &[("f.py", code), ("ol.toml", "methods = [\"GET\", \"PUT\"]")]);
    let answer = post(&client, &url, "").await;
    check(&answer, 405, "method_not_allowed", "client", "no");
    assert_eq!(answer.header("allow"), "GET, HEAD, PUT");
    let request = http::Request::get(&url).body("").unwrap();
    assert_eq!(send(&client, request).await.unwrap().body, "\"yes\"");
    // Who answers GET answers HEAD.
    let request = http::Request::head(&url).body("").unwrap();
    assert_eq!(send(&client, request).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_gets_413() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let client = client();
    let echo = cluster.deploy_example("echo");
    let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    let largest = text(6 << 20);
    assert!(post(&client, &echo, &largest).await.body == largest, "6 MiB come back");
    // Declared as too large: refused before it is sent.
    let head = format!(
        "POST /run/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        (6 << 20) + 1
    );
    let answer = raw(cluster.address(), head.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("body_too_large"), "{answer}");
    // In pieces, of no declared length.
    let mut chunked =
        b"POST /run/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            .to_vec();
    for _ in 0..7 {
        chunked.extend_from_slice(b"100000\r\n");
        chunked.extend_from_slice(&vec![b'1'; 1 << 20]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let address = cluster.address();
    let answer = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        // It may be refused before all of it is sent.
        let _ = stream.write_all(&chunked);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    });
    let answer = answer.join().unwrap();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer:?}");
    assert_eq!(post(&client, &echo, "1").await.body, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_gets_429() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let client = client();
    let manifest = "max_instances = 1\nqueue = 2";
    let url = cluster.deploy("slow", &[("f.py", SLEEPS), ("ol.toml", manifest)]);
    post(&client, &url, "0").await;
    // One runs, two wait, the rest is refused at once.
    let calls = (0..6).map(|_| post(&client, &url, "1"));
    let answers = futures_util::future::join_all(calls).await;
    let (done, refused): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status == 200);
    assert_eq!((done.len(), refused.len()), (3, 3));
    for answer in refused {
        check(&answer, 429, "queue_full", "worker", "no");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_raises_gets_500_with_the_trace() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let client = client();
    let code = "def f(event):\n    return g(event)\n\ndef g(event):\n    raise KeyError('what')\n";
    let url = cluster.deploy("raises", &[("f.py", code)]);
    for _ in 0..2 {
        let answer = post(&client, &url, "").await;
        let body = check(&answer, 500, "function_error", "function", "yes");
        assert_eq!(body["type"], "KeyError");
        assert!(body["message"].as_str().unwrap().contains("what"));
        let trace = body["stack_trace"].to_string();
        assert!(trace.contains("in f") && trace.contains("raise KeyError"), "{trace}");
    }
    let broken = cluster.deploy("broken", &[("f.py", "import nothing_like_that\n")]);
    let answer = post(&client, &broken, "").await;
    let body = check(&answer, 500, "init_error", "function", "no");
    assert!(body["message"].as_str().unwrap().contains("nothing_like_that"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_gets_502_and_the_next_call_a_new_sandbox() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let client = client();
    let code = "import os, random\nWHO = random.random()\ndef f(event):\n    if event == 'die': os._exit(3)\n    return WHO\n";
    let url = cluster.deploy("crashes", &[("f.py", code)]);
    let first = post(&client, &url, "").await.body;
    let answer = post(&client, &url, "\"die\"").await;
    let body = check(&answer, 502, "sandbox_crashed", "function", "yes");
    assert!(body["message"].as_str().unwrap().contains("status 3"), "{body}");
    let next = post(&client, &url, "").await;
    assert_eq!(next.status, 200);
    assert_ne!(next.body, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_in_the_middle_gets_502() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let client = client();
    let url = cluster.deploy("slow", &[("f.py", SLEEPS)]);
    assert_eq!(post(&client, &url, "0").await.status, 200);
    let call = {
        let (client, url) = (client.clone(), url.clone());
        tokio::spawn(async move { post(&client, &url, "60").await })
    };
    runs(&cluster).await;
    kill(cluster.worker_pid("worker-1").unwrap(), Signal::KILL);
    check(&call.await.unwrap(), 502, "worker_died", "worker", "maybe");
    // The supervisor starts it again, and it comes back into the rotation.
    let back = wait_for_call(&client, &url, "0").await;
    assert_eq!(back.body, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_worker_finishes_its_calls_and_gets_no_more() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let client = client();
    let url = cluster.deploy("slow", &[("f.py", SLEEPS)]);
    assert_eq!(post(&client, &url, "0").await.status, 200);
    let call = {
        let (client, url) = (client.clone(), url.clone());
        tokio::spawn(async move { post(&client, &url, "3").await })
    };
    runs(&cluster).await;
    let pid = cluster.worker_pid("worker-1").unwrap();
    kill(pid, Signal::TERM);
    let refused = loop {
        let answer = post(&client, &url, "0").await;
        match answer.status {
            200 => {}
            // It refuses by itself what was sent before the balancer had heard of it.
            _ if answer.header("x-openlambda-error") == "worker" => {
                check(&answer, 503, "draining", "worker", "no");
            }
            _ => break answer,
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    check(&refused, 503, "no_worker", "balancer", "no");
    assert_eq!(call.await.unwrap().body, "3");
    assert_eq!(wait_for_call(&client, &url, "0").await.body, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_worker_or_a_registry_there_is_503() {
    let place = Place::new();
    let functions = place.function("echo", &[("f.py", "def f(event):\n    return event\n")]);
    let functions = functions.parent().unwrap().display().to_string();
    let client = client();
    let lb = balancer(&format!("dir={functions}"));
    let answer = post(&client, &format!("{}/run/echo", lb.url), "1").await;
    check(&answer, 503, "no_worker", "balancer", "no");
    let request = http::Request::get(format!("{}/readyz", lb.url)).body("").unwrap();
    let ready = send(&client, request).await.unwrap();
    assert_eq!(ready.status, 503);
    assert!(ready.json()["reasons"][0].as_str().unwrap().contains("no worker"), "{ready:?}");

    // A port that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let lb = balancer(&format!("native=http://{port}"));
    let answer = post(&client, &format!("{}/run/echo", lb.url), "1").await;
    let body = check(&answer, 503, "registry_unavailable", "balancer", "no");
    assert!(body["message"].as_str().unwrap().contains("cannot be reached"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_fits_on_no_worker_gets_503() {
    let cluster = Cluster::start(&["--workers", "1", "--memory-mb", "64"]);
    let url = cluster.deploy_example("echo");
    let answer = post(&client(), &url, "1").await;
    let body = check(&answer, 503, "start_failed", "sandbox", "no");
    assert!(body["message"].as_str().unwrap().contains("lower memory_mb"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_the_time_limit_gets_504_and_ends_only_that_sandbox() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let client = client();
    let code = "import random, time\nWHO = random.random()\ndef f(event):\n    time.sleep(event)\n    return WHO\n";
    let url = cluster.deploy("slow", &[("f.py", code), ("ol.toml", "timeout_seconds = 1.5")]);
    let other = {
        let (client, url) = (client.clone(), url.clone());
        tokio::spawn(async move { post(&client, &url, "1").await })
    };
    let answer = post(&client, &url, "100").await;
    let body = check(&answer, 504, "timeout", "function", "yes");
    assert!(body["message"].as_str().unwrap().contains("raise timeout_seconds"), "{body}");
    let other = other.await.unwrap();
    assert_eq!(other.status, 200);
    // The instance that answered in time is still there.
    let pids: Vec<String> = vec![post(&client, &url, "0").await.body];
    assert!(pids.contains(&other.body), "{pids:?} {}", other.body);
}

/// Waits until a call runs on the cluster's only worker.
async fn runs(cluster: &Cluster) {
    let inside = inside();
    let worker = cluster.status()["workers"][0]["url"].as_str().unwrap().to_owned();
    for _ in 0..3000 {
        let request = http::Request::get(format!("{worker}/stats")).body("").unwrap();
        if send(&inside, request).await.unwrap().json()["counts"]["running"] == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the call never got on its way");
}

/// Calls until the answer is no error.
pub async fn wait_for_call(client: &HttpClient, url: &str, body: &str) -> Answer {
    for _ in 0..1200 {
        let request = http::Request::post(url).body(body.to_owned()).unwrap();
        if let Ok(answer) = send(client, request).await
            && answer.status == 200
        {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{url} never answered");
}

fn balancer(registry: &str) -> Daemon {
    Daemon::start(env!("CARGO_BIN_EXE_ol-lb"), &["--registry", registry])
}
