//! The base of a kind of sandbox whose instances are like processes: containers, virtual machines,
//! processes on another machine. They speak the [Runtime API](crate::runtime_api), print, exit by
//! themselves or are killed, and leave something to clean up. `process`, `sock` and `docker` are built on
//! it. (A kind whose instances are not processes, but closures or connections, builds on
//! `openlambda_core::sandbox::kit`.)
//!
//! ```text
//! start ─▶ runs ─── exits by itself, destroy, Drop, shutdown ──▶ exited ── cleaned up ──▶ gone
//!           │                                                      │
//!           └─ ready: the first `next`                             └─ calls fail (Exited)
//! ```
//!
//! A kind brings a [`Vessel`], which waits for an instance, kills, pauses and cleans up after it.
//! [`Instances`] keeps the living instances, starts each in its own task, and ends them all; [`Handle`] is
//! the [`Sandbox`] that the worker holds. A factory is then
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use async_trait::async_trait;
//! use openlambda_core::manifest::Network;
//! use openlambda_core::sandbox::{
//!     Capabilities, Created, Exit, SandboxError, SandboxErrorKind, SandboxFactory, SandboxSpec,
//! };
//! use openlambda_core::time::SystemClock;
//! use openlambda_sandbox::kit::{self, Handle, Instances, Vessel, exit_of};
//! use openlambda_sandbox::output::Running;
//! use openlambda_sandbox::runtime_api::{Listener, RuntimeApi, RuntimeApiConfig};
//! use openlambda_sandbox::sys::{Child, CommandSpec, Signal, Spawner};
//!
//! /// Runs each function's `bootstrap` in a virtual machine, which another program starts.
//! #[derive(Clone, Debug)]
//! struct Machines {
//!     clock: Arc<SystemClock>,
//!     spawner: Arc<Spawner>,
//!     instances: Instances<Machine>,
//! }
//!
//! #[async_trait]
//! impl SandboxFactory for Machines {
//!     fn kind(&self) -> &'static str {
//!         "machine"
//!     }
//!
//!     fn capabilities(&self) -> Capabilities {
//!         let mut capabilities = Capabilities::none();
//!         capabilities.networks = vec![Network::Host];
//!         capabilities
//!     }
//!
//!     async fn create(&self, spec: SandboxSpec) -> Result<Created, SandboxError> {
//!         self.capabilities().honour(&spec)?;
//!         kit::create(&spec, &*self.clock, self.clone().start(spec.clone())).await
//!     }
//!
//!     async fn shutdown(&self) {
//!         self.instances.shutdown().await;
//!     }
//! }
//!
//! impl Machines {
//!     async fn start(self, spec: SandboxSpec) -> Result<Handle<Machine>, SandboxError> {
//!         let permit = self.instances.permit().await?;
//!         let failed = |error: std::io::Error| {
//!             let message = "the machine cannot be started";
//!             SandboxError::new(SandboxErrorKind::Resources, message).with_source(error)
//!         };
//!         let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
//!         let address = listener.local_addr().map_err(failed)?.to_string();
//!         let mut command = CommandSpec::new("run-in-a-machine")
//!             .arg(spec.code.join("bootstrap"))
//!             .env("AWS_LAMBDA_RUNTIME_API", address);
//!         command.parent_death = Some(Signal::KILL);
//!         let spawned = self.spawner.spawn(command).await;
//!         let child = spawned.map_err(|error| failed(std::io::Error::other(error)))?;
//!         let slots = spec.manifest.concurrency;
//!         let api = RuntimeApi::new(RuntimeApiConfig {
//!             slots,
//!             event: spec.manifest.event,
//!             routes: spec.manifest.routes.clone(),
//!             function: spec.function,
//!             version: spec.version,
//!             clock: self.clock,
//!             running: Running::default(),
//!             output: None,
//!         });
//!         let serving = api.serve(Listener::Tcp(listener));
//!         Ok(self.instances.adopt(&permit, slots, api, serving, Machine(child)))
//!     }
//! }
//!
//! #[derive(Debug)]
//! struct Machine(Child);
//!
//! #[async_trait]
//! impl Vessel for Machine {
//!     async fn ended(&self) -> Exit {
//!         exit_of(self.0.wait().await)
//!     }
//!
//!     fn kill(&self) {
//!         self.0.kill_group();
//!     }
//! }
//! ```
//!
//! and passes the suite in `openlambda_core::conformance::sandbox`.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt;
use openlambda_core::failure::LAST_WORDS;
use openlambda_core::invocation::{Invocation, Reply, StartKind};
use openlambda_core::sandbox::{
    Created, Exit, Sandbox, SandboxError, SandboxErrorKind, SandboxSpec, Usage,
};
use openlambda_core::time::{Clock, Duration};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedRwLockReadGuard, RwLock, watch};

