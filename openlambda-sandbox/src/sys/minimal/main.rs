//! The minimal start of a container, with which starts of `sock` sandboxes are compared.
//!
//! It makes the system calls of one container, in the usual order and written straight down: one clone
//! into new namespaces, a cgroup and a network that were made before, a root of its own, no privileges, a
//! filter of system calls, the same static program; and waits for its end. There is no worker, no
//! protocol, no log, no conversation, and two starts share nothing but the arguments. It shares no code
//! with the nursery, so that the comparison shows what the nursery costs.
//!
//! ```text
//! bench ── a byte ──▶ minimal: clone ─▶ newborn ─▶ exec ─▶ end ── 0, or what failed ──▶ bench
//! ```
//!
//! Arguments: the socket's descriptor, the function's folder, the file with the filter, `1` for
//! version 2 of cgroups else `0`, the descriptors of the cgroup.

#[path = "../nursery/c.rs"]
#[allow(dead_code, reason = "it needs a part of what the nursery does")]
mod c;

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_int};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::ptr;

/// Who it is on the machine when we are root.
const OUTSIDE_ID: u32 = 1_869_999_999;
const INSIDE_ID: u32 = 1000;

/// A step that failed, and why.
type Failed = (&'static str, i32);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((socket, minimal)) = Minimal::new(&arguments) else {
        eprintln!("this program is started by ol bench start --against minimal; run that");
        std::process::exit(2);
    };
    let mut minimal = match minimal {
        Ok(minimal) => minimal,
        Err((step, errno)) => {
            let said = format!("{step}: {}", io::Error::from_raw_os_error(errno));
            let _ = c::send(socket, said.as_bytes(), &[]);
            return;
        }
    };
    let _ = c::send(socket, &[0], &[]);
    let mut byte = [0];
    while let Ok((1, _)) = c::receive(socket, &mut byte) {
        let answer = match minimal.start() {
            Ok(()) => vec![0],
            Err((step, errno)) => {
                format!("{step}: {}", io::Error::from_raw_os_error(errno)).into_bytes()
            }
        };
        if c::send(socket, &answer, &[]).is_err() {
            return;
        }
    }
}

struct Minimal {
    root: bool,
    place: &'static str,
    code: CString,
    filter: Vec<c::SockFilter>,
    network: OwnedFd,
    cgroup_v2: bool,
    cgroups: Vec<RawFd>,
}

impl Minimal {
    fn new(arguments: &[String]) -> Option<(RawFd, Result<Self, Failed>)> {
        let [socket, code, filter, cgroup_v2, cgroups @ ..] = arguments else { return None };
        let socket = socket.parse().ok()?;
        let cgroups = cgroups.iter().map(|fd| fd.parse().ok()).collect::<Option<Vec<_>>>()?;
        Some((socket, Minimal::ready(code, filter, cgroup_v2 == "1", cgroups)))
    }

    fn ready(code: &str, filter: &str, cgroup_v2: bool, cgroups: Vec<RawFd>) -> Result<Self, Failed> {
        c::close_on_exec_from(3).map_err(|e| ("mark descriptors", e))?;
        c::die_with_parent();
        // SAFETY: they take nothing and cannot fail.
        let (uid, gid) = unsafe { (c::getuid(), c::getgid()) };
        if uid != 0 {
            c::unshare(c::CLONE_NEWUSER).map_err(|e| ("unshare user namespace", e))?;
            map_ids(&format!("0 {uid} 1"), &format!("0 {gid} 1"))?;
        }
        c::unshare(c::CLONE_NEWNET).map_err(|e| ("unshare network namespace", e))?;
        c::loopback_up().map_err(|e| ("bring loopback up", e))?;
        let filter = fs::read(filter).map_err(|e| ("read filter", code_of(&e)))?;
        let place = ["/mnt", "/tmp", "/run", "/var"].into_iter().find(|p| Path::new(p).is_dir());
        Ok(Minimal {
            root: uid == 0,
            place: place.ok_or(("find a folder to mount on", c::ENOENT))?,
            code: CString::new(code).map_err(|_| ("a folder with NUL", c::EINVAL))?,
            filter: c::filter_of(&filter),
            network: c::open(c"/proc/self/ns/net", c::O_RDONLY).map_err(|e| ("open network", e))?,
            cgroup_v2,
            cgroups,
        })
    }

