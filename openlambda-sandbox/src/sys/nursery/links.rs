//! Pairs of virtual network devices, made over rtnetlink (rtnetlink(7)).
//!
//! ```text
//! machine's namespace                      sandbox's namespace
//!   <name>  10.213.0.0/31  ◀── a pair ──▶  eth0  10.213.0.1/31, default route via 10.213.0.0
//! ```
//!
//! Each end disappears with the other, and both with the sandbox's namespace.

use std::os::fd::{AsRawFd, OwnedFd};

use super::c;
use super::message::Link;

/// What the device is called in a sandbox.
const INSIDE: &str = "eth0";

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const EXCL_CREATE: u16 = 0x200 | 0x400;

const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_GATEWAY: u16 = 5;

const AF_INET: u8 = 2;
const AF_INET6: u16 = 10;

/// A request as it is written; lengths are filled in when it is sent.
struct Message(Vec<u8>);

impl Message {
    /// Header and the fixed part of its kind.
    fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut message = vec![0; 4];
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(fixed);
        Message(message)
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |message| message.0.extend_from_slice(value));
    }

    /// An attribute that holds what `fill` writes.
    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Sends it and returns the kernel's answer without its header.
    fn ask(mut self, socket: &OwnedFd) -> Result<Vec<u8>, i32> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        c::send(socket.as_raw_fd(), &self.0, &[])?;
        let mut answer = vec![0; 32 << 10];
        let (length, _) = c::receive(socket.as_raw_fd(), &mut answer)?;
        answer.truncate(length);
        let kind = answer.get(4..6).ok_or(c::EIO)?;
        let is_error = kind == NLMSG_ERROR.to_ne_bytes();
        let body = answer.get(16..).ok_or(c::EIO)?.to_vec();
        if is_error {
            let errno = body.first_chunk().ok_or(c::EIO)?;
            match i32::from_ne_bytes(*errno) {
                0 => {}
                errno => return Err(-errno),
            }
        }
        Ok(body)
    }
}

/// `struct ifinfomsg`: family, type, index, flags, which flags are meant.
fn device(index: i32, up: bool) -> [u8; 16] {
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    (fixed[8], fixed[12]) = (u8::from(up), u8::from(up));
    fixed
}

fn name(message: &mut Message, name: &str) {
    message.attribute(IFLA_IFNAME, format!("{name}\0").as_bytes());
}

/// Makes a pair: one end where the socket `machine` is, the other, `eth0`, in `namespace`, where the
/// socket `own` is. Both are up, without addresses of IPv6.
pub(crate) fn connect(
    machine: &OwnedFd,
    own: &OwnedFd,
    namespace: &OwnedFd,
    link: &Link,
) -> Result<(), (&'static str, i32)> {
    make_pair(machine, namespace, &link.name).map_err(|e| ("make a network device", e))?;
    let ends = [(machine, &*link.name, link.machine), (own, INSIDE, link.sandbox)];
    for (socket, name, address) in ends {
        let index = index_of(socket, name).map_err(|e| ("find a network device", e))?;
        bring_up(socket, index).map_err(|e| ("bring a network device up", e))?;
        add_address(socket, index, address).map_err(|e| ("give an address", e))?;
    }
    add_default_route(own, link.machine).map_err(|e| ("add a route", e))
}

fn make_pair(machine: &OwnedFd, namespace: &OwnedFd, outside: &str) -> Result<(), i32> {
    let mut message = Message::new(RTM_NEWLINK, ACK | EXCL_CREATE, &device(0, false));
    name(&mut message, outside);
    message.nested(IFLA_LINKINFO, |message| {
        message.attribute(IFLA_INFO_KIND, b"veth");
        message.nested(IFLA_INFO_DATA, |message| {
            message.nested(VETH_INFO_PEER, |message| {
                message.0.extend_from_slice(&device(0, false));
                name(message, INSIDE);
                message.attribute(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
            });
        });
    });
    message.ask(machine).map(drop)
}

fn index_of(socket: &OwnedFd, wanted: &str) -> Result<i32, i32> {
    let mut message = Message::new(RTM_GETLINK, 0, &device(0, false));
    name(&mut message, wanted);
    let answer = message.ask(socket)?;
    let index = answer.get(4..8).and_then(|bytes| bytes.first_chunk()).ok_or(c::EIO)?;
    Ok(i32::from_ne_bytes(*index))
}

fn bring_up(socket: &OwnedFd, index: i32) -> Result<(), i32> {
    let mut message = Message::new(RTM_SETLINK, ACK, &device(index, true));
    message.nested(IFLA_AF_SPEC, |message| {
        const NONE: u8 = 1;
        let mode = |message: &mut Message| message.attribute(IFLA_INET6_ADDR_GEN_MODE, &[NONE]);
        message.nested(AF_INET6, mode);
    });
    match message.ask(socket) {
        // A kernel without IPv6, or one that was told to do without.
        Err(c::EAFNOSUPPORT) => {
            Message::new(RTM_SETLINK, ACK, &device(index, true)).ask(socket).map(drop)
        }
        result => result.map(drop),
    }
}

fn add_address(socket: &OwnedFd, index: i32, address: [u8; 4]) -> Result<(), i32> {
    // struct ifaddrmsg: family, length of the prefix, flags, scope, index.
    let mut fixed = [AF_INET, 31, 0, 0, 0, 0, 0, 0];
    fixed[4..].copy_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(RTM_NEWADDR, ACK | EXCL_CREATE, &fixed);
    message.attribute(IFA_LOCAL, &address);
    message.attribute(IFA_ADDRESS, &address);
    message.ask(socket).map(drop)
}

fn add_default_route(socket: &OwnedFd, gateway: [u8; 4]) -> Result<(), i32> {
    const MAIN: u8 = 254;
    const STATIC: u8 = 4;
    const UNICAST: u8 = 1;
    // struct rtmsg: family, lengths of the prefixes, service, table, protocol, scope, type, flags.
    let fixed = [AF_INET, 0, 0, 0, MAIN, STATIC, 0, UNICAST, 0, 0, 0, 0];
    let mut message = Message::new(RTM_NEWROUTE, ACK | EXCL_CREATE, &fixed);
    message.attribute(RTA_GATEWAY, &gateway);
    message.ask(socket).map(drop)
}
