//! Every policy of the catalogue, through the balancer: the conformance suite, and the mistakes that
//! other balancers made, one test each.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::collections::BTreeMap;

use openlambda_core::balancing::{BalancingPolicy, Decision, Ticket, WorkerId, WorkerInfo};
use openlambda_core::conformance::balancing::{check, check_history};
use openlambda_core::time::Time;
use openlambda_lb::balancer::Balancer;
use openlambda_lb::policies::PolicyCatalog;
use proptest::prelude::*;

/// Every policy, with parameters that make edges likely too.
const POLICIES: &[&str] = &[
    "round-robin",
    "random",
    "power-of-two",
    "power-of-two,d=1",
    "power-of-two,d=5",
    "least-outstanding",
    "bounded-load",
    "bounded-load,epsilon=0.01,vnodes=3",
    "bounded-load,epsilon=10,vnodes=1",
    "central-queue",
    "central-queue,wait=0.01,most=3",
    "ch-rlu",
    "ch-rlu,popular=0,chain=1",
    "ch-rlu,popular=1,bound=0.2,chain=3,vnodes=2",
    "consistent-hashing",
    "consistent-hashing,vnodes=1",
    "dodoor",
    "dodoor,b=1",
    "guardrails",
    "guardrails,inner=bounded-load,c=1.1,g=1",
    "guardrails,inner=prequal,size=0.001",
    "hermod",
    "hiku",
    "join-idle-queue",
    "join-idle-queue,below=4",
    "late-binding",
    "late-binding,d=8,patience=0.001,wait=0.01",
    "maglev",
    "maglev,size=101",
    "min-worker-set",
    "min-worker-set,utilisation=0.1,vnodes=3",
    "min-worker-set,window=0.001,vnodes=1",
    "openwhisk",
    "package-aware",
    "package-aware,threshold=0.25,vnodes=1",
    "package-aware,threshold=1000",
    "palette",
    "palette,assign=least-assigned",
    "palette,buckets=101",
    "peak-ewma",
    "peak-ewma,tau=0.001",
    "prequal",
    "prequal,pool=2,probes=0.5,remove=0,quantile=0",
    "prequal,pool=64,probes=16,remove=0.3,quantile=1,age=0.005",
    "rendezvous",
];

fn policy(text: &str) -> Box<dyn BalancingPolicy> {
    PolicyCatalog::standard().build(&text.parse().unwrap()).unwrap()
}

#[test]
fn every_policy_of_the_catalogue_is_tested() {
    for entry in PolicyCatalog::standard().entries() {
        assert!(POLICIES.contains(&&*entry.name), "{} is missing in POLICIES", entry.name);
    }
}

/// These fill tables of 65,537 entries whenever a worker comes or goes, which takes long without
/// optimisation. Their variants with small tables go through all histories.
const SLOW: [&str; 2] = ["maglev", "palette"];

#[test]
fn every_policy_conforms() {
    for &text in POLICIES {
        match SLOW.contains(&text) {
            false => check(|| policy(text)),
            true => (0..3).for_each(|seed| check_history(|| policy(text), seed)),
        }
    }
}

proptest! {
    // A case is a history of each policy.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 2))]

    #[test]
    fn every_policy_conforms_to_any_history(seed: u64) {
        for &text in POLICIES.iter().filter(|text| !SLOW.contains(text)) {
            check_history(|| policy(text), seed);
        }
    }
}

/// A balancer with workers `w0`, `w1`, …, and what it takes to send requests.
struct Cluster {
    balancer: Balancer,
    workers: Vec<WorkerId>,
}

impl Cluster {
    fn new(text: &str, workers: usize) -> Self {
        let mut cluster = Cluster { balancer: Balancer::new(policy(text), 7), workers: vec![] };
        for i in 0..workers {
            cluster.join(&format!("w{i}"));
        }
        cluster
    }

    fn join(&mut self, name: &str) -> WorkerId {
        let worker = self.balancer.join(Time(0), WorkerInfo::new(name, 4));
        self.workers.push(worker);
        worker
    }

