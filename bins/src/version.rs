//! The version of this release.

pub(crate) use openlambda_core::format::RELEASE as VERSION;
