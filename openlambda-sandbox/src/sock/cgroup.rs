//! Control groups: they limit a sandbox, pause it, and make sure that none of its processes is left.
//!
//! | what | version 1 | version 2 |
//! |---|---|---|
//! | where | one folder in each hierarchy | one folder |
//! | join | the process writes "0" to `tasks` of each | `CLONE_INTO_CGROUP` |
//! | memory | `memory.limit_in_bytes` | `memory.max`, `memory.oom.group` |
//! | data in TCP and UDP sockets | `memory.kmem.tcp.limit_in_bytes`: an eighth of the memory, beside it | counted as memory |
//! | processes | `pids.max` | `pids.max` |
//! | cores | `cpu.cfs_quota_us` | `cpu.max` |
//! | pause | `freezer.state` | `cgroup.freeze` |
//! | out of memory seen | `memory.oom_control` | `memory.events` |
//!
//! Where a machine has both versions (a hybrid), the one with the memory controller is used. Groups are
//! made below the worker's own, so limits of the worker apply to them too. In version 2 a group with
//! processes cannot have groups with controllers below it. So the worker first moves itself into a new
//! group `openlambda.worker`, which a delegated unit of systemd allows; in the root group that is not
//! needed. Processes that it starts later begin in that group, also other workers: these make their
//! groups beside it, where the first one did.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use openlambda_core::sandbox::Report;
use parking_lot::Mutex;

/// The controllers of version 1 that are used.
const CONTROLLERS: [&str; 4] = ["memory", "pids", "cpu", "freezer"];

/// Version 2: the group that workers move themselves to. No factory's is called like it.
const ASIDE: &str = "openlambda.worker";

/// Where a factory's groups are.
#[derive(Clone, Debug)]
pub(super) enum Cgroups {
    /// By controller: the factory's folder in its hierarchy.
    V1(BTreeMap<&'static str, PathBuf>),
    /// The factory's folder, and the controllers that it has.
    V2(PathBuf, Vec<String>),
}

/// What a group enforces.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limits {
    pub(super) memory: u64,
    pub(super) processes: u32,
    pub(super) cpus: f64,
}

/// One group, for one sandbox after another. Drop removes it.
#[derive(Debug)]
pub(super) struct Cgroup {
    cgroups: Cgroups,
    name: String,
    /// What a newborn joins by.
    join: Vec<OwnedFd>,
    set: Mutex<Option<Limits>>,
}

