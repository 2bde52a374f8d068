//! `runc run` of the same program without a Runtime API: it starts and ends by itself.

use std::path::{Path, PathBuf};

use super::error::{Context, LiveError, Result};

pub(super) async fn run(bundle: &Path, id: &str) -> Result<()> {
    let run = tokio::process::Command::new("runc")
        .arg("run")
        .arg("--bundle")
        .arg(bundle)
        .arg(id)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .output();
    let output = run.await.context(|| {
        "runc does not run; install it (apt-get install runc), or leave out --against runc"
            .to_owned()
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(LiveError::new(format!("runc failed: {}", said.trim())));
    }
    Ok(())
}

/// A bundle for `runc`: the same isolation (its own namespaces except for users, no capabilities, its limits),
/// a root with nothing but the program, or the machine's own /usr for Python.
pub(super) fn bundle(folder: &Path, code: &Path, kind: &str) -> Result<PathBuf> {
    let bundle = folder.join("runc");
    let args: &[&str] = match kind {
        "python" => &["/usr/bin/python3", "-S", "-s", "-B", "-c", "0"],
        // It ends at once when there is no Runtime API.
        _ => &["/var/task/bootstrap"],
    };
    let mount = |destination: &str, source: &Path| {
        serde_json::json!({
            "destination": destination, "type": "bind", "source": source,
            "options": ["bind", "ro", "nosuid", "nodev"],
        })
    };
    let mut mounts = vec![
        serde_json::json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
        serde_json::json!({
            "destination": "/tmp", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "nodev", "size=64m"],
        }),
        serde_json::json!({
            "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "mode=755", "size=64k"],
        }),
        mount("/var/task", code),
    ];
    for place in ["/usr", "/lib", "/lib64", "/bin"] {
        if kind == "python" {
            mounts.push(mount(place, Path::new(place)));
        }
    }
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"]
        .map(|kind| serde_json::json!({ "type": kind }));
    let config = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 1000, "gid": 1000 },
            "args": args,
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "capabilities": {},
            "noNewPrivileges": true,
        },
        "root": { "path": "root", "readonly": true },
        "mounts": mounts,
        "linux": {
            "namespaces": namespaces,
            "resources": { "memory": { "limit": 128 << 20 }, "pids": { "limit": 64 } },
        },
    });
    let write = || {
        for place in [
            "root/proc",
            "root/dev",
            "root/tmp",
            "root/var/task",
            "root/usr",
            "root/lib",
            "root/lib64",
            "root/bin",
        ] {
            std::fs::create_dir_all(bundle.join(place))?;
        }
        std::fs::write(bundle.join("config.json"), config.to_string())
    };
    write().context(|| "cannot write a bundle for runc".to_owned())?;
    Ok(bundle)
}
