//! One setting, its value, and where the value comes from.

use serde::Serialize;
use toml::Value;

/// One setting, as it is used.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Setting {
    pub(crate) section: &'static str,
    pub(crate) name: String,
    /// `None`: it is not set and has no default.
    pub(crate) value: Option<Value>,
    pub(crate) origin: Origin,
    /// The flag, the variable, the file.
    pub(crate) place: Option<String>,
}

/// Where a setting comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Origin {
    Flag,
    Environment,
    File,
    Default,
    Unset,
}

impl Setting {
    /// Where it comes from, for a person; `None` if it is not set.
    pub(crate) fn origin_text(&self) -> Option<String> {
        let kind = match self.origin {
            Origin::Flag => "flag",
            Origin::Environment => "environment",
            Origin::File => "file",
            Origin::Default => "default",
            Origin::Unset => return None,
        };
        let place = self.place.as_deref().unwrap_or_default();
        Some(format!("{kind} {place}").trim_end().to_owned())
    }
}
