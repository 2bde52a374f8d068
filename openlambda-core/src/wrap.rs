//! Wrappers for experiments: a registry, or a kind of sandbox, that is slow, that fails, or that has
//! a limit.
//!
//! [`Disturbed`] puts a [`Disturbance`] in the way of another [`Registry`] or [`SandboxFactory`], and
//! is one itself, so wrappers can be wrapped:
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use openlambda_core::memory::MemoryRegistry;
//! use openlambda_core::wrap::{Delay, Disturbed, DisturbedRegistry, Faulty, Operation, Slow};
//!
//! // Far away, and one bundle in a hundred does not come.
//! let slow = Slow::by(Delay::Exponential { mean: Duration::from_millis(20) }, 7);
//! let registry: DisturbedRegistry = Disturbed::new(Arc::new(MemoryRegistry::new()), slow);
//! let registry: DisturbedRegistry = Disturbed::new(Arc::new(registry), Faulty::new(0.01, 7));
//! let registry = registry.only([Operation::Fetch, Operation::Get]);
//! ```
//!
//! What a wrapper draws follows from its kind, its seed, the operation, and how many of that operation
//! came before: the tenth `fetch` has the same fate in every run, whatever else goes on beside it. What
//! is slow has nothing to do with what fails, under one seed too; two wrappers of one kind want two seeds.
//!
//! | an operation | disturbed, it |
//! |---|---|
//! | of a registry | fails with [`RegistryError::Unavailable`] before the registry hears of it |
//! | [`Create`](Operation::Create), [`Zygote`](Operation::Zygote) | fails with [`SandboxErrorKind::Resources`] before anything is made |
//! | [`Invoke`](Operation::Invoke) | loses the instance before its handler hears of the call: it is destroyed and the call fails with [`SandboxErrorKind::Exited`]; where only a limit is in the way, [`SandboxErrorKind::Busy`] |
//!
//! What changes nothing and waits for nothing (`watch`, `exited`, `destroy` …) is not disturbed.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_core::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::failure::Started;
use crate::function::{Digest, FunctionName, FunctionRef, Version};
use crate::hash::{mix, stable_hash};
use crate::invocation::{Invocation, Reply};
use crate::random::Rng;
use crate::registry::{
    Bundle, BundleStream, Listing, Published, Registry, RegistryError, RegistryEvent, Resolved,
    Revision, VersionInfo,
};
use crate::sandbox::{
    Capabilities, Created, Exit, Report, Sandbox, SandboxError, SandboxErrorKind, SandboxFactory,
    SandboxSpec, Usage, ZygoteSpec,
};
use crate::time::{Clock, SystemClock};

/// What gets in the way.
#[async_trait]
pub trait Disturbance: fmt::Debug + Send + Sync + 'static {
    /// Called before an operation, which begins when this has returned. The permit is dropped when
    /// the operation is over, or given up.
    ///
    /// # Errors
    ///
    /// [`Trouble`]: the operation fails.
    async fn before(&self, operation: Operation) -> Result<Permit, Trouble>;
}

/// For whoever looks at it, or changes it, while it is in the way.
#[async_trait]
impl<D: Disturbance + ?Sized> Disturbance for Arc<D> {
    async fn before(&self, operation: Operation) -> Result<Permit, Trouble> {
        (**self).before(operation).await
    }
}

/// What is disturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// [`Registry::put`].
    Put,
    /// [`Registry::get`], to the end of the stream.
    Get,
    /// [`Registry::resolve`].
    Resolve,
    /// [`Registry::list`].
    List,
    /// [`Registry::delete`].
    Delete,
    /// [`Registry::publish`].
    Publish,
    /// [`Registry::fetch`].
    Fetch,
    /// [`Registry::versions`].
    Versions,
    /// [`Registry::set_alias`].
    SetAlias,
    /// [`SandboxFactory::create`].
    Create,
    /// [`SandboxFactory::create_zygote`].
    Zygote,
    /// [`Sandbox::invoke`], until its reply is done or nobody waits for it.
    Invoke,
}

/// How many there are.
const OPERATIONS: usize = Operation::Invoke as usize + 1;

/// Why an operation fails.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum Trouble {
    /// Something broke, as an experiment wants it to.
    #[error("a fault was injected into {0:?}; this is an experiment's doing")]
    Fault(Operation),
    /// As many run already as may.
    #[error("{at_once} of {operation:?} run at once, which is the limit; try again")]
    Full {
        /// What was to be done.
        operation: Operation,
        /// The limit.
        at_once: usize,
    },
}

