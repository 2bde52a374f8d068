//! The documented way through the command line, and the JSON that scripts rely on.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{Cluster, Place, client, example, kill, post, texts, wait_for};

#[test]
fn up_deploy_invoke_ls_logs_rm_down() {
    let cluster = Cluster::start(&[]);
    let place = &cluster.place;
    // Starting it again finds it.
    assert_eq!(place.ol(&["up", "--detach"]).trim(), cluster.url);

    let status = cluster.status();
    assert_eq!(status["url"], cluster.url.as_str());
    assert_eq!(status["policy"], "least-outstanding");
    assert_eq!(status["registry"]["kind"], "native");
    let workers = status["workers"].as_array().unwrap();
    assert_eq!(workers.len(), 2);
    for (worker, id) in workers.iter().zip(["worker-1", "worker-2"]) {
        assert_eq!((&worker["id"], &worker["state"]), (&json!(id), &json!("ready")));
        assert!(["sock", "process"].contains(&worker["sandbox"].as_str().unwrap()));
        assert!(worker["pid"].is_u64() && worker["url"].as_str().unwrap().starts_with("http://"));
    }
    assert!(place.ol(&["status"]).contains("worker-2  ready"));

    let echo = example("echo");
    let deployed = place.json(&["deploy", echo.to_str().unwrap(), "--json"]);
    let url = format!("{}/run/echo", cluster.url);
    assert_eq!(deployed["name"], "echo");
    assert_eq!(deployed["version"], 1);
    assert_eq!(deployed["url"], url.as_str());
    assert!(deployed["digest"].as_str().unwrap().starts_with("sha256:"));
    // The same again is no new version.
    assert_eq!(place.json(&["deploy", echo.to_str().unwrap(), "--json"]), deployed);

    assert_eq!(place.ol(&["invoke", "echo", "-d", r#"{"one": 1}"#]), r#"{"one": 1}"#);
    let answer = place.json(&["invoke", "echo", "-d", "[2]", "--json"]);
    assert_eq!((&answer["status"], &answer["body"]), (&json!(200), &json!("[2]")));
    assert!(["cold", "warm"].contains(&answer["start"].as_str().unwrap()));
    for phase in ["queue", "pull", "create", "init", "run"] {
        assert!(answer["phases_ms"][phase].as_f64().unwrap() >= 0.0, "{answer}");
    }
    assert!(answer["phases_ms"]["run"].as_f64().unwrap() > 0.0);
    assert_eq!(answer["headers"]["content-type"], "application/json");

    let printer = "def f(event):\n    print('out', event)\n    return None\n";
    cluster.deploy("printer", &[("f.py", printer)]);
    let answer = place.json(&["invoke", "printer", "-d", "7", "--json"]);
    let id = answer["headers"]["x-openlambda-request-id"].as_str().unwrap();
    // A thread of the worker's writes them.
    let logs = wait_for(|| {
        let output = place.run(&["logs", "printer", "--json"]);
        let (out, _) = texts(&output);
        output.status.success().then_some(out).filter(|out| out.contains("out 7"))
    });
    let logs = logs.expect("what was printed is in the log");
    let line: Value = serde_json::from_str(logs.lines().next().unwrap()).unwrap();
    assert_eq!((&line["stream"], &line["text"]), (&json!("stdout"), &json!("out 7")));
    assert_eq!(line["request_id"], id);
    assert!(place.ol(&["logs", "printer", "--request-id", id, "--long"]).contains("stdout: out 7"));
    assert_eq!(place.ol(&["logs", "printer", "--request-id", id]), "out 7\n");
    assert_eq!(place.ol(&["logs", "printer", "--request-id", "other"]), "");
    // To have printed nothing is no failure; to be unknown is.
    cluster.deploy("silent", &[("f.py", "def f(event):\n    return event\n")]);
    assert_eq!(place.ol(&["logs", "silent"]), "");
    assert!(place.fails(&["logs", "silant"]).contains("\"silent\""));
    place.ol(&["rm", "silent"]);

    let list = place.json(&["ls", "--json"]);
    let names: Vec<&Value> =
        list["functions"].as_array().unwrap().iter().map(|f| &f["name"]).collect();
    assert_eq!(names, ["echo", "printer"]);
    assert_eq!(list["functions"][0]["digest"], deployed["digest"]);

    place.ol(&["rm", "printer"]);
    assert!(place.fails(&["rm", "printer"]).contains("there is no function \"printer\""));
    assert!(place.fails(&["rm", "ecko"]).contains("did you mean \"echo\"?"));
    let gone = place.run(&["invoke", "printer"]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(texts(&gone).0.contains("not_found"));

    place.ol(&["down"]);
    place.ol(&["down"]);
    place.assert_nothing_left();
    assert!(place.fails(&["status"]).contains("start one with `ol up --detach`"));

    // What was deployed is still there.
    place.ol(&["up", "--detach", "--listen", "127.0.0.1:0"]);
    assert_eq!(place.ol(&["invoke", "echo", "-d", "3"]), "3");
}

#[test]
fn a_function_s_error_is_the_exit_status() {
    let cluster = Cluster::start(&["--workers", "1"]);
    cluster.deploy("raises", &[("f.py", "def f(event):\n    raise ValueError('no')\n")]);
    let output = cluster.place.run(&["invoke", "raises"]);
    let (out, err) = texts(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(out.contains("\"type\":\"ValueError\"") && err.contains("500"), "{out}{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_takes_effect_at_the_next_call() {
    let cluster = Cluster::start(&[]);
    let client = client();
    for n in 0..5 {
        let code = format!("def f(event):\n    return {n}\n");
        let url = cluster.deploy("counter", &[("f.py", &code)]);
        for _ in 0..4 {
            assert_eq!(post(&client, &url, "").await.body, n.to_string());
        }
        if n > 0 {
            let old = format!("{}:{n}", cluster.url.clone() + "/run/counter");
            assert_eq!(post(&client, &old, "").await.body, (n - 1).to_string());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_dir_registry_a_changed_file_takes_effect_at_the_next_call() {
    let cluster = Cluster::start(&["--registry", "dir"]);
    let client = client();
    let url = cluster.deploy("live", &[("f.py", "def f(event):\n    return 0\n")]);
    assert_eq!(post(&client, &url, "").await.body, "0");
    let file = cluster.place.data_dir().join("functions/live/f.py");
    for n in 1..20 {
        std::fs::write(&file, format!("def f(event):\n    return {n}\n")).unwrap();
        assert_eq!(post(&client, &url, "").await.body, n.to_string());
    }
    let listed = cluster.place.json(&["ls", "--json"]);
    assert_eq!(listed["functions"][0]["name"], "live");
}

#[test]
fn every_policy_serves() {
    let place = Place::new();
    let policies = place.json(&["policies", "--json"]);
    for policy in policies["policies"].as_array().unwrap() {
        let name = policy["name"].as_str().unwrap();
        assert!(policy["about"].is_string() && policy["parameters"].is_array());
        assert!(place.ol(&["policies"]).contains(name));
        let cluster = Cluster::start(&["--policy", name, "--workers", "3"]);
        cluster.deploy_example("echo");
        for n in 0..5 {
            let text = n.to_string();
            assert_eq!(cluster.place.ol(&["invoke", "echo", "-d", &text]), text, "{name}");
        }
    }
}

#[test]
fn sim_prints_the_same_for_the_same_seed() {
    let place = Place::new();
    let args = ["sim", "--invocations", "2000", "--json", "--seed", "3"];
    let first = place.ol(&args);
    assert_eq!(first, place.ol(&args));
    let result: Value = serde_json::from_str(&first).unwrap();
    assert_eq!(result["seed"], 3);
    for policy in result["policies"].as_array().unwrap() {
        assert_eq!(policy["invocations"], 2000);
        for number in ["cold_rate", "mean_ms", "p50_ms", "p99_ms"] {
            assert!(policy[number].is_f64(), "{policy}");
        }
    }
    assert!(place.ol(&["sim", "--invocations", "500", "--policy", "random"]).contains("random"));
}

#[test]
fn sim_over_seeds_prints_the_same_whatever_the_threads() {
    let place = Place::new();
    let run = |threads: &str| {
        let mut args = vec!["sim", "--invocations", "1500", "--threads", threads];
        args.extend(["--policy", "random", "--policy", "hiku", "--balancers", "2"]);
        args.extend(["--seed", "1", "--seed", "2", "--seed", "3"]);
        let text = place.ol(&args);
        args.push("--json");
        (text, place.ol(&args))
    };
    let (text, json) = run("1");
    assert_eq!((&text, &json), (&run("3").0, &run("3").1));
    assert!(text.contains("Means over 3 seeds"), "{text}");
    let result: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(result["seeds"], serde_json::json!([1, 2, 3]));
    for policy in result["policies"].as_array().unwrap() {
        assert_eq!(policy["runs"].as_array().unwrap().len(), 3);
        assert!(policy["mean_ms"]["half_width"].as_f64().unwrap() > 0.0, "{policy}");
        assert!(policy["per_second"]["mean"].as_f64().unwrap() > 50.0, "{policy}");
    }
}

#[test]
fn sim_says_why_calls_failed_and_of_which_calls_its_times_are() {
    let place = Place::new();
    let args = ["sim", "--policy", "random", "--workers", "1", "--functions", "1"];
    let limits = ["--max-instances", "1", "--queue-limit", "1", "--invocations", "2000"];
    let text = place.ol(&[&args[..], &limits].concat());
    assert!(text.contains("random failed: ") && text.contains(" queue_full."), "{text}");
    assert!(text.contains("those of the calls that were answered"), "{text}");
}

#[test]
fn sim_orders_calls_by_every_queue_policy() {
    let sim = |queue: &str, limit: &str| {
        let args = ["sim", "--policy", "round-robin", "--workers", "2", "--processors", "2"];
        let more = ["--mix", "azure", "--rate", "2", "--invocations", "2000", "--json"];
        let queueing = ["--queue-policy", queue, "--running-limit", limit];
        Place::new().ol(&[&args[..], &more, &queueing].concat())
    };
    let mut seen = std::collections::BTreeSet::new();
    for entry in openlambda_core::queue::standard().entries() {
        seen.insert(sim(&entry.name, "1x"));
    }
    assert!(seen.len() >= 5, "{} different outputs", seen.len());
    assert_ne!(sim("fifo", "none"), sim("fifo", "1"));
    assert_ne!(sim("fifo", "none"), sim("fifo", "load=1.2"));
    let refused = |args: &[&str], expected: &str| {
        let output = Place::new().run(&[&["sim"], args].concat());
        let (_, error) = texts(&output);
        assert!(!output.status.success() && error.contains(expected), "{args:?}: {error}");
    };
    refused(&["--running-limit", "many"], "write none, a number of calls (8)");
    refused(&["--running-limit", "2x"], "needs --processors");
    refused(&["--queue-policy", "fife"], "did you mean \"fifo\"?");
}

#[test]
fn sim_runs_every_keep_alive_policy() {
    let place = Place::new();
    let policies = place.json(&["policies", "--json"]);
    let text = place.ol(&["policies"]);
    let keep_alive = policies["keep_alive"].as_array().unwrap();
    assert_eq!(keep_alive.len(), 7);
    for entry in keep_alive {
        let name = entry["name"].as_str().unwrap();
        assert!(text.contains(name), "{text}");
        let result = place.json(&[
            "sim",
            "--policy",
            "random",
            "--keep-alive",
            name,
            "--mix",
            "azure",
            "--workers",
            "1",
            "--memory-mb",
            "4096",
            "--rate",
            "1",
            "--service",
            "fixed",
            "--invocations",
            "1000",
            "--json",
        ]);
        let summary = &result["policies"][0];
        assert_eq!(summary["invocations"], 1000, "{name}");
        assert!(summary["cold_overhead"].as_f64().unwrap() > 0.0, "{name}: {summary}");
    }
}

#[test]
fn sim_spaces_calls_within_their_minutes() {
    let place = Place::new();
    // Two seconds each; the one that is called most has ten calls a minute.
    let args = ["sim", "--policy", "random", "--workers", "1", "--functions", "10"];
    let calls = ["--rate", "0.5", "--invocations", "1000", "--service", "fixed"];
    let times = ["--mean-ms", "2000", "--memory-mb", "8192", "--json"];
    let cold = |spacing| {
        let result = place.json(&[&args[..], &calls, &times, &["--spacing", spacing]].concat());
        let summary = &result["policies"][0];
        assert_eq!(summary["invocations"], 1000, "{spacing}: {summary}");
        summary["cold_rate"].as_f64().unwrap()
    };
    let (even, drawn, start) = (cold("even"), cold("as-drawn"), cold("start"));
    assert_eq!(even, 10.0 / 1000.0, "one instance of each function is enough");
    assert!(even < drawn && drawn < start, "{even} {drawn} {start}");
    let refused = place.run(&["sim", "--spacing", "evenly"]);
    let message = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{message}");
    assert!(message.contains("as-drawn, uniform, even, even-shifted, start"), "{message}");
}

#[test]
fn doctor_checks_and_says_so() {
    let place = Place::new();
    let checks = place.json(&["doctor", "--json"]);
    assert_eq!(checks["ok"], true, "{checks}");
    let names: Vec<_> =
        checks["checks"].as_array().unwrap().iter().map(|c| c["check"].as_str().unwrap()).collect();
    for name in [
        "python",
        "namespaces",
        "user namespaces",
        "cgroups",
        "overlay",
        "runtimes",
        "kvm",
        "leftovers",
    ] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
}

#[test]
fn ctrl_c_stops_a_foreground_cluster() {
    for signal in [Signal::INT, Signal::TERM] {
        let place = Place::new();
        let mut child = place
            .command(&["up", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("http://127.0.0.1:"), "{line}");
        place.ol(&["deploy", example("echo").to_str().unwrap()]);
        assert_eq!(place.ol(&["invoke", "echo", "-d", "1"]), "1");
        kill(child.id() as i32, signal);
        assert!(child.wait().unwrap().success());
        place.assert_nothing_left();
    }
}
