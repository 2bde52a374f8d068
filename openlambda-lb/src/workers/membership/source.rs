//! The two sides of membership: [`Source`] knows workers, [`Follower`] is told of them.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use openlambda_core::balancing::ClusterEvent;

/// Knows of workers, and tells a [`Follower`].
///
/// What a source owes to whom it tells stands with [`ClusterEvent`]. A source that only knows addresses
/// leaves it at [`Joined`](openlambda_core::balancing::Change::Joined) and
/// [`Left`](openlambda_core::balancing::Change::Left): its workers are taken for healthy then, and calls
/// find out. Two sources may name the same worker: it is there until both have told that it has left. Where
/// they tell of different starts of it, the one that tells last is right.
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
    /// Tells `follower` of the workers. May return when nothing more will come; what was told stands.
    ///
    /// **Cancellation**: dropped when the follower has no use for it any more. A source may tell that
    /// its workers have left then, and needs not.
    async fn run(self: Box<Self>, follower: Arc<dyn Follower>);
}

/// Is told of workers by [`Source`]s.
///
/// Each source has a follower of its own, which knows by that who tells.
///
/// **Concurrency**: sources tell at once and from any thread; what one source tells of one worker comes
/// in order. `apply` must not block: the source waits for it.
pub trait Follower: Send + Sync + Debug {
    /// Something happened to a worker.
    fn apply(&self, event: ClusterEvent);
}
