//! The result of one check.

use serde::Serialize;

#[derive(Debug, Serialize)]
pub(super) struct Check {
    /// What was looked at.
    pub(super) check: &'static str,
    /// What it is for.
    pub(super) why: &'static str,
    pub(super) ok: bool,
    /// Nothing that ships today works without it.
    pub(super) needed: bool,
    pub(super) detail: String,
    /// What to do, when it is not well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<&'static str>,
}

pub(super) fn check(
    name: &'static str,
    needed: bool,
    why: &'static str,
    result: std::result::Result<String, String>,
    next: &'static str,
) -> Check {
    let ok = result.is_ok();
    let (Ok(detail) | Err(detail)) = result;
    Check { check: name, why, ok, needed, detail, next: (!ok).then_some(next) }
}