use crate::errors::{init_error, resources, shutting_down, unsupported};
use crate::output::{FunctionOutput, Running};
use crate::runtime_api::{Listener, RuntimeApi, RuntimeApiConfig, Serving};

/// One instance of a kind, from its start until everything of it is removed.
///
/// **Concurrency**: all methods may be called at once; several tasks may wait for `ended`, and it may be
/// called again after it has resolved.
///
/// **Cancellation**: the future of `ended` may be dropped, and `ended` called again.
#[async_trait]
pub trait Vessel: fmt::Debug + Send + Sync + 'static {
    /// Resolves when the instance's first process has ended, and says how.
    async fn ended(&self) -> Exit;

    /// Kills everything in it, at once. [`ended`](Self::ended) resolves soon afterwards.
    fn kill(&self);

    /// Removes what is left after its end: processes, files, cgroups. Called once, after
    /// [`ended`](Self::ended) has resolved; the instance is gone when this returns, or has panicked.
    /// By default it does nothing.
    async fn clean(&self) {}

    /// The reader of what its code prints, if there is one; output is read to the end before a call or the
    /// instance counts as over.
    fn output(&self) -> Option<&FunctionOutput> {
        None
    }

    /// Stops all in it from running. Called only while no call runs.
    ///
    /// # Errors
    ///
    /// It cannot be paused; by default [`SandboxErrorKind::Unsupported`].
    async fn pause(&self) -> Result<(), SandboxError> {
        Err(unsupported("sandboxes of this kind cannot be paused; use another kind"))
    }

    /// Lets a paused instance run again; does nothing to a running one. By default it does nothing, which
    /// suits a kind without pausing.
    ///
    /// # Errors
    ///
    /// It cannot be resumed.
    async fn resume(&self) -> Result<(), SandboxError> {
        Ok(())
    }

    /// Changes its memory limit, in bytes.
    ///
    /// # Errors
    ///
    /// That it cannot; by default [`SandboxErrorKind::Unsupported`].
    async fn set_memory_limit(&self, _bytes: u64) -> Result<(), SandboxError> {
        Err(unsupported("sandboxes of this kind have no memory limit; use another kind"))
    }

    /// What it uses now. Called only while it runs.
    ///
    /// # Errors
    ///
    /// The use is not known; by default [`SandboxErrorKind::Unsupported`].
    async fn usage(&self) -> Result<Usage, SandboxError> {
        Err(unsupported("the memory use of this kind's sandboxes is not known; use another kind"))
    }

    /// Whether it is of no use any more, because its code can start no process: asked after a call that
    /// failed. It gets no other call then. By default it is not.
    fn is_exhausted(&self) -> bool {
        false
    }

    /// A sentence on why it failed to start, where the kind knows more than the exit status.
    fn explain_failed_start(&self) -> Option<SandboxError> {
        None
    }
}

/// An instance that runs, or is being cleaned up after.
#[derive(Debug)]
struct Instance<V> {
    id: u64,
    slots: u32,
    api: RuntimeApi,
    vessel: V,
    /// Asks the monitor to end it.
    stop: Notify,
    life: watch::Sender<Life>,
}

#[derive(Clone, Debug)]
enum Life {
    Runs,
    /// Its process has ended.
    Exited(Exit),
    /// Everything of it is removed.
    Gone(Exit),
}

/// The instances of one factory: those that run, and those that are being cleaned up after. Clones
/// share them.
#[derive(Debug)]
pub struct Instances<V> {
    shared: Arc<Shared<V>>,
}

#[derive(Debug)]
struct Shared<V> {
    /// Read while an instance is being started; `shutdown` waits for those by writing.
    starting: Arc<RwLock<()>>,
    live: Mutex<Live<V>>,
}

#[derive(Debug)]
struct Live<V> {
    shut_down: bool,
    next_id: u64,
    instances: BTreeMap<u64, Arc<Instance<V>>>,
}

