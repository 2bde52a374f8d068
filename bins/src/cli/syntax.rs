//! Checks the syntax of a function's files before they are deployed. The interpreter parses the files
//! and never runs them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use openlambda_core::bundle::is_left_out;
use openlambda_core::manifest::{Manifest, Runtime};

use crate::error::{CliError, Result};
use crate::terminal::say;

/// A language whose interpreter, where this machine has it, can tell faults.
struct Language {
    extensions: &'static [&'static str],
    /// Folders that hold no code of the function's own.
    passed_over: &'static [&'static str],
    /// The folder of a handler within the function's.
    folder_of: fn(&str) -> PathBuf,
    program: &'static str,
    /// Before [`Language::check`].
    arguments: &'static [&'static str],
    /// A program that reads paths, each ended by a zero byte, and prints, for each file that cannot be
    /// parsed, its number, the line, the message and the line's text, with zero bytes in between and
    /// an end of line.
    check: &'static str,
}

const PYTHON: Language = Language {
    extensions: &["py"],
    passed_over: &[],
    folder_of: |handler| {
        let module = handler.rsplit_once('.').map_or("", |(module, _)| module);
        let module = PathBuf::from(module.replace('.', "/"));
        module.parent().unwrap_or(Path::new("")).to_owned()
    },
    program: "python3",
    arguments: &["-I", "-S", "-B", "-X", "utf8", "-W", "ignore", "-c"],
    check: r#"
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
"#,
};

/// `node --check` tells file and line, but takes one file, and as long as Node.js takes to start. So
/// all are parsed in one process first, which tells no lines of ES modules, and those that fail there
/// are checked.
const NODE: Language = Language {
    extensions: &["js", "mjs", "cjs"],
    // Packages of others; what browsers run.
    passed_over: &["node_modules", "static"],
    folder_of: |handler| Path::new(handler).parent().unwrap_or(Path::new("")).to_owned(),
    program: "node",
    arguments: &["--experimental-vm-modules", "--no-warnings", "-e"],
    check: r#"
const fs = require('fs'), path = require('path'), vm = require('vm');
const { spawnSync } = require('child_process');
const types = new Map();
function isModule(folder) {
  if (!types.has(folder)) {
    let type;
    try { type = JSON.parse(fs.readFileSync(path.join(folder, 'package.json'), 'utf8')).type; }
    catch { const up = path.dirname(folder); type = up !== folder && isModule(up) ? 'module' : ''; }
    types.set(folder, type === 'module');
  }
  return types.get(folder);
}
function parses(file) {
  try {
    const source = fs.readFileSync(file, 'utf8').replace(/^#!.*/, '');
    const kind = path.extname(file);
    if (kind === '.mjs' || (kind === '.js' && isModule(path.dirname(file)))) {
      new vm.SourceTextModule(source, { identifier: file });
    } else {
      vm.compileFunction(source, ['exports', 'require', 'module', '__filename', '__dirname']);
    }
    return true;
  } catch { return false; }
}
fs.readFileSync(0, 'utf8').split('\0').slice(0, -1).forEach((file, number) => {
  file = path.resolve(file);
  if (parses(file)) return;
  const { status, stderr } = spawnSync(process.execPath, ['--check', file], { encoding: 'utf8' });
  if (status === 0) return;
  const [, line, text] = /^(?:file:\/\/)?\/.*:(\d+)\n(.*)$/m.exec(stderr) || [, 1, ''];
  const [, message] = /^(?:\w*Error: )(.*)$/m.exec(stderr) || [, 'it cannot be read'];
  console.log([number, line, message, text.trim()].join('\0'));
});
"#,
};

/// How much of a line's text, or of what is wrong with it, is shown, characters: a minified file is one line.
const SHOWN: usize = 160;

/// The most files that are parsed, so that a folder full of packages is not held up.
const MOST_FILES: usize = 500;

/// Parses the function's files with this machine's interpreter, if there is one.
///
/// A fault in the handler's folder is an error with file and line. One further down, where packages
/// of others may hold files for other interpreters, is a warning.
///
/// # Errors
///
/// The first fault in the handler's folder.
pub(super) fn check(folder: &Path, manifest: &Manifest) -> Result<()> {
    let language = match manifest.runtime {
        Some(Runtime::Python) => PYTHON,
        Some(Runtime::Node) => NODE,
        _ => return Ok(()),
    };
    let own = (language.folder_of)(manifest.handler.as_deref().unwrap_or_default());
    let own = folder.join(own);
    let mut files = Vec::new();
    collect(folder, &language, &mut files);
    // The function's own files first, for when there are too many.
    files.sort_by_key(|file| (file.parent() != Some(&own), file.clone()));
    files.truncate(MOST_FILES);
    for fault in faults(&language, &files) {
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
        say!("ol: warning: {what}");
    }
    Ok(())
}

fn collect(folder: &Path, language: &Language, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !is_left_out(name)) else { continue };
        if kind.is_dir() {
            if !language.passed_over.contains(&name) {
                collect(&path, language, files);
            }
        } else if kind.is_file()
            && path.extension().is_some_and(|e| language.extensions.iter().any(|known| e == *known))
        {
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

/// The beginning of a text that may be long.
fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What cannot be parsed. Nothing where the interpreter cannot be asked: then the first call tells.
fn faults(language: &Language, files: &[PathBuf]) -> Vec<Fault> {
    let asked = || {
        let mut interpreter = Command::new(language.program)
            .args(language.arguments)
            .arg(language.check)
            .env_remove("NODE_OPTIONS")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut input = interpreter.stdin.take()?;
        for file in files {
            // One that ends early says less, and that is all.
            let _ = input.write_all(file.as_os_str().as_encoded_bytes());
            let _ = input.write_all(b"\0");
        }
        drop(input);
        interpreter.wait_with_output().ok()
    };
    let Some(output) = asked() else { return Vec::new() };
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let fault = |line: &str| {
        let mut parts = line.split('\0');
        Some(Fault {
            file: parts.next()?.parse().ok().filter(|file| *file < files.len())?,
            line: parts.next()?.parse().ok()?,
            message: shown(parts.next()?),
            text: shown(parts.next()?),
        })
    };
    output.lines().filter_map(fault).collect()
}
