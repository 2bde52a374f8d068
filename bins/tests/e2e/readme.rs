//! Every command of the README, as it stands there and in its order.
//!
//! They run by `sh` in a home of their own, in a copy of the repository's examples, where the cluster has the
//! folder that it has by default. It listens on a free port: `OPENLAMBDA_LISTEN` says so, and the port in
//! addresses is replaced. What takes a release build, an engine or several machines is not run here; what
//! becomes of each such line is in [`otherwise`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::common::{program, texts, wait_for};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The README's commands with the heading above each. Code is indented by four blanks; a line that ends in
/// `\` goes on.
fn commands() -> Vec<(String, String)> {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let (mut commands, mut heading, mut fenced) = (Vec::<(String, String)>::new(), "", false);
    for line in readme.lines() {
        fenced ^= line.starts_with("```");
        if let Some(text) = line.strip_prefix("## ") {
            heading = text;
        }
        let Some(code) = line.strip_prefix("    ").filter(|_| !fenced) else { continue };
        match commands.last_mut().filter(|(_, before)| before.ends_with('\\')) {
            Some((_, before)) => {
                before.pop();
                before.push_str(code.trim_start());
            }
            // A remark that goes on.
            None if code.trim_start().starts_with('#') => {}
            None => commands.push((heading.to_owned(), code.to_owned())),
        }
    }
    commands
}

/// A home, in which the README is followed.
struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    fn sh(&self, folder: &Path, script: &str) -> Output {
        let bin = program("ol").parent().unwrap().display().to_string();
        let path = format!("{bin}:{}", std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command.args(["-euc", script]).current_dir(folder).stdin(Stdio::null());
        command.env("HOME", self.folder.path()).env("PATH", path);
        command.env("OPENLAMBDA_LISTEN", "127.0.0.1:0");
        command.env_remove("XDG_STATE_HOME").env_remove("OPENLAMBDA_DATA_DIR");
        command.output().unwrap()
    }

    fn well(&self, folder: &Path, script: &str) -> String {
        let output = self.sh(folder, script);
        let (out, err) = texts(&output);
        assert!(output.status.success(), "{script}\n{out}{err}");
        out
    }

    /// The address of the cluster that runs.
    fn address(&self) -> String {
        let status: Value =
            serde_json::from_str(&self.well(self.folder.path(), "ol status --json")).unwrap();
        status["url"].as_str().unwrap().trim_start_matches("http://").to_owned()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = self.sh(self.folder.path(), "ol down");
    }
}

/// Says what is checked of a command that is not run, and checks it; `false`: it is to be run.
fn otherwise(home: &Home, command: &str) -> bool {
    let words: Vec<&str> = command.split(" # ").next().unwrap().split_whitespace().collect();
    match words.as_slice() {
        // `.ci/run` runs `make demo` and `make test`, `make dist-test` what `make dist` makes. That they are there:
        ["make", target, ..] => {
            let makefile = fs::read_to_string(repository().join("Makefile")).unwrap();
            assert!(makefile.contains(&format!("\n{target}:")), "{command}");
        }
        // A release build. That it installs `ol` and nothing else:
        ["cargo", "install", "--path", package] => {
            let installed = targets(package);
            let installed = installed.iter().filter(|target| {
                target["kind"][0] == "bin" && target["required-features"].is_null()
            });
            let names: Vec<&Value> = installed.map(|target| &target["name"]).collect();
            assert_eq!(names, ["ol"]);
        }
        // Release builds. That there is such a target; the tests of the examples hold the one to what it
        // promises, and `cargo clippy --all-targets` builds the other.
        ["cargo", "run", "--release", "-p", _, "--example", name, ..] => {
            assert!(targets("examples").iter().any(|target| target["name"] == *name), "{command}");
            let source = repository().join("examples/examples").join(format!("{name}.rs"));
            let policy = words.last().unwrap();
            assert!(fs::read_to_string(source).unwrap().contains(&format!("\"{policy}\"")));
        }
        ["cargo", "bench", "-p", _, "--bench", name] => {
            assert!(targets("benches").iter().any(|target| target["name"] == *name), "{command}");
        }
        // They need an engine, by which `openlambda-sandbox/tests/docker.rs` makes the image and runs in it.
        ["ol", "image", "build"] | ["ol", "up", "--sandbox", "docker", "--detach"] => {
            let known = ["ol image build --help", "ol up --sandbox docker --help"];
            known.iter().for_each(|known| drop(home.well(home.folder.path(), known)));
        }
        // Several machines: `bins/tests/e2e/identity.rs` has them. That the flags are known:
        [daemon @ ("ol-registry" | "ol-lb" | "ol-worker"), flags @ ..] => {
            let daemon = daemon.strip_prefix("ol-").unwrap();
            let show = format!("ol config show {daemon} -- {}", flags.join(" "));
            let shown = home.well(home.folder.path(), &show);
            assert!(shown.contains("secret_file = \"secret\""), "{shown}");
        }
        _ => return false,
    }
    true
}

