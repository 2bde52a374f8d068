//! Who may read and change the registry over HTTP, of those whom
//! [`Access`](openlambda_core::serving::Access) admits: [`Admin`].

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use http::HeaderMap;
use openlambda_core::failure::{Failure, FailureKind};
use openlambda_core::wire;
use serde::Deserialize;

/// Who may read and change the registry over HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Admin {
    /// No client.
    Off,
    /// Of those who have been admitted, clients on this machine, except those whose requests came through
    /// another proxy.
    #[default]
    Loopback,
    /// All who have been admitted, from wherever they come.
    Any,
}

impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Admin::Off => "off",
            Admin::Loopback => "loopback",
            Admin::Any => "any",
        })
    }
}

impl FromStr for Admin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Admin::Off),
            "loopback" => Ok(Admin::Loopback),
            "any" => Ok(Admin::Any),
            _ => Err("use off, loopback (clients on this machine) or any".to_owned()),
        }
    }
}

impl Admin {
    /// Whether a request may pass that [`Access`](openlambda_core::serving::Access) has admitted.
    pub(super) fn admit(self, peer: IpAddr, headers: &HeaderMap) -> Result<(), Failure> {
        let forbidden = |message: &str| Err(Failure::new(FailureKind::Forbidden, message));
        // What the address is worth, a proxy in between decides.
        let relayed = wire::is_relayed(headers);
        match self {
            Admin::Off => forbidden(
                "the registry is closed here; use `ol deploy`, or start the balancer with --admin \
                 loopback",
            ),
            Admin::Loopback if !peer.to_canonical().is_loopback() || relayed => forbidden(
                "the registry is open to clients on the balancer's own machine; start the balancer with \
                 --admin any to open it to those on others, too",
            ),
            Admin::Loopback | Admin::Any => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(admin: Admin, peer: &str, header: Option<&'static str>) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert(header, "127.0.0.1".parse().unwrap());
        }
        admin.admit(peer.parse().unwrap(), &headers).is_ok()
    }

    #[test]
    fn who_is_who_is_told_by_the_connection() {
        for (admin, here, there) in
            [(Admin::Off, false, false), (Admin::Loopback, true, false), (Admin::Any, true, true)]
        {
            for (peer, may) in [
                ("127.0.0.1", here),
                ("::1", here),
                ("::ffff:127.0.0.1", here),
                ("10.0.0.7", there),
            ] {
                assert_eq!(admits(admin, peer, None), may, "{admin} {peer}");
            }
            assert_eq!(admin.to_string().parse(), Ok(admin));
        }
        // Through a proxy on this machine: from wherever it comes.
        for header in [
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-forwarded-host",
            "x-real-ip",
            "forwarded",
            "via",
        ] {
            assert!(!admits(Admin::Loopback, "127.0.0.1", Some(header)), "{header}");
            assert!(admits(Admin::Any, "127.0.0.1", Some(header)), "{header}");
        }
        assert!("all".parse::<Admin>().is_err());
    }
}
