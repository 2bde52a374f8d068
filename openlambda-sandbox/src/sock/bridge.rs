//! Networks for sandboxes that may reach other machines: `network = "bridge"`.
//!
//! ```text
//! sandbox: eth0 ── a pair of devices ── ol<block>-<n> : machine ── masquerade ──▶ world
//!                                             │
//!                                             ✗ the machine's own addresses, published ports
//!                                             ✗ other sandboxes, containers, 169.254/16
//! ```
//!
//! Each sandbox shares a /31 with the machine, which routes. One table of nftables says what may pass. It
//! bears the worker's mark as its name, and is made and removed in one transaction each. Nothing else
//! stays on the machine when a worker is killed: the devices go with the sandboxes' namespaces, the claim
//! of a block of addresses with the worker's socket, and the table with [`remove_rules`], at the next
//! start.
//!
//! A network is used by one sandbox only, and its addresses are used again after all others of the block,
//! so packets that are still sent to the last sandbox reach no other.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use openlambda_core::sandbox::{Report, SandboxError, SandboxErrorKind};
use parking_lot::Mutex;

use crate::sys::nursery::Link;

/// The addresses of one worker's sandboxes: a /20.
const BLOCK_BITS: u32 = 12;
/// Sandboxes with a bridged network at once: each takes two addresses.
const PAIRS: u32 = 1 << (BLOCK_BITS - 1);
/// What names of tables and comments of rules begin with; the worker's mark follows.
const PREFIX: &str = "openlambda/";

/// The bridged networks of one factory. Drop removes its rules.
#[derive(Debug)]
pub(super) struct Bridge {
    mark: String,
    block: Block,
    pairs: Mutex<Pairs>,
    /// Says to other workers whose block it is, for as long as we live.
    _claim: UnixListener,
}

/// Which pairs of addresses are in use.
#[derive(Debug)]
struct Pairs {
    next: u32,
    used: BTreeSet<u32>,
}

/// A pair of addresses and the device's name; free again on Drop.
#[derive(Debug)]
pub(super) struct Lease {
    bridge: Arc<Bridge>,
    pair: u32,
}

/// A worker's part of the range.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Block {
    number: u32,
    first: Ipv4Addr,
}

impl Bridge {
    /// Whether this machine can have them.
    ///
    /// # Errors
    ///
    /// Why not, and what to do.
    pub(super) fn check() -> Result<(), String> {
        if !rustix::process::geteuid().is_root() {
            return Err("only root may connect a sandbox's network with the machine's; run the \
                        worker as root"
                .to_owned());
        }
        run("nft", ["list", "tables"]).map(drop)
    }

    /// Claims a block of addresses in `range` and writes the rules. Blocks for some milliseconds.
    ///
    /// # Errors
    ///
    /// What the machine does not allow, and what to do.
    pub(super) fn open(mark: &str, range: (Ipv4Addr, u8)) -> Result<Bridge, SandboxError> {
        let opened = Bridge::check().and_then(|()| {
            let (block, claim) = claim(range)?;
            allow_forwarding()?;
            let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
            run("nft", [rules(mark, range, block, &uplinks(&routes))])?;
            // It starts anywhere: devices of a worker that was killed may be there for a moment.
            let next = std::process::id() % PAIRS;
            let pairs = Mutex::new(Pairs { next, used: BTreeSet::new() });
            let bridge = Bridge { mark: mark.to_owned(), block, pairs, _claim: claim };
            pass_a_closed_firewall(mark, block)?;
            Ok(bridge)
        });
        opened.map_err(|why| {
            let message = format!(
                "no bridged network can be made: {why}; or set network = \"none\" or \"host\" in \
                 ol.toml"
            );
            SandboxError::new(SandboxErrorKind::Resources, message)
        })
    }

    /// A pair of addresses that has not been used for as long as may be. `None`: all are in use.
    pub(super) fn lease(self: &Arc<Self>) -> Option<Lease> {
        let mut pairs = self.pairs.lock();
        for _ in 0..PAIRS {
            let pair = pairs.next;
            pairs.next = (pair + 1) % PAIRS;
            if pairs.used.insert(pair) {
                return Some(Lease { bridge: Arc::clone(self), pair });
            }
        }
        None
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let mut report = Report::default();
        remove_named(|mark| mark == self.mark, &mut report);
        for failed in report.failed {
            tracing::warn!(%failed, "cannot remove a bridged network's rules");
        }
    }
}

