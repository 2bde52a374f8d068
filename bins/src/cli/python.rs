//! Python's own opinion of a function's files before they are deployed. The files are compiled,
//! never run.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use openlambda_core::bundle::is_left_out;
use openlambda_core::manifest::{Manifest, Runtime};

use crate::error::{CliError, Result};

/// Reads paths, each ended by a zero byte; prints, for each that does not compile, its number, the
/// line, the message and the line's text, with zero bytes in between and an end of line.
const COMPILE: &str = r#"
import sys
for number, path in enumerate(sys.stdin.buffer.read().split(b"\0")[:-1]):
    try:
        with open(path, "rb") as file:
            compile(file.read(), path, "exec", dont_inherit=True)
    except SyntaxError as error:
        text = (error.text or "").strip().split("\n")[0]
        print(number, error.lineno or 1, error.msg, text, sep="\0")
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        print(number, 1, error, "", sep="\0")
"#;

/// The most files that are compiled, so that a folder full of packages is not held up.
const MOST_FILES: usize = 500;

/// Compiles the function's files with the python3 of this machine, if there is one.
///
/// A fault in the handler's folder is an error with file and line. One further down, where packages
/// of others may hold files for other Pythons, is a warning.
///
/// # Errors
///
/// The first fault in the handler's folder.
pub(super) fn check(folder: &Path, manifest: &Manifest) -> Result<()> {
    if manifest.runtime != Some(Runtime::Python) {
        return Ok(());
    }
    let module = manifest.handler.as_deref().and_then(|handler| handler.rsplit_once('.'));
    let module = PathBuf::from(module.map_or("", |(module, _)| module).replace('.', "/"));
    let own = folder.join(module.parent().unwrap_or(Path::new("")));
    let mut files = Vec::new();
    collect(folder, &mut files);
    // The function's own files first, for when there are too many.
    files.sort_by_key(|file| (file.parent() != Some(&own), file.clone()));
    files.truncate(MOST_FILES);
    for fault in compile(&files) {
        let file = &files[fault.file];
        let shown = file.strip_prefix(folder).unwrap_or(file).display();
        let text = match fault.text.as_str() {
            "" => String::new(),
            text => format!(": {text}"),
        };
        let what = format!("{shown}, line {}: {}{text}", fault.line, fault.message);
        if file.parent() == Some(&own) {
            return Err(CliError::new(format!("{what}\n    correct it and deploy again")));
        }
        eprintln!("ol: warning: {what}");
    }
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        if entry.file_name().to_str().is_some_and(is_left_out) {
            continue;
        }
        if kind.is_dir() {
            collect(&path, files);
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "py") {
            files.push(path);
        }
    }
}

struct Fault {
    /// Its place among the files.
    file: usize,
    line: u64,
    message: String,
    text: String,
}

/// What does not compile. Nothing where Python cannot be asked: then the first call tells.
fn compile(files: &[PathBuf]) -> Vec<Fault> {
    let asked = || {
        let mut python = Command::new("python3")
            .args(["-I", "-S", "-B", "-X", "utf8", "-W", "ignore", "-c", COMPILE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut input = python.stdin.take()?;
        for file in files {
            // One that ends early says less, and that is all.
            let _ = input.write_all(file.as_os_str().as_encoded_bytes());
            let _ = input.write_all(b"\0");
        }
        drop(input);
        python.wait_with_output().ok()
    };
    let Some(output) = asked() else { return Vec::new() };
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let fault = |line: &str| {
        let mut parts = line.split('\0');
        Some(Fault {
            file: parts.next()?.parse().ok().filter(|file| *file < files.len())?,
            line: parts.next()?.parse().ok()?,
            message: parts.next()?.to_owned(),
            text: parts.next()?.to_owned(),
        })
    };
    output.lines().filter_map(fault).collect()
}
