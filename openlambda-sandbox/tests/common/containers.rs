//! What the tests of lean containers share.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "it is a module of several binaries")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openlambda_core::sandbox::{Sandbox, SandboxError, SandboxFactory, SandboxSpec};
use openlambda_core::time::SystemClock;
use openlambda_sandbox::sock::{SockConfig, SockFactory};
use openlambda_sandbox::sys::{Spawner, processes_with_mark};
use serde_json::Value;

use crate::common::{Setup, call, files_below, setup};

/// A factory with its state in a temporary folder.
pub struct Containers {
    pub setup: Setup,
    pub factory: Arc<SockFactory>,
}

pub fn config(setup: &Setup) -> SockConfig {
    let clock = Arc::new(SystemClock::new());
    let state = setup.dir.path().join("sock");
    SockConfig::new(state, &setup.mark, Spawner::start().unwrap(), clock)
}

pub fn containers() -> Containers {
    containers_with(|_| {})
}

pub fn containers_with(change: impl FnOnce(&mut SockConfig)) -> Containers {
    let setup = setup();
    let mut config = config(&setup);
    change(&mut config);
    Containers { factory: Arc::new(SockFactory::new(config).unwrap()), setup }
}

impl Containers {
    pub fn spec(&self, files: &[(&str, &str)]) -> SandboxSpec {
        self.setup.spec(files)
    }

    /// The spec of another function than all others have.
    pub fn spec_named(&self, name: &str, files: &[(&str, &str)]) -> SandboxSpec {
        let mut spec = self.setup.spec(files);
        spec.function = name.parse().unwrap();
        spec
    }

    pub async fn create(&self, spec: SandboxSpec) -> Arc<dyn Sandbox> {
        self.try_create(spec).await.unwrap_or_else(|error| {
            let said = self.setup.lines.texts();
            panic!("{}\n{said:?}", openlambda_core::failure::chain(&error))
        })
    }

    pub async fn try_create(&self, spec: SandboxSpec) -> Result<Arc<dyn Sandbox>, SandboxError> {
        self.factory.create(spec).await.map(|created| created.sandbox)
    }

    /// What a `bootstrap` prints that ends before it asks for an event.
    pub async fn printed(&self, script: &str, manifest: &str) -> Vec<String> {
        let before = self.setup.lines.texts().len();
        let spec = self.spec(&[("bootstrap", script), ("ol.toml", manifest)]);
        self.try_create(spec).await.unwrap_err();
        self.setup.lines.texts().split_off(before)
    }
}

pub async fn ask(sandbox: &dyn Sandbox, event: Value) -> Value {
    let reply = call(sandbox, &event.to_string()).await;
    serde_json::from_str(&reply.unwrap_or_else(|e| panic!("{event}: {e} {e:?}"))).unwrap()
}

/// Runs this test in a process of its own, beside which no other test runs. Whether we are there.
pub fn alone(test: &str) -> bool {
    alone_in(test, &[])
}

/// The same by way of a program that is to run it.
pub fn alone_in(test: &str, by: &[&str]) -> bool {
    const ALONE: &str = "OPENLAMBDA_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let own = std::env::current_exe().unwrap();
    let words = by.iter().map(|word| OsString::from(*word)).chain([own.into()]);
    let words: Vec<OsString> = words.chain(["--exact", test].map(OsString::from)).collect();
    let output =
        std::process::Command::new(&words[0]).args(&words[1..]).env(ALONE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    false
}

/// The cgroups of factories with this mark, in all hierarchies, and those below them.
pub fn cgroups(mark: &str) -> Vec<PathBuf> {
    let name = format!("openlambda-{}", mark.replace('/', ":"));
    let mut found = Vec::new();
    let mut folders = vec![(PathBuf::from("/sys/fs/cgroup"), false)];
    while let Some((folder, is_its)) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let is_its = is_its || entry.file_name() == *name;
            if is_its {
                found.push(entry.path());
            }
            folders.push((entry.path(), is_its));
        }
    }
    found.sort();
    found
}

/// What of sandboxes is on the machine, counted by kind, beside this process's own descriptors and
/// threads.
pub fn inventory(setup: &Setup) -> BTreeMap<String, usize> {
    let own = processes_with_mark(&setup.mark);
    let own: Vec<String> = own.iter().map(|pid| pid.as_raw_nonzero().to_string()).collect();
    let with_us: Vec<&str> = own.iter().map(String::as_str).chain(["self"]).collect();
    let count = |path: String| fs::read_dir(path).map_or(0, Iterator::count);
    // Of ours: the machine's own come and go.
    let folder = setup.dir.path().display().to_string();
    let mounts = |pid: &&str| {
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        mounts.lines().filter(|line| line.contains(&folder)).count()
    };
    let mut namespaces = BTreeSet::new();
    for pid in &with_us {
        for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
            namespaces.insert(fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok());
        }
    }
    let counts = [
        ("mounts", with_us.iter().map(mounts).sum()),
        ("cgroups", cgroups(&setup.mark).len()),
        ("namespaces", namespaces.len()),
        ("processes", own.len()),
        ("their descriptors", own.iter().map(|pid| count(format!("/proc/{pid}/fd"))).sum()),
        ("files", files_below(&setup.dir.path().join("sock"))),
    ];
    counts.map(|(name, count)| (name.to_owned(), count)).into()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Copies a program that is to be run, by a process of its own: a child that another test starts
/// meanwhile would hold our descriptor, and what is open for writing cannot be executed (ETXTBSY).
pub fn copy_program(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(copied.success(), "cp {} {}", from.display(), to.display());
}

/// Says where the ordinary user of [`again_as_an_ordinary_user`] has a folder outside of `/tmp`.
const ELSEWHERE: &str = "OPENLAMBDA_TEST_ELSEWHERE";

/// A folder that is not below `/tmp`, which sandboxes have for themselves.
pub fn elsewhere() -> tempfile::TempDir {
    let place = std::env::var_os(ELSEWHERE).or_else(|| match is_root() {
        true => Some("/srv".into()),
        false => std::env::var_os("HOME"),
    });
    tempfile::tempdir_in(place.unwrap()).unwrap()
}

/// Runs all tests of this binary again as an ordinary user, but for the one that asks for it.
pub fn again_as_an_ordinary_user(but: &str) {
    if !is_root() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (program, tmp) = (place.path().join("test"), place.path().join("tmp"));
    copy_program(&std::env::current_exe().unwrap(), &program);
    fs::create_dir(&tmp).unwrap();
    let elsewhere = elsewhere();
    for folder in [&*tmp, elsewhere.path()] {
        std::os::unix::fs::chown(folder, Some(65534), Some(65534)).unwrap();
    }
    let output = std::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"])
        .arg(&program)
        .args(["--skip", but])
        .env("TMPDIR", &tmp)
        .env(ELSEWHERE, elsewhere.path())
        .current_dir("/")
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "as an ordinary user: {out}\n{err}");
    let left: Vec<_> = fs::read_dir(&tmp).unwrap().map(|left| left.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?} is left");
}
