//! One side of a comparison of starts: a kind of sandbox, or another program.

use std::path::PathBuf;
use std::sync::Arc;

use openlambda_core::sandbox::Sandbox;
use openlambda_core::time::Duration;
use openlambda_sandbox::sock::minimal::Minimal;

use super::error::{Context, LiveError, Result};
use super::kinds::Kinds;
use super::lab::{Kind, Lab, destroy};
use super::rootless::Rootless;
use super::runc;
use super::turn::{Turn, lanes_for};

/// One side of a comparison.
pub(super) struct Side {
    pub(super) name: String,
    pub(super) isolation: String,
    what: What,
}

enum What {
    /// With this many paused instances alive meanwhile.
    Kind(Kind, usize),
    Runc(PathBuf),
    Minimal,
    Rootless(Box<tokio::sync::Mutex<Rootless>>),
}

impl Side {
    /// The side that a name means: a kind of sandbox, `runc`, `minimal` or `rootless`. `turns`: see
    /// [`StartConfig`](super::StartConfig).
    pub(super) async fn named(
        lab: &Lab,
        kinds: &dyn Kinds,
        name: &str,
        function: &str,
        turns: &[String],
    ) -> Result<Side> {
        let (isolation, what) = match name {
            "runc" => {
                let bundle = runc::bundle(lab.folder(), &lab.code, function)?;
                ("namespaces, limits".to_owned(), What::Runc(bundle))
            }
            "minimal" => {
                if function != "noop" {
                    return Err(LiveError::new(
                        "minimal starts a static program; leave out --function, or --against minimal",
                    ));
                }
                let minimal = minimal(lab).await?;
                let limits = if minimal.has_cgroup() { ", limits" } else { "" };
                minimal.end().await;
                (format!("namespaces, seccomp{limits}"), What::Minimal)
            }
            "rootless" => {
                let rootless = Rootless::start(turns, function).await?;
                (
                    rootless.isolation.clone(),
                    What::Rootless(Box::new(tokio::sync::Mutex::new(rootless))),
                )
            }
            _ => {
                let kind = lab.kind(kinds, name).await?;
                let (name, isolation) = (kind.name.to_owned(), kind.isolation.clone());
                return Ok(Side { name, isolation, what: What::Kind(kind, 0) });
            }
        };
        Ok(Side { name: name.to_owned(), isolation, what })
    }

    /// The same kind with `paused` paused instances alive during its turns.
    pub(super) async fn paused(
        lab: &Lab,
        kinds: &dyn Kinds,
        name: &str,
        paused: usize,
    ) -> Result<Side> {
        let kind = lab.kind(kinds, name).await?;
        let name = format!("{} beside {paused} paused", kind.name);
        Ok(Side { name, isolation: kind.isolation.clone(), what: What::Kind(kind, paused) })
    }

    /// Starts one after another for a time, `concurrency` at once.
    pub(super) async fn turn(
        &self,
        lab: &Arc<Lab>,
        concurrency: usize,
        time: Duration,
    ) -> Result<Turn> {
        match &self.what {
            What::Kind(kind, paused) => {
                let idle = lab.idle(&*kind.factory, *paused, true).await?;
                let lanes = (0..concurrency).map(|_| Arc::clone(&kind.factory));
                let turn = lanes_for(lab, time, lanes, |lab, factory| async move {
                    let started = lab.start(&*factory).await;
                    started.map(|()| factory)
                });
                let turn = turn.await;
                finish(&idle).await;
                turn.map(|(turn, _)| turn)
            }
            What::Runc(bundle) => {
                let lanes = (0..concurrency).map(|_| bundle.clone());
                let one = |lab: Arc<Lab>, bundle: PathBuf| async move {
                    runc::run(&bundle, &lab.name()).await.map(|()| bundle)
                };
                lanes_for(lab, time, lanes, one).await.map(|(turn, _)| turn)
            }
            What::Minimal => {
                let mut lanes = Vec::new();
                for _ in 0..concurrency {
                    lanes.push(minimal(lab).await?);
                }
                let one = |_: Arc<Lab>, mut minimal: Minimal| async move {
                    minimal.start().await.context(|| "minimal failed".to_owned())?;
                    Ok::<_, LiveError>(minimal)
                };
                let (turn, lanes) = lanes_for(lab, time, lanes, one).await?;
                for minimal in lanes {
                    minimal.end().await;
                }
                Ok(turn)
            }
            What::Rootless(rootless) => rootless.lock().await.turn(concurrency, time).await,
        }
    }

    /// Ends what it has.
    pub(super) async fn end(self) {
        match self.what {
            What::Kind(kind, _) => kind.factory.shutdown().await,
            What::Rootless(rootless) => rootless.into_inner().end().await,
            What::Runc(_) | What::Minimal => {}
        }
    }
}

async fn minimal(lab: &Lab) -> Result<Minimal> {
    let (state_dir, mark) = lab.place("minimal")?;
    let minimal = Minimal::launch(&lab.spawner, &mark, &state_dir, &lab.code).await;
    minimal.context(|| "the minimal program does not work here".to_owned())
}

async fn finish(idle: &[Arc<dyn Sandbox>]) {
    for sandbox in idle {
        // What was paused ends as others do.
        let _ = sandbox.resume().await;
    }
    destroy(idle).await;
}