    fn send(&mut self, function: &str) -> (Ticket, WorkerId) {
        let function = self.balancer.function(&function.parse().unwrap());
        let ticket = self.balancer.arrived(function);
        match self.balancer.select(Time(0), ticket) {
            Decision::To(worker, _) => (ticket, worker),
            other => panic!("{other:?}"),
        }
    }

    fn finish(&mut self, ticket: Ticket) {
        self.balancer.finish(Time(0), ticket);
    }

    /// Where a request of the function goes on an otherwise idle cluster, by name.
    fn home(&mut self, function: &str) -> String {
        let (ticket, worker) = self.send(function);
        self.finish(ticket);
        self.balancer.view().worker(worker).unwrap().name().to_owned()
    }

    fn counts(&mut self, requests: usize) -> Vec<usize> {
        let mut counts = vec![0; self.workers.len()];
        for _ in 0..requests {
            let (_, worker) = self.send("f");
            counts[self.workers.iter().position(|w| *w == worker).unwrap()] += 1;
        }
        counts
    }
}

/// An off-by-one at the last worker leaves it idle, or gives it twice its share.
#[test]
fn the_last_worker_gets_its_share() {
    for n in [1, 2, 3, 10] {
        assert_eq!(Cluster::new("round-robin", n).counts(10 * n), vec![10; n]);
        assert_eq!(Cluster::new("least-outstanding", n).counts(10 * n), vec![10; n]);
        for (i, count) in Cluster::new("random", n).counts(1000 * n).into_iter().enumerate() {
            assert!((850..1150).contains(&count), "worker {i} of {n} got {count} of 1000");
        }
        for (i, count) in Cluster::new("power-of-two", n).counts(100 * n).into_iter().enumerate() {
            assert!((90..110).contains(&count), "worker {i} of {n} got {count} of 100");
        }
    }
}

#[test]
fn round_robin_goes_on_where_it_was_when_workers_come_and_go() {
    let mut cluster = Cluster::new("round-robin", 4);
    let [a, b, c, d] = cluster.workers[..] else { unreachable!() };
    let next = |cluster: &mut Cluster| cluster.send("f").1;
    assert_eq!((next(&mut cluster), next(&mut cluster)), (a, b));
    cluster.balancer.leave(Time(0), a);
    assert_eq!(next(&mut cluster), c, "nobody is passed over when one before leaves");
    cluster.balancer.set_healthy(Time(0), b, false);
    assert_eq!((next(&mut cluster), next(&mut cluster)), (d, c));
    let e = cluster.join("e");
    assert_eq!(e.index(), a.index(), "it takes the free slot");
    assert_eq!((next(&mut cluster), next(&mut cluster)), (d, e));
    assert_eq!(next(&mut cluster), c);
}

/// A power-of-two that picks the larger count.
#[test]
fn power_of_two_picks_the_smaller() {
    let mut cluster = Cluster::new("power-of-two", 2);
    let (busy, first) = cluster.send("f");
    for _ in 0..100 {
        let (ticket, worker) = cluster.send("f");
        assert_ne!(worker, first, "with two workers, both are sampled");
        cluster.finish(ticket);
    }
    cluster.finish(busy);
}

#[test]
fn power_of_two_decides_ties_by_a_fair_coin() {
    let mut cluster = Cluster::new("power-of-two", 2);
    let mut first = 0;
    for _ in 0..2000 {
        let (ticket, worker) = cluster.send("f");
        first += usize::from(worker == cluster.workers[0]);
        cluster.finish(ticket);
    }
    assert!((900..1100).contains(&first), "{first} of 2000");
}

#[test]
fn power_of_two_respects_weights() {
    let mut cluster = Cluster::new("power-of-two", 1);
    let mut info = WorkerInfo::new("heavy", 4);
    info.weight = 3.0;
    let heavy = cluster.balancer.join(Time(0), info);
    cluster.workers.push(heavy);
    assert_eq!(cluster.counts(400), [100, 300]);
}

