//! What a function tries in order to get out of a lean container, and what stops it. As root and, by
//! the last test, as an ordinary user.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "common/attempts.rs"]
mod attempts;
mod common;
#[path = "common/containers.rs"]
mod containers;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt;
use openlambda_core::manifest::{Manifest, Volume};
use openlambda_core::sandbox::{SandboxErrorKind, SandboxFactory};
use serde_json::{Value, json};

use attempts::{TRY, all_fail, attempt, result, trying};
use common::call;
use containers::{again_as_an_ordinary_user, containers, containers_with, is_root};

#[tokio::test(flavor = "multi_thread")]
async fn files_of_the_machine_are_not_there_and_those_that_are_cannot_be_written() {
    let containers = containers();
    let other = containers.spec_named("other", &[("f.py", TRY), ("secret", "s3cret")]);
    let others_code = other.code.clone();
    let other = containers.create(other).await;
    result(&*other, "write('/tmp/secret')").await;
    let spec = containers.spec(&[("f.py", TRY)]);
    // Links lead from the bundle to where they say, in the sandbox's own root.
    std::os::unix::fs::symlink("/etc/shadow", spec.code.join("absolute")).unwrap();
    std::os::unix::fs::symlink("../../../../../etc/shadow", spec.code.join("relative")).unwrap();
    let own_code = spec.code.display().to_string();
    let sandbox = containers.create(spec).await;

    let state = containers.setup.dir.path().join("sock").display().to_string();
    let not_there = "its root holds nothing of the machine but /usr and copies of public files";
    let machines = [
        "/etc/shadow",
        "/etc/sudoers",
        "/etc/hostname.bak",
        "/root",
        "/home",
        "/var/log",
        "/boot",
        "/opt",
        "/sys/fs/cgroup",
        "/sys/kernel",
        "/dev/mem",
        "/dev/kmsg",
        "/dev/vda",
        "/dev/kvm",
        "/run/docker.sock",
        "/var/run/docker.sock",
        "/run/systemd",
        &state,
        &own_code,
        "/proc/self/root/etc/shadow",
        "/proc/self/cwd/../../../root",
        "/var/task/absolute",
        "/var/task/relative",
        "/tmp/secret",
        &others_code.join("secret").display().to_string(),
    ];
    let attempts = machines.map(|path| format!("os.stat({path:?})"));
    let attempts: Vec<_> = attempts.iter().map(|code| (&**code, "ENOENT", not_there)).collect();
    all_fail(&*sandbox, &attempts).await;
    let init = "nobody may look into the init";
    all_fail(
        &*sandbox,
        &[
            ("os.stat('/proc/1/root/root')", "EACCES", init),
            ("os.stat('/proc/1/cwd/../../../root')", "EACCES", init),
        ],
    )
    .await;

    let read_only = "the mount is read-only, and mounts belong to a user namespace around its own";
    all_fail(
        &*sandbox,
        &[
            ("write('/usr/x')", "EROFS", read_only),
            ("write('/usr/bin/python3')", "EROFS", read_only),
            ("os.chmod('/usr/bin/python3', 0o777)", "EROFS", read_only),
            ("os.unlink('/usr/bin/python3')", "EROFS", read_only),
            ("write('/etc/passwd')", "EROFS", read_only),
            ("write('/x')", "EROFS", read_only),
            ("os.mkdir('/sys/x')", "EROFS", read_only),
            ("write('/dev/x')", "EROFS", read_only),
            ("write('/var/runtime/python/x')", "EROFS", read_only),
            (
                "write('/var/task/x')",
                "EROFS",
                "instances share the bundle, so its mount is read-only",
            ),
            ("write('/var/task/f.py')", "EROFS", "as above"),
            ("os.rename('/var/task/f.py', '/var/task/g.py')", "EROFS", "as above"),
            ("os.link('/var/task/f.py', '/var/task/g.py')", "EROFS", "as above"),
            (
                "os.link('/var/task/f.py', '/tmp/g.py')",
                "EXDEV",
                "links do not lead from mount to mount",
            ),
            ("os.symlink('/etc/shadow', '/tmp/link'); read('/tmp/link')", "ENOENT", not_there),
            (
                "write('/proc/self/exe')",
                "EROFS ETXTBSY",
                "the program is a file of the read-only /usr",
            ),
            ("write('/proc/1/exe')", "EACCES", "nobody may look into the init"),
            (
                "os.mknod('/tmp/null', stat.S_IFCHR | 0o666, os.makedev(1, 3))",
                "EPERM",
                "no CAP_MKNOD",
            ),
            (
                "os.mknod('/tmp/disk', stat.S_IFBLK | 0o666, os.makedev(254, 0))",
                "EPERM",
                "as above",
            ),
            ("os.chown('/tmp', 0, 0)", "EINVAL", "no other user has a name in its user namespace"),
            ("write('/proc/self/cgroup', '/')", "EROFS EACCES", "that file is for reading"),
            ("os.open('/dev/tty', os.O_RDWR)", "ENXIO", "it has no terminal"),
            (
                "os.mkdir('/dev/pts/x')",
                "EACCES EPERM",
                "the folder is for terminals, by way of ptmx",
            ),
        ],
    )
    .await;
    assert_eq!(result(&*sandbox, "result = os.listdir('/tmp')").await, json!(["link"]));
    // Nothing but devices, its own processes' files, /dev/shm and /tmp can be written at all.
    let writable = "
result = []
for top in ['/dev', '/etc', '/lib', '/mnt', '/run', '/sys', '/var']:
    for folder, folders, files in os.walk(top):
        for name in [''] + files:
            path = os.path.join(folder, name)
            if os.access(path, os.W_OK) and not os.path.islink(path): result.append(path)
";
    let mut found = result(&*sandbox, writable).await;
    let paths = found.as_array_mut().unwrap();
    paths.sort_by_key(Value::to_string);
    // Without root this folder is its user's, and takes no file all the same.
    paths.retain(|path| is_root() || path != "/dev/pts/");
    let devices = [
        "/dev/full",
        "/dev/null",
        "/dev/pts/ptmx",
        "/dev/random",
        "/dev/shm/",
        "/dev/tty",
        "/dev/urandom",
        "/dev/zero",
    ];
    assert_eq!(found, json!(devices));
    // Programs with the setuid bit, and devices, are nothing special on any mount that could hold one.
    let mounts = result(&*sandbox, "result = read('/proc/self/mountinfo')").await;
    for line in mounts.as_str().unwrap().lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (place, options) = (fields[4], fields[5]);
        let is_device = place.starts_with("/dev/") || fields[3].starts_with("/null");
        // Without root, the kernel wants a /proc to be there below the sandbox's own.
        let is_hidden = place == "/proc" || place.starts_with("/proc/");
        assert!(is_device || is_hidden || options.contains("nosuid"), "{line}");
        assert!(is_device || is_hidden || place == "/" || options.contains("nodev"), "{line}");
        assert!(place == "/tmp" || is_device || is_hidden || options.starts_with("ro"), "{line}");
    }
    let setuid = "
