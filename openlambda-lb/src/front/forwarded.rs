//! Where a request comes from, as far as that is known: [`TrustedProxies`].
//!
//! A proxy in front of the balancer says in a header whom it stands for: `X-Forwarded-For` and its kin, or
//! `Forwarded` (RFC 7239). Every client can write these headers as well. So they are believed of proxies
//! that the operator has named, and only as far as those have written them: each proxy appends to the list
//! what it saw itself, so the list is read from its end, and the first address that is no such proxy's is
//! the client's. Of everybody else they are replaced by what the connection says.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use bytes::Bytes;
use http::header::{FORWARDED, HOST, HeaderName, HeaderValue};
use http::{HeaderMap, header};
use ipnet::IpNet;
use openlambda_core::wire;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

static FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// The addresses of proxies: a network as `10.0.0.0/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        let told = format!("\"{text}\" is not a network; write an address, or 10.0.0.0/8");
        network.map(|network| Network(canonical(network))).map_err(|_| told)
    }
}

/// Addresses of IPv4 that are written as such of IPv6 (`::ffff:10.0.0.0/104`) are those of IPv4.
fn canonical(network: IpNet) -> IpNet {
    match (network.addr().to_canonical(), network.prefix_len().checked_sub(96)) {
        (IpAddr::V4(address), Some(prefix)) if matches!(network, IpNet::V6(_)) => {
            IpNet::new(address.into(), prefix).unwrap_or(network)
        }
        _ => network,
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(text: D) -> Result<Self, D::Error> {
        String::deserialize(text)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// The proxies whose word counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct TrustedProxies(Vec<Network>);

impl TrustedProxies {
    pub(crate) fn new(networks: Vec<Network>) -> Self {
        TrustedProxies(networks)
    }

    fn has(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// Where a request of `peer` comes from, by its headers as they came.
    pub(crate) fn origin(&self, headers: &HeaderMap, peer: SocketAddr) -> Origin {
        let peer = peer.ip().to_canonical();
        let trusted = self.has(peer);
        let told = if trusted { self.believe(headers) } else { Told::default() };
        Origin { peer, trusted, told }
    }

    /// What a proxy that is trusted says: in the `X-` headers, or else in `Forwarded`, or else in `X-Real-IP`.
    /// What it leaves to another of them may be its client's own words.
    fn believe(&self, headers: &HeaderMap) -> Told {
        if headers.contains_key(&FOR) {
            let chain = self.known(list(headers, &FOR).rev().map(address_of));
            let proto = list(headers, &PROTO).next_back().and_then(scheme);
            let host = list(headers, &FORWARDED_HOST).next_back();
            let host = host.and_then(|host| HeaderValue::from_bytes(host.trim_ascii()).ok());
            return Told { chain, proto, host };
        }
        if headers.contains_key(FORWARDED) {
            let mut elements: Vec<Element<'_>> = Vec::new();
            for value in headers.get_all(FORWARDED) {
                let parts = value.to_str().ok().and_then(|text| outside_of_quotes(text, ','));
                match parts {
                    Some(parts) => elements.extend(parts.into_iter().map(Element)),
                    // What came before cannot be told from what the client has made of it.
                    None => elements.clear(),
                }
            }
            let chain = self.known(
                elements.iter().rev().map(|element| address_of(element.get("for")?.as_bytes())),
            );
            // The last that counts is the one that names the client.
            let counts = elements.len().saturating_sub(chain.len().max(1));
            let proto =
                elements.get(counts).and_then(|element| scheme(element.get("proto")?.as_bytes()));
            return Told { chain, proto, host: None };
        }
        let mut told = headers.get_all(&REAL_IP).iter();
        let address = told.next().filter(|_| told.next().is_none());
        let chain = address.and_then(|address| address_of(address.as_bytes()));
        Told { chain: chain.into_iter().collect(), ..Told::default() }
    }

    /// Of addresses from the last to the first, those that are known: up to the first that is no trusted
    /// proxy's. What no proxy writes ends them, and so does one that hides its client.
    fn known(&self, addresses: impl Iterator<Item = Option<IpAddr>>) -> Vec<IpAddr> {
        let mut chain = Vec::new();
        for address in addresses {
            let Some(address) = address else { break };
            chain.push(address);
            if !self.has(address) {
                break;
            }
        }
        chain.reverse();
        chain
    }
}

/// Where a request comes from.
#[derive(Debug)]
pub(crate) struct Origin {
    /// The other end of the connection.
    peer: IpAddr,
    /// It is a proxy whose word counts.
    trusted: bool,
    told: Told,
}

impl Origin {
    /// The client's address.
    pub(crate) fn client(&self) -> IpAddr {
        self.told.chain.first().copied().unwrap_or(self.peer)
    }

    /// Makes the headers say that, and no more than is known: `x-forwarded-for` always, the others where the
    /// request had them. What else a trusted proxy says of itself (`x-forwarded-port`, `x-forwarded-user`)
    /// stays; of others it goes. Other names for the client (`true-client-ip`) always go: a proxy that does
    /// not know them passes on what its client has written.
    pub(crate) fn settle(self, headers: &mut HeaderMap) {
        let trusted = self.trusted;
        let goes = |name: &&HeaderName| match trusted {
            true => wire::tells_origin(name) && (is_settled(name) || !is_forwarded(name)),
            false => wire::tells_origin(name) || is_forwarded(name),
        };
        let said: Vec<HeaderName> = headers.keys().filter(goes).cloned().collect();
        if said.is_empty() {
            // As most requests come.
            headers.insert(&FOR, value(&[self.peer]));
            return;
        }
        let client = self.client();
        let Origin { peer, told: Told { mut chain, proto, host }, .. } = self;
        let had = [&PROTO, &FORWARDED_HOST, &REAL_IP, &FORWARDED].map(|name| said.contains(name));
        for name in said {
            headers.remove(name);
        }
        chain.push(peer);
        headers.insert(&FOR, value(&chain));
        let [had_proto, had_host, had_real_ip, had_forwarded] = had;
        if had_proto || proto.is_some() {
            headers.insert(&PROTO, HeaderValue::from_static(proto.unwrap_or("http")));
        }
        let host = host.or_else(|| headers.get(HOST).filter(|host| !host.is_empty()).cloned());
        if had_real_ip {
            headers.insert(&REAL_IP, value(&[client]));
        }
        if had_forwarded {
            let node = match client {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => format!("\"[{address}]\""),
            };
            let told = format!("for={node};proto={}", proto.unwrap_or("http"));
            let told = HeaderValue::try_from(told).expect("an address is text");
            headers.insert(header::FORWARDED, told);
        }
        if let Some(host) = host.filter(|_| had_host) {
            headers.insert(&FORWARDED_HOST, host);
        }
    }
}

/// Whether it is one of those that are written anew.
fn is_settled(name: &HeaderName) -> bool {
    [&FOR, &PROTO, &FORWARDED_HOST, &REAL_IP, &FORWARDED].contains(&name)
}

fn is_forwarded(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-forwarded-")
}

/// What is believed.
#[derive(Debug, Default)]
struct Told {
    /// The client, and the proxies that the request came through, but for the last.
    chain: Vec<IpAddr>,
    proto: Option<&'static str>,
    host: Option<HeaderValue>,
}

/// One proxy's part of `Forwarded`.
struct Element<'a>(&'a str);

impl<'a> Element<'a> {
    fn get(&self, key: &str) -> Option<&'a str> {
        outside_of_quotes(self.0, ';')?.into_iter().find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            name.trim().eq_ignore_ascii_case(key).then(|| value.trim())
        })
    }
}

