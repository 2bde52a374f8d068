//! `ol.yaml`, the manifest of OpenLambda's Go project, with the meaning that it has there.
//!
//! | in `ol.yaml` | in `ol.toml` |
//! |---|---|
//! | `triggers.http`, a list of `method` | `methods`; any method when it is empty or has `*` |
//! | `triggers.cron`, `triggers.kafka` | nothing yet; refused without `triggers.http`, since nothing would call the function |
//! | `environment` | `[environment]` |
//! | `OL_ENTRY_FILE` in it, `f.py` by default | the module of `handler` |
//! | `OL_WSGI_ENTRY`, `OL_ASGI_ENTRY` in it | `handler` and `style = "wsgi"`, `style = "asgi"` |
//! | `reuse-sandbox` | `reuse` |
//! | `limits`: `mem_mb`, `procs`, `cpu_percent`, `runtime_sec` | `memory_mb`, `processes`, `cpus`, `timeout_seconds` |
//!
//! Without either entry the handler is the module's `f`, or, if it has none, the application `app`. The
//! bootstrap finds out which (`runtimes/python/bootstrap.py`), since it takes loading the module.

#[cfg(not(feature = "yaml"))]
use super::{Manifest, ManifestError};

#[cfg(not(feature = "yaml"))]
impl Manifest {
    pub(super) fn parse_yaml(_: &str, _: impl Fn(&str) -> bool) -> Result<Self, ManifestError> {
        Err(ManifestError::Unclear(format!(
            "this program is built without {}; write {} instead, or build openlambda-core with its \
             feature yaml",
            super::YAML_FILE,
            super::MANIFEST_FILE
        )))
    }
}

#[cfg(feature = "yaml")]
pub use with_feature::unserved_triggers;

/// Which triggers of an `ol.yaml` are not served: this program reads none.
#[cfg(not(feature = "yaml"))]
pub fn unserved_triggers(_: &str) -> Vec<&'static str> {
    Vec::new()
}

#[cfg(feature = "yaml")]
mod with_feature {
    use std::collections::BTreeMap;
    use std::fmt;

    use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
    use serde::{Deserialize, Deserializer};

    use crate::config::{ConfigError, parse_yaml};
    use crate::manifest::check::{environment_too_long, takes};
    use crate::manifest::{
        ENVIRONMENT_LIMIT, Manifest, ManifestError, Runtime, Style, YAML_FILE, check_length,
    };

    /// The most entries of `triggers.http`.
    const MOST_TRIGGERS: usize = 64;

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Yaml {
        #[serde(alias = "Triggers")]
        triggers: Option<Triggers>,
        environment: Option<Environment>,
        #[serde(rename = "reuse-sandbox")]
        reuse_sandbox: Option<bool>,
        #[serde(alias = "Limits")]
        limits: Option<Limits>,
        max_runtime_sec: Option<f64>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Triggers {
        http: Option<HttpTriggers>,
        cron: Option<Vec<IgnoredAny>>,
        kafka: Option<Vec<IgnoredAny>>,
    }

    impl Triggers {
        /// Those that nothing calls the function by.
        fn unserved(&self) -> Vec<&'static str> {
            let others = [("cron", &self.cron), ("kafka", &self.kafka)];
            let there = |others: &Option<Vec<IgnoredAny>>| {
                others.as_ref().is_some_and(|others| !others.is_empty())
            };
            others.into_iter().filter(|(_, list)| there(list)).map(|(name, _)| name).collect()
        }
    }

