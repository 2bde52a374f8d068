//! The system calls that a sandbox may make.
//!
//! The filter is an allow list, compiled once for all sandboxes of a factory. Every other call fails with
//! `ENOSYS`, as on a kernel that does not have it: C libraries and runtimes then fall back to an older
//! call (`clone3` → `clone`), where `EPERM` would make them give up.
//!
//! Left out, because namespaces do not contain them: mounting and changing roots (`mount`,
//! `fsopen`, `pivot_root`, `chroot` …), new namespaces (`unshare`, `setns`, and `clone` with their
//! flags), other processes' memory and descriptors (`ptrace`, `process_vm_*`, `pidfd_getfd`, `kcmp`),
//! the kernel's keys (`keyctl` …), code for the kernel (`bpf`, modules, `kexec_*`), large and recent parts
//! of it that few programs need (`io_uring_*`, `userfaultfd`, `perf_event_open`, `fanotify_init`), file
//! handles that bypass paths (`open_by_handle_at`), clocks, swap, quotas, reboot.
//!
//! Left out, because they take from what all of the machine share, or watch it (`docs/kernel-limits.md`
//! has the whole table):
//!
//! | calls | what a sandbox could do by them |
//! |---|---|
//! | `inotify_*`; `fcntl` with `F_NOTIFY`, `F_SETLEASE`, `F_SETDELEG` | see which programs of `/usr` others run; hold up who opens a file |
//! | `io_setup` and its kind | use up the machine's `aio-max-nr` |
//! | `shmget`, `semget`, `msgget`, `mq_open` and their kind | keep memory that belongs to no process |
//! | `vmsplice` | keep pages in pipes that no process has any more |
//! | `seccomp`, `setsockopt` that attaches a program | use up `bpf_jit_limit`, without which no filter can be made |
//! | `mmap`, `memfd_create` of huge pages | take those that the machine has set aside |
//! | `socket` of rare protocols, `socketpair` but of Unix, `ioctl` with `TIOCSETD` | have the kernel load a module |
//!
//! `setsockopt` of a buffer's size succeeds and does nothing: the kernel takes the size as a wish in any
//! case, and a socket of the usual size is what is counted with.
//!
//! Where no cgroup bounds memory ([`Memory::Watched`]), memory that is shared and has no name can hardly
//! be seen from outside, and cannot be made: `memfd_create`, `mmap` of shared anonymous memory. Nor can
//! what a pipe holds, so none is made larger (`F_SETPIPE_SZ`).
//!
//! # Why the program is our own
//!
//! The kernel compiles a filter for each process that installs it, and runs it once for every system call,
//! to remember those that it always allows. A list that is searched from the front, as libraries generate
//! it, costs 460 calls × half of its length at each start; this program is a binary search.

use std::collections::BTreeMap;

use libc::c_long;

/// How memory is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    /// By a cgroup, which counts all of it.
    Counted,
    /// By the watchdog, which counts what can be seen.
    Watched,
}

/// The filter, as an array of `struct sock_filter`.
pub(super) fn filter(memory: Memory) -> Vec<u8> {
    let bytes = |i: &Instruction| {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&i.code.to_ne_bytes());
        (bytes[2], bytes[3]) = (i.jump_true, i.jump_false);
        bytes[4..].copy_from_slice(&i.k.to_ne_bytes());
        bytes
    };
    program(&rules(memory)).iter().flat_map(bytes).collect()
}

/// What becomes of a call: what the first alternative says whose conditions all hold. It is denied if
/// there is none. No conditions hold always.
type Rule = Vec<(Vec<Condition>, u32)>;

/// A condition on the lower half of an argument; the calls that are restricted take 32 bits there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Condition {
    argument: u32,
    holds: Holds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Is(u32),
    IsNot(u32),
    /// None of these bits is set.
    Without(u32),
}

