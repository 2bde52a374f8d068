//! Runtime and handler, found from a function's files where the manifest does not name them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::{
    MANIFEST_FILE, MANIFEST_LIMIT, Manifest, ManifestError, Runtime, Style, TOO_LONG, YAML_FILE,
};

impl Manifest {
    /// Reads the manifest of the function in the folder `dir` and fills in what its files tell.
    ///
    /// | file | runtime, handler, style |
    /// |---|---|
    /// | `f.py` | python, `f.f`, event |
    /// | `lambda_func.py` | python, `lambda_func.handler`, legacy |
    /// | `lambda_function.py` | python, `lambda_function.lambda_handler`, lambda |
    /// | `bootstrap` | bootstrap |
    /// | `index.js`, `index.mjs`, `index.cjs` | node, `index.handler`, lambda |
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
                    Err(ManifestError::Unclear(format!("{file} {TOO_LONG}")))
                }
                Ok(_) => Ok(Some(text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(ManifestError::from(error)),
            }
        };
        Manifest::of_files(text, |file| dir.join(file).is_file())
    }

    /// The manifest of a function whose files say `text` and `has`: what one file's text is, if there
    /// is one, and whether there is one.
    ///
    /// # Errors
    ///
    /// Those of [`Manifest::load`], and of `text`.
    pub fn of_files<E: From<ManifestError>>(
        text: impl Fn(&str) -> Result<Option<String>, E>,
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
        let manifest = manifest.and_then(|manifest| manifest.complete(has))?;
        manifest.check_size()?;
        Ok(manifest)
    }

    /// Fills in runtime, handler and style from the files that `has` says are there.
    ///
    /// # Errors
    ///
    /// [`ManifestError::Unclear`] when they do not tell, [`ManifestError::Value`] for a handler or a style
    /// that cannot be.
    pub fn complete(mut self, has: impl Fn(&str) -> bool) -> Result<Self, ManifestError> {
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
                .filter(|(_, runtime, ..)| self.runtime.is_none_or(|wanted| wanted == *runtime))
                .find(|(file, ..)| has(file));
            if let Some((_, runtime, handler, style)) = told {
                self.runtime = Some(*runtime);
                self.handler = Some((*handler).to_owned());
                self.style.get_or_insert(*style);
            } else if self.runtime == Some(Bootstrap) {
                return Err(ManifestError::Unclear(
                    "the runtime is bootstrap, but there is no file named bootstrap; add one, \
                     executable, that speaks the Lambda Runtime API"
                        .to_owned(),
                ));
            }
        }
        self.check_handler()?;
        if self.runtime.is_none() || self.handler.is_none() {
            return Err(ManifestError::Unclear(
                "cannot tell what to run: there is no f.py, lambda_func.py, lambda_function.py, \
                 index.js or bootstrap here; add one of them, or set runtime and handler in ol.toml"
                    .to_owned(),
            ));
        }
        Ok(self)
    }

    /// Whether the handler can name anything at all; whether it is there shows when it is loaded.
    fn check_handler(&self) -> Result<(), ManifestError> {
        let Some(handler) = &self.handler else { return Ok(()) };
        let empty = match self.runtime {
            Some(Runtime::Python) => handler.split('.').any(str::is_empty),
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
        if let Some(other) = self.runtime.filter(|runtime| *runtime != Runtime::Python) {
            let other = format!("{other:?}").to_lowercase();
            return Err(ManifestError::Value(format!(
                "style = \"{style}\" is for Python, and the runtime is {other}; remove one of them"
            )));
        }
        self.runtime = Some(Runtime::Python);
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