    /// Which triggers of an `ol.yaml` are not served, although it is a valid one: `cron`, `kafka`.
    pub fn unserved_triggers(text: &str) -> Vec<&'static str> {
        let yaml = check_length(text, YAML_FILE).and_then(|()| Ok(parse_yaml(text, YAML_FILE)?));
        let yaml: Option<Yaml> = yaml.unwrap_or_default();
        yaml.and_then(|yaml| yaml.triggers).unwrap_or_default().unserved()
    }

    /// The variables, counted one by one as they come: with aliases (`*a`) a text of 64 KiB stands for
    /// one of many MiB.
    #[derive(Debug, Default)]
    struct Environment(BTreeMap<String, String>);

    impl<'de> Deserialize<'de> for Environment {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Variables;
            impl<'de> Visitor<'de> for Variables {
                type Value = Environment;

                fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                    to.write_str("a map")
                }

                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Environment, A::Error> {
                    let (mut variables, mut bytes) = (BTreeMap::new(), 0);
                    while let Some((key, value)) = map.next_entry::<String, Option<String>>()? {
                        // In Go nothing, `~`, is the empty text.
                        let value = value.unwrap_or_default();
                        bytes += takes(&key, &value);
                        if bytes > ENVIRONMENT_LIMIT {
                            return Err(A::Error::custom(environment_too_long()));
                        }
                        if variables.contains_key(&key) {
                            let why = format!("variable \"{key}\" is there twice; remove one");
                            return Err(A::Error::custom(why));
                        }
                        variables.insert(key, value);
                    }
                    Ok(Environment(variables))
                }
            }
            deserializer.deserialize_map(Variables)
        }
    }

    /// The triggers, for the same reason counted as they come.
    #[derive(Debug, Default)]
    struct HttpTriggers(Vec<HttpTrigger>);

    impl<'de> Deserialize<'de> for HttpTriggers {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Triggers;
            impl<'de> Visitor<'de> for Triggers {
                type Value = HttpTriggers;

                fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                    to.write_str("a sequence")
                }

                fn visit_seq<A: SeqAccess<'de>>(
                    self,
                    mut list: A,
                ) -> Result<HttpTriggers, A::Error> {
                    let mut triggers = Vec::new();
                    while let Some(trigger) = list.next_element()? {
                        if triggers.len() == MOST_TRIGGERS {
                            let why = format!(
                                "triggers.http has over {MOST_TRIGGERS} entries; name each method once"
                            );
                            return Err(A::Error::custom(why));
                        }
                        triggers.push(trigger);
                    }
                    Ok(HttpTriggers(triggers))
                }
            }
            deserializer.deserialize_seq(Triggers)
        }
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct HttpTrigger {
        method: String,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Limits {
        mem_mb: Option<u64>,
        procs: Option<u32>,
        cpu_percent: Option<f64>,
        runtime_sec: Option<f64>,
    }

    impl Manifest {
        /// Parses the text of an `ol.yaml`, of a function that has the files that `has` says.
        ///
        /// # Errors
        ///
        /// [`ManifestError::Config`] names the key and its line; [`ManifestError::Unclear`] what else
        /// is wrong.
        pub fn parse_yaml(text: &str, has: impl Fn(&str) -> bool) -> Result<Self, ManifestError> {
            check_length(text, YAML_FILE)?;
            let yaml: Option<Yaml> = parse_yaml(text, YAML_FILE)?;
            let yaml = yaml.unwrap_or_default();
            let mut manifest = Manifest::default();
            let wrong = |why: String| ManifestError::Unclear(format!("{YAML_FILE}: {why}"));
            let triggers = yaml.triggers.unwrap_or_default();
            if let (None, Some(name)) = (&triggers.http, triggers.unserved().first()) {
                return Err(wrong(format!(
                    "triggers.{name} is not served yet, so nobody would call the function; remove it, and \
                     call the function over HTTP"
                )));
            }
            let methods = triggers.http.unwrap_or_default().0.into_iter();
            let methods: Vec<_> = methods.map(|http| http.method.trim().to_uppercase()).collect();
            if !methods.is_empty() && !methods.iter().any(|method| method == "*") {
                manifest.methods = Some(methods);
            }
            if let Some(reuse) = yaml.reuse_sandbox {
                manifest.reuse = reuse;
            }
            let limits = yaml.limits.unwrap_or_default();
            manifest.memory_mb = limits.mem_mb.unwrap_or(manifest.memory_mb);
            manifest.processes = limits.procs.unwrap_or(manifest.processes);
            manifest.cpus = limits.cpu_percent.map_or(manifest.cpus, |percent| percent / 100.0);
            let seconds = limits.runtime_sec.or(yaml.max_runtime_sec);
            manifest.timeout_seconds = seconds.unwrap_or(manifest.timeout_seconds);
            manifest.environment = yaml.environment.unwrap_or_default().0;
            if let Some((key, message)) = manifest.wrong_variable() {
                let is_key = |line: &str| {
                    let line = line.trim_start().trim_start_matches(['"', '\'']);
                    let rest = line.strip_prefix(key).unwrap_or_default();
                    rest.trim_start_matches(['"', '\'', ' ']).starts_with(':')
                };
                let line = text.lines().position(is_key).map(|line| line + 1);
                return Err(ConfigError { origin: YAML_FILE.to_owned(), line, message }.into());
            }
            manifest.enter(&has).map_err(wrong)?;
            match manifest.check() {
                Err(ManifestError::Value(why)) => Err(wrong(why)),
                checked => checked.map(|()| manifest),
            }
        }

        /// What the entries `OL_…` of the environment say is run.
        fn enter(&mut self, has: impl Fn(&str) -> bool) -> Result<(), String> {
            let said = |key: &str| self.environment.get(key).filter(|value| !value.is_empty());
            let file = said("OL_ENTRY_FILE");
            let (object, style) = match (said("OL_WSGI_ENTRY"), said("OL_ASGI_ENTRY")) {
                (Some(_), Some(_)) => {
                    let why = "OL_WSGI_ENTRY and OL_ASGI_ENTRY are both set; keep one of them";
                    return Err(why.to_owned());
                }
                (Some(object), None) => (object.as_str(), Style::Wsgi),
                (None, Some(object)) => (object.as_str(), Style::Asgi),
                (None, None) if file.is_some() => ("f", Style::Event),
                (None, None) => return Ok(()),
            };
            let file = file.map_or("f.py", String::as_str);
            let Some(module) = file.strip_suffix(".py") else {
                return Err(format!(
                    "OL_ENTRY_FILE names {file}; name a Python file, like main.py"
                ));
            };
            if !has(file) {
                return Err(format!(
                    "OL_ENTRY_FILE is {file}, and there is no such file; add it, or name another"
                ));
            }
            self.handler = Some(format!("{}.{object}", module.replace('/', ".")));
            self.runtime = Some(Runtime::Python);
            self.style = Some(style);
            Ok(())
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn parse(text: &str) -> Result<Manifest, String> {
            let has = |file: &str| ["f.py", "main.py", "web/site.py"].contains(&file);
            let manifest = Manifest::parse_yaml(text, has).and_then(|m| m.complete(has));
            manifest.map_err(|error| error.to_string())
        }

        #[test]
        fn what_it_says_is_what_a_toml_would_say() {
            let yaml = r#"
triggers:
  http:
    - method: GET
    - method: post

reuse-sandbox: false

environment:
  OL_ENTRY_FILE: "main.py"
  OL_WSGI_ENTRY: "my_wsgi_app"
  FAIL_PROBABILITY: 0.30
  DEBUG: true
limits:
  mem_mb: 64
  procs: 10
  cpu_percent: 50
  runtime_sec: 2
"#;
            let toml = r#"
                methods = ["GET", "POST"]
                reuse = false
                runtime = "python"
                handler = "main.my_wsgi_app"
                style = "wsgi"
                memory_mb = 64
                processes = 10
                cpus = 0.5
                timeout_seconds = 2
                [environment]
                OL_ENTRY_FILE = "main.py"
                OL_WSGI_ENTRY = "my_wsgi_app"
                FAIL_PROBABILITY = "0.30"
                DEBUG = "true"
            "#;
            assert_eq!(parse(yaml).unwrap(), Manifest::parse(toml).unwrap());
        }

        #[test]
        fn triggers_beside_http_are_told_and_harm_nothing() {
            let text = "triggers:\n  http: [method: GET]\n  kafka: [topics: [a]]\n  cron: []\n";
            assert_eq!(parse(text).unwrap().methods, Some(vec!["GET".to_owned()]));
            assert_eq!(unserved_triggers(text), ["kafka"]);
            let both = "triggers: {http: [method: '*'], cron: [schedule: x], kafka: [topics: [a]]}";
            assert_eq!(unserved_triggers(both), ["cron", "kafka"]);
            assert!(
                parse(both).is_ok()
                    && unserved_triggers("triggers: {http: [method: GET]}").is_empty()
            );
            assert!(unserved_triggers("").is_empty() && unserved_triggers("{").is_empty());
        }

        #[test]
        fn the_entries_say_what_is_run() {
            for (environment, handler, style) in [
                ("{}", "f.f", Style::Event),
                ("{OL_ENTRY_FILE: main.py}", "main.f", Style::Event),
                ("{OL_WSGI_ENTRY: application}", "f.application", Style::Wsgi),
                ("{OL_ENTRY_FILE: web/site.py, OL_ASGI_ENTRY: app}", "web.site.app", Style::Asgi),
            ] {
                let manifest = parse(&format!("environment: {environment}")).unwrap();
                assert_eq!(manifest.handler.as_deref(), Some(handler), "{environment}");
                assert_eq!(manifest.style, Some(style), "{environment}");
            }
            for any in ["", "triggers:", "triggers: {http: []}", "triggers: {http: [method: '*']}"]
            {
                assert_eq!(parse(any).unwrap().methods, None, "{any}");
            }
        }

        #[test]
        fn what_cannot_be_is_refused_with_the_reason() {
            for (text, why) in [
                ("a: [", "ol.yaml, line "),
                (
                    "environment: {}\ntrigers: {}",
                    "line 2: unknown key \"trigers\"; did you mean \"triggers\"?",
                ),
                ("triggers:\n  htp: []", "line 2: unknown key \"htp\"; did you mean \"http\"?"),
                ("triggers: {http: [{methods: GET}]}", "did you mean \"method\"?"),
                ("triggers: {http: [method: 'G T']}", "write it as \"GET\""),
                ("triggers: {cron: [schedule: '* * * * *']}", "triggers.cron is not served yet"),
                ("triggers: {kafka: [topics: [a]]}", "triggers.kafka is not served yet"),
                ("environment:\n  A: b\n  _HANDLER: f", "ol.yaml, line 3: environment variable"),
                ("reuse-sandbox: maybe", "ol.yaml, line 1: "),
                ("limits: {mem_mb: 0}", "ol.yaml: memory_mb = 0 is out of range"),
                ("environment: {OL_ENTRY_FILE: none.py}", "there is no such file"),
                ("environment: {OL_ENTRY_FILE: f.go}", "name a Python file"),
                ("environment: {OL_WSGI_ENTRY: a, OL_ASGI_ENTRY: b}", "keep one"),
                ("environment: {'A=B': c}", "use letters, digits and _"),
            ] {
                let error = parse(text).unwrap_err();
                assert!(error.contains(why), "{text}: {error}");
            }
        }

        /// Each of these takes the parser a minute, or far more memory than it is long.
        #[test]
        fn what_has_no_bottom_is_refused_before_it_is_parsed() {
            let aliases: String =
                (1..30).map(|n| format!("a{n}: &a{n} [*a{0},*a{0}]\n", n - 1)).collect();
            for text in [
                "[".repeat(50_000),
                "{".repeat(50_000),
                "[{".repeat(25_000),
                "- ".repeat(30_000),
                "? ".repeat(30_000),
                "-\t".repeat(30_000),
                "- ? ".repeat(15_000),
                format!("triggers:\r{}", "- ".repeat(30_000)),
                format!("triggers:\u{85}{}", "- ".repeat(30_000)),
                format!("triggers: # [\n http: {}", "[".repeat(30_000)),
            ] {
                let error = parse(&text).unwrap_err();
                assert!(error.contains("opens too many"), "{}: {error}", &text[..20]);
            }
            let error = parse(&"- ".repeat(200_000)).unwrap_err();
            assert!(error.contains("over 64 KiB"), "{error}");
            for text in [
                format!("a0: &a0 [x]\n{aliases}"),
                // As deep as is let through.
                "[".repeat(999),
                format!("triggers: {}", "[".repeat(999)),
                "- ".repeat(99),
                (0..300).map(|n| format!("{}-\n", " ".repeat(n))).collect(),
            ] {
                let error = parse(&text).unwrap_err();
                assert!(error.len() < 1000, "{error}");
            }
            // What a person may write.
            let text = format!("environment: {{A: '{}', B: 'a - b - c'}}", "[]{}".repeat(200));
            assert!(parse(&text).is_ok());
        }

        /// Each is far longer than its text.
        #[test]
        fn what_aliases_make_is_counted_as_it_comes() {
            let many = |of: &str| of.repeat(5000);
            let long = "x".repeat(30_000);
            let variables: String = (0..2500).map(|n| format!("  B{n}: *a\n")).collect();
            for (text, why) in [
                (
                    format!("environment:\n  A: &a {long}\n{variables}"),
                    "environment takes over 32 KiB",
                ),
                (
                    format!("environment:\n  A: {long}\n  B: {long}"),
                    "environment takes over 32 KiB",
                ),
                (
                    format!("triggers:\n  http:\n  - &a {{method: {long}}}\n{}", many("  - *a\n")),
                    "over 64 entries",
                ),
            ] {
                let error = parse(&text).unwrap_err();
                assert!(error.contains(why) && error.len() < 200, "{error}");
            }
            // What a person may write.
            let few = "environment: {A: &a some, B: *a}";
            assert_eq!(parse(few).unwrap().environment["B"], "some");
        }

        #[test]
        fn a_variable_is_there_once_and_nothing_is_the_empty_text() {
            let error = parse("environment:\n  A: 1\n  B: 2\n  A: 3\n").unwrap_err();
            assert!(error.contains("variable \"A\" is there twice; remove one"), "{error}");
            let text = "environment: {A: ~, B: null, C: , D: '~', E: '', F: 0.30}";
            let environment = parse(text).unwrap().environment;
            let values: Vec<_> = environment.values().map(String::as_str).collect();
            assert_eq!(values, ["", "", "", "~", "", "0.30"]);
        }

        #[test]
        fn one_form_at_a_time() {
            let text = |file: &str| Ok::<_, ManifestError>((file != "f.py").then(String::new));
            let error = Manifest::of_files(text, |_| None, |_| true).unwrap_err().to_string();
            assert!(error.starts_with("there are both ol.toml and ol.yaml; keep one"), "{error}");
        }
    }
}
