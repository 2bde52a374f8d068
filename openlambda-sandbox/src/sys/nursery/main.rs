//! The nursery: the small process that makes a worker's sandboxes.
//!
//! It is a program of its own, and not a part of the worker, because a worker has many threads and much
//! memory: a process with threads cannot enter a user namespace, and forking a large one is slow. It
//! speaks [`message`] over two sockets, whose descriptors are its arguments:
//!
//! ```text
//! worker ── Setup ──▶ nursery ─┬─ the home: a Start each ──▶ clone ─▶ isolation, step by step
//!                              │                               ├─ clone: the last steps ─▶ exec of the program
//!                              │                               └─ exec of the init, see `init.rs`
//!                              │    └─ fork: a root with folders that no start has asked for before
//!                              └─ fork: the network maker: a NetworkRequest each ──▶ namespace,
//!                                       2 listeners, a pair of devices if it is for a bridged one
//! ```
//!
//! A start is *one* clone into new namespaces. Everything that is the same for many starts is made before
//! it: the mount namespace that it copies holds a finished root (see [`skeleton`]); the network namespace
//! and the cgroup come from the worker's pool. The remaining steps are those of [`newborn`], which becomes
//! the sandbox's init, and of [`program`], which becomes the function's program: a second clone that
//! shares the newborn's memory until it is executed, so that nothing is copied. Each step is a function
//! that says what it takes away.
//!
//! It uses nothing but std and the C library, which it declares itself.

#[path = "c.rs"]
mod c;
#[path = "links.rs"]
mod links;
#[path = "message.rs"]
#[allow(dead_code, reason = "each of the two programs writes what the other reads")]
mod message;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::ptr;

use message::{Answer, Link, NetworkRequest, Setup, Start};

/// The address of the Runtime API inside of each network namespace.
const API_PORT: u16 = 9001;
/// The abstract Unix socket of the same, for our own bootstraps.
const API_SOCKET: &[u8] = b"openlambda-runtime";

/// The first process of each sandbox, once its program runs, as `build.rs` compiled it.
static INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ol-init-of-sock"));
/// What processes are found by, see `sys/mark.rs`.
const MARK: &str = "OPENLAMBDA_MARK=";

