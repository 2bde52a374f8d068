//! Checks the syntax of a function's files before they are deployed. The interpreter parses the files
//! and never runs them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use openlambda_core::bundle::Ignore;
use openlambda_core::manifest::{Manifest, Runtime};
use openlambda_sandbox::Pythons;

use crate::error::{CliError, Result};
use crate::terminal::say;

/// A language whose interpreter, where this machine has it, can tell faults.
struct Language {
    extensions: &'static [&'static str],
    /// Folders that hold no code of the function's own.
    passed_over: &'static [&'static str],
    /// The file of a handler within the function's folder, without its extension.
    file_of: fn(&str) -> PathBuf,
    /// Its usual program.
    program: &'static str,
    /// Before [`Language::check`].
    arguments: &'static [&'static str],
    /// A program that reads texts, each ended by a zero byte: the function's folder, its handler, paths of
    /// files. It prints findings, of several parts with zero bytes in between, each ended by an end of line:
    /// what it is, the file's number, the line, the message and the line's text. A `fault` is in a file that the
    /// handler comes to load, an `unused` one in another; a `handler` is not where it should be.
    check: &'static str,
}

const PYTHON: Language = Language {
    extensions: &["py"],
    passed_over: &[],
    file_of: |handler| {
        let module = handler.rsplit_once('.').map_or("", |(module, _)| module);
        PathBuf::from(module.replace('.', "/"))
    },
    program: "python3",
    arguments: &["-I", "-S", "-B", "-X", "utf8", "-W", "ignore", "-c"],
    check: r#"
import ast, os, sys
root, handler, *paths = [os.fsdecode(text) for text in sys.stdin.buffer.read().split(b"\0")[:-1]]
module, _, function = handler.replace("/", ".").rpartition(".")
names, trees, faults = {}, {}, {}
for number, path in enumerate(paths):
    parts = os.path.relpath(path, root)[:-3].split(os.sep)
    if parts[-1] == "__init__":
        parts.pop()
    names[number] = ".".join(parts)
    try:
        with open(path, "rb") as file:
            source = file.read()
        compile(source, path, "exec", dont_inherit=True)
        trees[number] = ast.parse(source, path)
    except SyntaxError as error:
        faults[number] = error.lineno or 1, error.msg, (error.text or "").strip().split("\n")[0]
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        faults[number] = 1, error, ""
numbers = {name: number for number, name in names.items()}

def loads(number):
    """The names of modules that a file loads whatever happens: not those of a branch that may not run."""
    package = names[number].split(".")
    if not paths[number].endswith("__init__.py"):
        package.pop()
    nodes = [trees[number]]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) + 1 - node.level] if node.level else []
            base = ".".join(base + (node.module.split(".") if node.module else []))
            yield base
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)
        elif isinstance(node, BODIES):
            nodes.extend(node.body)

BODIES = ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.With, ast.AsyncWith
reached, waiting = set(), [module]
while waiting:
    name = waiting.pop()
    while name:
        number = numbers.get(name)
        if number is not None and number not in reached:
            reached.add(number)
            if number in trees:
                waiting.extend(loads(number))
        name = name.rpartition(".")[0]

def binds(node, name):
    """Whether a module's name comes to be by this statement; None: who knows."""
    for inner in ast.walk(node):
        if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found = inner.name == name or (inner.name == "__getattr__" and None)
        elif isinstance(inner, ast.Name):
            dynamic = inner.id in ("globals", "setattr", "exec", "vars")
            found = None if dynamic else inner.id == name and isinstance(inner.ctx, ast.Store)
        elif isinstance(inner, ast.alias):
            found = None if inner.name == "*" else (inner.asname or inner.name.split(".")[0]) == name
        else:
            continue
        if found is not False:
            return True
    return False

for number, (line, message, text) in faults.items():
    kind = "fault" if number in reached else "unused"
    print(kind, number, line, message, text, sep="\0")
number = numbers.get(module)
if number in trees:
    wanted = [function, "app"] if function == "f" else [function]
    if not any(binds(node, name) for node in trees[number].body for name in wanted):
        print("handler", number, 0, f"does not define \"{function}\"", "", sep="\0")
"#,
};

