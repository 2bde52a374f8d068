//! An engine of a test's own, on a socket of its own, with an image made of this machine's files.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "it is a module of several binaries")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Weak};
use std::time::Duration;

use openlambda_core::time::SystemClock;
use openlambda_sandbox::docker::{BASE_IMAGE, DockerConfig, DockerFactory, build_base_image};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// `dockerd`, ended by Drop, and by the end of the test's process.
pub struct Engine {
    daemon: Option<Child>,
    dir: TempDir,
}

/// Ends the daemon when its standard input does: when the test's process is gone, however.
const KEEPER: &str = r#"dockerd "$@" & read -r _; kill $!; wait"#;

impl Engine {
    /// Starts one without an image.
    pub async fn bare() -> Engine {
        let root = fs::read_to_string("/proc/self/status").unwrap();
        let root = root.lines().any(|line| line.split_whitespace().take(2).eq(["Uid:", "0"]));
        assert!(
            root,
            "these tests start an engine of their own, which takes root: sudo -E make test"
        );
        let mut engine = Engine { daemon: None, dir: tempfile::tempdir().unwrap() };
        let runtimes =
            r#"{"runtimes": {"runsc": {"path": "runsc", "runtimeArgs": ["--network=host"]}}}"#;
        fs::write(engine.dir.path().join("daemon.json"), runtimes).unwrap();
        engine.start().await;
        engine
    }

    /// One with the base image that the tests that run now share.
    pub async fn shared() -> Arc<Engine> {
        static SHARED: tokio::sync::Mutex<Weak<Engine>> =
            tokio::sync::Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(engine) = shared.upgrade() {
            return engine;
        }
        let engine = Arc::new(Engine::with_image().await);
        *shared = Arc::downgrade(&engine);
        engine
    }

    /// Starts one with the base image.
    pub async fn with_image() -> Engine {
        let engine = Engine::bare().await;
        let size = build_base_image(&engine.socket(), BASE_IMAGE, &[]).await.unwrap();
        assert!(size < 150 << 20, "the base image has grown to {size} bytes");
        engine
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    /// Starts it, again after [`kill`](Self::kill).
    pub async fn start(&mut self) {
        let dir = self.dir.path();
        let log = fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
        let path = |name: &str| dir.join(name).display().to_string();
        let daemon = Command::new("sh")
            .args(["-c", KEEPER, "sh"])
            .args(["--config-file", &path("daemon.json"), "--data-root", &path("data")])
            .args(["--exec-root", &path("exec"), "--pidfile", &path("pid")])
            .args(["--host", &format!("unix://{}", path("docker.sock"))])
            .args(["--bridge", "none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(daemon);
        for _ in 0..600 {
            if DockerFactory::connect(self.config(&dir.join("probe"), "probe")).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("dockerd does not answer; .ci/deps installs it:\n{}", self.log());
    }

    /// What it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Ends it as a crash would.
    pub async fn kill(&mut self) {
        let pid = |path: &str| {
            let pid = fs::read_to_string(self.dir.path().join(path)).unwrap();
            Pid::from_raw(pid.trim().parse().unwrap()).unwrap()
        };
        let file = "exec/containerd/containerd.pid";
        let containerd = pid(file);
        kill_process(pid("pid"), Signal::KILL).unwrap();
        // It dies with the daemon, but not at once; a new daemon would take it for its own.
        for _ in 0..1000 {
            // A zombie's line is empty.
            let line = fs::read(format!("/proc/{}/cmdline", containerd.as_raw_nonzero()));
            if line.unwrap_or_default().is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let _ = fs::remove_file(self.dir.path().join(file));
        self.stop();
    }

    fn stop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        drop(daemon.stdin.take());
        let _ = daemon.wait();
    }

    /// The engine leaves the mount of the network that containers shared with the machine.
    fn unmount(&self) {
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let mounts = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for mount in mounts.filter(|mount| Path::new(mount).starts_with(self.dir.path())) {
            let _ = Command::new("umount").args(["--lazy", mount]).status();
        }
    }

    pub fn config(&self, state: &Path, mark: &str) -> DockerConfig {
        let mut config = DockerConfig::new(state, mark, Arc::new(SystemClock::new()));
        config.socket = self.socket();
        config
    }

    /// What the engine's own client prints for these words, a line each.
    pub fn client(&self, words: &[&str]) -> Vec<String> {
        let host = format!("unix://{}", self.socket().display());
        let output = Command::new("docker").args(["--host", &host]).args(words).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().map(str::to_owned).collect()
    }

    /// The containers of this mark, running or not.
    pub fn containers(&self, mark: &str) -> Vec<String> {
        let label = format!("label=openlambda.worker={mark}");
        self.client(&["ps", "--all", "--quiet", "--filter", &label])
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            eprintln!(
                "the engine's last words:\n{}",
                lines[lines.len().saturating_sub(30)..].join("\n")
            );
        }
        self.stop();
        self.unmount();
    }
}