/// A step that failed, and why.
type Failed = (&'static str, i32);

fn main() {
    let mut arguments = std::env::args().skip(1).map(|fd| fd.parse::<RawFd>());
    let (Some(Ok(worker)), Some(Ok(networks))) = (arguments.next(), arguments.next()) else {
        eprintln!("this program is started by OpenLambda's workers; start ol-worker instead");
        std::process::exit(2);
    };
    // What a worker was started with is not for those who are born here: its descriptors, the signals
    // that it ignores, its keys, its idea of who may read new files.
    let _ = c::close_on_exec_from(3);
    c::default_signals();
    c::own_session_keyring();
    c::umask(0o022);
    let mut buffer = vec![0; 4 << 20];
    let Ok((length, _)) = c::receive(worker, &mut buffer) else { return };
    let Ok(setup) = Setup::read(&buffer[..length]) else { return };
    let mut home = match Home::new(worker, setup) {
        Ok(home) => home,
        Err((step, errno)) => {
            let _ = c::send(worker, &Answer::Ready(Err((step.to_owned(), errno))).write(), &[]);
            return;
        }
    };
    // SAFETY: there is one thread, so the child may do whatever a process may.
    if unsafe { c::fork() } == 0 {
        c::close(worker);
        c::die_with_parent();
        make_networks(networks);
        return;
    }
    c::close(networks);
    let _ = c::send(worker, &Answer::Ready(Ok(())).write(), &[]);
    home.serve(&mut buffer);
}

/// The process that starts sandboxes.
struct Home {
    /// The socket to the worker.
    worker: RawFd,
    setup: Setup,
    filter: Vec<c::SockFilter>,
    /// The machine's mounts, as far as this process is allowed to see them: sources are opened here.
    machine: OwnedFd,
    /// Finished roots, by the folders that they have beside the usual ones.
    skeletons: BTreeMap<Vec<String>, OwnedFd>,
    /// Those that are being made.
    builders: Vec<Builder>,
    /// Tells when a child has ended.
    signals: OwnedFd,
    /// Tells a newborn that this process has ended.
    own: OwnedFd,
    /// The init's program.
    init: OwnedFd,
    /// What of `/proc` is to be hidden, of what this kernel has, and below what.
    hidden: Vec<(CString, &'static CStr)>,
    /// How early the kernel kills a sandbox when the machine runs out of memory.
    oom_score: Vec<u8>,
}

/// A process that makes a root.
struct Builder {
    /// Where it says that it is done, with the root beside the message, or what failed.
    answers: UnixStream,
    folders: Vec<String>,
    /// Starts that wait for it.
    waiting: Vec<(Start, Vec<OwnedFd>)>,
}

/// What `/proc` tells of the machine or its users beside what programs need: how it was started and
/// built, where the kernel's code is, what others lock, when they work, their keys. Each costs a start
/// 10 µs, so what only says how busy the machine is can be read.
const HIDDEN: [&str; 14] = [
    "cmdline", "config.gz", "interrupts", "kallsyms", "kcore", "key-users", "keys", "latency_stats",
    "locks", "modules", "pressure", "sched_debug", "sysrq-trigger", "timer_list",
];

impl Home {
    fn new(worker: RawFd, setup: Setup) -> Result<Self, Failed> {
        if setup.rootless {
            own_user_namespace()?;
        }
        c::unshare(c::CLONE_NEWNS).map_err(|e| ("unshare mount namespace", e))?;
        // The machine's mounts come in, ours never go out.
        c::mount(None, c"/", None, c::MS_REC | c::MS_SLAVE, None)
            .map_err(|e| ("make mounts private", e))?;
        let machine = open_namespace("mnt").map_err(|e| ("open mount namespace", e))?;
        let signals = c::child_signals().map_err(|e| ("signalfd", e))?;
        // For all that are born here: once, since the kernel has no call that takes them together.
        c::drop_bounding_set().map_err(|e| ("drop bounding set", e))?;
        let filter = c::filter_of(&setup.filter);
        let mut hidden = Vec::new();
        for path in HIDDEN.iter().map(|name| format!("/proc/{name}")) {
            let Ok(metadata) = fs::metadata(&path) else { continue };
            const OTHERS_MAY_READ: u32 = 0o004;
            if metadata.permissions().mode() & OTHERS_MAY_READ == 0 {
                continue;
            }
            // Both are of the sandbox's root, where the second is an empty folder.
            let cover = if metadata.is_dir() { c"/sys" } else { c"/dev/null" };
            hidden.push((cstring(&path)?, cover));
        }
        let score = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
        let mut home = Home {
            worker,
            setup,
            filter,
            machine,
            skeletons: BTreeMap::new(),
            builders: Vec::new(),
            signals,
            own: c::own_pidfd().map_err(|e| ("open own process", e))?,
            init: c::program_in_memory(c"ol-init", INIT).map_err(|errno| match errno {
                1 | 13 => ("keep the init (does vm.memfd_noexec forbid it?)", errno),
                _ => ("keep the init", errno),
            })?,
            hidden,
            // Before the worker and whatever else the machine is for, which may be spared itself.
            oom_score: score.trim().parse().unwrap_or(0).max(500).to_string().into_bytes(),
        };
        // Whether it can be done at all.
        let first = skeleton(&home.setup, &[]);
        c::setns(home.machine.as_raw_fd(), c::CLONE_NEWNS).map_err(|e| ("leave root", e))?;
        home.keep(Vec::new(), first?);
        Ok(home)
    }

    /// Starts what the worker asks for and tells what has ended, until the worker is gone.
    fn serve(&mut self, buffer: &mut [u8]) {
        loop {
            let mut from = vec![self.worker, self.signals.as_raw_fd()];
            from.extend(self.builders.iter().map(|builder| builder.answers.as_raw_fd()));
            let ready = match c::wait_for_any(&from) {
                Ok(ready) => ready,
                Err(c::EINTR) => continue,
                Err(_) => return,
            };
            if ready[1] {
                c::drain_signals(self.signals.as_raw_fd());
                while let Some((pid, status)) = c::reap() {
                    let _ = c::send(self.worker, &Answer::Ended { pid, status }.write(), &[]);
                }
            }
            // From the last to the first, so that those before keep their places.
            for n in (0..self.builders.len()).rev() {
                if ready[2 + n] {
                    let builder = self.builders.swap_remove(n);
                    if self.built(builder).is_err() {
                        return;
                    }
                }
            }
            if !ready[0] {
                continue;
            }
            let (length, descriptors) = match c::receive(self.worker, buffer) {
                // The worker is gone: so are we, and with us, all that was born here.
                Ok((0, _)) | Err(_) => return,
                Ok(received) => received,
            };
            let Ok(start) = Start::read(&buffer[..length]) else { return };
            if self.begin(start, descriptors).is_err() {
                return;
            }
        }
    }

    /// Starts it, if its root is there, or else when it is.
    ///
    /// # Errors
    ///
    /// The worker is gone.
    fn begin(&mut self, start: Start, descriptors: Vec<OwnedFd>) -> Result<(), i32> {
        if let Some(root) = self.skeletons.get(&start.folders).map(AsRawFd::as_raw_fd) {
            let started = self.start(&start, root, descriptors);
            let started = started.map_err(|(step, errno)| (step.to_owned(), errno));
            return self.answer(start.id, started);
        }
        let folders = &start.folders;
        if let Some(builder) = self.builders.iter_mut().find(|known| known.folders == *folders) {
            builder.waiting.push((start, descriptors));
            return Ok(());
        }
        match self.build(start.folders.clone()) {
            Ok(answers) => {
                let (folders, waiting) = (start.folders.clone(), vec![(start, descriptors)]);
                self.builders.push(Builder { answers, folders, waiting });
                Ok(())
            }
            Err((step, errno)) => self.answer(start.id, Err((step.to_owned(), errno))),
        }
    }

    /// Tells the worker what became of a start.
    fn answer(&self, id: u64, started: Result<(i32, OwnedFd), (String, i32)>) -> Result<(), i32> {
        match started {
            Ok((pid, pidfd)) => {
                let answer = Answer::Started { id, pid, failed: None };
                c::send(self.worker, &answer.write(), &[pidfd.as_raw_fd()])
            }
            Err(failed) => {
                let answer = Answer::Started { id, pid: 0, failed: Some(failed) };
                c::send(self.worker, &answer.write(), &[])
            }
        }
    }

    /// Has a root with these folders made, in a process of its own: it takes a few milliseconds, and
    /// who starts something else does not wait for it.
    fn build(&self, folders: Vec<String>) -> Result<UnixStream, Failed> {
        let (answers, theirs) = UnixStream::pair()
            .map_err(|e| ("make a socket", e.raw_os_error().unwrap_or(c::EIO)))?;
        // SAFETY: there is one thread, so the child may do whatever a process may.
        match unsafe { c::fork() } {
            0 => {
                c::die_with_parent();
                let _ = match skeleton(&self.setup, &folders) {
                    Ok(made) => c::send(theirs.as_raw_fd(), &[0], &[made.as_raw_fd()]),
                    Err((step, errno)) => {
                        let said = [&errno.to_le_bytes(), step.as_bytes()].concat();
                        c::send(theirs.as_raw_fd(), &said, &[])
                    }
                };
                c::exit(0)
            }
            -1 => Err(("fork", c::errno())),
            _ => Ok(answers),
        }
    }

    /// A root is made, or is not: on with those who wait for it.
    fn built(&mut self, builder: Builder) -> Result<(), i32> {
        let Builder { answers, folders, waiting } = builder;
        let mut said = [0; 256];
        let made = match c::receive(answers.as_raw_fd(), &mut said) {
            Ok((_, mut descriptors)) if !descriptors.is_empty() => Ok(descriptors.remove(0)),
            Ok((length, _)) => match said[..length].split_first_chunk() {
                Some((errno, step)) => {
                    let step = String::from_utf8_lossy(step).into_owned();
                    Err((step, i32::from_le_bytes(*errno)))
                }
                None => Err(("make a root".to_owned(), c::EIO)),
            },
            Err(errno) => Err(("make a root".to_owned(), errno)),
        };
        match made {
            Ok(made) => {
                self.keep(folders, made);
                for (start, descriptors) in waiting {
                    self.begin(start, descriptors)?;
                }
            }
            Err(failed) => {
                for (start, _) in waiting {
                    self.answer(start.id, Err(failed.clone()))?;
                }
            }
        }
        Ok(())
    }

    fn keep(&mut self, folders: Vec<String>, made: OwnedFd) {
        if self.skeletons.len() >= 64 {
            self.skeletons.pop_last();
        }
        self.skeletons.insert(folders, made);
    }

    /// One start: opens what it mounts, enters its root, and clones.
    fn start(
        &self,
        start: &Start,
        root: RawFd,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(i32, OwnedFd), Failed> {
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or(("descriptors", c::EBADF));
        let (stdout, stderr, errors) = (next()?, next()?, next()?);
        let network = if start.has_network { Some(next()?) } else { None };
        let cgroups: Vec<OwnedFd> = descriptors.collect();
        let mut mounts = Vec::new();
        for (source, target, writes) in &start.mounts {
            mounts.push((open_mount(source, *writes)?, cstring(target)?));
        }
        let plan = Plan {
            start,
            mounts,
            stdout,
            stderr,
            errors,
            network,
            tmp: cstring(&options_of(start.tmp_bytes, start.outside_id))?,
            shm: cstring(&options_of(start.shm_bytes, start.outside_id))?,
            folder: cstring(&start.folder)?,
            program: cstring(&start.program)?,
            arguments: cstrings(&start.arguments)?,
            environment: cstrings(&start.environment)?,
            filter: &self.filter,
            home: self,
        };
        c::setns(root, c::CLONE_NEWNS).map_err(|e| ("enter root", e))?;
        let born = clone(&plan, &cgroups);
        // Back to where sources are opened, whatever came of it.
        c::setns(self.machine.as_raw_fd(), c::CLONE_NEWNS).map_err(|e| ("leave root", e))?;
        born
    }
}

/// Becomes root of a user namespace, which is all the power that an ordinary user can have here.
fn own_user_namespace() -> Result<(), Failed> {
    // SAFETY: they take nothing and cannot fail.
    let (uid, gid) = unsafe { (c::getuid(), c::getgid()) };
    c::unshare(c::CLONE_NEWUSER).map_err(|e| ("unshare user namespace", e))?;
    write_file(c"/proc/self/setgroups", b"deny").map_err(|e| ("deny setgroups", e))?;
    write_file(c"/proc/self/uid_map", format!("0 {uid} 1").as_bytes())
        .map_err(|e| ("map user", e))?;
    write_file(c"/proc/self/gid_map", format!("0 {gid} 1").as_bytes())
        .map_err(|e| ("map group", e))?;
    Ok(())
}

// What all sandboxes share: a read-only root.

/// Makes a mount namespace whose root holds the machine's programs and nothing else of it.
///
/// ```text
/// /            tmpfs, read-only
/// /usr         the machine's own, read-only; /bin, /lib … as the machine has them
/// /etc         copies of what programs need, names for two users
/// /dev         null, zero, full, random, urandom, tty
/// /var/task    where the bundle goes; /handler leads there
/// /tmp, /dev/shm, /dev/pts, /proc    where each start mounts its own
/// ```
fn skeleton(setup: &Setup, folders: &[String]) -> Result<OwnedFd, Failed> {
    c::unshare(c::CLONE_NEWNS).map_err(|e| ("unshare mount namespace", e))?;
    c::mount(None, c"/", None, c::MS_REC | c::MS_PRIVATE, None)
        .map_err(|e| ("make mounts private", e))?;
    // Any folder will do: what is below it is seen by nobody but us, and only until the next step.
    let place = ["/mnt", "/tmp", "/run", "/var"].into_iter().find(|p| Path::new(p).is_dir());
    let place = place.ok_or(("find a folder to mount on", c::ENOENT))?;
    let root = cstring(place)?;
    // Bounded in files and folders too, which are the kernel's memory: it stays, for the next start.
    c::mount(Some(c"root"), &root, Some(c"tmpfs"), 0, Some(c"mode=755,size=64m,nr_inodes=8192"))
        .map_err(|e| ("mount root", e))?;
    let io = |step: &'static str| move |e: io::Error| (step, e.raw_os_error().unwrap_or(c::EIO));
    fill(setup, folders, Path::new(place)).map_err(io("fill root"))?;
    let usr = open_mount("/usr", false)?;
    c::move_mount(usr.as_raw_fd(), &cstring(&format!("{place}/usr"))?)
        .map_err(|e| ("mount /usr", e))?;
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        let (path, target) = (format!("/{name}"), format!("{place}/{name}"));
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_symlink() => {
                let leads_to = fs::read_link(&path).map_err(io("read link"))?;
                symlink(leads_to, &target).map_err(io("make link"))?;
            }
            Ok(metadata) if metadata.is_dir() => {
                fs::create_dir(&target).map_err(io("make folder"))?;
                let own = open_mount(&path, false)?;
                c::move_mount(own.as_raw_fd(), &cstring(&target)?)
                    .map_err(|e| ("mount libraries", e))?;
            }
            _ => {}
        }
    }
    devices(place, setup.watched)?;
    c::mount(None, &root, None, c::MS_REMOUNT | c::MS_RDONLY | c::MS_NOSUID, None)
        .map_err(|e| ("make root read-only", e))?;
    // Opened while /proc is still there.
    let namespace = open_namespace("mnt").map_err(|e| ("open mount namespace", e))?;
    if setup.rootless {
        // The kernel lets a user namespace mount /proc only where one can be seen already.
        let seen = c::open_tree(c"/proc", c::OPEN_TREE_CLONE | c::AT_RECURSIVE)
            .map_err(|e| ("open /proc", e))?;
        c::move_mount(seen.as_raw_fd(), &cstring(&format!("{place}/proc"))?)
            .map_err(|e| ("show /proc", e))?;
    }
    c::chdir(&root).map_err(|e| ("enter root", e))?;
    c::pivot_root(c".", c".").map_err(|e| ("pivot root", e))?;
    c::unmount(c".").map_err(|e| ("unmount the machine's root", e))?;
    c::chdir(c"/").map_err(|e| ("enter root", e))?;
    Ok(namespace)
}

/// Folders, files of `/etc`, and our bootstraps.
fn fill(setup: &Setup, folders: &[String], root: &Path) -> io::Result<()> {
    let folder = |path: &str| fs::create_dir_all(root.join(path.trim_start_matches('/')));
    for path in
        ["usr", "dev", "etc", "proc", "sys", "tmp", "run", "mnt", "var/task", "var/runtime", "var/lib"]
    {
        folder(path)?;
    }
    for path in folders {
        folder(path)?;
    }
    symlink("/tmp", root.join("var/tmp"))?;
    symlink("/run", root.join("var/run"))?;
    // Where functions of the Go project find them. A volume there goes before.
    folder("host")?;
    for (place, name) in [("/tmp", "host/tmp"), ("/var/task", "handler")] {
        match symlink(place, root.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            done => done?,
        }
    }
    for (name, mode, content) in &setup.runtime_files {
        let path = root.join("var/runtime").join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode))?;
    }
    for (name, content) in [
        ("passwd", "root:x:0:0:root:/:/bin/sh\nsandbox:x:1000:1000:sandbox:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
        ("group", "root:x:0:\nsandbox:x:1000:\nnogroup:x:65534:\n"),
        ("hosts", "127.0.0.1 localhost sandbox\n::1 localhost\n"),
        ("hostname", "sandbox\n"),
        ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ] {
        fs::write(root.join("etc").join(name), content)?;
    }
    // What is public on every machine and programs look for. What is missing here is missing there.
    for path in [
        "ld.so.cache", "localtime", "mime.types", "protocols", "services", "resolv.conf",
        "ssl/certs/ca-certificates.crt", "ssl/openssl.cnf", "python3/debian_config",
    ] {
        let Ok(content) = fs::read(Path::new("/etc").join(path)) else { continue };
        let target = root.join("etc").join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(target, content)?;
    }
    // Which of several programs of one name is meant: links only.
    if let Ok(alternatives) = fs::read_dir("/etc/alternatives") {
        fs::create_dir_all(root.join("etc/alternatives"))?;
        for entry in alternatives.flatten() {
            if let Ok(target) = fs::read_link(entry.path()) {
                let _ = symlink(target, root.join("etc/alternatives").join(entry.file_name()));
            }
        }
    }
    Ok(())
}

