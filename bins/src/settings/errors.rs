//! What callers are told of functions' failures.

use clap::Args;
use openlambda_core::failure::Detail;
use serde::{Deserialize, Serialize};

use super::section::{Section, word};

/// `[errors]`
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ErrorSettings {
    /// What callers are told of a function's failure, unless its manifest says: full (the message and the
    /// stack) or type (the type and the message's first line) [default: full while the balancer listens on
    /// loopback only, else type]
    #[arg(long = "error-detail", value_name = "DETAIL", value_parser = word::<Detail>, hide_short_help = true)]
    detail: Option<Detail>,
}

impl Section for ErrorSettings {
    const NAME: &'static str = "errors";
}

impl ErrorSettings {
    /// What a balancer tells that listens here.
    pub(crate) fn detail(&self, listens: std::net::SocketAddr) -> Detail {
        let usual = if listens.ip().is_loopback() { Detail::Full } else { Detail::Type };
        self.detail.unwrap_or(usual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_of_other_machines_are_told_less_unless_it_is_said() {
        let detail = |said: Option<Detail>, listens: &str| {
            ErrorSettings { detail: said }.detail(listens.parse().unwrap())
        };
        for loopback in ["127.0.0.1:80", "[::1]:80"] {
            assert_eq!(detail(None, loopback), Detail::Full);
            assert_eq!(detail(Some(Detail::Type), loopback), Detail::Type);
        }
        for open in ["0.0.0.0:80", "[::]:80", "192.0.2.1:80"] {
            assert_eq!(detail(None, open), Detail::Type);
            assert_eq!(detail(Some(Detail::Full), open), Detail::Full);
        }
    }
}