/// The parts of a list that may be in several lines, whatever bytes they are.
fn list<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl DoubleEndedIterator<Item = &'a [u8]> {
    let lines = headers.get_all(name).iter();
    lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
}

/// The parts of a text between separators that are not quoted; `None` where a quote has no end.
fn outside_of_quotes(text: &str, separator: char) -> Option<Vec<&str>> {
    let (mut parts, mut begin, mut quoted) = (Vec::new(), 0, false);
    for (at, letter) in text.char_indices() {
        if letter == '"' {
            quoted = !quoted;
        } else if letter == separator && !quoted {
            parts.push(&text[begin..at]);
            begin = at + 1;
        }
    }
    parts.push(&text[begin..]);
    (!quoted && !text.contains('\\')).then_some(parts)
}

fn scheme(text: &[u8]) -> Option<&'static str> {
    let text = text.trim_ascii();
    ["http", "https"].into_iter().find(|known| known.as_bytes().eq_ignore_ascii_case(text))
}

/// The address in `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`, quoted or not.
fn address_of(node: &[u8]) -> Option<IpAddr> {
    let node = std::str::from_utf8(node).ok()?.trim().trim_matches('"');
    let bare = node.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(node);
    let address = bare.parse().ok().or_else(|| Some(node.parse::<SocketAddr>().ok()?.ip()));
    address.map(|address| address.to_canonical())
}

