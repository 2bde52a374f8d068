//! The inputs and outputs of a worker's core: [`Input`]s go in, [`Output`]s come out.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::failure::{Failure, FailureKind};
use crate::function::{Digest, FunctionName, Version};
use crate::invocation::{Phases, StartKind};
use crate::manifest::Manifest;
use crate::metrics::Outcome;
use crate::scheduler::{EvictReason, InstanceId, InvocationId, VersionId};
use crate::time::Time;
use crate::wire::{Reservation, ReservationKey};

/// A balancer's stream of events. The shell gives the numbers out; each is used once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StreamId(pub u64);

/// What is known of a call when it arrives. Its request, and where its answer goes, are the shell's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call<'a> {
    /// The function.
    pub function: FunctionName,
    /// The version's number, where its sender knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// The bundle to run.
    pub digest: Digest,
    /// Which balancer sent it, by the name under which it subscribes.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub balancer: Option<&'a str>,
    /// The place that was kept for it, if its balancer asked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation: Option<ReservationKey>,
}

/// What happened.
///
/// As JSON, each is an object of one field with the variant's name in snake case: what a recorded
/// run consists of, see [`recording`](super::recording).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Input<'a> {
    /// A call arrived; [`WorkerCore::call`](super::WorkerCore::call) tells its number.
    Called(#[serde(borrow)] Call<'a>),
    /// The client does not want the call's answer any more. A running call goes on: its slot is busy until
    /// the handler has answered.
    Cancelled {
        /// Which.
        invocation: InvocationId,
    },
    /// A balancer asks for a place for a call that may come. Passed over when it has no stream: it
    /// would not hear of an offer.
    Reserved(Reservation),
    /// The place is not needed. Nothing happens when it is not there any more.
    ReservationCancelled {
        /// Whose.
        key: ReservationKey,
    },
    /// A stream of events begins.
    Subscribed {
        /// Its new number.
        stream: StreamId,
        /// The balancer's name, if it has one.
        balancer: Option<String>,
    },
    /// A stream has ended. When it was the last of its balancer, the balancer's reservations end.
    Unsubscribed {
        /// Which.
        stream: StreamId,
    },
    /// [`Output::Fetch`] is done.
    Fetched {
        /// The bundle.
        digest: Digest,
        /// What its files take, bytes.
        bytes: u64,
        /// What is in it.
        manifest: Arc<Manifest>,
    },
    /// A bundle that was just fetched can be compiled ahead of its imports. Told only where sandboxes can
    /// do that.
    Compilable {
        /// The bundle.
        digest: Digest,
        /// What the files take that would be compiled, bytes.
        sources: u64,
    },
    /// [`Output::Compile`] is done, as far as it could be.
    Compiled {
        /// The bundle.
        digest: Digest,
        /// What the result takes, bytes.
        bytes: u64,
    },
    /// [`Output::Fetch`] failed.
    FetchFailed {
        /// The bundle.
        digest: Digest,
        /// Why.
        failure: Failure,
    },
    /// [`Output::Remove`] is done.
    Removed {
        /// The bundle.
        digest: Digest,
    },
    /// [`Output::Create`] is done: the instance waits for its first call.
    Started {
        /// Which.
        instance: InstanceId,
        /// How it was made.
        start: StartKind,
        /// Making the sandbox took so long.
        create: Duration,
        /// Its runtime took so long until it asked for the first event.
        init: Duration,
    },
    /// [`Output::Create`] failed, and nothing is left of it.
    StartFailed {
        /// Which.
        instance: InstanceId,
        /// Why.
        failure: Failure,
    },
    /// The instance ended by itself, or cannot be paused or resumed. What runs in it is
    /// [`Input::Finished`] too.
    Exited {
        /// Which.
        instance: InstanceId,
    },
    /// [`Output::Pause`] is done.
    Paused {
        /// Which.
        instance: InstanceId,
        /// Bytes of memory that it uses now; `None` when that is not known, or its limit cannot be lowered.
        used: Option<u64>,
    },
    /// [`Output::SetLimit`] is done.
    LimitSet {
        /// Which.
        instance: InstanceId,
        /// What it is now; `None`: as before, it could not be changed.
        bytes: Option<u64>,
    },
    /// [`Output::Resume`] is done.
    Resumed {
        /// Which.
        instance: InstanceId,
    },
    /// The handler is through with a call that [`Output::Run`] began.
    Finished {
        /// Which.
        invocation: InvocationId,
        /// From the handing over of the event to the end of the reply.
        run: Duration,
        /// Whether the instance can take another call.
        reusable: bool,
        /// What went wrong, if something did.
        failure: Option<FailureKind>,
        /// A reply is about to be sent to the call's balancer, so that [`Output::IdleWithReply`] can
        /// go with it.
        replies: bool,
    },
    /// The reply that was to carry an idle notice did not arrive: the client has left.
    ReplyLost {
        /// Of which version the idle instance is.
        version: VersionId,
    },
    /// [`Output::Destroy`] or [`Output::Cancel`] is done: nothing is left of the instance.
    Destroyed {
        /// Which.
        instance: InstanceId,
    },
    /// These functions are deleted in the registry: their instances end as soon as they are idle, and
    /// their code goes with the last one. A call that has arrived is served.
    Deleted {
        /// Which.
        functions: Vec<FunctionName>,
    },
    /// Calls are expected: have this many instances of the newest version ready.
    Prewarm {
        /// Of which function. One that was never called here is not known.
        function: FunctionName,
        /// How many instances there shall be in all.
        instances: u32,
    },
    /// The machine is short of memory: end idle instances worth this many bytes.
    MemoryPressure {
        /// How many.
        bytes: u64,
    },
    /// How busy the machine's processors are, where the limit of running calls
    /// [follows the load](crate::scheduler::RunningLimit::Load).
    Load {
        /// Threads that run or want to, for each processor.
        per_processor: f64,
    },
    /// Take no more calls, finish those that arrived, end all instances, then [`Output::Drained`]; but
    /// that not later than `until`.
    Drain {
        /// The end of the grace.
        until: Time,
    },
    /// The time that [`WorkerCore::poll_timeout`](super::WorkerCore::poll_timeout) named has come.
    Timeout,
}

