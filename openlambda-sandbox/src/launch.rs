//! What is run for a function, and what it finds: the same in every kind of sandbox.
//!
//! | variable | what |
//! |---|---|
//! | `LAMBDA_TASK_ROOT` (and working folder) | its code, shared with other instances: read only, please |
//! | `HOME`, `TMPDIR` | its own folders; removed with the instance |
//! | `OPENLAMBDA_VOLUME_<NAME>` | the folder of a volume: upper case, `_` for what is no letter or digit |
//! | `_HANDLER`, `AWS_LAMBDA_*`, `LAMBDA_*`, `TZ` | as on AWS |
//! | `AWS_LAMBDA_RUNTIME_API` | with `runtime = "bootstrap"`: the address of the Runtime API |
//! | the manifest's `[environment]` | may change `PATH`, `LANG`, `HOME`, `TMPDIR` and `TZ`, not the rest |

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use openlambda_core::failure::FunctionError;
use openlambda_core::function::FunctionName;
use openlambda_core::manifest::{Manifest, Runtime, Style};
#[cfg(any(feature = "docker", feature = "sock"))]
use openlambda_core::sandbox::Report;
use openlambda_core::sandbox::{SandboxError, SandboxErrorKind, SandboxSpec};

use crate::node;
use crate::sys::MARK;

/// Our bootstrap for Python, which runs the first of these files; the others are beside it.
pub(crate) const PYTHON_FILES: [(&str, &str); 2] = [
    ("bootstrap.py", include_str!("../runtimes/python/bootstrap.py")),
    ("web.py", include_str!("../runtimes/python/web.py")),
];

/// What compiles [`PYTHON_FILES`], which saves a few milliseconds of every start. Its arguments: for
/// each file where it is, where the result goes, and as what it will show in stack traces.
pub(crate) const COMPILE_PYTHON: &str = "import py_compile, sys
for n in range(1, len(sys.argv), 3):
    source, compiled, shown = sys.argv[n : n + 3]
    py_compile.compile(source, cfile=compiled, dfile=shown, doraise=True)";

/// What functions find in `PATH`, whatever ours is.
const FUNCTION_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a worker's processes, cgroups and containers are marked with stands in environments, paths
/// and labels.
///
/// # Errors
///
/// The mark is empty or holds something else than letters, digits and `._/-`.
pub(crate) fn check_mark(mark: &str) -> io::Result<()> {
    let valid = mark.bytes().all(|b| b.is_ascii_alphanumeric() || b"._/-".contains(&b));
    if !mark.is_empty() && valid {
        return Ok(());
    }
    let message =
        format!("\"{mark}\" cannot mark processes; use letters, digits, dots, slashes, _ and -");
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

/// Removes what the sandboxes of an earlier worker have left in `state_dir`.
#[cfg(any(feature = "docker", feature = "sock"))]
pub(crate) fn remove_sandboxes(state_dir: &Path, report: &mut Report) {
    for entry in fs::read_dir(state_dir.join("sandboxes")).into_iter().flatten().flatten() {
        let path = entry.path();
        match fs::remove_dir_all(&path) {
            Ok(()) => report.removed.push(path.display().to_string()),
            Err(error) => report.failed.push(format!("{}: {error}", path.display())),
        }
    }
}

/// The program of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// Python runs our bootstrap, which speaks over a Unix socket.
    Python,
    /// Node.js runs our bootstrap, which speaks over a Unix socket with a path, or over TCP.
    Node,
    /// The function's own `bootstrap`, which speaks over TCP.
    Own,
}

/// Where things are, as the function sees them.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) code: String,
    pub(crate) home: String,
    pub(crate) tmp: String,
    pub(crate) runtimes: String,
}

impl Program {
    /// Decides what to run.
    ///
    /// # Errors
    ///
    /// [`SandboxErrorKind::Unsupported`] for what no kind runs yet; [`SandboxErrorKind::Init`] for a
    /// `bootstrap` that cannot be run.
    pub(crate) fn of(spec: &SandboxSpec) -> Result<Program, SandboxError> {
        let manifest = &*spec.manifest;
        match manifest.runtime {
            Some(Runtime::Python) => Ok(Program::Python),
            Some(Runtime::Node) => node::check(manifest).map(|()| Program::Node),
            Some(Runtime::Bootstrap) => {
                check_bootstrap(&spec.code.join("bootstrap"))?;
                Ok(Program::Own)
            }
            Some(other) => Err(unsupported(format!(
                "the runtime {} does not run yet; use python, node or bootstrap",
                format!("{other:?}").to_lowercase()
            ))),
            None => Err(unsupported(
                "the manifest names no runtime; set runtime in ol.toml, or read it with \
                 Manifest::load, which looks at the files",
            )),
        }
    }