impl Cgroups {
    /// Finds where groups can be made, and makes the factory's folder there.
    ///
    /// # Errors
    ///
    /// Why none can be made, in words for a person.
    pub(super) fn find(name: &str) -> Result<Cgroups, String> {
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|e| e.to_string())?;
        let mounts = fs::read_to_string("/proc/self/mounts").map_err(|e| e.to_string())?;
        let v1 = find_v1(&own, &mounts);
        if v1.contains_key("memory") {
            let folders: BTreeMap<_, _> =
                v1.into_iter().map(|(controller, path)| (controller, path.join(name))).collect();
            for folder in folders.values() {
                make(folder)?;
            }
            return Ok(Cgroups::V1(folders));
        }
        let Some(mount) = mount_of_v2(&mounts) else {
            return Err("no cgroup tree is mounted".to_owned());
        };
        let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
        find_v2(&mount, path, name)
    }

    /// Whether this controller's limits are enforced.
    pub(super) fn has(&self, controller: &str) -> bool {
        match self {
            Cgroups::V1(folders) => folders.contains_key(controller),
            // Freezing is not a controller there: every group can.
            Cgroups::V2(_, controllers) => {
                controller == "freezer" || controllers.iter().any(|known| known == controller)
            }
        }
    }

    pub(super) fn is_v2(&self) -> bool {
        matches!(self, Cgroups::V2(..))
    }

    /// Makes a group.
    pub(super) fn create(&self, name: &str) -> io::Result<Cgroup> {
        let mut join = Vec::new();
        for folder in self.folders() {
            let folder = folder.join(name);
            fs::create_dir(&folder)?;
            join.push(match self {
                Cgroups::V1(_) => File::options().write(true).open(folder.join("tasks"))?.into(),
                Cgroups::V2(..) => File::open(&folder)?.into(),
            });
        }
        let (cgroups, name) = (self.clone(), name.to_owned());
        Ok(Cgroup { cgroups, name, join, set: Mutex::new(None) })
    }

    /// Ends everything in the factory's groups and removes them, the factory's folder too.
    pub(super) fn remove_all(&self, report: &mut Report) {
        remove_groups(&self.folders().collect::<Vec<_>>(), report);
    }

    /// Removes the factory's folder, if no group is in it.
    pub(super) fn remove_folder(&self) {
        for folder in self.folders() {
            let _ = fs::remove_dir(folder);
        }
    }

    /// Makes the factory's folder again, after [`remove_all`](Self::remove_all).
    pub(super) fn renew(&self) -> Result<(), String> {
        self.folders().try_for_each(|folder| make(&folder))?;
        if let Cgroups::V2(folder, controllers) = self {
            enable(folder, controllers);
        }
        Ok(())
    }

    fn folders(&self) -> impl Iterator<Item = PathBuf> {
        let (v1, v2) = match self {
            Cgroups::V1(folders) => (Some(folders.values()), None),
            Cgroups::V2(folder, _) => (None, Some(folder)),
        };
        v1.into_iter().flatten().chain(v2).cloned().collect::<Vec<_>>().into_iter()
    }

    fn folder(&self, controller: &str) -> Option<&Path> {
        match self {
            Cgroups::V1(folders) => folders.get(controller).map(PathBuf::as_path),
            Cgroups::V2(folder, _) => Some(folder),
        }
    }
}

/// Ends everything in groups of factories whose marks begin with `mark`, and removes them.
pub(super) fn remove_marked(mark: &str, report: &mut Report) {
    remove_groups(&marked(mark), report);
}

/// The groups of factories whose marks begin with `mark`, and those of sandboxes in them.
pub(super) fn all_marked(mark: &str) -> Vec<PathBuf> {
    let factories = marked(mark);
    let sandboxes: Vec<_> = factories.iter().flat_map(|folder| folders_in(folder)).collect();
    factories.into_iter().chain(sandboxes).collect()
}

fn marked(mark: &str) -> Vec<PathBuf> {
    let prefix = name_of(mark);
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut places: Vec<PathBuf> = find_v1(&own, &mounts).into_values().collect();
    if let Some(mount) = mount_of_v2(&mounts) {
        let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
        places.push(own_v2(&mount, path));
        places.push(mount);
    }
    places.sort();
    places.dedup();
    let mut folders: Vec<PathBuf> = places.iter().flat_map(|place| folders_in(place)).collect();
    folders.retain(|folder| {
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.strip_prefix(&prefix).is_some_and(|r| r.is_empty() || r.starts_with(':'))
    });
    folders
}

/// The folder's name of a factory with this mark. No mark holds a colon, so no two share a name.
pub(super) fn name_of(mark: &str) -> String {
    format!("openlambda-{}", mark.replace('/', ":"))
}

fn remove_groups(folders: &[PathBuf], report: &mut Report) {
    let groups = || folders.iter().flat_map(|folder| folders_in(folder));
    // All of them before any is removed: with version 1, what is frozen in one hierarchy keeps the
    // groups of the others.
    let mut killed = BTreeSet::new();
    for group in groups() {
        let _ = thaw(&group);
        for pid in pids_of(&group) {
            killed.insert(pid);
            kill(pid);
        }
    }
    report.processes += killed.len() as u32;
    for group in groups() {
        match remove(&group) {
            Ok(()) => report.removed.push(group.display().to_string()),
            Err(error) => report.failed.push(format!("{}: {error}", group.display())),
        }
    }
    for folder in folders {
        if let Err(error) = remove(folder) {
            report.failed.push(format!("{}: {error}", folder.display()));
        }
    }
}