/// The devices that hold nothing of the machine's. `zero` can be mapped as memory that several share;
/// where nobody could see that, it is `full`, which reads the same and cannot.
fn devices(root: &str, watched: bool) -> Result<(), Failed> {
    let zero = if watched { ("full", 1, 7) } else { ("zero", 1, 5) };
    for (name, (own, major, minor)) in [
        ("null", ("null", 1, 3)),
        ("zero", zero),
        ("full", ("full", 1, 7)),
        ("random", ("random", 1, 8)),
        ("urandom", ("urandom", 1, 9)),
        // The terminal of whoever opens it, if it has one.
        ("tty", ("tty", 5, 0)),
    ] {
        let target = cstring(&format!("{root}/dev/{name}"))?;
        if c::make_device(&target, major, minor).is_ok() {
            continue;
        }
        // A user namespace may not make devices, but may show those that are there.
        fs::write(format!("{root}/dev/{name}"), "")
            .map_err(|e| ("make device", e.raw_os_error().unwrap_or(c::EIO)))?;
        let device = c::open_tree(&cstring(&format!("/dev/{own}"))?, c::OPEN_TREE_CLONE)
            .map_err(|e| ("open device", e))?;
        c::move_mount(device.as_raw_fd(), &target).map_err(|e| ("show device", e))?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(target, format!("{root}/dev/{name}"))
            .map_err(|e| ("make link", e.raw_os_error().unwrap_or(c::EIO)))?;
    }
    for name in ["shm", "pts"] {
        fs::create_dir(format!("{root}/dev/{name}"))
            .map_err(|e| ("make folder", e.raw_os_error().unwrap_or(c::EIO)))?;
    }
    Ok(())
}

