//! Finding processes by a mark in their environment.
//!
//! Parent-death signals reach children, not grandchildren, and a process that makes a new session leaves
//! its process group. But every descendant inherits the environment.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

/// The environment variable that holds a mark: `<worker>` or `<worker>/<instance>`.
pub const MARK: &str = "OPENLAMBDA_MARK";

/// A process that carries a mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkedProcess {
    /// Its id, which may be stale when you read this.
    pub pid: Pid,
    /// The whole mark.
    pub mark: String,
}

/// The processes whose mark is `mark` or begins with `mark/`; never this process itself.
///
/// Reads `/proc`, so it blocks for a few milliseconds. Sees this user's processes only, unless it
/// runs as root.
pub fn processes_with_mark(mark: &str) -> Vec<Pid> {
    marked_processes(&[mark]).into_iter().map(|process| process.pid).collect()
}

/// Like [`processes_with_mark`] for several marks in one pass.
pub fn marked_processes(marks: &[&str]) -> Vec<MarkedProcess> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let own = getpid();
    entries
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok().and_then(Pid::from_raw)?;
            let mark = mark_of(pid)?;
            (pid != own && marks.iter().any(|wanted| covers(wanted, &mark)))
                .then_some(MarkedProcess { pid, mark })
        })
        .collect()
}

/// Kills the processes that [`processes_with_mark`] finds, until it finds none. Returns how many.
///
/// A process that the kernel does not let die (it hangs in a device) is given up after ten seconds.
pub fn kill_marked(mark: &str) -> u32 {
    kill_all_marked(&[mark])
}

/// Like [`kill_marked`] for several marks in one pass.
pub fn kill_all_marked(marks: &[&str]) -> u32 {
    let mut killed = BTreeSet::new();
    // A killed process can have forked meanwhile, so look again until nothing is found.
    for _ in 0..10_000 {
        let found = marked_processes(marks);
        if found.is_empty() {
            break;
        }
        for MarkedProcess { pid, .. } in found {
            // The descriptor pins the process: if the id was reused since, its mark differs now.
            let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            let still = mark_of(pid).is_some_and(|mark| marks.iter().any(|m| covers(m, &mark)));
            if still && pidfd_send_signal(&pidfd, Signal::KILL).is_ok() {
                killed.insert(pid.as_raw_nonzero());
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    u32::try_from(killed.len()).unwrap_or(u32::MAX)
}

/// `a` covers `a` and `a/b`, not `ab`.
pub(crate) fn covers(wanted: &str, mark: &str) -> bool {
    mark.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Zombies and kernel threads have no environment; others' cannot be read.
fn mark_of(pid: Pid) -> Option<String> {
    // A second, for a machine that is busy: the moment is a few microseconds otherwise.
    let mut found_none = 0;
    for _ in 0..5000 {
        let environment = environment(pid)?;
        if !environment.is_empty() {
            return environment
                .split(|byte| *byte == 0)
                .find_map(|entry| entry.strip_prefix(MARK.as_bytes())?.strip_prefix(b"="))
                .map(|mark| String::from_utf8_lossy(mark).into_owned());
        }
        if !is_between_programs(pid)? {
            // A process without an environment looks like one whose environment's strings the
            // kernel is about to count, but stays so: 10 ms are enough to tell them apart.
            found_none += 1;
            if found_none == 50 {
                return None;
            }
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    None
}

fn environment(pid: Pid) -> Option<Vec<u8>> {
    let mut file = File::open(format!("/proc/{}/environ", pid.as_raw_nonzero())).ok()?;
    // In one read wherever it fits: of one that goes on to another program meanwhile, a second
    // read has nothing.
    let mut environment = vec![0; 32 << 10];
    let mut length = 0;
    loop {
        let count = file.read(&mut environment[length..]).ok()?;
        length += count;
        if count == 0 || length < environment.len() {
            environment.truncate(length);
            return Some(environment);
        }
        environment.resize(length * 2, 0);
    }
}

/// Whether a process whose environment was found empty has one, or is about to: the kernel fills it
/// in last when a process becomes another program. `None` for one without memory, as zombies are.
fn is_between_programs(pid: Pid) -> Option<bool> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name, in parentheses, may hold anything. See proc_pid_stat(5): 3, the state, is first.
    let fields: Vec<_> = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let (memory, begin, end) = (field(23)?, field(50)?, field(51)?);
    (memory > 0).then_some(end == 0 || end > begin)
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn a_mark_covers_itself_and_what_is_below_it() {
        assert!(covers("w1", "w1") && covers("w1", "w1/3") && covers("a/b", "a/b/c"));
        assert!(!covers("w1", "w10") && !covers("w1/3", "w1") && !covers("w1", ""));
    }
}