fn rules(memory: Memory) -> BTreeMap<u32, Rule> {
    let number = |call: c_long| u32::try_from(call).expect("calls have small numbers");
    let always = || vec![(Vec::new(), ALLOW)];
    let allowed = COMMON.iter().chain(OLD).map(|call| (number(*call), always()));
    let mut rules: BTreeMap<u32, Rule> = allowed.collect();
    for (call, conditions) in restricted(memory) {
        rules.entry(number(call)).or_default().push((conditions, ALLOW));
    }
    for name in [libc::SO_SNDBUF, libc::SO_RCVBUF] {
        let conditions = [(1, libc::SOL_SOCKET), (2, name)]
            .map(|(argument, value)| Condition { argument, holds: Holds::Is(value as u32) });
        let rule = rules.entry(number(libc::SYS_setsockopt)).or_default();
        rule.push((conditions.to_vec(), NOTHING));
    }
    rules
}

/// Calls that are allowed with some arguments only.
fn restricted(memory: Memory) -> Vec<(c_long, Vec<Condition>)> {
    let when = |argument, holds| Condition { argument, holds };
    const NEW_NAMESPACES: u32 = (libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET) as u32;
    let mut calls = vec![
        // New processes and threads, but no new namespaces.
        (libc::SYS_clone, vec![when(0, Holds::Without(NEW_NAMESPACES))]),
        // Everything about itself, but not to outlive the worker, and no filters of its own.
        (
            libc::SYS_prctl,
            [libc::PR_SET_PDEATHSIG, libc::PR_SET_SECCOMP]
                .map(|option| when(0, Holds::IsNot(option as u32)))
                .to_vec(),
        ),
        // Everything, but not to type on a terminal that it may have been given, nor another discipline for
        // one of its own, for which the kernel would load a module.
        (
            libc::SYS_ioctl,
            [libc::TIOCSTI as u32, TIOCLINUX, libc::TIOCSETD as u32]
                .map(|request| when(1, Holds::IsNot(request)))
                .to_vec(),
        ),
        // To find out which it is; other personalities switch protections off.
        (libc::SYS_personality, vec![when(0, Holds::Is(0))]),
        (libc::SYS_personality, vec![when(0, Holds::Is(0xffff_ffff))]),
    ];
    // Sockets of the Internet, Unix, and for reading the routes.
    let unix = when(0, Holds::Is(libc::AF_UNIX as u32));
    calls.push((libc::SYS_socket, vec![unix]));
    calls.push((libc::SYS_socketpair, vec![unix]));
    for family in [libc::AF_INET, libc::AF_INET6] {
        for protocol in
            [0, libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6]
        {
            let is = [(0, family), (2, protocol)]
                .map(|(argument, value)| when(argument, Holds::Is(value as u32)));
            calls.push((libc::SYS_socket, is.to_vec()));
        }
    }
    let routes = vec![
        when(0, Holds::Is(libc::AF_NETLINK as u32)),
        when(2, Holds::Is(libc::NETLINK_ROUTE as u32)),
    ];
    calls.push((libc::SYS_socket, routes));
    // All of files, but not to watch those of others, or to hold up who opens one.
    let mut refused = vec![libc::F_SETLEASE as u32, libc::F_NOTIFY as u32, F_SETDELEG];
    if memory == Memory::Watched {
        // What a pipe holds cannot be seen, only how much it may hold.
        refused.push(libc::F_SETPIPE_SZ as u32);
    }
    let is_none = refused.iter().map(|command| when(1, Holds::IsNot(*command)));
    calls.push((libc::SYS_fcntl, is_none.collect()));
    // All settings of sockets, but programs for the kernel; sizes of buffers have a rule of their own.
    calls.push((libc::SYS_setsockopt, vec![when(1, Holds::IsNot(libc::SOL_SOCKET as u32))]));
    let names = [
        libc::SO_SNDBUF,
        libc::SO_RCVBUF,
        libc::SO_ATTACH_FILTER,
        libc::SO_ATTACH_BPF,
        libc::SO_ATTACH_REUSEPORT_CBPF,
        libc::SO_ATTACH_REUSEPORT_EBPF,
    ];
    let names = names.map(|name| when(2, Holds::IsNot(name as u32)));
    calls.push((libc::SYS_setsockopt, names.to_vec()));
    // Memory, but no huge pages of the machine's.
    let huge = libc::MAP_HUGETLB as u32;
    match memory {
        Memory::Counted => {
            calls.push((libc::SYS_mmap, vec![when(3, Holds::Without(huge))]));
            let small = when(1, Holds::Without(libc::MFD_HUGETLB));
            calls.push((libc::SYS_memfd_create, vec![small]));
        }
        Memory::Watched => {
            // Of a file, or of its own: not both without a file and shared. (The bit of MAP_SHARED is
            // in MAP_SHARED_VALIDATE too, which the kernel wants a file for.)
            for bit in [libc::MAP_ANONYMOUS, libc::MAP_SHARED] {
                let without = huge | bit as u32;
                calls.push((libc::SYS_mmap, vec![when(3, Holds::Without(without))]));
            }
        }
    }
    calls
}