fn mount_of_v2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (place, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(place))
    })
}

fn find_v1(own: &str, mounts: &str) -> BTreeMap<&'static str, PathBuf> {
    let mut found = BTreeMap::new();
    for controller in CONTROLLERS {
        let mount = mounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let [_, place, "cgroup", options, ..] = *fields else { return None };
            options.split(',').any(|option| option == controller).then_some(place)
        });
        // 4:memory:/path
        let path = own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            controllers.split(',').any(|known| known == controller).then_some(path)
        });
        let (Some(mount), Some(path)) = (mount, path) else { continue };
        let below = Path::new(mount).join(path.trim_start_matches('/'));
        // In a container the path may be that of the machine, which is not seen here.
        let place = if below.is_dir() { below } else { PathBuf::from(mount) };
        found.insert(controller, place);
    }
    found
}

fn find_v2(mount: &Path, path: &str, name: &str) -> Result<Cgroups, String> {
    let own = own_v2(mount, path);
    let read = |file: &str| fs::read_to_string(own.join(file)).unwrap_or_default();
    let controllers: Vec<String> =
        read("cgroup.controllers").split_whitespace().map(str::to_owned).collect();
    let wanted: Vec<String> = controllers
        .into_iter()
        .filter(|controller| CONTROLLERS.contains(&controller.as_str()))
        .collect();
    if !wanted.iter().any(|controller| controller == "memory") {
        return Err(format!("{} has no memory controller", own.display()));
    }
    // At the root, processes may stay where they are. The root has no such file.
    let at_root = !own.join("cgroup.type").exists();
    if !at_root {
        let aside = own.join(ASIDE);
        make(&aside)?;
        for pid in pids_of(&own) {
            let _ = fs::write(aside.join("cgroup.procs"), pid.to_string());
        }
    }
    enable(&own, &wanted);
    let folder = own.join(name);
    make(&folder)?;
    enable(&folder, &wanted);
    let enabled = fs::read_to_string(folder.join("cgroup.subtree_control")).unwrap_or_default();
    let enabled: Vec<String> = enabled.split_whitespace().map(str::to_owned).collect();
    if !enabled.iter().any(|controller| controller == "memory") {
        let _ = fs::remove_dir(&folder);
        return Err(format!(
            "the memory controller is not delegated to {}; run the worker as a unit with \
             Delegate=yes, or in a cgroup of its own",
            own.display()
        ));
    }
    Ok(Cgroups::V2(folder, enabled))
}

/// The group that groups are made in: that of this process, or the one around it if it, or whoever
/// started it, has stepped aside already.
fn own_v2(mount: &Path, path: &str) -> PathBuf {
    let own = mount.join(path.trim_start_matches('/'));
    // In a container the path may be that of the machine, which is not seen here.
    let own = if own.is_dir() { own } else { mount.to_owned() };
    match own.parent() {
        Some(around) if own.ends_with(ASIDE) => around.to_owned(),
        _ => own,
    }
}

fn enable(folder: &Path, controllers: &[String]) {
    for controller in controllers {
        // One by one: a controller that is not to be had must not cost the others.
        let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn make(folder: &Path) -> Result<(), String> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(format!("cannot make {}: {error}", folder.display()))
        }
        _ => Ok(()),
    }
}

