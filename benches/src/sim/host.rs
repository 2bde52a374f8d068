//! One simulated worker.

use std::time::Duration;

use openlambda_core::allow::Allow;
use openlambda_core::function::Digest;
use openlambda_core::scheduler::{InstanceId, InvocationId, VersionId};
use openlambda_core::time::Time;
use openlambda_core::worker_core::{CoreConfig, WorkerCore};

use super::calls::CallId;
use super::config::{SimConfig, SimError};
use crate::processors::Processors;

/// A worker, and what belongs to its calls and instances here.
#[derive(Debug)]
pub(super) struct Host {
    /// Which of its lives this is.
    pub(super) life: u32,
    pub(super) up: bool,
    pub(super) core: WorkerCore,
    /// The function of each version, by the version's number.
    pub(super) versions: Vec<u32>,
    /// What it has of calls, by the place of an invocation's number.
    pub(super) calls: Vec<Option<Had>>,
    /// Instances that are being made, and how long that takes.
    pub(super) starting: Vec<(InstanceId, Duration)>,
    /// Bundles that are being fetched or removed.
    bundles: Vec<Digest>,
    free_bundles: Vec<u32>,
    pub(super) timer: Option<Time>,
    /// What runs, and when it is looked at next, where processors are shared.
    pub(super) processors: Option<(Processors, Option<Time>)>,
    /// The reply that is about to be sent tells of an idle instance.
    pub(super) idle_with_reply: bool,
    pub(super) meter: Meter,
}

/// A call at a worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Had {
    pub(super) invocation: InvocationId,
    /// `None`: it was answered, and the handler goes on.
    pub(super) call: Option<CallId>,
    /// Where it runs, if it does.
    pub(super) instance: Option<InstanceId>,
    pub(super) began: Time,
}

/// Memory taken from the pool times how long.
#[derive(Debug, Default)]
pub(super) struct Meter {
    byte_nanoseconds: u128,
    held: u64,
    since: Time,
}

impl Meter {
    pub(super) fn holds(&mut self, now: Time, held: u64) {
        if held != self.held {
            let time = now.as_nanos() - self.since.as_nanos();
            self.byte_nanoseconds += u128::from(self.held) * u128::from(time);
            (self.held, self.since) = (held, now);
        }
    }
}

impl Host {
    pub(super) fn new(config: &SimConfig) -> Result<Self, SimError> {
        let core = CoreConfig {
            scheduler: config.scheduler.clone(),
            max_wait: config.max_wait,
            code_budget: config.code_budget,
            allow: Allow::default(),
        };
        Ok(Host {
            life: 0,
            up: true,
            core: WorkerCore::new(core, config.queue.make(), config.keep_alive.make()),
            versions: Vec::new(),
            calls: Vec::new(),
            starting: Vec::new(),
            bundles: Vec::new(),
            free_bundles: Vec::new(),
            timer: None,
            processors: config.processors.map(|count| (Processors::new(count), None)),
            idle_with_reply: false,
            meter: Meter::default(),
        })
    }

    /// What it held until now, in all.
    pub(super) fn byte_seconds(&mut self, now: Time) -> f64 {
        self.meter.holds(now, u64::MAX);
        self.meter.byte_nanoseconds as f64 / 1e9
    }

    pub(super) fn place(&mut self, invocation: InvocationId) -> &mut Option<Had> {
        let at = invocation.0 as u32 as usize;
        if at >= self.calls.len() {
            self.calls.resize(at + 1, None);
        }
        &mut self.calls[at]
    }

    /// A call that it has, if it has it still.
    pub(super) fn had(&mut self, invocation: InvocationId) -> Option<&mut Had> {
        self.place(invocation).as_mut().filter(|had| had.invocation == invocation)
    }

    /// Which function a version is of.
    pub(super) fn knows(&mut self, version: VersionId, function: u32) {
        let at = version.0 as usize;
        if at >= self.versions.len() {
            self.versions.resize(at + 1, 0);
        }
        self.versions[at] = function;
    }

    pub(super) fn bundle(&mut self, digest: Digest) -> u32 {
        match self.free_bundles.pop() {
            Some(at) => {
                self.bundles[at as usize] = digest;
                at
            }
            None => {
                self.bundles.push(digest);
                (self.bundles.len() - 1) as u32
            }
        }
    }

    pub(super) fn take_bundle(&mut self, at: u32) -> Digest {
        self.free_bundles.push(at);
        self.bundles[at as usize]
    }
}
