//! Bounds memory where no cgroup can be made: a watchdog measures it periodically.
//!
//! A measurement adds up the memory of the sandbox's processes and its tables, the files of its `/tmp` and
//! `/dev/shm`, which are memory too, what waits in its sockets (`sockets.rs`), and what its pipes may hold. Files without names (memfd) and other shared memory without a file stay when nothing of
//! them is mapped or open that could be seen, so they cannot be made (`seccomp.rs`). Memory that several
//! processes share counts once. Once a second small things of the kernel's are counted, too: mappings,
//! locks of files, and what epoll watches, of which a sandbox may have a part of what its worker's user
//! has. A sum
//! that counts it for each process is cheap; only when that sum is over the limit, the exact one is made
//! (`Pss` in `/proc/<pid>/smaps_rollup`, proc_pid_smaps(5)). A sandbox over its limit is killed, and the failure
//! says out of memory.
//!
//! # What it costs
//!
//! Most sandboxes rest most of the time, and one of whose processes none has run since it was measured has
//! taken nothing: that is seen by a system call for each process, and nothing else is looked at. 200
//! instances of Python that rested took 69 % of a core before, and 4 % since, both in a build without
//! optimisations.
//!
//! # How exact it is
//!
//! The less room is left, the sooner comes the next measurement: after the time in which 2 GiB a second
//! would fill it, 2 to 50 ms. So a sandbox that grows more slowly is killed within one measurement of
//! the limit. One that grows faster, or a machine that delays the watchdog, exceeds the limit by what
//! is written meanwhile. Measured with a limit of 64 MiB, a Python loop that keeps 1 MiB more each time,
//! and two cores on which five other processes waited for their turn: in eight tries it was ended when it
//! had kept 57 to 96 MiB. The watchdog does not see pipes that are
//! in flight between two processes, sockets with `network = "host"`, and other small things of the
//! kernel's: `docs/kernel-limits.md` has what these can be.

use std::collections::BTreeSet;
use std::fs::{self, DirEntry};
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};

use openlambda_core::time::{Clock, Duration, SystemClock, Time};
use parking_lot::Mutex;