impl Lease {
    /// What the kernel is asked for.
    pub(super) fn link(&self) -> Link {
        let Block { number, first } = self.bridge.block;
        let machine = first.to_bits() + 2 * self.pair;
        Link {
            name: format!("{}{}", device_prefix(number), self.pair),
            machine: machine.into(),
            sandbox: (machine + 1).into(),
        }
    }

    /// Has the machine take nothing from the device but what bears the sandbox's address. A sandbox
    /// has no right to send anything else, so this is a second lock on the same door.
    pub(super) fn protect(&self) {
        let name = self.link().name;
        let _ = fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "1");
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.bridge.pairs.lock().used.remove(&self.pair);
    }
}

fn device_prefix(block: u32) -> String {
    format!("ol{block}-")
}

/// The first block that no other worker has and that no route of the machine leads to.
fn claim((network, prefix): (Ipv4Addr, u8)) -> Result<(Block, UnixListener), String> {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    for number in 0..1 << (32 - BLOCK_BITS - u32::from(prefix)) {
        let block = Block { number, first: (network.to_bits() + (number << BLOCK_BITS)).into() };
        if overlaps(&routes, block) {
            continue;
        }
        // An abstract name belongs to this network, and is free again when its owner is gone.
        let name = format!("openlambda-network/{}", block.first);
        let address = SocketAddr::from_abstract_name(name).map_err(|error| error.to_string())?;
        match UnixListener::bind_addr(&address) {
            Ok(claim) => return Ok((block, claim)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(format!("a block of addresses cannot be claimed ({error})")),
        }
    }
    Err(format!(
        "all addresses of {network}/{prefix} are taken by other workers or lie where routes of this \
         machine lead; name another range, OPENLAMBDA_BRIDGE_RANGE=10.99.0.0/16"
    ))
}

/// The lines of `/proc/net/route`: device, destination, mask.
fn routes_of(routes: &str) -> impl Iterator<Item = (&str, u32, u32)> {
    routes.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |field: usize| u32::from_str_radix(fields.get(field)?, 16).ok();
        Some((*fields.first()?, u32::from_be(number(1)?), u32::from_be(number(7)?)))
    })
}

fn overlaps(routes: &str, block: Block) -> bool {
    routes_of(routes).any(|(device, destination, mask)| {
        let both = mask & (u32::MAX << BLOCK_BITS);
        // Ours: of a worker that has just gone.
        let is_ours = device.starts_with(&device_prefix(block.number));
        mask != 0 && !is_ours && destination & both == block.first.to_bits() & both
    })
}

/// The devices that lead to the world.
fn uplinks(routes: &str) -> BTreeSet<String> {
    let default =
        routes_of(routes).filter(|(_, destination, mask)| (*destination, *mask) == (0, 0));
    default.map(|(device, ..)| device.to_owned()).collect()
}

fn allow_forwarding() -> Result<(), String> {
    const PLACE: &str = "/proc/sys/net/ipv4/ip_forward";
    if fs::read_to_string(PLACE).is_ok_and(|set| set.trim() == "1") {
        return Ok(());
    }
    tracing::info!("bridged networks: this machine forwards packets from now on ({PLACE} = 1)");
    fs::write(PLACE, "1").map_err(|error| {
        format!(
            "this machine does not forward packets ({error}); run sysctl -w net.ipv4.ip_forward=1"
        )
    })
}

