//! How long idle instances are kept, and which one is evicted first when memory is short.
//!
//! [`KeepAlivePolicy`] is a pure decider: the scheduler keeps one for the whole worker. It is chosen by
//! name and parameters, as `ttl,seconds=60`, from a [catalogue](standard) to which you can add your own:
//!
//! | name | evicts by time | evicts when memory is short |
//! |---|---|---|
//! | `ttl` | after a fixed time without use | the least recently used |
//! | `lru` | never | the least recently used |
//! | `freq` | never | the least frequently called |
//! | `size` | never | the largest |
//! | `landlord` | never | the one whose credit is used up: slow starts and small sizes earn more credit |
//! | `greedy-dual` | never | the lowest of clock + frequency × cost / size |
//! | `histogram` | when no call is likely soon; starts an instance before the next is due | the least recently used |

mod freq;
mod greedy_dual;
mod histogram;
mod landlord;
mod lru;
mod order;
mod policy;
mod size;
mod standard;
mod ttl;
mod units;

pub use freq::Freq;
pub use greedy_dual::GreedyDual;
pub use histogram::{Histogram, HistogramConfig};
pub use landlord::Landlord;
pub use lru::Lru;
pub use policy::{
    InstanceFacts, KeepAliveCatalog, KeepAliveEntry, KeepAliveMaker, KeepAlivePolicy,
};
pub use size::Size;
pub use standard::{DEFAULT, KIND, default, or_ttl, standard};
pub use ttl::{DEFAULT_TTL, Ttl};

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::catalog::Choice;
    use crate::scheduler::{InstanceId, VersionId};
    use crate::time::Time;

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
        ] {
            assert!(error(text).contains("is not valid; use a number from"), "{text}");
        }
        for text in ["histogram,range_minutes=0", "histogram,range_minutes=1.5"] {
            assert!(error(text).contains("is not valid; use a whole number from"), "{text}");
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
