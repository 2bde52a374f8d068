//! Bounds memory where no cgroup can be made: a watchdog measures it periodically.
//!
//! A measurement adds up the memory of the sandbox's processes and its tables, the files of its `/tmp`,
//! which are memory too, what waits in its sockets (`sockets.rs`), and what its pipes may hold. Files without names (memfd) and other shared memory without a file stay when nothing of
//! them is mapped or open that could be seen, so they cannot be made (`seccomp.rs`). Memory that several
//! processes share counts once. A sum
//! that counts it for each process is cheap; only when that sum is over the limit, the exact one is made
//! (`Pss` in `/proc/<pid>/smaps`, proc_pid_smaps(5)). A sandbox over its limit is killed, and the failure
//! says out of memory.
//!
//! # How exact it is
//!
//! The less room is left, the sooner comes the next measurement: after the time in which 2 GiB a second
//! would fill it, 2 to 50 ms. So a sandbox that grows more slowly is killed within one measurement of
//! the limit. One that grows faster, or a machine that delays the watchdog, exceeds the limit by what
//! is written meanwhile. Measured with a limit of 64 MiB, a Python loop that keeps 1 MiB more each time,
//! and two cores on which five other processes waited for their turn: in eight tries it was ended when it
//! had kept 57 to 96 MiB. The watchdog does not see pipes that are
//! in flight between two processes, sockets with `network = "host"`, and small things of the kernel's:
//! `docs/kernel-limits.md` has what these can be.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use openlambda_core::time::{Clock, Duration};

use super::sockets;
use crate::sys::nursery::Newborn;

/// What is taken for the fastest that memory can be filled, bytes in a second.
const FILLED_A_SECOND: u64 = 2 << 30;
const SOONEST: Duration = Duration::from_millis(2);
const LATEST: Duration = Duration::from_millis(50);

/// Watches one sandbox.
#[derive(Debug)]
pub(super) struct Watchdog {
    limit: AtomicU64,
    /// It found the sandbox over its limit.
    bit: AtomicBool,
    /// Asks about the sockets of a network of its own.
    network: Option<OwnedFd>,
    clock: Arc<dyn Clock>,
}

impl Watchdog {
    pub(super) fn new(limit: u64, network: Option<OwnedFd>, clock: Arc<dyn Clock>) -> Self {
        Watchdog { limit: AtomicU64::new(limit), bit: AtomicBool::new(false), network, clock }
    }

    pub(super) fn network(&self) -> Option<BorrowedFd<'_>> {
        self.network.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::Relaxed);
    }

    /// Whether the sandbox was found over its limit.
    pub(super) fn has_bitten(&self) -> bool {
        self.bit.load(Ordering::Relaxed)
    }

    /// Resolves when the sandbox is over its limit. What is paused does not grow.
    pub(super) async fn until_over(&self, newborn: &Newborn, paused: &AtomicBool) {
        loop {
            let mut wait = LATEST;
            if !paused.load(Ordering::Relaxed) {
                let begin = self.clock.now();
                let limit = self.limit.load(Ordering::Relaxed);
                let in_use = measure(newborn, self.network(), limit);
                // What was measured was its own only if it still lives.
                if in_use > limit && newborn.lives() {
                    self.bit.store(true, Ordering::Relaxed);
                    return;
                }
                let room = limit.saturating_sub(in_use);
                let filled = Duration::from_secs_f64(room as f64 / FILLED_A_SECOND as f64);
                // However much there is to look at, it shall not cost more than a tenth of a core.
                let looked = self.clock.now().since(begin);
                wait = filled.clamp(SOONEST, LATEST).max(looked * 9);
            }
            tokio::time::sleep(wait).await;
        }
    }
}

/// How often what waits in sockets is looked at, where the kernel does not bound it.
const SOCKETS_EVERY: Duration = Duration::from_millis(100);

/// Watches what waits in the sockets of a sandbox whose cgroup does not count it as memory: they may have
/// a quarter of its memory beside it. Resolves when it is more; never, when there is no cgroup.
pub(super) async fn until_sockets_are_over(
    bytes: impl Fn() -> Option<u64>,
    memory: u64,
    paused: &AtomicBool,
) {
    while let Some(bytes) = bytes() {
        if bytes > (memory / 4).max(8 << 20) {
            return;
        }
        tokio::time::sleep(SOCKETS_EVERY).await;
        while paused.load(Ordering::Relaxed) {
            tokio::time::sleep(SOCKETS_EVERY * 10).await;
        }
    }
    std::future::pending().await
}

/// The kernel gives a pipe this much, and after so many pipes of one user, that much.
const PIPE: u64 = 64 << 10;
const LARGE_PIPES: u64 = 1024;
const SMALL_PIPE: u64 = 8 << 10;

