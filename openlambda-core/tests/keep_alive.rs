//! Every keep-alive policy of the catalogue honours the contract, and the suite finds one that does not.

use std::panic::catch_unwind;

use openlambda_core::conformance::keep_alive::check;
use openlambda_core::keep_alive::{self, KeepAlivePolicy, Lru};
use openlambda_core::scheduler::{InstanceId, VersionId};
use openlambda_core::time::Time;

#[test]
fn every_keep_alive_policy_honours_the_contract() {
    let catalog = keep_alive::standard();
    for entry in catalog.entries() {
        println!("{}", entry.name);
        let maker = catalog.maker_of(&entry.name).expect("it is in the catalogue");
        check(|| maker.make());
    }
}

/// [`Lru`], but for one thing that it must not do.
#[derive(Debug, Default)]
struct Broken {
    lru: Lru,
    forgets: bool,
    keeps_the_gone: bool,
    wishes_on: bool,
}

impl KeepAlivePolicy for Broken {
    fn used(&mut self, instance: InstanceId, now: Time) {
        self.lru.used(instance, now);
    }

    fn idle(&mut self, instance: InstanceId, now: Time) -> Option<Time> {
        self.lru.idle(instance, now)
    }

    fn ended(&mut self, instance: InstanceId, now: Time) {
        if !self.keeps_the_gone {
            self.lru.ended(instance, now);
        }
    }

    fn victim(&mut self, now: Time) -> Option<InstanceId> {
        let victim = self.lru.victim(now)?;
        if self.forgets {
            self.lru.ended(victim, now);
        }
        Some(victim)
    }

    fn prewarm(&mut self, _: Time) -> Option<VersionId> {
        self.wishes_on.then_some(VersionId(0))
    }
}

#[test]
fn what_breaks_the_contract_is_found() {
    let says = |make: fn() -> Broken, part: &str| {
        let told = catch_unwind(|| check(|| Box::new(make()))).expect_err("it is broken");
        let told = told.downcast::<String>().expect("it is told");
        assert!(told.starts_with("seed 0, step ") && told.contains(part), "{told}");
    };
    says(|| Broken { forgets: true, ..Broken::default() }, "when asked again");
    says(|| Broken { keeps_the_gone: true, ..Broken::default() }, "which is not idle");
    says(|| Broken { wishes_on: true, ..Broken::default() }, "more than 10000 wishes");
    check(|| Box::new(Broken::default()));
}
