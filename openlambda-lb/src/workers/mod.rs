//! The live cluster: which workers there are, how each is reached, and how one is chosen for a call.
//!
//! ```text
//!  membership ── ClusterEvent ──▶ follow ──▶ selector ◀── select, failed, completed ── route
//!                                    policy, one lock                            of one call
//!                                            │ probe, reserve, cancel               │ send
//!                                            ▼                                      ▼
//!                                          peer ─── connections, client ──▶ the worker's HTTP
//! ```
//!
//! This module does not know clients, neither their requests nor their replies. It gets functions as
//! resolved versions, and calls as requests that are ready to be sent.

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

pub(crate) use self::client::HttpClient;
pub(crate) use self::connection::SendError;
pub(crate) use self::deployed::Deployed;
pub(crate) use self::follow::SelectorFollower;
pub(crate) use self::peer::Peer;
pub(crate) use self::route::Route;
pub(crate) use self::selector::Selector;
