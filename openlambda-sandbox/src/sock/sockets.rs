//! What waits in the sockets of a sandbox with a network of its own, seen from outside.
//!
//! The kernel tells how many sockets there are in a network (`/proc/<pid>/net/sockstat`), those that are
//! closed or on their way from process to process among them, and of each that is open how much memory
//! it has (sock_diag(7), netlink's in `/proc/<pid>/net/netlink`). What a closed one has sent and nobody
//! has read is told by nobody, so it counts for as much as it can be.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::sys::nursery::NetworkNamespace;

/// The sockets of one sandbox.
#[derive(Debug)]
pub(super) struct Sockets {
    /// The sandbox's first process.
    pid: i32,
    /// Its network, which it is in soon.
    network: u64,
    /// Asks about the sockets there, where all of them are to be counted. Who has it keeps the network.
    diag: Option<OwnedFd>,
    /// Somebody outside of the sandbox can be at the other end.
    reached: bool,
}

impl Sockets {
    pub(super) fn of(
        pid: i32,
        network: &NetworkNamespace,
        counts_all: bool,
        reached: bool,
    ) -> io::Result<Self> {
        let diag = if counts_all { Some(network.diag.try_clone()?) } else { None };
        let network = rustix::fs::fstat(&network.namespace)?.st_ino;
        Ok(Sockets { pid, network, diag, reached })
    }

    /// Whether somebody outside of the sandbox can be at the other end.
    pub(super) fn are_reached(&self) -> bool {
        self.reached
    }

    /// How many there are.
    fn count(&self) -> u64 {
        number_behind(&self.read("sockstat"), "sockets: used ")
    }

    /// How many of them are of TCP.
    fn count_tcp(&self) -> u64 {
        let four = number_behind(&self.read("sockstat"), "TCP: inuse ");
        four + number_behind(&self.read("sockstat6"), "TCP6: inuse ")
    }

    /// No fewer bytes than wait in all of them: found with as little work as shows that they are no more
    /// than this, if they are not.
    pub(super) fn at_most(&self, room: u64) -> u64 {
        let (all, tcp) = (self.count(), self.count_tcp());
        let others = all.saturating_sub(tcp) * most_of_one();
        let of_tcp = if self.reached || settings_are_read_only() {
            // The kernel lets buffers of TCP grow while their readers are fast, and leaves them large.
            most_of_tcp()
        } else {
            // The nursery has told the network so.
            most_of_one()
        };
        let upper = others + tcp * of_tcp;
        if upper <= room || tcp == 0 {
            return upper;
        }
        let (mut bytes, mut seen) = (0, 0);
        for family in [AF_INET, AF_INET6] {
            self.ask(&inet(family, TCP), &mut bytes, &mut seen);
        }
        others + bytes + tcp.saturating_sub(seen) * of_tcp
    }

    /// Adds what waits in sockets of one kind, and how many these are. What this kernel cannot tell is not
    /// seen.
    fn ask(&self, request: &Request, bytes: &mut u64, seen: &mut u64) {
        let Some(diag) = &self.diag else { return };
        let _ = ask(diag.as_fd(), request, |memory| {
            let [received, _, sent, _, ahead, queued, ..] = *memory else { return };
            *seen += 1;
            *bytes += u64::from(received) + u64::from(sent.max(queued)) + u64::from(ahead);
        });
    }

    /// Bytes that wait in those of netlink, and how many those are. No cgroup counts these.
    pub(super) fn netlink(&self) -> (u64, u64) {
        // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
        let text = self.read("netlink");
        let bytes = text.lines().skip(1).map(|line| {
            let mut sizes = line.split_ascii_whitespace().skip(4).map(str::parse::<u64>);
            let mut next = || sizes.next().and_then(Result::ok).unwrap_or(0);
            next() + next()
        });
        bytes.fold((0, 0), |(sum, count), bytes| (sum + bytes, count + 1))
    }

    /// Bytes that wait in all of them.
    pub(super) fn bytes(&self) -> u64 {
        let (mut bytes, mut seen) = self.netlink();
        for request in
            [UNIX, inet(AF_INET, TCP), inet(AF_INET6, TCP), inet(AF_INET, UDP), inet(AF_INET6, UDP)]
        {
            self.ask(&request, &mut bytes, &mut seen);
        }
        // What is not seen counts in full.
        bytes + self.count().saturating_sub(seen) * most_of_one()
    }

    /// A file about its network; nothing while the process is in another, as at its very start.
    fn read(&self, file: &str) -> String {
        let place = fs::metadata(format!("/proc/{}/ns/net", self.pid));
        if !place.is_ok_and(|place| place.ino() == self.network) {
            return String::new();
        }
        fs::read_to_string(format!("/proc/{}/net/{file}", self.pid)).unwrap_or_default()
    }
}