    /// One start, until its end.
    fn start(&mut self) -> Result<(), Failed> {
        let mut pidfd: c_int = -1;
        let mut arguments = c::CloneArgs::default();
        arguments.flags = c::CLONE_NEWNS
            | c::CLONE_NEWPID
            | c::CLONE_NEWIPC
            | c::CLONE_NEWUTS
            | c::CLONE_PIDFD
            | c::CLONE_CLEAR_SIGHAND;
        arguments.pidfd = ptr::from_mut(&mut pidfd) as u64;
        arguments.exit_signal = c::SIGCHLD as u64;
        if self.cgroup_v2
            && let [folder] = self.cgroups[..]
        {
            arguments.flags |= c::CLONE_INTO_CGROUP;
            arguments.cgroup = folder as u64;
        }
        if c::clone3(&mut arguments).map_err(|e| ("clone", e))? == 0 {
            let (step, errno) = match self.newborn() {
                Err(failed) => failed,
                Ok(never) => match never {},
            };
            let said = format!("{step}: {}\n", io::Error::from_raw_os_error(errno));
            c::write(2, said.as_bytes());
            c::exit(125)
        }
        // SAFETY: the kernel has just opened it for us.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        while c::wait_for_any(&[pidfd.as_raw_fd()]) == Err(c::EINTR) {}
        match c::reap() {
            Some((_, 0)) => Ok(()),
            _ => Err(("the program failed; what it said is above", c::EIO)),
        }
    }

    fn newborn(&self) -> Result<Infallible, Failed> {
        if !self.cgroup_v2 {
            for tasks in &self.cgroups {
                c::write_all(*tasks, b"0").map_err(|e| ("join cgroup", e))?;
            }
        }
        c::unshare(c::CLONE_NEWCGROUP).map_err(|e| ("unshare cgroup namespace", e))?;
        c::setns(self.network.as_raw_fd(), c::CLONE_NEWNET).map_err(|e| ("enter network", e))?;
        c::setsid();
        c::sethostname(b"minimal").map_err(|e| ("set host name", e))?;
        self.own_root()?;
        if self.root {
            c::become_id(OUTSIDE_ID).map_err(|e| ("become nobody", e))?;
            c::be_dumpable(true);
        }
        c::unshare(c::CLONE_NEWUSER).map_err(|e| ("unshare user namespace", e))?;
        let outside = if self.root { OUTSIDE_ID } else { 0 };
        let map = format!("{INSIDE_ID} {outside} 1");
        map_ids(&map, &map)?;
        // RLIMIT_CORE, RLIMIT_NPROC, RLIMIT_NOFILE, RLIMIT_NICE, RLIMIT_RTPRIO
        for (resource, value) in [(4, 1), (6, 64), (7, 1024), (13, 0), (14, 0)] {
            c::lower_limit(resource, value).map_err(|e| ("set limit", e))?;
        }
        c::drop_bounding_set().map_err(|e| ("drop bounding set", e))?;
        c::drop_capabilities_but(0).map_err(|e| ("drop capabilities", e))?;
        c::no_new_privileges().map_err(|e| ("no new privileges", e))?;
        c::die_with_parent();
        c::umask(0o022);
        c::chdir(c"/var/task").map_err(|e| ("enter the code's folder", e))?;
        c::seccomp(&self.filter).map_err(|e| ("seccomp", e))?;
        let (arguments, nothing) = ([c"bootstrap".as_ptr(), ptr::null()], [ptr::null()]);
        // SAFETY: all are lists of pointers to texts that end with NUL, and the lists end with null.
        unsafe {
            c::execve(c"/var/task/bootstrap".as_ptr(), arguments.as_ptr(), nothing.as_ptr());
        }
        Err(("execute", c::errno()))
    }

