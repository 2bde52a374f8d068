// The C library and the kernel, as far as the nursery needs them. Every function here is a thin
// wrapper that turns -1 into errno; what it does is told where it is called.

#![allow(clippy::missing_safety_doc, reason = "the C library's own")]

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::mem::{size_of, size_of_val, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

unsafe extern "C" {
    pub(crate) fn fork() -> c_int;
    pub(crate) fn execve(
        path: *const c_char,
        arguments: *const *const c_char,
        environment: *const *const c_char,
    ) -> c_int;
    pub(crate) fn getuid() -> c_uint;
    pub(crate) fn getgid() -> c_uint;
    fn __errno_location() -> *mut c_int;
    fn _exit(status: c_int) -> !;
    fn syscall(number: c_long, ...) -> c_long;
    #[link_name = "unshare"]
    fn c_unshare(flags: c_int) -> c_int;
    #[link_name = "setns"]
    fn c_setns(fd: c_int, kind: c_int) -> c_int;
    #[link_name = "mount"]
    fn c_mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn umount2(target: *const c_char, flags: c_int) -> c_int;
    #[link_name = "open"]
    fn c_open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn openat(folder: c_int, path: *const c_char, flags: c_int, ...) -> c_int;
    #[link_name = "close"]
    fn c_close(fd: c_int) -> c_int;
    #[link_name = "write"]
    fn c_write(fd: c_int, data: *const c_void, length: usize) -> isize;
    fn read(fd: c_int, data: *mut c_void, length: usize) -> isize;
    #[link_name = "dup2"]
    fn c_dup2(old: c_int, new: c_int) -> c_int;
    #[link_name = "chdir"]
    fn c_chdir(path: *const c_char) -> c_int;
    #[link_name = "clone"]
    fn c_clone(
        run: unsafe extern "C" fn(*mut c_void) -> c_int,
        stack: *mut c_void,
        flags: c_int,
        argument: *mut c_void,
        ...
    ) -> c_int;
    #[link_name = "umask"]
    fn c_umask(mask: c_uint) -> c_uint;
    fn mknod(path: *const c_char, mode: c_uint, device: u64) -> c_int;
    fn chmod(path: *const c_char, mode: c_uint) -> c_int;
    fn fchmod(fd: c_int, mode: c_uint) -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
    #[link_name = "setsid"]
    fn c_setsid() -> c_int;
    #[link_name = "sethostname"]
    fn c_sethostname(name: *const c_char, length: usize) -> c_int;
    fn getrlimit(resource: c_uint, limit: *mut Limit) -> c_int;
    fn setrlimit(resource: c_uint, limit: *const Limit) -> c_int;
    fn getpid() -> c_int;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn bind(fd: c_int, address: *const c_void, length: c_uint) -> c_int;
    fn listen(fd: c_int, backlog: c_int) -> c_int;
    fn setsockopt(
        fd: c_int,
        level: c_int,
        name: c_int,
        value: *const c_void,
        length: c_uint,
    ) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn sendmsg(fd: c_int, message: *const MessageHeader, flags: c_int) -> isize;
    fn recvmsg(fd: c_int, message: *mut MessageHeader, flags: c_int) -> isize;
    fn poll(fds: *mut PollFd, count: c_ulong, timeout: c_int) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn sigemptyset(set: *mut SignalSet) -> c_int;
    fn sigaddset(set: *mut SignalSet, signal: c_int) -> c_int;
    fn sigfillset(set: *mut SignalSet) -> c_int;
    fn sigwaitinfo(set: *const SignalSet, information: *mut c_void) -> c_int;
    fn kill(process: c_int, signal: c_int) -> c_int;
    fn sigprocmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn signalfd(fd: c_int, set: *const SignalSet, flags: c_int) -> c_int;
}

// System calls without a function in every C library: the same number on all machines from 424 on.
const SYS_CLONE3: c_long = 435;
const SYS_OPEN_TREE: c_long = 428;
const SYS_MOVE_MOUNT: c_long = 429;
const SYS_MOUNT_SETATTR: c_long = 442;
const SYS_CLOSE_RANGE: c_long = 436;
const SYS_PIDFD_OPEN: c_long = 434;
#[cfg(target_arch = "x86_64")]
mod numbers {
    use std::ffi::c_long;
    pub(super) const EXECVEAT: c_long = 322;
    pub(super) const MEMFD_CREATE: c_long = 319;
    pub(super) const PIVOT_ROOT: c_long = 155;
    pub(super) const SECCOMP: c_long = 317;
    pub(super) const CAPSET: c_long = 126;
    pub(super) const SETGROUPS: c_long = 116;
    pub(super) const SETRESUID: c_long = 117;
    pub(super) const SETRESGID: c_long = 119;
    pub(super) const KEYCTL: c_long = 250;
    pub(super) const RT_SIGACTION: c_long = 13;
}
#[cfg(target_arch = "aarch64")]
mod numbers {
    use std::ffi::c_long;
    pub(super) const EXECVEAT: c_long = 281;
    pub(super) const MEMFD_CREATE: c_long = 279;
    pub(super) const PIVOT_ROOT: c_long = 41;
    pub(super) const SECCOMP: c_long = 277;
    pub(super) const CAPSET: c_long = 91;
    pub(super) const SETGROUPS: c_long = 159;
    pub(super) const SETRESUID: c_long = 147;
    pub(super) const SETRESGID: c_long = 149;
    pub(super) const KEYCTL: c_long = 219;
    pub(super) const RT_SIGACTION: c_long = 134;
}

pub(crate) const CLONE_NEWNS: u64 = 0x0002_0000;
pub(crate) const CLONE_NEWCGROUP: u64 = 0x0200_0000;
pub(crate) const CLONE_NEWUTS: u64 = 0x0400_0000;
pub(crate) const CLONE_NEWIPC: u64 = 0x0800_0000;
pub(crate) const CLONE_NEWUSER: u64 = 0x1000_0000;
pub(crate) const CLONE_NEWPID: u64 = 0x2000_0000;
pub(crate) const CLONE_NEWNET: u64 = 0x4000_0000;
pub(crate) const CLONE_PIDFD: u64 = 0x1000;
pub(crate) const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
pub(crate) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
pub(crate) const CLONE_VM: u64 = 0x100;
pub(crate) const CLONE_VFORK: u64 = 0x4000;
pub(crate) const SIGCHLD: c_int = 17;

pub(crate) const MS_RDONLY: c_ulong = 1;
pub(crate) const MS_NOSUID: c_ulong = 2;
pub(crate) const MS_NODEV: c_ulong = 4;
pub(crate) const MS_NOEXEC: c_ulong = 8;
pub(crate) const MS_REMOUNT: c_ulong = 32;
pub(crate) const MS_BIND: c_ulong = 4096;
pub(crate) const MS_REC: c_ulong = 0x4000;
pub(crate) const MS_PRIVATE: c_ulong = 1 << 18;
pub(crate) const MS_SLAVE: c_ulong = 1 << 19;
pub(crate) const MOUNT_ATTR_RDONLY: u64 = 1;
pub(crate) const MOUNT_ATTR_NOSUID: u64 = 2;
pub(crate) const MOUNT_ATTR_NODEV: u64 = 4;
pub(crate) const MOUNT_ATTR_NOEXEC: u64 = 8;
pub(crate) const OPEN_TREE_CLONE: c_uint = 1;
pub(crate) const AT_RECURSIVE: c_uint = 0x8000;
const AT_FDCWD: c_int = -100;
const AT_EMPTY_PATH: c_uint = 0x1000;
const O_CLOEXEC: c_int = 0o2_000_000;

pub(crate) const O_RDONLY: c_int = 0;
pub(crate) const O_WRONLY: c_int = 1;
pub(crate) const O_RDWR: c_int = 2;
pub(crate) const ENOENT: i32 = 2;
pub(crate) const EINTR: i32 = 4;
pub(crate) const EIO: i32 = 5;
pub(crate) const EBADF: i32 = 9;
pub(crate) const ENODEV: i32 = 19;
pub(crate) const EINVAL: i32 = 22;
pub(crate) const EMSGSIZE: i32 = 90;
pub(crate) const EAFNOSUPPORT: i32 = 97;

/// `struct clone_args`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pub(crate) pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    pub(crate) exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    pub(crate) cgroup: u64,
}

