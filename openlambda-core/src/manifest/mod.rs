//! The manifest of a function: `ol.toml` in its folder, or `ol.yaml` in the Go project's format. Where
//! there is neither, the names of its files decide.
//!
//! A [`Manifest`] is always complete: [`Manifest::load`] fills in what the text leaves out, so no
//! later layer has defaults of its own.

mod check;
mod cors;
mod error;
mod files;
mod lists;
mod names;
mod routes;
mod yaml;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use http::Method;
use serde::{Deserialize, Serialize};

pub use cors::Cors;
pub use error::ManifestError;
pub use files::SOURCE_LIMIT;
pub(crate) use names::too_long;
pub use names::{ENVIRONMENT_LIMIT, MANIFEST_FILE, MANIFEST_FILES, MANIFEST_LIMIT, YAML_FILE};
pub use routes::{RouteMatch, match_route};
pub use yaml::unserved_triggers;

use crate::config::{ConfigError, parse_toml};
use crate::failure::{Detail, Failure, FailureKind};
pub use crate::pause_after::PauseAfter;

/// What a function is and what it may use. Every field has its meaning in the README's table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Manifest {
    /// Which bootstrap runs it. `None` until [`Manifest::load`] has looked at the files.
    pub runtime: Option<Runtime>,
    /// `module.function`, in Node.js `path/file.function`; or `module:function` as web servers write it,
    /// which is read as the same. Empty for [`Runtime::Bootstrap`], unless the manifest says:
    /// a kind of sandbox of your own, whose functions have other files, reads it as it likes.
    pub handler: Option<String>,
    /// How the handler is called.
    pub style: Option<Style>,
    /// What the event and lambda styles get as their event.
    pub event: EventFormat,
    /// Templates of paths, `/items/{id}`, that an event of [`EventFormat::HttpV1`] names as the resource, with
    /// its path parameters. None: each path is a resource of its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
    /// The time limit of one invocation, from the start of the handler; then 504. Up to 86,400.
    pub timeout_seconds: f64,
    /// The memory limit of an instance, and what it takes from the worker's pool. MiB.
    pub memory_mb: u64,
    /// How many processes and threads an instance may have.
    pub processes: u32,
    /// How many cores an instance may use.
    pub cpus: f64,
    /// The size of `/tmp`, MiB.
    pub tmp_mb: u64,
    /// Slots: how many invocations one instance takes at once.
    pub concurrency: u32,
    /// The most instances on one worker.
    pub max_instances: u32,
    /// The most invocations that wait on one worker; then 429.
    pub queue: u32,
    /// What the function sees of the network.
    pub network: Network,
    /// `false`: a fresh sandbox for every invocation.
    pub reuse: bool,
    /// How long an instance is without a call until it is paused: seconds or `"never"`. `None`: as the
    /// worker's operator and its kind of sandbox have it. Where the kind cannot pause, it runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_after_seconds: Option<PauseAfter>,
    /// The HTTP methods it answers, upper case; `None`: any. `GET` stands for `HEAD` too. Others
    /// get 405.
    pub methods: Option<Vec<String>>,
    /// Python packages, `name==version`.
    pub packages: Vec<String>,
    /// A locality hint for policies that use one.
    pub colour: String,
    /// Environment variables of the function.
    pub environment: BTreeMap<String, String>,
    /// Folders that outlive the instance.
    pub volumes: Vec<Volume>,
    /// Which pages of other origins may call it; `None`: the balancer sends no CORS headers.
    pub cors: Option<Cors>,
    /// How much callers are told of what goes wrong.
    #[serde(skip_serializing_if = "Errors::say_nothing")]
    pub errors: Errors,
}

impl Default for Manifest {
    fn default() -> Self {
        Manifest {
            runtime: None,
            handler: None,
            style: None,
            event: EventFormat::Body,
            routes: Vec::new(),
            timeout_seconds: 30.0,
            memory_mb: 128,
            processes: 64,
            cpus: 1.0,
            tmp_mb: 64,
            concurrency: 1,
            max_instances: 16,
            queue: 1024,
            network: Network::None,
            reuse: true,
            pause_after_seconds: None,
            methods: None,
            packages: Vec::new(),
            colour: String::new(),
            environment: BTreeMap::new(),
            volumes: Vec::new(),
            cors: None,
            errors: Errors::default(),
        }
    }
}

/// How much callers are told of a function's failures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Errors {
    /// `None`: as much as the balancer's own setting says.
    pub detail: Option<Detail>,
}