    /// A root in memory with the machine's programs and the function's folder, read-only, and `/tmp`
    /// and `/proc` of its own.
    fn own_root(&self) -> Result<(), Failed> {
        let quiet = c::MS_NOSUID | c::MS_NODEV;
        c::mount(None, c"/", None, c::MS_REC | c::MS_PRIVATE, None)
            .map_err(|e| ("make mounts private", e))?;
        let root = CString::new(self.place).map_err(|_| ("a folder with NUL", c::EINVAL))?;
        c::mount(Some(c"root"), &root, Some(c"tmpfs"), 0, Some(c"mode=755,size=64m"))
            .map_err(|e| ("mount root", e))?;
        c::chdir(&root).map_err(|e| ("enter root", e))?;
        let io = |step: &'static str| move |e: io::Error| (step, code_of(&e));
        for folder in ["usr", "dev", "proc", "sys", "tmp", "var/task"] {
            fs::create_dir_all(folder).map_err(io("make folder"))?;
        }
        for name in ["bin", "lib", "lib64"] {
            symlink(format!("usr/{name}"), name).map_err(io("make link"))?;
        }
        fs::write("dev/null", "").map_err(io("make device"))?;
        bind(c"/usr", c"usr", c::MOUNT_ATTR_RDONLY | c::MOUNT_ATTR_NOSUID | c::MOUNT_ATTR_NODEV)?;
        bind(
            &self.code,
            c"var/task",
            c::MOUNT_ATTR_RDONLY | c::MOUNT_ATTR_NOSUID | c::MOUNT_ATTR_NODEV,
        )?;
        bind(c"/dev/null", c"dev/null", 0)?;
        c::mount(Some(c"tmp"), c"tmp", Some(c"tmpfs"), quiet, Some(c"size=64m,mode=1777"))
            .map_err(|e| ("mount /tmp", e))?;
        c::mount(Some(c"proc"), c"proc", Some(c"proc"), quiet | c::MS_NOEXEC, None)
            .map_err(|e| ("mount /proc", e))?;
        bind(c"proc/sys", c"proc/sys", c::MOUNT_ATTR_RDONLY | c::MOUNT_ATTR_NOSUID)?;
        for hidden in [c"proc/kcore", c"proc/key-users", c"proc/keys", c"proc/timer_list"] {
            // What this kernel has not, it need not hide.
            match c::mount(Some(c"dev/null"), hidden, None, c::MS_BIND, None) {
                Ok(()) | Err(c::ENOENT) => {}
                Err(errno) => return Err(("hide a file of /proc", errno)),
            }
        }
        c::mount(None, &root, None, c::MS_REMOUNT | c::MS_RDONLY | c::MS_NOSUID, None)
            .map_err(|e| ("make root read-only", e))?;
        c::pivot_root(c".", c".").map_err(|e| ("pivot root", e))?;
        c::unmount(c".").map_err(|e| ("unmount the machine's root", e))?;
        c::chdir(c"/").map_err(|e| ("enter root", e))
    }
}

fn bind(source: &CStr, target: &CStr, attributes: u64) -> Result<(), Failed> {
    let tree = c::open_tree(source, c::OPEN_TREE_CLONE).map_err(|e| ("open mount", e))?;
    if attributes != 0 {
        c::mount_setattr(tree.as_raw_fd(), attributes).map_err(|e| ("protect mount", e))?;
    }
    c::move_mount(tree.as_raw_fd(), target).map_err(|e| ("mount", e))
}

fn map_ids(users: &str, groups: &str) -> Result<(), Failed> {
    let write = |path: &CStr, text: &str| {
        let file = c::open(path, c::O_WRONLY)?;
        c::write_all(file.as_raw_fd(), text.as_bytes())
    };
    write(c"/proc/self/setgroups", "deny").map_err(|e| ("deny setgroups", e))?;
    write(c"/proc/self/uid_map", users).map_err(|e| ("map user", e))?;
    write(c"/proc/self/gid_map", groups).map_err(|e| ("map group", e))
}

fn code_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(c::EIO)
}