/// The right to do an operation; what it holds is given back when it is dropped.
#[derive(Debug, Default)]
pub struct Permit {
    _place: Option<OwnedSemaphorePermit>,
}

/// Draws for the operations, independent of their order among each other.
#[derive(Debug)]
struct Draws {
    seed: u64,
    counts: [AtomicU64; OPERATIONS],
}

impl Draws {
    /// `kind` tells apart wrappers that have the same seed.
    fn new(kind: &str, seed: u64) -> Self {
        let seed = stable_hash(seed, kind.as_bytes());
        Draws { seed, counts: [const { AtomicU64::new(0) }; OPERATIONS] }
    }

    fn next(&self, operation: Operation) -> Rng {
        let n = self.counts[operation as usize].fetch_add(1, Ordering::Relaxed);
        Rng::from_seed(mix(mix(self.seed, operation as u64), n))
    }
}

/// Makes operations wait before they begin.
#[derive(Debug)]
pub struct Slow {
    delay: Delay,
    draws: Draws,
}

/// How long an operation waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delay {
    /// Always so long.
    Fixed(Duration),
    /// Anything from `least` to `most`.
    Uniform {
        /// The shortest.
        least: Duration,
        /// The longest.
        most: Duration,
    },
    /// Exponentially distributed: mostly short, now and then long.
    Exponential {
        /// The mean.
        mean: Duration,
    },
}

impl Slow {
    /// Waits as `delay` says, with draws of `seed`.
    pub fn by(delay: Delay, seed: u64) -> Self {
        Slow { delay, draws: Draws::new("slow", seed) }
    }

    fn next(&self, operation: Operation) -> Duration {
        let mut rng = self.draws.next(operation);
        match self.delay {
            Delay::Fixed(delay) => delay,
            Delay::Uniform { least, most } => {
                least + most.saturating_sub(least).mul_f64(rng.unit())
            }
            Delay::Exponential { mean } => rng.exponential(mean),
        }
    }
}

#[async_trait]
impl Disturbance for Slow {
    async fn before(&self, operation: Operation) -> Result<Permit, Trouble> {
        tokio::time::sleep(self.next(operation)).await;
        Ok(Permit::default())
    }
}

/// Makes operations fail.
#[derive(Debug)]
pub struct Faulty {
    probability: f64,
    draws: Draws,
}

impl Faulty {
    /// Each operation fails with this probability, 0 to 1, with draws of `seed`.
    pub fn new(probability: f64, seed: u64) -> Self {
        Faulty { probability, draws: Draws::new("faulty", seed) }
    }
}

#[async_trait]
impl Disturbance for Faulty {
    async fn before(&self, operation: Operation) -> Result<Permit, Trouble> {
        match self.draws.next(operation).chance(self.probability) {
            true => Err(Trouble::Fault(operation)),
            false => Ok(Permit::default()),
        }
    }
}

/// Lets only so many operations run at once, of all kinds together.
#[derive(Debug)]
pub struct Limited {
    at_once: usize,
    waits: bool,
    places: Arc<Semaphore>,
}

impl Limited {
    /// More than `at_once` wait for their turn, in order.
    pub fn waiting(at_once: usize) -> Self {
        let at_once = at_once.min(Semaphore::MAX_PERMITS);
        Limited { at_once, waits: true, places: Arc::new(Semaphore::new(at_once)) }
    }

    /// More than `at_once` fail.
    pub fn refusing(at_once: usize) -> Self {
        Limited { waits: false, ..Limited::waiting(at_once) }
    }
}

#[async_trait]
impl Disturbance for Limited {
    async fn before(&self, operation: Operation) -> Result<Permit, Trouble> {
        let places = Arc::clone(&self.places);
        let place = match self.waits {
            true => places.acquire_owned().await.ok(),
            false => places.try_acquire_owned().ok(),
        };
        match place {
            Some(place) => Ok(Permit { _place: Some(place) }),
            None => Err(Trouble::Full { operation, at_once: self.at_once }),
        }
    }
}

/// A registry or a sandbox factory with something in the way. Its kind and its capabilities are those
/// of what is wrapped.
#[derive(Debug)]
pub struct Disturbed<T: ?Sized> {
    inner: Arc<T>,
    by: Arc<By>,
}

/// A [`Registry`] with something in the way.
pub type DisturbedRegistry = Disturbed<dyn Registry>;

