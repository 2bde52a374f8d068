//! Who makes a request: [`Principal`].

use std::sync::{Arc, OnceLock};

/// Who makes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Principal {
    /// Nobody in particular.
    Anyone,
    /// A process that knows the cluster's secret, or that a user runs who may read it.
    Cluster,
}

/// The principal of a connection, which is known once its first request is. Clones are of the same
/// connection.
#[derive(Clone, Debug)]
pub struct Identity(Known);

#[derive(Clone, Debug)]
enum Known {
    Already(Principal),
    /// The kernel says which user it is.
    User(Principal, u32),
    Soon(Arc<OnceLock<Principal>>),
}

impl Identity {
    /// The connection is this one's.
    pub(crate) fn of(principal: Principal) -> Self {
        Identity(Known::Already(principal))
    }

    /// The connection is a process's of this user.
    pub(crate) fn of_user(principal: Principal, user: u32) -> Self {
        Identity(Known::User(principal, user))
    }

    /// The connection begins with a [handshake](super::prove), or without.
    pub(crate) fn to_be_told() -> Self {
        Identity(Known::Soon(Arc::default()))
    }

    pub(crate) fn tell(&self, principal: Principal) {
        if let Known::Soon(told) = &self.0 {
            let _ = told.set(principal);
        }
    }

    /// The number of its user, where the kernel tells it.
    pub fn user(&self) -> Option<u32> {
        match &self.0 {
            Known::User(_, user) => Some(*user),
            _ => None,
        }
    }

    /// Whose it is; [`Principal::Anyone`] as long as nothing has been read.
    pub fn principal(&self) -> Principal {
        match &self.0 {
            Known::Already(principal) | Known::User(principal, _) => *principal,
            Known::Soon(told) => told.get().copied().unwrap_or(Principal::Anyone),
        }
    }
}
