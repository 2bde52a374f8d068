//! Which Pythons a machine has, and what functions see of them.
//!
//! One Python checks a function's syntax when it is deployed, is reported by `ol doctor`, and runs the function: the
//! one that is set, or the [usual](find_python) one; or, where a manifest says `runtime = "python3.13"`, the one
//! of that version that [`Pythons`] finds.
//!
//! A function has Python's standard library, its own packages, and those that the operator gives to all. What
//! else is installed on a machine is for the machine's own programs, and differs from one to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
#[cfg(any(feature = "process", feature = "sock"))]
use std::sync::Arc;

#[cfg(any(feature = "process", feature = "sock"))]
use openlambda_core::{
    sandbox::SandboxError,
    time::{Clock, Duration, Time},
};

#[cfg(any(feature = "process", feature = "sock"))]
use crate::errors::{shutting_down, unsupported};

/// What folders with installed packages are called: Debian's, and everybody's.
pub(crate) const INSTALLED: [&str; 2] = ["dist-packages", "site-packages"];

/// The folders below `/usr` in which Python packages are installed, whichever Python they are for. No path is
/// there that leads elsewhere.
#[cfg(feature = "sock")]
pub(crate) fn installed_packages() -> Vec<String> {
    let libraries = ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64"];
    installed_in(&libraries.map(str::to_owned))
}

/// The same below these libraries' folders, or below `/usr`, where they are links to there.
#[cfg(feature = "sock")]
pub(crate) fn installed_in(libraries: &[String]) -> Vec<String> {
    let mut found = BTreeSet::new();
    for entry in libraries.iter().filter_map(|library| fs::read_dir(library).ok()).flatten() {
        let Ok(entry) = entry else { continue };
        if !entry.file_name().as_encoded_bytes().starts_with(b"python") {
            continue;
        }
        let folders = INSTALLED.map(|name| fs::canonicalize(entry.path().join(name)));
        // A library's folder may be a link to another.
        let seen = |path: &&Path| {
            let shown = libraries.iter().map(String::as_str).chain(["/usr"]);
            path.is_dir() && shown.into_iter().any(|shown| path.starts_with(shown))
        };
        for folder in folders.iter().flatten().map(AsRef::as_ref).filter(seen) {
            found.extend(folder.to_str().map(str::to_owned));
        }
    }
    found.into_iter().collect()
}

/// A Python of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Python {
    /// What to run.
    pub program: PathBuf,
    /// The same without links.
    pub real: PathBuf,
    /// Its version, `3.13.0`.
    pub version: String,
    /// The second number of it.
    pub minor: u8,
    /// The folder in which its library is, as `lib/python3.13`.
    pub home: PathBuf,
}

impl Python {
    /// Asks a program what it is. It may be one that only finds Python, as pyenv's are: then that one is told.
    ///
    /// # Errors
    ///
    /// It does not run, or is no Python 3.
    pub fn ask(program: &Path) -> io::Result<Python> {
        const ASK: &str = "import os, sys
print(sys.version_info[0], sys.version_info[1], '%d.%d.%d' % sys.version_info[:3], sep='\\n')
print(sys.executable, os.path.realpath(sys.executable), sys.base_prefix, sep='\\n')";
        let mut command = Command::new(program);
        command.args(["-I", "-S", "-B", "-c", ASK]).stdin(Stdio::null());
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines: Vec<&str> = said.lines().collect();
        let failed = || {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            io::Error::other(said.lines().last().unwrap_or("it is no Python 3").to_owned())
        };
        match lines[..] {
            ["3", minor, version, program, real, home] if output.status.success() => Ok(Python {
                program: program.into(),
                real: real.into(),
                version: version.to_owned(),
                minor: minor.parse().map_err(|_| failed())?,
                home: home.into(),
            }),
            _ => Err(failed()),
        }
    }
}

