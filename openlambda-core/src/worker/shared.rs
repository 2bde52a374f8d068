//! The state that all handles of a worker share, from which every request is answered.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::bodies::Bodies;
use super::config::WorkerConfig;
use super::dispatch::Dispatcher;
use super::log::LogWriter;
use crate::invocation::RequestIds;
use crate::registry::Registry;
use crate::sandbox::SandboxFactory;
use crate::serving::Access;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: WorkerConfig,
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) bodies: Bodies,
    pub(super) registry: Arc<dyn Registry>,
    pub(super) factory: Arc<dyn SandboxFactory>,
    pub(super) log: Arc<LogWriter>,
    pub(super) access: Access,
    pub(super) request_ids: RequestIds,
    pub(super) incarnation: u64,
    /// Cancelled when the drain begins.
    pub(super) draining: CancellationToken,
}
