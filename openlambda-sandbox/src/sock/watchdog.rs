//! Bounds memory where no cgroup can be made: a watchdog measures it periodically.
//!
//! A measurement adds up the memory of the sandbox's processes and the files of its `/tmp`, which are
//! memory too. Files without names (memfd) and other shared memory without a file stay when nothing of
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
//! had kept 57 to 96 MiB. The watchdog does not see buffers of pipes and sockets, which have limits of
//! their own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use openlambda_core::time::{Clock, Duration};

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
    clock: Arc<dyn Clock>,
}

impl Watchdog {
    pub(super) fn new(limit: u64, clock: Arc<dyn Clock>) -> Self {
        Watchdog { limit: AtomicU64::new(limit), bit: AtomicBool::new(false), clock }
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
                let in_use = measure(newborn, limit);
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

/// Bytes in use: exact, or an upper bound that is not over `limit`.
pub(super) fn measure(newborn: &Newborn, limit: u64) -> u64 {
    let pids = newborn.tree();
    let page = rustix::param::page_size() as u64;
    let resident = |pid: &i32| {
        let statm = fs::read_to_string(format!("/proc/{pid}/statm"));
        let pages = statm.ok().and_then(|statm| statm.split(' ').nth(1)?.parse::<u64>().ok());
        pages.unwrap_or(0) * page
    };
    let files = tmp_of(newborn.pid()).map_or(0, |(_, bytes)| bytes);
    let upper = files + pids.iter().map(resident).sum::<u64>();
    if upper <= limit {
        return upper;
    }
    // Pages of files that are mapped must not count twice.
    let tmp = tmp_of(newborn.pid()).map(|(device, _)| device);
    files + pids.iter().map(|pid| share_of(*pid, tmp).unwrap_or_else(|| resident(pid))).sum::<u64>()
}

/// The device of its `/tmp`, and the bytes of the files there.
fn tmp_of(pid: i32) -> Option<(u64, u64)> {
    let path = format!("/proc/{pid}/root/tmp");
    let used = rustix::fs::statvfs(&path).ok()?;
    let bytes = used.f_blocks.saturating_sub(used.f_bfree) * used.f_frsize;
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