/// `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SockFilter {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    k: u32,
}

#[repr(C)]
struct SockProgram {
    length: u16,
    filter: *const SockFilter,
}

#[repr(C)]
struct Limit {
    soft: u64,
    hard: u64,
}

#[repr(C)]
struct PollFd {
    fd: c_int,
    events: i16,
    revents: i16,
}

#[repr(C, align(8))]
struct SignalSet([u8; 128]);

#[repr(C)]
struct IoVector {
    data: *mut c_void,
    length: usize,
}

#[repr(C)]
struct MessageHeader {
    name: *mut c_void,
    name_length: c_uint,
    vectors: *mut IoVector,
    vector_count: usize,
    control: *mut c_void,
    control_length: usize,
    flags: c_int,
}

/// Room for the header of a control message and 16 descriptors.
const MOST_DESCRIPTORS: usize = 16;
#[repr(C, align(8))]
struct Control([u8; 16 + 4 * MOST_DESCRIPTORS]);

pub(crate) fn errno() -> i32 {
    // SAFETY: it points to this thread's own.
    unsafe { *__errno_location() }
}

fn check(result: impl Into<i64>) -> Result<i64, i32> {
    match result.into() {
        -1 => Err(errno()),
        value => Ok(value),
    }
}

fn owned(result: Result<i64, i32>) -> Result<OwnedFd, i32> {
    // SAFETY: the kernel has just opened it for the caller, who passes it on to nobody else.
    result.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

pub(crate) fn exit(status: i32) -> ! {
    // SAFETY: it ends the process and nothing else.
    unsafe { _exit(status) }
}

pub(crate) fn unshare(what: u64) -> Result<(), i32> {
    // SAFETY: it takes a number.
    check(unsafe { c_unshare(what as c_int) }).map(drop)
}

pub(crate) fn setns(fd: RawFd, what: u64) -> Result<(), i32> {
    // SAFETY: it takes two numbers.
    check(unsafe { c_setns(fd, what as c_int) }).map(drop)
}

pub(crate) fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: c_ulong,
    data: Option<&CStr>,
) -> Result<(), i32> {
    let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: each pointer is null or of a text that ends with NUL and outlives the call.
    let result = unsafe {
        c_mount(pointer(source), target.as_ptr(), pointer(kind), flags, pointer(data).cast())
    };
    check(result).map(drop)
}

