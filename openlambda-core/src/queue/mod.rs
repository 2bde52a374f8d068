//! The order in which waiting invocations of one function get a slot.
//!
//! [`QueuePolicy`] is a pure decider: the scheduler keeps one per version of a function. It is
//! selected by name: [`by_name`].

mod fifo;

use std::fmt;

pub use fifo::Fifo;

use crate::scheduler::InvocationId;
use crate::time::Time;

/// Orders the invocations that wait for one version of a function.
///
/// It holds each invocation that was pushed until it is popped or removed. No method is on the path
/// of a warm start that finds a free slot.
pub trait QueuePolicy: Send + fmt::Debug {
    /// An invocation starts to wait. Its id is not in the queue.
    fn push(&mut self, waiting: Waiting);

    /// The invocation that gets the slot that is free now, if any waits.
    fn pop(&mut self, now: Time) -> Option<Waiting>;

    /// An invocation stops to wait: it was cancelled, or its deadline has passed. Returns whether
    /// it was waiting.
    fn remove(&mut self, invocation: InvocationId) -> bool;

    /// When the invocation that waits for longest arrived.
    fn oldest(&self) -> Option<Time>;

    /// How many wait.
    fn len(&self) -> usize;

    /// Whether none waits.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An invocation that waits, or the reservation of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Which one.
    pub invocation: InvocationId,
    /// When it arrived.
    pub arrived: Time,
    /// Until when it may wait. What takes over the place of its reservation may have another
    /// deadline; the scheduler keeps it, and the queue is not told.
    pub deadline: Time,
}

/// Makes the queue of a version.
pub type MakeQueue = Box<dyn Fn() -> Box<dyn QueuePolicy> + Send + Sync>;

/// The names that [`by_name`] knows.
pub const NAMES: [&str; 1] = ["fifo"];

/// The maker of queues with this policy; `None` for a name that is not in [`NAMES`].
pub fn by_name(name: &str) -> Option<MakeQueue> {
    match name {
        "fifo" => Some(Box::new(|| Box::new(Fifo::default()))),
        _ => None,
    }
}
