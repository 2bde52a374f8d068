//! The one table from a rejection to the failure that the client gets.

use std::time::Duration;

use super::namespaces::Over;
use super::versions::VersionState;
use crate::allow::Allow;
use crate::failure::{Culprit, Failure, FailureKind};
use crate::function::FunctionName;
use crate::manifest::Manifest;
use crate::metrics::Outcome;
use crate::scheduler::Rejection;

/// Why the scheduler's rejection of a call is so, for its client. `start` is what an instance that did
/// not start said.
pub(super) fn of_rejection(
    why: Rejection,
    version: &VersionState,
    max_wait: Duration,
    start: Option<Failure>,
) -> Failure {
    match why {
        Rejection::QueueFull => Failure::new(
            FailureKind::QueueFull,
            format!(
                "{} calls of {} wait here already; try again later, or raise queue or \
                 max_instances in its manifest",
                version.manifest.queue, version.function
            ),
        ),
        Rejection::WaitedTooLong => Failure::new(
            FailureKind::QueueFull,
            format!(
                "no instance of {} became free or ready within {} s; try again later, and see its \
                 log (`ol logs {}`) if none ever does",
                version.function,
                max_wait.as_secs_f64(),
                version.function
            ),
        ),
        Rejection::Cancelled => Failure::new(FailureKind::Internal, "the client has left"),
        Rejection::Draining => {
            Failure::new(FailureKind::Draining, "the worker is shutting down; try another")
        }
        Rejection::CodeFailed => match &version.failure {
            Some(failure) => (**failure).clone(),
            None => Failure::new(FailureKind::Internal, "the function's code could not be fetched"),
        },
        Rejection::StartFailed(_) => start
            .unwrap_or_else(|| Failure::new(FailureKind::Internal, "the sandbox did not start")),
        Rejection::TooLarge { needs, pool } => Failure::new(
            FailureKind::StartFailed,
            format!(
                "an instance takes {} MiB and the worker has {} MiB for its namespace; lower \
                 memory_mb in the manifest or give the worker more",
                needs >> 20,
                pool >> 20
            ),
        ),
    }
}

/// That the calls of a function's namespace are over a quota of the operator's.
pub(super) fn of_quota(over: Over, version: &VersionState) -> Failure {
    let namespace = version.function.namespace();
    match over {
        Over::Rate { per_second, wait } => Failure::new(
            FailureKind::QueueFull,
            format!(
                "namespace {namespace} has had the {per_second} calls a second that the operator allows \
                 it here (calls_per_second in [allow]); try again later"
            ),
        )
        .retry_after(wait),
        Over::Waiting { most } => Failure::new(
            FailureKind::QueueFull,
            format!(
                "{most} calls of namespace {namespace} wait here already, which is what the operator \
                 allows (waiting_calls in [allow]); try again later"
            ),
        ),
    }
}

/// Why this function is not run here, if its manifest asks for more than the operator allows, or its files,
/// of so many bytes, are more.
pub(super) fn refused(
    allow: &Allow,
    function: &FunctionName,
    manifest: &Manifest,
    bytes: u64,
) -> Option<Failure> {
    let namespace = function.namespace();
    let too_large = allow.check_size(namespace, bytes).err().map(|over| over.to_string());
    let refused =
        too_large.or_else(|| Some(allow.check(namespace, manifest).err()?.to_string()))?;
    let message = format!("{function} may not run here: {refused}");
    Some(Failure::new(FailureKind::Forbidden, message).blame(Culprit::Function))
}

/// An instance that wanted more memory than this limit, MiB.
pub(super) fn out_of_memory(failure: Failure, limit: u64) -> Failure {
    let message = format!(
        "the instance ran out of memory in the middle of the invocation: its memory_mb is {limit}; raise \
         memory_mb in its manifest, or hold less at once"
    );
    Failure { message, ..failure }
}

/// How a call that was rejected counts.
pub(super) fn outcome_of(why: Rejection, failure: &Failure) -> Outcome {
    match why {
        Rejection::Cancelled => Outcome::Cancelled,
        _ => Outcome::Failed(failure.kind),
    }
}

/// What a client is told whose call is over its time limit.
pub(super) fn timed_out(version: &VersionState) -> Failure {
    let limit = version.manifest.timeout_seconds;
    let message = format!(
        "the function did not answer within its time limit of {limit} s; raise timeout_seconds in \
         its manifest if it needs longer"
    );
    Failure::new(FailureKind::Timeout, message)
}

/// A sandbox that the worker ends because it ends itself is not the function's fault.
pub(super) fn shut_down(failure: Failure) -> Failure {
    let message = "the worker was shut down before the function had answered";
    Failure::new(FailureKind::WorkerDied, message).started(failure.started)
}