impl<V> Clone for Instances<V> {
    fn clone(&self) -> Self {
        Instances { shared: Arc::clone(&self.shared) }
    }
}

impl<V: Vessel> Default for Instances<V> {
    fn default() -> Self {
        Instances::new()
    }
}

/// The right to start an instance: while it is held, a shutdown waits.
#[derive(Debug)]
pub struct Permit {
    _starting: OwnedRwLockReadGuard<()>,
}

impl<V: Vessel> Instances<V> {
    /// None yet.
    pub fn new() -> Self {
        let live = Live { shut_down: false, next_id: 1, instances: BTreeMap::new() };
        Instances { shared: Arc::new(Shared { starting: Arc::default(), live: Mutex::new(live) }) }
    }

    /// Allows one start: call it first in the future that [`create`] gets.
    ///
    /// # Errors
    ///
    /// [`SandboxErrorKind::Resources`] after [`shutdown`](Self::shutdown).
    pub async fn permit(&self) -> Result<Permit, SandboxError> {
        let starting = Arc::clone(&self.shared.starting).read_owned().await;
        if self.shared.live.lock().shut_down {
            return Err(shutting_down());
        }
        Ok(Permit { _starting: starting })
    }

    /// Takes over an instance that was started under a permit, with `slots` slots. Its code speaks with
    /// `api`, which `serving` serves. From here on Drop of the handle cleans up; before this call, the
    /// code that starts the instance has to. Must be called within a tokio runtime.
    pub fn adopt(
        &self,
        _permit: &Permit,
        slots: u32,
        api: RuntimeApi,
        serving: Serving,
        vessel: V,
    ) -> Handle<V> {
        let instance = {
            let mut live = self.shared.live.lock();
            let id = live.next_id;
            live.next_id += 1;
            let instance = Arc::new(Instance {
                id,
                slots,
                api,
                vessel,
                stop: Notify::new(),
                life: watch::channel(Life::Runs).0,
            });
            live.instances.insert(id, Arc::clone(&instance));
            instance
        };
        let weak = Arc::downgrade(&instance);
        instance.api.ask_after_failures(move || {
            weak.upgrade().is_some_and(|instance| instance.vessel.is_exhausted())
        });
        tokio::spawn(monitor(Arc::clone(&self.shared), Arc::clone(&instance), serving));
        Handle { instance }
    }

    /// Ends all instances and waits until they are removed; none is started afterwards.
    pub async fn shutdown(&self) {
        self.shared.live.lock().shut_down = true;
        let starts = self.shared.starting.write().await;
        let instances: Vec<_> = self.shared.live.lock().instances.values().cloned().collect();
        drop(starts);
        for instance in &instances {
            instance.stop.notify_one();
        }
        for instance in &instances {
            instance.destroy().await;
        }
    }
}

/// Begins to read what an instance prints to its standard output and error, and to speak with its code
/// at `listener`. Must be called within a tokio runtime with I/O.
///
/// # Errors
///
/// [`SandboxErrorKind::Resources`]: the system has no descriptors left to watch its output.
pub fn contact(
    spec: &SandboxSpec,
    clock: Arc<dyn Clock>,
    [stdout, stderr]: [OwnedFd; 2],
    listener: Listener,
) -> Result<(Arc<FunctionOutput>, RuntimeApi, Serving), SandboxError> {
    let running = Running::default();
    let output = FunctionOutput::new(stdout, stderr, &spec.function, &spec.log, &running);
    let output = output.map_err(|error| resources("its output cannot be read", error))?;
    let output = Arc::new(output);
    let api = RuntimeApi::new(RuntimeApiConfig {
        slots: spec.manifest.concurrency,
        event: spec.manifest.event,
        routes: spec.manifest.routes.clone(),
        function: spec.function.clone(),
        version: spec.version,
        clock,
        running,
        output: Some(Arc::clone(&output)),
    });
    let serving = api.serve(listener);
    Ok((output, api, serving))
}

/// Follows an instance to its end, whatever its vessel does, because other tasks wait for that. The panic
/// hook has reported a panic.
async fn monitor<V: Vessel>(shared: Arc<Shared<V>>, instance: Arc<Instance<V>>, serving: Serving) {
    let _ = AssertUnwindSafe(end(&instance, serving)).catch_unwind().await;
    let exit = match &*instance.life.borrow() {
        Life::Exited(exit) | Life::Gone(exit) => Some(exit.clone()),
        Life::Runs => None,
    };
    let exit = exit.unwrap_or_else(|| {
        let _ = catch_unwind(AssertUnwindSafe(|| instance.vessel.kill()));
        let exit = Exit::Lost("its kind of sandbox panicked".to_owned());
        instance.api.close(&exit);
        exit
    });
    shared.live.lock().instances.remove(&instance.id);
    instance.life.send_replace(Life::Gone(exit));
}