/// The usual Python of this machine: `/usr/bin/python3`, or else the first `python3` in our `PATH`.
pub fn find_python() -> Option<PathBuf> {
    // A wrapper in PATH (pyenv's, for example) takes longer than Python itself to start.
    let system = [PathBuf::from("/usr/bin")].into_iter();
    system.chain(path()).map(|folder| folder.join("python3")).find(|path| is_program(path))
}

fn path() -> Vec<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect()
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// The Pythons that functions may ask for by version: the usual one, those that are named, and what is called
/// `python3.N` beside the usual one, in `/usr/bin`, `/usr/local/bin` and `PATH`.
#[derive(Clone, Debug)]
pub struct Pythons {
    usual: Option<PathBuf>,
    named: Vec<PathBuf>,
}

impl Pythons {
    /// Those of a machine whose usual Python is this one, or without one the one that [`find_python`] finds.
    pub fn new(usual: Option<PathBuf>, named: Vec<PathBuf>) -> Self {
        Pythons { usual: usual.or_else(find_python), named }
    }

    /// The one that runs functions which name no version.
    pub fn usual(&self) -> Option<&Path> {
        self.usual.as_deref()
    }

    /// The one of this minor version. Runs those that may be it, and waits for them.
    ///
    /// # Errors
    ///
    /// There is none; for a person, with those that there are and what to do.
    pub fn of(&self, minor: u8) -> Result<Python, String> {
        let called = format!("python3.{minor}");
        let certain = self.usual.iter().chain(&self.named).cloned();
        let called = self.folders().into_iter().map(|folder| folder.join(&called));
        let mut candidates = certain.chain(called.filter(|path| is_program(path)));
        if let Some(found) = candidates
            .find_map(|path| Python::ask(&path).ok().filter(|python| python.minor == minor))
        {
            return Ok(found);
        }
        let others: Vec<_> = self.all().iter().map(|other| format!("3.{}", other.minor)).collect();
        let others = match others.is_empty() {
            true => "none at all".to_owned(),
            false => others.join(", "),
        };
        Err(format!(
            "this machine has no Python 3.{minor}, which runtime = \"python3.{minor}\" in ol.toml names, but \
             {others}; install it, name it to the worker (--pythons PATH), or set runtime = \"python\""
        ))
    }

    /// One of each version, the usual one first. Runs them all, and waits for them.
    pub fn all(&self) -> Vec<Python> {
        let mut called = BTreeMap::new();
        for folder in self.folders() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let minor = name.to_str().and_then(|name| name.strip_prefix("python3."));
                if let Some(Ok(minor)) = minor.map(str::parse::<u8>)
                    && is_program(&entry.path())
                {
                    called.entry(minor).or_insert_with(Vec::new).push(entry.path());
                }
            }
        }
        let mut found: Vec<Python> = Vec::new();
        let certain = self.usual.iter().chain(&self.named).cloned();
        for path in certain.chain(called.into_values().flatten()) {
            let known = |python: &Python| found.iter().any(|other| other.minor == python.minor);
            if let Some(python) = Python::ask(&path).ok().filter(|python| !known(python)) {
                found.push(python);
            }
        }
        found
    }

    fn folders(&self) -> Vec<PathBuf> {
        let beside = self.usual.iter().filter_map(|usual| usual.parent()).map(Path::to_owned);
        let system = ["/usr/bin", "/usr/local/bin"].map(PathBuf::from);
        let mut folders: Vec<PathBuf> = Vec::new();
        for folder in beside.chain(system).chain(path()) {
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
        folders
    }
}

/// The Pythons of the versions that functions have named, found when each is named first.
#[cfg(any(feature = "process", feature = "sock"))]
#[derive(Debug)]
pub(crate) struct ByVersion<T> {
    pythons: Pythons,
    /// What is known of each version. It is locked while it is looked for, and holds up no other version.
    found: parking_lot::Mutex<BTreeMap<u8, Arc<tokio::sync::Mutex<Looked<T>>>>>,
    clock: Arc<dyn Clock>,
}