/// The number that follows such words at the start of a line; 0, where there is none.
fn number_behind(text: &str, words: &str) -> u64 {
    let rest = text.lines().find_map(|line| line.strip_prefix(words));
    let word = rest.and_then(|rest| rest.split_ascii_whitespace().next());
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Then the nursery could not tell a network how large buffers may grow.
fn settings_are_read_only() -> bool {
    static ARE: OnceLock<bool> = OnceLock::new();
    *ARE.get_or_init(|| {
        let place = rustix::fs::statvfs("/proc/sys");
        place.is_ok_and(|place| place.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
    })
}

/// The most bytes that one of TCP has, by the settings that new networks begin with.
fn most_of_tcp() -> u64 {
    static MOST: OnceLock<u64> = OnceLock::new();
    *MOST.get_or_init(|| {
        let most = |name: &str| {
            let text = fs::read_to_string(format!("/proc/sys/net/ipv4/{name}"));
            let last = text.ok().and_then(|text| text.split_whitespace().last()?.parse().ok());
            last.unwrap_or(32 << 20)
        };
        most("tcp_rmem") + most("tcp_wmem")
    })
}

/// The most bytes that one of the others has: what it has sent and what it has got. The filter lets nobody
/// change the sizes.
fn most_of_one() -> u64 {
    static MOST: OnceLock<u64> = OnceLock::new();
    *MOST.get_or_init(|| {
        let size = |name: &str| {
            let text = fs::read_to_string(format!("/proc/sys/net/core/{name}_default"));
            text.ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(212_992)
        };
        size("rmem") + size("wmem")
    })
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A question about all sockets of a family, by linux/sock_diag.h.
struct Request {
    /// What comes behind the header.
    body: [u8; 56],
    length: usize,
    /// How long the part of an answer is that comes before its attributes.
    fixed: usize,
    /// The attribute that holds the socket's memory, `SK_MEMINFO_…`.
    memory: u16,
}

/// `struct unix_diag_req`: family, states, what to show (`UDIAG_SHOW_MEMINFO`).
const UNIX: Request = {
    let mut body = [0; 56];
    body[0] = 1;
    (body[4], body[5], body[6], body[7]) = (0xff, 0xff, 0xff, 0xff);
    body[12] = 0x20;
    Request { body, length: 24, fixed: 16, memory: 5 }
};

/// `struct inet_diag_req_v2`: family, protocol, attributes (`INET_DIAG_SKMEMINFO`), states.
const fn inet(family: u8, protocol: u8) -> Request {
    let mut body = [0; 56];
    (body[0], body[1], body[2]) = (family, protocol, 1 << (7 - 1));
    (body[4], body[5], body[6], body[7]) = (0xff, 0xff, 0xff, 0xff);
    Request { body, length: 56, fixed: 72, memory: 7 }
}

/// Asks, and reads the answers to the end.
fn ask(diag: BorrowedFd<'_>, request: &Request, mut each: impl FnMut(&[u32])) -> io::Result<()> {
    const BY_FAMILY: u16 = 20;
    const REQUEST_DUMP: u16 = 0x301;
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    // struct nlmsghdr: length, type, flags, number, sender.
    let mut message = Vec::with_capacity(16 + request.length);
    message.extend_from_slice(&(16 + request.length as u32).to_ne_bytes());
    message.extend_from_slice(&BY_FAMILY.to_ne_bytes());
    message.extend_from_slice(&REQUEST_DUMP.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&request.body[..request.length]);
    send(diag, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    let mut buffer = vec![0; 32 << 10];
    loop {
        let length = recv(diag, &mut buffer[..], RecvFlags::DONTWAIT)?.0;
        let mut rest = &buffer[..length];
        if rest.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while let Some((answer, after)) = part(rest, |header| number(header, 0), 16) {
            rest = after;
            match number(answer, 4) & 0xffff {
                kind if kind == u32::from(DONE) => return Ok(()),
                kind if kind == u32::from(ERROR) => return Err(io::ErrorKind::Unsupported.into()),
                _ => {}
            }
            let mut attributes = answer.get(16 + request.fixed..).unwrap_or_default();
            // struct nlattr: length, type.
            while let Some((attribute, after)) =
                part(attributes, |header| number(header, 0) & 0xffff, 4)
            {
                attributes = after;
                if number(attribute, 0) >> 16 == u32::from(request.memory) {
                    let sizes: Vec<u32> = attribute[4..]
                        .as_chunks()
                        .0
                        .iter()
                        .copied()
                        .map(u32::from_ne_bytes)
                        .collect();
                    each(&sizes);
                }
            }
        }
    }
}

/// The first of several parts that each begin with a header, which tells their length, and the rest.
fn part(bytes: &[u8], length: impl Fn(&[u8]) -> u32, header: usize) -> Option<(&[u8], &[u8])> {
    if bytes.len() < header {
        return None;
    }
    let length = length(bytes) as usize;
    let part = bytes.get(..length).filter(|_| length >= header)?;
    Some((part, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// Four bytes as a number of this machine; on a little-endian one the lower half comes first.
fn number(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.first_chunk());
    u32::from_ne_bytes(bytes.copied().unwrap_or_default())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink as protocols, socket_with};
    use std::io::Write;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;

    fn seen(request: &Request) -> (u64, u64) {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        let diag =
            socket_with(family, kind, SocketFlags::CLOEXEC, Some(protocols::SOCK_DIAG)).unwrap();
        let (mut count, mut bytes) = (0, 0);
        ask(diag.as_fd(), request, |memory| {
            count += 1;
            bytes += u64::from(memory[0]) + u64::from(memory[2].max(memory[5]));
        })
        .unwrap();
        (count, bytes)
    }

    /// Others of this machine have sockets, too: there is at least what is our own.
    #[test]
    fn what_waits_in_each_kind_of_socket_is_seen() {
        let (mut one, _other) = UnixStream::pair().unwrap();
        one.write_all(&[0; 100_000]).unwrap();
        let (count, bytes) = seen(&UNIX);
        assert!(count >= 2 && bytes >= 100_000, "{count} {bytes}");
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        stream.write_all(&[0; 50_000]).unwrap();
        let (count, bytes) = seen(&inet(AF_INET, TCP));
        assert!(count >= 3 && bytes >= 50_000, "{count} {bytes}");
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        to.send_to(&[0; 30_000], to.local_addr().unwrap()).unwrap();
        let (count, bytes) = seen(&inet(AF_INET, UDP));
        assert!(count >= 1 && bytes >= 30_000, "{count} {bytes}");
        assert!(most_of_one() > 1 << 16);
    }
}
