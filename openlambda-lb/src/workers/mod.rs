//! The live cluster: which workers there are, the way to each of them, and who picks one for a call.
//!
//! ```text
//!  membership ── ClusterEvent ──▶ follow ──▶ selector ◀── select, failed, completed ── route
//!                                    policy, one lock                            of one call
//!                                            │ probe, reserve, cancel               │ send
//!                                            ▼                                      ▼
//!                                          peer ─── connections, client ──▶ the worker's HTTP
//! ```
//!
//! Nothing here knows of clients: not what they ask for, nor what they are answered. Functions come in
//! as the versions that they are already, calls as requests that are ready to be sent.

mod client;
mod connection;
mod connections;
mod deployed;
mod follow;
pub mod membership;
mod peer;
mod route;
mod selector;
mod status;

pub(crate) use self::client::http_client;
pub(crate) use self::connection::SendError;
pub(crate) use self::deployed::Deployed;
pub(crate) use self::follow::SelectorFollower;
pub(crate) use self::peer::Peer;
pub(crate) use self::route::Route;
pub(crate) use self::selector::Selector;
