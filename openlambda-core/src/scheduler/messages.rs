//! The inputs and outputs of a scheduler: [`Event`]s go in, [`Action`]s come out.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::PauseAfter;
use crate::invocation::StartKind;
use crate::time::Time;

/// One invocation on this worker, or the reservation of one. The shell gives the numbers out.
///
/// The low half is a slot of the scheduler's table, so use dense slots: 0, 1, 2, … and those that are free
/// again. Give a slot to another invocation only when its last owner is over: the invocation by
/// [`Action::Reject`] or [`Event::Finished`], its reservation by [`Action::ReservationOver`]. The high
/// half is the slot's generation, a new one each time; the scheduler does not know a number whose
/// generation is not that of the slot's owner. Plain numbers 0, 1, 2, … are valid too, but take memory
/// for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InvocationId(pub u64);

/// A namespace of functions: between namespaces a worker is fair. Small numbers, which may be used again
/// when no version of a namespace is known any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceId(pub u32);

/// One version of a function on this worker, that is, a name and a digest. Dense: the shell interns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VersionId(pub u32);

/// One instance on this worker. The scheduler gives the numbers out; each is used once.
///
/// The low half is a slot, dense and used again when nothing is left of the instance that had it; the
/// high half is the slot's generation. So the low half can serve as an index, if the rest is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(pub u64);

/// What a version's manifest allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What one instance takes from the pool, bytes.
    pub memory: u64,
    /// Invocations that one instance takes at once.
    pub slots: u32,
    /// The most instances.
    pub max_instances: u32,
    /// The most invocations that wait.
    pub queue: u32,
    /// The time limit of a run.
    pub timeout: Duration,
    /// `false`: an instance is evicted after one invocation.
    pub reuse: bool,
    /// When an instance is paused that nobody uses; `None`: as the configuration says.
    pub pause_after: Option<PauseAfter>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// An invocation arrived. It may wait for a slot until `deadline`. If there is a reservation of
    /// its id, it takes that one's place.
    Arrived {
        /// Its id: a new one, or that of its reservation.
        invocation: InvocationId,
        /// What it calls.
        version: VersionId,
        /// Until when it may wait.
        deadline: Time,
    },
    /// The client does not want the invocation's result any more. A running invocation goes on: its slot is
    /// busy until the handler has answered.
    Cancelled {
        /// Which.
        invocation: InvocationId,
    },
    /// Reserve a place for an invocation that may arrive later, in turn with those that have arrived. The
    /// reservation ends at `deadline`.
    Reserved {
        /// The new id of that invocation.
        invocation: InvocationId,
        /// What it will call.
        version: VersionId,
        /// Until when the place is kept.
        deadline: Time,
    },
    /// The place is not needed. Nothing happens when the invocation has arrived.
    ReservationCancelled {
        /// Of which invocation.
        invocation: InvocationId,
    },
    /// The version's code is there.
    CodeReady {
        /// Which.
        version: VersionId,
        /// What its manifest says.
        limits: Limits,
    },
    /// The version's code could not be fetched; every call that waits for it is rejected.
    CodeFailed {
        /// Which.
        version: VersionId,
    },
    /// The version's code was removed from the cache.
    CodeGone {
        /// Which.
        version: VersionId,
    },
    /// [`Action::Start`] succeeded.
    SandboxReady {
        /// Which.
        instance: InstanceId,
        /// How it was made.
        start: StartKind,
    },
    /// [`Action::Start`] failed, and nothing is left of it.
    SandboxFailed {
        /// Which.
        instance: InstanceId,
    },
    /// The handler is through with an invocation that [`Action::Run`] started.
    Finished {
        /// Which.
        invocation: InvocationId,
        /// Whether the instance can take another one.
        reusable: bool,
    },
    /// [`Action::Pause`] is done.
    Paused {
        /// Which.
        instance: InstanceId,
        /// What it could give back while it is paused, bytes; 0 when that is nothing, or not known.
        spare: u64,
    },
    /// [`Action::Lower`] is done. What the instance does not hold any more comes back to the pool; with
    /// [`Action::Resume`] it is taken again, and the limit is to be as before. Nothing happens when the
    /// instance is on its way back already.
    Lowered {
        /// Which.
        instance: InstanceId,
        /// What it holds now, bytes; as much as before, when its limit could not be lowered.
        bytes: u64,
    },
    /// [`Action::Resume`] is done.
    Resumed {
        /// Which.
        instance: InstanceId,
    },
    /// The instance ended by itself, or cannot be paused or resumed. What runs in it is reported
    /// [`Event::Finished`] too.
    Died {
        /// Which.
        instance: InstanceId,
    },
    /// [`Action::Evict`] or [`Action::CancelStart`] is done: nothing is left of the instance.
    Destroyed {
        /// Which.
        instance: InstanceId,
    },
    /// A newer version has replaced this one: its instances are evicted when nothing waits for them.
    Superseded {
        /// The old one.
        version: VersionId,
    },
    /// Calls are expected: have this many instances ready.
    Prewarm {
        /// Of which version.
        version: VersionId,
        /// How many instances in all.
        instances: u32,
    },
    /// The machine is short of memory: evict idle instances worth this many bytes.
    MemoryPressure {
        /// How many.
        bytes: u64,
    },
    /// How busy the machine's processors are: for a limit of running calls that
    /// [follows the load](super::RunningLimit::Load).
    Load {
        /// Threads that run or want to, for each processor.
        per_processor: f64,
    },
    /// Take no more invocations, finish those that arrived, end all instances, then
    /// [`Action::Drained`].
    Drain,
    /// The time that [`Scheduler::poll_timeout`](super::Scheduler::poll_timeout) named has come.
    Timeout,
}

