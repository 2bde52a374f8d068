//! The version that a reference means: [`Resolution`].

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use openlambda_core::metrics::FunctionCalls;
use openlambda_core::registry::Resolved;

use crate::front::cors::Cors;
use crate::workers::Deployed;

/// What a reference means, in the forms that the later hops need.
#[derive(Debug)]
pub(crate) struct Resolution {
    pub(crate) function: Arc<Deployed>,
    pub(crate) digest: HeaderValue,
    pub(crate) version: HeaderValue,
    pub(crate) timeout: Duration,
    /// Where its calls are counted.
    pub(crate) calls: Arc<FunctionCalls>,
    /// What its manifest says of pages of other origins.
    pub(crate) cors: Option<Cors>,
}

impl Resolution {
    pub(super) fn new(resolved: Resolved, calls: Arc<FunctionCalls>) -> Self {
        let digest = resolved.digest.to_string();
        Resolution {
            digest: HeaderValue::from_str(&digest).expect("a digest is hexadecimal"),
            version: HeaderValue::from(resolved.version.0),
            timeout: resolved.manifest.timeout(),
            cors: Cors::new(&resolved.manifest),
            calls,
            function: Arc::new(Deployed::new(resolved)),
        }
    }

    pub(crate) fn resolved(&self) -> &Resolved {
        &self.function.resolved
    }
}
