//! Which program is run for a function, and with which arguments.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use openlambda_core::manifest::Runtime;
use openlambda_core::sandbox::{SandboxError, SandboxErrorKind, SandboxSpec};

use crate::errors::{init_error, unsupported};
use crate::node;
#[cfg(any(feature = "process", feature = "sock"))]
use crate::sys::{CommandSpec, MARK, Spawner};

/// The program of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// Python runs our bootstrap, which speaks over a Unix socket. Of the minor version that the manifest
    /// names; `None`: the one that is usual here.
    Python(Option<u8>),
    /// Node.js runs our bootstrap, which speaks over a Unix socket with a path, or over TCP.
    Node,
    /// The function's own `bootstrap`, which speaks over TCP.
    Own,
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
            Some(Runtime::Python) => Ok(Program::Python(None)),
            Some(Runtime::PythonMinor(minor)) => Ok(Program::Python(Some(minor))),
            Some(Runtime::Node) => node::check(manifest).map(|()| Program::Node),
            Some(Runtime::Bootstrap) => {
                check_bootstrap(&spec.code.join("bootstrap"))?;
                Ok(Program::Own)
            }
            Some(other) => Err(unsupported(format!(
                "the runtime {other} does not run yet; use python, node or bootstrap"
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
            Program::Python(_) | Program::Node => "OPENLAMBDA_RUNTIME_SOCKET",
            Program::Own => "AWS_LAMBDA_RUNTIME_API",
        }
    }

    /// It is no program that can be run here. `next` says how a sandbox of this kind gets an
    /// interpreter.
    pub(crate) fn cannot_run(self, why: &io::Error, next: &str) -> SandboxError {
        let interpreter = match self {
            Program::Python(None) => "Python".to_owned(),
            Program::Python(Some(minor)) => format!("Python 3.{minor}"),
            Program::Node => "Node.js".to_owned(),
            Program::Own => return bad_bootstrap(why),
        };
        let message =
            format!("{interpreter}, which this function needs, cannot be run here ({why}); {next}");
        SandboxError::new(SandboxErrorKind::Resources, message)
    }
}

/// Our bootstrap for Python, which runs the first of these files; the others are beside it.
pub(crate) const PYTHON_FILES: [(&str, &str); 5] = [
    ("bootstrap.py", include_str!("../../runtimes/python/bootstrap.py")),
    ("aws.py", include_str!("../../runtimes/python/aws.py")),
    ("compile.py", include_str!("../../runtimes/python/compile.py")),
    ("web.py", include_str!("../../runtimes/python/web.py")),
    ("websocket.py", include_str!("../../runtimes/python/websocket.py")),
];

/// Compiles [`PYTHON_FILES`] from one folder into another, which saves a few milliseconds of every start. In
/// stack traces they will be where functions `see` them. Whether all are there.
#[cfg(any(feature = "process", feature = "sock"))]
pub(crate) async fn compile_python(
    spawner: &Spawner,
    worker_mark: &str,
    python: &Path,
    sources: &Path,
    into: &Path,
    seen: &Path,
) -> bool {
    // For each file where it is, where the result goes, and as what it will show.
    const COMPILE: &str = "import py_compile, sys
for n in range(1, len(sys.argv), 3):
    source, compiled, shown = sys.argv[n : n + 3]
    py_compile.compile(source, cfile=compiled, dfile=shown, doraise=True)";
    let command = CommandSpec::new(python).env(MARK, worker_mark);
    let mut command = ["-S", "-c", COMPILE].into_iter().fold(command, CommandSpec::arg);
    for (name, _) in PYTHON_FILES {
        let compiled = into.join(name).with_extension("pyc");
        command = command.arg(sources.join(name)).arg(compiled).arg(seen.join(name));
    }
    match spawner.spawn(command).await {
        Ok(child) => child.wait().await.success(),
        Err(_) => false,
    }
}

/// Python's arguments before the bootstrap's path: without site and user packages, which take longest
/// (the bootstrap says how they are found all the same), and without writing into the shared code.
pub(crate) const PYTHON_ARGUMENTS: [&str; 3] = ["-S", "-s", "-B"];

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