impl Cgroup {
    /// What a newborn joins by: `tasks` of each hierarchy, or the one folder.
    pub(super) fn join(&self) -> Vec<BorrowedFd<'_>> {
        self.join.iter().map(AsFd::as_fd).collect()
    }

    pub(super) fn is_v2(&self) -> bool {
        self.cgroups.is_v2()
    }

    /// The factory's.
    pub(super) fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// Bounds what runs in it.
    pub(super) fn set_limits(&self, limits: Limits) -> io::Result<()> {
        let mut set = self.set.lock();
        if *set == Some(limits) {
            return Ok(());
        }
        *set = None;
        if self.cgroups.has("memory") {
            self.write_memory(limits.memory)?;
            self.write_sockets(limits.memory)?;
        }
        const PERIOD_US: f64 = 100_000.0;
        let quota = (limits.cpus * PERIOD_US).max(1000.0) as u64;
        if self.cgroups.has("pids") {
            self.write("pids", "pids.max", &limits.processes.to_string())?;
        }
        if self.cgroups.has("cpu") {
            match self.cgroups {
                Cgroups::V1(_) => self.write("cpu", "cpu.cfs_quota_us", &quota.to_string())?,
                Cgroups::V2(..) => self.write("cpu", "cpu.max", &format!("{quota} {PERIOD_US}"))?,
            }
        }
        *set = Some(limits);
        Ok(())
    }

    pub(super) fn set_memory(&self, bytes: u64) -> io::Result<()> {
        // Written anew for the next sandbox, whatever becomes of this.
        *self.set.lock() = None;
        self.write_memory(bytes)
    }

    fn write_memory(&self, bytes: u64) -> io::Result<()> {
        let text = bytes.to_string();
        match self.cgroups {
            Cgroups::V1(_) => {
                // Memory and swap together, where the kernel counts swap: that limit is never below
                // memory's own, so it goes first on the way up and last on the way down.
                const WITH_SWAP: &str = "memory.memsw.limit_in_bytes";
                let _ = self.write("memory", WITH_SWAP, &text);
                self.write("memory", "memory.limit_in_bytes", &text)?;
                match self.write("memory", WITH_SWAP, &text) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    written => written?,
                }
                Ok(())
            }
            Cgroups::V2(..) => {
                // A sandbox is one thing: half of one is of no use to anybody.
                let _ = self.write("memory", "memory.oom.group", "1");
                let _ = self.write("memory", "memory.swap.max", "0");
                self.write("memory", "memory.max", &text)
            }
        }
    }

    /// Version 1 does not count what waits in TCP and UDP sockets at all until there is a limit, and then
    /// beside the memory. Over it senders wait, but the kernel lets each socket have some 64 KiB in any
    /// case, so who has many of them is to be watched; see [`sockets`](Self::sockets).
    fn write_sockets(&self, memory: u64) -> io::Result<()> {
        if self.is_v2() {
            return Ok(());
        }
        let bytes = (memory / 8).clamp(4 << 20, 256 << 20);
        match self.write("memory", "memory.kmem.tcp.limit_in_bytes", &bytes.to_string()) {
            // A kernel that was built without.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            written => written,
        }
    }

    /// Stops everything in it, and waits until it has stopped.
    ///
    /// # Errors
    ///
    /// They do not stop, or `given_up` says that they need not any more; it may be thawed by then.
    pub(super) async fn freeze(&self, given_up: impl Fn() -> bool) -> io::Result<()> {
        match self.cgroups {
            Cgroups::V1(_) => self.write("freezer", "freezer.state", "FROZEN")?,
            Cgroups::V2(..) => self.write("", "cgroup.freeze", "1")?,
        }
        for _ in 0..1000 {
            let frozen = match self.cgroups {
                Cgroups::V1(_) => self.read("freezer", "freezer.state")?.trim() == "FROZEN",
                Cgroups::V2(..) => value_of(&self.read("", "cgroup.events")?, "frozen") == Some(1),
            };
            if given_up() {
                return Err(io::Error::other("it is being ended"));
            }
            if frozen {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "its processes do not stop"))
    }

    pub(super) fn thaw(&self) -> io::Result<()> {
        match self.cgroups {
            Cgroups::V1(_) => self.write("freezer", "freezer.state", "THAWED"),
            Cgroups::V2(..) => self.write("", "cgroup.freeze", "0"),
        }
    }

    /// How often the kernel has killed processes in it for lack of memory, since it was made.
    pub(super) fn oom_kills(&self) -> u64 {
        let text = match self.cgroups {
            Cgroups::V1(_) => self.read("memory", "memory.oom_control"),
            Cgroups::V2(..) => self.read("memory", "memory.events"),
        };
        text.ok().and_then(|text| value_of(&text, "oom_kill")).unwrap_or(0)
    }

    /// Bytes that wait in TCP and UDP sockets, where they do not count as memory.
    pub(super) fn sockets(&self) -> Option<u64> {
        if self.is_v2() {
            return None;
        }
        self.read("memory", "memory.kmem.tcp.usage_in_bytes").ok()?.trim().parse().ok()
    }

    /// Bytes in use, and processes.
    pub(super) fn usage(&self) -> io::Result<(u64, u32)> {
        let memory = match self.cgroups {
            Cgroups::V1(_) => self.read("memory", "memory.usage_in_bytes")?,
            Cgroups::V2(..) => self.read("memory", "memory.current")?,
        };
        let memory = memory.trim().parse().unwrap_or(0);
        Ok((memory, self.tasks().unwrap_or(0)))
    }

    /// Processes and threads, also those that have ended and are not waited for.
    pub(super) fn tasks(&self) -> io::Result<u32> {
        let text = self.read("pids", "pids.current")?;
        text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Whether no process is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.folders().all(|folder| pids_of(&folder).is_empty())
    }

    /// Kills what is still in it. A process that has just been cloned may be here already and not
    /// yet where it would be killed otherwise.
    pub(super) fn kill(&self) {
        for folder in self.folders() {
            pids_of(&folder).into_iter().for_each(kill);
        }
    }

    fn folders(&self) -> impl Iterator<Item = PathBuf> {
        self.cgroups.folders().map(|folder| folder.join(&self.name))
    }

    fn path(&self, controller: &str, file: &str) -> io::Result<PathBuf> {
        let folder = self.cgroups.folder(controller).ok_or(io::ErrorKind::Unsupported)?;
        Ok(folder.join(&self.name).join(file))
    }

    fn write(&self, controller: &str, file: &str, text: &str) -> io::Result<()> {
        let mut file = File::options().write(true).open(self.path(controller, file)?)?;
        file.write_all(text.as_bytes())
    }

    fn read(&self, controller: &str, file: &str) -> io::Result<String> {
        // Files of the kernel have no length that could be trusted.
        let mut text = String::with_capacity(256);
        File::open(self.path(controller, file)?)?.read_to_string(&mut text)?;
        Ok(text)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.join.clear();
        for folder in self.folders() {
            if let Err(error) = remove(&folder) {
                tracing::warn!(path = %folder.display(), %error, "cannot remove a cgroup");
            }
        }
    }
}

