//! Runtime and handler, found from a function's files where the manifest does not name them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::{
    MANIFEST_FILE, MANIFEST_LIMIT, Manifest, ManifestError, Runtime, Style, YAML_FILE, too_long,
};

/// How much of a file is read to see whether it defines a handler, bytes.
pub const SOURCE_LIMIT: u64 = 1 << 20;

/// Files that are looked into for a handler where none of those is there that always have one.
const LOOKED_INTO: [(&str, Runtime, &[&str], &[&str]); 2] = [
    ("py", Runtime::Python, &["app", "index", "handler", "main"], &["lambda_handler", "handler"]),
    ("js", Runtime::Node, &["app", "handler", "main"], &["handler", "lambdaHandler"]),
];

/// Descriptions of functions by other tools, which stand beside the function or above it.
const OF_OTHER_TOOLS: [(&str, &str); 5] = [
    ("template.yaml", "AWS SAM"),
    ("template.yml", "AWS SAM"),
    ("serverless.yml", "the Serverless Framework"),
    ("serverless.yaml", "the Serverless Framework"),
    ("function.json", "Azure Functions"),
];

impl Manifest {
    /// Reads the manifest of the function in the folder `dir` and fills in what its files tell.
    ///
    /// | file | runtime, handler, style |
    /// |---|---|
    /// | `f.py` | python, `f.f`, event |
    /// | `lambda_func.py` | python, `lambda_func.handler`, legacy |
    /// | `lambda_function.py` | python, `lambda_function.lambda_handler`, lambda |
    /// | `bootstrap` | bootstrap |
    /// | `index.js`, `index.mjs`, `index.cjs` | node, `index.handler`, lambda; `index.lambdaHandler` if it has that alone |
    ///
    /// Where none of these is there, the one is found that defines a handler, of `app.py`, `index.py`,
    /// `handler.py` and `main.py` with `lambda_handler` or `handler`, and of `app.js`, `handler.js` and
    /// `main.js` (or `.mjs`, `.cjs`) with `handler` or `lambdaHandler`; the style is lambda.
    ///
    /// With `style = "wsgi"` or `"asgi"` they tell the handler: `wsgi.application` or
    /// `asgi.application`, or `app` in `f.py`, `app.py` or `main.py`.
    ///
    /// # Errors
    ///
    /// [`ManifestError`], also when the files do not tell what the function is.
    pub fn load(dir: &Path) -> Result<Self, ManifestError> {
        let text = |file: &str| {
            let mut text = String::new();
            let read = File::open(dir.join(file)).and_then(|opened| {
                opened.take(MANIFEST_LIMIT as u64 + 1).read_to_string(&mut text)
            });
            match read {
                Ok(length) if length > MANIFEST_LIMIT => {
                    Err(ManifestError::Unclear(format!("{file} {}", too_long(text.as_bytes()))))
                }
                Ok(_) => Ok(Some(text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(ManifestError::from(error)),
            }
        };
        let source = |file: &str| {
            let mut source = Vec::new();
            let opened = File::open(dir.join(file)).ok()?;
            opened.take(SOURCE_LIMIT).read_to_end(&mut source).ok()?;
            Some(String::from_utf8_lossy(&source).into_owned())
        };
        Manifest::of_files(text, source, |file| dir.join(file).is_file())
    }

    /// The manifest of a function whose files say `text`, `source` and `has`: what a manifest's text is, if
    /// there is one; how a program's text begins, up to [`SOURCE_LIMIT`], whatever its bytes are; and whether
    /// there is a file.
    ///
    /// # Errors
    ///
    /// Those of [`Manifest::load`], and of `text`.
    pub fn of_files<E: From<ManifestError>>(
        text: impl Fn(&str) -> Result<Option<String>, E>,
        source: impl Fn(&str) -> Option<String>,
        has: impl Fn(&str) -> bool,
    ) -> Result<Self, E> {
        let manifest = match (text(MANIFEST_FILE)?, text(YAML_FILE)?) {
            (Some(_), Some(_)) => Err(ManifestError::Unclear(format!(
                "there are both {MANIFEST_FILE} and {YAML_FILE}; keep one of them ({MANIFEST_FILE} \
                 has more settings)"
            ))),
            (Some(toml), None) => Manifest::parse(&toml),
            (None, Some(yaml)) => Manifest::parse_yaml(&yaml, &has),
            (None, None) => Ok(Manifest::default()),
        };
        let manifest = manifest.and_then(|manifest| manifest.complete_from(source, has))?;
        manifest.check_size()?;
        Ok(manifest)
    }

    /// Fills in runtime, handler and style from the files that `has` says are there, by their names alone.
    ///
    /// # Errors
    ///
    /// Those of [`Manifest::complete_from`].
    pub fn complete(self, has: impl Fn(&str) -> bool) -> Result<Self, ManifestError> {
        self.complete_from(|_| None, has)
    }

    /// Fills in runtime, handler and style from the files that `has` says are there, and what `source` says
    /// of the text of those that may define a handler.
    ///
    /// # Errors
    ///
    /// [`ManifestError::Unclear`] when they do not tell, [`ManifestError::Value`] for a handler or a style
    /// that cannot be.
    pub fn complete_from(
        mut self,
        source: impl Fn(&str) -> Option<String>,
        has: impl Fn(&str) -> bool,
    ) -> Result<Self, ManifestError> {
        use Runtime::{Bootstrap, Node, Python};
        const TOLD_BY: [(&str, Runtime, &str, Style); 7] = [
            ("f.py", Python, "f.f", Style::Event),
            ("lambda_func.py", Python, "lambda_func.handler", Style::Legacy),
            ("lambda_function.py", Python, "lambda_function.lambda_handler", Style::Lambda),
            ("bootstrap", Bootstrap, "", Style::Lambda),
            ("index.js", Node, "index.handler", Style::Lambda),
            ("index.mjs", Node, "index.handler", Style::Lambda),
            ("index.cjs", Node, "index.handler", Style::Lambda),
        ];
        if let Some((module, object)) = self.handler.as_deref().and_then(|h| h.split_once(':')) {
            if object.contains(':') {
                return Err(ManifestError::Value(format!(
                    "handler = \"{module}:{object}\" has more than one colon; write module:function"
                )));
            }
            self.handler = Some(format!("{module}.{object}"));
        }
        if matches!(self.style, Some(Style::Wsgi | Style::Asgi)) {
            self.complete_web(&has)?;
        }
        if let Some(handler) = &self.handler {
            // A handler names its file, so it tells the runtime and, for known names, the style.
            let module = handler.rsplit_once('.').map_or("", |(module, _)| module);
            let file = module.replace('.', "/");
            // In Node.js the function may be a property of a property: `path/file.api.get`.
            let (folder, name) = handler.rsplit_once('/').unwrap_or(("", handler));
            let script = name.split('.').next().unwrap_or_default();
            let script =
                if folder.is_empty() { script.into() } else { format!("{folder}/{script}") };
            let has_script = || {
                ["js", "mjs", "cjs"].iter().any(|extension| has(&format!("{script}.{extension}")))
            };
            if self.runtime.is_none() {
                self.runtime = match () {
                    () if has(&format!("{file}.py")) || has(&format!("{file}/__init__.py")) => {
                        Some(Python)
                    }
                    () if has_script() => Some(Node),
                    () if has("bootstrap") => Some(Bootstrap),
                    () => None,
                };
            }
            if self.style.is_none() {
                let known = TOLD_BY.iter().find(|(_, _, known, _)| known == handler);
                self.style = Some(known.map_or(Style::Lambda, |(.., style)| *style));
            }
        } else {
            let told = TOLD_BY
                .iter()
                .filter(|(_, runtime, ..)| {
                    self.runtime.is_none_or(|wanted| wanted.language() == *runtime)
                })
                .find(|(file, ..)| has(file));
            if let Some((file, runtime, handler, style)) = told {
                self.runtime.get_or_insert(*runtime);
                self.handler = Some((*handler).to_owned());
                self.style.get_or_insert(*style);
                // SAM's own template calls it so.
                let other = |text: &String| {
                    !defines(text, Node, "handler") && defines(text, Node, "lambdaHandler")
                };
                if *runtime == Node && source(file).as_ref().is_some_and(other) {
                    self.handler = Some("index.lambdaHandler".to_owned());
                }
            } else if self.runtime == Some(Bootstrap) {
                return Err(ManifestError::Unclear(
                    "the runtime is bootstrap, but there is no file named bootstrap; add one, \
                     executable, that speaks the Lambda Runtime API"
                        .to_owned(),
                ));
            }
        }
        if self.handler.is_none() {
            self.look_into(&source, &has)?;
        }
        self.check_handler()?;
        if self.runtime.is_none() || self.handler.is_none() {
            return Err(ManifestError::Unclear(format!(
                "cannot tell what to run: there is no f.py, lambda_func.py, lambda_function.py, \
                 index.js or bootstrap here; add one of them, or set runtime and handler in ol.toml{}",
                of_other_tools(&has)
            )));
        }
        Ok(self)
    }

    /// Fills in the one handler that the files define whose names alone do not tell.
    fn look_into(
        &mut self,
        source: impl Fn(&str) -> Option<String>,
        has: impl Fn(&str) -> bool,
    ) -> Result<(), ManifestError> {
        let mut found = Vec::new();
        let mut without = Vec::new();
        for (kind, runtime, modules, handlers) in LOOKED_INTO {
            if self.runtime.is_some_and(|wanted| wanted.language() != runtime) {
                continue;
            }
            let kinds = if kind == "js" { &["js", "mjs", "cjs"][..] } else { &["py"] };
            for module in modules {
                let files = kinds.iter().map(|kind| format!("{module}.{kind}"));
                for file in files.filter(|file| has(file)) {
                    let Some(text) = source(&file) else { continue };
                    match handlers.iter().find(|name| defines(&text, runtime, name)) {
                        Some(name) => found.push((file, runtime, format!("{module}.{name}"))),
                        None => without.push((file, handlers.join(" nor "))),
                    }
                }
            }
        }
        match (&found[..], &without[..]) {
            ([(_, runtime, handler)], _) => {
                self.runtime.get_or_insert(*runtime);
                self.handler = Some(handler.clone());
                self.style.get_or_insert(Style::Lambda);
                Ok(())
            }
            ([], []) => Ok(()),
            ([], [(file, names), ..]) => Err(ManifestError::Unclear(format!(
                "cannot tell what to run: {file} defines neither {names}; define one there, or set \
                 handler in ol.toml (and style, for a web application){}",
                of_other_tools(&has)
            ))),
            _ => {
                let each: Vec<_> =
                    found.iter().map(|(file, _, handler)| format!("{handler} in {file}")).collect();
                Err(ManifestError::Unclear(format!(
                    "cannot tell which handler to run: there are {}; set handler in ol.toml{}",
                    each.join(", "),
                    of_other_tools(&has)
                )))
            }
        }
    }

    /// Whether the handler can name anything at all; whether it is there shows when it is loaded.
    fn check_handler(&self) -> Result<(), ManifestError> {
        let Some(handler) = &self.handler else { return Ok(()) };
        let empty = match self.runtime {
            Some(runtime) if runtime.is_python() => handler.split('.').any(str::is_empty),
            Some(Runtime::Node) => {
                let file_and_names = handler.rsplit_once('/').map_or(&**handler, |(_, name)| name);
                file_and_names.split('.').any(str::is_empty)
            }
            _ => false,
        };
        if !empty && !handler.contains(char::is_control) {
            return Ok(());
        }
        let shown: String = handler.escape_debug().take(80).collect();
        Err(ManifestError::Value(format!(
            "handler = \"{shown}\" names no function; write module.function, or in Node.js \
             path/file.function"
        )))
    }

    /// Fills in where a web application is, if its style alone is known.
    fn complete_web(&mut self, has: impl Fn(&str) -> bool) -> Result<(), ManifestError> {
        let style = self.style.map_or("", Style::as_str);
        if let Some(other) = self.runtime.filter(|runtime| !runtime.is_python()) {
            return Err(ManifestError::Value(format!(
                "style = \"{style}\" is for Python, and the runtime is {other}; remove one of them"
            )));
        }
        self.runtime = self.runtime.or(Some(Runtime::Python));
        if self.handler.is_none() {
            let own = format!("{style}.application");
            let known = [own.as_str(), "f.app", "app.app", "main.app"];
            let module = |handler: &str| handler.split('.').next().map(|name| format!("{name}.py"));
            let found = known.iter().find(|handler| module(handler).is_some_and(|file| has(&file)));
            let handler = found.ok_or_else(|| {
                ManifestError::Unclear(format!(
                    "cannot tell where the application is: there is no {style}.py, f.py, app.py or \
                     main.py here; set handler = \"module:application\" in {MANIFEST_FILE}"
                ))
            })?;
            self.handler = Some((*handler).to_owned());
        }
        Ok(())
    }
}

/// Whether a program's text defines a function of this name where others find it. What only a run of it
/// could tell is not found.
fn defines(text: &str, runtime: Runtime, name: &str) -> bool {
    match runtime {
        Runtime::Python => text.lines().any(|line| defines_in_python(line, name)),
        _ => exports(text, name),
    }
}

/// `def NAME(`, `async def NAME(`, `NAME = …`, `from … import NAME`, `… import … as NAME`, not indented.
fn defines_in_python(line: &str, name: &str) -> bool {
    let after = |text: &str, word: &str| {
        let rest = text.strip_prefix(word)?;
        rest.starts_with([' ', '\t']).then(|| rest.trim_start().to_owned())
    };
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    let function = after(line, "async").unwrap_or_else(|| line.to_owned());
    if let Some(function) = after(&function, "def") {
        return function.strip_prefix(name).is_some_and(ends);
    }
    if line.starts_with("from ") || line.starts_with("import ") {
        let Some((_, names)) = line.split_once("import ") else { return false };
        let names = names.split('#').next().unwrap_or_default().replace(['(', ')'], " ");
        return names.split(',').any(|named| named.split_whitespace().last() == Some(name));
    }
    let Some(rest) = line.strip_prefix(name).filter(|rest| ends(rest)) else { return false };
    let Some((before, value)) = rest.split_once('=') else { return false };
    let annotated = before.trim();
    // What handles log lines is called so as well.
    let logs = value.contains("logging.") || value.contains("StreamHandler");
    (annotated.is_empty() || annotated.starts_with(':')) && !value.starts_with('=') && !logs
}

/// `exports.NAME = …`, `module.exports = { NAME … }`, `export const NAME`, `export { … NAME }`, and what
/// compilers make of these.
fn exports(text: &str, name: &str) -> bool {
    let is_letter = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    let mut from = 0;
    while let Some(at) = text[from..].find(name).map(|at| from + at) {
        from = at + name.len();
        if text[from..].starts_with(is_letter) || text[..at].ends_with(is_letter) {
            continue;
        }
        let (before, after) = (text[..at].trim_end(), text[from..].trim_start());
        if before.ends_with("exports.") && after.starts_with('=') && !after.starts_with("==") {
            return true;
        }
        let declared = ["const", "let", "var", "function", "function*", "function *"];
        let exported = declared.iter().any(|word| {
            let before = before.strip_suffix(word).map(str::trim_end).unwrap_or_default();
            before.strip_suffix("async").map_or(before, str::trim_end).ends_with("export")
        });
        if exported {
            return true;
        }
        // In a list of exports.
        if let Some(open) = before.rfind('{') {
            let head = before[..open].trim_end();
            let heads = ["export", "exports =", "exports=", "exports,"];
            let listed = heads.iter().any(|end| head.ends_with(end));
            if listed && !before[open + 1..].contains([';', '}']) {
                return true;
            }
        }
    }
    false
}

/// What is said of descriptions for other tools that are there.
fn of_other_tools(has: impl Fn(&str) -> bool) -> String {
    let there = OF_OTHER_TOOLS.iter().find(|(file, _)| has(file));
    there.map_or_else(String::new, |(file, tool)| {
        format!(
            " ({file} of {tool} is not read; what it calls the handler goes there, and if its code is in \
             another folder, deploy that one)"
        )
    })
}
