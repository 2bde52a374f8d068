//! A worker that dies without a word, as by kill −9, leaves nothing that the next one does not
//! find: its children die with it, and `reclaim` removes the rest.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use openlambda_core::conformance::times;
use openlambda_core::sandbox::SandboxFactory;
use openlambda_sandbox::process::ProcessFactory;
use openlambda_sandbox::sys::{Signal, Spawner, processes_with_mark};

use common::{Setup, call, config, eventually, setup, start_worker};

/// The folder that a worker of this test works in. The test runs itself as that worker.
const FOLDER: &str = "OPENLAMBDA_DEATH_TEST";

/// A child that stays in the instance's process group, and a grandchild that leaves it.
const PYTHON: &str = r#"
import os, subprocess
subprocess.Popen(["sleep", "1001"])
subprocess.Popen(["setsid", "--fork", "sleep", "1002"]).wait()
def f(event):
    with open(os.environ["HOME"] + "/file", "w") as file: file.write("x")
    with open(os.environ["OPENLAMBDA_VOLUME_V"] + "/kept", "w") as file: file.write("x")
    return event
"#;

const MANIFEST: &str = "[[volumes]]\nname = \"v\"\npath = \"/v\"";

/// The same before it says a word.
const SILENT: &str = "#!/bin/sh\nsetsid --fork sleep 1002\nsleep 1001 &\nexec sleep 1003\n";

/// Makes instances until it is killed.
async fn work(folder: &Path) {
    let setup = own_setup(folder);
    setup.factory.reclaim().await;
    let spec = setup.spec(&[("f.py", PYTHON), ("ol.toml", MANIFEST)]);
    let mut silent = setup.spec(&[("bootstrap", SILENT)]);
    silent.init_timeout = Duration::from_secs(1000);
    let mut kept = Vec::new();
    for round in 0.. {
        let silent = setup.factory.create(silent.clone());
        let silent = tokio::time::timeout(Duration::from_millis(5 * round), silent);
        let ready = join_all((0..2).map(|_| setup.create(spec.clone())));
        let (_, ready) = tokio::join!(silent, ready);
        for sandbox in ready {
            assert_eq!(call(&*sandbox, "1").await.unwrap(), "1");
            if round % 3 == 0 {
                sandbox.destroy().await;
            } else {
                kept.push(sandbox);
            }
        }
        if round == 1 {
            fs::write(folder.join("ready"), "").unwrap();
        }
        if kept.len() > 6 {
            kept.clear();
        }
    }
}

fn own_setup(folder: &Path) -> Setup {
    let Setup { dir, lines, .. } = setup();
    // The same in every worker of this folder.
    let mark = format!("death/{}", folder.file_name().unwrap().to_string_lossy());
    let mut config = config(dir.path(), &mark);
    config.state_dir = folder.join("state");
    config.volumes_dir = folder.join("state/volumes");
    let factory = ProcessFactory::new(config).unwrap().into();
    Setup { dir, mark, factory, lines }
}

/// The command lines of everything that carries the mark.
fn commands(mark: &str) -> Vec<String> {
    let line = |pid: &openlambda_sandbox::sys::Pid| {
        let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    };
    // What ends while we look has no line.
    let found = processes_with_mark(mark);
    found.iter().filter_map(line).filter(|line| !line.is_empty()).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_killed_leaves_nothing_behind_the_next_one() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return work(Path::new(&folder)).await;
    }
    let spawner = Spawner::start().unwrap();
    let mut escaped = 0;
    // Moments all over the first rounds of a worker, and then one with everything there.
    for round in 0..30 * times() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(format!("{}-{round}", std::process::id()));
        fs::create_dir_all(folder.join("tmp")).unwrap();
        let test = "a_worker_that_is_killed_leaves_nothing_behind_the_next_one";
        let tmp = folder.join("tmp");
        let worker = start_worker(&spawner, test, FOLDER, &folder, Some(&tmp)).await;
        let complete = round % 5 == 4;
        if complete {
            eventually("instances run", || async { folder.join("ready").exists() }).await;
        } else {
            let state = folder.join("state/runtimes");
            eventually("it begins", || async { state.exists() }).await;
            tokio::time::sleep(Duration::from_micros(7_919 * round % 120_000)).await;
        }
        assert_eq!(worker.status(), None, "the worker ended by itself");
        worker.signal(Signal::KILL);
        worker.wait().await;

        let mark = format!("death/{}", folder.file_name().unwrap().to_string_lossy());
        if round % 2 == 0 {
            // Children die by themselves; only their own children outlive them.
            eventually("its children are dead", || async {
                let left = commands(&mark);
                left.iter().all(|line| ["sleep 1001 ", "sleep 1002 "].contains(&&**line))
            })
            .await;
        }
        if complete {
            let left = commands(&mark).iter().filter(|line| *line == "sleep 1002 ").count();
            assert!(left > 0, "there is something to reclaim");
        }
        let setup = own_setup(&folder);
        let report = setup.factory.reclaim().await;
        assert_eq!(report.failed, [""; 0]);
        if complete {
            assert!(report.processes > 0 && !report.removed.is_empty(), "{report:?}");
        }
        escaped += report.processes;
        assert_eq!(processes_with_mark(&mark), []);
        let state = folder.join("state");
        let kept = [
            "runtimes",
            "runtimes/node",
            "runtimes/node/bootstrap.cjs",
            "runtimes/python",
            "runtimes/python/aws.py",
            "runtimes/python/bootstrap.py",
            "runtimes/python/compile.py",
            "runtimes/python/web.py",
            "runtimes/python/websocket.py",
            "sandboxes",
            "volumes",
            "volumes/default",
            "volumes/default/tested",
            "volumes/default/tested/v",
            "volumes/default/tested/v/kept",
        ];
        let kept: Vec<_> = kept.iter().map(|name| state.join(name)).collect();
        for file in files(&state) {
            assert!(kept.contains(&file), "{} is left", file.display());
        }
        assert_eq!(setup.factory.reclaim().await, Default::default(), "a second time");

        // And the next worker works.
        let sandbox = setup.create(setup.spec(&[("f.py", PYTHON), ("ol.toml", MANIFEST)])).await;
        assert_eq!(call(&*sandbox, "2").await.unwrap(), "2");
        setup.factory.shutdown().await;
        assert_eq!(processes_with_mark(&mark), []);
        assert_eq!(fs::read_dir(state.join("sandboxes")).unwrap().count(), 0);
        assert!(state.join("volumes/default/tested/v/kept").exists());
    }
    assert!(escaped > 10, "most rounds have grandchildren to find: {escaped}");
}
