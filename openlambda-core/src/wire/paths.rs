//! Paths between the project's own processes, of invocations and of the registry.

use crate::failure::{Failure, FailureKind};
use crate::function::{DEFAULT_NAMESPACE, FunctionName, FunctionRef, Qualifier};

/// Paths below this serve the project's own processes and are not forwarded.
pub const INTERNAL: &str = "/internal/";

/// On a balancer: POST an [`Announcement`](super::Announcement).
pub const ANNOUNCE_PATH: &str = "/internal/workers";

/// On a worker: GET the stream of [`WorkerEvent`](super::WorkerEvent)s as JSON lines. With the query `balancer=` and a
/// name of `[A-Za-z0-9._-]`, up to 64 characters, the stream is that balancer's: it may make
/// reservations, and gets offers.
pub const EVENTS_PATH: &str = "/internal/events";

/// On a worker: POST a [`Reservation`](super::Reservation); DELETE a [`ReservationKey`](super::ReservationKey) below it. Both answer 204.
pub const RESERVATIONS_PATH: &str = "/internal/reservations";

/// On a worker: GET a [`WorkerLoad`](crate::balancing::WorkerLoad).
pub const LOAD_PATH: &str = "/internal/load";

/// On a balancer: POST with a [`FunctionRef`] as text; it is resolved afresh before the reply.
pub const REFRESH_PATH: &str = "/internal/refresh";

/// On a balancer: GET a [`BalancerStatus`](super::BalancerStatus).
pub const CLUSTER_PATH: &str = "/internal/cluster";

/// An invocation's address in a URL's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The function and version.
    pub function: FunctionRef,
    /// The path to the function, without a `/` at its end; not decoded.
    pub root: String,
    /// The path below the function, with a leading `/`; not decoded.
    pub path: String,
}

/// Reads `/run/<fn>[/path]`, `/runLambda/<fn>[/path]` and `/ns/<namespace>/run/<fn>[/path]`.
///
/// `None` for any other path.
///
/// # Errors
///
/// [`FailureKind::BadRequest`] for a name that is not valid.
pub fn parse_target(path: &str) -> Option<Result<Target, Failure>> {
    let (namespace, rest) = split_namespace(path)?;
    let rest = match rest.split_once('/') {
        Some(("run" | "runLambda", rest)) => rest,
        None if rest == "run" || rest == "runLambda" => "",
        _ => return None,
    };
    let (function, below) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let root = path.strip_suffix(below).unwrap_or(path);
    let parse = || {
        if function.is_empty() {
            let message = "no function is named; call /run/<function>";
            return Err(Failure::new(FailureKind::BadRequest, message));
        }
        let function = reference(namespace, function)?;
        let below = if below.is_empty() { "/" } else { below };
        Ok(Target { function, root: root.to_owned(), path: below.to_owned() })
    };
    Some(parse())
}

/// The path that invokes `function`: the reverse of [`parse_target`].
pub fn run_path(function: &FunctionRef) -> String {
    let local = FunctionRef {
        name: FunctionName::new(DEFAULT_NAMESPACE, function.name.name())
            .expect("it is part of a valid name"),
        qualifier: function.qualifier.clone(),
    };
    match function.name.namespace() {
        DEFAULT_NAMESPACE => format!("/run/{local}"),
        namespace => format!("/ns/{namespace}/run/{local}"),
    }
}

/// A path of the registry over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryPath {
    /// The namespace.
    pub namespace: String,
    /// The function; `None`: all of the namespace.
    pub function: Option<FunctionRef>,
    /// Its manifest alone is meant.
    pub config: bool,
}

/// Reads `/registry`, `/registry/`, `/registry/<fn>`, `/registry/<fn>/config`, and the same below
/// `/ns/<namespace>`.
///
/// `None` for any other path.
///
/// # Errors
///
/// [`FailureKind::BadRequest`] for a name that is not valid, [`FailureKind::NotFound`] for a path
/// below a function that leads nowhere.
pub fn parse_registry_path(path: &str) -> Option<Result<RegistryPath, Failure>> {
    let (namespace, rest) = split_namespace(path)?;
    let rest = match rest.strip_prefix("registry")? {
        "" => "",
        rest => rest.strip_prefix('/')?,
    };
    let (function, config) = match rest.split_once('/') {
        None => (rest, false),
        Some((function, "config")) => (function, true),
        Some(_) => {
            let message = "there is nothing here; ask for /registry/<function>/config";
            return Some(Err(Failure::new(FailureKind::NotFound, message)));
        }
    };
    let function = match function {
        "" if config => Err(Failure::new(FailureKind::BadRequest, "no function is named")),
        // The namespace alone has to be valid too.
        "" => FunctionName::new(namespace, "all").map(|_| None).map_err(bad_name),
        function => reference(namespace, function).map(Some),
    };
    let namespace = namespace.to_owned();
    Some(function.map(|function| RegistryPath { namespace, function, config }))
}

