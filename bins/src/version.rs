//! Which release this is.

pub(crate) use openlambda_core::format::RELEASE as VERSION;
