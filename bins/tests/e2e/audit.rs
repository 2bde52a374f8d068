//! Who changes what is written down: from where, and what was there before.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use http::Request;
use serde_json::{Value, json};

use crate::common::{Cluster, by_socket, client_of, connect, secret, send, wait_for};

/// The lines of an audit log, once there are that many.
fn audited(cluster: &Cluster, name: &str, count: usize) -> Vec<Value> {
    let path = cluster.place.data_dir().join("logs").join(name);
    let lines = || -> Vec<Value> {
        let text = fs::read_to_string(&path).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    wait_for(|| (lines().len() >= count).then_some(()));
    assert_eq!(lines().len(), count, "{name}: {:#?}", lines());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    lines()
}

/// Who changes what, from where, and what was there before.
#[tokio::test(flavor = "multi_thread")]
async fn each_change_is_written_down() {
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", "process"]);
    let place = &cluster.place;
    let deploy = |text: &str| {
        let folder = place.function("hi", &[("f.py", &format!("def f(event): return {text:?}"))]);
        place.json(&["deploy", folder.to_str().unwrap(), "--json"])["digest"].clone()
    };
    let (one, two) = (deploy("one"), deploy("two"));
    deploy("two");
    place.ol(&["alias", "hi", "live", "1"]);
    place.ol(&["alias", "hi", "live", "2"]);
    place.ol(&["rollback", "hi"]);
    let tar = Command::new("tar")
        .args(["cz", "-C", place.function("hi", &[]).to_str().unwrap(), "."])
        .output()
        .unwrap();
    let inside = client_of(Some(secret().known()));
    let upload = Request::post(format!("{}/registry/hi", cluster.url)).body(tar.stdout).unwrap();
    let uploaded = send(&inside, upload).await.unwrap();
    assert_eq!(uploaded.status, 201, "{uploaded:?}");
    place.ol(&["rm", "hi"]);
    // What is refused is no change.
    let refused = Request::delete(format!("{}/registry/hi", cluster.url)).body("").unwrap();
    assert_eq!(send(&inside, refused).await.unwrap().status, 404);

    let lines = audited(&cluster, "audit-registry.jsonl", 7);
    let user = format!("uid {}", rustix::process::getuid().as_raw());
    let fields = |line: &Value| {
        let keys = ["change", "function", "version", "digest", "old_version", "old_digest"];
        keys.map(|key| line[key].clone())
    };
    let own = json!("hi");
    let (none, publish) = (Value::Null, json!("publish"));
    let publishes = |version: u64, digest: &Value, old: Value, old_digest: &Value| {
        [publish.clone(), own.clone(), json!(version), digest.clone(), old, old_digest.clone()]
    };
    assert_eq!(fields(&lines[0]), publishes(1, &one, none.clone(), &none));
    assert_eq!(fields(&lines[1]), publishes(2, &two, json!(1), &one));
    let alias = |line: &Value| {
        (
            line["change"].clone(),
            line["alias"].clone(),
            line["version"].clone(),
            line["old_version"].clone(),
        )
    };
    assert_eq!(alias(&lines[2]), (json!("alias"), json!("live"), json!(1), none.clone()));
    assert_eq!(alias(&lines[3]), (json!("alias"), json!("live"), json!(2), json!(1)));
    assert_eq!((&lines[3]["digest"], &lines[3]["old_digest"]), (&two, &one));
    assert_eq!(fields(&lines[4]), publishes(3, &one, json!(2), &two));
    assert_eq!(fields(&lines[5]), publishes(4, &two, json!(3), &one));
    assert_eq!(
        fields(&lines[6]),
        [json!("delete"), own.clone(), none.clone(), none.clone(), json!(4), two.clone()]
    );
    let by = |n: usize| lines[n]["by"].as_str().unwrap();
    for (n, command) in [(0, "ol deploy"), (2, "ol alias"), (4, "ol rollback"), (6, "ol rm")] {
        assert_eq!(by(n), format!("{user}, {command}"));
    }
    assert_eq!(by(5), "ol-lb");
    for line in &lines {
        assert!(line["from"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
        assert!(line["time_ms"].as_u64().unwrap() > 1_700_000_000_000, "{line}");
    }

    // The balancer knows who has asked it.
    let other = place.function("hello", &[("f.py", "def f(event): return 1")]);
    place.ol(&["deploy", other.to_str().unwrap()]);
    let worker = cluster.status()["workers"][0]["url"].as_str().unwrap().to_owned();
    let lines = audited(&cluster, "audit-balancer.jsonl", 2);
    assert_eq!(lines[0]["change"], "announce");
    assert_eq!(
        (&lines[0]["worker"], &lines[0]["by"]),
        (&json!("worker-1"), &json!("worker worker-1"))
    );
    assert_eq!(lines[0]["address"], worker.strip_prefix("http://").unwrap());
    assert_eq!(fields(&lines[1]), publishes(4, &two, json!(3), &one));
    assert_eq!(lines[1]["by"], "an HTTP client");
    assert!(lines[1]["from"].as_str().unwrap().starts_with("127.0.0.1:"), "{}", lines[1]);
    // By the socket, the kernel says who it is.
    let socket = UnixStream::connect(cluster.place.data_dir().join("balancer.sock")).unwrap();
    let deleted = by_socket(socket, "DELETE /registry/hello HTTP/1.0\r\nHost: ol\r\n\r\n");
    assert!(deleted.contains("200 OK"), "{deleted}");
    let lines = audited(&cluster, "audit-balancer.jsonl", 3);
    assert_eq!((&lines[2]["change"], &lines[2]["by"]), (&json!("delete"), &json!(user)));
    // Another start of a worker is another announcement.
    let pid = cluster.worker_pid("worker-1").unwrap();
    crate::common::kill(pid, rustix::process::Signal::KILL);
    let lines = audited(&cluster, "audit-balancer.jsonl", 4);
    assert_eq!(lines[3]["change"], "announce");
    assert_ne!(lines[3]["incarnation"], lines[0]["incarnation"]);
}

/// A client that leaves in the middle of a change leaves none that is not written down.
#[test]
fn a_change_whose_client_has_left_is_written_down_too() {
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", "process"]);
    let folder = cluster.place.function("hi", &[("f.py", "def f(event): return 1")]);
    let tar =
        Command::new("tar").args(["cz", "-C", folder.to_str().unwrap(), "."]).output().unwrap();
    for n in 0..60 {
        let mut client = connect(cluster.address());
        let head = format!(
            "POST /registry/hide{n} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
            tar.stdout.len()
        );
        client.write_all(head.as_bytes()).unwrap();
        client.write_all(&tar.stdout).unwrap();
        // At every moment of the upload.
        std::thread::sleep(Duration::from_millis(n * 3));
        drop(client);
    }
    // Whatever is still on its way.
    let listed = || {
        let listed = cluster.place.json(&["ls", "--json"]);
        let names = listed["functions"].as_array().unwrap().iter();
        names.map(|function| function["name"].clone()).collect::<Vec<_>>()
    };
    let mut before = listed();
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = listed();
        if now == before {
            break;
        }
        before = now;
    }
    let path = cluster.place.data_dir().join("logs/audit-registry.jsonl");
    let text = fs::read_to_string(&path).unwrap_or_default();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut written: Vec<_> = lines.map(|line| line["function"].clone()).collect();
    written.sort_by_key(ToString::to_string);
    before.sort_by_key(ToString::to_string);
    assert!(!before.is_empty(), "none came through, so nothing is shown");
    assert_eq!(written, before);
}

/// A folder as a registry has no daemon: `ol` itself writes down what it does.
#[test]
fn changes_of_a_folder_are_written_down_too() {
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", "process", "--registry", "dir"]);
    cluster.deploy("hi", &[("f.py", "def f(event): return 1")]);
    cluster.place.ol(&["rm", "hi"]);
    let lines = audited(&cluster, "audit-ol.jsonl", 2);
    let changes: Vec<_> = lines.iter().map(|line| line["change"].as_str().unwrap()).collect();
    assert_eq!(changes, ["publish", "delete"]);
    assert_eq!(lines[1]["old_digest"], lines[0]["digest"]);
}
