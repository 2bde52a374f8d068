//! Bad input: each message says what is wrong and ends with the next step.

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
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
        (&["sim", "--keep-alive", "tt"], "did you mean \"ttl\"?"),
        (&["sim", "--keep-alive", "ttl,second=60"], "did you mean \"seconds\"?"),
    ] {
        let message = place.refuses(args);
        assert!(message.contains(hint), "{args:?}: {message}");
    }
    let message = place.fails(&["replay", "/dev/null"]);
    assert!(message.contains("line 1 of the recording"), "{message}");
    for (args, hint) in [
        (&["alias", "f", "live", "abc"][..], "write a version's number, as `ol versions` shows it"),
        (&["logs", "f", "--since", "-5m"], "\"-5m\" is not a time; write 10m"),
    ] {
        let (_, message) = texts(&place.run(args));
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
    let message = deploy(&nothing.join("readme.txt"));
    assert!(
        message.ends_with("readme.txt is a file; name the folder of the function\n"),
        "{message}"
    );
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
fn interpreters_are_settings() {
    let place = Place::new().with("OPENLAMBDA_LISTEN", "127.0.0.1:0");
    let bin = tempfile::tempdir().unwrap();
    let python = bin.path().join("own-python");
    // Its library is elsewhere than its program, which a container does not see.
    std::fs::copy("/usr/bin/python3", &python).unwrap();
    let python = python.to_str().unwrap();
    let elsewhere =
        format!("python = \"{python}\": the sandbox sock shows functions a Python in /usr");
    for (args, expected) in [
        (
            &["up", "--python", "/nonexistent"][..],
            "python = \"/nonexistent\" is not a program here",
        ),
        (&["up", "--python", "/etc/passwd"], "python = \"/etc/passwd\" is not a program here"),
        (&["up", "--node", "no-such-node"], "node = \"no-such-node\" is not a program here"),
        (&["up", "--sandbox", "sock", "--python", python], &elsewhere),
        // Nothing that isolates less is taken in its place.
        (&["up", "--python", python], &elsewhere),
    ] {
        let message = place.fails(args);
        assert!(message.contains(expected), "{args:?}: {message}");
    }
    place.assert_nothing_left();
    let link = bin.path().join("link");
    symlink("/usr/bin/python3", &link).unwrap();
    let link = link.to_str().unwrap();
    // A link is taken as it is; a folder that is a link is followed, since a sandbox sees the folder itself.
    for (sandbox, named, expected) in [
        ("process", link, format!("\"{link}\"")),
        ("sock", "/bin/python3", "\"/usr/bin/python3\"".to_owned()),
    ] {
        let cluster = Cluster::start(&["--workers", "1", "--sandbox", sandbox, "--python", named]);
        let code = "import sys\ndef f(event): return sys.executable\n";
        cluster.deploy("f", &[("f.py", code)]);
        assert_eq!(cluster.place.ol(&["invoke", "f"]), expected);
    }
}

/// The Python that is set: it checks what is deployed, `ol doctor` tells of it, and it runs functions.
#[test]
fn one_python_checks_reports_and_runs() {
    let bin = tempfile::tempdir().unwrap();
    let (python, used) = (bin.path().join("own-python"), bin.path().join("used"));
    let script =
        format!("#!/bin/sh\necho used >> {}\nexec /usr/bin/python3 \"$@\"\n", used.display());
    std::fs::write(&python, script).unwrap();
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
    let python = python.to_str().unwrap();
    let times = || std::fs::read_to_string(&used).unwrap_or_default().lines().count();
    let flags = ["--workers", "1", "--sandbox", "process", "--python", python];
    let cluster = Cluster::start(&flags);
    let (place, before) = (&cluster.place, times());
    cluster.deploy("f", &[("f.py", "def f(event): return 1\n")]);
    let deployed = times();
    assert_eq!(deployed, before + 1, "it checks the syntax");
    assert_eq!(place.ol(&["invoke", "f"]), "1");
    assert!(times() > deployed, "it runs the function");
    let told = place.run(&["doctor"]);
    assert!(texts(&told).0.contains(python), "{told:?}");
}

/// A worker may have other versions than the machine of the one who deploys.
#[test]
fn a_version_of_python_that_is_missing_is_told_at_deploy_and_by_the_worker() {
    let minor = Command::new("/usr/bin/python3")
        .args(["-c", "import sys; print(sys.version_info[1])"])
        .output()
        .unwrap();
    let minor = texts(&minor).0.trim().to_owned();
    for sandbox in ["process", "sock"] {
        let cluster = Cluster::start(&["--workers", "1", "--sandbox", sandbox]);
        let code = "import sys\ndef f(event): return sys.version_info[1]\n";
        let own = format!("runtime = \"python3.{minor}\"\n");
        cluster.deploy("own", &[("f.py", code), ("ol.toml", &own)]);
        assert_eq!(cluster.place.ol(&["invoke", "own"]), minor);
        // With no check, since another version would find other faults.
        let missing = [("f.py", "match = ??\n"), ("ol.toml", "runtime = \"python3.99\"\n")];
        let folder = cluster.place.function("missing", &missing);
        let deployed = cluster.place.run(&["deploy", folder.to_str().unwrap()]);
        let (_, told) = texts(&deployed);
        assert!(deployed.status.success(), "{told}");
        assert!(told.contains("warning: this machine has no Python 3.99"), "{told}");
        let failed = cluster.place.run(&["invoke", "missing"]);
        let (out, err) = texts(&failed);
        assert!(format!("{out}{err}").contains("this machine has no Python 3.99"), "{failed:?}");
    }
}

#[test]
fn packages_for_all_functions_are_a_setting() {
    let place = Place::new().with("OPENLAMBDA_LISTEN", "127.0.0.1:0");
    let message = place.fails(&["up", "--python-packages", "/nonexistent"]);
    let expected = "python_packages = \"/nonexistent\" is not a folder here; name one by its path";
    assert!(message.contains(expected), "{message}");
    place.assert_nothing_left();
    let given = tempfile::tempdir().unwrap();
    let folder = given.path().join("for-all");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("all_get.py"), "V = 'given'\n").unwrap();
    for sandbox in ["process", "sock"] {
        let folder = folder.to_str().unwrap();
        let flags = ["--workers", "1", "--sandbox", sandbox, "--python-packages", folder];
        let cluster = Cluster::start(&flags);
        cluster.deploy("f", &[("f.py", "import all_get\ndef f(event): return all_get.V\n")]);
        assert_eq!(cluster.place.ol(&["invoke", "f"]), "\"given\"");
        // `.ci/deps` has installed pip for this Python.
        cluster.deploy("g", &[("f.py", "def f(event): import pip\n")]);
        let failed = cluster.place.run(&["invoke", "g"]);
        assert!(texts(&failed).0.contains("No module named 'pip'"), "{failed:?}");
    }
}