/// A [`SandboxFactory`] with something in the way.
pub type DisturbedFactory = Disturbed<dyn SandboxFactory>;

#[derive(Clone, Debug)]
struct By {
    disturbance: Arc<dyn Disturbance>,
    only: Option<Vec<Operation>>,
    clock: Arc<SystemClock>,
}

impl By {
    async fn before(&self, operation: Operation) -> Result<Permit, Trouble> {
        match &self.only {
            Some(only) if !only.contains(&operation) => Ok(Permit::default()),
            _ => self.disturbance.before(operation).await,
        }
    }
}

impl<T: ?Sized> Disturbed<T> {
    /// `inner`, with `disturbance` in the way of all operations.
    pub fn new(inner: Arc<T>, disturbance: impl Disturbance) -> Self {
        let (disturbance, clock) = (Arc::new(disturbance), Arc::new(SystemClock::new()));
        let by = By { disturbance, only: None, clock };
        Disturbed { inner, by: Arc::new(by) }
    }

    /// The same in the way of these operations alone. For sandboxes that were made before, nothing
    /// changes.
    pub fn only(mut self, operations: impl IntoIterator<Item = Operation>) -> Self {
        Arc::make_mut(&mut self.by).only = Some(operations.into_iter().collect());
        self
    }
}

impl From<Trouble> for RegistryError {
    fn from(trouble: Trouble) -> Self {
        RegistryError::Unavailable(trouble.into())
    }
}

#[async_trait]
impl Registry for DisturbedRegistry {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    async fn put(&self, name: &FunctionName, bundle: Bundle) -> Result<Published, RegistryError> {
        let _permit = self.by.before(Operation::Put).await?;
        self.inner.put(name, bundle).await
    }

    async fn get(&self, digest: &Digest) -> Result<BundleStream, RegistryError> {
        let permit = self.by.before(Operation::Get).await?;
        let bundle = self.inner.get(digest).await?;
        Ok(Box::pin(bundle.inspect(move |_| _ = &permit)))
    }

    async fn resolve(&self, reference: &FunctionRef) -> Result<Resolved, RegistryError> {
        let _permit = self.by.before(Operation::Resolve).await?;
        self.inner.resolve(reference).await
    }

    async fn list(&self) -> Result<Vec<Listing>, RegistryError> {
        let _permit = self.by.before(Operation::List).await?;
        self.inner.list().await
    }

    async fn delete(&self, name: &FunctionName) -> Result<(), RegistryError> {
        let _permit = self.by.before(Operation::Delete).await?;
        self.inner.delete(name).await
    }

    async fn publish(
        &self,
        name: &FunctionName,
        bundle: BundleStream,
    ) -> Result<Published, RegistryError> {
        let _permit = self.by.before(Operation::Publish).await?;
        self.inner.publish(name, bundle).await
    }

    async fn fetch(&self, digest: &Digest, into: &Path) -> Result<(), RegistryError> {
        let _permit = self.by.before(Operation::Fetch).await?;
        self.inner.fetch(digest, into).await
    }

    async fn versions(&self, name: &FunctionName) -> Result<Vec<VersionInfo>, RegistryError> {
        let _permit = self.by.before(Operation::Versions).await?;
        self.inner.versions(name).await
    }

    async fn set_alias(
        &self,
        name: &FunctionName,
        alias: &str,
        version: Option<Version>,
        expected: Option<Version>,
    ) -> Result<(), RegistryError> {
        let _permit = self.by.before(Operation::SetAlias).await?;
        self.inner.set_alias(name, alias, version, expected).await
    }

    fn watch(&self, from: Revision) -> BoxStream<'static, RegistryEvent> {
        self.inner.watch(from)
    }

    fn cache_for(&self) -> Duration {
        self.inner.cache_for()
    }
}

impl DisturbedFactory {
    /// What [`Created`] says of the time includes the disturbance.
    async fn make(
        &self,
        operation: Operation,
        create: impl Future<Output = Result<Created, SandboxError>>,
    ) -> Result<Created, SandboxError> {
        let begin = self.by.clock.now();
        let _permit = self.by.before(operation).await.map_err(|trouble| {
            let message = "the sandbox cannot be made";
            SandboxError::new(SandboxErrorKind::Resources, message).with_source(trouble)
        })?;
        let waited = self.by.clock.now().since(begin);
        let mut created = create.await?;
        created.create += waited;
        let (inner, by) = (created.sandbox, Arc::clone(&self.by));
        created.sandbox = Arc::new(DisturbedSandbox { inner, by });
        Ok(created)
    }
}