import shutil
shutil.copy('/usr/bin/python3', '/tmp/python'); os.chmod('/tmp/python', 0o6755)
code = 'import os; print(os.getresuid(), os.getresgid())'
result = subprocess.run(['/tmp/python', '-S', '-c', code], capture_output=True, text=True).stdout
";
    let ids = "(1000, 1000, 1000) (1000, 1000, 1000)\n";
    assert_eq!(result(&*sandbox, setuid).await, json!(ids));
    containers.factory.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_the_kernel_can_be_read_and_not_written_and_keys_are_hidden() {
    let containers = containers();
    let sandbox = trying(&containers).await;
    // Some belong to root of the nursery's user namespace, who without root is the same user.
    let settings = "
result = []
for folder, folders, files in os.walk('/proc/sys'):
    for name in files:
        path = os.path.join(folder, name)
        try: os.close(os.open(path, os.O_WRONLY))
        except OSError: continue
        result.append(path)
";
    assert_eq!(result(&*sandbox, settings).await, json!([]));
    all_fail(
        &*sandbox,
        &[
            (
                "write('/proc/sys/kernel/core_pattern', '|/tmp/x')",
                "EROFS",
                "/proc/sys is read-only",
            ),
            ("write('/proc/sys/kernel/shmmax', '1')", "EROFS", "as above"),
            ("write('/proc/sys/net/ipv4/ip_local_port_range', '1 2')", "EROFS ENOENT", "as above"),
            ("write('/proc/sys/kernel/pid_max', '400')", "EROFS", "as above"),
        ],
    )
    .await;
    assert_ne!(result(&*sandbox, "result = read('/proc/sys/kernel/pid_max')").await, json!(""));
    // Of these there is nothing, where there is such a file at all.
    let hidden = "
result = []
for name in ['cmdline', 'config.gz', 'interrupts', 'kallsyms', 'kcore', 'key-users', 'keys', 'kmsg', 'latency_stats',
             'locks', 'modules', 'pressure', 'sched_debug', 'slabinfo', 'sysrq-trigger', 'timer_list', 'vmallocinfo']:
    path = '/proc/' + name
    try:
        told = os.listdir(path) if os.path.isdir(path) else open(path, 'rb').read(100)
        if told: result.append(f'{name}: {told}')
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOENT): raise
";
    assert_eq!(result(&*sandbox, hidden).await, json!([]));
    // Where a program looks for what it may use, it finds it.
    let shown = "
result = [name for name in ['cpuinfo', 'filesystems', 'loadavg', 'meminfo', 'mounts', 'self/status', 'stat', 'uptime',
          'version', 'sys/kernel/osrelease', 'sys/vm/overcommit_memory'] if not read('/proc/' + name)]
";
    assert_eq!(result(&*sandbox, shown).await, json!([]));
    // A file that another has locked is not told of.
    let lock = "