/// A "least loaded" worker that is chosen once per tick gets all of the tick's traffic.
#[test]
fn a_burst_within_one_moment_does_not_herd() {
    for text in ["least-outstanding", "power-of-two", "bounded-load"] {
        let mut cluster = Cluster::new(text, 50);
        let busiest = cluster.counts(50).into_iter().max().unwrap();
        let most = if text == "least-outstanding" { 1 } else { 5 };
        assert!(busiest <= most, "{text}: one worker got {busiest} of 50 requests at once");
    }
}

/// A least-loaded policy that breaks ties by position sends everything to the first worker as long
/// as the cluster is idle.
#[test]
fn an_idle_cluster_is_used_evenly() {
    let mut cluster = Cluster::new("least-outstanding", 10);
    let mut counts = BTreeMap::new();
    for _ in 0..2000 {
        let (ticket, worker) = cluster.send("f");
        *counts.entry(worker).or_insert(0) += 1;
        cluster.finish(ticket);
    }
    assert!(
        counts.len() == 10 && counts.values().all(|count| (130..270).contains(count)),
        "{counts:?}"
    );
}

/// A ring that hashes a random id places functions differently in each run and each balancer.
#[test]
fn placement_depends_on_names_only() {
    let mut cluster = Cluster::new("bounded-load", 10);
    let mut other =
        Cluster { balancer: Balancer::new(policy("bounded-load"), 99), workers: vec![] };
    other.join("zzz");
    for i in (0..10).rev() {
        other.join(&format!("w{i}"));
    }
    let zzz = other.workers[0];
    other.balancer.leave(Time(0), zzz);
    for i in 0..300 {
        let function = format!("f{i}");
        assert_eq!(cluster.home(&function), other.home(&function));
    }
    // Pinned: a change of the hash, the salt or the ring moves everybody's functions.
    let homes: Vec<_> = (0..6).map(|i| cluster.home(&format!("f{i}"))).collect();
    assert_eq!(homes, PINNED_HOMES);
}

const PINNED_HOMES: [&str; 6] = ["w5", "w8", "w6", "w3", "w4", "w0"];

/// Health that the hash ring ignores.
#[test]
fn the_ring_passes_over_workers_that_are_not_ready() {
    let mut cluster = Cluster::new("bounded-load", 5);
    let functions: Vec<_> = (0..100).map(|i| format!("f{i}")).collect();
    let before: Vec<_> = functions.iter().map(|f| cluster.home(f)).collect();
    let w2 = cluster.workers[2];
    for draining in [false, true] {
        let set = |cluster: &mut Cluster, on: bool| match draining {
            true => cluster.balancer.set_draining(Time(0), w2, on),
            false => cluster.balancer.set_healthy(Time(0), w2, !on),
        };
        set(&mut cluster, true);
        for (function, before) in functions.iter().zip(&before) {
            let now = cluster.home(function);
            assert_ne!(now, "w2");
            assert!(now == *before || before == "w2", "{function} moved between others");
        }
        set(&mut cluster, false);
        let after: Vec<_> = functions.iter().map(|f| cluster.home(f)).collect();
        assert_eq!(after, before, "functions come back with their worker");
    }
}

#[test]
fn bounded_load_keeps_a_function_at_home_until_that_is_full() {
    let mut cluster = Cluster::new("bounded-load,epsilon=0.25", 4);
    let home = cluster.home("f");
    let mut at = BTreeMap::new();
    for m in 0..100u32 {
        let (_, worker) = cluster.send("f");
        let load = at.entry(worker).or_insert(0u32);
        *load += 1;
        let cap = (1.25 * f64::from(m + 1) / 4.0).ceil();
        assert!(f64::from(*load) <= cap, "{load} of {} at one worker", m + 1);
    }
    let busiest = at.iter().max_by_key(|(_, load)| **load).unwrap();
    assert_eq!(cluster.balancer.view().worker(*busiest.0).unwrap().name(), home);
    assert_eq!(*busiest.1, 32, "home is filled up to the cap");
}