/// The table, made anew whatever was there.
fn rules(
    mark: &str,
    (network, bits): (Ipv4Addr, u8),
    block: Block,
    up: &BTreeSet<String>,
) -> String {
    let table = format!("inet {PREFIX}{mark}");
    let (ours, own) = (device_prefix(block.number), block.first);
    let own_bits = 32 - BLOCK_BITS;
    // A device called "any\" would end the text early; the kernel's names hold neither / nor space.
    let up: Vec<_> = up.iter().filter(|name| !name.contains(['"', '\\'])).collect();
    let but_uplinks = match &up[..] {
        [] => String::new(),
        up => format!(
            " oifname != {{ {} }}",
            up.iter().map(|d| format!("\"{d}\"")).collect::<Vec<_>>().join(", ")
        ),
    };
    format!(
        "add table {table}
delete table {table}
table {table} {{
    # To the machine itself, at whichever of its addresses.
    chain input {{
        type filter hook input priority -10; policy accept;
        iifname \"{ours}*\" drop
    }}
    chain forward {{
        type filter hook forward priority -10; policy accept;
        iifname \"{ours}*\" jump out
        oifname \"{ours}*\" ct state established,related accept
        oifname \"{ours}*\" drop
    }}
    chain out {{
        meta nfproto != ipv4 drop
        ip saddr != {own}/{own_bits} drop
        # Other sandboxes, those of other workers too; cloud metadata; groups.
        ip daddr {{ {network}/{bits}, 169.254.0.0/16, 224.0.0.0/4 }} drop
        # Ports that the machine publishes for others, and the others themselves.
        ct status dnat drop
        meta oifkind \"bridge\"{but_uplinks} drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {own}/{own_bits} masquerade
    }}
}}
"
    )
}

/// Docker's engine, for one, sets the policy of the older tables' FORWARD to DROP, and what one table
/// accepts another can still drop. Behind all rules that are there, ours let through what our own
/// table has let through.
fn pass_a_closed_firewall(mark: &str, block: Block) -> Result<(), String> {
    let Ok(chain) = run("iptables", ["--wait", "--list-rules", "FORWARD"]) else { return Ok(()) };
    if !chain.lines().any(|line| line == "-P FORWARD DROP") {
        return Ok(());
    }
    let (device, comment) =
        (format!("{}+", device_prefix(block.number)), format!("{PREFIX}{mark}"));
    let out: &[&str] = &["--in-interface", &device];
    let back: &[&str] =
        &["--out-interface", &device, "--match", "conntrack", "--ctstate", "RELATED,ESTABLISHED"];
    for which in [out, back] {
        let rule = ["--wait", "--append", "FORWARD"].iter().chain(which).copied();
        let rest = ["--match", "comment", "--comment", &comment, "--jump", "ACCEPT"];
        run("iptables", rule.chain(rest)).map_err(|why| {
            format!(
                "this machine's firewall drops what is forwarded and takes no rule for sandboxes \
                 ({why}); let packets from and to the devices {device} pass its FORWARD chain"
            )
        })?;
    }
    Ok(())
}

/// Removes the rules of factories whose marks are `mark` or begin with `mark/`.
pub(super) fn remove_rules(mark: &str, report: &mut Report) {
    if rustix::process::geteuid().is_root() {
        remove_named(|name| crate::sys::covers(mark, name), report);
    }
}

/// The table goes last, since it is what tells that there may be more.
fn remove_named(is_its: impl Fn(&str) -> bool, report: &mut Report) {
    // Without the program nothing of ours was ever made.
    let Ok(tables) = run("nft", ["list", "tables", "inet"]) else { return };
    let marks =
        tables.lines().filter_map(|line| line.strip_prefix("table inet ")?.strip_prefix(PREFIX));
    let marks: Vec<_> = marks.filter(|mark| is_its(mark)).collect();
    if marks.is_empty() {
        return;
    }
    let chain = run("iptables", ["--wait", "--list-rules", "FORWARD"]).unwrap_or_default();
    for mark in marks {
        let name = format!("{PREFIX}{mark}");
        for rule in chain.lines() {
            let words: Vec<_> =
                rule.split_whitespace().map(|word| word.trim_matches('"')).collect();
            let ["-A", words @ ..] = &words[..] else { continue };
            if words.windows(2).any(|pair| pair == ["--comment", &name]) {
                let delete = ["--wait", "--delete"].iter().chain(words);
                if let Err(why) = run("iptables", delete) {
                    report.failed.push(why);
                }
            }
        }
        match run("nft", ["delete", "table", "inet", &name]) {
            Ok(_) => report.removed.push(format!("nftables: table inet {name}")),
            Err(why) => report.failed.push(why),
        }
    }
}

