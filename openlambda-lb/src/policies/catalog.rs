//! Makes a policy from its name and parameters: [`PolicyCatalog`].

use std::ops::{Deref, DerefMut};

use openlambda_core::balancing::BalancingPolicy;
use openlambda_core::catalog::{Build, Catalog, Choice, Entry, Maker};
pub use openlambda_core::catalog::{ParameterInfo, Parameters};

/// The balancing policies that can be chosen by name: a [`Catalog`], which can be filled with
/// those of this crate.
#[derive(Clone, Debug)]
pub struct PolicyCatalog(Catalog<dyn BalancingPolicy>);

/// A balancing policy that can be chosen by name.
pub type PolicyEntry = Entry<dyn BalancingPolicy>;

/// Which policy, and its parameters.
pub type PolicyConfig = Choice;

/// Makes balancing policies, one for each balancer.
pub type PolicyMaker = Maker<dyn BalancingPolicy>;

/// See [`PolicyEntry::build`](Entry::build).
pub type BuildPolicy = Build<dyn BalancingPolicy>;

impl PolicyCatalog {
    /// The default policy of a balancer: the nearest to optimal that needs no tuning.
    pub const DEFAULT: &'static str = "least-outstanding";

    /// No policies.
    pub fn new() -> Self {
        PolicyCatalog(Catalog::new("policy"))
    }
}

impl Default for PolicyCatalog {
    fn default() -> Self {
        PolicyCatalog::new()
    }
}

impl Deref for PolicyCatalog {
    type Target = Catalog<dyn BalancingPolicy>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for PolicyCatalog {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}