import builtins
builtins.kept = open('/tmp/locked', 'w'); fcntl.lockf(kept, fcntl.LOCK_EX)
other = open('/tmp/open', 'w'); builtins.kept = kept, other
fcntl.fcntl(other, 37, struct.pack('hhxxxxqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))
";
    let other = trying(&containers).await;
    result(&*other, lock).await;
    assert_eq!(result(&*sandbox, "result = read('/proc/locks')").await, "");
    // What other files of the kernel's tell, or take, is for root alone.
    let others = "
result = []
for folder, folders, files in os.walk('/proc'):
    folders[:] = [] if folder != '/proc' else [f for f in folders if f not in ['sys'] and not f.isdigit()
        and not os.path.islink('/proc/' + f)]
    for name in files:
        path = os.path.join(folder, name)
        if os.path.lexists(path) and os.stat(path).st_rdev != os.makedev(1, 3) and os.access(path, os.W_OK): result.append(path)
";
    assert_eq!(result(&*sandbox, others).await, json!([]));
    containers.factory.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn system_calls_that_a_namespace_does_not_keep_inside_are_refused() {
    let containers = containers();
    let sandbox = trying(&containers).await;
    // The filter answers as a kernel without the call does, so that programs fall back.
    for (name, number) in [
        ("mount", libc::SYS_mount),
        ("umount2", libc::SYS_umount2),
        ("pivot_root", libc::SYS_pivot_root),
        ("chroot", libc::SYS_chroot),
        ("open_tree", libc::SYS_open_tree),
        ("move_mount", libc::SYS_move_mount),
        ("fsopen", libc::SYS_fsopen),
        ("fsmount", libc::SYS_fsmount),
        ("fspick", libc::SYS_fspick),
        ("mount_setattr", libc::SYS_mount_setattr),
        ("setns", libc::SYS_setns),
        ("clone3", libc::SYS_clone3),
        ("ptrace", libc::SYS_ptrace),
        ("process_vm_readv", libc::SYS_process_vm_readv),
        ("process_vm_writev", libc::SYS_process_vm_writev),
        ("pidfd_getfd", libc::SYS_pidfd_getfd),
        ("kcmp", libc::SYS_kcmp),
        ("init_module", libc::SYS_init_module),
        ("finit_module", libc::SYS_finit_module),
        ("delete_module", libc::SYS_delete_module),
        ("kexec_load", libc::SYS_kexec_load),
        ("bpf", libc::SYS_bpf),
        ("keyctl", libc::SYS_keyctl),
        ("add_key", libc::SYS_add_key),
        ("request_key", libc::SYS_request_key),
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("io_uring_enter", libc::SYS_io_uring_enter),
        ("io_uring_register", libc::SYS_io_uring_register),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("fanotify_init", libc::SYS_fanotify_init),
        ("name_to_handle_at", libc::SYS_name_to_handle_at),
        ("open_by_handle_at", libc::SYS_open_by_handle_at),
        ("syslog", libc::SYS_syslog),
        ("sethostname", libc::SYS_sethostname),
        ("setdomainname", libc::SYS_setdomainname),
        ("settimeofday", libc::SYS_settimeofday),
        ("clock_settime", libc::SYS_clock_settime),
        ("adjtimex", libc::SYS_adjtimex),
        ("clock_adjtime", libc::SYS_clock_adjtime),
        ("swapon", libc::SYS_swapon),
        ("swapoff", libc::SYS_swapoff),
        ("reboot", libc::SYS_reboot),
        ("quotactl", libc::SYS_quotactl),
        ("acct", libc::SYS_acct),
        ("vhangup", libc::SYS_vhangup),
        ("move_pages", libc::SYS_move_pages),
        ("migrate_pages", libc::SYS_migrate_pages),
        ("process_madvise", libc::SYS_process_madvise),
        ("memfd_secret", 447),
    ] {
        let (ended, _) = attempt(&*sandbox, &format!("call({number}, 0, 0, 0, 0, 0, 0)")).await;
        assert_eq!(ended, "ENOSYS", "{name}");
    }
    #[cfg(target_arch = "x86_64")]
    for (name, number) in [
        ("iopl", libc::SYS_iopl),
        ("ioperm", libc::SYS_ioperm),
        ("modify_ldt", libc::SYS_modify_ldt),
        ("getpid by its number for the x32 ABI", 0x4000_0000 | libc::SYS_getpid),
    ] {
        let (ended, _) = attempt(&*sandbox, &format!("call({number}, 0, 0, 0)")).await;
        assert_eq!(ended, "ENOSYS", "{name}");
    }
    // New namespaces, by either call, one by one and with the bits above 32 set.
    for (kind, flag) in [
        ("mount", libc::CLONE_NEWNS),
        ("process", libc::CLONE_NEWPID),
        ("user", libc::CLONE_NEWUSER),
        ("network", libc::CLONE_NEWNET),
        ("IPC", libc::CLONE_NEWIPC),
        ("name", libc::CLONE_NEWUTS),
        ("cgroup", libc::CLONE_NEWCGROUP),
        ("time", 0x80),
    ] {
        let unshare = libc::SYS_unshare;
        let (ended, _) = attempt(&*sandbox, &format!("call({unshare}, {flag})")).await;
        assert_eq!(ended, "ENOSYS", "{kind}");
        // For clone, the time namespace's bit is a part of the signal.
        if flag != 0x80 {
            for high in [0, 1_u64 << 40] {
                let (clone, flags) = (libc::SYS_clone, flag as u32 as u64 | 17 | high);
                let (ended, _) =
                    attempt(&*sandbox, &format!("call({clone}, {flags}, 0, 0, 0, 0)")).await;
                assert_eq!(ended, "ENOSYS", "{kind}");
            }
        }
    }
    let prctl = libc::SYS_prctl;
    let by_argument = "the filter looks at the argument";
    let no_power = "it has no capability, and cannot get one";
    let attempts = [
        (
            format!("call({prctl}, {}, 0, 0, 0, 0)", libc::PR_SET_PDEATHSIG),
            "ENOSYS",
            "it would outlive us",
        ),
        (
            format!("call({prctl}, {}, 0, 0, 0, 0)", libc::PR_SET_NO_NEW_PRIVS),
            "EINVAL",
            "it cannot be undone",
        ),
        (format!("call({prctl}, {}, 0, 0, 0, 0)", libc::PR_SET_SECUREBITS), "EPERM", no_power),
        (format!("call({prctl}, {}, 8, 0, 0, 0)", libc::PR_SET_MM), "EPERM", no_power),
        (format!("call({}, 0x0040000)", libc::SYS_personality), "ENOSYS", by_argument),
        (format!("fcntl.ioctl(0, {}, b'x')", libc::TIOCSTI), "ENOSYS", by_argument),
        (
            format!("fcntl.ioctl(0, {} | 1 << 31, b'x')", libc::TIOCSTI),
            "ENOTTY",
            "another call by then",
        ),
        ("fcntl.ioctl(0, 0x541c, b'x')".to_owned(), "ENOSYS", by_argument),
        ("os.setuid(0)".to_owned(), "EINVAL", "no other user has a name in its user namespace"),
        ("os.setgid(0)".to_owned(), "EINVAL", "as above"),
        ("os.setgroups([])".to_owned(), "EPERM", "denied in its user namespace"),
        ("write('/proc/self/setgroups', 'allow')".to_owned(), "EROFS EACCES", "/proc is read-only"),
        ("write('/proc/self/uid_map', '0 0 1')".to_owned(), "EROFS EACCES", "as above"),
        (
            format!("call({}, struct.pack('Ii', 0x20080522, 0), b'\\xff' * 24)", libc::SYS_capset),
            "EPERM",
            no_power,
        ),
        ("os.setpriority(os.PRIO_PROCESS, 0, -1)".to_owned(), "EACCES EPERM", no_power),
        (
            "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))".to_owned(),
            "EPERM",
            no_power,
        ),
        // As root the kernel keeps it from going below 500, as another user below what the worker has.
        ("write('/proc/self/oom_score_adj', '0')".to_owned(), "EROFS", "/proc is read-only"),
        ("write('/proc/self/oom_score_adj', '-1')".to_owned(), "EROFS", "as above"),
        ("write('/proc/self/oom_adj', '0')".to_owned(), "EROFS ENOENT", "as above"),
        ("os.chroot('/tmp')".to_owned(), "ENOSYS", "as its system call"),
    ];
    let attempts: Vec<_> =
        attempts.iter().map(|(code, errors, why)| (&**code, *errors, *why)).collect();
    all_fail(&*sandbox, &attempts).await;
    let raise = "
try: resource.setrlimit(resource.RLIMIT_NPROC, (10000, 10000)); result = 'raised'
except ValueError as error: result = str(error)
";
    assert_eq!(result(&*sandbox, raise).await, "not allowed to raise maximum limit");
    containers.factory.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_of_others_are_neither_seen_nor_signalled() {
    let containers = containers();
    let (sandbox, other) = tokio::join!(trying(&containers), trying(&containers));
    let seen = "result = sorted(int(name) for name in os.listdir('/proc') if name.isdigit())";
    // Its init, which is the sandbox's own, and itself.
    assert_eq!(result(&*sandbox, seen).await, json!([1, 2]));
    let own = std::process::id();
    let kill = format!("os.kill({own}, 0)");
    all_fail(
        &*sandbox,
        &[
            (&kill, "ESRCH", "processes outside of its process namespace have no number in it"),
            ("os.kill(3, 9)", "ESRCH", "as above"),
            ("os.kill(-1, 9)", "ESRCH", "as above; and there is no other inside"),
            ("call(434, 3, 0)", "ESRCH", "pidfd_open, as above"),
        ],
    )
    .await;
    // It cannot kill or stop the first process, which the sandbox stands and falls with.
    let kill = "
os.kill(1, 9); os.kill(1, signal.SIGSTOP)
result = read('/proc/1/stat').split(') ')[1][0]";
    assert_eq!(result(&*sandbox, kill).await, "S");
    assert_eq!(result(&*other, seen).await, json!([1, 2]));

    // Every namespace is its own.
    let namespaces = "result = {kind: os.stat('/proc/self/ns/' + kind).st_ino for kind in os.listdir('/proc/self/ns')}";
    let (of_it, of_other) =
        (result(&*sandbox, namespaces).await, result(&*other, namespaces).await);
    for kind in ["mnt", "pid", "net", "ipc", "uts", "user", "cgroup"] {
        let machines = fs::metadata(format!("/proc/self/ns/{kind}")).unwrap().ino();
        assert_ne!(of_it[kind], machines, "{kind}");
        assert_ne!(of_it[kind], of_other[kind], "{kind}");
    }
    let groups = result(&*sandbox, "result = read('/proc/self/cgroup')").await;
    for line in groups.as_str().unwrap().lines() {
        assert!(line.ends_with(":/"), "{line} tells where it is on the machine");
    }
    assert_eq!(result(&*sandbox, "result = socket.gethostname()").await, "sandbox");
    containers.factory.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_and_sockets_of_others_are_out_of_reach() {
    let containers = containers();
    let (sandbox, other) = tokio::join!(trying(&containers), trying(&containers));
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    let name = format!("openlambda-escape-{}", std::process::id());
    let _unix = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let path = containers.setup.dir.path().join("socket");
    let _file = UnixListener::bind(&path).unwrap();
    let elsewhere = result(
        &*other,
        "
other = socket.create_server(('127.0.0.1', 5555)); named = socket.socket(socket.AF_UNIX)
named.bind('\\0named'); named.listen()
import builtins; builtins.kept = (other, named)",
    )
    .await;
    assert_eq!(elsewhere, Value::Null);
    let own = "its network namespace has a loopback of its own and nothing else";
    let attempts = [
        (format!("connect(socket.AF_INET, ('127.0.0.1', {port}))"), "ECONNREFUSED", own),
        (format!("connect(socket.AF_INET6, ('::1', {port}))"), "ECONNREFUSED EADDRNOTAVAIL ENETUNREACH EAFNOSUPPORT", own),
        ("connect(socket.AF_INET, ('127.0.0.1', 5555))".to_owned(), "ECONNREFUSED", own),
        ("connect(socket.AF_INET, ('169.254.169.254', 80))".to_owned(), "ENETUNREACH", own),
        ("connect(socket.AF_INET, ('10.0.0.1', 80))".to_owned(), "ENETUNREACH", own),
        ("socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('1.1.1.1', 53))".to_owned(), "ENETUNREACH", own),
        (format!("connect(socket.AF_UNIX, '\\0{name}')"), "ECONNREFUSED", "abstract names belong to the network namespace"),
        ("connect(socket.AF_UNIX, '\\0named')".to_owned(), "ECONNREFUSED", "as above"),
        (format!("connect(socket.AF_UNIX, {path:?})"), "ENOENT", "its root does not hold the file"),
        ("socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)".to_owned(), "EPERM", "no CAP_NET_RAW"),
        ("socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)".to_owned(), "EPERM EAFNOSUPPORT", "as above"),
        ("socket.socket(socket.AF_PACKET, socket.SOCK_RAW)".to_owned(), "ENOSYS", "the filter knows four families"),
        ("socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)".to_owned(), "ENOSYS", "as above"),
        ("socket.socket(40, socket.SOCK_STREAM)".to_owned(), "ENOSYS", "as above: virtual machines'"),
        ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9)".to_owned(), "ENOSYS", "of netlink only the routes: audit"),
        ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)".to_owned(), "ENOSYS", "as above: filters"),
        ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4)".to_owned(), "ENOSYS", "as above: others' sockets"),
        // RTM_NEWADDR of 10.0.0.1/8 to interface 1; RTM_NEWLINK that brings it down.
        ("netlink(20, struct.pack('BBBBI', 2, 8, 0, 0, 1) + struct.pack('HH4B', 8, 2, 10, 0, 0, 1))".to_owned(),
         "EPERM", "the network belongs to a user namespace around its own"),
        ("netlink(16, struct.pack('BBHiII', 0, 0, 0, 1, 0, 1))".to_owned(), "EPERM", "as above"),
        ("fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh22x', b'lo', 0))".to_owned(), "EPERM", "as above"),
        ("socket.create_server(('127.0.0.1', 80))".to_owned(), "EACCES", "a low port, as above"),
        ("socket.create_server(('127.0.0.1', 9001))".to_owned(), "EADDRINUSE", "the Runtime API has it"),
        ("socket.socket(socket.AF_UNIX).bind('\\0openlambda-runtime')".to_owned(), "EADDRINUSE", "as above"),
    ];
    let attempts: Vec<_> =
        attempts.iter().map(|(code, errors, why)| (&**code, *errors, *why)).collect();
    all_fail(&*sandbox, &attempts).await;
    let links = "result = [name for _, name in socket.if_nameindex()]";
    let links = result(&*sandbox, links).await;
    // Tunnels' templates are in every network namespace of a kernel that has them, down.
    assert!(links.as_array().unwrap().contains(&json!("lo")), "{links}");
    assert!(!links.as_array().unwrap().contains(&json!("eth0")), "{links}");
    containers.factory.shutdown().await;
}

/// One that speaks for itself, over TCP: a function's requests for events reach its own worker's end
/// alone, whatever else they claim.
#[tokio::test(flavor = "multi_thread")]
async fn the_runtime_api_of_another_sandbox_cannot_be_spoken_with() {
    let containers = containers();
    let victim = trying(&containers).await;
    let thief = containers.spec_named("thief", &[("f.py", TRY)]);
    let thief = containers.create(thief).await;
    // Both of the thief's addresses lead to itself, so what it takes there is its own.
    let steal = "
import http.client
class Abstract(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX); self.sock.settimeout(0.3)
        self.sock.connect('\\0openlambda-runtime')
result = []
for connection in [http.client.HTTPConnection('127.0.0.1', 9001, timeout=0.3), Abstract('x')]:
    try:
        connection.request('GET', '/2018-06-01/runtime/invocation/next')
        result.append('its own' if b'answer the last' in connection.getresponse().read() else 'stolen')
    except TimeoutError: result.append('nothing')
";
    let (stolen, answered) =
        tokio::join!(result(&*thief, steal), result(&*victim, "result = 'for the victim'"));
    assert_eq!((stolen, answered), (json!(["nothing", "its own"]), json!("for the victim")));
    containers.factory.shutdown().await;
}

/// What the last tenant of a network namespace leaves in it, the next one does not see.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_used_again_is_clean() {
    let containers = containers_with(|config| config.ready_cells = 0);
    let place = "result = os.stat('/proc/self/ns/net').st_ino";
    let mut places = Vec::new();
    for _ in 0..5 {
        let sandbox = trying(&containers).await;
        places.push(result(&*sandbox, place).await);
        let sockets =
            "result = read('/proc/net/tcp').count('\\n') - 1 + read('/proc/net/unix').count('@')";
        // TCP: the listener. Unix: the listener, and the worker's end of its own connection.
        assert_eq!(result(&*sandbox, sockets).await, 1 + 2);
        let leave = "
kept = []
for n in range(120):
    for family, address in [(socket.AF_INET, ('127.0.0.1', 9001)), (socket.AF_UNIX, '\\0openlambda-runtime')]:
        s = socket.socket(family); s.settimeout(0.01); kept.append(s)
        try: s.connect(address); s.send(b'GET /2018-06-01/runtime/invocation/next HTTP/1.1\\r\\n\\r\\n')
        except OSError: pass
# A listener on its way to the worker's end, which does not take it.
s = socket.socket(socket.AF_UNIX); s.connect('\\0openlambda-runtime')
server = socket.create_server(('127.0.0.1', 7777))
for n in range(50): kept.append(socket.create_connection(('127.0.0.1', 7777)))
for n in range(50): server.accept()[0].close()
named = socket.socket(socket.AF_UNIX)
named.bind('\\0left'); named.listen()
socket.send_fds(s, [b'GET /'], [server.fileno(), named.fileno()])
import builtins; builtins.kept = kept, s
";
        let _ = attempt(&*sandbox, leave).await;
        sandbox.destroy().await;
    }
    places.dedup();
    assert_eq!(places.len(), 1, "the same network each time: {places:?}");
    containers.factory.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_begins_with_nothing_inherited() {
    let containers = containers();
    let script = r#"#!/bin/sh
while read -r line; do
    case $line in Sig[BI]*|Cap*|Groups*|NoNewPrivs*|Seccomp:*|Uid*|Gid*) echo "$line" | tr -s '\t ' ' ';; esac
done < /proc/self/status
umask; read -r score < /proc/self/oom_score_adj; echo oom $score
ulimit -n; ulimit -p
exec /usr/bin/python3 -S -c 'import os; print(*[(fd, os.readlink(f"/proc/self/fd/{fd}").split(":")[0]) for fd in sorted(os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{fd}")])'
"#;
    let printed = containers.printed(script, "processes = 33").await;
    let user = "1000 1000 1000 1000";
    let none = "0000000000000000";
    let expected = [
        &format!("Uid: {user}"),
        &format!("Gid: {user}"),
        "Groups:",
        &format!("SigBlk: {none}"),
        &format!("SigIgn: {none}"),
        &format!("CapInh: {none}"),
        &format!("CapPrm: {none}"),
        &format!("CapEff: {none}"),
        &format!("CapBnd: {none}"),
        &format!("CapAmb: {none}"),
        "NoNewPrivs: 1",
        "Seccomp: 2",
        "0022",
        "oom 500",
        "1024",
        "33",
        "('0', '/dev/null') ('1', 'pipe') ('2', 'pipe')",
    ];
    let printed: Vec<_> = printed.iter().map(String::as_str).collect();
    assert_eq!(printed, expected);
    containers.factory.shutdown().await;
}

