//! What `ol deploy` takes of a folder, what it leaves out, and what it says of slips before any call finds them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{Cluster, Place, from_a_terminal, kill, texts, wait_for};

const LISTS: &str = "import os\ndef f(event):\n    return sorted(os.listdir('.'))\n";

/// What it said, and whether it has deployed.
fn deploy(place: &Place, folder: &std::path::Path) -> (bool, String) {
    let output = place.run(&["deploy", folder.to_str().unwrap()]);
    (output.status.success(), texts(&output).1)
}

#[test]
fn what_belongs_to_the_author_s_machine_stays_there() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let place = &cluster.place;
    let files = [
        ("f.py", LISTS),
        (".env", "KEY=1"),
        ("notes.txt", "mine"),
        ("data/a.bin", ""),
        (".olignore", "# mine\n*.txt\n!data\n"),
    ];
    fs::create_dir_all(place.function("mess", &[]).join("data")).unwrap();
    let folder = place.function("mess", &files);
    let environment = folder.join(".venv");
    let made =
        Command::new("python3").args(["-m", "venv", "--without-pip"]).arg(environment).status();
    assert!(made.unwrap().success());
    let args = ["deploy", folder.to_str().unwrap(), "--dry-run", "--json"];
    let listed = place.json(&args);
    assert_eq!(listed["files"], json!(["data/a.bin", "f.py"]));
    assert_eq!(listed["left_out"], json!([".env", ".venv/", "notes.txt"]));
    let listed = place.run(&args[..3]);
    let (out, err) = texts(&listed);
    assert_eq!(out, "  data/a.bin\n  f.py\n- .env\n- .venv/\n- notes.txt\n");
    assert!(
        err.contains("2 files; 3 are left out") && err.contains("nothing is deployed"),
        "{err}"
    );
    assert_eq!(place.json(&["ls", "--json"])["functions"], json!([]));

    let (done, said) = deploy(place, &folder);
    assert!(
        done && said.contains("left out: .env and 2 more; `ol deploy --dry-run` lists"),
        "{said}"
    );
    assert_eq!(place.json(&["invoke", "mess"]), json!(["data", "f.py"]));
    // A folder of which nothing is left out needs no word of it.
    let (done, said) = deploy(place, &place.function("plain", &[("f.py", LISTS)]));
    assert!(done && !said.contains("left out") && !said.contains("warning"), "{said}");
}