#[cfg(any(feature = "process", feature = "sock"))]
#[derive(Debug)]
enum Looked<T> {
    NotYet,
    Found(T),
    /// Somebody may install it: it is looked for again, but not for each call.
    Missing {
        since: Time,
        why: String,
    },
}

/// For how long a Python that is not there is not looked for again: that runs every Python of the machine.
#[cfg(any(feature = "process", feature = "sock"))]
const LOOK_AGAIN: Duration = Duration::from_secs(5);

#[cfg(any(feature = "process", feature = "sock"))]
impl<T: Clone> ByVersion<T> {
    pub(crate) fn of(pythons: Pythons, clock: Arc<dyn Clock>) -> Self {
        ByVersion { pythons, found: parking_lot::Mutex::default(), clock }
    }

    /// What `prepare` has made of the Python of this minor version.
    ///
    /// # Errors
    ///
    /// There is none (which is looked for again after some seconds), or it cannot be prepared.
    pub(crate) async fn get(
        &self,
        minor: u8,
        prepare: impl AsyncFnOnce(Python) -> Result<T, SandboxError>,
    ) -> Result<T, SandboxError> {
        let place = {
            let mut found = self.found.lock();
            let nothing = || Arc::new(tokio::sync::Mutex::new(Looked::NotYet));
            Arc::clone(found.entry(minor).or_insert_with(nothing))
        };
        let mut looked = place.lock().await;
        match &*looked {
            Looked::Found(known) => return Ok(known.clone()),
            Looked::Missing { since, why } if self.clock.now().since(*since) < LOOK_AGAIN => {
                return Err(unsupported(why.clone()));
            }
            Looked::Missing { .. } | Looked::NotYet => {}
        }
        let pythons = self.pythons.clone();
        let asked = tokio::task::spawn_blocking(move || pythons.of(minor)).await;
        match asked.map_err(|_| shutting_down())? {
            Ok(python) => {
                let prepared = prepare(python).await?;
                *looked = Looked::Found(prepared.clone());
                Ok(prepared)
            }
            Err(why) => {
                *looked = Looked::Missing { since: self.clock.now(), why: why.clone() };
                Err(unsupported(why))
            }
        }
    }
}

#[cfg(all(test, feature = "process"))]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use openlambda_core::time::SystemClock;

    use super::*;

    /// Functions name what they like: a version that is not there holds up none that is.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_version_that_is_missing_is_looked_for_without_holding_up_others() {
        let dir = tempfile::tempdir().unwrap();
        let (slow, runs) = (dir.path().join("slow"), dir.path().join("runs"));
        let script = format!("#!/bin/sh\necho run >>{}\nsleep 2\nexit 1\n", runs.display());
        fs::write(&slow, script).unwrap();
        fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).unwrap();
        let usual = find_python().unwrap();
        let here = Python::ask(&usual).unwrap().minor;
        let pythons = Pythons { usual: Some(usual), named: vec![slow] };
        let versions = ByVersion::of(pythons, Arc::new(SystemClock::new()));
        let prepared = AtomicU32::new(0);
        let prepare = async |python: Python| {
            prepared.fetch_add(1, Ordering::SeqCst);
            Ok(python.minor)
        };
        let missing = async { versions.get(250, prepare).await.unwrap_err() };
        tokio::pin!(missing);
        tokio::select! {
            biased;
            _ = &mut missing => panic!("it had to wait for the one that is missing"),
            found = versions.get(here, prepare) => assert_eq!(found.unwrap(), here),
        }
        assert!(missing.await.message.contains("no Python 3.250"));
        let looked = fs::read_to_string(&runs).unwrap();
        assert!(versions.get(250, prepare).await.is_err());
        assert_eq!(fs::read_to_string(&runs).unwrap(), looked, "it was looked for again at once");
        assert_eq!(versions.get(here, prepare).await.unwrap(), here);
        assert_eq!(prepared.load(Ordering::SeqCst), 1);
    }
}
