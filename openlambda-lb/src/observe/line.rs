//! A line of the access log: JSON, with these fields.
//!
//! | field | what it is |
//! |---|---|
//! | `time_ms` | when the request came, milliseconds since 1970 |
//! | `request_id` | the reply's `x-openlambda-request-id`; `null` when the balancer was full and the request had none |
//! | `trace_id` | the trace of the request's `traceparent` (W3C Trace Context); `null` without one |
//! | `client` | where the request comes from: the other end of the connection, or whom a trusted proxy there stands for |
//! | `method`, `path` | of the request, without the query, which may hold secrets |
//! | `function`, `version` | the function called; `null` when none was found |
//! | `worker` | the worker that was tried last; `null` when none was |
//! | `status` | of the reply; `null` when the client left before it came |
//! | `outcome` | `ok`, the failure's code, `broken_off` or `cancelled`, as in the metrics |
//! | `error` | the culprit, as in `x-openlambda-error`; `null` when nothing failed |
//! | `start` | `cold`, `zygote` or `warm`; `null` when nothing ran |
//! | `retries` | how many more workers were tried |
//! | `duration_ms` | from the request's head to the end of the reply |
//! | `reply_ms` | from the request's head to the reply's; `null` when there was none |
//! | `phases_ms` | the worker's `Server-Timing`: `queue`, `pull`, `create`, `init`, `run` |
//! | `request_bytes`, `reply_bytes` | bytes of the bodies that arrived |

use std::net::IpAddr;

use openlambda_core::function::{FunctionName, Version};
use openlambda_core::invocation::RequestId;
use serde::Serialize;

/// The longest path in a line, bytes.
const LONGEST_PATH: usize = 2048;

/// See the module's documentation.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) time_ms: u64,
    pub(crate) request_id: Option<RequestId>,
    pub(crate) trace_id: Option<String>,
    pub(crate) client: IpAddr,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) function: Option<FunctionName>,
    pub(crate) version: Option<Version>,
    pub(crate) worker: Option<String>,
    pub(crate) status: Option<u16>,
    pub(crate) outcome: &'static str,
    pub(crate) error: Option<String>,
    pub(crate) start: Option<&'static str>,
    pub(crate) retries: u32,
    pub(crate) duration_ms: f64,
    pub(crate) reply_ms: Option<f64>,
    pub(crate) phases_ms: Option<PhasesMs>,
    pub(crate) request_bytes: u64,
    pub(crate) reply_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct PhasesMs {
    pub(crate) queue: f64,
    pub(crate) pull: f64,
    pub(crate) create: f64,
    pub(crate) init: f64,
    pub(crate) run: f64,
}

/// A path as it stands in a line.
pub(crate) fn shown(path: &str) -> String {
    // Paths of requests are ASCII.
    path.get(..LONGEST_PATH).unwrap_or(path).to_owned()
}
