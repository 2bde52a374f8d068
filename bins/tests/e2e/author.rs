//! The way of one who writes functions: from a template to a rollback.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{Cluster, OL, Place, client, post, texts, wait_for};

/// Makes a function from a template in the place's own folder.
fn new_function(place: &Place, name: &str, template: &str) -> std::path::PathBuf {
    let folder = place.function("", &[]).join(name);
    place.ol(&["new", folder.to_str().unwrap(), "--template", template]);
    folder
}

#[test]
fn every_template_deploys_and_answers() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let place = &cluster.place;
    for (template, call, expected) in [
        ("python", &["-d", r#"{"name": "you"}"#][..], r#""Hello, you!""#),
        ("python", &[], r#""Hello, world!""#),
        ("python-http", &["-X", "GET", "--path", "/a?name=you"], r#""Hello, you!", "path": "/a""#),
        ("python-wsgi", &["-X", "GET", "--path", "/a?name=you"], r#""Hello, you!", "path": "/a""#),
        ("node", &["-d", r#"{"name": "you"}"#], r#"{"message":"Hello, you!"}"#),
        ("node", &[], r#"{"message":"Hello, world!"}"#),
        ("bootstrap-sh", &["-d", "[1]"], r#""Hello from a shell!", "event": [1]"#),
        ("bootstrap-rust", &["-d", "[1]"], r#""Hello from Rust!", "event": [1]"#),
    ] {
        let name = format!("{template}-{}", call.len());
        let folder = new_function(place, &name, template);
        let path = folder.to_str().unwrap();
        if template == "bootstrap-rust" {
            let target = place.function("", &[]).join("target");
            let built = Command::new("sh")
                .arg(folder.join("build.sh"))
                .env("CARGO_TARGET_DIR", target)
                .env("CARGO_NET_OFFLINE", "true")
                .stdin(Stdio::null())
                .output()
                .unwrap();
            assert!(built.status.success(), "{:?}", texts(&built));
            // Cargo may leave its lock file, and nothing else.
            assert!(!folder.join("target").exists());
        }
        place.ol(&["deploy", path]);
        let mut args = vec!["invoke", &name];
        args.extend(call);
        for _ in 0..3 {
            let reply = place.ol(&args);
            assert!(reply.contains(expected), "{template}: {reply}");
        }
        if template.starts_with("python-") {
            let refused = place.run(&["invoke", &name, "-X", "DELETE"]);
            assert!(texts(&refused).1.contains("405"), "{:?}", texts(&refused));
        }
    }
}

#[test]
fn new_overwrites_nothing_and_says_how_to_go_on() {
    let place = Place::new();
    let base = place.function("", &[]);
    let run = |args: &[&str]| {
        let output = place.command(args).current_dir(&base).output().unwrap();
        (output.status.code(), texts(&output))
    };
    let (code, (out, err)) = run(&["new", "hello"]);
    assert_eq!(code, Some(0), "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines, ["ol deploy hello", r#"ol invoke hello -d '{"name": "you"}'"#]);
    assert!(fs::read_to_string(base.join("hello/f.py")).unwrap().contains("`ol logs hello`"));
    // Again: what is there stays.
    fs::write(base.join("hello/f.py"), "mine").unwrap();
    let (code, (_, err)) = run(&["new", "hello", "--template", "python-http"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("hello is not empty; name a folder that is not there yet"), "{err}");
    assert_eq!(fs::read_to_string(base.join("hello/f.py")).unwrap(), "mine");
    // A bad name makes nothing.
    let (code, (_, err)) = run(&["new", "_bad"]);
    assert!(code == Some(1) && err.contains("pass --name"), "{err}");
    assert!(!base.join("_bad").exists());
    let (code, (out, _)) =
        run(&["new", "some where/_deep", "--name", "team/x", "--template", "bootstrap-rust"]);
    assert_eq!(code, Some(0));
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines,
        [
            "sh 'some where/_deep'/build.sh",
            "ol deploy 'some where/_deep' --name team/x",
            r#"ol invoke team/x -d '{"name": "you"}'"#,
        ]
    );
    // An empty folder that is there is as good as none, by the name that it has.
    fs::create_dir(base.join("empty")).unwrap();
    let output = place
        .command(&["new", ".", "--json", "--template", "bootstrap-sh"])
        .current_dir(base.join("empty"))
        .output()
        .unwrap();
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&made["name"], &made["files"]),
        (&json!("empty"), &json!(["bootstrap", "ol.toml"]))
    );
    let mode = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(&base.join("empty/bootstrap")), 0o755);
    assert_eq!(run(&["new", "x", "--template", "cobol"]).0, Some(2));
}

/// A function that answers with its text.
fn answering(text: &str) -> String {
    format!("def f(event):\n    return {text:?}\n")
}

#[test]
fn versions_aliases_and_rollbacks() {
    let cluster = Cluster::start(&[]);
    let place = &cluster.place;
    for text in ["one", "two", "three"] {
        cluster.deploy("f", &[("f.py", &answering(text)), ("ol.toml", "memory_mb = 64")]);
    }
    let call = |reference: &str| place.ol(&["invoke", reference]);
    let versions = place.json(&["versions", "f", "--json"]);
    let numbers = |versions: &Value| -> Vec<u64> {
        let versions = versions["versions"].as_array().unwrap().iter();
        versions.map(|info| info["version"].as_u64().unwrap()).collect()
    };
    assert_eq!(numbers(&versions), [1, 2, 3]);
    for info in versions["versions"].as_array().unwrap() {
        assert!(info["bytes"].as_u64().unwrap() > 0 && info["published_ms"].as_u64().unwrap() > 0);
    }

    // An alias changes as a whole or not at all.
    let url = place.ol(&["alias", "f", "live", "1"]);
    assert_eq!(url.trim(), format!("{}/run/f:live", cluster.url));
    assert_eq!(call("f:live"), "\"one\"");
    place.ol(&["alias", "f", "live", "2", "--expected", "1"]);
    assert_eq!(call("f:live"), "\"two\"");
    let refused = place.fails(&["alias", "f", "live", "3", "--expected", "1"]);
    assert!(refused.contains("f:live points to version 2 now, not to version 1"), "{refused}");
    let refused = place.fails(&["alias", "f", "live", "3", "--expected", "none"]);
    assert!(refused.contains("points to version 2 now"), "{refused}");
    let refused = place.fails(&["alias", "f", "live", "9"]);
    assert!(refused.contains("f has no version 9; `ol versions f` lists them"), "{refused}");
    assert!(place.refuses(&["alias", "f", "2x", "1"]).contains("a letter first"));
    place.ol(&["alias", "f", "test", "3", "--expected", "none"]);
    let aliases = place.json(&["alias", "f", "--json"]);
    assert_eq!(aliases, json!({ "name": "f", "aliases": { "live": 2, "test": 3 } }));
    assert!(place.ol(&["alias", "f", "live"]).contains("live   2"));
    place.ol(&["alias", "f", "test", "--remove"]);
    assert!(place.fails(&["alias", "f", "test", "--remove"]).contains("has no alias \"test\""));
    assert!(texts(&place.run(&["invoke", "f:test"])).0.contains("not_found"));

    let table = place.ol(&["versions", "f"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[2].ends_with("f:live") && lines[3].ends_with(" f"), "{table}");

    // The name alone runs the code of the version before; numbers only grow.
    let back = place.json(&["rollback", "f", "--json"]);
    assert_eq!((&back["version"], &back["code_of"]), (&json!(4), &json!(2)));
    assert_eq!(back["digest"], versions["versions"][1]["digest"]);
    assert_eq!((call("f"), call("f:3"), call("f:live")), tuple("two", "three", "two"));
    // To and fro, as one who finds the older one worse.
    place.ol(&["rollback", "f"]);
    assert_eq!(call("f"), "\"three\"");
    place.ol(&["rollback", "f", "1"]);
    assert_eq!(call("f"), "\"one\"");
    let output = place.run(&["rollback", "f", "1"]);
    assert!(texts(&output).1.contains("version 6 has the code of version 1 already"));
    place.ol(&["rollback", "f", "live"]);
    assert_eq!(call("f"), "\"two\"");
    assert_eq!(numbers(&place.json(&["versions", "f", "--json"])), [1, 2, 3, 4, 5, 6, 7]);
    assert!(place.fails(&["rollback", "f", "9"]).contains("f has no version 9"));
    assert!(place.fails(&["rollback", "ff"]).contains("did you mean \"f\"?"));

    // Whatever is called wrongly by a letter or so, the one that may be meant is named.
    for (args, hint) in [
        (&["invoke", "ff"][..], "there is no function \"ff\"; did you mean \"f\"?"),
        (&["invoke", "f:lvie"], "f has no version \"lvie\"; did you mean \"live\"?"),
        (&["invoke", "f:99"], "f has no version 99; `ol versions f` lists them"),
        (&["describe", "f:liv"], "did you mean \"live\"?"),
        (&["rollback", "f", "lives"], "did you mean \"live\"?"),
        (&["alias", "f", "lve"], "f has no alias \"lve\"; did you mean \"live\"?"),
        (&["alias", "f", "lve", "--remove"], "f has no alias \"lve\"; did you mean \"live\"?"),
        (&["logs", "ff"], "did you mean \"f\"?"),
    ] {
        let said = place.fails(args);
        assert!(said.contains(hint), "{args:?}: {said}");
    }
    let described = place.json(&["describe", "f", "--json"]);
    assert_eq!((&described["name"], &described["version"]), (&json!("f"), &json!(7)));
    assert_eq!(described["url"], format!("{}/run/f", cluster.url));
    assert_eq!(described["manifest"]["memory_mb"], 64);
    assert_eq!(described["aliases"], json!({ "live": 2 }));
    assert_eq!(described["versions"].as_array().unwrap().len(), 7);
    assert_eq!(described["bytes"], described["versions"][6]["bytes"]);
    let text = place.ol(&["describe", "f:1"]);
    assert!(
        text.starts_with("f version 1\n")
            && text.contains("versions   7")
            && text.contains("memory_mb = 64"),
        "{text}"
    );
    assert!(place.fails(&["describe", "f:live2"]).contains("has no version \"live2\""));
}

fn tuple(a: &str, b: &str, c: &str) -> (String, String, String) {
    let quoted = |text: &str| format!("{text:?}");
    (quoted(a), quoted(b), quoted(c))
}

#[test]
fn a_folder_of_functions_has_one_version_of_each() {
    let cluster = Cluster::start(&["--registry", "dir", "--workers", "1"]);
    let place = &cluster.place;
    cluster.deploy("f", &[("f.py", &answering("one"))]);
    cluster.deploy("f", &[("f.py", &answering("two"))]);
    let versions = place.json(&["versions", "f", "--json"]);
    assert_eq!(versions["versions"].as_array().unwrap().len(), 1);
    assert!(place.fails(&["rollback", "f"]).contains("f has one version only"));
    let version = versions["versions"][0]["version"].to_string();
    let refused = place.fails(&["alias", "f", "live", &version]);
    assert!(refused.contains("use the native registry"), "{refused}");
}

/// An `ol` that goes on, line by line as it prints them.
struct Following {
    child: std::process::Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Following {
    fn start(place: &Place, args: &[&str]) -> Self {
        let mut command = place.command(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        let out: Box<dyn Read + Send> = Box::new(child.stdout.take().unwrap());
        let err: Box<dyn Read + Send> = Box::new(child.stderr.take().unwrap());
        for stream in [out, err] {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Following { child, lines }
    }

    /// The next line that holds `text`.
    fn until(&self, text: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(Duration::from_secs(60));
            let line = line.unwrap_or_else(|_| panic!("no line with {text:?} came"));
            if line.contains(text) {
                return line;
            }
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn logs_follow_new_workers_and_rotations() {
    let place = Place::new();
    let log = |worker: &str| place.data_dir().join("workers").join(worker).join("logs/default");
    let append = |worker: &str, text: &str| {
        fs::create_dir_all(log(worker)).unwrap();
        let file = fs::File::options().create(true).append(true).open(log(worker).join("f.jsonl"));
        file.unwrap().write_all(text.as_bytes()).unwrap();
    };
    let line = |time_ms: u64, id: &str, text: &str| {
        let line = json!({
            "time_ms": time_ms, "request_id": id, "stream": "stdout", "text": text,
        });
        format!("{line}\n")
    };
    let rotate = |worker: &str| {
        fs::rename(log(worker).join("f.jsonl"), log(worker).join("f.jsonl.1")).unwrap();
    };

    // A function that has not printed yet can be followed.
    let follow = Following::start(&place, &["logs", "f", "-f", "--long"]);
    append("worker-1", &line(86_400_000, "a", "first"));
    assert!(follow.until("first").starts_with("1970-01-02T00:00:00.000Z worker-1 a stdout: "));
    append("worker-2", &line(86_401_000, "b", "of a new worker"));
    follow.until("of a new worker");
    // A line comes when it has its end.
    let text = line(86_402_000, "c", "in two parts");
    append("worker-1", &text[..20]);
    std::thread::sleep(Duration::from_millis(300));
    append("worker-1", &text[20..]);
    follow.until("in two parts");
    // Lines before, between and after two rotations at once, each once.
    append("worker-1", &line(86_403_000, "a", "before"));
    rotate("worker-1");
    append("worker-1", &line(86_404_000, "a", "between"));
    rotate("worker-1");
    append("worker-1", &line(86_405_000, "a", "after"));
    for text in ["before", "between", "after"] {
        follow.until(text);
    }
    append("worker-1", &line(86_406_000, "a", "last"));
    let next = follow.lines.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(next.ends_with("last"), "{next}");
    drop(follow);

    let count = |args: &[&str]| place.ol(&[&["logs", "f"], args].concat()).lines().count();
    // "first" and what was in one file with it went with the second rotation.
    assert_eq!(count(&[]), 4);
    assert_eq!(count(&["-n", "2"]), 2);
    assert_eq!(count(&["--request-id", "b"]), 1);
    assert_eq!(count(&["--since", "1970-01-02T00:00:05Z"]), 2);
    assert_eq!(count(&["--since", "1970-01-02T01:00:05+01:00", "-n", "1"]), 1);
    assert_eq!(count(&["--since", "10m"]), 0);
    let wrong = place.run(&["logs", "f", "--since", "yesterday"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(texts(&wrong).1.contains("write 10m, 2h"), "{wrong:?}");
}

#[test]
fn logs_of_a_running_function_come_as_they_are_printed() {
    let cluster = Cluster::start(&[]);
    let place = &cluster.place;
    cluster.deploy("f", &[("f.py", "def f(event):\n    print('got', event)\n")]);
    let follow = Following::start(place, &["logs", "f", "-f", "--since", "1h", "--json"]);
    for n in 0..5 {
        place.ol(&["invoke", "f", "-d", &n.to_string()]);
        let line: Value = serde_json::from_str(&follow.until(&format!("got {n}"))).unwrap();
        assert!(line["worker"].as_str().unwrap().starts_with("worker-"));
    }
}

#[test]
fn a_syntax_error_is_told_with_file_and_line_and_nothing_runs() {
    // Without isolation, so that code which runs can leave its mark.
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", "process"]);
    let place = &cluster.place;
    let mark = place.data_dir().join("ran");
    let broken = format!("open({mark:?}, 'w')\n\ndef f(event):\n    retrun 1\n");
    let folder = place.function("f", &[("f.py", &broken)]);
    let message = place.fails(&["deploy", folder.to_str().unwrap()]);
    assert!(message.contains("ol: f.py, line 4: invalid syntax: retrun 1"), "{message}");
    // What only the compiler finds, in a file beside the handler's.
    place.function("f", &[("f.py", "import g\n"), ("g.py", "x = 1\nreturn x\n")]);
    let message = place.fails(&["deploy", folder.to_str().unwrap()]);
    assert!(message.contains("g.py, line 2: 'return' outside function"), "{message}");
    assert_eq!(place.json(&["ls", "--json"])["functions"], json!([]));
    // A package of others may hold a file for another Python.
    let good = format!("open({mark:?}, 'w')\ndef f(event):\n    return 1\n");
    place.function("f", &[("f.py", &good), ("g.py", "")]);
    place.function("f/package", &[("old.py", "print 1\n")]);
    let output = place.run(&["deploy", folder.to_str().unwrap()]);
    let (_, err) = texts(&output);
    assert!(output.status.success() && err.contains("warning: package/old.py, line 1"), "{err}");
    assert!(!mark.exists(), "deploying has run the code");
    assert!(!folder.join("__pycache__").exists());
    assert_eq!(place.ol(&["invoke", "f"]), "1");
}

#[test]
fn a_syntax_error_of_node_is_told_with_file_and_line_and_nothing_runs() {
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", "process"]);
    let place = &cluster.place;
    let mark = place.data_dir().join("ran");
    let folder = place.function("f", &[]);
    let deploy = || place.run(&["deploy", folder.to_str().unwrap()]);
    let runs = format!("require('fs').writeFileSync({mark:?}, '');\n");
    let module = "export const handler = async (event) => event +;\n";
    for (file, text, told) in [
        (
            "index.js",
            format!("{runs}exports.handler = async (event) => {{\n  retrun 1;\n}};\n"),
            "ol: index.js, line 3: Unexpected number: retrun 1;",
        ),
        (
            "index.mjs",
            format!("\n{module}"),
            "ol: index.mjs, line 2: Unexpected token ';': export const",
        ),
        (
            "other.cjs",
            "\n\nlet a = 1;\nlet a = 2;\n".to_owned(),
            "ol: other.cjs, line 4: Identifier 'a' has already been declared: let a = 2;",
        ),
    ] {
        let index =
            "require('./index.mjs'); require('./other');\nexports.handler = async () => 1;\n";
        place.function("f", &[("index.js", index), (file, &text)]);
        let message = texts(&deploy()).1;
        assert!(message.contains(told), "{message}");
        fs::remove_file(folder.join(file)).unwrap();
    }
    // A minified file is one line, of which a part is shown.
    for (file, language) in [("min.js", "javascript"), ("min.py", "python")] {
        let minified = format!("{}retrun 1;", "let_é = 1; ".repeat(100_000));
        let own = match language {
            "python" => ("f.py", "import min\ndef f(event):\n    return event\n"),
            _ => ("index.js", "require('./min');\nexports.handler = async () => 1;\n"),
        };
        let folder = place.function(language, &[own, (file, &minified)]);
        let message = texts(&place.run(&["deploy", folder.to_str().unwrap()])).1;
        assert!(message.contains(&format!("{file}, line 1: ")), "{message}");
        let (begins, cut) = (message.contains("é = 1; let_é = 1; let_é"), message.contains("…"));
        assert!(begins && cut && message.len() < 1000, "{} bytes: {message:.1000}", message.len());
    }
    assert_eq!(place.json(&["ls", "--json"])["functions"], json!([]));
    // What is right in one kind of module is wrong in the other; what the page's browser runs, and
    // packages of others, are no business of ours.
    let good = format!("#!/usr/bin/env node\n{runs}exports.handler = async () => 1;\nreturn;\n");
    place.function("f", &[("index.js", &good)]);
    place.function(
        "f/lib",
        &[
            ("package.json", r#"{"type": "module"}"#),
            ("a.js", "import fs from 'fs'; await 1; export default import.meta.url;\n"),
            ("b.js", "with ({}) {}\n"),
        ],
    );
    place.function("f/node_modules/x", &[("x.js", "not JavaScript\n")]);
    place.function("f/static", &[("x.js", "not JavaScript\n")]);
    let output = deploy();
    let (_, err) = texts(&output);
    assert!(output.status.success(), "{err}");
    let warnings: Vec<_> = err.lines().filter(|line| line.contains("warning")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("warning: lib/b.js, line 1: "), "{err}");
    assert!(!mark.exists(), "deploying has run the code");
    assert_eq!(place.ol(&["invoke", "f"]), "1");
    assert!(mark.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_deploys_every_save_and_no_call_fails() {
    let cluster = Cluster::start(&[]);
    let place = &cluster.place;
    let folder = place.function("f", &[("f.py", "def f(event):\n    return 0\n")]);
    let watch = Following::start(place, &["deploy", folder.to_str().unwrap(), "--watch"]);
    watch.until("f version 1 is deployed");
    watch.until("Ctrl-C ends it");

    let url = format!("{}/run/f", cluster.url);
    let over = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (url, over) = (url.clone(), over.clone());
            tokio::spawn(async move {
                let (client, mut newest, mut calls) = (client(), 0, 0);
                while !over.load(Ordering::Relaxed) {
                    let answer = post(&client, &url, "").await;
                    assert_eq!(answer.status, 200, "{answer:?}");
                    let number: u32 = answer.body.parse().unwrap();
                    assert!(number >= newest, "{number} after {newest}");
                    (newest, calls) = (number, calls + 1);
                }
                calls
            })
        })
        .collect();
    let client = client();
    for n in 1..=5 {
        let code = format!("def f(event):\n    return {n}\n");
        // As most editors save: beside it, then over it.
        fs::write(folder.join(".f.py.swp"), "half").unwrap();
        let beside = folder.with_extension("new");
        fs::write(&beside, code).unwrap();
        fs::rename(&beside, folder.join("f.py")).unwrap();
        watch.until(&format!("f version {} is deployed", n + 1));
        assert_eq!(post(&client, &url, "").await.body, n.to_string());
    }
    // A broken save is told, and the version before goes on.
    fs::write(folder.join("f.py"), "def f(event):\n    return (6\n").unwrap();
    watch.until("f.py, line 2");
    assert_eq!(post(&client, &url, "").await.body, "5");
    fs::write(folder.join("ol.toml"), "memory = 1\n").unwrap();
    watch.until("unknown key \"memory\"");
    assert_eq!(post(&client, &url, "").await.body, "5");
    fs::remove_file(folder.join("ol.toml")).unwrap();
    fs::write(folder.join("f.py"), "def f(event):\n    return 6\n").unwrap();
    watch.until("f version 7 is deployed");
    assert_eq!(post(&client, &url, "").await.body, "6");
    over.store(true, Ordering::Relaxed);
    for load in load {
        assert!(load.await.unwrap() > 0);
    }
    let versions = place.json(&["versions", "f", "--json"]);
    assert_eq!(versions["versions"].as_array().unwrap().len(), 7, "a save was deployed twice");
    drop(watch);
    // What no save can mend ends it.
    assert!(place.fails(&["deploy", "/nonexistent", "--watch"]).contains("/nonexistent"));
}

#[test]
fn settings_come_from_flags_over_environment_over_file_over_defaults() {
    let place = Place::new();
    fs::create_dir_all(place.data_dir()).unwrap();
    let file = place.data_dir().join("config.toml");
    fs::write(&file, "workers = 3\nlisten = \"127.0.0.1:0\"\npolicy = \"random\"\nseed = 4\n")
        .unwrap();
    let show = |args: &[&str]| {
        let mut command = place.command(&["config", "show"]);
        command.args(args).env("OPENLAMBDA_WORKERS", "4").env("OPENLAMBDA_POLICY", "round-robin");
        let output = command.output().unwrap();
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{err}");
        out
    };
    let shown: Value =
        serde_json::from_str(&show(&["--json", "--", "--policy", "bounded-load,epsilon=0.5"]))
            .unwrap();
    let setting = |name: &str| {
        let settings = shown["settings"].as_array().unwrap();
        let found = settings.iter().find(|setting| setting["name"] == name).unwrap();
        (found["value"].clone(), found["origin"].as_str().unwrap().to_owned())
    };
    let from = |value: Value, origin: &str| (value, origin.to_owned());
    assert_eq!(setting("policy"), from(json!("bounded-load,epsilon=0.5"), "flag"));
    assert_eq!(setting("workers"), from(json!(4), "environment"));
    assert_eq!(setting("seed"), from(json!(4), "file"));
    assert_eq!(setting("registry"), from(json!("native"), "default"));
    let text = show(&["--origin"]);
    for (line, origin) in [
        ("workers = 4 ", "# environment OPENLAMBDA_WORKERS"),
        ("seed = 4 ", &*format!("# file {}", file.display())),
        ("sandbox = \"auto\" ", "# default"),
    ] {
        let found = text.lines().find(|found| found.starts_with(line)).unwrap();
        assert!(found.ends_with(origin), "{text}");
    }
    // What is shown is a file again.
    let copy = place.data_dir().join("copy.toml");
    fs::write(&copy, show(&["--origin"])).unwrap();
    let again = place.json(&["config", "show", "--json", "--config", copy.to_str().unwrap()]);
    let workers = again["settings"].as_array().unwrap().iter().find(|s| s["name"] == "workers");
    assert_eq!(workers.unwrap()["place"], copy.to_str().unwrap());
    for daemon in ["worker", "lb", "registry"] {
        let output = place.ol(&["config", "show", daemon, "--origin"]);
        assert!(output.contains("# default"), "{output}");
    }
    let worker =
        ["config", "show", "worker", "--json", "--", "--balancer", "http://a", "--name", "7"];
    let worker = place.json(&worker);
    let value = |name: &str| {
        let settings = worker["settings"].as_array().unwrap();
        settings.iter().find(|setting| setting["name"] == name).unwrap()["value"].clone()
    };
    assert_eq!((value("balancers"), value("name")), (json!(["http://a"]), json!("7")));
    assert_eq!((value("weight"), value("records")), (json!(1), Value::Null));

    // ol up does as it was told.
    let up = place
        .command(&["up", "--detach", "--workers", "1"])
        .env("OPENLAMBDA_WORKERS", "4")
        .output()
        .unwrap();
    assert!(up.status.success(), "{:?}", texts(&up));
    let status = place.json(&["status", "--json"]);
    assert_eq!(
        (&status["policy"], status["workers"].as_array().unwrap().len()),
        (&json!("random"), 1)
    );
    place.ol(&["down"]);

    // So do its daemons, each setting of them; the environment does not overrule what it said.
    let records = place.data_dir().join("{name}.jsonl");
    let text = format!(
        "workers = 2\nlisten = \"127.0.0.1:0\"\n[balancer]\nretries = 3\n[worker]\n\
         keep_alive = \"ttl,seconds=7\"\nqueue_policy = \"sjf\"\nrecords = \"{}\"\n",
        records.display()
    );
    fs::write(&file, text).unwrap();
    let up = place
        .command(&["up", "--detach", "--running-limit", "3", "--worker-head-seconds", "9"])
        .args(["--policy", "round-robin"])
        .env("OPENLAMBDA_POLICY", "random")
        .output()
        .unwrap();
    assert!(up.status.success(), "{:?}", texts(&up));
    let told = place.data_dir().join("daemons.toml");
    let shown = |daemon: &str, name: &str| {
        let args = ["config", "show", daemon, "--json", "--config", told.to_str().unwrap()];
        let shown = place.json(&args);
        let settings = shown["settings"].as_array().unwrap().clone();
        settings.into_iter().find(|setting| setting["name"] == name).unwrap()["value"].clone()
    };
    for (daemon, name, value) in [
        ("worker", "keep_alive", json!("ttl,seconds=7")),
        ("worker", "queue_policy", json!("sjf")),
        ("worker", "running_limit", json!("3")),
        ("worker", "head_seconds", json!(9.0)),
        ("lb", "head_seconds", json!(75.0)),
        ("lb", "retries", json!(3)),
        ("lb", "seed", json!(0)),
    ] {
        assert_eq!(shown(daemon, name), value, "{daemon} {name}");
    }
    assert_eq!(place.json(&["status", "--json"])["policy"], "round-robin");
    let function = place.function("f", &[("f.py", &answering("1"))]);
    place.ol(&["deploy", function.to_str().unwrap()]);
    for _ in 0..4 {
        place.ol(&["invoke", "f"]);
    }
    place.ol(&["down"]);
    for worker in ["worker-1", "worker-2"] {
        let records = place.data_dir().join(format!("{worker}.jsonl"));
        assert!(fs::read_to_string(&records).unwrap().lines().count() >= 1, "{worker}");
    }
    for (flags, expected) in [
        (&["--records", "r"][..], "name {name} in --records"),
        (&["--drain-seconds", "41"], "set that to more than 41"),
        (&["--worker-drain-seconds", "36"], "set that to more than 41"),
        (&["--keep-alive", "lrv"], "did you mean \"lru\"?"),
        (&["--max-wait-seconds", "60"], "set that to more than 60"),
    ] {
        let message = place.refuses(&[&["up"], flags].concat());
        assert!(message.contains(expected), "{flags:?}: {message}");
    }

    let wrong = place.run(&["up", "--running-limit", "many"]);
    assert_eq!(wrong.status.code(), Some(2));
    let message = texts(&wrong).1;
    assert!(message.contains("write none, a number of calls (8)"), "{message}");

    // And refuses what it does not know, with the line.
    fs::write(&file, "seed = 1\nworker = 3\n").unwrap();
    for args in [&["up", "--detach"][..], &["config", "show"]] {
        let message = place.fails(args);
        let expected = "config.toml, line 2: unknown key \"worker\"; did you mean \"workers\"?";
        assert!(message.contains(expected), "{message}");
    }
    fs::write(&file, "workers = 0\n").unwrap();
    assert!(place.fails(&["up"]).contains("workers: 0 is out of range; use 1 to 1000"));
    fs::remove_file(&file).unwrap();
    assert!(place.fails(&["up", "--config", "/nonexistent.toml"]).contains("cannot read /nonexis"));
}

/// What bash offers after `line`, by the script that it would load.
fn completed_by_bash(place: &Place, line: &str) -> Vec<String> {
    let script = r#"
        source <(ol completions bash)
        read -ra COMP_WORDS <<<"$1"
        case $1 in *' ') COMP_WORDS+=('') ;; esac
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_TYPE=9
        _clap_complete_ol ol "${COMP_WORDS[COMP_CWORD]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let bin = Path::new(OL).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-c", script, "bash", line])
        .env("PATH", path)
        .env("OPENLAMBDA_DATA_DIR", place.data_dir())
        .output()
        .unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success() && err.is_empty(), "{line}: {err}");
    out.lines().map(|line| line.trim_end().to_owned()).collect()
}

#[test]
fn a_shell_completes_commands_functions_and_policies() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let place = &cluster.place;
    for name in ["alpha", "alpine", "beta"] {
        cluster.deploy(name, &[("f.py", &answering(name))]);
    }
    for command in ["invoke", "describe", "versions", "alias", "rollback", "logs", "rm"] {
        let offered = completed_by_bash(place, &format!("ol {command} alp"));
        assert_eq!(offered, ["alpha", "alpine"], "{command}");
    }
    assert_eq!(completed_by_bash(place, "ol rollb"), ["rollback"]);
    cluster.deploy("beta", &[("f.py", &answering("two"))]);
    for (alias, version) in [("live", "1"), ("last", "2"), ("test", "2")] {
        place.ol(&["alias", "beta", alias, version]);
    }
    for (line, expected) in [
        ("ol alias beta l", &["last", "live"][..]),
        ("ol alias beta live ", &["2", "1"]),
        ("ol rollback beta l", &["last", "live"]),
        ("ol rollback beta 1", &["1"]),
        ("ol invoke beta:l", &["beta:last", "beta:live"]),
        ("ol describe beta:2", &["beta:2"]),
    ] {
        let offered = completed_by_bash(place, line);
        let offered: Vec<&str> =
            offered.iter().map(String::as_str).filter(|it| !it.starts_with('-')).collect();
        assert_eq!(offered, expected, "{line}");
    }
    assert!(completed_by_bash(place, "ol up --policy round").contains(&"round-robin".to_owned()));
    assert!(
        completed_by_bash(place, "ol new x --template python-").concat().contains("python-http")
    );
    // Without a cluster there is nothing to offer, and no noise.
    place.ol(&["down"]);
    assert!(!completed_by_bash(place, "ol invoke alp").contains(&"alpha".to_owned()));
    for shell in ["zsh", "fish"] {
        assert!(place.ol(&["completions", shell]).contains("OPENLAMBDA_COMPLETE"));
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let place = Place::new();
    let out = place.function("", &[]).join("man");
    place.ol(&["man", "--out", out.to_str().unwrap()]);
    let help = place.ol(&["help"]);
    let commands = help.split("Commands:\n").nth(1).unwrap();
    let commands = commands.lines().take_while(|line| !line.is_empty());
    let mut pages = vec!["ol.1".to_owned(), "ol-worker.1".to_owned(), "ol-lb.1".to_owned()];
    pages.push("ol-registry.1".to_owned());
    for command in commands {
        let name = command.split_whitespace().next().unwrap();
        if name != "help" {
            pages.push(format!("ol-{name}.1"));
        }
    }
    assert!(pages.len() > 20);
    for page in pages {
        let text = fs::read_to_string(out.join(&page)).unwrap_or_else(|_| panic!("no {page}"));
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
    assert!(!out.join("ol-daemon.1").exists() && !out.join("ol-man.1").exists());
}

/// The commands of the README's path from an empty folder to a rollback, word for word.
#[test]
fn the_readme_s_path_for_a_newcomer_works() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md"));
    let readme = readme.unwrap();
    let path = readme.split("## From an empty folder to a rollback\n").nth(1).unwrap();
    let path = path.split("\n## ").next().unwrap();
    // Code is indented by four blanks; what a command prints stands behind its `# →`.
    let commands = path.lines().filter_map(|line| line.strip_prefix("    "));
    let cluster = Cluster::start(&["--workers", "1"]);
    let place = &cluster.place;
    let bin = Path::new(OL).parent().unwrap();
    let search = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let folder = place.function("", &[]);
    let mut run = 0;
    for line in commands {
        let (command, expected) = match line.split_once("# → ") {
            Some((command, expected)) => (command, Some(expected.trim())),
            None => (line, None),
        };
        // A cluster on a free port runs already.
        if command.starts_with("ol up") || command.starts_with("ol down") {
            continue;
        }
        // Lines come from a thread of the worker's.
        let waits = command.starts_with("ol logs");
        let done = wait_for(|| {
            let output = Command::new("sh")
                .args(["-euc", command])
                .current_dir(&folder)
                .env("PATH", &search)
                .env("OPENLAMBDA_DATA_DIR", place.data_dir())
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let (out, err) = texts(&output);
            let well = output.status.success() && expected.is_none_or(|text| out.contains(text));
            assert!(well || waits, "{command}: {expected:?}\n{out}{err}");
            well.then_some(())
        });
        assert!(done.is_some(), "{command}: {expected:?} did not come");
        run += 1;
    }
    assert!(run >= 9, "the README names {run} commands");
}

/// What a program prints to a terminal, which Python makes.
fn on_a_terminal(place: &Place, args: &[&str], variables: &[(&str, &str)]) -> String {
    let script = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)";
    let output = Command::new("python3")
        .args(["-c", script, OL])
        .args(args)
        .env("OPENLAMBDA_DATA_DIR", place.data_dir())
        .env("TERM", "xterm")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{args:?}: {out}{err}");
    out
}

#[test]
fn progress_is_for_terminals_only() {
    // Stopping waits for a call under way, which takes long enough for a line.
    let down_while_a_call_runs = |down: &dyn Fn(&Place) -> String| {
        let cluster = Cluster::start(&["--workers", "1"]);
        let place = &cluster.place;
        let code = "import time\n\ndef f(event):\n    print('begun')\n    time.sleep(3)\n";
        cluster.deploy("slow", &[("f.py", code)]);
        let follow = Following::start(place, &["logs", "slow", "-f"]);
        let mut call = place.command(&["invoke", "slow"]).stdout(Stdio::null()).spawn().unwrap();
        follow.until("begun");
        let shown = down(place);
        assert!(call.wait().unwrap().success());
        shown
    };
    let terminal = |variables: &[(&str, &str)]| {
        down_while_a_call_runs(&|place| on_a_terminal(place, &["down"], variables))
    };
    let shown = terminal(&[("NO_COLOR", "1")]);
    assert!(shown.contains("stopping; calls under way"), "{shown:?}");
    // The line is taken back before the result is printed, and nothing has a colour.
    assert!(shown.ends_with("\r\u{1b}[Kstopped\r\n"), "{shown:?}");
    assert!(!shown.contains("\u{1b}[3") && !shown.contains("\u{1b}[0m"), "{shown:?}");
    // Not on a terminal that cannot take a line back, and not into a pipe.
    assert_eq!(terminal(&[("TERM", "dumb")]), "stopped\r\n");
    let piped = down_while_a_call_runs(&|place| texts(&place.run(&["down"])).1);
    assert_eq!(piped, "stopped\n");
}

#[test]
fn doctor_says_what_each_thing_is_for() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let checks = cluster.place.json(&["doctor", "--json"]);
    for check in checks["checks"].as_array().unwrap() {
        assert!(!check["why"].as_str().unwrap().is_empty(), "{check}");
        assert_eq!(check["ok"] == false, check["next"].is_string(), "{check}");
    }
    let text = cluster.place.ol(&["doctor"]);
    for part in [
        "python: Python 3",
        "node: Node.js v",
        "curl: curl",
        "loopback",
        "the demo",
        "go on with `ol up",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Without the tools of a usual machine.
    let output = cluster.place.command(&["doctor"]).env("PATH", "/nonexistent").output().unwrap();
    let (out, _) = texts(&output);
    // The Python that runs functions is not the one of PATH.
    assert!(out.contains("python: Python 3") && out.contains("(/usr/bin/python3)"), "{out}");
    assert!(out.contains("note     curl") && out.contains("apt-get install curl"), "{out}");
}

/// Through `ol deploy` and the registry, which look at the files on either side.
#[tokio::test(flavor = "multi_thread")]
async fn handlers_are_found_by_what_files_define() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let place = &cluster.place;
    const PYTHON: &str = "def lambda_handler(event, context):\n    return [event]\n";
    const NODE: &str = "export const lambdaHandler = async (event) => [event];\n";
    for (name, file, text) in [("py", "app.py", PYTHON), ("js", "app.mjs", NODE)] {
        let folder = place.function(name, &[(file, text)]);
        place.ol(&["deploy", folder.to_str().unwrap()]);
        assert_eq!(place.ol(&["invoke", name, "-d", "1"]).trim().replace(' ', ""), "[1]");
    }
    let folder =
        place.function("both", &[("app.py", PYTHON), ("app.mjs", NODE), ("template.yaml", "")]);
    let told = place.fails(&["deploy", folder.to_str().unwrap()]);
    for word in
        ["app.lambda_handler in app.py", "app.lambdaHandler in app.mjs", "template.yaml of AWS SAM"]
    {
        assert!(told.contains(word), "{told}");
    }
    let big = format!("[environment]\nA = \"a\"\nBIG = \"{}\"\n", "x".repeat(200_000));
    for (manifest, words) in [
        (&*big, ["line 3", "64 KiB"]),
        ("[environment]\n_HANDLER = \"x\"\n", ["line 2", "\"_HANDLER\" cannot be set"]),
        ("[environment]\n\nA = \"\\u0000\"\n", ["line 3", "zero byte"]),
    ] {
        let folder = place.function("env", &[("f.py", "def f(event): 1"), ("ol.toml", manifest)]);
        let told = place.fails(&["deploy", folder.to_str().unwrap()]);
        assert!(words.iter().all(|word| told.contains(word)), "{told}");
    }
    let yaml = "triggers:\n  http: [method: POST]\n  kafka: [topics: [a]]\n";
    let folder =
        place.function("kafka", &[("f.py", "def f(event): return event"), ("ol.yaml", yaml)]);
    let deployed = place.run(&["deploy", folder.to_str().unwrap()]);
    let said = texts(&deployed).1;
    assert!(
        deployed.status.success() && said.contains("triggers.kafka is not served yet"),
        "{said}"
    );
    assert_eq!(place.ol(&["invoke", "kafka", "-d", "1"]).trim(), "1");
}