const TIOCLINUX: u32 = 0x541c;
/// Of Linux 6.19.
const F_SETDELEG: u32 = 1024 + 16;

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    k: u32,
}

// Of `linux/bpf_common.h`: load a word, jump always, by equality, by greater or equal, by a bit, and
// return.
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_FROM: u16 = 0x35;
const JUMP_BITS: u16 = 0x45;
const RETURN: u16 = 0x06;

// Of `struct seccomp_data`: where the call's number, the machine and the arguments are.
const NUMBER: u32 = 0;
const MACHINE: u32 = 4;
const ARGUMENTS: u32 = 16;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const DENY: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
/// The call is not made, and returns 0.
const NOTHING: u32 = libc::SECCOMP_RET_ERRNO;
/// A call in the form of another machine would pass for one that it is not.
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

#[cfg(target_arch = "x86_64")]
const THIS_MACHINE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const THIS_MACHINE: u32 = 0xc000_00b7;

fn instruction(code: u16, k: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, k }
}

fn program(rules: &BTreeMap<u32, Rule>) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD, MACHINE),
        Instruction { jump_true: 1, ..instruction(JUMP_EQUAL, THIS_MACHINE) },
        instruction(RETURN, KILL),
        instruction(LOAD, NUMBER),
    ];
    // From where on which rule holds; `None` denies.
    let mut stretches: Vec<(u32, Option<&Rule>)> = vec![(0, None)];
    let always = vec![(Vec::new(), ALLOW)];
    let mut next = 0;
    for (&number, rule) in rules {
        if number > next {
            stretches.push((next, None));
        }
        let same = stretches.last().is_some_and(|(_, last)| *last == Some(rule) && *rule == always);
        if !same || number > next {
            stretches.push((number, Some(rule)));
        }
        next = number + 1;
    }
    stretches.push((next, None));
    // The last of those that begin at the same number counts.
    stretches.dedup_by(|later, earlier| {
        let same = later.0 == earlier.0;
        if same {
            earlier.1 = later.1;
        }
        same
    });
    program.extend(search(&stretches));
    program
}

/// Finds the stretch of a number by halves.
fn search(stretches: &[(u32, Option<&Rule>)]) -> Vec<Instruction> {
    if let [(_, rule)] = stretches {
        return decide(*rule);
    }
    let (below, from) = stretches.split_at(stretches.len() / 2);
    let (here, far) = (search(below), search(from));
    // A conditional jump reaches 255 instructions, the other one everywhere.
    let mut program = vec![
        Instruction { jump_false: 1, ..instruction(JUMP_FROM, from[0].0) },
        instruction(JUMP, here.len() as u32),
    ];
    program.extend(here);
    program.extend(far);
    program
}

fn decide(rule: Option<&Rule>) -> Vec<Instruction> {
    let mut program = Vec::new();
    for (alternative, verdict) in rule.into_iter().flatten() {
        for (n, condition) in alternative.iter().enumerate() {
            program.push(instruction(LOAD, ARGUMENTS + 8 * condition.argument));
            // To the next alternative when it does not hold: over two instructions for each condition
            // that is left, and the return.
            let left = 2 * (alternative.len() - n - 1) as u8 + 1;
            program.push(match condition.holds {
                Holds::Is(value) => {
                    Instruction { jump_false: left, ..instruction(JUMP_EQUAL, value) }
                }
                Holds::IsNot(value) => {
                    Instruction { jump_true: left, ..instruction(JUMP_EQUAL, value) }
                }
                Holds::Without(bits) => {
                    Instruction { jump_true: left, ..instruction(JUMP_BITS, bits) }
                }
            });
        }
        program.push(instruction(RETURN, *verdict));
        if alternative.is_empty() {
            return program;
        }
    }
    program.push(instruction(RETURN, DENY));
    program
}

