//! A resolved version of a function, as the cluster runs it: [`Deployed`].

use std::sync::OnceLock;

use openlambda_core::balancing::FunctionId;
use openlambda_core::registry::Resolved;

/// What a call's function is: its name, version, bundle and manifest.
#[derive(Debug)]
pub(crate) struct Deployed {
    pub(crate) resolved: Resolved,
    /// The balancer's id of the function, once it has one: the first call of this version looks it up.
    pub(crate) id: OnceLock<FunctionId>,
}

impl Deployed {
    pub(crate) fn new(resolved: Resolved) -> Self {
        Deployed { resolved, id: OnceLock::new() }
    }
}
