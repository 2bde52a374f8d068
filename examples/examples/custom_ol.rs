//! The real `ol` with your own balancing policy: `ol up`, `ol sim` and every other command know it by its
//! name.
//!
//! ```text
//! cargo run -p openlambda-examples --example custom_ol -- policies
//! cargo run -p openlambda-examples --example custom_ol -- sim --policy warm-first --policy random
//! cargo run -p openlambda-examples --example custom_ol -- up --policy warm-first
//! ```

use std::process::ExitCode;

use openlambda::{Catalog, main_with};
use openlambda_lb::policies::PolicyEntry;

#[path = "custom_policy.rs"]
#[allow(dead_code, reason = "it is a program of its own, whose main is not called here")]
mod custom_policy;

use custom_policy::WarmFirst;

fn warm_first() -> PolicyEntry {
    let about = "a worker with an idle instance of the function, or else the least loaded";
    PolicyEntry::new("warm-first", about, "examples/custom_policy.rs", || Box::new(WarmFirst))
}

fn main() -> ExitCode {
    main_with(Catalog::standard().policy(warm_first()))
}

#[cfg(test)]
mod tests {
    use openlambda_lb::policies::PolicyCatalog;

    use super::*;

    #[test]
    fn the_policy_is_found_by_its_name() {
        let mut catalog = PolicyCatalog::standard();
        catalog.register(warm_first());
        catalog.build(&"warm-first".parse().unwrap()).unwrap();
        let unknown_parameter = "warm-first,heat=2".parse().unwrap();
        assert!(catalog.build(&unknown_parameter).is_err());
    }
}