impl Errors {
    fn say_nothing(&self) -> bool {
        *self == Errors::default()
    }
}

/// Which bootstrap runs a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Runtime {
    /// Python 3: the one that the worker is set to.
    Python,
    /// Python of this version: `python3.13` is `PythonMinor(13)`.
    PythonMinor(u8),
    /// Node.js.
    Node,
    /// An executable file `bootstrap` that speaks the Lambda Runtime API.
    Bootstrap,
}

impl Runtime {
    /// Whether it is Python, of whichever version.
    pub const fn is_python(self) -> bool {
        matches!(self, Runtime::Python | Runtime::PythonMinor(_))
    }

    /// The same without its version.
    const fn language(self) -> Runtime {
        if self.is_python() { Runtime::Python } else { self }
    }
}

impl fmt::Display for Runtime {
    /// As it stands in a manifest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Runtime::Python => f.write_str("python"),
            Runtime::PythonMinor(minor) => write!(f, "python3.{minor}"),
            Runtime::Node => f.write_str("node"),
            Runtime::Bootstrap => f.write_str("bootstrap"),
        }
    }
}

impl Serialize for Runtime {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Runtime {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const KNOWN: &[&str] = &["python", "python3.13", "node", "bootstrap"];
        let text = Cow::<str>::deserialize(deserializer)?;
        match &*text {
            "python" | "python3" => return Ok(Runtime::Python),
            "node" => return Ok(Runtime::Node),
            "bootstrap" => return Ok(Runtime::Bootstrap),
            _ => {}
        }
        let minor = text.strip_prefix("python3.").filter(|minor| !minor.starts_with(['0', '+']));
        match minor.map(str::parse) {
            Some(Ok(minor)) => Ok(Runtime::PythonMinor(minor)),
            _ => Err(serde::de::Error::unknown_variant(&text, KNOWN)),
        }
    }
}

/// How a handler is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Style {
    /// `f(event)`.
    Event,
    /// `handler(conn, event)`, as OpenLambda's first releases; `conn` is `None`.
    Legacy,
    /// `handler(event, context)`, as AWS Lambda.
    Lambda,
    /// A WSGI application (PEP 3333): it gets the HTTP request as it came.
    Wsgi,
    /// An ASGI application, version 3: it gets the HTTP request as it came.
    Asgi,
}

impl Style {
    /// As it stands in a manifest.
    pub const fn as_str(self) -> &'static str {
        match self {
            Style::Event => "event",
            Style::Legacy => "legacy",
            Style::Lambda => "lambda",
            Style::Wsgi => "wsgi",
            Style::Asgi => "asgi",
        }
    }
}

/// What the event and lambda styles get as their event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventFormat {
    /// The JSON body; an empty body is null.
    #[default]
    Body,
    /// A Lambda Function-URL event, version 2.0.
    Http,
    /// An event of API Gateway's REST APIs, version 1.0.
    #[serde(rename = "http-v1")]
    HttpV1,
}

/// What a function sees of the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Nothing but its own loopback, where the sandbox can enforce it.
    #[default]
    None,
    /// The machine's own network.
    Host,
    /// A network of its own with a way out.
    Bridge,
}

impl Network {
    /// The name in `ol.toml`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Network::None => "none",
            Network::Host => "host",
            Network::Bridge => "bridge",
        }
    }
}

/// A folder that outlives the instance: per function, on one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Its name; functions cannot share one.
    pub name: String,
    /// Where the function sees it: an absolute path. Sandboxes without a root of their own pass the
    /// real place in `OPENLAMBDA_VOLUME_<NAME>`.
    pub path: String,
}

impl Volume {
    /// The environment variable that names its real place, `OPENLAMBDA_VOLUME_<NAME>`: letters of the
    /// name in upper case, and `_` for each dot and dash.
    pub fn variable(&self) -> String {
        let sign = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        format!("OPENLAMBDA_VOLUME_{}", self.name.chars().map(sign).collect::<String>())
    }
}

