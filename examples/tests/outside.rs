//! examples/outside is what its README says: its tests pass, a call goes through its live cluster, and
//! the simulator runs its policies.
//!
//! It is built in the workspace's target folder, with the versions and the profile of the workspace,
//! so that most of what it depends on is there already. Nothing is fetched.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn a_crate_outside_of_the_workspace_works() {
    let tested = cargo("test");
    let passed = tested.lines().filter(|line| line.starts_with("test ") && line.ends_with("ok"));
    assert_eq!(passed.count(), 4, "{tested}");

    let ran = cargo("run");
    assert!(ran.contains(r#"{"op": "greet"} → Hello from outside!"#), "{ran}");
    assert!(ran.contains(r#"{"op": "unknown"} → {"op": "unknown"}"#), "{ran}");
    let rows = ran.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, 6, "{ran}");
}

/// What a command of cargo prints there.
fn cargo(command: &str) -> String {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR"));
    let outside = examples.join("outside");
    fs::copy(examples.join("../Cargo.lock"), outside.join("Cargo.lock")).unwrap();
    let output = Command::new(env!("CARGO"))
        .args([command, "--offline"])
        // As in the workspace's profile, or all would be built again.
        .args(["--config", "profile.dev.debug = 'line-tables-only'"])
        .args(["--config", "profile.dev.package.'*'.debug = false"])
        .current_dir(outside)
        .env("CARGO_TARGET_DIR", target())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "cargo {command}: {}\n{stdout}\n{stderr}", output.status);
    stdout
}

/// This test's own executable is in the target folder's `debug/deps`.
fn target() -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    executable.ancestors().nth(3).unwrap().to_owned()
}