/// Waits until an instance ends, or ends it, and cleans up after it.
async fn end<V: Vessel>(instance: &Instance<V>, serving: Serving) {
    let vessel = &instance.vessel;
    let exit = tokio::select! {
        exit = vessel.ended() => exit,
        () = instance.stop.notified() => {
            if !farewell(instance).await {
                vessel.kill();
                vessel.ended().await;
            }
            Exit::Destroyed
        }
    };
    let settle = || vessel.output().map(FunctionOutput::settle);
    settle();
    instance.api.close(&exit);
    instance.life.send_replace(Life::Exited(exit));
    // Its listener may be the next tenant's at once.
    serving.stop().await;
    vessel.clean().await;
    settle();
}

/// How long code may take for what it does before its end.
const FAREWELL: Duration = Duration::from_secs(2);

/// Lets code that asked for it end by itself, if it has nothing else to do. Returns whether it has.
async fn farewell<V: Vessel>(instance: &Instance<V>) -> bool {
    let vessel = &instance.vessel;
    instance.api.farewell()
        && vessel.resume().await.is_ok()
        && tokio::time::timeout(FAREWELL, vessel.ended()).await.is_ok()
}

/// How a process ended, from its exit status.
pub fn exit_of(status: std::process::ExitStatus) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Status(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Lost(status.to_string()),
    }
}

impl<V: Vessel> Instance<V> {
    async fn exited(&self) -> Exit {
        let mut life = self.life.subscribe();
        let life = life.wait_for(|life| !matches!(life, Life::Runs)).await;
        match &*life.expect("we hold the sender") {
            Life::Exited(exit) | Life::Gone(exit) => exit.clone(),
            Life::Runs => unreachable!("that is what was waited for"),
        }
    }

    async fn destroy(&self) {
        self.stop.notify_one();
        let mut life = self.life.subscribe();
        let _ = life.wait_for(|life| matches!(life, Life::Gone(_))).await;
    }

    /// The message and what the code printed last.
    fn with_last_words(&self, message: String) -> String {
        let Some(output) = self.vessel.output() else { return message };
        output.settle();
        match output.last_words() {
            words if words.is_empty() => message,
            words => format!("{message}{LAST_WORDS}{words}"),
        }
    }
}

/// The worker's handle of an instance, which is the [`Sandbox`]; Drop ends it.
#[derive(Debug)]
pub struct Handle<V: Vessel> {
    instance: Arc<Instance<V>>,
}

impl<V: Vessel> Drop for Handle<V> {
    fn drop(&mut self) {
        self.instance.stop.notify_one();
    }
}

/// Implements [`create`](openlambda_core::sandbox::SandboxFactory::create): starts an instance in a
/// separate task, so that a start is never abandoned half-way, and waits until it is ready. When that
/// takes longer than the spec's `init_timeout`, or its future is dropped, the instance is ended.
///
/// # Errors
///
/// Those of `start`; [`SandboxErrorKind::Init`] and [`SandboxErrorKind::InitTimeout`], with what the
/// code said; [`SandboxErrorKind::Unsupported`] for a spec that names a zygote: this makes instances
/// from nothing.
pub async fn create<V: Vessel>(
    spec: &SandboxSpec,
    clock: &dyn Clock,
    start: impl Future<Output = Result<Handle<V>, SandboxError>> + Send + 'static,
) -> Result<Created, SandboxError> {
    if let Some(zygote) = spec.zygote {
        let message = format!(
            "the sandbox cannot be forked from {zygote}: this kind has no zygotes; use another kind"
        );
        return Err(unsupported(message));
    }
    let begin = clock.now();
    // When our future is dropped, Drop of the handle that the task made cleans up.
    let started = tokio::spawn(start).await;
    let handle = started.unwrap_or_else(|_| Err(shutting_down()))?;
    let instance = Arc::clone(&handle.instance);
    let create = clock.now().since(begin);
    let ready = tokio::time::timeout(spec.init_timeout, instance.api.ready()).await;
    let error = match ready {
        Ok(Ok(())) => {
            let init = clock.now().since(begin).saturating_sub(create);
            let sandbox = Arc::new(handle);
            return Ok(Created { sandbox, start: StartKind::Cold, create, init });
        }
        Ok(Err(error)) if error.kind == SandboxErrorKind::Init => error,
        Ok(Err(_)) => {
            let exit = instance.exited().await;
            if exit == Exit::Destroyed {
                instance.destroy().await;
                return Err(shutting_down());
            }
            instance.vessel.explain_failed_start().unwrap_or_else(|| {
                let mut message =
                    format!("the instance {exit} before it asked for its first event");
                if exit == Exit::OutOfMemory {
                    let limit = spec.manifest.memory_mb;
                    let next = format!("; raise memory_mb in its manifest, which is {limit}");
                    message.push_str(&next);
                }
                init_error("Runtime.ExitError", instance.with_last_words(message))
            })
        }
        Err(_) => init_timeout(&instance, spec.init_timeout),
    };
    instance.destroy().await;
    Err(error)
}

