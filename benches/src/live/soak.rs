//! Thousands of starts beside some idle instances: what they leave behind, and whether the last ones are
//! slower than the first ones.
//!
//! ```text
//! count ─▶ factory, idle instances ─▶ block of rounds ─▶ count ─▶ … ─▶ block ─▶ count ─▶ shutdown ─▶ count
//!   └────────────────────────────── these two must be the same ──────────────────────────────────────┘
//! ```
//!
//! Between the blocks the counts may differ only by what the creators hold at once: a count that grows
//! with the number of rounds is a leak, even if a shutdown removes it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use openlambda_core::sandbox::SandboxFactory;
use openlambda_core::time::Duration;
use openlambda_sandbox::sock::cgroups_of;
use openlambda_sandbox::sys::{Pid, processes_with_mark};
use serde::Serialize;

use super::error::{Context, LiveError, Result};
use super::kinds::Kinds;
use super::lab::{Kind, Lab, destroy};

/// What is started, and how often.
#[derive(Clone, Debug)]
pub struct SoakConfig {
    /// The kind of sandbox.
    pub sandbox: String,
    /// How many instances are created, called and destroyed.
    pub rounds: u32,
    /// How many idle instances live beside them.
    pub idle: usize,
    /// How many instances are created at once.
    pub concurrency: u32,
    /// What starts: `noop` (a static program) or `python` (a file that returns its event).
    pub function: String,
}

/// What a soak found.
#[derive(Clone, Debug, Serialize)]
pub struct Soaked {
    /// The kind's name.
    pub sandbox: String,
    /// What it keeps a function from, and how.
    pub isolation: String,
    /// How often one was created, called and destroyed.
    pub rounds: u32,
    /// Before the first instance.
    pub before: Counts,
    /// After the first tenth, the idle instances alive.
    pub early: Counts,
    /// After the last tenth, likewise.
    pub late: Counts,
    /// After the end of all.
    pub after: Counts,
    /// Of which there is more afterwards than before.
    pub left: Vec<&'static str>,
    /// Which grew with the rounds.
    pub grown: Vec<&'static str>,
    /// The seconds of each tenth.
    pub seconds: Vec<f64>,
    /// The last tenth's time beside the first one's.
    pub slower: f64,
}

/// What there is of the bench's own on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// In this process's view of the machine.
    pub mounts: usize,
    /// Marked with its mark.
    pub cgroups: usize,
    /// Those that the bench's processes are in or hold.
    pub namespaces: usize,
    /// Marked likewise.
    pub processes: usize,
    /// Of this process and the bench's others.
    pub descriptors: usize,
    /// Of this process.
    pub threads: usize,
    /// In the factory's folder.
    pub files: usize,
}

/// The names of what is counted, in the order of [`Counts::each`].
pub const COUNTED: [&str; 7] =
    ["mounts", "cgroups", "namespaces", "processes", "descriptors", "threads", "files"];

const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

impl Counts {
    fn now(folder: &Path, mark: &str) -> Counts {
        let processes = processes_with_mark(mark);
        let mut namespaces = BTreeSet::new();
        let mut descriptors = 0;
        let own = PathBuf::from("/proc/self");
        let others = processes.iter().map(|pid: &Pid| format!("/proc/{}", pid.as_raw_nonzero()));
        for process in std::iter::once(own).chain(others.map(PathBuf::from)) {
            let links = |folder: &str| {
                let entries = fs::read_dir(process.join(folder)).into_iter().flatten().flatten();
                entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect::<Vec<_>>()
            };
            let held = links("fd");
            descriptors += held.len();
            // "net:[4026531840]"
            let names = links("ns").into_iter().chain(held);
            let names = names.map(|name| name.to_string_lossy().into_owned());
            namespaces.extend(names.filter(|name| {
                name.split_once(":[").is_some_and(|(kind, _)| NAMESPACES.contains(&kind))
            }));
        }
        Counts {
            mounts: fs::read_to_string("/proc/self/mountinfo")
                .map_or(0, |text| text.lines().count()),
            cgroups: cgroups_of(mark).len(),
            namespaces: namespaces.len(),
            processes: processes.len(),
            descriptors,
            threads: fs::read_dir("/proc/self/task").map_or(0, Iterator::count),
            files: files_in(folder),
        }
    }

    /// The numbers, in the order of [`COUNTED`].
    pub fn each(&self) -> [usize; 7] {
        let Counts { mounts, cgroups, namespaces, processes, descriptors, threads, files } = *self;
        [mounts, cgroups, namespaces, processes, descriptors, threads, files]
    }

    /// Of what there is more than in `other` and `room` besides.
    fn beyond(&self, other: &Counts, room: usize) -> Vec<&'static str> {
        let pairs = COUNTED.into_iter().zip(self.each().into_iter().zip(other.each()));
        pairs.filter(|(_, (now, then))| *now > then + room).map(|(what, _)| what).collect()
    }
}

fn files_in(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true => 1 + files_in(&entry.path()),
            false => 1,
        })
        .sum()
}

