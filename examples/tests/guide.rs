//! docs/writing-a-policy.md does what it says: its files are written and its commands run, in order.
//!
//! The crate is made in a temporary folder, against this working tree. It shares the workspace's
//! target folder and is built without optimisation, so that what is built already is used again:
//! `--release` and the bench's profile are the only things that differ from what the guide says.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const GUIDE: &str = include_str!("../../docs/writing-a-policy.md");

/// A block of code in the guide: its language, the file that it is (none for commands; with `>>`
/// before it, the text goes to the file's end), its text.
struct Block {
    language: &'static str,
    file: Option<&'static str>,
    text: &'static str,
}

fn blocks() -> Vec<Block> {
    // Every second part between fences is inside.
    GUIDE
        .split("\n```")
        .skip(1)
        .step_by(2)
        .map(|block| {
            let (head, text) = block.split_once('\n').unwrap();
            let mut words = head.split_whitespace();
            Block { language: words.next().unwrap(), file: words.next(), text }
        })
        .collect()
}

/// The crate's folder, and what ends its cluster whatever happens.
struct Place {
    folder: tempfile::TempDir,
    workspace: PathBuf,
}

impl Place {
    fn new() -> Self {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
        let folder = tempfile::tempdir().unwrap();
        // The versions that are at hand: nothing is fetched.
        fs::copy(workspace.join("Cargo.lock"), folder.path().join("Cargo.lock")).unwrap();
        // As in the workspace's profile, or all would be built again.
        let profile =
            "profile.dev.debug = 'line-tables-only'\nprofile.dev.package.'*'.debug = false\n";
        fs::create_dir(folder.path().join(".cargo")).unwrap();
        fs::write(folder.path().join(".cargo/config.toml"), profile).unwrap();
        Place { folder, workspace }
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.folder.path().join(file.trim_start_matches(">>"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = text.replace("../openlambda/", &format!("{}/", self.workspace.display())) + "\n";
        let before = match file.starts_with(">>") {
            true => fs::read_to_string(&path).unwrap() + "\n",
            false => String::new(),
        };
        fs::write(path, before + &text).unwrap();
    }

    fn command(&self, line: &str) -> Command {
        let line =
            line.replace(" --release", "").replace("cargo bench", "cargo bench --profile dev");
        let mut command = Command::new("sh");
        command
            .args(["-c", &line])
            .current_dir(self.folder.path())
            .env("CARGO_TARGET_DIR", self.target())
            .env("CARGO_NET_OFFLINE", "true")
            .env("OPENLAMBDA_DATA_DIR", self.folder.path().join("cluster"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, line: &str) -> String {
        // Files, not pipes: a cluster that goes on in the background would keep pipes open.
        let log = |name: &str| self.folder.path().join(name);
        let open = |name: &str| fs::File::create(log(name)).unwrap();
        let status =
            self.command(line).stdout(open("stdout")).stderr(open("stderr")).status().unwrap();
        let read = |name: &str| fs::read_to_string(log(name)).unwrap();
        let stdout = read("stdout");
        assert!(status.success(), "{line}: {status}\n{stdout}\n{}", read("stderr"));
        stdout
    }

    /// This test's own executable is in the target folder's `debug/deps`.
    fn target(&self) -> PathBuf {
        let executable = std::env::current_exe().unwrap();
        executable.ancestors().nth(3).unwrap().to_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self
            .command("target=$CARGO_TARGET_DIR/debug/warm-of-two; [ ! -x $target ] || $target down")
            .output();
    }
}

#[test]
fn the_guide_to_writing_a_policy_works() {
    let place = Place::new();
    let (mut files, mut outputs) = (Vec::new(), Vec::new());
    for Block { language, file, text } in blocks() {
        match (language, file) {
            (_, Some(file)) => {
                place.write(file, text);
                files.push(file);
            }
            ("sh", None) => {
                for line in text.lines() {
                    outputs.push((line, place.run(line)));
                }
            }
            ("text", None) => {}
            other => panic!("what is this block? {other:?}"),
        }
    }
    assert_eq!(files.len(), 7, "{files:?}");
    let of = |part: &str| {
        let found: Vec<_> = outputs.iter().filter(|(line, _)| line.contains(part)).collect();
        assert_eq!(found.len(), 1, "{part}");
        &*found[0].1
    };
    assert!(of("cargo test").contains("the_policy_honours_the_contract ... ok"));
    assert!(of("cargo bench").contains("decision/warm-of-two"), "{}", of("cargo bench"));
    let chart = of("--example chart");
    assert!(GUIDE.contains(chart), "the guide shows another chart than this one:\n{chart}");
    assert_eq!(chart.lines().count(), 8);
    assert!(of("-- policies").contains("warm-of-two"));
    assert!(of("-- sim").contains("warm-of-two"));
    assert!(of("-- invoke").contains("you"), "{}", of("-- invoke"));
}
