//! The engine's API as far as sandboxes need it, with errors that say what to do next.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::{ContainerSummary, SystemInfo};
use bollard::query_parameters::{ListContainersOptions, RemoveContainerOptions};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::future::join_all;
use openlambda_core::sandbox::{Report, SandboxError, SandboxErrorKind};

use crate::errors::unsupported;

/// Where engines listen unless told otherwise.
const USUAL_SOCKET: &str = "/var/run/docker.sock";

/// An engine's request may take as long as a busy disk makes it.
const TIMEOUT_SECONDS: u64 = 120;

/// How long a clean-up waits for an engine that may hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// The whole mark of a container: `<worker>/<instance>`, as in its processes' environment.
pub(super) const MARK_LABEL: &str = "openlambda.mark";
/// The mark of the worker that made it. The engine finds labels by their whole value only.
pub(super) const WORKER_LABEL: &str = "openlambda.worker";

/// The engine's socket: what `named` says, a path or `unix://PATH`; without it or where it is empty, what
/// `DOCKER_HOST` says; else the usual one.
///
/// # Errors
///
/// Something else than a Unix socket is named: bundles and sockets of this machine are mounted into
/// containers, so the engine must run on it.
pub fn engine_socket(named: Option<&str>) -> Result<PathBuf, SandboxError> {
    let variable = || std::env::var("DOCKER_HOST").ok();
    let host = named.map(str::to_owned).filter(|host| !host.is_empty()).or_else(variable);
    match host.filter(|host| !host.is_empty()) {
        None => Ok(USUAL_SOCKET.into()),
        Some(host) => match host.strip_prefix("unix://") {
            Some(path) => Ok(path.into()),
            None if host.starts_with('/') => Ok(host.into()),
            None => Err(unsupported(format!(
                "the engine's socket is said to be {host}, but docker sandboxes need an engine on this \
                 machine; name its Unix socket with --docker-socket or DOCKER_HOST, as in \
                 unix://{USUAL_SOCKET}"
            ))),
        },
    }
}

/// A client of an engine. Each request has a connection of its own, so one client outlives the
/// engine's restarts.
#[derive(Clone, Debug)]
pub(super) struct Engine {
    pub(super) docker: Docker,
    socket: PathBuf,
}

impl Engine {
    /// Asks the engine which version of its interface it speaks.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub(super) async fn connect(socket: &Path) -> Result<Self, SandboxError> {
        let failed = |error| engine_error(socket, "the engine cannot be asked", error);
        let path = format!("unix://{}", socket.display());
        let docker = Docker::connect_with_unix(&path, TIMEOUT_SECONDS, API_DEFAULT_VERSION);
        let docker = docker.map_err(failed)?.negotiate_version().await.map_err(failed)?;
        Ok(Engine { docker, socket: socket.to_owned() })
    }

    /// An error of this engine; `what` says what could not be done.
    pub(super) fn error(&self, what: &str, error: Error) -> SandboxError {
        engine_error(&self.socket, what, error)
    }

    pub(super) async fn info(&self) -> Result<SystemInfo, SandboxError> {
        let info = self.docker.info().await;
        info.map_err(|error| self.error("the engine cannot be asked", error))
    }

    /// Whether the engine has the network that containers share unless told otherwise.
    pub(super) async fn has_bridge(&self) -> bool {
        self.docker.inspect_network("bridge", None).await.is_ok()
    }

    /// Whether the image is there.
    ///
    /// # Errors
    ///
    /// That it is not, or the engine does not answer.
    pub(super) async fn find_image(&self, image: &str) -> Result<(), SandboxError> {
        match self.docker.inspect_image(image).await {
            Ok(_) => Ok(()),
            Err(error) if status_of(&error) == Some(404) => Err(missing_image(image)),
            Err(error) => Err(self.error("the image cannot be looked up", error)),
        }
    }

    /// The containers with this label, running or not.
    pub(super) async fn list(&self, label: &str) -> Result<Vec<ContainerSummary>, Error> {
        let filters = HashMap::from([("label".to_owned(), vec![label.to_owned()])]);
        let options =
            ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
        self.docker.list_containers(Some(options)).await
    }

    /// Kills and removes a container. One that is gone already is no error.
    pub(super) async fn remove(&self, id: &str) -> Result<(), Error> {
        let mut tries = 0;
        loop {
            let options = RemoveContainerOptions { force: true, v: true, ..Default::default() };
            let error = match self.docker.remove_container(id, Some(options)).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            match status_of(&error) {
                Some(404) => return Ok(()),
                // Somebody else removes it just now, or its files are busy for a moment.
                Some(409 | 500) if tries < 100 => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                _ => return Err(error),
            }
        }
    }

    /// Kills and removes the containers whose mark is one that `covered` says yes to.
    pub(super) async fn remove_marked(
        &self,
        label: &str,
        covered: impl Fn(&str) -> bool,
        report: &mut Report,
    ) {
        let listed = match self.list(label).await {
            Ok(listed) => listed,
            Err(error) => {
                let error = self.error("containers cannot be listed", error);
                report.failed.push(openlambda_core::failure::chain(&error));
                return;
            }
        };
        let ids: BTreeSet<String> = listed
            .into_iter()
            .filter(|container| {
                let labels = container.labels.as_ref();
                labels.and_then(|labels| labels.get(MARK_LABEL)).is_some_and(|mark| covered(mark))
            })
            .filter_map(|container| container.id)
            .collect();
        let removals = ids.iter().map(async |id| (id, self.remove(id).await));
        for (id, removed) in join_all(removals).await {
            let short = id.get(..12).unwrap_or(id);
            match removed {
                Ok(()) => report.removed.push(format!("container {short}")),
                Err(error) => report.failed.push(format!("container {short}: {error}")),
            }
        }
    }
}