/// Starts and destroys thousands of instances, and counts what exists meanwhile and afterwards.
///
/// # Errors
///
/// [`LiveError`](super::LiveError): the kind is not available, or a start failed. Leaks are no error: see
/// the result.
pub async fn soak(config: &SoakConfig, kinds: &dyn Kinds) -> Result<Soaked> {
    let lab = Arc::new(Lab::new(&config.function)?);
    // What the first factory of a kind leaves is what each leaves: files in its folder, threads.
    let warm = lab.kind(kinds, &config.sandbox).await?;
    warm.factory.shutdown().await;
    let before = settled(&warm, |_| false).await;
    let kind = lab.kind(kinds, &config.sandbox).await?;
    let soaked = blocks(config, &lab, &kind, kinds).await;
    kind.factory.shutdown().await;
    let (early, late, seconds) = soaked?;
    let after = settled(&kind, |now| now.beyond(&before, 0).is_empty()).await;
    let first = seconds.first().copied().unwrap_or(f64::NAN);
    Ok(Soaked {
        sandbox: kind.name.to_owned(),
        isolation: kind.isolation.clone(),
        rounds: config.rounds,
        left: after.beyond(&before, 0),
        grown: late.beyond(&early, 8 * config.concurrency as usize),
        slower: seconds.last().copied().unwrap_or(f64::NAN) / first,
        before,
        early,
        late,
        after,
        seconds,
    })
}

/// The rounds, a tenth after another. Counts after the first and the last, and the seconds of each.
async fn blocks(
    config: &SoakConfig,
    lab: &Arc<Lab>,
    kind: &Kind,
    kinds: &dyn Kinds,
) -> Result<(Counts, Counts, Vec<f64>)> {
    let idle = lab.idle(&*kind.factory, config.idle, false).await?;
    let mut counts = Vec::new();
    let mut seconds = Vec::new();
    for n in 0..10 {
        let rounds = config.rounds as usize * (n + 1) / 10 - config.rounds as usize * n / 10;
        let begin = lab.now();
        block(lab, &kind.factory, rounds, config.concurrency as usize).await?;
        seconds.push(lab.now().since(begin).as_secs_f64());
        kinds.is_over(n as u64 + 1, 10);
        if n == 0 || n == 9 {
            let early: Option<Counts> = counts.first().copied();
            let done = |now: &Counts| early.is_some_and(|e| now.beyond(&e, 0).is_empty());
            counts.push(settled(kind, done).await);
        }
    }
    destroy(&idle).await;
    Ok((counts[0], counts[1], seconds))
}

async fn block(
    lab: &Arc<Lab>,
    factory: &Arc<dyn SandboxFactory>,
    rounds: usize,
    concurrency: usize,
) -> Result<()> {
    let taken = Arc::new(AtomicUsize::new(0));
    let creators: Vec<_> = (0..concurrency)
        .map(|_| {
            let (lab, factory, taken) = (Arc::clone(lab), Arc::clone(factory), Arc::clone(&taken));
            tokio::spawn(async move {
                while taken.fetch_add(1, Ordering::Relaxed) < rounds {
                    lab.start(&*factory).await?;
                }
                Ok::<_, LiveError>(())
            })
        })
        .collect();
    for creator in creators {
        creator.await.context(|| "a task of the bench failed".to_owned())??;
    }
    Ok(())
}

/// What there is once it does not change any more, or `done` says that it is good: threads of a pool end
/// ten seconds after their last work, pools fill in the background.
async fn settled(kind: &Kind, done: impl Fn(&Counts) -> bool) -> Counts {
    let count = || Counts::now(&kind.state_dir, &kind.mark);
    let mut last = count();
    let mut same = 0;
    for _ in 0..300 {
        if done(&last) {
            return last;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = count();
        same = if now == last { same + 1 } else { 0 };
        last = now;
        // Longer than those threads are kept.
        if same >= 120 {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_and_what_grows_is_named() {
        let counts = |processes, descriptors| Counts {
            mounts: 30,
            cgroups: 4,
            namespaces: 8,
            processes,
            descriptors,
            threads: 5,
            files: 3,
        };
        assert_eq!(counts(2, 10).beyond(&counts(2, 10), 0), [""; 0]);
        assert_eq!(counts(3, 11).beyond(&counts(2, 10), 0), ["processes", "descriptors"]);
        assert_eq!(counts(3, 12).beyond(&counts(2, 10), 1), ["descriptors"]);
        assert_eq!(counts(1, 9).beyond(&counts(2, 10), 0), [""; 0]);
    }

    #[test]
    fn a_file_that_is_left_is_counted() {
        let dir = tempfile::tempdir().expect("a folder");
        let before = Counts::now(dir.path(), "nobody-has-this-mark");
        fs::create_dir(dir.path().join("x")).expect("a folder");
        fs::write(dir.path().join("x/y"), "").expect("a file");
        let after = Counts::now(dir.path(), "nobody-has-this-mark");
        assert_eq!((before.files, after.files, after.cgroups, after.processes), (0, 2, 0, 0));
        assert!(after.mounts > 0 && after.threads > 0 && after.namespaces > 6);
    }
}