/// Interpreters of scripts are looked up when what runs is still the nursery.
#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_that_names_the_nursery_as_its_interpreter_gets_nothing_of_it() {
    let containers = containers();
    for script in
        ["#!/proc/self/exe\n", "#!/proc/self/fd/3\n", "#!/proc/1/fd/4\n", "#!/proc/1/exe\n"]
    {
        let error =
            containers.try_create(containers.spec(&[("bootstrap", script)])).await.unwrap_err();
        assert_eq!(error.kind, SandboxErrorKind::Init, "{script} {error:?}");
    }
    let sandbox = trying(&containers).await;
    assert_eq!(result(&*sandbox, "result = 1").await, 1);
    containers.factory.shutdown().await;
}

/// A worker whose new files nobody else may read.
#[tokio::test(flavor = "multi_thread")]
async fn a_workers_umask_does_not_matter() {
    if std::env::var_os("OPENLAMBDA_UMASK_TEST").is_none() {
        let output = std::process::Command::new("/bin/sh")
            .args(["-c", "umask 077; exec \"$0\" --exact \"$1\""])
            .arg(std::env::current_exe().unwrap())
            .arg("a_workers_umask_does_not_matter")
            .env("OPENLAMBDA_UMASK_TEST", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let containers = containers();
    for network in ["none", "host"] {
        let manifest = format!("network = \"{network}\"\n[[volumes]]\nname = \"v\"\npath = \"/v\"");
        let files = [("f.py", TRY), ("ol.toml", &manifest), ("a/b/__init__.py", "")];
        let mut spec = containers.spec(&files);
        // As a worker has it.
        let mut bundle = Vec::new();
        let packed = openlambda_core::bundle::pack_dir(&spec.code, &mut bundle).unwrap();
        let unpacked = containers.setup.dir.path().join(network);
        fs::create_dir(&unpacked).unwrap();
        openlambda_core::bundle::unpack(&bundle[..], &packed.digest, &unpacked).unwrap();
        spec.code = unpacked;
        let sandbox = containers.create(spec).await;
        result(&*sandbox, "import a.b").await;
        result(&*sandbox, "write('/v/x')").await;
        let (mask, ids) = (
            result(&*sandbox, "result = os.umask(0)").await,
            result(
                &*sandbox,
                "
import pwd; result = pwd.getpwuid(os.getuid()).pw_name",
            )
            .await,
        );
        assert_eq!((mask, ids), (json!(0o22), json!("sandbox")));
    }
    containers.factory.shutdown().await;
}

/// A folder that a function has written in another kind of sandbox is its own in this one, links in it
/// do not lead the worker elsewhere, and other functions do not see it.
#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_a_functions_own() {
    let containers = containers();
    let manifest = "[[volumes]]\nname = \"v\"\npath = \"/data/deep\"\n[[volumes]]\nname = \"w\"\npath = \"/tmp/w\"";
    let files = [("f.py", TRY), ("ol.toml", manifest)];
    let folder = containers.setup.dir.path().join("sock/volumes/default/tested/v");
    fs::create_dir_all(folder.join("a/b")).unwrap();
    fs::write(folder.join("a/b/old"), "old").unwrap();
    let outside = containers.setup.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "").unwrap();
    std::os::unix::fs::symlink(&outside, folder.join("a/link")).unwrap();
    let one = containers.create(containers.spec(&files)).await;
    let two = containers.create(containers.spec(&files)).await;
    let other = containers.create(containers.spec_named("other", &files)).await;
    result(
        &*one,
        "write('/data/deep/a/b/old', 'new'); write('/data/deep/x', '1'); write('/tmp/w/y', '2')",
    )
    .await;
    let read = "result = read('/data/deep/a/b/old') + read('/data/deep/x') + read('/tmp/w/y')";
    assert_eq!(result(&*two, read).await, "new12");
    assert_eq!(
        result(&*other, "result = os.listdir('/data/deep') + os.listdir('/tmp/w')").await,
        json!([])
    );
    all_fail(
        &*one,
        &[
            ("os.stat('/data/deep/a/link/file')", "ENOENT", "the link leads out of what it sees"),
            (
                "os.mknod('/data/deep/null', stat.S_IFCHR | 0o666, os.makedev(1, 3))",
                "EPERM",
                "no CAP_MKNOD",
            ),
            ("os.stat('/data/other')", "ENOENT", "it sees its own folder alone"),
            ("os.stat('/data/deep/../../other')", "ENOENT", "as above"),
        ],
    )
    .await;
    let owner = |path: &Path| fs::metadata(path).unwrap().uid();
    let own = rustix::process::geteuid().as_raw();
    assert_eq!((owner(&outside), owner(&outside.join("file"))), (own, own), "followed a link");
    assert_eq!(is_root(), owner(&folder.join("a/b/old")) != own);
    containers.factory.shutdown().await;
}