/// A path's namespace and what comes after it, without a leading `/`.
fn split_namespace(path: &str) -> Option<(&str, &str)> {
    match path.strip_prefix("/ns/") {
        Some(rest) => rest.split_once('/'),
        None => Some((DEFAULT_NAMESPACE, path.strip_prefix('/')?)),
    }
}

/// A function as it stands in a path.
fn reference(namespace: &str, function: &str) -> Result<FunctionRef, Failure> {
    // Only a digest's @ and a qualifier's : are ever percent-encoded in a valid reference.
    let decoded = function
        .contains('%')
        .then(|| function.replace("%3A", ":").replace("%3a", ":").replace("%40", "@"));
    let function = decoded.as_deref().unwrap_or(function);
    FunctionRef::parse_in(namespace, function).map_err(bad_name)
}

fn bad_name(error: crate::function::NameError) -> Failure {
    Failure::new(FailureKind::BadRequest, error.to_string())
}

/// A path as messages show it: its first 80 characters.
pub fn shown(path: &str) -> String {
    let mut shown: String = path.chars().take(80).collect();
    if shown.len() < path.len() {
        shown.push('…');
    }
    shown
}

/// Whether a reference's meaning can change.
pub fn is_mutable(reference: &FunctionRef) -> bool {
    matches!(reference.qualifier, Qualifier::Latest | Qualifier::Alias(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_parse_and_print() {
        let parse =
            |path: &str| parse_target(path).map(|r| r.map(|t| (t.function.to_string(), t.path)));
        let ok = |name: &str, path: &str| Some(Ok((name.to_owned(), path.to_owned())));
        assert_eq!(parse("/run/echo"), ok("echo", "/"));
        assert_eq!(parse("/runLambda/echo/a/b"), ok("echo", "/a/b"));
        assert_eq!(parse("/run/echo:3/"), ok("echo:3", "/"));
        assert_eq!(parse("/ns/team/run/echo%3Alive/x"), ok("team/echo:live", "/x"));
        assert_eq!(parse("/status"), None);
        assert_eq!(parse("/runner/echo"), None);
        assert!(parse("/run").unwrap().is_err());
        assert!(parse("/run/").unwrap().is_err());
        assert!(parse("/run/a%20b").unwrap().is_err());
        assert!(parse("/ns/../run/a").unwrap().is_err());
        for (path, root) in [
            ("/run/echo", "/run/echo"),
            ("/run/echo/", "/run/echo"),
            ("/ns/team/run/echo%3Alive/run/echo", "/ns/team/run/echo%3Alive"),
        ] {
            assert_eq!(parse_target(path).unwrap().unwrap().root, root);
        }
        for name in ["echo", "team/echo:live", "echo:3"] {
            let target = parse_target(&run_path(&name.parse().unwrap())).unwrap().unwrap();
            assert_eq!(target.function.to_string(), name);
        }
    }

    #[test]
    fn the_registrys_paths_parse() {
        let parse = |path: &str| {
            parse_registry_path(path).map(|parsed| {
                let of = |parsed: RegistryPath| {
                    let function = parsed.function.map(|function| function.to_string());
                    (parsed.namespace, function.unwrap_or_default(), parsed.config)
                };
                parsed.map(of).map_err(|failure| failure.kind)
            })
        };
        let ok = |namespace: &str, function: &str, config| {
            Some(Ok((namespace.to_owned(), function.to_owned(), config)))
        };
        assert_eq!(parse("/registry"), ok("default", "", false));
        assert_eq!(parse("/registry/"), ok("default", "", false));
        assert_eq!(parse("/registry/echo"), ok("default", "echo", false));
        assert_eq!(parse("/registry/echo:3/config"), ok("default", "echo:3", true));
        assert_eq!(parse("/ns/team/registry/echo%3Alive"), ok("team", "team/echo:live", false));
        assert_eq!(parse("/ns/team/registry/"), ok("team", "", false));
        for other in ["/registrynot", "/run/registry", "/ns/registry", "registry/"] {
            assert_eq!(parse(other), None, "{other}");
        }
        for bad in ["/registry//config", "/registry/a%20b", "/ns/../registry/", "/registry/."] {
            assert_eq!(parse(bad), Some(Err(FailureKind::BadRequest)), "{bad}");
        }
        for nowhere in ["/registry/echo/", "/registry/echo/config/", "/registry/echo/code"] {
            assert_eq!(parse(nowhere), Some(Err(FailureKind::NotFound)), "{nowhere}");
        }
    }
}
