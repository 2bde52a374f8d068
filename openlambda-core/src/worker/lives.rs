//! Which life of a function a version belongs to: [`Lives`].
//!
//! When a function is deleted and another one is published under its name, the name begins a new *life*,
//! which must not get the volumes of the old one. A call names a function, a version and a digest; the
//! digest cannot tell the lives apart, because both may have the same code. So the worker asks the registry
//! before it makes an instance with volumes; once for each version, since a version's life never changes.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::failure::Failure;
use crate::function::{FunctionName, FunctionRef, Qualifier, Version};
use crate::registry::{Registry, RegistryError};

/// The most that is remembered; then it is asked for anew.
const MOST: usize = 10_000;

/// The lives of the functions that a worker has instances of.
#[derive(Debug)]
pub(super) struct Lives {
    registry: Arc<dyn Registry>,
    known: Mutex<HashMap<(FunctionName, Version), Option<Version>>>,
}

impl Lives {
    pub(super) fn new(registry: Arc<dyn Registry>) -> Self {
        Lives { registry, known: Mutex::default() }
    }

    /// The version with which the life of this one began; `None` where the registry does not know of
    /// lives.
    ///
    /// # Errors
    ///
    /// The registry cannot be asked; there is no such version any more.
    pub(super) async fn of(
        &self,
        function: &FunctionName,
        version: Option<Version>,
    ) -> Result<Option<Version>, Failure> {
        let latest = FunctionRef::latest(function.clone());
        let Some(version) = version else {
            return Ok(self.registry.resolve(&latest).await?.born);
        };
        let key = (function.clone(), version);
        if let Some(known) = self.known.lock().get(&key) {
            return Ok(*known);
        }
        let exact = FunctionRef { qualifier: Qualifier::Version(version), ..latest.clone() };
        let born = match self.registry.resolve(&exact).await {
            Ok(resolved) => resolved.born,
            // A kind that has only the present version knows of no lives.
            Err(error @ RegistryError::NotFound { .. }) => {
                match self.registry.resolve(&latest).await?.born {
                    None => return Ok(None),
                    Some(_) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        };
        let mut known = self.known.lock();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(key, born);
        Ok(born)
    }
}
