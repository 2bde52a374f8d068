//! The bodies of calls that wait at a worker: what they may take, and that it is given back.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::common::{Cluster, client, connect, inside, post, wait_for};

const MIB: usize = 1 << 20;
const COUNTS: &str = "import time\ndef f(event):\n    time.sleep(0.1)\n    return len(event)\n";

/// `VmRSS` or `VmHWM` of a process, MiB.
fn memory(pid: i32, what: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim_start_matches(':').trim_end_matches("kB").trim().parse::<usize>().unwrap() / 1024
}

/// Begins a call with a body of this length and sends all of it but the last byte, as far as it is taken.
fn all_but_the_last_byte(worker: SocketAddr, length: usize) -> TcpStream {
    let mut stream = connect(worker);
    let head = format!("POST /run/f HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    // One that is refused is closed.
    let _ = stream.write_all(&vec![b'1'; length - 1]);
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_wait_have_a_budget_and_their_memory_is_given_back() {
    const BUDGET: usize = 96;
    const MORE: usize = 48;
    let flags = ["--workers", "1", "--sandbox", "process", "--body-memory-mb", "96"];
    let cluster = Cluster::start(&flags);
    let (client, files) = (inside(), [("f.py", COUNTS), ("ol.toml", "max_instances = 1")]);
    cluster.deploy("f", &files);
    let folder = cluster.place.function("f", &files);
    cluster.place.ol(&["deploy", folder.to_str().unwrap(), "--name", "other/f"]);
    let worker = cluster.status()["workers"][0]["url"].as_str().unwrap().to_owned();
    let pid = cluster.worker_pid("worker-1").unwrap();
    let (url, other) = (format!("{worker}/run/f"), format!("{worker}/ns/other/run/f"));
    for url in [&url, &other] {
        assert_eq!(post(&client, url, "\"1234\"").await.body, "4");
    }
    let before = memory(pid, "VmRSS");

    // 60 calls with 6 MiB each, of which one runs.
    let body = format!("\"{}\"", "x".repeat(6 * MIB - 2));
    let answers = futures_util::future::join_all((0..60).map(|_| post(&client, &url, &body))).await;
    let served = answers.iter().filter(|answer| answer.status == 200).count();
    assert!((1..60).contains(&served), "{served}");
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        assert_eq!((answer.status, answer.json()["error"].as_str()), (429, Some("queue_full")));
        assert_eq!(answer.header("x-openlambda-started"), "no");
        assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
        assert!(answer.body.contains("no more is left for default"), "{}", answer.body);
    }
    // Through the balancer too, which has sent a part of the body when it hears of it.
    let through = format!("{}/run/f", cluster.url);
    let calls = (0..20).map(|_| post(&client, &through, &body));
    let answers = futures_util::future::join_all(calls).await;
    let status: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert!(status.iter().all(|status| [200, 429].contains(status)), "{status:?}");

    // 200 clients that send all but the last byte, and what others can do meanwhile.
    let address: SocketAddr = worker.strip_prefix("http://").unwrap().parse().unwrap();
    let slow: Vec<_> = (0..200)
        .map(|_| std::thread::spawn(move || all_but_the_last_byte(address, 6 * MIB)))
        .collect();
    let slow: Vec<TcpStream> = slow.into_iter().map(|slow| slow.join().unwrap()).collect();
    assert_eq!(post(&client, &url, &body).await.status, 429);
    assert_eq!(post(&client, &url, "\"1234\"").await.body, "4");
    assert_eq!(post(&client, &other, &body).await.body, (6 * MIB - 2).to_string());
    let refused = slow.iter().filter(|slow| {
        let mut answer = [0; 12];
        slow.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        (&mut &**slow).read_exact(&mut answer).is_ok() && answer == *b"HTTP/1.1 429"
    });
    let refused = refused.count();
    assert!(refused >= 150, "{refused} of 200");
    let peak = memory(pid, "VmHWM");
    let bounds = before + MORE..before + BUDGET + MORE;
    assert!(bounds.contains(&peak), "{before} MiB before, {peak} MiB at most");

    drop(slow);
    let back = wait_for(|| (memory(pid, "VmRSS") < before + MORE).then_some(()));
    assert!(back.is_some(), "{before} MiB before, {} MiB after", memory(pid, "VmRSS"));
    assert_eq!(post(&client, &url, &body).await.body, (6 * MIB - 2).to_string());
    println!("{before} MiB before, {peak} at most, {} after", memory(pid, "VmRSS"));
    let metrics = http::Request::get(format!("{worker}/metrics")).body("").unwrap();
    let metrics = crate::common::send(&client, metrics).await.unwrap().body;
    assert!(metrics.contains("ol_request_body_bytes 0\n"), "{metrics}");
}

/// A body of a length that nobody has declared, but for its end.
fn begin_chunked(worker: SocketAddr, path: &str, body: &[u8]) -> TcpStream {
    let mut stream = connect(worker);
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    for piece in body.chunks(100_000) {
        let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
        // One that is refused is closed.
        let _ = stream.write_all(&chunk);
    }
    stream
}

fn end_chunked(mut stream: TcpStream) -> String {
    let _ = stream.write_all(b"0\r\n\r\n");
    let mut answer = vec![0; 64 << 10];
    let count = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..count]).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_without_a_length_are_counted_as_they_come() {
    let flags = ["--workers", "1", "--sandbox", "process", "--body-memory-mb", "12"];
    let bound = ["--allow-waiting-mb", "5"];
    let cluster = Cluster::start(&[&flags[..], &bound].concat());
    let (client, files) = (inside(), [("f.py", COUNTS)]);
    cluster.deploy("f", &files);
    let folder = cluster.place.function("f", &files);
    cluster.place.ol(&["deploy", folder.to_str().unwrap(), "--name", "other/f"]);
    let worker = cluster.status()["workers"][0]["url"].as_str().unwrap().to_owned();
    let address: SocketAddr = worker.strip_prefix("http://").unwrap().parse().unwrap();
    let (own, other) = ("/run/f", "/ns/other/run/f");
    let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2)).into_bytes();
    let held = async || -> u64 {
        let metrics = http::Request::get(format!("{worker}/metrics")).body("").unwrap();
        let metrics = crate::common::send(&client, metrics).await.unwrap().body;
        let line = metrics.lines().find_map(|line| line.strip_prefix("ol_request_body_bytes "));
        line.unwrap().parse().unwrap()
    };
    // To the last byte of the bound: what is taken ahead of a body is no part of it. All of it but its end is
    // there, and counted, before a byte of the next is.
    let first = begin_chunked(address, own, &text(5 * MIB));
    while held().await < 5 * MIB as u64 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let answer = end_chunked(begin_chunked(address, own, &text(3 * MIB)));
    assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("(waiting_mb in"), "{answer}");
    // Another namespace has two thirds of what is left.
    let answer = end_chunked(begin_chunked(address, other, &text(5 * MIB)));
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    assert!(answer.contains("no more is left for other"), "{answer}");
    let answer = end_chunked(begin_chunked(address, other, &text(4 * MIB)));
    assert!(answer.ends_with(&(4 * MIB - 2).to_string()), "{answer}");
    let answer = end_chunked(first);
    assert!(answer.ends_with(&(5 * MIB - 2).to_string()), "{answer}");
    assert_eq!(held().await, 0);
}

/// Who asks before it sends is told no, and sends nothing.
#[test]
fn a_body_that_is_refused_before_it_is_sent_is_not_asked_for() {
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", "process"]);
    cluster.deploy("f", &[("f.py", COUNTS)]);
    let worker = cluster.status()["workers"][0]["url"].as_str().unwrap().to_owned();
    for address in [cluster.address(), worker.strip_prefix("http://").unwrap().parse().unwrap()] {
        let mut stream = connect(address);
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let head = format!(
            "POST /run/f HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            6 * MIB + 1
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 413") && !answer.contains(" 100 "), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_has_no_more_than_the_operator_allows() {
    let flags = ["--workers", "1", "--allow-waiting-mb", "1"];
    let cluster = Cluster::start(&flags);
    let client = client();
    let url = cluster.deploy("f", &[("f.py", COUNTS)]);
    let body = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    assert_eq!(post(&client, &url, &body(MIB)).await.body, (MIB - 2).to_string());
    let answer = post(&client, &url, &body(MIB + 1)).await;
    assert_eq!(answer.status, 429);
    assert!(answer.body.contains("(waiting_mb in [allow])"), "{}", answer.body);
}