/// What the shell must do.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Output {
    /// Get the bundle and unpack it; then [`Input::Fetched`] or [`Input::FetchFailed`].
    Fetch {
        /// Which.
        digest: Digest,
    },
    /// Remove the unpacked bundle; then [`Input::Removed`].
    Remove {
        /// Which.
        digest: Digest,
    },
    /// Compile the bundle ahead of its imports; then [`Input::Compiled`], whatever comes of it. No call waits
    /// for that.
    Compile {
        /// Which.
        digest: Digest,
        /// A version that has it.
        version: VersionId,
    },
    /// Make an instance; then [`Input::Started`] or [`Input::StartFailed`].
    Create {
        /// Its new id.
        instance: InstanceId,
        /// Of which version.
        version: VersionId,
    },
    /// Stop making the instance. The shell tells [`Input::Destroyed`] once nothing is left, unless it
    /// told [`Input::Started`] or [`Input::StartFailed`] before: then it does nothing, and
    /// [`Output::Destroy`] follows for one that has started.
    Cancel {
        /// Which.
        instance: InstanceId,
    },
    /// Deliver the call to the instance; then [`Input::Finished`] whatever comes.
    Run {
        /// Which.
        invocation: InvocationId,
        /// Where.
        instance: InstanceId,
        /// Of which version.
        version: VersionId,
        /// How warm the instance is for it.
        start: StartKind,
        /// Where its time went so far; `run` is yet to come.
        phases: Phases,
    },
    /// Pause the instance, ask what memory it uses; then [`Input::Paused`].
    Pause {
        /// Which.
        instance: InstanceId,
    },
    /// Set the memory limit of the instance, which is paused; then [`Input::LimitSet`].
    SetLimit {
        /// Which.
        instance: InstanceId,
        /// The new limit, bytes.
        bytes: u64,
    },
    /// Resume the instance; then [`Input::Resumed`].
    Resume {
        /// Which.
        instance: InstanceId,
        /// Set its memory limit to this many bytes first.
        raise: Option<u64>,
    },
    /// Destroy the instance; then [`Input::Destroyed`].
    Destroy {
        /// Which.
        instance: InstanceId,
        /// Why.
        why: EvictReason,
    },
    /// The call fails: answer it. One that runs (it is over its time limit) is [`Input::Finished`] all
    /// the same.
    Answer {
        /// Which.
        invocation: InvocationId,
        /// Why.
        failure: Box<Failure>,
    },
    /// The reply that is about to be sent tells its balancer of the idle instance. When it reaches
    /// nobody, tell [`Input::ReplyLost`].
    IdleWithReply {
        /// To which call.
        invocation: InvocationId,
        /// Of which version the instance is.
        version: VersionId,
    },
    /// Tell one stream.
    Tell {
        /// Which.
        stream: StreamId,
        /// What.
        notice: Notice,
    },
    /// Tell all streams.
    TellAll {
        /// What.
        notice: Notice,
    },
    /// A call is over.
    Record(CallRecord),
    /// The drain is over.
    Drained {
        /// There is no call and no instance any more; else the grace is over, and the shell ends what
        /// still runs.
        in_time: bool,
    },
}

/// What balancers are told between snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// An instance of the version is idle. A lease: one balancer is told.
    Idle {
        /// Which version.
        version: VersionId,
    },
    /// An idle instance of the version is gone.
    Evicted {
        /// Which version.
        version: VersionId,
    },
    /// A slot is held for a reservation of the balancer whose stream this is.
    Offered {
        /// The balancer's number for the call.
        ticket: u64,
    },
    /// No more calls are taken.
    Draining,
}

/// A call that is over, in numbers: [`WorkerCore::named`](super::WorkerCore::named) puts the names in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CallRecord {
    /// Which. Its number may be given to the next call.
    pub invocation: InvocationId,
    /// What it called.
    pub version: VersionId,
    /// When it arrived, or its place was reserved.
    pub arrived: Time,
    /// How warm it ran, if it did.
    pub start: Option<StartKind>,
    /// Where its time went.
    pub phases: Phases,
    /// How it came out.
    pub outcome: Outcome,
}

/// Where a call stands after its arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its number, until its [`Output::Record`]. May be over already.
    pub invocation: InvocationId,
    /// What it calls.
    pub version: VersionId,
}