/// What the shell must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Get the version's code, then tell [`Event::CodeReady`] or [`Event::CodeFailed`].
    Fetch {
        /// Which.
        version: VersionId,
    },
    /// Make an instance, then tell [`Event::SandboxReady`] or [`Event::SandboxFailed`].
    Start {
        /// Its new id.
        instance: InstanceId,
        /// Of which version.
        version: VersionId,
    },
    /// Stop making the instance. The shell tells [`Event::Destroyed`] once nothing is left, unless
    /// it told [`Event::SandboxReady`] or [`Event::SandboxFailed`] before: then it does nothing,
    /// and [`Action::Evict`] follows for a ready one.
    CancelStart {
        /// Which.
        instance: InstanceId,
    },
    /// Deliver the invocation to the instance, then tell [`Event::Finished`] with any result.
    Run {
        /// Which.
        invocation: InvocationId,
        /// Where.
        instance: InstanceId,
        /// Whether the start is cold or warm for it.
        start: StartKind,
    },
    /// The invocation is over its time limit: answer it. [`Action::Evict`] of its instance follows.
    Expire {
        /// Which.
        invocation: InvocationId,
    },
    /// Pause the instance, then tell [`Event::Paused`].
    Pause {
        /// Which.
        instance: InstanceId,
    },
    /// Memory is short: lower the memory limit of the instance, which is paused, by what it can spare, then
    /// tell [`Event::Lowered`].
    Lower {
        /// Which.
        instance: InstanceId,
    },
    /// Resume the instance, with the memory limit that it had at its start, then tell
    /// [`Event::Resumed`].
    Resume {
        /// Which.
        instance: InstanceId,
    },
    /// Destroy the instance, then tell [`Event::Destroyed`].
    Evict {
        /// Which.
        instance: InstanceId,
        /// Why.
        why: EvictReason,
    },
    /// The invocation will not run: answer it.
    Reject {
        /// Which.
        invocation: InvocationId,
        /// Why.
        why: Rejection,
    },
    /// A reservation has come to a free slot, which is held for it: tell its balancer.
    Offer {
        /// Of which invocation.
        invocation: InvocationId,
        /// Whose slot is held.
        instance: InstanceId,
    },
    /// A reservation is over; this comes exactly once for each.
    ReservationOver {
        /// Of which invocation.
        invocation: InvocationId,
        /// Why.
        why: ReservationEnd,
    },
    /// Tell one balancer that an instance of the version is idle.
    TellIdle {
        /// Of which version.
        version: VersionId,
    },
    /// Tell the balancers that an idle instance of the version is gone.
    TellEvicted {
        /// Of which version.
        version: VersionId,
    },
    /// The drain is over: there is no invocation and no instance any more.
    Drained,
}

/// Why an instance is evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EvictReason {
    /// The keep-alive policy's time was up.
    Expired,
    /// Its memory was needed.
    Memory,
    /// It died, or its handler said that it is broken.
    Broken,
    /// An invocation in it ran over its time limit.
    TimedOut,
    /// The function wants a fresh sandbox for every invocation.
    NoReuse,
    /// A newer version has taken its place.
    Superseded,
    /// The worker is draining.
    Draining,
    /// Its start was cancelled too late.
    Unwanted,
}

/// Why an invocation does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rejection {
    /// The queue is full.
    QueueFull,
    /// It waited until its deadline.
    WaitedTooLong,
    /// It was cancelled while it waited.
    Cancelled,
    /// The worker takes no more invocations.
    Draining,
    /// The version's code could not be fetched.
    CodeFailed,
    /// An instance could not be started for it.
    StartFailed(InstanceId),
    /// An instance takes more memory than the whole pool has.
    TooLarge {
        /// Bytes that an instance takes.
        needs: u64,
        /// Bytes that the pool has.
        pool: u64,
    },
}

/// Why a reservation is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReservationEnd {
    /// Its invocation has arrived and has its place or its slot.
    Taken,
    /// It was cancelled.
    Cancelled,
    /// A slot was held for it until the time-out.
    NotTaken,
    /// The instance that held a slot for it has ended.
    SlotLost,
    /// It was rejected, for a reason for which an invocation would have been.
    Refused(Rejection),
}

/// Counts of invocations, reservations and instances, for reports and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Invocations that wait.
    pub waiting: u32,
    /// Invocations that run.
    pub running: u32,
    /// Reservations that wait for a slot.
    pub reserved: u32,
    /// Reservations that a slot is held for.
    pub offered: u32,
    /// Instances that are starting.
    pub starting: u32,
    /// Instances with a running invocation or a held slot.
    pub busy: u32,
    /// Idle instances, paused ones among them.
    pub idle: u32,
    /// Instances that are paused, on their way there or back.
    pub paused: u32,
    /// Instances on their way out.
    pub ending: u32,
}
