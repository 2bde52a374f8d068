//! The two sides of membership: [`Source`] knows workers, [`Follower`] is told of them.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use openlambda_core::balancing::ClusterEvent;

/// Knows workers, and reports them to a [`Follower`].
///
/// [`ClusterEvent`] says what a source must do. A source that knows addresses only may report just
/// [`Joined`](openlambda_core::balancing::Change::Joined) and
/// [`Left`](openlambda_core::balancing::Change::Left): its workers then count as healthy until a call
/// fails. Two sources may name the same worker: it stays until both have reported that it has left. If they
/// report different starts of it, the last report counts.
///
/// ```
/// use std::sync::Arc;
///
/// use async_trait::async_trait;
/// use openlambda_core::balancing::{Change, ClusterEvent, Member, WorkerInfo};
/// use openlambda_lb::workers::membership::{Follower, Source};
///
/// /// One worker, which is always there.
/// #[derive(Debug)]
/// struct Fixed(Arc<Member>);
///
/// #[async_trait]
/// impl Source for Fixed {
///     async fn run(self: Box<Self>, follower: Arc<dyn Follower>) {
///         follower.apply(ClusterEvent::new(self.0, Change::Joined));
///     }
/// }
///
/// let info = WorkerInfo::new("worker-1", 64);
/// let source = Fixed(Arc::new(Member::new(info, 0, "10.0.0.1:8081".parse().unwrap())));
/// ```
#[async_trait]
pub trait Source: Send + Debug {
    /// Reports workers to `follower`. May return when there is nothing more to report; its workers stay.
    ///
    /// **Cancellation**: dropped when the follower does not need it any more. A source may then report
    /// that its workers have left, but need not.
    async fn run(self: Box<Self>, follower: Arc<dyn Follower>);
}

/// Gets the reports of [`Source`]s.
///
/// Each source has its own follower, so a follower knows which source reports.
///
/// **Concurrency**: sources report at the same time and from any thread; the reports of one source about
/// one worker come in order. `apply` must not block: the source waits for it.
pub trait Follower: Send + Sync + Debug {
    /// Something happened to a worker.
    fn apply(&self, event: ClusterEvent);
}