    /// The variable that tells it where the Runtime API is.
    pub(crate) fn variable(self) -> &'static str {
        match self {
            Program::Python | Program::Node => "OPENLAMBDA_RUNTIME_SOCKET",
            Program::Own => "AWS_LAMBDA_RUNTIME_API",
        }
    }

    /// It is no program that can be run here. `next` says how a sandbox of this kind gets an
    /// interpreter.
    pub(crate) fn cannot_run(self, why: &io::Error, next: &str) -> SandboxError {
        let interpreter = match self {
            Program::Python => "Python",
            Program::Node => "Node.js",
            Program::Own => return bad_bootstrap(why),
        };
        let message =
            format!("{interpreter}, which this function needs, cannot be run here ({why}); {next}");
        SandboxError::new(SandboxErrorKind::Resources, message)
    }
}

/// Python's arguments before the bootstrap's path: without site and user packages, which take longest
/// (the bootstrap says how they are found all the same), and without writing into the shared code.
pub(crate) const PYTHON_ARGUMENTS: [&str; 3] = ["-S", "-s", "-B"];

/// The environment of an instance, without the address of the Runtime API.
///
/// # Errors
///
/// Two volumes share a variable.
pub(crate) fn environment(
    spec: &SandboxSpec,
    places: &Places,
    mark: &str,
    volumes: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, SandboxError> {
    let manifest = &*spec.manifest;
    let mut env = BTreeMap::new();
    let mut set = |key: &str, value: &str| env.insert(key.to_owned(), value.to_owned());
    set("PATH", FUNCTION_PATH);
    set("LANG", "C.UTF-8");
    set("TZ", ":UTC");
    set("HOME", &places.home);
    set("TMPDIR", &places.tmp);
    for (key, value) in &manifest.environment {
        set(key, value);
    }
    let name = spec.function.name();
    let version = spec.version.map_or_else(|| "$LATEST".to_owned(), |v| v.to_string());
    let style = manifest.style.unwrap_or(Style::Lambda).as_str();
    set("_HANDLER", manifest.handler.as_deref().unwrap_or_default());
    set("AWS_EXECUTION_ENV", "OpenLambda");
    set("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", &manifest.memory_mb.to_string());
    set("AWS_LAMBDA_FUNCTION_NAME", name);
    set("AWS_LAMBDA_FUNCTION_VERSION", &version);
    set("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand");
    set("AWS_LAMBDA_LOG_GROUP_NAME", &format!("/aws/lambda/{name}"));
    set("AWS_LAMBDA_LOG_STREAM_NAME", mark);
    set("AWS_REGION", "local");
    set("AWS_DEFAULT_REGION", "local");
    set("LAMBDA_RUNTIME_DIR", &places.runtimes);
    set("LAMBDA_TASK_ROOT", &places.code);
    set("OPENLAMBDA_STYLE", style);
    set(MARK, mark);
    // With one slot it is not there, as on AWS: clients take it, whatever it says, for the wish to have
    // a process of its own for each slot.
    let slots = "AWS_LAMBDA_MAX_CONCURRENCY";
    match manifest.concurrency {
        1 => drop(env.remove(slots)),
        several => drop(env.insert(slots.to_owned(), several.to_string())),
    }
    for (volume, place) in volumes {
        let sign = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        let variable: String = volume.chars().map(sign).collect();
        let variable = format!("OPENLAMBDA_VOLUME_{variable}");
        if env.insert(variable.clone(), place.clone()).is_some() {
            return Err(unsupported(format!(
                "two volumes in ol.toml share the variable {variable}; rename one"
            )));
        }
    }
    Ok(env)
}

/// Makes the function's volumes: each one's name and its folder on the machine.
///
/// # Errors
///
/// A folder cannot be made.
pub(crate) fn volumes(
    volumes_dir: &Path,
    function: &FunctionName,
    manifest: &Manifest,
) -> Result<BTreeMap<String, PathBuf>, SandboxError> {
    let own = volumes_dir.join(function.namespace()).join(function.name());
    let mut volumes = BTreeMap::new();
    for volume in &manifest.volumes {
        let path = own.join(&volume.name);
        fs::create_dir_all(&path)
            .map_err(|error| resources("the volume's folder cannot be made", error))?;
        volumes.insert(volume.name.clone(), path);
    }
    Ok(volumes)
}

/// The path from the root.
///
/// # Errors
///
/// There is no current folder to begin at.
#[cfg(any(feature = "docker", feature = "sock"))]
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, SandboxError> {
    std::path::absolute(path).map_err(|error| resources("the code folder cannot be found", error))
}

/// The path as text.
///
/// # Errors
///
/// It is not UTF-8.
#[cfg(any(feature = "docker", feature = "sock"))]
pub(crate) fn text(path: &Path) -> Result<String, SandboxError> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        unsupported(format!("the path {} is not UTF-8; use another folder", path.display()))
    })
}