/// Calls of all machines. Those of a newer kernel than the `libc` crate knows are not needed.
const COMMON: &[c_long] = &[
    // Files.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_mknodat,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_sync,
    libc::SYS_syncfs,
    libc::SYS_flock,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_sendfile,
    libc::SYS_copy_file_range,
    libc::SYS_umask,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_msync,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_mlockall,
    libc::SYS_munlockall,
    libc::SYS_membarrier,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_pkey_mprotect,
    libc::SYS_get_mempolicy,
    libc::SYS_set_mempolicy,
    libc::SYS_mbind,
    // Processes and threads.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getpgid,
    libc::SYS_setpgid,
    libc::SYS_getsid,
    libc::SYS_setsid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_getgroups,
    libc::SYS_setgroups,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_getpriority,
    libc::SYS_setpriority,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_setparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_rr_get_interval,
    libc::SYS_sched_getattr,
    libc::SYS_sched_setattr,
    libc::SYS_ioprio_get,
    libc::SYS_ioprio_set,
    libc::SYS_getrlimit,
    libc::SYS_setrlimit,
    libc::SYS_prlimit64,
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_getcpu,
    libc::SYS_restart_syscall,
    // Signals.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_rt_sigsuspend,
    libc::SYS_sigaltstack,
    libc::SYS_setitimer,
    libc::SYS_getitimer,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_gettime,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_delete,
    // Sockets, once they are there.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    // Time and the machine.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
];