/// A folder of the machine as a mount that belongs nowhere yet.
fn open_mount(source: &str, writes: bool) -> Result<OwnedFd, Failed> {
    let tree = c::open_tree(&cstring(source)?, c::OPEN_TREE_CLONE).map_err(|e| ("open mount", e))?;
    let read_only = if writes { 0 } else { c::MOUNT_ATTR_RDONLY };
    c::mount_setattr(tree.as_raw_fd(), c::MOUNT_ATTR_NOSUID | c::MOUNT_ATTR_NODEV | read_only)
        .map_err(|e| ("protect mount", e))?;
    Ok(tree)
}

// What each sandbox has of its own.

/// Everything that the newborn needs, ready before the clone.
struct Plan<'a> {
    start: &'a Start,
    mounts: Vec<(OwnedFd, CString)>,
    stdout: OwnedFd,
    stderr: OwnedFd,
    errors: OwnedFd,
    network: Option<OwnedFd>,
    tmp: CString,
    shm: CString,
    folder: CString,
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    filter: &'a [c::SockFilter],
    home: &'a Home,
}

/// Of a file system in memory, bounded in files too, which take memory of the kernel's: one for each page,
/// as large files need.
fn options_of(bytes: u64, owner: u32) -> String {
    let (bytes, files) = (bytes.max(4096), bytes / 4096 + 1024);
    let owner = match owner {
        0 => String::new(),
        id => format!(",uid={id},gid={id}"),
    };
    format!("size={bytes},nr_inodes={files},mode=1777{owner}")
}

