//! The live cluster: which workers there are, the way to each of them, and who picks one for a call.

pub(crate) mod connections;
pub(crate) mod deployed;
pub(crate) mod membership;
pub(crate) mod selector;