#[test]
fn slips_are_told_at_deploy_or_done_right() {
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", "process"]);
    let place = &cluster.place;
    let bad = "def f(:\n";
    let lambda = "module.exports.go = async () => 1;\n";
    for (name, files, done, told) in [
        (
            "needs",
            &[("f.py", LISTS), ("requirements.txt", "flask\n")][..],
            true,
            &["requirements.txt names flask", "pip install -r"][..],
        ),
        (
            "node",
            &[
                ("index.js", lambda),
                ("ol.toml", "handler = \"index.go\""),
                ("package.json", r#"{"dependencies": {"left-pad": "1"}}"#),
            ],
            true,
            &["package.json names left-pad", "npm install"],
        ),
        // Nothing imports it: another Python may.
        ("spare", &[("f.py", LISTS), ("old.py", bad)], true, &["warning: old.py, line 1"]),
        (
            "used",
            &[("f.py", "import old\ndef f(e): pass\n"), ("old.py", bad)],
            false,
            &["old.py, line 1", "correct it"],
        ),
        (
            "far",
            &[
                ("f.py", "def f(e):\n    from lib.deep import x\n"),
                ("lib/__init__.py", ""),
                ("lib/deep.py", "from . import old\n"),
                ("lib/old.py", bad),
            ],
            false,
            &["lib/old.py, line 1"],
        ),
        (
            "named",
            &[
                ("f.py", "import importlib\ndef f(e): importlib.import_module('old')\n"),
                ("old.py", bad),
            ],
            true,
            &["warning: old.py, line 1"],
        ),
        (
            "other",
            &[
                (
                    "f.py",
                    "import sys\nif sys.version_info[0] < 3:\n    import old\ndef f(e): return 1\n",
                ),
                ("old.py", bad),
            ],
            true,
            &["warning: old.py, line 1"],
        ),
        (
            "nameless",
            &[("f.py", "def g(e): pass\n")],
            true,
            &["f.py does not define \"f\"", "handler = \"f.f\""],
        ),
        (
            "imported",
            &[("f.py", "from lib import f\n"), ("lib/__init__.py", "def f(e): return 1\n")],
            true,
            &["is deployed"],
        ),
        ("made", &[("f.py", "globals()['f'] = lambda e: 1\n")], true, &["is deployed"]),
        (
            "absent",
            &[("f.py", LISTS), ("ol.toml", "runtime = \"python\"\nhandler = \"g.f\"")],
            true,
            &["there is no g.py in the folder", "handler = \"g.f\""],
        ),
        ("exports", &[("index.js", lambda)], true, &["index.js does not export \"handler\""]),
        (
            "nobody",
            &[("f.py", LISTS), ("ol.toml", "methods = []")],
            false,
            &["methods = [] lets nobody call it"],
        ),
    ] {
        for folder in files.iter().filter_map(|(file, _)| file.rsplit_once('/')) {
            fs::create_dir_all(place.function(name, &[]).join(folder.0)).unwrap();
        }
        let (is_done, said) = deploy(place, &place.function(name, files));
        assert_eq!(is_done, done, "{name}: {said}");
        for part in told {
            assert!(said.contains(part), "{name}: {part:?} is not in {said}");
        }
        assert_eq!(
            said.contains("warning"),
            done && !told[0].contains("is deployed"),
            "{name}: {said}"
        );
    }
    // Without its bit a program cannot be run.
    let folder = place.function("script", &[]);
    fs::write(folder.join("bootstrap"), "#!/bin/sh\n").unwrap();
    let (done, said) = deploy(place, &folder);
    assert!(!done && said.contains("is not executable; run chmod +x"), "{said}");
    // A file is no folder; a link has its own name.
    let folder = place.function("plain", &[("f.py", LISTS)]);
    let (done, said) = deploy(place, &folder.join("f.py"));
    assert!(!done && said.contains("is a file; name the folder"), "{said}");
    let link = folder.with_file_name("by-another-name");
    symlink(&folder, &link).unwrap();
    let (done, said) = deploy(place, &link);
    assert!(done && said.contains("by-another-name version 1"), "{said}");
}

/// `ol deploy`, interrupted after so long.
fn interrupted(place: &Place, folder: &str, after: Duration) -> Output {
    let mut command = from_a_terminal(&place.command(&["deploy", folder]));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(after);
    kill(child.id() as i32, rustix::process::Signal::INT);
    child.wait_with_output().unwrap()
}

#[test]
fn an_interrupted_deployment_publishes_nothing_or_says_that_it_did() {
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", "process"]);
    let place = &cluster.place;
    let folder = place.function("large", &[("f.py", LISTS)]);
    let mut noise = 1_u64;
    let bytes = (0..40 << 20).map(|_| {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (noise >> 56) as u8
    });
    fs::write(folder.join("data.bin"), bytes.collect::<Vec<u8>>()).unwrap();
    let path = folder.to_str().unwrap();
    let versions = || -> u64 {
        let output = place.run(&["versions", "large", "--json"]);
        let listed: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        listed["versions"].as_array().map_or(0, Vec::len) as u64
    };
    let mut outcomes = [0; 2];
    for round in 0..24_u64 {
        fs::write(folder.join("round.txt"), round.to_string()).unwrap();
        let before = versions();
        let output = interrupted(place, path, Duration::from_millis(round * 60));
        let said = texts(&output).1;
        let published = said.contains(&format!("large version {} is deployed", before + 1));
        assert!(!said.contains("has not said"), "{said}");
        assert_eq!(output.status.success(), published, "{round}: {said}");
        assert_eq!(versions(), before + u64::from(published), "{round}: {said}");
        outcomes[usize::from(published)] += 1;
    }
    assert!(outcomes[0] > 0, "none was interrupted in time");
}

#[test]
fn a_deployment_that_is_published_says_so_whatever_is_pressed() {
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", "process"]);
    let balancer = cluster.status()["balancer_pid"].as_i64().unwrap() as i32;
    for (version, presses) in [(1, 1), (2, 2)] {
        let text = format!("{LISTS}\n# {version}\n");
        let folder = cluster.place.function("said", &[("f.py", &text)]);
        // The registry takes it, and the balancer does not answer.
        kill(balancer, rustix::process::Signal::STOP);
        let deploy = cluster.place.command(&["deploy", folder.to_str().unwrap()]);
        let mut deploy = from_a_terminal(&deploy);
        let deploy = deploy.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = deploy.spawn().unwrap();
        let published = wait_for(|| {
            let output = cluster.place.run(&["versions", "said", "--json"]);
            let listed: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            (listed["versions"].as_array()?.len() == version).then_some(())
        });
        assert!(published.is_some(), "version {version} is not published");
        let mut said = BufReader::new(child.stderr.take().unwrap());
        for press in 1..=presses {
            kill(child.id() as i32, rustix::process::Signal::INT);
            let told =
                if press == 1 { "said is published: telling" } else { "interrupted; said is" };
            let mut line = String::new();
            while !line.contains(told) {
                line.clear();
                assert!(said.read_line(&mut line).unwrap() > 0, "it did not say {told}");
            }
        }
        kill(balancer, rustix::process::Signal::CONT);
        let status = child.wait().unwrap();
        assert_eq!(status.success(), presses == 1, "{status}");
    }
}

#[test]
fn ctrl_c_ends_one_who_watches() {
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", "process"]);
    let folder = cluster.place.function("watched", &[("f.py", LISTS)]);
    let watch = cluster.place.command(&["deploy", "--watch", folder.to_str().unwrap()]);
    let mut watch = from_a_terminal(&watch);
    let mut child = watch.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut url = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut url).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    kill(child.id() as i32, rustix::process::Signal::INT);
    let ended = wait_for(|| child.try_wait().unwrap()).expect("Ctrl-C ends it");
    assert!([Some(0), Some(130)].contains(&ended.code()), "{ended}");
}
