//! The balancing policy honours the contract.

use openlambda_core::conformance::balancing;
use outside::HomeWhileFree;

#[test]
fn the_balancing_policy_honours_the_contract() {
    balancing::check(|| Box::new(HomeWhileFree::new()));
}
