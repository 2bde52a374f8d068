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
//! | `socket` of rare families, types and protocols, `socketpair` but of Unix; `ioctl` of bridges, VLANs, file systems, drivers; `setsockopt` of ciphers and hashes for TCP | have the kernel load a module, or run parts of it that few programs need |
//!
//! `setsockopt` of a buffer's size succeeds and does nothing: the kernel takes the size as a wish in any
//! case, and a socket of the usual size is what is counted with.
//!
//! Where no cgroup bounds memory ([`Memory::Watched`]), memory that is shared and has no name can hardly
//! be seen from outside, and cannot be made: `memfd_create`, `mmap` of shared anonymous memory. Nor can
//! what a pipe holds, so none is made larger (`F_SETPIPE_SZ`).

mod calls;
mod program;

use std::collections::BTreeMap;

use libc::c_long;

use calls::{COMMON, OLD};
use program::{ALLOW, Condition, Holds, Instruction, NO_POWER, NOT_HERE, NOTHING, Rule, program};

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
    program(&rules(memory)).iter().flat_map(Instruction::bytes).collect()
}

fn rules(memory: Memory) -> BTreeMap<u32, Rule> {
    let number = |call: c_long| u32::try_from(call).expect("calls have small numbers");
    let always = || vec![(Vec::new(), ALLOW)];
    let allowed = COMMON.iter().chain(OLD).map(|call| (number(*call), always()));
    let mut rules: BTreeMap<u32, Rule> = allowed.collect();
    for (call, alternative) in restricted(memory).into_iter().chain(sockets()) {
        rules.entry(number(call)).or_default().push(alternative);
    }
    rules
}

/// An alternative of a call's rule.
type Restricted = (c_long, (Vec<Condition>, u32));

fn one_of(argument: u32, values: &[i32]) -> Condition {
    let values = values.iter().map(|value| *value as u32).collect();
    Condition { argument, mask: u32::MAX, holds: Holds::OneOf(values) }
}

fn none_of(argument: u32, values: &[i32]) -> Condition {
    let values = values.iter().map(|value| *value as u32).collect();
    Condition { argument, mask: u32::MAX, holds: Holds::NoneOf(values) }
}

fn without(argument: u32, bits: u32) -> Condition {
    Condition { argument, mask: u32::MAX, holds: Holds::Without(bits) }
}

/// Calls that are allowed with some arguments only.
fn restricted(memory: Memory) -> Vec<Restricted> {
    const NEW_NAMESPACES: u32 = (libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET) as u32;
    let allow = |call, conditions| (call, (conditions, ALLOW));
    let mut calls = vec![
        // New processes and threads, but no new namespaces.
        allow(libc::SYS_clone, vec![without(0, NEW_NAMESPACES)]),
        // Everything about itself, but not to outlive the worker, and no filters of its own.
        allow(libc::SYS_prctl, vec![none_of(0, &[libc::PR_SET_PDEATHSIG, libc::PR_SET_SECCOMP])]),
        // What files and sockets know. Not to type on a terminal that it may have been given.
        (libc::SYS_ioctl, (vec![one_of(1, REQUESTS)], ALLOW)),
        (libc::SYS_ioctl, (vec![none_of(1, &[libc::TIOCSTI as i32, TIOCLINUX])], NOT_HERE)),
        // To find out which it is; other personalities switch protections off.
        allow(libc::SYS_personality, vec![one_of(0, &[0, -1])]),
    ];
    // All of files, but not to watch those of others, or to hold up who opens one.
    let mut refused = vec![libc::F_SETLEASE, libc::F_NOTIFY, F_SETDELEG];
    if memory == Memory::Watched {
        // What a pipe holds cannot be seen, only how much it may hold.
        refused.push(libc::F_SETPIPE_SZ);
    }
    calls.push(allow(libc::SYS_fcntl, vec![none_of(1, &refused)]));
    // Memory, but no huge pages of the machine's.
    let huge = libc::MAP_HUGETLB as u32;
    match memory {
        Memory::Counted => {
            calls.push(allow(libc::SYS_mmap, vec![without(3, huge)]));
            calls.push(allow(libc::SYS_memfd_create, vec![without(1, libc::MFD_HUGETLB)]));
        }
        Memory::Watched => {
            // Of a file, or of its own: not both without a file and shared. (The bit of MAP_SHARED is
            // in MAP_SHARED_VALIDATE too, which the kernel wants a file for.)
            for bit in [libc::MAP_ANONYMOUS, libc::MAP_SHARED] {
                calls.push(allow(libc::SYS_mmap, vec![without(3, huge | bit as u32)]));
            }
        }
    }
    calls
}

