//! The side of the balancer that clients see: from a request to its reply.
//!
//! ```text
//! client ─▶ server ─▶ call: decode ─▶ resolve ─▶ select ─▶ forward ─▶ outcome ─▶ client
//!             │                                    ▲         │
//!             └─▶ api, for what is no call         └─────────┘ again, only when it cannot have started
//! ```
//!
//! Bodies stream both ways. A policy chooses the worker, behind one short lock that is never held over an
//! await; all other state belongs to one call. This module reaches workers only through
//! [`workers`](crate::workers).

pub(crate) mod body;
mod call;
pub(crate) mod cors;
mod decode;
mod forward;
mod forwarded;
mod limits;
mod outcome;
mod reply;
mod resolver;
mod server;
mod websocket;

pub(crate) use self::call::Front;
pub use self::forwarded::Network;
pub(crate) use self::forwarded::TrustedProxies;
pub(crate) use self::limits::{Limits, Places};
pub(crate) use self::reply::{ReplyBody, recorded};
pub(crate) use self::resolver::Resolver;
pub(crate) use self::server::Server;