fn init_timeout<V: Vessel>(instance: &Instance<V>, limit: Duration) -> SandboxError {
    let message = format!(
        "the instance did not ask for its first event within {limit:?}; do less when it starts, or \
         raise timeout_seconds"
    );
    let message = instance.with_last_words(message);
    SandboxError::new(SandboxErrorKind::InitTimeout, message)
}

#[async_trait]
impl<V: Vessel> Sandbox for Handle<V> {
    async fn invoke(&self, invocation: Invocation) -> Result<Reply, SandboxError> {
        self.instance.api.invoke(invocation).await
    }

    async fn exited(&self) -> Exit {
        self.instance.exited().await
    }

    fn slots(&self) -> u32 {
        self.instance.slots
    }

    async fn pause(&self) -> Result<(), SandboxError> {
        self.instance.api.pause()?;
        let paused = self.instance.vessel.pause().await;
        if paused.is_err() {
            let _ = self.instance.api.resume();
        }
        paused
    }

    async fn resume(&self) -> Result<(), SandboxError> {
        self.instance.vessel.resume().await?;
        self.instance.api.resume()
    }

    async fn set_memory_limit(&self, bytes: u64) -> Result<(), SandboxError> {
        self.instance.vessel.set_memory_limit(bytes).await
    }

    async fn usage(&self) -> Result<Usage, SandboxError> {
        if !matches!(*self.instance.life.borrow(), Life::Runs) {
            let message = "the instance is gone; its memory use is not known";
            return Err(SandboxError::new(SandboxErrorKind::Exited, message));
        }
        self.instance.vessel.usage().await
    }

    async fn destroy(&self) {
        self.instance.destroy().await;
    }
}

#[cfg(test)]
mod tests {
    use openlambda_core::manifest::EventFormat;
    use openlambda_core::time::SystemClock;
    use tokio::net::TcpListener;

    use super::*;

    #[derive(Debug)]
    struct Broken(Notify);

    #[async_trait]
    impl Vessel for Broken {
        async fn ended(&self) -> Exit {
            self.0.notified().await;
            self.0.notify_one();
            Exit::Signal(9)
        }

        fn kill(&self) {
            self.0.notify_one();
        }

        async fn clean(&self) {
            panic!("cannot clean");
        }
    }

    #[tokio::test]
    async fn a_panic_while_cleaning_does_not_hang_destroy() {
        let api = RuntimeApi::new(RuntimeApiConfig {
            slots: 1,
            event: EventFormat::Body,
            routes: Vec::new(),
            function: "f".parse().unwrap(),
            version: None,
            clock: Arc::new(SystemClock::new()),
            running: Running::default(),
            output: None,
        });
        let serving = api.serve(Listener::Tcp(TcpListener::bind("127.0.0.1:0").await.unwrap()));
        let instances = Instances::new();
        let permit = instances.permit().await.unwrap();
        let handle = instances.adopt(&permit, 1, api, serving, Broken(Notify::new()));
        drop(permit);
        let limit = Duration::from_secs(10);
        tokio::time::timeout(limit, handle.destroy()).await.expect("destroy hangs");
        assert_eq!(handle.exited().await, Exit::Destroyed);
        tokio::time::timeout(limit, instances.shutdown()).await.expect("shutdown hangs");
    }
}