use super::sockets::Sockets;
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
    pub(super) async fn until_over(
        &self,
        newborn: &Newborn,
        sockets: Option<&Sockets>,
        paused: &AtomicBool,
    ) {
        let mut small = Small::default();
        let mut next_small = self.clock.now();
        let mut small_at = next_small;
        let mut still: Option<Still> = None;
        loop {
            let mut wait = LATEST;
            let begin = self.clock.now();
            let limit = self.limit.load(Ordering::Relaxed);
            // What others send to it comes without its own doing.
            let looked_lately = |since: Time| {
                !sockets.is_some_and(Sockets::are_reached) || begin.since(since) < REACHED_EVERY
            };
            let rests = still.as_ref().is_some_and(|still| {
                let small_is_known = small_at >= still.since || begin < next_small;
                let known = small_is_known && looked_lately(still.since);
                known && still.limit == limit && still.still_holds()
            });
            if rests {
                // All that rest are looked at in a row, or the worker would be woken for each.
                let late = begin.as_nanos() % LATEST.as_nanos() as u64;
                wait = LATEST - Duration::from_nanos(late);
            } else if !paused.load(Ordering::Relaxed) {
                let before = Still::of(newborn.tree(), limit, begin);
                if begin >= next_small {
                    small_at = begin;
                    small = Small::of(newborn.tree()).await;
                    let now = self.clock.now();
                    next_small = now + SMALL_EVERY.max(now.since(begin) * 9);
                }
                let begin = self.clock.now();
                let (measured, pids) = measure_with(newborn, sockets, limit);
                // Whom it did not know may have done something since.
                still = before.filter(|before| before.knows(&pids));
                let in_use = small.bytes + measured;
                // What was measured was its own only if it still lives.
                if (in_use > limit || small.watches > most_watches()) && newborn.lives() {
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

/// How often a sandbox is measured that does nothing, but that others can send something to.
const REACHED_EVERY: Duration = Duration::from_secs(1);

/// That no process of a sandbox does anything: it forks none, and takes no memory, without taking a core.
/// Most sandboxes rest most of the time, and to see this takes a system call for each process.
#[derive(Debug)]
struct Still {
    /// Its processes, and the time that each has had of cores, nanoseconds.
    times: Vec<(i32, u64)>,
    limit: u64,
    since: Time,
}

impl Still {
    /// What is so now; nothing, if one of them has just gone.
    fn of(pids: Vec<i32>, limit: u64, since: Time) -> Option<Self> {
        let time = |pid: i32| Some((pid, crate::sys::time_of_cores(pid)?));
        let times = pids.into_iter().map(time).collect::<Option<_>>()?;
        Some(Still { times, limit, since })
    }

    /// Whether these were all when the times were taken.
    fn knows(&self, pids: &[i32]) -> bool {
        self.times.iter().map(|(pid, _)| pid).eq(pids)
    }

    fn still_holds(&self) -> bool {
        self.times.iter().all(|(pid, time)| crate::sys::time_of_cores(*pid) == Some(*time))
    }
}

/// How often what no cgroup counts is looked at.
const UNCOUNTED_EVERY: Duration = Duration::from_millis(100);

/// Watches what a sandbox has that its cgroup does not count as memory: what waits in `sockets`, as far
/// as that is so, and locks of files. It may have a quarter of its memory beside it. Resolves when it is
/// more; never, when there is no cgroup.
pub(super) async fn until_uncounted_is_over(
    newborn: &Newborn,
    sockets: impl Fn() -> Option<u64>,
    memory: u64,
    paused: &AtomicBool,
) {
    let most = (memory / 4).max(8 << 20);
    let mut locks = 0;
    for round in 0_u64.. {
        // First of all, too: a start shall not pay for it.
        tokio::time::sleep(UNCOUNTED_EVERY).await;
        while paused.load(Ordering::Relaxed) {
            tokio::time::sleep(UNCOUNTED_EVERY * 10).await;
        }
        let Some(bytes) = sockets() else { break };
        if round % 20 == 19 {
            let many = tokio::task::spawn_blocking(move || locks_are_more_than(most));
            let many = many.await.unwrap_or(false);
            locks = if many { Small::of(newborn.tree()).await.locks } else { 0 };
        }
        if bytes + locks > most {
            return;
        }
    }
    std::future::pending().await
}

/// Whether all locks of the machine take more than this. If they do not, no sandbox has to be asked.
///
/// While a page of that list is read nobody on the machine can take a lock, so all sandboxes of this process
/// share what is read, and it is not read again before twice as long has passed as that took.
fn locks_are_more_than(bytes: u64) -> bool {
    static CLOCK: LazyLock<SystemClock> = LazyLock::new(SystemClock::new);
    static LAST: Mutex<Option<Locks>> = Mutex::new(None);
    let most = bytes / Small::SIZE * Locks::LINE;
    // Another one is reading: its sandbox is asked the next time.
    let Some(mut last) = LAST.try_lock() else { return false };
    if let Some(last) = &*last
        && CLOCK.now().since(last.read) < Locks::FRESH.max(last.took * 2)
        && (last.whole || last.length >= most)
    {
        return last.length >= most;
    }
    let started = CLOCK.now();
    let Ok(locks) = fs::File::open("/proc/locks") else { return true };
    let mut start = Vec::new();
    let Ok(length) = locks.take(most).read_to_end(&mut start) else { return false };
    let length = length as u64;
    let (read, whole) = (CLOCK.now(), length < most);
    *last = Some(Locks { read, took: read.since(started), length, whole });
    !whole
}

/// What was read of the list of all locks of the machine.
struct Locks {
    read: Time,
    took: Duration,
    /// Bytes.
    length: u64,
    /// All of it.
    whole: bool,
}

impl Locks {
    /// No line is shorter than this one.
    const LINE: u64 = "1: FLOCK  ADVISORY  WRITE 1 00:01:1 0 EOF\n".len() as u64;
    /// For so long nothing is read again.
    const FRESH: Duration = Duration::from_millis(1900);
}

/// The kernel gives a pipe this much, and after so many pipes of one user, that much.
const PIPE: u64 = 64 << 10;
const LARGE_PIPES: u64 = 1024;
const SMALL_PIPE: u64 = 8 << 10;

/// Bytes in use: exact, or an upper bound that is not over `limit`.
pub(super) fn measure(newborn: &Newborn, sockets: Option<&Sockets>, limit: u64) -> u64 {
    measure_with(newborn, sockets, limit).0
}

/// The same, and of which processes.
fn measure_with(newborn: &Newborn, sockets: Option<&Sockets>, limit: u64) -> (u64, Vec<i32>) {
    let pids = newborn.tree();
    let processes: Vec<Process> = pids.iter().map(|pid| Process::of(*pid)).collect();
    let files = files_of(newborn.pid());
    let tables: u64 = processes.iter().map(|process| process.tables).sum();
    let upper = files
        + tables
        + processes
            .iter()
            .map(|process| process.resident + process.descriptors * PIPE)
            .sum::<u64>();
    let room = limit.saturating_sub(upper);
    let upper = upper + sockets.map_or(0, |sockets| sockets.at_most(room));
    if upper <= limit {
        return (upper, pids);
    }
    let in_sockets = sockets.map_or(0, Sockets::bytes);
    // What several processes have, and files of /tmp that are mapped, must not count twice.
    let own = pids.iter().zip(&processes);
    let own = own.map(|(pid, process)| share_of(*pid).unwrap_or(process.resident));
    let own = own.sum::<u64>();
    (files + tables + in_sockets + pipes(&pids) + own, pids)
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

/// So many descriptors are looked at. It takes some 20 ms; of more, each is taken for a small pipe.
const MOST_LOOKED_AT: usize = 4096;

/// Process, number, and what they lead to, of their descriptors.
fn descriptors(pids: &[i32]) -> impl Iterator<Item = (i32, DirEntry)> {
    pids.iter().flat_map(|pid| {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        entries.map(|entry| (*pid, entry))
    })
}

/// What their pipes may hold: what is in one cannot be seen.
fn pipes(pids: &[i32]) -> u64 {
    let mut pipes = BTreeSet::new();
    let mut all = descriptors(pids);
    for (_, entry) in all.by_ref().take(MOST_LOOKED_AT) {
        if let Ok(leads_to) = fs::read_link(entry.path())
            && leads_to.as_os_str().as_encoded_bytes().starts_with(b"pipe:")
        {
            pipes.insert(leads_to);
        }
    }
    let count = pipes.len() as u64;
    let small = count.saturating_sub(LARGE_PIPES) + all.count() as u64;
    count.min(LARGE_PIPES) * PIPE + small * SMALL_PIPE
}

/// How often small things of the kernel's are counted, of which it takes many to be much.
const SMALL_EVERY: Duration = Duration::from_secs(1);

/// Small things of the kernel's.
#[derive(Debug, Default)]
struct Small {
    /// How much memory they take: mappings, locks of files, what epoll watches.
    bytes: u64,
    /// How many are watched by epoll.
    watches: u64,
    /// How much of the bytes is locks, which no cgroup counts.
    locks: u64,
}

impl Small {
    /// A little more than the kernel takes for one of them.
    const SIZE: u64 = 256;

    /// Looks elsewhere: it takes a while where there are many.
    async fn of(pids: Vec<i32>) -> Self {
        let look = tokio::task::spawn_blocking(move || Small::look(&pids));
        look.await.unwrap_or_default()
    }

    fn look(pids: &[i32]) -> Self {
        let lines = |path: String| fs::read(path).unwrap_or_default();
        let (mut count, mut watches, mut locks) = (0, 0, 0);
        for pid in pids {
            let maps = lines(format!("/proc/{pid}/maps"));
            count += maps.iter().filter(|byte| **byte == b'\n').count() as u64;
        }
        for (pid, entry) in descriptors(pids).take(MOST_LOOKED_AT) {
            let number = entry.file_name();
            let told = lines(format!("/proc/{pid}/fdinfo/{}", number.display()));
            for line in told.split(|byte| *byte == b'\n') {
                watches += u64::from(line.starts_with(b"tfd:"));
                locks += u64::from(line.starts_with(b"lock:"));
            }
        }
        let bytes = (count + watches + locks) * Small::SIZE;
        Small { bytes, watches, locks: locks * Small::SIZE }
    }
}

/// The kernel counts what epoll watches for the user of the machine, who is the worker's own: one sandbox
/// may have an eighth, or the worker could not take connections.
fn most_watches() -> u64 {
    static MOST: OnceLock<u64> = OnceLock::new();
    *MOST.get_or_init(|| {
        let most = fs::read_to_string("/proc/sys/fs/epoll/max_user_watches");
        most.ok().and_then(|most| most.trim().parse::<u64>().ok()).map_or(u64::MAX, |most| most / 8)
    })
}

/// The bytes of the files in its `/tmp` and `/dev/shm`. A file takes the kernel a kilobyte, also if it is
/// empty.
fn files_of(pid: i32) -> u64 {
    let bytes = |folder: &str| {
        let used = rustix::fs::statvfs(format!("/proc/{pid}/root/{folder}")).ok()?;
        let files = used.f_files.saturating_sub(used.f_ffree) << 10;
        Some(used.f_blocks.saturating_sub(used.f_bfree) * used.f_frsize + files)
    };
    ["tmp", "dev/shm"].into_iter().filter_map(bytes).sum()
}

/// A process's share of what it has in memory, without the files of `/tmp`, which are counted elsewhere:
/// no other memory that is shared and has no file on a disk can be made.
fn share_of(pid: i32) -> Option<u64> {
    let sums = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    share_in(&sums)
}

fn share_in(sums: &str) -> Option<u64> {
    let kilobytes = |name: &str| {
        let value = sums.lines().find_map(|line| line.strip_prefix(name))?;
        value.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    Some((kilobytes("Pss_Anon:")? + kilobytes("Pss_File:")?) << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_tmp_that_are_mapped_are_passed_over() {
        let sums = "\
00400000-7ffe12345000 ---p 00000000 00:00 0                          [rollup]
Rss:               10000 kB
Pss:                5111 kB
Pss_Dirty:            50 kB
Pss_Anon:             10 kB
Pss_File:            101 kB
Pss_Shmem:          5000 kB
";
        assert_eq!(share_in(sums), Some(111 << 10));
        assert_eq!(share_in(""), None);
    }
}
