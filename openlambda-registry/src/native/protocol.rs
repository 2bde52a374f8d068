//! The protocol's generated types, and the encoding of errors.

use openlambda_core::failure;
use openlambda_core::function::Version;
use openlambda_core::registry::RegistryError;
use serde::{Deserialize, Serialize};
use tonic::{Code, Status};

#[allow(missing_docs, unreachable_pub, clippy::all, reason = "it is generated")]
pub(super) mod v1 {
    tonic::include_proto!("openlambda.registry.v1");
}

/// In a request's metadata: who makes a change, for the audit log.
pub(super) const BY: &str = "x-openlambda-by";

/// What is wrong with a registry that does not know a request. The protocol's version is the last part
/// of its package's name, and so of each request's path.
const OTHER_PROTOCOL: &str = "the registry at the other end does not know this request of the protocol \
    openlambda.registry.v1, so it is of another release; run the same release on both sides";

/// A conflict's details.
#[derive(Serialize, Deserialize)]
struct Conflict {
    alias: String,
    at: Option<Version>,
}

/// An error as a status. The code tells the kind, the message what it holds.
pub(super) fn to_status(error: RegistryError) -> Status {
    let chain = failure::chain(&error);
    match error {
        RegistryError::NotFound { what } => Status::not_found(what),
        RegistryError::BadBundle { reason } => Status::invalid_argument(reason),
        RegistryError::NotAllowed { reason } => Status::permission_denied(reason),
        RegistryError::Conflict { alias, at } => {
            let details = serde_json::to_vec(&Conflict { alias, at }).unwrap_or_default();
            Status::with_details(Code::Aborted, chain, details.into())
        }
        RegistryError::Unsupported(message) => Status::unimplemented(message),
        // What these are is in the code; the other end has the words for it.
        RegistryError::Unavailable(why) => Status::unavailable(failure::chain(&*why)),
        RegistryError::Damaged { what } => Status::data_loss(what),
        RegistryError::Storage(why) => Status::internal(failure::chain(&*why)),
        _ => Status::internal(chain),
    }
}

/// The error that a status stands for.
pub(super) fn from_status(status: Status) -> RegistryError {
    let message = || status.message().to_owned();
    match status.code() {
        Code::NotFound => RegistryError::NotFound { what: message() },
        Code::InvalidArgument => RegistryError::BadBundle { reason: message() },
        Code::PermissionDenied => RegistryError::NotAllowed { reason: message() },
        Code::Aborted => match serde_json::from_slice(status.details()) {
            Ok(Conflict { alias, at }) => RegistryError::Conflict { alias, at },
            Err(_) => RegistryError::Unavailable(status.into()),
        },
        // Whoever knows the request and refuses it says why.
        Code::Unimplemented if status.message().is_empty() => {
            RegistryError::Unsupported(OTHER_PROTOCOL.to_owned())
        }
        Code::Unimplemented => RegistryError::Unsupported(message()),
        Code::DataLoss => RegistryError::Damaged { what: message() },
        Code::Internal => RegistryError::Storage(message().into()),
        // The transport's own words are on the cause below it.
        _ => match std::error::Error::source(&status) {
            Some(cause) => RegistryError::Unavailable(failure::chain(cause).into()),
            None => RegistryError::Unavailable(message().into()),
        },
    }
}