/// On the machine's network by its own wish, it is kept in by everything else.
#[tokio::test(flavor = "multi_thread")]
async fn with_the_machines_network_the_rest_holds() {
    let containers = containers();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    let files = [("f.py", TRY), ("ol.toml", "network = \"host\"")];
    let sandbox = containers.create(containers.spec(&files)).await;
    result(&*sandbox, &format!("connect(socket.AF_INET, ('127.0.0.1', {port}))")).await;
    let places = result(&*sandbox, "result = os.listdir('/run/openlambda')").await;
    assert_eq!(places, json!(["api.sock"]));
    all_fail(
        &*sandbox,
        &[
            ("socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", "EPERM", "no CAP_NET_RAW"),
            ("netlink(16, struct.pack('BBHiII', 0, 0, 0, 1, 0, 1))", "EPERM", "no CAP_NET_ADMIN"),
            ("os.stat('/run/systemd')", "ENOENT", "its root holds nothing of the machine's /run"),
            ("os.unlink('/run/openlambda/api.sock')", "EROFS", "the mount is read-only"),
        ],
    )
    .await;
    let seen = "result = sorted(int(name) for name in os.listdir('/proc') if name.isdigit())";
    assert_eq!(result(&*sandbox, seen).await, json!([1, 2]));
    // By name: it has what it needs to ask for one.
    assert_eq!(result(&*sandbox, "result = socket.gethostbyname('localhost')").await, "127.0.0.1");
    containers.factory.shutdown().await;
}

