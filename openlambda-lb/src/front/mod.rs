//! The balancer's face to its clients: from a request to a reply.
//!
//! ```text
//! client ─▶ server ─▶ call: decode ─▶ resolve ─▶ select ─▶ forward ─▶ outcome ─▶ client
//!             │                                    ▲         │
//!             └─▶ api, for what is no call         └─────────┘ again, only when it cannot have started
//! ```
//!
//! Bodies stream both ways. The worker is chosen by a policy behind one short lock that is never held over
//! an await; everything else is per call. Workers are known only as [`workers`](crate::workers) has them.

pub(crate) mod body;
mod call;
pub(crate) mod cors;
mod decode;
mod forward;
mod limits;
mod outcome;
mod reply;
mod resolver;
mod server;

pub(crate) use self::call::Front;
pub(crate) use self::limits::{Limits, Places};
pub(crate) use self::reply::{ReplyBody, recorded};
pub(crate) use self::resolver::Resolver;
pub(crate) use self::server::Server;
