//! Who is at the other end: how the processes of one cluster know each other, and what strangers may.
//!
//! A cluster has a [`Secret`]. Its daemons and `ol` prove to each other that they know it, without sending
//! it; the secret itself is for tools that cannot do that.
//!
//! ```text
//!  a daemon, ol ── handshake, once per connection ──▶┐
//!  the same user ── a Unix socket in a folder ──────▶│ Principal ─▶ Access: may it have this?
//!  curl, Prometheus ── authorization: Bearer … ─────▶│
//!  everybody else ──────────────────────────────────▶┘
//! ```
//!
//! A [`Door`](super::Door) with a secret learns the [`Principal`] of each connection, and [`Access`] is the
//! one place that is asked what a request may have. Where there is no secret, as in programs that embed a
//! cluster, nobody is asked for one.
//!
//! # The handshake
//!
//! It comes before HTTP, of whatever version, and is lines of text:
//!
//! ```text
//!  client                                                server
//!  openlambda/1 <nonce C> <place> <name> ─────────────▶
//!                                ◀───────────────────── openlambda/1 <nonce S> <proof of the server>
//!  openlambda/1 <proof of the client> ────────────────▶ HTTP from here on
//! ```
//!
//! A nonce is 16 random bytes, a proof the HMAC-SHA-256 (RFC 2104) by the secret of the side's name, both
//! nonces, the place and the name; in hexadecimal. The server proves itself first: a stranger who has taken the
//! port of a daemon that died learns nothing. The [place](Place) is the address and port that the client has
//! connected to, and a server refuses all others than those of the connection itself, and than those that
//! its operator has named because something forwards them: so nobody passes for a daemon by handing
//! everything on to another.
//!
//! What is sent is not encrypted. Whoever can read and change the traffic between two machines can do so
//! after the handshake, too: keep a cluster's own network apart.

mod access;
mod handshake;
mod place;
mod principal;
mod secret;

pub use self::access::{Access, Host, Resource};
pub(crate) use self::handshake::Greeting;
pub use self::handshake::prove;
pub use self::place::Place;
pub(crate) use self::place::Places;
pub use self::principal::{Identity, Principal};
pub use self::secret::{Secret, SecretError};