/// Each of them needs a root that no other has, and two of them the same; more than are kept.
#[tokio::test(flavor = "multi_thread")]
async fn roots_for_many_at_once_are_made_beside_each_other() {
    let containers = containers();
    let starts = (0..140).map(|n| {
        let path = format!("/data{}{}", n / 2, "/a".repeat(15));
        let manifest = format!("[[volumes]]\nname = \"v\"\npath = \"{path}\"");
        let spec =
            containers.spec_named(&format!("f{}", n / 2), &[("f.py", TRY), ("ol.toml", &manifest)]);
        let containers = &containers;
        async move {
            let sandbox = containers.try_create(spec).await.unwrap();
            let wrote = format!("write('{path}/{n}', 'x'); result = read('{path}/{n}')");
            assert_eq!(result(&*sandbox, &wrote).await, "x");
            let roots = "result = [name for name in os.listdir('/') if name.startswith('data')]";
            assert_eq!(result(&*sandbox, roots).await, json!([format!("data{}", n / 2)]));
            sandbox.destroy().await;
        }
    });
    futures_util::stream::iter(starts).for_each_concurrent(16, |start| start).await;
    containers.factory.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_asks_for_too_much_at_its_start_harms_itself_alone() {
    let containers = containers();
    let sandbox = trying(&containers).await;
    // They are refused before there is a manifest, as a rule.
    let volumes = ["/etc/passwd", "/bin/sh", "/proc/x/y", "/var/task/a", "/tmp"];
    let deep = (0..100).map(|n| format!("/s{n}{}", "/a".repeat(2000))).collect();
    let volumes = volumes.map(|path| vec![path.to_owned()]).into_iter().chain([deep]);
    let environments = [environment("A", 200_000), environment("B", 6_000_000)];
    let specs = environments.into_iter().map(|environment| (environment, Vec::new()));
    for (environment, volumes) in specs.chain(volumes.map(|paths| (BTreeMap::new(), paths))) {
        let mut spec = containers.spec(&[("f.py", TRY)]);
        let mut manifest = Manifest::clone(&spec.manifest);
        let long: usize = environment.values().map(String::len).sum();
        manifest.environment = environment;
        let volume = |(n, path)| Volume { name: format!("v{n}"), path };
        manifest.volumes = volumes.clone().into_iter().enumerate().map(volume).collect();
        spec.manifest = Arc::new(manifest);
        let error = containers.try_create(spec).await.err();
        let error = error.unwrap_or_else(|| panic!("{volumes:.1?} worked"));
        assert_eq!(error.kind, SandboxErrorKind::Unsupported, "{error}");
        if long > 0 {
            assert!(error.message.contains("the environment takes over 32 KiB"), "{error}");
        }
        assert_eq!(call(&*sandbox, "\"result = 1\"").await.unwrap(), r#"["done", 1]"#);
    }
    let again = trying(&containers).await;
    assert_eq!(result(&*again, "result = 2").await, 2);
    containers.factory.shutdown().await;
}

/// Variables of so many bytes together, none of which is itself too long where there are several.
fn environment(name: &str, bytes: usize) -> BTreeMap<String, String> {
    let count = if bytes > 1 << 20 { 100 } else { 1 };
    (0..count).map(|n| (format!("{name}{n}"), "x".repeat(bytes / count))).collect()
}

#[test]
fn everything_again_as_an_ordinary_user() {
    again_as_an_ordinary_user("everything_again_as_an_ordinary_user");
}