/// Calls that only x86-64 still has, for programs of before their successors.
#[cfg(target_arch = "x86_64")]
const OLD: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_creat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_pipe,
    libc::SYS_dup2,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_getdents,
    libc::SYS_rename,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_link,
    libc::SYS_unlink,
    libc::SYS_symlink,
    libc::SYS_readlink,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_mknod,
    libc::SYS_getpgrp,
    libc::SYS_pause,
    libc::SYS_alarm,
    libc::SYS_time,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_signalfd,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[c_long] = &[];

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel's machine does with the program.
    fn run(program: &[Instruction], machine: u32, number: u32, arguments: [u32; 6]) -> u32 {
        let (mut at, mut word) = (0, 0);
        loop {
            let Instruction { code, jump_true, jump_false, k } = program[at];
            at += 1;
            let jump = |holds: bool| usize::from(if holds { jump_true } else { jump_false });
            match code {
                LOAD => {
                    word = match k {
                        NUMBER => number,
                        MACHINE => machine,
                        at => arguments[((at - ARGUMENTS) / 8) as usize],
                    };
                }
                JUMP => at += k as usize,
                JUMP_EQUAL => at += jump(word == k),
                JUMP_FROM => at += jump(word >= k),
                JUMP_BITS => at += jump(word & k != 0),
                RETURN => return k,
                other => panic!("no such instruction: {other:#x}"),
            }
        }
    }

    fn allows(number: c_long, arguments: [u32; 6]) -> bool {
        decides(Memory::Counted, number, arguments) == ALLOW
    }

    fn decides(memory: Memory, number: c_long, arguments: [u32; 6]) -> u32 {
        match run(&program(&rules(memory)), THIS_MACHINE, number as u32, arguments) {
            KILL => panic!("it is killed"),
            decision => decision,
        }
    }

    #[test]
    fn the_program_decides_as_the_rules_do() {
        for memory in [Memory::Counted, Memory::Watched] {
            let (rules, program) = (rules(memory), program(&rules(memory)));
            // The kernel takes 4096 instructions.
            assert!(program.len() < 1000, "{}", program.len());
            let some = [
                0,
                1,
                2,
                7,
                10,
                16,
                17,
                33,
                40,
                1026,
                0x5412,
                0x541c,
                0x40022,
                0x1000_0000,
                1 << 31,
            ];
            for number in (0..1000).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
                for a in some {
                    for b in some {
                        let arguments = [a, b, b, a, 0, 0];
                        let holds = |c: &Condition| {
                            let value = arguments[c.argument as usize];
                            match c.holds {
                                Holds::Is(wanted) => value == wanted,
                                Holds::IsNot(unwanted) => value != unwanted,
                                Holds::Without(bits) => value & bits == 0,
                            }
                        };
                        let all_hold =
                            |alternative: &&(Vec<Condition>, u32)| alternative.0.iter().all(holds);
                        let rule = rules.get(&number).into_iter().flatten().find(all_hold);
                        let expected = rule.map_or(DENY, |(_, verdict)| *verdict);
                        let decided = run(&program, THIS_MACHINE, number, arguments);
                        assert_eq!(decided, expected, "call {number} with {arguments:x?}");
                    }
                }
            }
            assert_eq!(run(&program, 0x4000_0003, 0, [0; 6]), KILL);
        }
    }

    #[test]
    fn what_matters_is_denied() {
        let none = [0; 6];
        for call in [
            libc::SYS_mount,
            libc::SYS_ptrace,
            libc::SYS_bpf,
            libc::SYS_clone3,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_keyctl,
            libc::SYS_io_uring_setup,
            libc::SYS_open_by_handle_at,
            libc::SYS_io_setup,
            libc::SYS_inotify_init1,
            libc::SYS_shmget,
            libc::SYS_seccomp,
        ] {
            assert!(!allows(call, none), "{call}");
        }
        assert!(allows(libc::SYS_clone, [libc::SIGCHLD as u32, 0, 0, 0, 0, 0]));
        assert!(!allows(libc::SYS_clone, [libc::CLONE_NEWUSER as u32, 0, 0, 0, 0, 0]));
        assert!(allows(libc::SYS_socket, [libc::AF_INET as u32, 1, 0, 0, 0, 0]));
        assert!(!allows(libc::SYS_socket, [libc::AF_PACKET as u32, 1, 0, 0, 0, 0]));
        assert!(!allows(libc::SYS_ioctl, [0, libc::TIOCSTI as u32, 0, 0, 0, 0]));
        assert!(allows(libc::SYS_read, none) && allows(libc::SYS_execve, none));
    }

    #[test]
    fn sizes_of_buffers_are_taken_and_do_nothing() {
        let set = |level: i32, name: i32| {
            let arguments = [3, level as u32, name as u32, 0, 4, 0];
            decides(Memory::Counted, libc::SYS_setsockopt, arguments)
        };
        assert_eq!(set(libc::SOL_SOCKET, libc::SO_SNDBUF), NOTHING);
        assert_eq!(set(libc::SOL_SOCKET, libc::SO_RCVBUF), NOTHING);
        assert_eq!(set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER), DENY);
        assert_eq!(set(libc::SOL_SOCKET, libc::SO_REUSEADDR), ALLOW);
        // The same numbers mean something else there.
        assert_eq!(set(libc::IPPROTO_TCP, libc::SO_SNDBUF), ALLOW);
    }

    #[test]
    fn memory_that_cannot_be_seen_is_not_made_where_it_is_watched() {
        let map = |memory, flags: i32| {
            decides(memory, libc::SYS_mmap, [0, 4096, 3, flags as u32, 0, 0]) == ALLOW
        };
        let (shared, own, no_file) = (libc::MAP_SHARED, libc::MAP_PRIVATE, libc::MAP_ANONYMOUS);
        for (flags, counted, watched) in [
            (shared, true, true),
            (own, true, true),
            (own | no_file | libc::MAP_NORESERVE, true, true),
            (shared | no_file, true, false),
            (own | no_file | libc::MAP_HUGETLB, false, false),
            (shared | libc::MAP_HUGETLB, false, false),
        ] {
            assert_eq!(map(Memory::Counted, flags), counted, "{flags:#x}");
            assert_eq!(map(Memory::Watched, flags), watched, "{flags:#x}");
        }
        let nameless = |memory| decides(memory, libc::SYS_memfd_create, [0; 6]) == ALLOW;
        assert!(nameless(Memory::Counted) && !nameless(Memory::Watched));
    }
}