/// Bytes in use: exact, or an upper bound that is not over `limit`. `network` asks about the sockets of
/// a network of its own.
pub(super) fn measure(newborn: &Newborn, network: Option<BorrowedFd<'_>>, limit: u64) -> u64 {
    let pids = newborn.tree();
    let processes: Vec<Process> = pids.iter().map(|pid| Process::of(*pid)).collect();
    let files = tmp_of(newborn.pid()).map_or(0, |(_, bytes)| bytes);
    let tables: u64 = processes.iter().map(|process| process.tables).sum();
    let sockets = if network.is_some() { sockets::count(newborn.pid()) } else { 0 };
    let upper = files
        + tables
        + processes
            .iter()
            .map(|process| process.resident + process.descriptors * PIPE)
            .sum::<u64>()
        + sockets * sockets::most_of_one();
    if upper <= limit {
        return upper;
    }
    let sockets = network.map_or(0, |network| sockets::bytes(newborn.pid(), network));
    // Pages of files that are mapped must not count twice.
    let tmp = tmp_of(newborn.pid()).map(|(device, _)| device);
    let own = pids.iter().zip(&processes);
    let own = own.map(|(pid, process)| share_of(*pid, tmp).unwrap_or(process.resident));
    files + tables + sockets + pipes(&pids) + own.sum::<u64>()
}

/// What is cheap to know of a process.
struct Process {
    resident: u64,
    /// Tables of pages, bytes. They can be more than the pages: the page of zeros counts for nobody.
    tables: u64,
    /// How many it has, or may have.
    descriptors: u64,
}

impl Process {
    fn of(pid: i32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let number = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name))?;
            value.split_ascii_whitespace().next()?.parse::<u64>().ok()
        };
        // Before Linux 6.2 the folder has no size.
        let open = fs::metadata(format!("/proc/{pid}/fd")).map_or(0, |folder| folder.len());
        Process {
            resident: number("VmRSS:").unwrap_or(0) << 10,
            tables: number("VmPTE:").unwrap_or(0) << 10,
            descriptors: if open > 0 { open } else { number("FDSize:").unwrap_or(0) },
        }
    }
}

/// What their pipes may hold: what is in one cannot be seen.
fn pipes(pids: &[i32]) -> u64 {
    let mut pipes = BTreeSet::new();
    for pid in pids {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            if let Ok(leads_to) = fs::read_link(entry.path())
                && leads_to.as_os_str().as_encoded_bytes().starts_with(b"pipe:")
            {
                pipes.insert(leads_to);
            }
        }
    }
    let count = pipes.len() as u64;
    count.min(LARGE_PIPES) * PIPE + count.saturating_sub(LARGE_PIPES) * SMALL_PIPE
}

/// The device of its `/tmp`, and the bytes of the files there. A file takes the kernel a kilobyte, also
/// if it is empty.
fn tmp_of(pid: i32) -> Option<(u64, u64)> {
    let path = format!("/proc/{pid}/root/tmp");
    let used = rustix::fs::statvfs(&path).ok()?;
    let bytes = used.f_blocks.saturating_sub(used.f_bfree) * used.f_frsize
        + (used.f_files.saturating_sub(used.f_ffree) << 10);
    Some((fs::metadata(path).ok()?.dev(), bytes))
}

/// A process's share of what it has in memory, without the files that are counted elsewhere.
fn share_of(pid: i32, tmp: Option<u64>) -> Option<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    Some(share_in(&maps, tmp))
}

fn share_in(maps: &str, tmp: Option<u64>) -> u64 {
    let mut bytes = 0;
    let mut counts = true;
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if first == "Pss:" {
            let kilobytes = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            bytes += if counts { kilobytes * 1024 } else { 0 };
        } else if !first.ends_with(':') {
            // address permissions offset device inode path
            let device = words.nth(2).and_then(device_of);
            counts = tmp.is_none() || device != tmp;
        }
    }
    bytes
}

/// `fe:01`, as `stat` has it.
fn device_of(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    let number = |text: &str| u32::from_str_radix(text, 16).ok();
    Some(rustix::fs::makedev(number(major)?, number(minor)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_files_that_are_counted_elsewhere_are_passed_over() {
        let maps = "\
00400000-00500000 r-xp 00000000 fe:01 42                 /usr/bin/python3.11
Rss:                1000 kB
Pss:                 100 kB
Pss_Dirty:            50 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0000100000 rw-p 00000000 00:00 0
Pss:                  10 kB
7f0000200000-7f0000300000 rw-s 00000000 00:2a 7                  /tmp/file
Pss:                5000 kB
7f0000600000-7f0000700000 rw-s 00000000 00:01 11                 /dev/zero (deleted)
Pss:                   1 kB
";
        assert_eq!(share_in(maps, Some(rustix::fs::makedev(0, 0x2a))), 111 << 10);
        assert_eq!(share_in(maps, None), 5111 << 10);
    }
}
