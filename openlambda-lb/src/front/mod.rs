//! The balancer's face to its clients: from a request to a reply.

pub(crate) mod body;
pub(crate) mod cors;
pub(crate) mod decode;
pub(crate) mod forward;
pub(crate) mod limits;
pub(crate) mod outcome;
pub(crate) mod reply;
pub(crate) mod resolver;
mod server;
