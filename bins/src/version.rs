//! The version of this release.

/// The release: what `make dist` names it, from `git describe`, else the package's version.
pub(crate) const VERSION: &str = match option_env!("OPENLAMBDA_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};
