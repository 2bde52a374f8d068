//! The real `ol` with your own keep-alive policy: `ol sim`, `ol replay` and the workers
//! (`ol daemon worker --keep-alive payback`) know it by its name, and accept its parameter.
//!
//! ```text
//! cargo run --example custom_keep_alive -- policies
//! cargo run --example custom_keep_alive -- sim --policy hiku --keep-alive payback,factor=100
//! cargo run --example custom_keep_alive -- sim --policy hiku --keep-alive ttl
//! ```
//!
//! Payback: an instance may stay unused for as long as it took to start, times a factor. It is the
//! ski-rental rule: rent skis until the rent has cost as much as buying them, and you never pay more than
//! twice the optimum.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use openlambda::{Catalog, main_with};
use openlambda_core::catalog::ParameterInfo;
use openlambda_core::keep_alive::{InstanceFacts, KeepAliveEntry, KeepAlivePolicy, Lru};
use openlambda_core::scheduler::InstanceId;
use openlambda_core::time::Time;

/// The policy. When memory is short it evicts the least recently used instance, as [`Lru`] does.
#[derive(Debug)]
struct Payback {
    factor: f64,
    costs: BTreeMap<InstanceId, Duration>,
    recency: Lru,
}

impl KeepAlivePolicy for Payback {
    fn started(&mut self, instance: InstanceId, facts: &InstanceFacts, _now: Time) {
        self.costs.insert(instance, facts.start_cost);
    }

    fn used(&mut self, instance: InstanceId, now: Time) {
        self.recency.used(instance, now);
    }

    fn idle(&mut self, instance: InstanceId, now: Time) -> Option<Time> {
        self.recency.idle(instance, now);
        Some(now + self.costs.get(&instance)?.mul_f64(self.factor))
    }

    fn ended(&mut self, instance: InstanceId, now: Time) {
        self.costs.remove(&instance);
        self.recency.ended(instance, now);
    }

    fn victim(&mut self, now: Time) -> Option<InstanceId> {
        self.recency.victim(now)
    }
}

fn payback() -> KeepAliveEntry {
    let factor = ParameterInfo::new("factor", 600, "seconds without use for one of its start");
    KeepAliveEntry {
        name: "payback".to_owned(),
        about: "as long without use as its start took, times a factor".to_owned(),
        source: "examples/custom_keep_alive.rs".to_owned(),
        parameters: vec![factor.within(0.0..=1e6)],
        build: Box::new(|given| {
            let factor = given.number("factor")?;
            Ok(Box::new(Payback { factor, costs: BTreeMap::new(), recency: Lru::default() }))
        }),
    }
}

fn main() -> ExitCode {
    main_with(Catalog::standard().keep_alive(payback()))
}

#[cfg(test)]
mod tests {
    use openlambda_core::keep_alive;
    use openlambda_lab::sim::{SimConfig, simulate};
    use openlambda_lab::summary::Tally;
    use openlambda_lb::policies::Random;

    use super::*;

    /// The share of cold starts, in percent, and the memory that instances held, MiB, of a minute's
    /// calls to ten functions.
    fn simulated(text: &str) -> (f64, f64) {
        let mut catalog = keep_alive::standard();
        catalog.register(payback());
        let keep_alive = catalog.maker_of(text).unwrap();
        let mut config = SimConfig { keep_alive, workers: 2, ..SimConfig::default() };
        config.workload.functions = 10;
        config.workload.rate = 20.0;
        config.workload.invocations = 1_200;
        let mut tally = Tally::default();
        let usage = simulate(&config, Box::new(Random), |call| tally.add(call)).unwrap();
        let summary = tally.summary(text);
        assert_eq!((summary.invocations, summary.failed), (1_200, 0));
        (100.0 * summary.cold_rate, usage.mean_memory / f64::from(1 << 20))
    }

    #[test]
    fn the_policy_honours_the_contract() {
        let mut catalog = keep_alive::standard();
        catalog.register(payback());
        let maker = catalog.maker_of("payback").unwrap();
        openlambda_core::conformance::keep_alive::check(|| maker.make());
    }

    #[test]
    fn what_is_kept_longer_is_found_more_often_and_takes_more_memory() {
        // A start takes 120 ms here, and a function is called twice a second.
        let [soon, later, default] =
            ["payback,factor=1", "payback,factor=20", "payback"].map(simulated);
        assert!(
            soon.0 > 50.0 && later.0 < 30.0 && default.0 < 10.0,
            "{soon:?} {later:?} {default:?}"
        );
        assert!(soon.1 < later.1 && later.1 < default.1, "{soon:?} {later:?} {default:?}");
    }

    #[test]
    fn it_is_refused_like_those_of_the_platform() {
        let mut catalog = keep_alive::standard();
        catalog.register(payback());
        let error = |text| catalog.maker_of(text).unwrap_err().to_string();
        assert!(error("paybak").contains("did you mean \"payback\"?"));
        assert!(error("payback,facter=2").contains("did you mean \"factor\"?"));
        assert!(error("payback,factor=-1").contains("use a number from 0 to 1000000"));
    }
}