#[async_trait]
impl SandboxFactory for DisturbedFactory {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn create(&self, spec: SandboxSpec) -> Result<Created, SandboxError> {
        self.make(Operation::Create, self.inner.create(spec)).await
    }

    async fn create_zygote(&self, spec: ZygoteSpec) -> Result<Created, SandboxError> {
        self.make(Operation::Zygote, self.inner.create_zygote(spec)).await
    }

    async fn reclaim(&self) -> Report {
        self.inner.reclaim().await
    }

    async fn shutdown(&self) {
        self.inner.shutdown().await;
    }
}

#[derive(Debug)]
struct DisturbedSandbox {
    inner: Arc<dyn Sandbox>,
    by: Arc<By>,
}

#[async_trait]
impl Sandbox for DisturbedSandbox {
    async fn invoke(&self, invocation: Invocation) -> Result<Reply, SandboxError> {
        let permit = match self.by.before(Operation::Invoke).await {
            Ok(permit) => permit,
            Err(trouble @ Trouble::Full { .. }) => {
                let message = "the call cannot begin";
                let error = SandboxError::new(SandboxErrorKind::Busy, message);
                return Err(error.with_source(trouble));
            }
            Err(trouble) => {
                self.inner.destroy().await;
                let error = SandboxError::ended(&self.inner.exited().await, Started::No);
                return Err(error.with_source(trouble));
            }
        };
        let mut reply = self.inner.invoke(invocation).await?;
        reply.done = reply.done.inspect(move |_| drop(permit)).boxed();
        Ok(reply)
    }

    async fn exited(&self) -> Exit {
        self.inner.exited().await
    }

    fn slots(&self) -> u32 {
        self.inner.slots()
    }

    async fn pause(&self) -> Result<(), SandboxError> {
        self.inner.pause().await
    }

    async fn resume(&self) -> Result<(), SandboxError> {
        self.inner.resume().await
    }

    async fn set_memory_limit(&self, bytes: u64) -> Result<(), SandboxError> {
        self.inner.set_memory_limit(bytes).await
    }

    async fn usage(&self) -> Result<Usage, SandboxError> {
        self.inner.usage().await
    }

    async fn destroy(&self) {
        self.inner.destroy().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn fates(faulty: &Faulty, operation: Operation) -> Vec<bool> {
        let mut fates = Vec::new();
        for _ in 0..1000 {
            fates.push(faulty.before(operation).await.is_err());
        }
        fates
    }

    #[tokio::test]
    async fn the_same_seed_has_the_same_faults_whatever_else_is_done() {
        let (one, two) = (Faulty::new(0.1, 7), Faulty::new(0.1, 7));
        let resolves = fates(&one, Operation::Resolve).await;
        fates(&two, Operation::List).await;
        assert_eq!(fates(&two, Operation::Resolve).await, resolves);
        let share = resolves.iter().filter(|fault| **fault).count();
        assert!((60..140).contains(&share), "{share} of 1000");
        assert_ne!(fates(&Faulty::new(0.1, 8), Operation::Resolve).await, resolves);
        assert!(!fates(&Faulty::new(0.0, 7), Operation::Get).await.contains(&true));
        assert!(!fates(&Faulty::new(1.0, 7), Operation::Get).await.contains(&false));
    }

    #[test]
    fn delays_follow_from_the_seed_and_keep_their_bounds() {
        let (least, most) = (Duration::from_millis(3), Duration::from_millis(5));
        let draw = |delay, seed| {
            let slow = Slow::by(delay, seed);
            (0..1000).map(|_| slow.next(Operation::Fetch)).collect::<Vec<_>>()
        };
        assert!(draw(Delay::Fixed(least), 1).iter().all(|delay| *delay == least));
        let uniform = draw(Delay::Uniform { least, most }, 1);
        assert!(uniform.iter().all(|delay| (least..=most).contains(delay)));
        assert_eq!(draw(Delay::Uniform { least, most }, 1), uniform);
        assert_ne!(draw(Delay::Uniform { least, most }, 2), uniform);
        let exponential = draw(Delay::Exponential { mean: most }, 1);
        let mean = exponential.iter().sum::<Duration>() / 1000;
        assert!((least..2 * most).contains(&mean), "{mean:?}");
    }
}
