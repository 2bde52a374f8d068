//! Who may read and change the registry over HTTP: [`Admin`].
//!
//! A page in a browser never may: neither a page of another origin (cross-site request forgery), nor one
//! whose name was pointed to this machine after it was loaded (DNS rebinding), nor one that a function
//! served from this very port. A browser says in `Origin` or `Sec-Fetch-Site` that a page makes the
//! request, and in `Host` which name the page used.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use http::Uri;
use http::header::{HOST, HeaderMap};
use http::uri::Authority;
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
    /// Clients on this machine, except those whose requests came through another proxy.
    #[default]
    Loopback,
    /// Every client that reaches the balancer.
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
    /// Whether a request may pass.
    pub(super) fn admit(self, peer: IpAddr, uri: &Uri, headers: &HeaderMap) -> Result<(), Failure> {
        let forbidden = |message: &str| Err(Failure::new(FailureKind::Forbidden, message));
        match self {
            Admin::Off => {
                return forbidden(
                    "the registry is closed here; use `ol deploy`, or start the \
                                  balancer with --admin loopback",
                );
            }
            Admin::Loopback => {
                if !peer.to_canonical().is_loopback() || wire::is_relayed(headers) {
                    return forbidden(
                        "the registry is open to clients on the balancer's own \
                                      machine; start it with --admin any to open it to all",
                    );
                }
                // A name that leads here and is not this machine's own: somebody rebound it.
                if !by_address(uri, headers) {
                    return forbidden(
                        "the registry is reached by this machine's address; use \
                                      127.0.0.1 or localhost",
                    );
                }
            }
            Admin::Any => {}
        }
        wire::refuse_pages(headers)
    }
}

/// Whether the client used an address, so that no name server had influence on where it connected. A
/// client without `Host` is not a browser.
fn by_address(uri: &Uri, headers: &HeaderMap) -> bool {
    let hosts = headers.get_all(HOST).iter();
    let hosts = hosts.map(|host| host.to_str().ok()?.parse::<Authority>().ok());
    hosts.chain(uri.authority().cloned().map(Some)).all(|host| {
        host.is_some_and(|host| {
            let host = host.host();
            let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            host.eq_ignore_ascii_case("localhost") || bare.unwrap_or(host).parse::<IpAddr>().is_ok()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(admin: Admin, peer: &str, headers: &[(&'static str, &str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        admin.admit(peer.parse().unwrap(), &Uri::from_static("/registry/"), &map).is_ok()
    }

    #[test]
    fn who_is_who_is_told_by_the_connection() {
        let host = [("host", "127.0.0.1:8080")];
        for (admin, here, there) in
            [(Admin::Off, false, false), (Admin::Loopback, true, false), (Admin::Any, true, true)]
        {
            for (peer, may) in [
                ("127.0.0.1", here),
                ("::1", here),
                ("::ffff:127.0.0.1", here),
                ("10.0.0.7", there),
            ] {
                assert_eq!(admits(admin, peer, &host), may, "{admin} {peer}");
            }
            assert_eq!(admin.to_string().parse(), Ok(admin));
        }
        // Through a proxy on this machine: whoever it comes from.
        for header in ["x-forwarded-for", "forwarded"] {
            assert!(!admits(Admin::Loopback, "127.0.0.1", &[host[0], (header, "127.0.0.1")]));
        }
        assert!("all".parse::<Admin>().is_err());
    }

    #[test]
    fn pages_of_others_may_not() {
        let may = |admin, host: &str, more: &[(&'static str, &str)]| {
            let headers: Vec<_> =
                [("host", host)].into_iter().chain(more.iter().copied()).collect();
            admits(admin, "127.0.0.1", &headers)
        };
        for admin in [Admin::Loopback, Admin::Any] {
            for host in ["127.0.0.1:8080", "localhost:8080", "[::1]:8080", "LOCALHOST"] {
                assert!(may(admin, host, &[]), "{host}");
                // Typed into the address bar.
                assert!(may(admin, host, &[("sec-fetch-site", "none")]));
                let own = format!("http://{host}");
                for origin in ["https://evil.org", "http://localhost:3000", "null", "", &own] {
                    assert!(!may(admin, host, &[("origin", origin)]), "{host} {origin}");
                }
                for site in ["cross-site", "same-site", "same-origin"] {
                    assert!(!may(admin, host, &[("sec-fetch-site", site)]), "{host} {site}");
                }
            }
            // Rebinding: the page's own name leads here.
            assert!(!may(admin, "evil.org:8080", &[("origin", "http://evil.org:8080")]));
        }
        for host in ["evil.org:8080", "evil org", "127.0.0.1@evil.org", "127.0.0.1.evil.org", ""] {
            assert!(!may(Admin::Loopback, host, &[]), "{host}");
        }
        assert!(!may(Admin::Loopback, "127.0.0.1", &[("host", "evil.org")]));
        assert!(admits(Admin::Loopback, "127.0.0.1", &[]), "HTTP/1.0 needs no host");
        // Another machine reaches this one by its name.
        assert!(may(Admin::Any, "balancer.lan:8080", &[]));
        // A target in absolute form goes before the header.
        let mut headers = HeaderMap::new();
        headers.insert(HOST, "127.0.0.1".parse().unwrap());
        let uri = Uri::from_static("http://evil.org/registry/");
        assert!(Admin::Loopback.admit([127, 0, 0, 1].into(), &uri, &headers).is_err());
    }
}