/// At once, though it may be in use.
pub(crate) fn unmount(target: &CStr) -> Result<(), i32> {
    const MNT_DETACH: c_int = 2;
    // SAFETY: the text ends with NUL.
    check(unsafe { umount2(target.as_ptr(), MNT_DETACH) }).map(drop)
}

pub(crate) fn open_tree(path: &CStr, flags: c_uint) -> Result<OwnedFd, i32> {
    let flags = flags | O_CLOEXEC as c_uint;
    // SAFETY: the text ends with NUL.
    owned(check(unsafe { syscall(SYS_OPEN_TREE, AT_FDCWD, path.as_ptr(), flags) }))
}

pub(crate) fn move_mount(tree: RawFd, target: &CStr) -> Result<(), i32> {
    const FROM_EMPTY_PATH: c_uint = 4;
    // SAFETY: both texts end with NUL.
    let result = unsafe {
        syscall(SYS_MOVE_MOUNT, tree, c"".as_ptr(), AT_FDCWD, target.as_ptr(), FROM_EMPTY_PATH)
    };
    check(result).map(drop)
}

pub(crate) fn mount_setattr(tree: RawFd, set: u64) -> Result<(), i32> {
    // struct mount_attr: set, clear, propagation, user namespace.
    let attributes = [set, 0, 0, 0];
    // SAFETY: the text ends with NUL, the structure has the size that is told.
    let result = unsafe {
        syscall(
            SYS_MOUNT_SETATTR,
            tree,
            c"".as_ptr(),
            AT_EMPTY_PATH,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    check(result).map(drop)
}

pub(crate) fn pivot_root(new: &CStr, old: &CStr) -> Result<(), i32> {
    // SAFETY: both texts end with NUL.
    check(unsafe { syscall(numbers::PIVOT_ROOT, new.as_ptr(), old.as_ptr()) }).map(drop)
}

pub(crate) fn make_device(path: &CStr, major: u64, minor: u64) -> Result<(), i32> {
    const CHARACTER: c_uint = 0o020_000;
    // SAFETY: the text ends with NUL.
    check(unsafe { mknod(path.as_ptr(), CHARACTER | 0o666, major << 8 | minor) })?;
    // The umask may have taken some of it.
    // SAFETY: the text ends with NUL.
    check(unsafe { chmod(path.as_ptr(), 0o666) }).map(drop)
}

pub(crate) fn clone3(arguments: &mut CloneArgs) -> Result<i32, i32> {
    // SAFETY: the structure has the size that is told. Without CLONE_VM the child has a memory of its
    // own, and there is one thread, so it may do what it likes.
    let result = unsafe { syscall(SYS_CLONE3, ptr::from_mut(arguments), size_of::<CloneArgs>()) };
    check(result).map(|pid| pid as i32)
}

/// A child in our own memory, with a stack of its own, while we wait until it has executed a program or
/// ended: nothing is copied for it. Its process id.
///
/// # Safety
///
/// What the child does to our memory must be fit for us to go on with.
pub(crate) unsafe fn clone_within(
    stack: &mut [u128],
    flags: u64,
    run: unsafe extern "C" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
) -> Result<i32, i32> {
    let flags = flags | CLONE_VM | CLONE_VFORK | SIGCHLD as u64;
    let top = stack.as_mut_ptr_range().end.cast();
    // SAFETY: the stack is the child's until it is gone, since we wait; the rest is the caller's word.
    check(unsafe { c_clone(run, top, flags as c_int, argument) }).map(|pid| pid as i32)
}

/// A file in memory that can be executed, and not read by its owner.
pub(crate) fn program_in_memory(name: &CStr, content: &[u8]) -> Result<OwnedFd, i32> {
    const CLOEXEC: c_uint = 1;
    const EXEC: c_uint = 0x10;
    const O_PATH: c_int = 0o10_000_000;
    let make = |flags: c_uint| {
        // SAFETY: the text ends with NUL.
        owned(check(unsafe { syscall(numbers::MEMFD_CREATE, name.as_ptr(), flags) }))
    };
    // Kernels before 6.3 do not know the flag and let any such file be run.
    let file = match make(CLOEXEC | EXEC) {
        Err(EINVAL) => make(CLOEXEC)?,
        made => made?,
    };
    write_all(file.as_raw_fd(), content)?;
    // SAFETY: it takes two numbers.
    check(unsafe { fchmod(file.as_raw_fd(), 0o111) })?;
    // What is open for writing cannot be executed.
    let path = std::ffi::CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
    open(&path.map_err(|_| EINVAL)?, O_PATH)
}

/// Executes an open file.
pub(crate) fn execute(
    file: RawFd,
    arguments: &[*const c_char],
    environment: &[*const c_char],
) -> i32 {
    assert!(arguments.last().is_some_and(|last| last.is_null()));
    assert!(environment.last().is_some_and(|last| last.is_null()));
    let (arguments, environment) = (arguments.as_ptr(), environment.as_ptr());
    // SAFETY: both are lists of pointers to texts that end with NUL, as the callers make them, and end
    // with null, as was seen.
    unsafe {
        syscall(numbers::EXECVEAT, file, c"".as_ptr(), arguments, environment, AT_EMPTY_PATH)
    };
    errno()
}

pub(crate) fn open(path: &CStr, flags: c_int) -> Result<OwnedFd, i32> {
    // SAFETY: the text ends with NUL.
    owned(check(unsafe { c_open(path.as_ptr(), flags | O_CLOEXEC) }))
}

/// Below a folder that is open.
pub(crate) fn open_in(folder: RawFd, path: &CStr, flags: c_int) -> Result<OwnedFd, i32> {
    // SAFETY: the text ends with NUL.
    owned(check(unsafe { openat(folder, path.as_ptr(), flags | O_CLOEXEC) }))
}

pub(crate) fn close(fd: RawFd) {
    // SAFETY: the callers close what they were started with and nobody else owns.
    unsafe { c_close(fd) };
}

pub(crate) fn write(fd: RawFd, data: &[u8]) -> isize {
    // SAFETY: the slice is valid for its length.
    unsafe { c_write(fd, data.as_ptr().cast(), data.len()) }
}

/// For files of the kernel, which take all or nothing.
pub(crate) fn write_all(fd: RawFd, data: &[u8]) -> Result<(), i32> {
    check(write(fd, data) as i64).map(drop)
}

pub(crate) fn dup2(old: RawFd, new: RawFd) -> Result<(), i32> {
    // SAFETY: it takes two numbers.
    check(unsafe { c_dup2(old, new) }).map(drop)
}

pub(crate) fn close_on_exec_from(first: u32) -> Result<(), i32> {
    const CLOSE_RANGE_CLOEXEC: c_uint = 4;
    // SAFETY: it takes three numbers.
    check(unsafe { syscall(SYS_CLOSE_RANGE, first, c_uint::MAX, CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// Closes all descriptors but these and the first three.
pub(crate) fn close_all_but(mut kept: Vec<RawFd>) -> Result<(), i32> {
    kept.sort_unstable();
    let mut first = 3;
    for end in kept.into_iter().map(|fd| fd as c_uint).chain([c_uint::MAX]) {
        let last = end.saturating_sub(u32::from(end < c_uint::MAX));
        if first <= last {
            // SAFETY: it takes numbers. Those who own the descriptors are never heard of again.
            check(unsafe { syscall(SYS_CLOSE_RANGE, first, last, 0 as c_uint) })?;
        }
        first = end.saturating_add(1);
    }
    Ok(())
}

pub(crate) fn chdir(path: &CStr) -> Result<(), i32> {
    // SAFETY: the text ends with NUL.
    check(unsafe { c_chdir(path.as_ptr()) }).map(drop)
}

pub(crate) fn umask(mask: u32) {
    // SAFETY: it takes a number and cannot fail.
    unsafe { c_umask(mask) };
}

pub(crate) fn setsid() {
    // SAFETY: it takes nothing. It fails only for the leader of a group, who has what it wants.
    unsafe { c_setsid() };
}

pub(crate) fn sethostname(name: &[u8]) -> Result<(), i32> {
    // SAFETY: the slice is valid for its length.
    check(unsafe { c_sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Down to `value`; a limit that is lower already stays.
pub(crate) fn lower_limit(resource: u32, value: u64) -> Result<(), i32> {
    let mut limit = Limit { soft: 0, hard: 0 };
    // SAFETY: the structure is valid.
    check(unsafe { getrlimit(resource, &mut limit) })?;
    let hard = value.min(limit.hard);
    limit = Limit { soft: hard, hard };
    // SAFETY: the structure is valid.
    check(unsafe { setrlimit(resource, &limit) }).map(drop)
}

/// All signals do what they do by default, whatever we were started with. By system calls: the C
/// library does not let go of two that it keeps for itself.
pub(crate) fn default_signals() {
    // The kernel's struct sigaction: handler, flags, restorer, mask.
    let default = [0_u64; 4];
    for number in 1..=64 as c_long {
        // SAFETY: the structure is as large as the kernel's, whose masks have 8 bytes, and sets no
        // handler. For signals that cannot be changed nothing happens.
        unsafe {
            let (new, old) = (default.as_ptr(), ptr::null::<u64>());
            syscall(numbers::RT_SIGACTION, number, new, old, 8 as c_ulong)
        };
    }
}

/// Leaves the keys of whoever started us. A kernel without keys has none to leave.
pub(crate) fn own_session_keyring() {
    const JOIN_SESSION_KEYRING: c_long = 1;
    // SAFETY: it takes a number and no name.
    unsafe { syscall(numbers::KEYCTL, JOIN_SESSION_KEYRING, ptr::null::<c_char>()) };
}

/// A descriptor of this process, which tells others of its end.
pub(crate) fn own_pidfd() -> Result<OwnedFd, i32> {
    // SAFETY: they take numbers.
    owned(check(unsafe { syscall(SYS_PIDFD_OPEN, getpid(), 0 as c_uint) }))
}

/// Whether the process of this descriptor has ended.
pub(crate) fn has_ended(pidfd: RawFd) -> bool {
    let mut fd = PollFd { fd: pidfd, events: 1, revents: 0 };
    // SAFETY: the entry is valid.
    unsafe { poll(&mut fd, 1, 0) != 0 }
}

/// KILL when the parent dies.
pub(crate) fn die_with_parent() {
    const PR_SET_PDEATHSIG: c_int = 1;
    // SAFETY: it takes numbers.
    unsafe { prctl(PR_SET_PDEATHSIG, 9 as c_ulong, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong) };
}

/// Whether others of the same user may look at our memory, descriptors and root.
pub(crate) fn be_dumpable(dumpable: bool) {
    const PR_SET_DUMPABLE: c_int = 4;
    let zero: c_ulong = 0;
    // SAFETY: it takes numbers.
    unsafe { prctl(PR_SET_DUMPABLE, c_ulong::from(dumpable), zero, zero, zero) };
}

pub(crate) fn no_new_privileges() -> Result<(), i32> {
    const PR_SET_NO_NEW_PRIVS: c_int = 38;
    let zero: c_ulong = 0;
    // SAFETY: it takes numbers.
    check(unsafe { prctl(PR_SET_NO_NEW_PRIVS, 1 as c_ulong, zero, zero, zero) }).map(drop)
}

/// This user and group and no other. By system calls, which change the one thread there is.
pub(crate) fn become_id(id: u32) -> Result<(), i32> {
    // SAFETY: they take numbers and an empty list.
    unsafe {
        check(syscall(numbers::SETGROUPS, 0 as c_long, ptr::null::<u32>()))?;
        check(syscall(numbers::SETRESGID, id, id, id))?;
        check(syscall(numbers::SETRESUID, id, id, id)).map(drop)
    }
}

pub(crate) fn drop_bounding_set() -> Result<(), i32> {
    const PR_CAPBSET_DROP: c_int = 24;
    let zero: c_ulong = 0;
    for capability in 0..64 as c_ulong {
        // SAFETY: it takes numbers.
        match check(unsafe { prctl(PR_CAPBSET_DROP, capability, zero, zero, zero) }) {
            // The last one was the last that this kernel has.
            Err(EINVAL) => return Ok(()),
            result => result?,
        };
    }
    Ok(())
}

/// The capability of whoever gives files capabilities.
pub(crate) const CAP_SETFCAP: u32 = 1 << 31;

/// All but some of the first 32.
pub(crate) fn drop_capabilities_but(kept: u32) -> Result<(), i32> {
    // struct __user_cap_header_struct: version 3, this thread; then two sets of three: effective,
    // permitted, inheritable.
    let header = [0x2008_0522_u32, 0];
    let sets = [kept, kept, 0, 0, 0, 0];
    // SAFETY: both structures have the sizes of version 3.
    check(unsafe { syscall(numbers::CAPSET, header.as_ptr(), sets.as_ptr()) }).map(drop)
}

pub(crate) fn filter_of(bytes: &[u8]) -> Vec<SockFilter> {
    let instruction = |bytes: &[u8; 8]| SockFilter {
        code: u16::from_ne_bytes([bytes[0], bytes[1]]),
        jump_true: bytes[2],
        jump_false: bytes[3],
        k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    };
    bytes.as_chunks().0.iter().map(instruction).collect()
}

pub(crate) fn seccomp(filter: &[SockFilter]) -> Result<(), i32> {
    const SET_MODE_FILTER: c_uint = 1;
    let program = SockProgram { length: filter.len() as u16, filter: filter.as_ptr() };
    // SAFETY: the program points to as many instructions as it says.
    check(unsafe { syscall(numbers::SECCOMP, SET_MODE_FILTER, 0 as c_uint, &program) }).map(drop)
}

/// Sends one datagram with descriptors, 16 at most.
pub(crate) fn send(fd: RawFd, data: &[u8], descriptors: &[RawFd]) -> Result<(), i32> {
    if descriptors.len() > MOST_DESCRIPTORS {
        return Err(EINVAL);
    }
    let mut vector = IoVector { data: data.as_ptr().cast_mut().cast(), length: data.len() };
    let mut control = Control([0; 16 + 4 * MOST_DESCRIPTORS]);
    let length = 16 + 4 * descriptors.len();
    // struct cmsghdr: its length, SOL_SOCKET, SCM_RIGHTS, then the descriptors.
    control.0[..8].copy_from_slice(&(length as u64).to_ne_bytes());
    control.0[8..12].copy_from_slice(&1_i32.to_ne_bytes());
    control.0[12..16].copy_from_slice(&1_i32.to_ne_bytes());
    for (place, descriptor) in control.0[16..].as_chunks_mut::<4>().0.iter_mut().zip(descriptors) {
        *place = descriptor.to_ne_bytes();
    }
    // SAFETY: zero is a valid value of each field.
    let mut header: MessageHeader = unsafe { zeroed() };
    (header.vectors, header.vector_count) = (&mut vector, 1);
    if !descriptors.is_empty() {
        header.control = ptr::from_mut(&mut control).cast();
        header.control_length = length.next_multiple_of(8);
    }
    const MSG_NOSIGNAL: c_int = 0x4000;
    // SAFETY: the header points to values that live until the call is over.
    check(unsafe { sendmsg(fd, &header, MSG_NOSIGNAL) } as i64).map(drop)
}

/// Receives one datagram and its descriptors. A length of 0 says that the other end is gone. One that
/// is longer than the room for it, or has more descriptors, is an error: half of one says something else.
pub(crate) fn receive(fd: RawFd, data: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), i32> {
    const MSG_CMSG_CLOEXEC: c_int = 0x4000_0000;
    let mut vector = IoVector { data: data.as_mut_ptr().cast(), length: data.len() };
    let mut control = Control([0; 16 + 4 * MOST_DESCRIPTORS]);
    // SAFETY: zero is a valid value of each field.
    let mut header: MessageHeader = unsafe { zeroed() };
    (header.vectors, header.vector_count) = (&mut vector, 1);
    header.control = ptr::from_mut(&mut control).cast();
    header.control_length = size_of::<Control>();
    let length = loop {
        // SAFETY: the header points to values that live until the call is over.
        match check(unsafe { recvmsg(fd, &mut header, MSG_CMSG_CLOEXEC) } as i64) {
            Err(EINTR) => {}
            result => break result? as usize,
        }
    };
    let mut descriptors = Vec::new();
    let (kind, rest) = control.0.split_at(16);
    // SOL_SOCKET, SCM_RIGHTS.
    if header.control_length >= 16 && kind[8..] == [1, 0, 0, 0, 1, 0, 0, 0] {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&kind[..8]);
        let length = (u64::from_ne_bytes(bytes) as usize).saturating_sub(16).min(rest.len());
        for bytes in rest[..length].as_chunks::<4>().0 {
            // SAFETY: the kernel has just opened it for us.
            descriptors.push(unsafe { OwnedFd::from_raw_fd(c_int::from_ne_bytes(*bytes)) });
        }
    }
    const MSG_CTRUNC: c_int = 0x8;
    const MSG_TRUNC: c_int = 0x20;
    // After what came has an owner, who closes it.
    if header.flags & (MSG_CTRUNC | MSG_TRUNC) != 0 {
        return Err(EMSGSIZE);
    }
    Ok((length, descriptors))
}

/// Waits until one of some can be read. Which of them can.
pub(crate) fn wait_for_any(fds: &[RawFd]) -> Result<Vec<bool>, i32> {
    const POLLIN: i16 = 1;
    let entry = |fd: &RawFd| PollFd { fd: *fd, events: POLLIN, revents: 0 };
    let mut fds: Vec<PollFd> = fds.iter().map(entry).collect();
    // SAFETY: the list is valid for its length.
    check(unsafe { poll(fds.as_mut_ptr(), fds.len() as _, -1) })?;
    Ok(fds.iter().map(|fd| fd.revents != 0).collect())
}

/// From now on the end of a child makes the descriptor readable.
pub(crate) fn child_signals() -> Result<OwnedFd, i32> {
    let mut set = SignalSet([0; 128]);
    const SIG_BLOCK: c_int = 0;
    const NONBLOCK_CLOEXEC: c_int = 0o2_004_000;
    // SAFETY: the set is as large as the C library's and outlives the calls.
    unsafe {
        sigemptyset(&mut set);
        sigaddset(&mut set, SIGCHLD);
        check(sigprocmask(SIG_BLOCK, &set, ptr::null_mut()))?;
        owned(check(signalfd(-1, &set, NONBLOCK_CLOEXEC)))
    }
}

/// A child must not inherit that the signal is blocked.
pub(crate) fn unblock_signals() {
    let mut set = SignalSet([0; 128]);
    const SIG_SETMASK: c_int = 2;
    // SAFETY: the set is as large as the C library's and outlives the calls.
    unsafe {
        sigemptyset(&mut set);
        sigprocmask(SIG_SETMASK, &set, ptr::null_mut());
    }
}

/// Signals wait until somebody asks for them.
pub(crate) fn block_signals() {
    let mut set = SignalSet([0; 128]);
    const SIG_SETMASK: c_int = 2;
    // SAFETY: the set is as large as the C library's and outlives the calls.
    unsafe {
        sigfillset(&mut set);
        sigprocmask(SIG_SETMASK, &set, ptr::null_mut());
    }
}

/// One of those that are blocked, when it comes; negative if something else has.
pub(crate) fn wait_for_signal() -> c_int {
    let mut set = SignalSet([0; 128]);
    // SAFETY: the set is as large as the C library's and outlives the calls.
    unsafe {
        sigfillset(&mut set);
        sigwaitinfo(&set, ptr::null_mut())
    }
}

pub(crate) fn send_signal(process: c_int, signal: c_int) {
    // SAFETY: it takes numbers.
    unsafe { kill(process, signal) };
}

pub(crate) fn drain_signals(fd: RawFd) {
    let mut buffer = [0_u8; 128 * 16];
    // SAFETY: the buffer is valid for its length.
    while unsafe { read(fd, buffer.as_mut_ptr().cast(), buffer.len()) } > 0 {}
}

/// A child that has ended, if there is one.
pub(crate) fn reap() -> Option<(i32, i32)> {
    const WNOHANG: c_int = 1;
    let mut status = 0;
    // SAFETY: the place for the status is valid.
    let pid = unsafe { waitpid(-1, &mut status, WNOHANG) };
    (pid > 0).then_some((pid, status))
}

pub(crate) fn loopback_up() -> Result<(), i32> {
    const SIOCGIFFLAGS: c_ulong = 0x8913;
    const SIOCSIFFLAGS: c_ulong = 0x8914;
    const UP: u8 = 1;
    // SAFETY: it takes numbers.
    let any = owned(check(unsafe { socket(2, 2 | O_CLOEXEC, 0) }))?;
    // struct ifreq: a name of 16 bytes, then the flags.
    let mut request = [0_u8; 40];
    request[..2].copy_from_slice(b"lo");
    // SAFETY: the structure has the size of struct ifreq.
    unsafe {
        check(ioctl(any.as_raw_fd(), SIOCGIFFLAGS, request.as_mut_ptr()))?;
        request[16] |= UP;
        check(ioctl(any.as_raw_fd(), SIOCSIFFLAGS, request.as_mut_ptr())).map(drop)
    }
}

/// Of sockets for questions about the network that we are in now, wherever we go: about its devices.
pub(crate) const ROUTES: c_int = 0;
/// About its sockets.
pub(crate) const SOCKETS: c_int = 4;

pub(crate) fn netlink_socket(protocol: c_int) -> Result<OwnedFd, i32> {
    const AF_NETLINK: c_int = 16;
    const SOCK_RAW: c_int = 3;
    // SAFETY: it takes numbers.
    owned(check(unsafe { socket(AF_NETLINK, SOCK_RAW | O_CLOEXEC, protocol) }))
}

pub(crate) fn listen_on_loopback(port: u16) -> Result<OwnedFd, i32> {
    // SAFETY: it takes numbers.
    let fd = owned(check(unsafe { socket(2, 1 | O_CLOEXEC | 0o4000, 0) }))?;
    let one: c_int = 1;
    // struct sockaddr_in: family, port, 127.0.0.1.
    let mut address = [0_u8; 16];
    address[..2].copy_from_slice(&2_u16.to_ne_bytes());
    address[2..4].copy_from_slice(&port.to_be_bytes());
    address[4..8].copy_from_slice(&[127, 0, 0, 1]);
    // SAFETY: all pointers are to values of the sizes that are told.
    unsafe {
        check(setsockopt(fd.as_raw_fd(), 1, 2, ptr::from_ref(&one).cast(), 4))?;
        check(bind(fd.as_raw_fd(), address.as_ptr().cast(), 16))?;
        check(listen(fd.as_raw_fd(), 128))?;
    }
    Ok(fd)
}

pub(crate) fn listen_on_abstract(name: &[u8]) -> Result<OwnedFd, i32> {
    // SAFETY: it takes numbers.
    let fd = owned(check(unsafe { socket(1, 1 | O_CLOEXEC | 0o4000, 0) }))?;
    // struct sockaddr_un: family, then NUL and the name.
    let mut address = [0_u8; 110];
    address[..2].copy_from_slice(&1_u16.to_ne_bytes());
    address[3..3 + name.len()].copy_from_slice(name);
    // SAFETY: the address has the length that is told.
    unsafe {
        check(bind(fd.as_raw_fd(), address.as_ptr().cast(), 3 + name.len() as c_uint))?;
        check(listen(fd.as_raw_fd(), 128))?;
    }
    Ok(fd)
}