/// The targets of the package in this folder.
fn targets(folder: &str) -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(repository().join(folder))
        .output()
        .unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{err}");
    let told: Value = serde_json::from_str(&out).unwrap();
    let manifest = repository().join(folder).canonicalize().unwrap().join("Cargo.toml");
    let packages = told["packages"].as_array().unwrap();
    let package =
        packages.iter().find(|it| Path::new(it["manifest_path"].as_str().unwrap()) == manifest);
    package.unwrap()["targets"].as_array().unwrap().clone()
}

#[test]
fn every_command_of_the_readme_works_as_it_stands_there() {
    let home = Home { folder: tempfile::tempdir().unwrap() };
    let folder = home.folder.path().to_owned();
    let copied =
        Command::new("cp").arg("-R").arg(repository().join("examples")).arg(&folder).status();
    assert!(copied.unwrap().success());
    let (mut run, mut together, mut last) = (0, Vec::<String>::new(), String::new());
    let commands = commands();
    for (n, (heading, command)) in commands.iter().enumerate() {
        if otherwise(&home, command) {
            continue;
        }
        run += 1;
        if last != *heading {
            // Each section can be followed by itself.
            home.well(&folder, "ol down 2>/dev/null");
            last.clone_from(heading);
        }
        match heading.as_str() {
            // Those at the top call what `make demo` has deployed, the second of three waits for the third.
            "OpenLambda in Rust" | "" => {
                together.push(command.clone());
                if together.len() < 3 {
                    continue;
                }
                home.well(&folder, "ol up --detach && ol deploy examples/functions/pychat");
                let port = home.address();
                let calls: Vec<String> =
                    together.drain(..).map(|call| call.replace("127.0.0.1:8080", &port)).collect();
                let script = format!(
                    "{}\n{} > update &\n{}\nwait\ncat update",
                    calls[0], calls[1], calls[2]
                );
                let said = home.well(&folder, &script);
                assert!(said.contains("hello"), "{said}");
            }
            // Its lines use what the ones before have set.
            "Operation over HTTP" => {
                together.push(command.clone());
                if commands.get(n + 1).is_some_and(|(next, _)| next == heading) {
                    continue;
                }
                home.well(&folder, "ol up --detach");
                let port = home.address();
                let script = std::mem::take(&mut together).join("\n");
                let said = home.well(&folder, &script.replace("127.0.0.1:8080", &port));
                assert!(said.contains("\"hello\"") && said.contains("\"version\""), "{said}");
            }
            _ => {
                // What a command prints stands behind its `# →`.
                let (line, expected) = match command.split_once("# → ") {
                    Some((line, expected)) => (line, expected.trim()),
                    None => (command.as_str(), ""),
                };
                // Fewer calls than by default: this build is slow.
                let more = if line.starts_with("ol sim") { " --invocations 1000" } else { "" };
                let code = line.split(" # ").next().unwrap();
                // Lines of functions come from a thread of the worker's.
                let waits = code.starts_with("ol logs");
                let done = wait_for(|| {
                    let output = home.sh(&folder, &format!("{code}{more}"));
                    let (out, err) = texts(&output);
                    let well = output.status.success() && out.contains(expected);
                    assert!(well || waits, "{command}\n{out}{err}");
                    well.then_some(())
                });
                assert!(done.is_some(), "{command}: {expected} did not come");
            }
        }
    }
    assert!(together.is_empty() && run >= 30, "{run} commands ran, {together:?} did not");
}