/// The one clone of a start: into new mount, process, IPC and host-name namespaces, and into its
/// cgroup where the kernel can do that.
fn clone(plan: &Plan<'_>, cgroups: &[OwnedFd]) -> Result<(i32, OwnedFd), Failed> {
    let mut flags = c::CLONE_NEWNS
        | c::CLONE_NEWPID
        | c::CLONE_NEWIPC
        | c::CLONE_NEWUTS
        | c::CLONE_PIDFD
        | c::CLONE_CLEAR_SIGHAND;
    let mut pidfd: c_int = -1;
    let mut arguments = c::CloneArgs::default();
    arguments.pidfd = ptr::from_mut(&mut pidfd) as u64;
    arguments.exit_signal = c::SIGCHLD as u64;
    if plan.start.cgroup_v2
        && let [folder] = cgroups
    {
        flags |= c::CLONE_INTO_CGROUP;
        arguments.cgroup = folder.as_raw_fd() as u64;
    }
    arguments.flags = flags;
    match c::clone3(&mut arguments) {
        Ok(0) => {
            let Err(failed) = newborn(plan, cgroups);
            give_up(plan, failed)
        }
        // SAFETY: the kernel has just opened it for us.
        Ok(pid) => Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) })),
        Err(errno) => Err(("clone", errno)),
    }
}

/// Says which step failed, and ends.
fn give_up(plan: &Plan<'_>, (step, errno): Failed) -> ! {
    let message = format!("{step}: {}", io::Error::from_raw_os_error(errno));
    c::write(plan.errors.as_raw_fd(), message.as_bytes());
    c::exit(125)
}

/// The newborn's way from a copy of the nursery to the sandbox's init. In this order: what needs power
/// first, then the power goes, then the program begins.
fn newborn(plan: &Plan<'_>, cgroups: &[OwnedFd]) -> Result<Infallible, Failed> {
    if !plan.start.cgroup_v2 {
        join_cgroups(cgroups)?;
    }
    own_cgroup_root()?;
    own_network(plan)?;
    own_session()?;
    own_name()?;
    own_output(plan)?;
    own_files(plan)?;
    let proc = own_view_of_the_kernel(plan.home)?;
    become_nobody(plan.start)?;
    // Without root it is the first user of the namespace around, whom only one with this capability may
    // give a name in its own. As root it has none by now.
    give_up_power(if plan.start.outside_id == 0 { c::CAP_SETFCAP } else { 0 })?;
    // After the last change of identity, which would undo it.
    die_with_nursery(plan.home);
    keep_what_is_needed(plan, &proc)?;
    // None is lost that comes before the init waits for it.
    c::block_signals();
    let program = begin_program(plan, &proc)?;
    become_init(plan, program)
}

