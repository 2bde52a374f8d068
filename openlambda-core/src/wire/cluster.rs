//! What balancers and workers tell each other, as JSON.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::balancing::WorkerLoad;
use crate::failure::{Failure, FailureKind};
use crate::function::{Digest, FunctionName, Version};

/// A worker tells a balancer where it is, when it starts and from time to time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announcement {
    /// Its stable name.
    pub name: String,
    /// Differs at every start of the worker, so that a restart is told from a repetition.
    pub incarnation: u64,
    /// Its address, `http://host:port`.
    pub url: String,
    /// Its share of the load.
    pub weight: f64,
    /// How many invocations it can run at once.
    pub capacity: u32,
}

/// Which reservation: its balancer's name, and the ticket by which that balancer knows the call. As
/// text `<balancer>/<ticket>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReservationKey {
    /// The balancer's name, as it subscribed to events.
    pub balancer: String,
    /// Its number for the call.
    pub ticket: u64,
}

impl fmt::Display for ReservationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.balancer, self.ticket)
    }
}

impl FromStr for ReservationKey {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let parts = text.split_once('/').filter(|(balancer, _)| is_balancer_name(balancer));
        let key = parts.and_then(|(balancer, ticket)| {
            Some(ReservationKey { balancer: balancer.to_owned(), ticket: ticket.parse().ok()? })
        });
        key.ok_or_else(|| {
            let message = "this is not a reservation; write <balancer>/<ticket>";
            Failure::new(FailureKind::BadRequest, message)
        })
    }
}

/// A balancer asks a worker to keep a place for a call that it may send later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reservation {
    /// The balancer's name, as it subscribed to events.
    pub balancer: String,
    /// Its number for the call.
    pub ticket: u64,
    /// What the call will ask for.
    pub function: FunctionName,
    /// The version's number.
    pub version: Version,
    /// The version's bundle.
    pub digest: Digest,
    /// For how long from now the place is kept, milliseconds.
    pub deadline_ms: u64,
}

/// Whether a text is a valid name of a balancer, towards workers.
pub fn is_balancer_name(name: &str) -> bool {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(valid)
}

/// What a worker tells each of its balancers, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum WorkerEvent {
    /// The state as a whole: first on every stream, and from time to time as a repair and a sign of
    /// life.
    Snapshot {
        /// The worker's name.
        name: String,
        /// See [`Announcement::incarnation`].
        incarnation: u64,
        /// The load.
        load: WorkerLoad,
        /// Functions with idle instances, and how many.
        idle: Vec<(FunctionName, u32)>,
        /// It takes no new invocations.
        draining: bool,
    },
    /// An instance became idle. Only one balancer is told.
    Idle {
        /// The function.
        function: FunctionName,
    },
    /// An instance is gone.
    Evicted {
        /// The function.
        function: FunctionName,
    },
    /// A slot is held for a reservation of the balancer whose stream this is; no other balancer is told.
    Offered {
        /// The balancer's number for the call.
        ticket: u64,
    },
    /// It takes no new invocations from now on.
    Draining,
}

/// What a balancer reports about itself and its workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BalancerStatus {
    /// The policy's name.
    pub policy: String,
    /// Its workers, by name.
    pub workers: Vec<WorkerStatus>,
}

/// What a balancer knows of a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its stable name.
    pub name: String,
    /// Its address.
    pub url: String,
    /// `ready`, `unhealthy` or `draining`.
    pub state: String,
    /// Requests of this balancer in flight there.
    pub in_flight: u32,
    /// Its last report.
    pub load: WorkerLoad,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_are_named_and_read_back() {
        let key = ReservationKey { balancer: "b-1.x".to_owned(), ticket: u64::MAX };
        assert_eq!(key.to_string().parse::<ReservationKey>().unwrap(), key);
        for bad in ["", "/", "b", "b/", "/1", "b/x", "b/1/2", "b/-1", "b b/1"] {
            assert!(bad.parse::<ReservationKey>().is_err(), "{bad:?}");
        }
    }
}
