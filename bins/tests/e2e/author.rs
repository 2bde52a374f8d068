//! The way of one who writes functions: from a template to a rollback.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::common::{Cluster, Place, texts};

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
        if template == "python-http" {
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
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
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
