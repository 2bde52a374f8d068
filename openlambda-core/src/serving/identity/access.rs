//! Whether a request may have what it asks for: [`Access`].

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use http::header::{AUTHORIZATION, HOST, HeaderMap};
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Uri};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Principal, Secret};
use crate::failure::{Failure, FailureKind};
use crate::wire;

/// What a request asks for, as far as it matters who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A call of a function, which is everybody's.
    Call,
    /// Whether the server lives and is ready: everybody's, but no page's.
    Health,
    /// What the cluster does and is.
    Control,
    /// What the cluster's processes tell each other.
    Internal,
}

/// Decides who may have what.
///
/// A page in a browser has nothing but calls: neither a page of another origin (cross-site request
/// forgery), nor one whose name was pointed to this machine after it was loaded (DNS rebinding), nor one
/// that a function served from this very port. A browser says in `Origin` or `Sec-Fetch-Site` that a page
/// makes the request, and in `Host` which name the page used.
#[derive(Clone, Debug, Default)]
pub struct Access {
    secret: Option<Secret>,
    hosts: Vec<Host>,
}

impl Access {
    /// What is not everybody's is for those who know `secret`, or for every process if there is none. The
    /// server may be called by its addresses, `localhost`, and the names of `hosts`.
    pub fn new(secret: Option<Secret>, hosts: Vec<Host>) -> Self {
        Access { secret, hosts }
    }

    /// Whether the cluster has a secret.
    pub fn has_secret(&self) -> bool {
        self.secret.is_some()
    }

    /// Lets a request have what it asks for, and says whose it is. `caller` has made the connection, from
    /// `peer`.
    ///
    /// # Errors
    ///
    /// [`FailureKind::Forbidden`] to pages, [`FailureKind::Unauthorized`] to those who do not know the
    /// secret. Where there is none, [`FailureKind::NotFound`] to those who ask for what is internal from
    /// another machine, or through a proxy.
    pub fn admit(
        &self,
        caller: Principal,
        peer: IpAddr,
        uri: &Uri,
        headers: &HeaderMap,
        resource: Resource,
    ) -> Result<Principal, Failure> {
        // No browser makes such a connection.
        if caller == Principal::Cluster || resource == Resource::Call {
            return Ok(caller);
        }
        self.check_host(uri, headers)?;
        wire::refuse_pages(headers)?;
        let Some(secret) = &self.secret else {
            let nearby = peer.to_canonical().is_loopback() && !wire::is_relayed(headers);
            if resource == Resource::Internal && !nearby {
                let message = "there is nothing here; call /run/<function>";
                return Err(Failure::new(FailureKind::NotFound, message));
            }
            return Ok(caller);
        };
        if resource == Resource::Health {
            return Ok(caller);
        }
        match bearer(headers) {
            Some(token) if secret.is(token) => Ok(Principal::Cluster),
            told => Err(Failure::new(FailureKind::Unauthorized, unauthorized(told.is_some()))),
        }
    }

    /// Takes each header that has the secret in it out of a request that goes on to a function, in case a tool
    /// sent it to the wrong place.
    pub fn withhold(&self, headers: &mut HeaderMap) {
        let Some(secret) = &self.secret else { return };
        let secret = secret.text().as_bytes();
        // Most values are shorter.
        let has = |value: &HeaderValue| {
            let value = value.as_bytes();
            value.len() >= secret.len() && value.windows(secret.len()).any(|part| part == secret)
        };
        let having: Vec<HeaderName> =
            headers.iter().filter(|(_, value)| has(value)).map(|(name, _)| name.clone()).collect();
        for name in having {
            headers.remove(name);
        }
    }

    /// A name that leads here and is not the server's own: somebody rebound it. A client without `Host`
    /// is not a browser.
    fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Failure> {
        let hosts = headers.get_all(HOST).iter();
        let hosts = hosts.map(|host| host.to_str().ok()?.parse::<Authority>().ok());
        let known = |host: Option<Authority>| host.is_some_and(|host| self.is_ours(host.host()));
        if hosts.chain(uri.authority().cloned().map(Some)).all(known) {
            return Ok(());
        }
        let message = "this server is not known by the name in Host; call it by its address or as \
                       localhost, or start it with --host NAME";
        Err(Failure::new(FailureKind::Forbidden, message))
    }

    /// Whether the server goes by this name. No name server has an influence on an address.
    fn is_ours(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        host.eq_ignore_ascii_case("localhost")
            || bare.unwrap_or(host).parse::<IpAddr>().is_ok()
            || self.hosts.iter().any(|known| known.name.eq_ignore_ascii_case(host))
    }
}

