//! The kinds of events in an experiment.

use std::time::Duration;

use openlambda_core::balancing::Ticket;
use openlambda_core::scheduler::{InstanceId, InvocationId};

use super::calls::CallId;

/// Something that happens. What is said between balancers and workers names the worker's life: what comes from
/// or for an earlier one is not heard.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    /// The next call of an open system.
    Arrival,
    /// A user makes a call.
    Call {
        function: u32,
        service: Duration,
    },

    // At a worker.
    CallAt {
        call: CallId,
        worker: Life,
    },
    ReserveAt {
        balancer: u32,
        ticket: Ticket,
        function: u32,
        worker: Life,
    },
    CancelAt {
        balancer: u32,
        ticket: Ticket,
        worker: Life,
    },
    ProbeAt {
        balancer: u32,
        worker: Life,
    },
    Fetched {
        worker: Life,
        bundle: u32,
    },
    Removed {
        worker: Life,
        bundle: u32,
    },
    Started {
        worker: Life,
        instance: InstanceId,
    },
    Destroyed {
        worker: Life,
        instance: InstanceId,
    },
    Paused {
        worker: Life,
        instance: InstanceId,
    },
    LimitSet {
        worker: Life,
        instance: InstanceId,
        bytes: u64,
    },
    Resumed {
        worker: Life,
        instance: InstanceId,
    },
    Finished {
        worker: Life,
        invocation: InvocationId,
    },
    Crashed {
        worker: Life,
        invocation: InvocationId,
    },
    ProcessorsTurn {
        worker: Life,
    },
    WorkerTimer {
        worker: Life,
    },
    Load {
        worker: Life,
    },
    Heartbeat {
        worker: Life,
    },
    Dies {
        worker: Life,
    },
    Revives {
        worker: u32,
    },

    // At a balancer.
    Answered {
        call: CallId,
        idle: bool,
    },
    Selects {
        call: CallId,
    },
    /// All probes of a call are on their way back.
    Probes {
        call: CallId,
    },
    Probed {
        balancer: u32,
        worker: Life,
        load: u32,
    },
    Snapshot {
        balancer: u32,
        worker: Life,
        snapshot: u32,
    },
    Offered {
        balancer: u32,
        worker: Life,
        ticket: Ticket,
    },
    Idle {
        balancer: u32,
        worker: Life,
        function: u32,
    },
    Evicted {
        balancer: u32,
        worker: Life,
        function: u32,
    },
    BalancerTimer {
        balancer: u32,
    },
    Joins {
        balancer: u32,
        worker: Life,
    },
    Leaves {
        balancer: u32,
        worker: u32,
    },

    Release,
}

/// A worker, and which of its lives: one that dies comes back as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) worker: u32,
    pub(super) life: u32,
}