impl Manifest {
    /// Parses the text of an `ol.toml`. Runtime, handler and style stay `None` where it is silent.
    ///
    /// # Errors
    ///
    /// [`ManifestError::Config`] names the key and its line; [`ManifestError::Value`] the range.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        check_length(text, MANIFEST_FILE)?;
        let manifest: Manifest = parse_toml(text, MANIFEST_FILE)?;
        if let Some((key, message)) = manifest.wrong_variable() {
            let line = line_of_variable(text, key);
            return Err(ConfigError { origin: MANIFEST_FILE.to_owned(), line, message }.into());
        }
        manifest.check()?;
        Ok(manifest)
    }

    /// The time limit of one invocation.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout_seconds)
    }

    /// What an instance takes from the worker's memory pool, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_mb << 20
    }

    /// Whether the function answers this method. One that answers `GET` answers `HEAD` (RFC 9110,
    /// section 9.1).
    ///
    /// # Errors
    ///
    /// [`FailureKind::MethodNotAllowed`], with the methods that it does answer.
    pub fn admits(&self, method: &Method) -> Result<(), Failure> {
        let Some(methods) = &self.methods else { return Ok(()) };
        let listed = |name: &str| methods.iter().any(|allowed| allowed == name);
        if listed(method.as_str()) || (method == Method::HEAD && listed("GET")) {
            return Ok(());
        }
        let mut allow = Vec::new();
        for name in methods {
            // Each once, however often the manifest has it.
            if allow.contains(&name.as_str()) {
                continue;
            }
            allow.push(name.as_str());
            if name == "GET" && !listed("HEAD") {
                allow.push("HEAD");
            }
        }
        let allow = match allow.join(", ") {
            none if none.is_empty() => "nothing, for its manifest lists no method".to_owned(),
            some => some,
        };
        let message = format!("this function does not answer {method}; use {allow}");
        let mut failure = Failure::new(FailureKind::MethodNotAllowed, message);
        failure.allow = Some(allow.into());
        Err(failure)
    }
}

/// Looked at before a text is parsed.
fn check_length(text: &str, file: &str) -> Result<(), ManifestError> {
    if text.len() > MANIFEST_LIMIT {
        return Err(ManifestError::Unclear(format!("{file} {}", too_long(text.as_bytes()))));
    }
    Ok(())
}