/// The way from there to the function's program, in a process of its own.
fn program(plan: &Plan<'_>, proc: &OwnedFd) -> Result<Infallible, Failed> {
    c::unblock_signals();
    // Its own too: what it sends to its group is not for the init.
    own_session()?;
    own_users(plan.start, proc)?;
    // In the user namespace: of processes, the kernel then counts those inside of it alone.
    own_limits(plan.start)?;
    // Whoever begins a user namespace has all power in it, and its bounding set anew.
    c::drop_bounding_set().map_err(|e| ("drop bounding set", e))?;
    give_up_power(0)?;
    enter_folder(plan)?;
    // The init's memory, which is the nursery's still: nobody who is born now may look at it. With the
    // program comes a memory that its own user may look at.
    c::be_dumpable(false);
    filter_calls(plan.filter)?;
    execute(plan)
}

/// cgroup v1: whoever writes "0" moves itself, one thread, which is fast.
fn join_cgroups(cgroups: &[OwnedFd]) -> Result<(), Failed> {
    for tasks in cgroups {
        c::write_all(tasks.as_raw_fd(), b"0").map_err(|e| ("join cgroup", e))?;
    }
    Ok(())
}

/// Its own cgroup, or the worker's where it has none, is the root of what it can see of them.
fn own_cgroup_root() -> Result<(), Failed> {
    c::unshare(c::CLONE_NEWCGROUP).map_err(|e| ("unshare cgroup namespace", e))
}

/// A network of its own, which has only a loopback and the Runtime API's listeners.
fn own_network(plan: &Plan<'_>) -> Result<(), Failed> {
    let Some(network) = &plan.network else { return Ok(()) };
    c::setns(network.as_raw_fd(), c::CLONE_NEWNET).map_err(|e| ("enter network", e))
}

/// No terminal of ours, no group of ours.
fn own_session() -> Result<(), Failed> {
    c::setsid();
    Ok(())
}

/// No name of this machine.
fn own_name() -> Result<(), Failed> {
    c::sethostname(b"sandbox").map_err(|e| ("set host name", e))
}

/// Standard input is empty, output goes to the log, and no other descriptor of ours stays.
fn own_output(plan: &Plan<'_>) -> Result<(), Failed> {
    let null = c::open(c"/dev/null", c::O_RDWR).map_err(|e| ("open /dev/null", e))?;
    let failed = |e| ("redirect output", e);
    c::dup2(null.as_raw_fd(), 0).map_err(failed)?;
    c::dup2(plan.stdout.as_raw_fd(), 1).map_err(failed)?;
    c::dup2(plan.stderr.as_raw_fd(), 2).map_err(failed)?;
    // Closed by the exec, not now: some are still needed.
    c::close_on_exec_from(3).map_err(|e| ("mark descriptors", e))
}

/// Its bundle, its volumes, an empty `/tmp` and `/dev/shm` of bounded size, a few terminals, and `/proc`
/// with its own processes only.
fn own_files(plan: &Plan<'_>) -> Result<(), Failed> {
    let quiet = c::MS_NOSUID | c::MS_NODEV;
    c::mount(Some(c"tmp"), c"/tmp", Some(c"tmpfs"), quiet, Some(&plan.tmp))
        .map_err(|e| ("mount /tmp", e))?;
    c::mount(Some(c"shm"), c"/dev/shm", Some(c"tmpfs"), quiet, Some(&plan.shm))
        .map_err(|e| ("mount /dev/shm", e))?;
    // The kernel counts them for the machine, and keeps some for whoever is in no sandbox.
    let terminals = c"mode=600,ptmxmode=666,max=8";
    let silent = c::MS_NOSUID | c::MS_NOEXEC;
    match c::mount(Some(c"devpts"), c"/dev/pts", Some(c"devpts"), silent, Some(terminals)) {
        // A kernel without terminals.
        Ok(()) | Err(c::ENODEV) => {}
        Err(errno) => return Err(("mount /dev/pts", errno)),
    }
    for (tree, target) in &plan.mounts {
        // A volume may be asked for below it, which has been empty until now.
        if let Some(path) = target.to_str().ok().filter(|path| path.starts_with("/tmp/")) {
            fs::create_dir_all(path)
                .map_err(|e| ("make a folder in /tmp", e.raw_os_error().unwrap_or(c::EIO)))?;
        }
        c::move_mount(tree.as_raw_fd(), target).map_err(|e| ("mount bundle or volume", e))?;
    }
    c::mount(Some(c"proc"), c"/proc", Some(c"proc"), quiet | c::MS_NOEXEC, None)
        .map_err(|e| ("mount /proc", e))
}

