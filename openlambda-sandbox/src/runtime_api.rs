//! The Lambda Runtime API of one sandbox: how the worker and the code inside speak.
//!
//! The code asks `next` for an event, a long poll, and posts `response` or `error`. A
//! [`RuntimeApi`] is the state of that conversation: [`RuntimeApi::invoke`] is the worker's end,
//! [`RuntimeApi::serve`] the code's, over any listener.
//!
//! ```text
//! invoke ─▶ queued ── next ──▶ delivered ── POST response ──▶ answering ─▶ over
//!             │                    │           or error           │
//!             └─ dropped ─▶ over   └────── close (it exited) ─────┴─▶ over
//! ```
//!
//! Each slot runs one call through these stages, and every post is checked against them: what
//! comes for an unknown id, twice or out of order is refused and harms nobody. A call is over only
//! when the code has answered or is gone, whoever still waits for it.
//!
//! | file | what it has |
//! |---|---|
//! | `conversation.rs` | the state, and the worker's end |
//! | `connection.rs` | the code's end as HTTP: connections, paths |
//! | `answer.rs` | what the code posts for a call |
//! | `headers.rs` | what the two ends tell each other in headers |
//! | `refusal.rs`, `peer.rs` | why the code is refused; whether it is still there |

mod answer;
mod connection;
mod conversation;
mod headers;
mod peer;
mod refusal;

pub use answer::REPLY_LIMIT;
pub use connection::{Listener, Serving};
pub use conversation::{RuntimeApi, RuntimeApiConfig};
pub use headers::{EXITING, NEXT, arn};
