//! How long idle instances are kept, and which one goes first when memory is short.
//!
//! [`KeepAlivePolicy`] is a pure decider: the scheduler keeps one for the whole worker. It is chosen by
//! name and parameters, as `ttl,seconds=60`, from a [catalogue](standard) that others can join:
//!
//! | name | evicts by time | evicts when memory is short |
//! |---|---|---|
//! | `ttl` | after a fixed time without use | the least recently used |
//! | `lru` | never | the least recently used |
//! | `freq` | never | the least frequently called |
//! | `size` | never | the largest |
//! | `landlord` | never | who has run out of credit: slow to start and small is rich |
//! | `greedy-dual` | never | the lowest of clock + frequency × cost / size |
//! | `histogram` | when no call is likely soon; starts an instance before the next is due | the least recently used |

mod freq;
mod greedy_dual;
mod histogram;
mod landlord;
mod lru;
mod order;
mod size;
mod ttl;

use std::fmt;
use std::time::Duration;

pub use freq::Freq;
pub use greedy_dual::GreedyDual;
pub use histogram::{Histogram, HistogramConfig};
pub use landlord::Landlord;
pub use lru::Lru;
pub use size::Size;
pub use ttl::Ttl;

use crate::catalog::{CENTURY, Catalog, Choice, Entry, Maker};
use crate::scheduler::{InstanceId, VersionId};
use crate::time::Time;

/// Decides which idle instances live on.
///
/// The scheduler tells of each instance `started` once, then `idle` and `used` in turn, then
/// `ended` once, from whatever state. `invoked` comes for each invocation that begins to run in an
/// instance, after its `used` if it was idle. A victim is always one that is idle. Of an id, the low
/// half is used again when an instance is gone ([`InstanceId`]): the whole of it is the instance's name.
///
/// ```text
///   started ──▶ (in use) ──idle──▶ (idle) ──ended──▶ (gone)
///                  │ ▲               │
///            ended │ └─────used──────┘
///                  ▼
///               (gone)
/// ```
pub trait KeepAlivePolicy: Send + fmt::Debug {
    /// An instance is ready for its first use.
    fn started(&mut self, instance: InstanceId, facts: &InstanceFacts, now: Time) {
        let _ = (instance, facts, now);
    }

    /// An idle instance is taken into use.
    fn used(&mut self, instance: InstanceId, now: Time);

    /// An invocation that arrived at `arrived` begins to run in the instance. It may be the first
    /// of a use, one beside others, or the next without a rest between them.
    fn invoked(&mut self, instance: InstanceId, arrived: Time, now: Time) {
        let _ = (instance, arrived, now);
    }

    /// An instance became idle. Returns when to evict it if it is not used before, at once when
    /// that is not after `now`; `None` keeps it until memory is short.
    fn idle(&mut self, instance: InstanceId, now: Time) -> Option<Time>;

    /// An instance is gone, or going.
    fn ended(&mut self, instance: InstanceId, now: Time);

    /// The idle instance to evict next, when memory is short. `None` when none is idle. Does not
    /// change which is idle: `ended` follows when the scheduler has evicted it.
    fn victim(&mut self, now: Time) -> Option<InstanceId>;

    /// When it wants [`prewarm`](Self::prewarm) to be asked, although nothing else may happen until
    /// then: no instance needs to be there. `None`: never. May change with any other call.
    fn next_wakeup(&self) -> Option<Time> {
        None
    }

    /// Takes a version that shall have an instance now because a call of it is expected. The
    /// scheduler asks again until `None`, and after that [`next_wakeup`](Self::next_wakeup) is later
    /// than `now`. It may refuse the wish: while it drains, or when a newer version is there.
    fn prewarm(&mut self, now: Time) -> Option<VersionId> {
        let _ = now;
        None
    }
}

/// What a keep-alive policy may know of an instance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InstanceFacts {
    /// The version that it runs.
    pub version: VersionId,
    /// What it takes from the memory pool, bytes.
    pub memory: u64,
    /// What starting it anew would cost: its own start, measured.
    pub start_cost: Duration,
}

/// The keep-alive policies that can be chosen by name.
pub type KeepAliveCatalog = Catalog<dyn KeepAlivePolicy>;

/// A keep-alive policy that can be chosen by name.
pub type KeepAliveEntry = Entry<dyn KeepAlivePolicy>;

/// Makes keep-alive policies: what a worker's configuration holds.
pub type KeepAliveMaker = Maker<dyn KeepAlivePolicy>;

/// What a catalogue of these calls them.
pub const KIND: &str = "keep-alive policy";

/// The policy of a worker that is told of none.
pub const DEFAULT: &str = "ttl";

/// How long `ttl` keeps an idle instance unless told otherwise: as OpenWhisk does.
pub const DEFAULT_TTL: Duration = Duration::from_secs(600);

/// The policies of this module. One of your own joins by [`Catalog::register`].
pub fn standard() -> KeepAliveCatalog {
    Catalog::of(
        KIND,
        [
            ttl::entry(),
            lru::entry(),
            freq::entry(),
            size::entry(),
            landlord::entry(),
            greedy_dual::entry(),
            histogram::entry(),
        ],
    )
}

