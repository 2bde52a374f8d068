//! The Lambda Runtime API of one sandbox: the protocol between the worker and the code inside.
//!
//! The code gets an event by `next`, a long poll, and posts `response` or `error`. A [`RuntimeApi`] is the
//! state of that conversation: [`RuntimeApi::invoke`] is the worker's end, [`RuntimeApi::serve`] the
//! code's, over any listener.
//!
//! ```text
//! invoke ─▶ queued ── next ──▶ delivered ── POST response ──▶ answering ─▶ over
//!             │                    │           or error           │
//!             └─ dropped ─▶ over   └────── close (it exited) ─────┴─▶ over
//! ```
//!
//! Each slot runs one call through these stages, and every post is checked against them: a post for an
//! unknown id, a second post, or one out of order is refused and affects no other call. A call is over
//! only when the code has answered or is gone, whether or not a client still waits.
//!
//! | file | what it has |
//! |---|---|
//! | `conversation.rs` | the state, and the worker's end |
//! | `connection.rs` | the code's end as HTTP: connections, paths |
//! | `answer.rs` | what the code posts for a call |
//! | `headers.rs` | the headers between the two ends |
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
