//! The keep-alive policy honours the contract, and does what it says.

use std::time::Duration;

use openlambda_core::conformance::keep_alive;
use openlambda_core::keep_alive::{InstanceFacts, KeepAlivePolicy};
use openlambda_core::scheduler::{InstanceId, VersionId};
use openlambda_core::time::Time;
use outside::Doubling;

#[test]
fn the_keep_alive_policy_honours_the_contract() {
    keep_alive::check(|| Box::new(Doubling::new(Duration::from_secs(10))));
}

#[test]
fn each_use_doubles_the_time() {
    let mut policy = Doubling::new(Duration::from_secs(10));
    let (instance, now) = (InstanceId(1), Time::ZERO);
    let (memory, start_cost) = (128 << 20, Duration::from_millis(100));
    policy.started(instance, &InstanceFacts { version: VersionId(0), memory, start_cost }, now);
    for seconds in [10, 20, 40] {
        assert_eq!(policy.idle(instance, now), Some(now + Duration::from_secs(seconds)));
        assert_eq!(policy.victim(now), Some(instance));
        policy.used(instance, now);
    }
    policy.ended(instance, now);
    assert_eq!(policy.victim(now), None);
}
