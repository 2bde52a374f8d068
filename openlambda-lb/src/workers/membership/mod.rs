//! Which workers there are: sources, each of which reports the workers that it knows to a follower.
//!
//! ```text
//!  configured (a list) ──┐ watch: one worker's               ┌─▶ the balancer's selector
//!  announced (over HTTP) ┤ stream of events  ── ClusterEvent ┤
//!  a Source of your own ─┘                                   └─▶ any other Follower
//! ```
//!
//! [`Source`] and [`Follower`] are the two sides, and [`ClusterEvent`] is all that passes between them.
//! Each source here has its own way to learn where a worker is; it learns everything else from the
//! worker's stream of events, as `watch` draws it.
//!
//! [`ClusterEvent`]: openlambda_core::balancing::ClusterEvent

mod announced;
mod configured;
mod lines;
mod source;
mod watch;

pub(crate) use self::announced::{Announced, Announcements};
pub(crate) use self::configured::Configured;
pub use self::source::{Follower, Source};
pub(crate) use self::watch::Watcher;
