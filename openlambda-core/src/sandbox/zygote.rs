//! Sandboxes that are made from others.
//!
//! A *zygote* is a paused sandbox that has loaded an interpreter and imports. Instances are forked from
//! it, and need not load them again. No kind makes zygotes yet, as each says in its
//! [`Capabilities::fork`](super::Capabilities::fork); this module says what the first one has to do.
//!
//! ```text
//!  create_zygote                create, spec.zygote = its id
//! (nothing) ─────▶ zygote ─────────────────────────────▶ instance, with a life of its own
//!                    │ create_zygote, spec.parent = its id
//!                    └────────────────────────────────▶ zygote, with a life of its own
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::LogSink;
use crate::manifest::Runtime;

/// Names a zygote of one factory. The caller of `create_zygote` chooses the number, and never uses it
/// again: so a decider can name zygotes that are still being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ZygoteId(pub u64);

impl fmt::Display for ZygoteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zygote {}", self.0)
    }
}

/// What a zygote is made from.
///
/// What [`create_zygote`](super::SandboxFactory::create_zygote) gives is a
/// [`Sandbox`](super::Sandbox) with no slots, so every `invoke` is refused as
/// [`Busy`](super::SandboxErrorKind::Busy). It can be forked from as long as it lives: until
/// `destroy`, Drop, the factory's `shutdown`, or an end of its own, each of which `exited` tells.
/// `usage` tells what it uses itself. It is never paused: it runs nothing between two forks.
///
/// A fork has everything that a sandbox made from nothing has: the isolation, limits, network, folder
/// and environment of its own spec, and a life of its own. It sees nothing of its zygote but what that
/// had loaded, and lives on when the zygote ends. [`Created::start`](super::Created::start) of a fork
/// is [`StartKind::Zygote`](crate::invocation::StartKind::Zygote).
///
/// **Concurrency**: several can be forked from one zygote at once.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ZygoteSpec {
    /// Its name from now on.
    pub id: ZygoteId,
    /// The zygote that it is forked from, whose imports it has too; `None`: it is made from nothing.
    pub parent: Option<ZygoteId>,
    /// Which interpreter; the parent's, where there is one.
    pub runtime: Runtime,
    /// What it loads, in this order: names of modules, as the runtime's `import` takes them.
    pub imports: Vec<String>,
    /// How long that may take.
    pub init_timeout: Duration,
    /// Where its output goes.
    pub log: Arc<dyn LogSink>,
}

impl ZygoteSpec {
    /// The spec of a zygote that is made from nothing, within 30 seconds.
    pub fn new(
        id: ZygoteId,
        runtime: Runtime,
        imports: Vec<String>,
        log: Arc<dyn LogSink>,
    ) -> Self {
        let init_timeout = Duration::from_secs(30);
        ZygoteSpec { id, parent: None, runtime, imports, init_timeout, log }
    }
}