/// `node --check` tells file and line, but takes one file, and as long as Node.js takes to start. So
/// all are parsed in one process first, which tells no lines of ES modules, and those that fail there
/// are checked.
const NODE: Language = Language {
    extensions: &["js", "mjs", "cjs"],
    // Packages of others; what browsers run.
    passed_over: &["node_modules", "static"],
    file_of: |handler| {
        // The function may be a property of a property: `path/file.api.get`.
        let (folder, name) = handler.rsplit_once('/').unwrap_or(("", handler));
        Path::new(folder).join(name.split('.').next().unwrap_or_default())
    },
    program: "node",
    arguments: &["--experimental-vm-modules", "--no-warnings", "-e"],
    check: r#"
const fs = require('fs'), path = require('path'), vm = require('vm');
const { spawnSync } = require('child_process');
const [root, handler, ...files] = fs.readFileSync(0, 'utf8').split('\0').slice(0, -1);
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
const sources = new Map(), numbers = new Map();
files.forEach((file, number) => {
  file = path.resolve(file);
  numbers.set(file, number);
  try { sources.set(file, fs.readFileSync(file, 'utf8').replace(/^#!.*/, '')); } catch { }
});
function parses(file) {
  try {
    const source = sources.get(file), kind = path.extname(file);
    if (kind === '.mjs' || (kind === '.js' && isModule(path.dirname(file)))) {
      new vm.SourceTextModule(source, { identifier: file });
    } else {
      vm.compileFunction(source, ['exports', 'require', 'module', '__filename', '__dirname']);
    }
    return true;
  } catch { return false; }
}
function found(place) {
  const names = [place, ...['js', 'mjs', 'cjs'].map((kind) => `${place}.${kind}`)];
  return [...names, ...['js', 'mjs', 'cjs'].map((kind) => path.join(place, `index.${kind}`))]
    .find((name) => numbers.has(name));
}
const last = handler.lastIndexOf('/') + 1, dot = handler.indexOf('.', last);
const start = found(path.resolve(root, dot < 0 ? handler : handler.slice(0, dot)));
const reached = new Set(), waiting = start ? [start] : [];
while (waiting.length) {
  const file = waiting.pop();
  if (reached.has(file)) continue;
  reached.add(file);
  const loads = /\b(?:require\s*\(\s*|from\s*|import\s*\(?\s*)['"](\.{1,2}\/[^'"\n]*)['"]/g;
  for (const [, place] of (sources.get(file) || '').matchAll(loads)) {
    const next = found(path.resolve(path.dirname(file), place));
    if (next) waiting.push(next);
  }
}
for (const [file, number] of numbers) {
  if (parses(file)) continue;
  const { status, stderr } = spawnSync(process.execPath, ['--check', file], { encoding: 'utf8' });
  if (status === 0) continue;
  const [, line, text] = /^(?:file:\/\/)?\/.*:(\d+)\n(.*)$/m.exec(stderr) || [, 1, ''];
  const [, message] = /^(?:\w*Error: )(.*)$/m.exec(stderr) || [, 'it cannot be read'];
  const kind = reached.has(file) ? 'fault' : 'unused';
  console.log([kind, number, line, message, text.trim()].join('\0'));
}
const name = handler.slice(dot + 1).split('.')[0];
const source = start ? sources.get(start) || '' : name;
if (!source.includes(name) && !/export\s*\*|module\.exports\s*=|\.\.\.|\[/.test(source)) {
  console.log(['handler', numbers.get(start), 0, `does not export "${name}"`, ''].join('\0'));
}
"#,
};

impl Language {
    /// Whether there is a file, or a package's folder, of this name. Folders of layers may hold it, too.
    fn is_there(&self, folder: &Path, file: &Path) -> bool {
        let layers = ["", "python", "nodejs/node_modules"];
        let place = |layer: &&str| {
            let place = folder.join(layer).join(file);
            let with = |kind: &&str| {
                let mut name = place.clone().into_os_string();
                name.push(format!(".{kind}"));
                Path::new(&name).exists()
            };
            place.exists() || self.extensions.iter().any(with)
        };
        layers.iter().any(place) || file.as_os_str().is_empty()
    }
}

/// How much of a line's text, or of what is wrong with it, is shown, characters: a minified file is one line.
const SHOWN: usize = 160;

/// The most files that are parsed, so that a folder full of packages is not held up.
const MOST_FILES: usize = 500;

/// Parses the function's files with this machine's interpreter, if there is one.
///
/// A fault in a file that the handler's module comes to import is an error with file and line. One in another
/// file, or in one that is imported in some cases only, for other interpreters, say, is a warning; and so is a handler that is not there, since
/// code may make it as it runs.
///
/// # Errors
///
/// The first fault in what the handler imports.
pub(super) fn check(folder: &Path, manifest: &Manifest, pythons: &Pythons) -> Result<()> {
    let language = match manifest.runtime {
        Some(runtime) if runtime.is_python() => PYTHON,
        Some(Runtime::Node) => NODE,
        _ => return Ok(()),
    };
    let handler = manifest.handler.as_deref().unwrap_or_default();
    let own = folder.join((language.file_of)(handler).parent().unwrap_or(Path::new("")));
    let ignore = Ignore::of(folder).unwrap_or_else(|_| Ignore::usual());
    let mut files = Vec::new();
    collect(folder, Path::new(""), &ignore, &language, &mut files);
    // The function's own files first, for when there are too many.
    files.sort_by_key(|file| (file.parent() != Some(&own), file.clone()));
    files.truncate(MOST_FILES);
    let file = (language.file_of)(handler);
    if !language.is_there(folder, &file) {
        say!(
            "ol: warning: there is no {}.{} in the folder, which handler = \"{handler}\" names; calls fail \
             until there is",
            file.display(),
            language.extensions[0]
        );
    }
    let mut fatal = None;
    let Some(program) = interpreter(&language, manifest, pythons) else { return Ok(()) };
    for finding in findings(&language, &program, folder, handler, &files) {
        let file = &files[finding.file];
        let file = file.strip_prefix(folder).unwrap_or(file).display();
        let text = match finding.text.as_str() {
            "" => String::new(),
            text => format!(": {text}"),
        };
        let what = format!("{file}, line {}: {}{text}", finding.line, finding.message);
        match finding.kind {
            Kind::Fault => fatal = fatal.or(Some(what)),
            Kind::Unused => say!("ol: warning: {what}"),
            Kind::Handler => say!(
                "ol: warning: {file} {}, which handler = \"{handler}\" names; calls fail until it does",
                finding.message
            ),
        }
    }
    match fatal {
        Some(what) => Err(CliError::new(format!("{what}\n    correct it and deploy again"))),
        None => Ok(()),
    }
}

/// The interpreter that will run the function, as far as this machine has it. Another version would find faults in
/// what is right, and pass over others.
fn interpreter(language: &Language, manifest: &Manifest, pythons: &Pythons) -> Option<PathBuf> {
    match manifest.runtime {
        Some(Runtime::Python) => pythons.usual().map(Path::to_owned),
        Some(Runtime::PythonMinor(minor)) => match pythons.of(minor) {
            Ok(python) => Some(python.program),
            Err(why) => {
                say!(
                    "ol: warning: {why}; calls fail on workers that have none, and the syntax is not checked"
                );
                None
            }
        },
        _ => Some(language.program.into()),
    }
}

/// The files in `below`, a folder within the function's.
fn collect(
    folder: &Path,
    below: &Path,
    ignore: &Ignore,
    language: &Language,
    files: &mut Vec<PathBuf>,
) {
    for entry in std::fs::read_dir(folder.join(below)).into_iter().flatten().flatten() {
        let path = below.join(entry.file_name());
        let Ok(kind) = entry.file_type() else { continue };
        if path.to_str().is_none_or(|path| ignore.leaves_out(path, kind.is_dir())) {
            continue;
        }
        let known = |e: &std::ffi::OsStr| language.extensions.iter().any(|known| e == *known);
        if kind.is_dir() {
            let name = entry.file_name();
            if !language.passed_over.iter().any(|passed| name == *passed) {
                collect(folder, &path, ignore, language, files);
            }
        } else if kind.is_file() && path.extension().is_some_and(known) {
            files.push(folder.join(path));
        }
    }
}

/// What was found out of a file.
struct Finding {
    kind: Kind,
    /// Its place among the files.
    file: usize,
    line: u64,
    message: String,
    text: String,
}

enum Kind {
    /// It cannot be parsed, and the handler's module imports it.
    Fault,
    /// It cannot be parsed, and nothing imports it.
    Unused,
    /// The handler is not in it.
    Handler,
}

/// The beginning of a text that may be long.
fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What is wrong. Nothing where the interpreter cannot be asked: then the first call tells.
fn findings(
    language: &Language,
    program: &Path,
    folder: &Path,
    handler: &str,
    files: &[PathBuf],
) -> Vec<Finding> {
    let asked = || {
        let mut interpreter = Command::new(program)
            .args(language.arguments)
            .arg(language.check)
            .env_remove("NODE_OPTIONS")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut input = interpreter.stdin.take()?;
        let files = files.iter().map(|file| file.as_os_str());
        for text in [folder.as_os_str(), handler.as_ref()].into_iter().chain(files) {
            // One that ends early says less, and that is all.
            let _ = input.write_all(text.as_encoded_bytes());
            let _ = input.write_all(b"\0");
        }
        drop(input);
        interpreter.wait_with_output().ok()
    };
    let Some(output) = asked() else { return Vec::new() };
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let finding = |line: &str| {
        let mut parts = line.split('\0');
        Some(Finding {
            kind: match parts.next()? {
                "fault" => Kind::Fault,
                "unused" => Kind::Unused,
                "handler" => Kind::Handler,
                _ => return None,
            },
            file: parts.next()?.parse().ok().filter(|file| *file < files.len())?,
            line: parts.next()?.parse().ok()?,
            message: shown(parts.next()?),
            text: shown(parts.next()?),
        })
    };
    output.lines().filter_map(finding).collect()
}