fn value(addresses: &[IpAddr]) -> HeaderValue {
    let mut text = String::with_capacity(48);
    for (number, address) in addresses.iter().enumerate() {
        text.push_str(if number > 0 { ", " } else { "" });
        let _ = write!(text, "{address}");
    }
    HeaderValue::from_maybe_shared(Bytes::from(text)).expect("an address is text")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The client, and the headers that a function sees, sorted.
    fn settled(trusted: &[&str], peer: &str, headers: &[(&'static str, &str)]) -> (String, String) {
        let trusted = trusted.iter().map(|text| text.parse().unwrap()).collect();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let peer = SocketAddr::new(peer.parse().unwrap(), 1234);
        let origin = TrustedProxies::new(trusted).origin(&map, peer);
        let client = origin.client();
        origin.settle(&mut map);
        let mut lines: Vec<String> = map
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        (client.to_string(), lines.join("\n"))
    }

    const LIES: [(&str, &str); 15] = [
        ("host", "function.example"),
        ("x-forwarded-for", "1.1.1.1"),
        ("x-forwarded-for", "2.2.2.2, 3.3.3.3"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "bank.example"),
        ("x-forwarded-port", "443"),
        ("forwarded", "for=4.4.4.4;proto=https"),
        ("x-real-ip", "5.5.5.5"),
        ("x-client-ip", "6.6.6.6"),
        ("true-client-ip", "7.7.7.7"),
        ("cf-connecting-ip", "8.8.8.8"),
        ("client-ip", "9.9.9.9"),
        ("x_forwarded_for", "1.2.3.4"),
        ("x-scheme", "https"),
        ("x-other", "kept"),
    ];

    #[test]
    fn what_a_client_says_of_itself_is_replaced_by_the_truth() {
        let truth = "forwarded: for=192.0.2.9;proto=http\nhost: function.example\n\
             x-forwarded-for: 192.0.2.9\nx-forwarded-host: function.example\n\
             x-forwarded-proto: http\nx-other: kept\nx-real-ip: 192.0.2.9";
        for trusted in [&[][..], &["10.0.0.0/8"], &["192.0.2.8", "::/0"]] {
            for peer in ["192.0.2.9", "::ffff:192.0.2.9"] {
                let (client, headers) = settled(trusted, peer, &LIES);
                assert_eq!((&*client, &*headers), ("192.0.2.9", truth), "{trusted:?} {peer}");
            }
        }
        let nothing = settled(&[], "2001:db8::1", &[]);
        assert_eq!(nothing, ("2001:db8::1".into(), "x-forwarded-for: 2001:db8::1".into()));
        let (_, headers) = settled(&[], "2001:db8::1", &[("forwarded", "for=_hidden")]);
        assert!(headers.starts_with("forwarded: for=\"[2001:db8::1]\";proto=http"), "{headers}");
    }

    #[test]
    fn a_proxy_that_is_named_is_believed_as_far_as_it_has_seen() {
        let chain = |headers: &[(&'static str, &str)]| {
            let (client, headers) = settled(&["10.0.0.0/8", "127.0.0.1"], "127.0.0.1", headers);
            let line = headers.lines().find_map(|line| line.strip_prefix("x-forwarded-for: "));
            (client, line.unwrap().to_owned())
        };
        for (told, client, kept) in [
            ("192.0.2.1", "192.0.2.1", "192.0.2.1, 127.0.0.1"),
            // The client has written the first itself.
            ("1.1.1.1, 192.0.2.1", "192.0.2.1", "192.0.2.1, 127.0.0.1"),
            ("1.1.1.1, 192.0.2.1, 10.1.1.1", "192.0.2.1", "192.0.2.1, 10.1.1.1, 127.0.0.1"),
            ("10.1.1.1, 10.2.2.2", "10.1.1.1", "10.1.1.1, 10.2.2.2, 127.0.0.1"),
            ("192.0.2.1:4711", "192.0.2.1", "192.0.2.1, 127.0.0.1"),
            ("[2001:db8::1]:80, 10.1.1.1", "2001:db8::1", "2001:db8::1, 10.1.1.1, 127.0.0.1"),
            ("unknown", "127.0.0.1", "127.0.0.1"),
            ("192.0.2.1, junk, 10.1.1.1", "10.1.1.1", "10.1.1.1, 127.0.0.1"),
            ("", "127.0.0.1", "127.0.0.1"),
        ] {
            let expected = (client.to_owned(), kept.to_owned());
            assert_eq!(chain(&[("x-forwarded-for", told)]), expected, "{told}");
        }
        for (told, client) in [
            ("for=192.0.2.1", "192.0.2.1"),
            ("For=\"[2001:db8::1]:4711\";proto=https", "2001:db8::1"),
            ("for=1.1.1.1, for=192.0.2.1;by=10.0.0.1, for=10.0.0.2", "192.0.2.1"),
            ("for=\"1,1\", for=192.0.2.1", "192.0.2.1"),
            // An open quote of the client's, at which the proxy has appended.
            ("for=6.6.6.6;host=\"x, for=192.0.2.1", "127.0.0.1"),
            ("for=6.6.6.6;host=\"x\\\", for=192.0.2.1", "127.0.0.1"),
            ("for=unknown", "127.0.0.1"),
        ] {
            assert_eq!(chain(&[("forwarded", told)]).0, client, "{told}");
        }
        assert_eq!(chain(&[("x-real-ip", "192.0.2.1")]).0, "192.0.2.1");
        // One that the proxy writes counts, and no other beside it.
        for other in [("forwarded", "for=6.6.6.6;proto=https"), ("x-real-ip", "6.6.6.6")] {
            assert_eq!(chain(&[("x-forwarded-for", "192.0.2.1"), other]).0, "192.0.2.1");
            assert_eq!(chain(&[("x-forwarded-for", "junk"), other]).0, "127.0.0.1");
        }
        assert_eq!(chain(&[("x-real-ip", "192.0.2.1"), ("x-real-ip", "6.6.6.6")]).0, "127.0.0.1");
        let mut bytes = HeaderMap::new();
        bytes.insert(&FOR, HeaderValue::from_bytes(b"\xff, 192.0.2.1").unwrap());
        let proxies = TrustedProxies::new(vec!["127.0.0.1".parse().unwrap()]);
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(proxies.origin(&bytes, peer).client().to_string(), "192.0.2.1");
    }

    #[test]
    fn its_scheme_and_host_are_believed_too() {
        let seen =
            |headers: &[(&'static str, &str)]| settled(&["127.0.0.1"], "127.0.0.1", headers).1;
        let told = seen(&[
            ("host", "inner"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "HTTPS"),
            ("x-forwarded-host", "shop.example"),
        ]);
        assert!(
            told.contains("x-forwarded-proto: https\n")
                || told.ends_with("x-forwarded-proto: https")
        );
        assert!(told.contains("x-forwarded-host: shop.example"), "{told}");
        let told = seen(&[("forwarded", "for=192.0.2.1;proto=https;host=shop.example")]);
        assert!(told.contains("forwarded: for=192.0.2.1;proto=https"), "{told}");
        assert!(told.contains("x-forwarded-proto: https"), "{told}");
        for lies in [
            &[("x-forwarded-for", "192.0.2.1"), ("x-forwarded-proto", "gopher")][..],
            &[("x-forwarded-for", "192.0.2.1"), ("forwarded", "for=192.0.2.1;proto=https")],
            &[
                ("forwarded", "for=6.6.6.6;proto=https, for=192.0.2.1"),
                ("x-forwarded-proto", "https"),
            ],
            &[("x-real-ip", "192.0.2.1"), ("x-forwarded-proto", "https")],
        ] {
            let told = seen(lies);
            assert!(!told.contains("https"), "{told}");
        }
    }

    /// A proxy that asks for a login tells who it was; a client that claims it does not.
    #[test]
    fn what_else_a_proxy_says_stays_and_of_others_it_goes() {
        let told = [("x-forwarded-user", "ann"), ("x-forwarded-port", "443"), ("cf-ray", "1")];
        let passed_on = [("true-client-ip", "6.6.6.6"), ("cf-connecting-ip", "6.6.6.6")];
        let (_, headers) = settled(&["127.0.0.1"], "127.0.0.1", &[&told[..], &passed_on].concat());
        assert!(!headers.contains("6.6.6.6"), "{headers}");
        for line in ["x-forwarded-user: ann", "x-forwarded-port: 443", "cf-ray: 1"] {
            assert!(headers.contains(line), "{headers}");
        }
        let (_, headers) = settled(&[], "127.0.0.1", &told);
        assert_eq!(headers, "cf-ray: 1\nx-forwarded-for: 127.0.0.1");
    }

    #[test]
    fn networks_are_read_as_they_are_written() {
        for text in ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32"] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
        for text in ["192.0.2.1", "::ffff:192.0.2.1"] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), "192.0.2.1/32");
        }
        assert_eq!("::ffff:10.0.0.0/104".parse::<Network>().unwrap().to_string(), "10.0.0.0/8");
        for text in ["", "10.0.0.0/33", "proxy.lan", "10.0.0"] {
            let error = text.parse::<Network>().unwrap_err();
            assert!(error.contains("write an address, or 10.0.0.0/8"), "{error}");
        }
    }
}
