//! The worker: the shell around the pure deciders that runs functions on one machine.
//!
//! [`Worker::start`] assembles it from a [`SandboxFactory`](crate::sandbox::SandboxFactory)
//! and a [`Registry`](crate::registry::Registry);
//! [`Worker::serve`] answers HTTP on a listener until it is told to stop, then drains.
//!
//! | file | what it does |
//! |---|---|
//! | `config.rs` | the configuration |
//! | `shared.rs` | the state that all handles of a worker share |
//! | `life.rs` | a worker from its start to the end of its drain |
//! | `server.rs` | HTTP: decodes a request into a call, encodes the answer |
//! | `operate.rs`, `balancers.rs` | what operators and balancers ask beside calls |
//! | `bodies.rs`, `budget.rs` | reads requests' bodies, within a budget that namespaces share |
//! | `dispatch.rs` | acquire, invoke, release: carries out what the [core](crate::worker_core) decides |
//! | `instances.rs` | makes, pauses, resumes and destroys sandboxes |
//! | `metrics.rs` | counts finished calls and starts, and writes the metrics |
//! | `lives.rs` | tells a deleted function's volumes from those of the next one of its name |
//! | `code.rs` | fetches bundles, unpacks them once, removes them |
//! | `compile.rs` | compiles their Python files in a sandbox, and keeps the result beside them |
//! | `deletions.rs` | removes what was deleted in the registry |
//! | `events.rs` | tells balancers where the worker is and what it holds |
//! | `load.rs` | tells the core how busy the processors are |
//! | `guarded.rs` | catches panics of sandboxes and registries |
//! | `websocket.rs` | moves what a client sends over its WebSocket |
//! | `log.rs` | writes functions' output and invocation records |

mod balancers;
mod bodies;
mod budget;
mod code;
mod compile;
mod config;
mod deletions;
mod dispatch;
mod events;
mod guarded;
mod instances;
mod life;
mod lives;
mod load;
mod log;
mod metrics;
mod operate;
mod server;
mod shared;
mod websocket;

pub use config::WorkerConfig;
pub use life::{StartError, Worker};