/// The policy [`DEFAULT`], without parameters.
pub fn default() -> KeepAliveMaker {
    KeepAliveMaker::new(DEFAULT, || Box::new(Ttl::new(DEFAULT_TTL)))
}

/// The same choice, with `ttl` as the time of the policy `ttl` unless it is given: the setting
/// `ttl_seconds` of a worker. Times over a century count as one.
#[must_use]
pub fn or_ttl(choice: Choice, ttl: Duration) -> Choice {
    match &*choice.name {
        "ttl" => choice.or("seconds", ttl.as_secs_f64().min(CENTURY)),
        _ => choice,
    }
}

/// Costs of starts, as the policies that weigh them against memory count them.
fn milliseconds(cost: Duration) -> f64 {
    cost.as_secs_f64() * 1e3
}

/// Sizes in the same. What takes no memory counts as a byte, so that it can be divided by.
fn mebibytes(memory: u64) -> f64 {
    memory.max(1) as f64 / (1 << 20) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn facts(version: u32, mebibytes: u64, start_ms: u64) -> InstanceFacts {
        InstanceFacts {
            version: VersionId(version),
            memory: mebibytes << 20,
            start_cost: Duration::from_millis(start_ms),
        }
    }

    /// An instance that started for one invocation, which is over at `at` nanoseconds.
    pub(super) fn idle_at(
        policy: &mut dyn KeepAlivePolicy,
        instance: u64,
        facts: &InstanceFacts,
        at: u64,
    ) {
        let instance = InstanceId(instance);
        policy.started(instance, facts, Time(at));
        policy.invoked(instance, Time(at), Time(at));
        policy.idle(instance, Time(at));
    }

    /// Evicts the victim, as the scheduler does, and says which it was.
    pub(super) fn evict(policy: &mut dyn KeepAlivePolicy, at: u64) -> u64 {
        let victim = policy.victim(Time(at)).unwrap();
        policy.ended(victim, Time(at));
        victim.0
    }

    fn error(text: &str) -> String {
        standard().maker_of(text).unwrap_err().to_string()
    }

    #[test]
    fn a_policy_is_made_from_a_text() {
        let ttl_of = |text: &str| {
            let choice = or_ttl(text.parse().unwrap(), Duration::from_secs(7));
            let mut policy = standard().build(&choice).unwrap();
            policy.idle(InstanceId(0), Time::ZERO).map(Time::as_secs_f64)
        };
        assert_eq!(ttl_of("ttl"), Some(7.0));
        assert_eq!(ttl_of("ttl,seconds=0.5"), Some(0.5));
        assert_eq!(ttl_of("greedy-dual"), None);
        assert!(error("landlrod").contains("landlord"));
    }

    #[test]
    fn every_entry_builds_with_its_defaults_and_with_them_spelt_out() {
        let catalog = standard();
        for entry in catalog.entries() {
            let plain = format!("{:?}", catalog.maker_of(&entry.name).unwrap().make());
            let mut text = entry.name.clone();
            for parameter in &entry.parameters {
                text += &format!(",{}={}", parameter.name, parameter.default);
            }
            let maker = catalog.maker_of(&text).unwrap();
            assert_eq!(format!("{:?}", maker.make()), plain, "{text}");
            let again = catalog.maker_of(maker.text()).unwrap();
            assert_eq!(format!("{:?}", again.make()), plain, "{text}");
        }
        let chosen = catalog.maker_of(DEFAULT).unwrap();
        assert_eq!(chosen.text(), default().text());
        assert_eq!(format!("{:?}", chosen.make()), format!("{:?}", default().make()));
    }

    #[test]
    fn what_is_unknown_is_refused_with_the_nearest() {
        assert_eq!(
            error("greedy_dual"),
            "keep-alive: unknown policy \"greedy_dual\"; did you mean \"greedy-dual\"?"
        );
        assert!(error("zzzzzz").contains("known are ttl, lru, freq"));
        assert_eq!(
            error("ttl,second=3"),
            "keep-alive ttl: unknown parameter \"second\"; did you mean \"seconds\"?"
        );
        assert!(error("lru,seconds=3").ends_with("it takes none"));
        assert!(error("ttl,3").contains("ttl,parameter=value"));
        assert!(error("ttl,seconds=3,seconds=3").contains("twice"));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for text in [
            "ttl,seconds=-1",
            "ttl,seconds=nan",
            "ttl,seconds=inf",
            "ttl,seconds=long",
            "histogram,head=1.1",
            "histogram,range_minutes=0",
        ] {
            assert!(error(text).contains("is not valid; use a number from"), "{text}");
        }
    }

    #[test]
    fn a_time_from_elsewhere_is_only_a_default() {
        let ttl = |text: &str| or_ttl(text.parse().unwrap(), Duration::from_secs(9)).to_string();
        assert_eq!(ttl("ttl"), "ttl,seconds=9");
        assert_eq!(ttl("ttl, seconds = 4"), "ttl,seconds=4");
        assert_eq!(ttl("histogram"), "histogram");
        let longest = or_ttl(Choice::named("ttl"), Duration::MAX);
        standard().build(&longest).unwrap();
    }
}