/// Gives a volume to its function.
///
/// # Errors
///
/// We may not.
#[cfg(any(feature = "docker", feature = "sock"))]
pub(crate) fn own_volume(path: &Path, id: u32) -> Result<(), SandboxError> {
    use std::os::unix::fs::MetadataExt;
    // The top comes last, so that whoever finds it given finds the rest so too.
    let done = fs::metadata(path).and_then(|metadata| match id == 0 || metadata.uid() == id {
        true => Ok(()),
        false => give(&fs::File::open(path)?.into(), id),
    });
    done.map_err(|error| resources("the volume cannot be given to the function", error))
}

/// From folder to folder by descriptors: an instance that runs may be putting links in their places.
#[cfg(any(feature = "docker", feature = "sock"))]
fn give(folder: &std::os::fd::OwnedFd, id: u32) -> io::Result<()> {
    use rustix::fs::{AtFlags, Dir, Gid, Mode, OFlags, Uid, chownat, openat};
    let (owner, group) = (Uid::from_raw(id), Gid::from_raw(id));
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if [&b"."[..], b".."].contains(&name.to_bytes()) {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if let Ok(below) = openat(folder, name, flags, Mode::empty()) {
            give(&below, id)?;
        } else {
            chownat(folder, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        }
    }
    rustix::fs::fchown(folder, Some(owner), Some(group))?;
    Ok(())
}

/// A folder of an instance; removed by Drop.
#[cfg(any(feature = "docker", feature = "sock"))]
#[derive(Debug)]
pub(crate) struct Folder(pub(crate) PathBuf);

#[cfg(any(feature = "docker", feature = "sock"))]
impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove a sandbox's folder");
        }
    }
}

fn check_bootstrap(path: &Path) -> Result<(), SandboxError> {
    const KIND: &str = "Runtime.InvalidEntrypoint";
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 => Ok(()),
        Ok(metadata) if metadata.is_file() => Err(init_error(
            KIND,
            "the file bootstrap is not executable; run chmod +x bootstrap and deploy again",
        )),
        _ => Err(init_error(
            KIND,
            "there is no file named bootstrap; add one that speaks the Lambda Runtime API",
        )),
    }
}

/// The function's own `bootstrap` is no program that can be run here.
fn bad_bootstrap(why: &io::Error) -> SandboxError {
    let message = format!(
        "the file bootstrap cannot be run ({why}); begin it with a line like #!/bin/sh that names \
         its interpreter, or compile it for this machine"
    );
    init_error("Runtime.InvalidEntrypoint", message)
}

pub(crate) fn unsupported(message: impl Into<String>) -> SandboxError {
    SandboxError::new(SandboxErrorKind::Unsupported, message)
}

pub(crate) fn resources(
    what: &str,
    error: impl Into<openlambda_core::invocation::BoxError>,
) -> SandboxError {
    SandboxError::new(SandboxErrorKind::Resources, format!("the sandbox cannot be made: {what}"))
        .with_source(error)
}

pub(crate) fn shutting_down() -> SandboxError {
    let message = "the sandbox cannot be made: the worker is shutting down; use another worker";
    SandboxError::new(SandboxErrorKind::Resources, message)
}

pub(crate) fn init_error(kind: &str, message: impl Into<String>) -> SandboxError {
    let message = message.into();
    let error = FunctionError {
        message: message.clone(),
        kind: kind.to_owned(),
        ..FunctionError::default()
    };
    SandboxError::new(SandboxErrorKind::Init, message).with_function_error(error)
}