/// Removes the containers of factories whose marks are `mark` or begin with `mark/`, and ends what is
/// in them, to clean up after workers that are gone. `named` is the engine's socket, as for
/// [`engine_socket`]. Blocks. Without an engine there is nothing to do.
pub fn remove_containers(mark: &str, named: Option<&str>) -> Report {
    let Ok(socket) = engine_socket(named) else { return Report::default() };
    if !socket.exists() {
        return Report::default();
    }
    let below = format!("{mark}/");
    // On a thread of its own: the caller may be inside of a runtime.
    let remove = std::thread::scope(|scope| {
        let remove = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let mut report = Report::default();
            let Ok(runtime) = runtime else { return report };
            let clean = async {
                if let Ok(engine) = Engine::connect(&socket).await {
                    let covered = |found: &str| found == mark || found.starts_with(&below);
                    engine.remove_marked(MARK_LABEL, covered, &mut report).await;
                }
            };
            if runtime.block_on(async { tokio::time::timeout(PATIENCE, clean).await }).is_err() {
                let why = "containers: the engine does not answer; try again when it does";
                report.failed.push(why.to_owned());
            }
            report
        });
        remove.join()
    });
    remove.unwrap_or_default()
}

/// The status of an answer that says no.
pub(super) fn status_of(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// Whether the engine did not answer at all.
pub(super) fn is_away(error: &Error) -> bool {
    match error {
        Error::IOError { .. }
        | Error::HyperResponseError { .. }
        | Error::HyperLegacyError { .. }
        | Error::SocketNotFoundError(_)
        | Error::RequestTimeoutError => true,
        // What the engine answers while its own containerd is away.
        Error::DockerResponseServerError { status_code: 500 | 503, message } => {
            message.contains("containerd") && message.contains("connect")
        }
        _ => false,
    }
}

pub(super) fn missing_image(image: &str) -> SandboxError {
    let message = format!(
        "the engine has no image {image}; make one of this machine's files with `ol image build`, \
         get it with `docker pull {image}`, or name another in OPENLAMBDA_DOCKER_IMAGE"
    );
    SandboxError::new(SandboxErrorKind::Resources, message)
}

fn engine_error(socket: &Path, what: &str, error: Error) -> SandboxError {
    let place = socket.display();
    let message = match &error {
        Error::DockerResponseServerError { message, .. } if !is_away(&error) => {
            format!("{what}: the engine says: {}", message.trim())
        }
        error if is_forbidden(error) => format!(
            "{what}: this user may not speak with the engine at {place}; run as root, or join the \
             group docker (usermod -aG docker USER)"
        ),
        error if is_away(error) => format!(
            "{what}: no engine answers at {place}; start it (systemctl start docker, or dockerd), \
             name its socket with --docker-socket or DOCKER_HOST, or use --sandbox sock"
        ),
        _ => format!("{what}: the engine's answer is not understood; look at its log"),
    };
    SandboxError::new(SandboxErrorKind::Resources, message).with_source(error)
}

/// Whether the kernel does not let us connect.
fn is_forbidden(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.kind() == std::io::ErrorKind::PermissionDenied;
        }
        cause = error.source();
    }
    false
}

/// The label that finds the containers of one worker.
pub(super) fn worker_label(mark: &str) -> String {
    format!("{WORKER_LABEL}={mark}")
}