#[test]
fn a_file_that_cannot_be_written_is_told_by_its_name() {
    let place = Place::new();
    for (flags, expected) in [
        (
            ["--records", "/proc/no/{name}"],
            "cannot write records of calls to /proc/no/worker-1; name",
        ),
        (
            ["--inputs", "/proc/no/{name}"],
            "cannot write the worker's inputs to /proc/no/worker-1; na",
        ),
        (["--access-log", "/proc/no/log"], "cannot write /proc/no/log; pass another --access-log"),
    ] {
        let message = place.fails(&[&["up", "--listen", "127.0.0.1:0"], &flags[..]].concat());
        assert!(message.contains(expected), "{flags:?}: {message}");
    }
    let message =
        place.fails(&["up", "--listen", "127.0.0.1:0", "--start-limit-seconds", "0.0001"]);
    let expected =
        "registry does not serve after 0.0001 s, which start_limit_seconds can raise; see ";
    assert!(message.contains(expected), "{message}");
    assert!(place.refuses(&["up", "--start-limit-seconds", "0"]).contains("use more than 0"));
    place.assert_nothing_left();
    // Who unsets a variable for one command leaves it empty.
    let place = Place::new().with("OPENLAMBDA_ACCESS_LOG", "").with("OPENLAMBDA_POLICY", "");
    assert!(place.ol(&["config", "show"]).contains("# access_log is not set"));
}

#[test]
fn logs_have_the_size_that_is_set() {
    let place = Place::new();
    let access = place.data_dir().join("access.jsonl");
    let mut args = vec!["--workers", "1", "--log-mb", "1", "--access-log-mb", "1", "--access-log"];
    args.push(access.to_str().unwrap());
    let cluster = Cluster::start_in(place, &args);
    let code = "def f(event):\n for _ in range(40): print('x' * 50000)\n";
    cluster.deploy("f", &[("f.py", code)]);
    cluster.place.ol(&["invoke", "f"]);
    let log = cluster.place.data_dir().join("workers/worker-1/logs/default/f.jsonl.1");
    let kept = crate::common::wait_for(|| log.metadata().ok()).expect("the log has a second file");
    assert!((900_000..1 << 20).contains(&kept.len()), "{}", kept.len());
    let told = std::fs::read_to_string(cluster.place.data_dir().join("daemons.toml")).unwrap();
    assert!(told.contains("access_log_mb = 1\n"), "{told}");
}

#[test]
fn the_engine_s_socket_is_a_setting() {
    let place = Place::new().with("DOCKER_HOST", "unix:///nowhere/docker.sock");
    let place = place.with("OPENLAMBDA_LISTEN", "127.0.0.1:0");
    let shown = place.ol(&["config", "show", "--origin"]);
    let line = shown.lines().find(|line| line.starts_with("docker_socket")).unwrap();
    assert!(line.contains("= \"unix:///nowhere/docker.sock\""), "{line}");
    assert!(line.ends_with("# environment DOCKER_HOST"), "{line}");
    for (flags, expected) in [
        (&[][..], "no engine answers at /nowhere/docker.sock"),
        (&["--docker-socket", "/also/nowhere"], "no engine answers at /also/nowhere"),
        (&["--docker-socket", "tcp://10.0.0.1:2375"], "with --docker-socket or DOCKER_HOST"),
    ] {
        let message = place.fails(&[&["up", "--sandbox", "docker"], flags].concat());
        assert!(message.contains(expected), "{flags:?}: {message}");
    }
    place.assert_nothing_left();
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
