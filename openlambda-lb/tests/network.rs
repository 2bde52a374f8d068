//! Pure balancers and pure workers over a network that delays, reorders, loses and repeats, while
//! processes die and come again: the whole of a cluster from one seed, in one thread, without a clock.
//!
//! The simulator of `openlambda-lab` measures; this harness is unkind. What it holds, over many seeds and
//! the policies of the catalogue, however they decide:
//!
//! 1. each call gets exactly one answer, and runs once at most: what may have started is never tried again;
//! 2. no worker sells more memory than it has, and its books balance;
//! 3. each reservation ends, and no slot stays held;
//! 4. a balancer's counts (tickets, held requests, calls in flight at each worker) are right at every
//!    moment, and what it sees of a worker is what the worker has, once it is quiet and one snapshot came
//!    through;
//! 5. in the end nothing is left but idle instances, and every worker drains in time;
//! 6. the same seed gives the same history.
//!
//! It stands here and not in core's suites since it holds the balancer and the worker to their promises,
//! and needs real policies for that; a policy is held to its own by `conformance::balancing`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "network/balancers.rs"]
mod balancers;
#[path = "network/workers.rs"]
mod workers;
#[path = "network/world.rs"]
mod world;

use std::collections::BTreeMap;

use openlambda_core::balancing::BalancingPolicy;
use openlambda_core::conformance::times;
use openlambda_lb::policies::PolicyCatalog;

use self::world::World;

/// Policies that hold, reserve, probe and listen to idle instances, and some that do none of it.
const POLICIES: [&str; 9] = [
    "round-robin",
    "late-binding,d=2",
    "hiku",
    "join-idle-queue",
    "late-binding,d=3",
    "central-queue",
    "prequal",
    "least-outstanding",
    "power-of-two",
];

/// `OPENLAMBDA_TEST_TIMES` so many.
const SEEDS: u64 = 180;

fn policy(text: &str) -> Box<dyn BalancingPolicy> {
    PolicyCatalog::standard().build(&text.parse().unwrap()).unwrap()
}

/// Says which history it was when a test fails.
struct Tells(u64, &'static str);

impl Drop for Tells {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {} with {} fails", self.0, self.1);
        }
    }
}

fn history(seed: u64) -> (u64, BTreeMap<&'static str, u64>) {
    let name = POLICIES[seed as usize % POLICIES.len()];
    let _tells = Tells(seed, name);
    let mut world = World::new(seed, policy, name);
    let history = world.run();
    (history, world.seen)
}

#[test]
fn no_call_is_lost_or_run_twice_whatever_the_network_and_the_processes_do() {
    // One history alone, for whoever looks for a reason; with NETWORK_TRACE it tells each of its events.
    if let Ok(seed) = std::env::var("NETWORK_SEED") {
        history(seed.parse().unwrap());
        return;
    }
    let mut seen = BTreeMap::<_, u64>::new();
    for seed in 0..SEEDS * times() {
        for (what, count) in history(seed).1 {
            *seen.entry(what).or_default() += count;
        }
    }
    // A harness in which this does not happen proves nothing.
    for what in [
        "a worker is killed",
        "a worker is cut off",
        "a worker drains",
        "a drain is over in time",
        "a drain is not",
        "a worker has left",
        "a worker is replaced",
        "a balancer is killed",
        "a client leaves",
        "a reply is lost",
        "a call is tried again",
        "a call is held",
        "a place is reserved",
        "a slot is offered",
        "a call takes the slot that is held for it",
        "an idle notice goes with a reply",
        "an idle notice goes with a reply that is lost",
        "a limit is lowered",
    ] {
        assert!(seen.get(what).is_some_and(|count| *count >= 20), "{what}: {seen:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in 0..POLICIES.len() as u64 {
        assert_eq!(history(seed).0, history(seed).0, "seed {seed}");
        assert_ne!(history(seed).0, history(seed + POLICIES.len() as u64).0);
    }
}