/// Which sockets there are, and what is set for them. The kernel looks for a module of each family, and of
/// each type and protocol of one, that it does not know; so both are named.
fn sockets() -> Vec<Restricted> {
    let of_type = |types: &[i32]| {
        // A type comes together with two flags.
        let mask = !((libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u32);
        Condition { mask, ..one_of(1, types) }
    };
    let family = |families: &[i32]| one_of(0, families);
    let protocol = |protocols: &[i32]| one_of(2, protocols);
    let (inet, inet6) = (libc::AF_INET, libc::AF_INET6);
    let unix = vec![
        family(&[libc::AF_UNIX]),
        of_type(&[libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET]),
    ];
    let ping = |family: i32| match family {
        libc::AF_INET => libc::IPPROTO_ICMP,
        _ => libc::IPPROTO_ICMPV6,
    };
    let datagrams = |of: i32| {
        vec![
            family(&[of]),
            of_type(&[libc::SOCK_DGRAM]),
            protocol(&[0, libc::IPPROTO_UDP, ping(of)]),
        ]
    };
    let streams = vec![
        family(&[inet, inet6]),
        of_type(&[libc::SOCK_STREAM]),
        protocol(&[0, libc::IPPROTO_TCP]),
    ];
    // For reading the routes.
    let routes = vec![
        family(&[libc::AF_NETLINK]),
        of_type(&[libc::SOCK_RAW, libc::SOCK_DGRAM]),
        protocol(&[libc::NETLINK_ROUTE]),
    ];
    // Programs go on without one if they may not.
    let raw = vec![family(&[inet, inet6]), of_type(&[libc::SOCK_RAW])];
    let set = |level: i32, name: Condition, verdict| {
        (libc::SYS_setsockopt, (vec![one_of(1, &[level]), name], verdict))
    };
    // All settings but sizes of buffers, programs for the kernel, ciphers and hashes in the kernel, and
    // what makes all of the machine's packets slower.
    let sizes = [libc::SO_SNDBUF, libc::SO_RCVBUF];
    let programs = [
        libc::SO_ATTACH_FILTER,
        libc::SO_ATTACH_BPF,
        libc::SO_ATTACH_REUSEPORT_CBPF,
        libc::SO_ATTACH_REUSEPORT_EBPF,
    ];
    let not_of_sockets: Vec<i32> = sizes.into_iter().chain(programs).collect();
    vec![
        (libc::SYS_socket, (streams, ALLOW)),
        (libc::SYS_socket, (unix.clone(), ALLOW)),
        (libc::SYS_socket, (datagrams(inet), ALLOW)),
        (libc::SYS_socket, (datagrams(inet6), ALLOW)),
        (libc::SYS_socket, (routes, ALLOW)),
        (libc::SYS_socket, (raw, NO_POWER)),
        (libc::SYS_socketpair, (unix, ALLOW)),
        set(libc::SOL_SOCKET, none_of(2, &not_of_sockets), ALLOW),
        set(libc::SOL_SOCKET, one_of(2, &sizes), NOTHING),
        set(libc::IPPROTO_TCP, none_of(2, NOT_OF_TCP), ALLOW),
        set(libc::IPPROTO_UDP, none_of(2, &[libc::UDP_ENCAP]), ALLOW),
        (
            libc::SYS_setsockopt,
            (vec![none_of(1, &[libc::SOL_SOCKET, libc::IPPROTO_TCP, libc::IPPROTO_UDP])], ALLOW),
        ),
    ]
}

/// Settings of TCP by which the kernel looks for ciphers and hashes, by names that the caller says.
const NOT_OF_TCP: &[i32] = &[
    libc::TCP_MD5SIG,
    libc::TCP_ULP,
    libc::TCP_MD5SIG_EXT,
    // TCP_AO_ADD_KEY, _DEL_KEY, _INFO, _GET_KEYS, _REPAIR of Linux 6.7.
    38,
    39,
    40,
    41,
    42,
];

/// What is asked of files, sockets and terminals (`ioctl`). Others are unknown to whatever is asked: there
/// are those by which the kernel loads a module (bridges, VLANs), file systems' own, which make ciphers,
/// snapshots and attributes, and those of drivers.
const REQUESTS: &[i32] = &[
    // Of every descriptor, and how much there is to read or still to be sent.
    libc::FIOCLEX as i32,
    libc::FIONCLEX as i32,
    libc::FIONBIO as i32,
    libc::FIOASYNC as i32,
    libc::FIONREAD as i32,
    libc::TIOCOUTQ as i32,
    // Whether it is a terminal, and how large.
    libc::TCGETS as i32,
    TCGETS2,
    libc::TIOCGWINSZ as i32,
    libc::TIOCGPGRP as i32,
    // Terminals that a function makes for itself: not other disciplines (`TIOCSETD`), which are modules.
    libc::TCSETS as i32,
    libc::TCSETSW as i32,
    libc::TCSETSF as i32,
    TCSETS2,
    TCSETSW2,
    TCSETSF2,
    libc::TCSBRK as i32,
    libc::TCSBRKP as i32,
    libc::TCXONC as i32,
    libc::TCFLSH as i32,
    libc::TIOCEXCL as i32,
    libc::TIOCNXCL as i32,
    libc::TIOCSCTTY as i32,
    libc::TIOCNOTTY as i32,
    libc::TIOCGSID as i32,
    libc::TIOCSPGRP as i32,
    libc::TIOCSWINSZ as i32,
    libc::TIOCGETD as i32,
    libc::TIOCPKT as i32,
    libc::TIOCGPKT as i32,
    libc::TIOCGPTN as i32,
    libc::TIOCSPTLCK as i32,
    libc::TIOCGPTLCK as i32,
    libc::TIOCGPTPEER as i32,
    // Files: block size, extents, attributes, a copy that shares its blocks.
    FIGETBSZ,
    FS_IOC_FIEMAP as i32,
    FS_IOC_GETFLAGS as i32,
    FICLONE,
    FICLONERANGE,
    // Sockets: who gets their signals, marks, times.
    FIOSETOWN,
    SIOCSPGRP,
    FIOGETOWN,
    SIOCGPGRP,
    SIOCATMARK,
    SIOCGSTAMP,
    SIOCGSTAMPNS,
    // Links of the network.
    SIOCGIFNAME,
    libc::SIOCGIFCONF as i32,
    libc::SIOCGIFFLAGS as i32,
    libc::SIOCGIFADDR as i32,
    libc::SIOCGIFDSTADDR as i32,
    libc::SIOCGIFBRDADDR as i32,
    libc::SIOCGIFNETMASK as i32,
    libc::SIOCGIFMETRIC as i32,
    libc::SIOCGIFMTU as i32,
    libc::SIOCGIFHWADDR as i32,
    libc::SIOCGIFINDEX as i32,
    SIOCGIFTXQLEN,
    SIOCETHTOOL,
    // To be told that it may not change one.
    libc::SIOCSIFFLAGS as i32,
];

const TIOCLINUX: i32 = 0x541c;
const TCGETS2: i32 = 0x802c_542a_u32 as i32;
const TCSETS2: i32 = 0x402c_542b;
const TCSETSW2: i32 = 0x402c_542c;
const TCSETSF2: i32 = 0x402c_542d;
const FIGETBSZ: i32 = 2;
const FS_IOC_FIEMAP: u32 = 0xc020_660b;
const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
const FICLONE: i32 = 0x4004_9409;
const FICLONERANGE: i32 = 0x4020_940d;
const FIOSETOWN: i32 = 0x8901;
const SIOCSPGRP: i32 = 0x8902;
const FIOGETOWN: i32 = 0x8903;
const SIOCGPGRP: i32 = 0x8904;
const SIOCATMARK: i32 = 0x8905;
const SIOCGSTAMP: i32 = 0x8906;
const SIOCGSTAMPNS: i32 = 0x8907;
const SIOCGIFNAME: i32 = 0x8910;
const SIOCGIFTXQLEN: i32 = 0x8942;
const SIOCETHTOOL: i32 = 0x8946;
/// Of Linux 6.19.
const F_SETDELEG: i32 = 1024 + 16;

#[cfg(test)]
mod tests {
    use super::program::{DENY, KILL, THIS_MACHINE, run};
    use super::*;

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
                0x80800,
                0x80802,
                0x1000_0000,
                1 << 31,
            ];
            for number in (0..1000).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
                for a in some {
                    for b in some {
                        let arguments = [a, b, b, a, 0, 0];
                        let holds = |c: &Condition| {
                            let value = arguments[c.argument as usize] & c.mask;
                            match &c.holds {
                                Holds::OneOf(wanted) => wanted.contains(&value),
                                Holds::NoneOf(unwanted) => !unwanted.contains(&value),
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
