//! Bad input: each message says what is wrong and ends with the next step.

use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use crate::common::{Cluster, Place, secret, texts};

#[test]
fn a_port_in_use_names_the_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let listen = format!("127.0.0.1:{port}");
    for args in [&["up", "--listen", &listen][..], &["up", "--detach", "--listen", &listen]] {
        let place = Place::new();
        let message = place.fails(args);
        let expected = format!("port {port} is in use; pass --listen 127.0.0.1:0 for a free one");
        assert!(message.contains(&expected), "{message}");
        place.assert_nothing_left();
    }
    for (daemon, more) in [
        (env!("CARGO_BIN_EXE_ol-lb"), &["--registry", "dir=/tmp"][..]),
        (env!("CARGO_BIN_EXE_ol-registry"), &["--store", "/nonexistent/never/made"]),
    ] {
        let output = Command::new(daemon)
            .args(["--listen", &listen, "--secret-file", &secret().file()])
            .args(more)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let (_, err) = texts(&output);
        assert!(err.contains("is in use; pass --listen"), "{err}");
    }
}

#[test]
fn unknown_names_get_the_nearest_known_one() {
    let place = Place::new();
    for (args, hint) in [
        (&["up", "--policy", "round-robbin"][..], "did you mean \"round-robin\"?"),
        (&["up", "--policy", "bounded-load,epsilom=1"], "did you mean \"epsilon\"?"),
        (&["up", "--sandbox", "proces"], "did you mean \"process\"?"),
        (&["up", "--registry", "nativ=http://127.0.0.1:1"], "did you mean \"native\"?"),
        (&["up", "--registry", "native=nowhere"], "write http://host:port"),
        (&["sim", "--policy", "randon"], "did you mean \"random\"?"),
        (&["sim", "--queue-policy", "fiffo"], "did you mean \"fifo\"?"),
        (&["sim", "--timeout-seconds", "0"], "use more than 0"),
        (
            &["sim", "--seed", "1", "--seed", "2", "--records", "r", "--policy", "random"],
            "one --seed",
        ),
        (&["replay", "/dev/null"], "line 1 of the recording"),
        (&["sim", "--keep-alive", "tt"], "did you mean \"ttl\"?"),
        (&["sim", "--keep-alive", "ttl,second=60"], "did you mean \"seconds\"?"),
    ] {
        let message = place.fails(args);
        assert!(message.contains(hint), "{args:?}: {message}");
    }
    // A wrong call is status 2.
    for args in [&["upp"][..], &["up", "--workers", "0"], &["invoke", "a b"], &["deploy"]] {
        assert_eq!(place.run(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn a_bad_function_is_refused_before_anything_is_written() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let place = &cluster.place;
    let deploy = |folder: &std::path::Path| place.fails(&["deploy", folder.to_str().unwrap()]);

    let unknown_key = place.function(
        "unknown",
        &[("f.py", "def f(event): pass\n"), ("ol.toml", "memory_mb = 64\ntimeout = 3\n")],
    );
    let message = deploy(&unknown_key);
    assert!(
        message.contains(
            "ol.toml, line 2: unknown key \"timeout\"; did you mean \"timeout_seconds\"?"
        ),
        "{message}"
    );
    let out_of_range = place.function("range", &[("f.py", ""), ("ol.toml", "concurrency = 0")]);
    assert!(deploy(&out_of_range).contains("use 1 to 1000"));
    let linked = place.function("linked", &[("f.py", "")]);
    symlink("/etc/passwd", linked.join("passwd")).unwrap();
    assert!(deploy(&linked).contains("\"passwd\" is a link that leads out of the bundle"));
    let nothing = place.function("nothing", &[("readme.txt", "")]);
    assert!(deploy(&nothing).contains("there is no f.py"));
    let bad_name = place.function("_bad", &[("f.py", "")]);
    assert!(deploy(&bad_name).contains("pass --name"));
    let message = place.fails(&["deploy", "/nonexistent"]);
    assert!(message.contains("cannot read the folder /nonexistent"), "{message}");
    assert_eq!(place.json(&["ls", "--json"])["functions"], serde_json::json!([]));
}

#[test]
fn without_a_cluster_each_command_says_how_to_start_one() {
    let place = Place::new();
    let echo = crate::common::example("echo");
    for args in [
        &["status"][..],
        &["ls"],
        &["invoke", "echo"],
        &["rm", "echo"],
        &["deploy", echo.to_str().unwrap()],
    ] {
        let message = place.fails(args);
        assert!(message.contains("start one with `ol up --detach`"), "{args:?}: {message}");
    }
}

#[test]
fn a_daemon_s_file_is_strict() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("worker.toml");
    std::fs::write(&file, "name = \"w\"\nmemory = 3\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_ol-worker"))
        .args(["--config", file.to_str().unwrap()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (_, err) = texts(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(err.contains("line 2: unknown key \"memory\"; did you mean \"memory_mb\"?"), "{err}");
}