/// Runs a program of the system's and returns what it printed.
fn run<A: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = A>,
) -> Result<String, String> {
    // An ordinary PATH does not always lead to the system's programs.
    let places = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&places).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = places.map(|place| place.join(program)).find(|path| path.is_file());
    let Some(path) = found else {
        return Err(format!("the program {program} is missing; install nftables"));
    };
    let output = Command::new(&path).args(arguments).env("LC_ALL", "C").output();
    let output = output.map_err(|error| format!("{}: {error}", path.display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or_default();
    Err(format!(
        "{} failed ({said}); run the worker with the right to administer the network",
        path.display()
    ))
}

/// The file that names name servers a sandbox can reach, where the usual one names only the machine's
/// own loopback, as systemd-resolved has it.
pub(super) fn resolver() -> Option<PathBuf> {
    let usual = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let other = Path::new("/run/systemd/resolve/resolv.conf");
    let reaches = |text: &str| name_servers(text).any(|address| !address.is_loopback());
    let is_of_use = name_servers(&usual).next().is_some()
        && !reaches(&usual)
        && fs::read_to_string(other).is_ok_and(|text| reaches(&text));
    is_of_use.then(|| other.to_owned())
}

fn name_servers(text: &str) -> impl Iterator<Item = Ipv4Addr> {
    text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\n\
        eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\n\
        tun0\t0000D50A\t00000000\t0001\t0\t0\t0\t00F0FFFF\t0\n\
        tun1\t0510D50A\t00000000\t0001\t0\t0\t0\tFFFFFFFF\t0\n\
        ol3-7\t0E30D50A\t00000000\t0001\t0\t0\t0\tFEFFFFFF\t0\n";

    fn block(number: u32) -> Block {
        let first = Ipv4Addr::new(10, 213, 0, 0).to_bits() + (number << BLOCK_BITS);
        Block { number, first: first.into() }
    }

    #[test]
    fn blocks_that_routes_lead_to_are_passed_over() {
        let taken: Vec<_> = (0..5).map(|number| overlaps(ROUTES, block(number))).collect();
        // 10.213.0.0/20, 10.213.16.5, none, a device of our own block.
        assert_eq!(taken, [true, true, false, false, false]);
        assert_eq!(uplinks(ROUTES), BTreeSet::from(["eth0".to_owned()]));
        let all = "Iface\tDestination\nany\t0000000A\t0\t0\t0\t0\t0\t000000FF\t0\n";
        assert!((0..16).all(|number| overlaps(all, block(number))));
    }

    #[test]
    fn addresses_come_again_after_all_others() {
        let claim = UnixListener::bind_addr(
            &SocketAddr::from_abstract_name(format!("ol-test-{}", std::process::id())).unwrap(),
        );
        let pairs = Mutex::new(Pairs { next: PAIRS - 1, used: BTreeSet::new() });
        let mark = format!("test-bridge-{}", std::process::id());
        let bridge = Arc::new(Bridge { mark, block: block(2), pairs, _claim: claim.unwrap() });
        let last = bridge.lease().unwrap();
        let expected = Link {
            name: format!("ol2-{}", PAIRS - 1),
            machine: Ipv4Addr::new(10, 213, 47, 254),
            sandbox: Ipv4Addr::new(10, 213, 47, 255),
        };
        assert_eq!(last.link(), expected);
        drop(last);
        let mut leases: Vec<_> = (0..PAIRS).map(|_| bridge.lease().unwrap()).collect();
        assert_eq!(leases[0].link().machine, Ipv4Addr::new(10, 213, 32, 0));
        assert!(leases[0].link().name.len() <= 15);
        assert!(bridge.lease().is_none(), "all are in use");
        leases.swap_remove(5);
        assert_eq!(bridge.lease().unwrap().pair, 5);
    }

    #[test]
    fn name_servers_are_found() {
        let text =
            "# a comment\nnameserver 127.0.0.53\nnameserver\t192.0.2.1\nnameserver fe80::1\n";
        let found: Vec<_> = name_servers(text).collect();
        assert_eq!(found, [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(192, 0, 2, 1)]);
    }
}