/// What `/proc` says of more than its own processes is there to be read or is not there at all. Nothing
/// of it can be written: some settings belong to whoever is root of the nursery's user namespace, which
/// without root is the same user, and a process could put itself behind the worker in the line of those
/// that are killed when memory is short. The folder that is returned can be written.
fn own_view_of_the_kernel(home: &Home) -> Result<OwnedFd, Failed> {
    let own = c::open_tree(c"/proc", c::OPEN_TREE_CLONE).map_err(|e| ("open /proc", e))?;
    let flags = c::MS_REMOUNT
        | c::MS_BIND
        | c::MS_RDONLY
        | c::MS_NOSUID
        | c::MS_NODEV
        | c::MS_NOEXEC;
    c::mount(None, c"/proc", None, flags, None).map_err(|e| ("protect /proc", e))?;
    for (path, cover) in &home.hidden {
        c::mount(Some(cover), path, None, c::MS_BIND, None)
            .map_err(|e| ("hide a file of /proc", e))?;
    }
    write_in(&own, c"self/oom_score_adj", &home.oom_score).map_err(|e| ("set oom_score_adj", e))?;
    Ok(own)
}

/// Limits of single processes, beside those of the cgroup.
fn own_limits(start: &Start) -> Result<(), Failed> {
    for (resource, value) in &start.limits {
        c::lower_limit(*resource, *value).map_err(|e| ("set limit", e))?;
    }
    Ok(())
}

/// Stops being root of the machine.
fn become_nobody(start: &Start) -> Result<(), Failed> {
    if start.outside_id == 0 {
        return Ok(());
    }
    c::become_id(start.outside_id).map_err(|e| ("become nobody", e))?;
    // A change of identity takes away a process's own /proc files, which the next step writes.
    c::be_dumpable(true);
    Ok(())
}

/// The user namespace that it was cloned into has it as an ordinary user, and no name for any other user
/// of the machine. All that was made before belongs to the one around it.
fn own_users(start: &Start, proc: &OwnedFd) -> Result<(), Failed> {
    if !start.user_namespace {
        return Ok(());
    }
    let outside = start.outside_id;
    let map = format!("{} {outside} 1", start.inside_id);
    write_in(proc, c"self/setgroups", b"deny").map_err(|e| ("deny setgroups", e))?;
    write_in(proc, c"self/uid_map", map.as_bytes()).map_err(|e| ("map user", e))?;
    write_in(proc, c"self/gid_map", map.as_bytes()).map_err(|e| ("map group", e))
}

/// No capability but these, and no other after any exec.
fn give_up_power(but: u32) -> Result<(), Failed> {
    c::drop_capabilities_but(but).map_err(|e| ("drop capabilities", e))?;
    c::no_new_privileges().map_err(|e| ("no new privileges", e))
}

/// It does not outlive the nursery: nobody would know of it.
fn die_with_nursery(home: &Home) {
    c::die_with_parent();
    // Had the nursery ended before the line above, no signal would ever come.
    if c::has_ended(home.own.as_raw_fd()) {
        c::exit(125);
    }
}

fn enter_folder(plan: &Plan<'_>) -> Result<(), Failed> {
    c::umask(0o022);
    c::chdir(&plan.folder).map_err(|e| ("enter the code's folder", e))
}

/// From here on only the system calls that the filter lets through.
fn filter_calls(filter: &[c::SockFilter]) -> Result<(), Failed> {
    if filter.is_empty() {
        return Ok(());
    }
    c::seccomp(filter).map_err(|e| ("seccomp", e))
}