/// The 1-based line of a variable's value in a manifest.
fn line_of_variable(toml: &str, key: &str) -> Option<usize> {
    #[derive(Deserialize)]
    struct Places {
        environment: BTreeMap<String, toml::Spanned<String>>,
    }
    let places: Places = toml::from_str(toml).ok()?;
    let start = places.environment.get(key)?.span().start;
    Some(1 + toml[..start].matches('\n').count())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sample of the design, every key once.
    const SAMPLE: &str = r#"
        runtime = "python"
        handler = "f.f"
        style = "event"
        event = "body"
        timeout_seconds = 30
        memory_mb = 128
        processes = 64
        cpus = 1.0
        tmp_mb = 64
        concurrency = 1
        max_instances = 16
        queue = 1024
        network = "none"
        reuse = true
        pause_after_seconds = "never"
        methods = ["GET", "POST"]
        packages = ["numpy==2.2.1"]
        colour = ""
        [environment]
        GREETING = "hello"
        [[volumes]]
        name = "messages"
        path = "/data"
        [cors]
        allow_origins = ["*"]
        allow_methods = ["POST"]
        allow_headers = ["content-type"]
        expose_headers = ["x-openlambda-request-id"]
        max_age_seconds = 600
        allow_credentials = false
        [errors]
        detail = "type"
    "#;

    #[test]
    fn the_sample_parses_and_defaults_agree_with_it() {
        let sample = Manifest::parse(SAMPLE).unwrap();
        let expected = Manifest {
            runtime: Some(Runtime::Python),
            handler: Some("f.f".to_owned()),
            style: Some(Style::Event),
            pause_after_seconds: Some(PauseAfter::Never),
            methods: Some(vec!["GET".to_owned(), "POST".to_owned()]),
            packages: vec!["numpy==2.2.1".to_owned()],
            environment: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
            volumes: vec![Volume { name: "messages".to_owned(), path: "/data".to_owned() }],
            cors: Some(Cors {
                allow_origins: vec!["*".to_owned()],
                allow_methods: Some(vec!["POST".to_owned()]),
                allow_headers: Some(vec!["content-type".to_owned()]),
                expose_headers: vec!["x-openlambda-request-id".to_owned()],
                max_age_seconds: Some(600),
                allow_credentials: false,
            }),
            errors: Errors { detail: Some(Detail::Type) },
            ..Manifest::default()
        };
        assert_eq!(sample, expected);
        let json = serde_json::to_string(&sample).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), sample);
    }

    #[test]
    fn an_unknown_key_is_refused_with_line_and_nearest() {
        let error = Manifest::parse("memory_mb = 3\n[cors]\nallow_origin = []").unwrap_err();
        assert_eq!(
            error.to_string(),
            "ol.toml, line 3: unknown key \"allow_origin\"; did you mean \"allow_origins\"?"
        );
    }

    #[test]
    fn a_runtime_may_name_its_version_of_python() {
        let told = |text: &str, files: &[&str]| {
            Manifest::parse(text).unwrap().complete(|file| files.contains(&file)).unwrap()
        };
        for (text, expected) in [
            ("python", Runtime::Python),
            ("python3", Runtime::Python),
            ("python3.9", Runtime::PythonMinor(9)),
            ("python3.13", Runtime::PythonMinor(13)),
        ] {
            let text = format!("runtime = \"{text}\"");
            let manifest = told(&text, &["f.py", "index.js"]);
            assert_eq!(manifest.runtime, Some(expected));
            assert_eq!(manifest.handler.as_deref(), Some("f.f"));
            let web = told(&format!("{text}\nstyle = \"wsgi\""), &["app.py"]);
            assert_eq!((web.runtime, web.handler.as_deref()), (Some(expected), Some("app.app")));
            // As it goes through a registry.
            let json = serde_json::to_string(&manifest).unwrap();
            assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
        }
        for wrong in ["python2.7", "python3.", "python3.x", "python3.013", "python3.300", "pyton"] {
            let error = Manifest::parse(&format!("runtime = \"{wrong}\"")).unwrap_err();
            assert!(error.to_string().contains("line 1"), "{error}");
        }
        let error = Manifest::parse("runtime = \"pyton\"").unwrap_err().to_string();
        assert!(error.contains("did you mean \"python\"?"), "{error}");
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for text in [
            "memory_mb = 0",
            "timeout_seconds = 0",
            "timeout_seconds = 1e-10",
            "timeout_seconds = nan",
            "timeout_seconds = -1",
            "timeout_seconds = inf",
            "pause_after_seconds = -0.5",
            "pause_after_seconds = \"soon\"",
            "pause_after_seconds = true",
            "concurrency = 0",
            "cpus = 0.0",
            "methods = [\"get\"]",
            "routes = [\"/items/{id}\"]",
            "event = \"http-v1\"\nroutes = [\"items\"]",
            "environment = { \"A=B\" = \"c\" }",
            "volumes = [{ name = \"..\", path = \"/d\" }]",
            "volumes = [{ name = \"d\", path = \"/d/../e\" }]",
            "volumes = [{ name = \"d\", path = \"d\" }]",
            "volumes = [{ name = \"d\", path = \"/d/./e\" }]",
            "volumes = [{ name = \"d\", path = \"/d/\" }]",
            "volumes = [{ name = \"d\", path = \"//d\" }]",
            "volumes = [{ name = \"d\", path = \"/\" }]",
        ] {
            assert!(Manifest::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn volumes_that_no_sandbox_should_make_are_refused_with_the_reason() {
        let check = |volumes: &[(&str, &str)]| {
            let one =
                |(name, path): &(&str, &str)| format!("{{ name = \"{name}\", path = \"{path}\" }}");
            let volumes: Vec<_> = volumes.iter().map(one).collect();
            Manifest::parse(&format!("volumes = [{}]", volumes.join(", "))).map(|_| ())
        };
        for good in ["/data", "/tmp/data", "/var/lib/data", "/run/data", "/mnt", "/home/a/b/c"] {
            assert!(check(&[("a", good), ("b", "/dat")]).is_ok(), "{good}");
        }
        let names: Vec<_> = (0..17).map(|n| (format!("s{n}"), format!("/s{n}"))).collect();
        let many: Vec<_> = names.iter().map(|(name, path)| (&**name, &**path)).collect();
        assert!(check(&many[..16]).is_ok());
        let deep = format!("/s{}", "/a".repeat(2000));
        let parts = "/a".repeat(17);
        let long = format!("/{}", "a".repeat(256));
        for (bad, why) in [
            (&many[..], "16 is the most"),
            (&[("a", &*deep)], "too long"),
            (&[("a", &*parts)], "16 parts"),
            (&[("a", &*long)], "256 bytes"),
            (&[("a", "/data"), ("b", "/data/b")], "one inside of the other"),
            (&[("a", "/data/b"), ("b", "/data")], "one inside of the other"),
            (&[("a", "/data"), ("b", "/data")], "one inside of the other"),
            (&[("a", "/a"), ("a", "/b")], "two volumes are named"),
            (&[("a", "/a"), ("A", "/b")], "share the variable OPENLAMBDA_VOLUME_A;"),
            (&[("a-b", "/a"), ("a_b", "/b")], "share the variable OPENLAMBDA_VOLUME_A_B;"),
            (&[("a", "/var/task")], "the sandbox's own /var/task"),
            (&[("a", "/var/task/lib")], "the sandbox's own /var/task"),
            (&[("a", "/var")], "the sandbox's own /var/task"),
            (&[("a", "/usr/lib/python3")], "the sandbox's own /usr"),
            (&[("a", "/etc")], "the sandbox's own /etc"),
            (&[("a", "/dev")], "the sandbox's own /dev"),
            (&[("a", "/dev/shm")], "the sandbox's own /dev"),
            (&[("a", "/proc")], "the sandbox's own /proc"),
            (&[("a", "/proc/sys")], "the sandbox's own /proc"),
            (&[("a", "/sys")], "the sandbox's own /sys"),
            (&[("a", "/var/runtime/python")], "the sandbox's own /var/runtime"),
            (&[("a", "/run")], "the sandbox's own /run/openlambda"),
            (&[("a", "/tmp")], "each instance's own"),
        ] {
            let error = check(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad:?}: {error}");
        }
    }

    #[test]
    fn what_no_program_can_be_started_with_is_refused() {
        let volume = "volumes = [{ name = \"a.b\", path = \"/d\" }]\n";
        let zero = "environment = { A = \"x\\u0000y\" }".to_owned();
        let own = format!("{volume}environment = {{ OPENLAMBDA_VOLUME_A_B = \"x\" }}");
        for (text, why) in [(zero, "\"A\" has a zero byte"), (own, "is the one of volume \"a.b\"")]
        {
            let error = Manifest::parse(&text).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_manifest_without_end_or_bottom_is_refused_before_it_is_parsed() {
        let long = format!("colour = \"{}\"", "a".repeat(MANIFEST_LIMIT));
        let error = Manifest::parse(&long).unwrap_err().to_string();
        assert!(error.contains("over 64 KiB"), "{error}");
        for deep in [
            format!("methods = {}", "[".repeat(50_000)),
            format!("environment = {}", "{ a = ".repeat(10_000)),
            format!("environment{} = 1", ".a".repeat(30_000)),
            format!("[environment{}]", ".a".repeat(30_000)),
            format!("[[environment{}]]", ".a".repeat(30_000)),
        ] {
            let error = Manifest::parse(&deep).unwrap_err().to_string();
            assert!(error.len() < 1000, "{error}");
        }
    }

    #[test]
    fn what_a_manifest_says_is_bounded_as_a_whole() {
        let of = |toml: &str| {
            let text = |file: &str| {
                Ok::<_, ManifestError>((file == MANIFEST_FILE).then(|| toml.to_owned()))
            };
            Manifest::of_files(text, |_| None, |file| file == "f.py")
        };
        let environment = |bytes: usize| format!("[environment]\nA = \"{}\"", "x".repeat(bytes));
        assert!(of(&environment(ENVIRONMENT_LIMIT - 3)).is_ok());
        let error = of(&environment(ENVIRONMENT_LIMIT - 2)).unwrap_err().to_string();
        assert!(error.contains("environment takes over 32 KiB"), "{error}");
        let many: String = (0..4500).map(|n| format!("A{n} = \"12\"\n")).collect();
        assert!(of(&format!("[environment]\n{many}")).is_err());
        // A tab is one byte in TOML and two in JSON.
        let error = of(&format!("colour = \"{}\"", "\t".repeat(40_000))).unwrap_err();
        assert!(error.to_string().contains("written out in full"), "{error}");
    }

    #[test]
    fn cors_that_no_browser_would_follow_is_refused_with_the_reason() {
        let check = |text: &str| Manifest::parse(&format!("[cors]\n{text}")).map(|_| ());
        for good in [
            "allow_origins = [\"*\"]",
            "allow_origins = [\"https://a.org\", \"http://localhost:3000\", \"http://[::1]:8080\"]",
            "allow_origins = [\"https://a.org\"]\nallow_credentials = true",
            "allow_origins = [\"*\"]\nallow_headers = [\"*\"]\nallow_methods = [\"*\"]",
        ] {
            assert!(check(good).is_ok(), "{good}: {:?}", check(good));
        }
        for (bad, why) in [
            ("", "allow_origins"),
            ("allow_origins = []", "name the pages' origins"),
            ("allow_origins = [\"*\", \"https://a.org\"]", "alone is any"),
            ("allow_origins = [\"*\"]\nallow_credentials = true", "name the origins"),
            ("allow_origins = [\"a.org\"]", "scheme://host"),
            ("allow_origins = [\"https://a.org/\"]", "without a path"),
            ("allow_origins = [\"https://*.a.org\"]", "scheme://host"),
            ("allow_origins = [\"https://u@a.org\"]", "scheme://host"),
            ("allow_origins = [\"https://A.org\"]", "https://a.org"),
            ("allow_origins = [\"https://a.org:443\"]", "usual port"),
            ("allow_origins = [\"null\"]", "pages from files"),
            ("allow_origins = [\"*\"]\nallow_methods = [\"post\"]", "as \"GET\""),
            ("allow_origins = [\"*\"]\nallow_headers = [\"a b\"]", "its name alone"),
            ("allow_origins = [\"*\"]\nexpose_headers = [\"a: b\"]", "its name alone"),
            ("allow_origins = [\"*\"]\nmax_age_seconds = 86401", "0 to 86400"),
            ("allow_origins = [\"*\"]\nmax_age_seconds = -1", "line 3"),
            (
                "allow_origins = [\"http://a\"]\nallow_credentials = true\nexpose_headers = [\"*\"]",
                "name them",
            ),
        ] {
            let error = check(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn lists_that_go_into_headers_of_replies_are_short() {
        let list = |entries: usize, bytes: usize| {
            format!("[{}]", vec![format!("\"{}\"", "A".repeat(bytes)); entries].join(","))
        };
        for key in ["methods", "cors.allow_methods", "cors.allow_headers", "cors.expose_headers"] {
            let parse = |list: &str| {
                Manifest::parse(&format!("{key} = {list}\ncors.allow_origins = [\"*\"]"))
            };
            for good in [list(100, 40), list(1, 4096)] {
                assert!(parse(&good).is_ok(), "{key}: {:?}", parse(&good).map(|_| ()));
            }
            for bad in [list(101, 1), list(2, 2049)] {
                let error = parse(&bad).unwrap_err().to_string();
                assert!(error.contains("at most 100 entries") && error.len() < 200, "{error}");
            }
        }
    }

    #[test]
    fn who_answers_get_answers_head() {
        let admits = |methods: &str, method: Method| {
            let manifest = Manifest::parse(&format!("methods = {methods}")).unwrap();
            manifest.admits(&method).map_err(|failure| failure.allow.unwrap().into_string())
        };
        assert_eq!(admits("[\"GET\"]", Method::HEAD), Ok(()));
        assert_eq!(admits("[\"POST\"]", Method::HEAD), Err("POST".to_owned()));
        let allow = Err("GET, HEAD, PUT".to_owned());
        assert_eq!(admits("[\"GET\", \"PUT\"]", Method::POST), allow);
        assert_eq!(admits("[\"GET\", \"HEAD\", \"PUT\"]", Method::POST), allow);
        assert_eq!(admits("[\"GET\", \"PUT\", \"GET\", \"PUT\"]", Method::POST), allow);
        assert!(Manifest::default().admits(&Method::DELETE).is_ok());
    }

    #[test]
    fn the_files_tell_what_is_absent() {
        let told = |manifest: &str, files: &[&str]| {
            let manifest = Manifest::parse(manifest).unwrap();
            manifest
                .complete(|file| files.contains(&file))
                .map(|m| (m.runtime.unwrap(), m.handler.unwrap(), m.style.unwrap()))
        };
        let (runtime, handler, style) = told("", &["f.py"]).unwrap();
        assert_eq!((runtime, &*handler, style), (Runtime::Python, "f.f", Style::Event));
        let (runtime, _, style) = told("", &["lambda_func.py"]).unwrap();
        assert_eq!((runtime, style), (Runtime::Python, Style::Legacy));
        let (runtime, handler, style) = told("handler = \"app.main\"", &["app.py"]).unwrap();
        assert_eq!((runtime, &*handler, style), (Runtime::Python, "app.main", Style::Lambda));
        for file in ["index.js", "index.mjs", "index.cjs"] {
            let (runtime, handler, style) = told("", &[file]).unwrap();
            let expected = (Runtime::Node, "index.handler", Style::Lambda);
            assert_eq!((runtime, &*handler, style), expected);
        }
        for (handler, file) in [("src/app.get", "src/app.cjs"), ("src/app.v1.get", "src/app.mjs")] {
            let manifest = format!("handler = \"{handler}\"");
            assert_eq!(told(&manifest, &[file]).unwrap().0, Runtime::Node, "{handler}");
        }
        let (runtime, ..) = told("", &["bootstrap", "x"]).unwrap();
        assert_eq!(runtime, Runtime::Bootstrap);
        assert!(told("", &["main.go"]).is_err());
        assert!(told("runtime = \"bootstrap\"", &["f.py"]).is_err());
    }

    #[test]
    fn handlers_are_found_where_files_define_them() {
        let told = |manifest: &str, files: &[(&str, &str)]| {
            let text = |file: &str| files.iter().find(|(name, _)| *name == file).map(|(_, t)| *t);
            let manifest = Manifest::parse(manifest).unwrap();
            let manifest = manifest
                .complete_from(|file| text(file).map(str::to_owned), |file| text(file).is_some());
            manifest
                .map(|m| (m.handler.unwrap(), m.style.unwrap()))
                .map_err(|error| error.to_string())
        };
        const DEF: &str = "import os\ndef lambda_handler(event, context):\n    return event";
        for (file, text, handler) in [
            ("app.py", DEF, "app.lambda_handler"),
            ("index.py", "async def handler(event, context): ...", "index.handler"),
            ("handler.py", "handler = Mangum(app)", "handler.handler"),
            ("main.py", "from api import lambda_handler", "main.lambda_handler"),
            ("main.py", "from api import (run as handler)", "main.handler"),
            ("app.py", "handler: Any = make()", "app.handler"),
            (
                "app.py",
                "handler = logging.StreamHandler()\ndef lambda_handler(e, c): 1",
                "app.lambda_handler",
            ),
            ("app.mjs", "export const lambdaHandler = async (event) => 1;", "app.lambdaHandler"),
            ("app.js", "exports.handler = async () => 1;", "app.handler"),
            ("main.js", "module.exports.handler = () => 1", "main.handler"),
            ("main.cjs", "module.exports = {\n  other,\n  handler,\n};", "main.handler"),
            ("handler.mjs", "export async function handler(event) {}", "handler.handler"),
            ("app.mjs", "const a = 1;\nexport { a, handler };", "app.handler"),
            (
                "app.js",
                "__export(app_exports, {\n  lambdaHandler: () => lambdaHandler\n});",
                "app.lambdaHandler",
            ),
            ("index.mjs", "export const lambdaHandler = 1;", "index.lambdaHandler"),
            (
                "index.mjs",
                "export const lambdaHandler = 1; export const handler = 2",
                "index.handler",
            ),
            ("index.js", "anything", "index.handler"),
        ] {
            let expected = Ok((handler.to_owned(), Style::Lambda));
            assert_eq!(told("", &[(file, text)]), expected, "{file}: {text}");
        }
        assert_eq!(told("style = \"event\"", &[("app.py", DEF)]).unwrap().1, Style::Event);
        // What is told by its name goes before.
        assert_eq!(told("", &[("app.py", DEF), ("f.py", "")]).unwrap().0, "f.f");
        assert_eq!(
            told("runtime = \"node\"", &[("app.py", DEF), ("app.js", "exports.handler = 1")])
                .unwrap()
                .0,
            "app.handler"
        );
        for (files, words) in [
            (
                &[("app.py", DEF), ("main.py", DEF)][..],
                &["app.lambda_handler in app.py", "main.lambda_handler in main.py", "set handler"]
                    [..],
            ),
            (
                &[("app.py", DEF), ("app.mjs", "export const handler = 1"), ("template.yaml", "")],
                &["app.handler in app.mjs", "template.yaml of AWS SAM is not read"],
            ),
            (
                &[("app.py", "    def handler(): 1\ndef handlers(): 1\nif handler == 2: 3")],
                &["app.py defines neither lambda_handler nor handler"],
            ),
            (&[("app.js", "const handler = 1; handlers.handler(1)")], &["app.js defines neither"]),
            (
                &[("serverless.yml", ""), ("src.py", "")],
                &["there is no f.py", "serverless.yml of the Serverless"],
            ),
        ] {
            let error = told("", files).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{files:?}: {error}");
            }
        }
    }

    #[test]
    fn variables_that_cannot_be_set_are_refused_with_their_line() {
        for (text, line, why) in [
            ("\n[environment]\nA = \"a\"\n_HANDLER = \"f.g\"", 4, "\"_HANDLER\" cannot be set"),
            ("[environment]\nLAMBDA_TASK_ROOT = \"/x\"", 2, "platform sets it"),
            ("memory_mb = 128\nenvironment = { A = \"x\\u0000y\" }", 2, "zero byte"),
            ("[environment]\n\"A B\" = \"c\"", 2, "is not valid"),
        ] {
            let error = Manifest::parse(text).unwrap_err().to_string();
            let place = format!("ol.toml, line {line}: ");
            assert!(error.starts_with(&place) && error.contains(why), "{error}");
        }
        for (bytes, what) in [(40_000, "32 KiB"), (200_000, "64 KiB")] {
            let text =
                format!("[environment]\nA = \"a\"\nBIG = \"{}\"\nC = \"c\"", "x".repeat(bytes));
            let error = Manifest::parse(&text).unwrap_err().to_string();
            assert!(error.contains("line 3") && error.contains(what), "{error}");
        }
        for name in ["AWS_REGION", "TZ", "PATH", "LANG", "AWS_ACCESS_KEY_ID"] {
            assert!(Manifest::parse(&format!("environment = {{ {name} = \"x\" }}")).is_ok());
        }
    }

    #[test]
    fn a_handler_that_can_name_nothing_is_refused() {
        let told = |manifest: &str| {
            Manifest::parse(manifest).and_then(|manifest| manifest.complete(|file| file == "f.py"))
        };
        for (runtime, handler) in [
            ("python", "f."),
            ("python", ".f"),
            ("python", "f..f"),
            ("python", "..."),
            ("python", "f:"),
            ("python", ":f"),
            ("python", ""),
            ("python", "f\\u0000.f"),
            ("python", "f\\n.f"),
            ("node", "index."),
            ("node", "src/.get"),
            ("node", "src/app..get"),
            ("node", ""),
            ("bootstrap", "a\\u001bb"),
        ] {
            let told = told(&format!("runtime = \"{runtime}\"\nhandler = \"{handler}\""));
            let error = told.expect_err(handler).to_string();
            assert!(error.contains("names no function"), "{handler}: {error}");
        }
        for (runtime, handler) in [
            ("python", "nodot"),
            ("node", "../index.handler"),
            ("bootstrap", ""),
            ("bootstrap", ".."),
        ] {
            told(&format!("runtime = \"{runtime}\"\nhandler = \"{handler}\"")).expect(handler);
        }
    }

    #[test]
    fn a_web_application_is_where_it_is_said_or_where_it_usually_is() {
        let told = |manifest: &str, files: &[&str]| {
            let manifest = Manifest::parse(manifest).unwrap();
            let manifest = manifest.complete(|file| files.contains(&file));
            manifest.map(|m| (m.runtime.unwrap(), m.handler.unwrap(), m.style.unwrap()))
        };
        for (manifest, files, handler) in [
            ("style = \"wsgi\"", &["f.py", "app.py"][..], "f.app"),
            ("style = \"asgi\"", &["main.py"], "main.app"),
            ("style = \"wsgi\"", &["wsgi.py", "app.py"], "wsgi.application"),
            ("style = \"asgi\"", &["wsgi.py", "app.py"], "app.app"),
            ("style = \"wsgi\"\nhandler = \"blog.site:app\"", &["blog/site.py"], "blog.site.app"),
        ] {
            let (runtime, told, _) = told(manifest, files).unwrap();
            assert_eq!((runtime, &*told), (Runtime::Python, handler), "{manifest}");
        }
        let nowhere = told("style = \"asgi\"", &["site.py"]).unwrap_err().to_string();
        assert!(nowhere.contains("no asgi.py") && nowhere.contains("set handler"), "{nowhere}");
        let other = told("style = \"wsgi\"\nruntime = \"bootstrap\"", &["bootstrap"]).unwrap_err();
        assert!(other.to_string().contains("is for Python"), "{other}");
        let colons = told("style = \"wsgi\"\nhandler = \"a:b:c\"", &["a.py"]).unwrap_err();
        assert!(colons.to_string().contains("more than one colon"), "{colons}");
        let wrong = Manifest::parse("\nstyle = \"wsgy\"").unwrap_err().to_string();
        assert_eq!(wrong, "ol.toml, line 2: unknown value \"wsgy\"; did you mean \"wsgi\"?");
    }
}
