//! Where a server is reached: [`Place`].

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use super::Host;

/// Where a client has connected to, as the kernel says it. Both ends of a handshake name it, so that nobody
/// passes for a server by handing on to it what comes in elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// An address and a port.
    Tcp(SocketAddr),
    /// The [local](crate::serving::local) socket beside this port.
    Local(u16),
}

impl From<SocketAddr> for Place {
    fn from(address: SocketAddr) -> Self {
        // Not the scope of an IPv6 address, which the two ends number by themselves.
        Place::Tcp(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Tcp(address) => address.fmt(f),
            Place::Local(port) => write!(f, "local:{port}"),
        }
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.strip_prefix("local:") {
            Some(port) => port.parse().map(Place::Local).map_err(drop),
            None => text.parse::<SocketAddr>().map(Place::from).map_err(drop),
        }
    }
}

/// The places at which a server answers.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// Where this connection has come in.
    pub(crate) here: Option<Place>,
    /// Names with a port, of what hands connections on to it.
    pub(crate) forwarded: Arc<[Host]>,
}

impl Places {
    /// Whether a client that has connected to `place`, by this name, means this server.
    pub(super) fn has(&self, place: Place, name: &str) -> bool {
        if self.here == Some(place) {
            return true;
        }
        let Place::Tcp(address) = place else { return false };
        let forwards = |host: &Host| {
            let by_name = name.parse().is_ok_and(|named: Host| named == *host);
            let bare = host.name().trim_matches(['[', ']']);
            let by_address =
                bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical() == address.ip());
            by_name || (by_address && host.port() == Some(address.port()))
        };
        self.forwarded.iter().filter(|host| host.port().is_some()).any(forwards)
    }
}