fn pointers(list: &[CString]) -> Vec<*const c_char> {
    list.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

fn execute(plan: &Plan<'_>) -> Result<Infallible, Failed> {
    let (arguments, environment) = (pointers(&plan.arguments), pointers(&plan.environment));
    // SAFETY: all are lists of pointers to texts that end with NUL, and the lists end with null.
    unsafe { c::execve(plan.program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    Err(("execute", c::errno()))
}

/// Closes what came along from the nursery, before there is anybody who could look for it.
fn keep_what_is_needed(plan: &Plan<'_>, proc: &OwnedFd) -> Result<(), Failed> {
    let kept = [&plan.errors, proc, &plan.home.init].map(AsRawFd::as_raw_fd);
    c::close_all_but(kept.to_vec()).map_err(|e| ("close descriptors", e))
}

/// Starts the function's program, and waits until it is executed or has failed. Its process id in the
/// sandbox.
fn begin_program(plan: &Plan<'_>, proc: &OwnedFd) -> Result<i32, Failed> {
    struct Given<'a>(&'a Plan<'a>, &'a OwnedFd);
    unsafe extern "C" fn run(given: *mut c_void) -> c_int {
        // SAFETY: it is the one below, which waits for us.
        let Given(plan, proc) = unsafe { &*given.cast::<Given<'_>>() };
        let Err(failed) = program(plan, proc);
        give_up(plan, failed)
    }
    // Its pages are made when they are used.
    let mut stack = vec![0_u128; 16 << 10];
    let given = Given(plan, proc);
    let flags = if plan.start.user_namespace { c::CLONE_NEWUSER } else { 0 };
    // SAFETY: the child allocates, which is as if we had done it, and changes nothing else that we use.
    let begun = unsafe {
        c::clone_within(&mut stack, flags, run, ptr::from_ref(&given).cast_mut().cast())
    };
    begun.map_err(|e| ("start the program", e))
}

/// With the memory and the descriptors of the nursery's copy gone, but for the pipe on which it says how
/// the program has ended.
fn become_init(plan: &Plan<'_>, program: i32) -> Result<Infallible, Failed> {
    let failed = |e| ("start the init", e);
    c::dup2(plan.errors.as_raw_fd(), 0).map_err(failed)?;
    c::close(1);
    c::close(2);
    c::drop_capabilities_but(0).map_err(failed)?;
    let mark = plan.start.environment.iter().find(|variable| variable.starts_with(MARK));
    let mark: Vec<String> = mark.iter().map(|mark| format!("{mark}/init")).collect();
    let arguments = cstrings(&["ol-init".to_owned(), program.to_string()])?;
    let environment = cstrings(&mark)?;
    let init = plan.home.init.as_raw_fd();
    Err(failed(c::execute(init, &pointers(&arguments), &pointers(&environment))))
}

// Networks.

/// Makes a network namespace for each request that comes, until the worker is gone.
fn make_networks(worker: RawFd) {
    let machine = machine_network();
    let mut buffer = [0; 1024];
    while let Ok((length, _)) = c::receive(worker, &mut buffer) {
        let Ok(request) = NetworkRequest::read(&buffer[..length]) else { return };
        let sent = match network(request.link.as_ref().map(|link| (link, &machine))) {
            Ok(made) => {
                let fds = made.each_ref().map(AsRawFd::as_raw_fd);
                c::send(worker, &Answer::Network(Ok(())).write(), &fds)
            }
            Err((step, errno)) => {
                c::send(worker, &Answer::Network(Err((step.to_owned(), errno))).write(), &[])
            }
        };
        if let (Some(_), Ok((home, _))) = (&request.link, &machine) {
            // Whoever is in a namespace keeps its devices. From one without any, an ordinary user
            // could not come back to the machine's, so there it stays in the one that it made last.
            let _ = c::setns(home.as_raw_fd(), c::CLONE_NEWNET);
        }
        if sent.is_err() {
            return;
        }
    }
}

/// The machine's network namespace, and a socket that stays in it.
fn machine_network() -> Result<(OwnedFd, OwnedFd), Failed> {
    let namespace = open_namespace("net").map_err(|e| ("open the machine's network", e))?;
    let socket = c::netlink_socket(c::ROUTES).map_err(|e| ("open a socket for network devices", e))?;
    Ok((namespace, socket))
}

/// A network namespace with nothing but loopback, two listeners in it, TCP and abstract Unix, and a
/// socket that asks what waits in others. With a link it is connected with the machine's.
fn network(
    link: Option<(&Link, &Result<(OwnedFd, OwnedFd), Failed>)>,
) -> Result<[OwnedFd; 4], Failed> {
    c::unshare(c::CLONE_NEWNET).map_err(|e| ("unshare network namespace", e))?;
    c::loopback_up().map_err(|e| ("bring loopback up", e))?;
    let namespace = open_namespace("net").map_err(|e| ("open network namespace", e))?;
    match link {
        Some((link, machine)) => {
            let (_, machine) = machine.as_ref().map_err(|failed| *failed)?;
            let own = c::netlink_socket(c::ROUTES).map_err(|e| ("open a socket for network devices", e))?;
            links::connect(machine, &own, &namespace, link)?;
        }
        None => {
            // On a loopback no late packet has to be waited for, and the next tenant shall not find
            // the connections of the last one. Where /proc is read-only it finds their ports for a
            // minute.
            let _ = write_file(c"/proc/sys/net/ipv4/tcp_max_tw_buckets", b"0");
            // No connection on it needs more room than another kind of socket has: smallest, first, most.
            let _ = write_file(c"/proc/sys/net/ipv4/tcp_rmem", b"4096 131072 212992");
            let _ = write_file(c"/proc/sys/net/ipv4/tcp_wmem", b"4096 16384 212992");
        }
    }
    let tcp = c::listen_on_loopback(API_PORT).map_err(|e| ("listen on TCP", e))?;
    let unix = c::listen_on_abstract(API_SOCKET).map_err(|e| ("listen on a Unix socket", e))?;
    let diag = c::netlink_socket(c::SOCKETS).map_err(|e| ("open a socket about sockets", e))?;
    Ok([namespace, tcp, unix, diag])
}

fn open_namespace(kind: &str) -> Result<OwnedFd, i32> {
    let path = CString::new(format!("/proc/self/ns/{kind}")).map_err(|_| c::EINVAL)?;
    c::open(&path, c::O_RDONLY)
}

fn write_file(path: &CStr, content: &[u8]) -> Result<(), i32> {
    let file = c::open(path, c::O_WRONLY)?;
    c::write_all(file.as_raw_fd(), content)
}

fn write_in(folder: &OwnedFd, path: &CStr, content: &[u8]) -> Result<(), i32> {
    let file = c::open_in(folder.as_raw_fd(), path, c::O_WRONLY)?;
    c::write_all(file.as_raw_fd(), content)
}

fn cstring(text: &str) -> Result<CString, Failed> {
    CString::new(text).map_err(|_| ("a text with NUL", c::EINVAL))
}

fn cstrings(texts: &[String]) -> Result<Vec<CString>, Failed> {
    texts.iter().map(|text| cstring(text)).collect()
}