fn unauthorized(has_token: bool) -> &'static str {
    if has_token {
        "this is not the cluster's secret; send what is in its file: authorization: Bearer SECRET"
    } else {
        "this is for those who know the cluster's secret; send authorization: Bearer SECRET, with what is \
         in the file `secret` of the cluster's folder, or use `ol`"
    }
}

/// What the request says that it knows.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    // Two would be read by different readers as different ones.
    values.next().filter(|_| values.next().is_none()).and_then(token_of)
}

fn token_of(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = value.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// A name by which a server may be called: `NAME` or `NAME:PORT`. With a port, processes of the cluster may
/// also reach it by that port, which something forwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    name: String,
    port: Option<u16>,
}

impl Host {
    /// The name, in lower case.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The port that is named.
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let host = text.parse::<Authority>().ok().filter(|host| {
            let port = host.as_str().strip_prefix(host.host());
            !host.host().is_empty()
                && port.is_some_and(|port| port.is_empty() || host.port().is_some())
        });
        let host =
            host.ok_or_else(|| format!("\"{text}\" is not a host; write NAME or NAME:PORT"))?;
        Ok(Host { name: host.host().to_ascii_lowercase(), port: host.port_u16() })
    }
}

impl<'de> Deserialize<'de> for Host {
    fn deserialize<D: Deserializer<'de>>(text: D) -> Result<Self, D::Error> {
        String::deserialize(text)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Host {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const TEXT: &str = "0123456789abcdef0123456789abcdef";

    fn asks(access: &Access, resource: Resource, headers: &[(&'static str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let uri = Uri::from_static("/stats");
        let peer = Ipv4Addr::LOCALHOST.into();
        match access.admit(Principal::Anyone, peer, &uri, &map, resource) {
            Ok(_) => 200,
            Err(failure) => wire::status_of(failure.kind).as_u16(),
        }
    }

    fn with_secret() -> Access {
        Access::new(Some(TEXT.parse().unwrap()), vec!["balancer.lan".parse().unwrap()])
    }

    #[test]
    fn the_secret_is_asked_for_where_there_is_one() {
        let right = format!("Bearer {TEXT}");
        let wrong = format!("Bearer {}", TEXT.replace('f', "e"));
        for (resource, open, closed) in [
            (Resource::Call, 200, 200),
            (Resource::Health, 200, 200),
            (Resource::Control, 200, 401),
            (Resource::Internal, 200, 401),
        ] {
            assert_eq!(asks(&Access::default(), resource, &[]), open, "{resource:?}");
            assert_eq!(asks(&with_secret(), resource, &[]), closed, "{resource:?}");
            let told = |value: &str| asks(&with_secret(), resource, &[("authorization", value)]);
            assert_eq!(told(&right), 200, "{resource:?}");
            assert_eq!(told(&right.to_lowercase()), 200, "the scheme is in any case");
            for other in [&wrong, "Bearer ", "Bearer", TEXT, &format!("Basic {TEXT}")] {
                assert_eq!(told(other), closed, "{resource:?} {other}");
            }
        }
        let twice = [("authorization", &*wrong), ("authorization", &*right)];
        assert_eq!(asks(&with_secret(), Resource::Control, &twice), 401);
        // A connection that has proved itself needs no header.
        let (uri, none) = (Uri::from_static("/stats"), HeaderMap::new());
        let far = [10, 0, 0, 7].into();
        let admitted = with_secret().admit(Principal::Cluster, far, &uri, &none, Resource::Control);
        assert_eq!(admitted, Ok(Principal::Cluster));
    }

    #[test]
    fn pages_have_nothing_but_calls() {
        let token = format!("Bearer {TEXT}");
        for access in [Access::default(), with_secret()] {
            let ask = |host: &str, more: &[(&'static str, &str)]| {
                let headers: Vec<_> = [("host", host), ("authorization", &*token)]
                    .into_iter()
                    .chain(more.iter().copied())
                    .collect();
                let control = asks(&access, Resource::Control, &headers);
                assert_eq!(asks(&access, Resource::Health, &headers), control);
                assert_eq!(asks(&access, Resource::Call, &headers), 200);
                control
            };
            for host in ["127.0.0.1:8080", "localhost:8080", "[::1]:8080", "LOCALHOST", "10.0.0.7"]
            {
                assert_eq!(ask(host, &[]), 200, "{host}");
                // Typed into the address bar.
                assert_eq!(ask(host, &[("sec-fetch-site", "none")]), 200);
                let own = format!("http://{host}");
                for origin in ["https://evil.org", "http://localhost:3000", "null", "", &own] {
                    assert_eq!(ask(host, &[("origin", origin)]), 403, "{host} {origin}");
                }
                for site in ["cross-site", "same-site", "same-origin"] {
                    assert_eq!(ask(host, &[("sec-fetch-site", site)]), 403, "{host} {site}");
                }
            }
            // Rebinding: the page's own name leads here.
            for host in
                ["evil.org:8080", "evil org", "127.0.0.1@evil.org", "127.0.0.1.evil.org", ""]
            {
                assert_eq!(ask(host, &[]), 403, "{host}");
            }
            assert_eq!(ask("127.0.0.1", &[("host", "evil.org")]), 403);
            let known = if access.has_secret() { 200 } else { 403 };
            assert_eq!(ask("balancer.LAN:8080", &[]), known);
            assert_eq!(asks(&access, Resource::Health, &[]), 200, "HTTP/1.0 needs no host");
            // A target in absolute form goes before the header.
            let mut headers = HeaderMap::new();
            headers.insert(HOST, "127.0.0.1".parse().unwrap());
            let uri = Uri::from_static("http://evil.org/registry/");
            let here = Ipv4Addr::LOCALHOST.into();
            let admitted = access.admit(Principal::Anyone, here, &uri, &headers, Resource::Health);
            assert_eq!(admitted.unwrap_err().kind, FailureKind::Forbidden);
        }
    }

    #[test]
    fn without_a_secret_what_is_internal_is_for_this_machine() {
        let uri = Uri::from_static("/internal/workers");
        for (peer, relayed, near) in [
            ("127.0.0.1", false, true),
            ("::1", false, true),
            ("::ffff:127.0.0.1", false, true),
            ("127.0.0.1", true, false),
            ("10.0.0.7", false, false),
            ("fe80::1", false, false),
        ] {
            let mut headers = HeaderMap::new();
            if relayed {
                headers.insert("x-forwarded-for", "127.0.0.1".parse().unwrap());
            }
            let ask = |access: &Access, resource| {
                let peer = peer.parse().unwrap();
                access.admit(Principal::Anyone, peer, &uri, &headers, resource)
            };
            let open = Access::default();
            assert_eq!(ask(&open, Resource::Internal).is_ok(), near, "{peer}");
            if let Err(failure) = ask(&open, Resource::Internal) {
                assert_eq!(failure.kind, FailureKind::NotFound);
            }
            for resource in [Resource::Call, Resource::Health, Resource::Control] {
                ask(&open, resource).unwrap();
            }
            // With one, it decides alone.
            let failure = ask(&with_secret(), Resource::Internal).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Unauthorized);
            let bearer = format!("Bearer {TEXT}").parse().unwrap();
            headers.insert(AUTHORIZATION, bearer);
            let peer = peer.parse().unwrap();
            with_secret()
                .admit(Principal::Anyone, peer, &uri, &headers, Resource::Internal)
                .unwrap();
        }
    }

    #[test]
    fn the_secret_goes_to_no_function() {
        let access = with_secret();
        for (value, stays) in [
            (format!("Bearer {TEXT}"), false),
            (format!("bearer  {TEXT} "), false),
            (TEXT.to_owned(), false),
            (format!("Token {TEXT}"), false),
            (format!("Bearer\t{TEXT}"), false),
            (format!("Bearer {TEXT}, Bearer other"), false),
            ("Bearer somebody's".to_owned(), true),
            ("Basic dTpw".to_owned(), true),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(AUTHORIZATION, value.parse().unwrap());
            headers.append("x-authorization", value.parse().unwrap());
            access.withhold(&mut headers);
            assert_eq!(headers.contains_key(AUTHORIZATION), stays, "{value}");
            assert_eq!(headers.contains_key("x-authorization"), stays, "{value}");
            Access::default().withhold(&mut headers);
            assert_eq!(headers.contains_key(AUTHORIZATION), stays, "{value}");
        }
    }

    #[test]
    fn hosts_are_names_with_or_without_a_port() {
        for text in ["balancer.lan", "balancer.lan:8080", "10.0.0.7", "[::1]:9000"] {
            let host: Host = text.parse().unwrap();
            assert_eq!(host.to_string(), text);
            assert_eq!(host.port().is_some(), text.ends_with('0'), "{text}");
        }
        for text in ["", ":80", "http://a", "a/b", "a@b", "a b", "a:port", "a:99999"] {
            let error = text.parse::<Host>().unwrap_err();
            assert!(error.ends_with("write NAME or NAME:PORT"), "{error}");
        }
    }
}