/// A line `name value`.
fn value_of(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn folders_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn pids_of(folder: &Path) -> Vec<i32> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn thaw(folder: &Path) -> io::Result<()> {
    fs::write(folder.join("freezer.state"), "THAWED")
        .or_else(|_| fs::write(folder.join("cgroup.freeze"), "0"))
}

/// The kernel lets go of a group a moment after its last process.
fn remove(folder: &Path) -> io::Result<()> {
    for _ in 0..500 {
        match fs::remove_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                pids_of(folder).into_iter().for_each(kill);
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            done => return done,
        }
    }
    fs::remove_dir(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group of version 2 in a folder that holds the kernel's files as plain ones.
    fn group_of_v2(root: &Path) -> Cgroup {
        let controllers = ["cpu", "memory", "pids"].map(str::to_owned).to_vec();
        let group = Cgroups::V2(root.to_owned(), controllers).create("0").unwrap();
        for (file, content) in [
            ("cgroup.procs", ""),
            ("cgroup.freeze", "0"),
            ("cgroup.events", "populated 1\nfrozen 1\n"),
            ("memory.max", "max"),
            ("memory.swap.max", "max"),
            ("memory.oom.group", "0"),
            ("memory.current", "4096\n"),
            ("memory.events", "low 0\nhigh 0\nmax 9\noom 2\noom_kill 3\noom_group_kill 1\n"),
            ("pids.max", "max"),
            ("pids.current", "7\n"),
            ("cpu.max", "max 100000"),
        ] {
            fs::write(root.join("0").join(file), content).unwrap();
        }
        group
    }

    #[tokio::test]
    async fn version_2_gets_its_limits_and_is_frozen_by_its_own_files() {
        let dir = tempfile::tempdir().unwrap();
        let group = group_of_v2(dir.path());
        let read = |file: &str| fs::read_to_string(dir.path().join("0").join(file)).unwrap();
        group.set_limits(Limits { memory: 64 << 20, processes: 33, cpus: 1.5 }).unwrap();
        // What was there is longer or shorter; the kernel takes a write as a whole.
        assert!(read("memory.max").starts_with("67108864"));
        assert!(read("memory.swap.max").starts_with('0'));
        assert!(read("memory.oom.group").starts_with('1'));
        assert!(read("pids.max").starts_with("33"));
        assert!(read("cpu.max").starts_with("150000 100000"));
        group.set_memory(32 << 20).unwrap();
        assert!(read("memory.max").starts_with("33554432"));
        assert_eq!((group.oom_kills(), group.usage().unwrap()), (3, (4096, 7)));
        group.freeze(|| false).await.unwrap();
        assert_eq!(read("cgroup.freeze"), "1");
        group.freeze(|| true).await.unwrap_err();
        group.thaw().unwrap();
        assert_eq!(read("cgroup.freeze"), "0");
        assert!(group.is_empty() && group.is_v2() && group.join().len() == 1);
        for file in fs::read_dir(dir.path().join("0")).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
        drop(group);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn version_2_wants_the_memory_controller_and_moves_the_worker_aside() {
        let dir = tempfile::tempdir().unwrap();
        let unit = dir.path().join("system.slice/worker.service");
        fs::create_dir_all(&unit).unwrap();
        let find = || find_v2(dir.path(), "/system.slice/worker.service", "openlambda-w");
        fs::write(unit.join("cgroup.controllers"), "hugetlb").unwrap();
        assert!(find().unwrap_err().contains("has no memory controller"));
        // Plain files delegate nothing.
        fs::write(unit.join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        fs::write(unit.join("cgroup.type"), "domain").unwrap();
        fs::write(unit.join("cgroup.procs"), "4194305\n").unwrap();
        assert!(find().unwrap_err().contains("Delegate=yes"));
        assert_eq!(fs::read_to_string(unit.join(ASIDE).join("cgroup.procs")).unwrap(), "4194305");
        // Whoever is there already makes groups where the first one did.
        let inside = format!("/system.slice/worker.service/{ASIDE}");
        assert_eq!(own_v2(dir.path(), &inside), unit);
        assert_eq!(own_v2(dir.path(), "/system.slice/worker.service"), unit);
        assert_eq!(own_v2(dir.path(), "/not/seen/here"), dir.path());
    }

    #[test]
    fn hierarchies_are_found_by_controller() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display();
        for place in ["memory/unit", "cpu,cpuacct", "unified"] {
            fs::create_dir_all(dir.path().join(place)).unwrap();
        }
        let mounts = format!(
            "cgroup2 {root}/unified cgroup2 rw 0 0\ncgroup {root}/memory cgroup rw,memory 0 0\n\
             cgroup {root}/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n"
        );
        let own = "5:memory:/unit\n4:cpu,cpuacct:/not/seen/here\n2:pids:/unit\n0::/\n";
        let found = find_v1(own, &mounts);
        assert_eq!(found["memory"], dir.path().join("memory/unit"));
        assert_eq!(found["cpu"], dir.path().join("cpu,cpuacct"));
        assert_eq!(found.len(), 2, "pids is mounted nowhere");
        assert_eq!(mount_of_v2(&mounts), Some(dir.path().join("unified")));
    }

    /// No two marks share a folder, and one's clean-up is not another's.
    #[test]
    fn names_tell_marks_apart() {
        assert_eq!(name_of("a/b"), "openlambda-a:b");
        assert_ne!(name_of("a/b"), name_of("a-b"));
    }
}
