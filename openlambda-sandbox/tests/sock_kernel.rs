//! What a hostile function takes of the kernel's, which no limit of its own seems to count: memory that
//! belongs to no process, counters of the machine, ways to watch others. As root and, by the last test,
//! as an ordinary user. `docs/kernel-limits.md` has the table that these tests check.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "common/attempts.rs"]
mod attempts;
mod common;
#[path = "common/containers.rs"]
mod containers;

use openlambda_core::sandbox::{Exit, SandboxError, SandboxErrorKind, SandboxFactory};
use rustix::process::{Resource, Rlimit};
use serde_json::{Value, json};

use attempts::{all_fail, attempt, result, trying};
use common::{call, eventually};
use containers::{again_as_an_ordinary_user, alone, containers, is_root};

#[tokio::test(flavor = "multi_thread")]
async fn counters_of_the_machine_and_of_its_users_are_out_of_reach() {
    let containers = containers();
    let sandbox = trying(&containers).await;
    let (machine, user) = ("counted for the machine", "counted for a user of the machine");
    let memory = "memory of the kernel's that belongs to no process";
    let module = "the kernel would load a module for it";
    let calls = [
        (libc::SYS_io_setup, "65536, struct.pack('Q', 0)", machine),
        (libc::SYS_io_uring_setup, "4096, b'\\0' * 120", machine),
        (libc::SYS_inotify_init1, "0", user),
        (libc::SYS_inotify_add_watch, "0, b'/usr/bin', 0xfff", "it sees what others run"),
        (libc::SYS_fanotify_init, "0, 0", "as above"),
        (libc::SYS_fanotify_mark, "0, 1, 1, 0, b'/usr'", "as above"),
        (libc::SYS_shmget, "0, 4096, 0o1600", memory),
        (libc::SYS_semget, "0, 32000, 0o1600", memory),
        (libc::SYS_msgget, "0, 0o1600", memory),
        (libc::SYS_mq_open, "b'x', 0o102, 0o600, 0", user),
        (libc::SYS_vmsplice, "1, 0, 0, 0", memory),
        (libc::SYS_seccomp, "1, 0, 0", "the machine's bpf_jit_limit"),
        (libc::SYS_prctl, "22, 2, 0", "as above"),
        (libc::SYS_memfd_create, "b'x', 4", "a huge page that the machine has set aside"),
        (libc::SYS_mmap, "0, 1 << 21, 3, 0x40022, -1, 0", "as above"),
        (libc::SYS_add_key, "b'user', b'x', b'x', 1, -3", user),
        (libc::SYS_userfaultfd, "1", memory),
        (libc::SYS_perf_event_open, "0, 0, -1, -1, 0", machine),
        (libc::SYS_bpf, "0, 0, 0", machine),
        (libc::SYS_socketpair, "30, 1, 0, b'\\0' * 8", module),
        (libc::SYS_socketpair, "1, 6, 0, b'\\0' * 8", "a type that Unix sockets do not have"),
        (libc::SYS_socket, "0, 2, 0", module),
        (libc::SYS_socket, "2, 5, 132", module),
        (libc::SYS_socket, "10, 1, 262", "a protocol that few programs need"),
        // The type decides, too: the kernel looks for a module of family, protocol and type.
        (libc::SYS_socket, "2, 10, 0", "SOCK_PACKET means a socket of another family"),
        (libc::SYS_socket, "2, 10 | 0x80800, 0", "as above"),
        (libc::SYS_socket, "2, 6, 0", module),
        (libc::SYS_socket, "2, 6, 33", module),
        (libc::SYS_socket, "10, 6, 33", module),
        (libc::SYS_socket, "2, 5, 0", module),
        (libc::SYS_socket, "2, 4, 6", module),
        (libc::SYS_socket, "2, 1, 17", module),
        (libc::SYS_socket, "2, 2, 6", module),
        (libc::SYS_socket, "10, 2, 1", module),
        (libc::SYS_socket, "2, 2 | 16, 17", "a flag that no kernel has"),
        (libc::SYS_socket, "16, 1, 0", "as above"),
        (libc::SYS_socket, "1, 6, 0", "a type that Unix sockets do not have"),
    ];
    let calls = calls.map(|(call, arguments, why)| (format!("call({call}, {arguments})"), why));
    let calls: Vec<_> = calls.iter().map(|(code, why)| (&**code, "ENOSYS", *why)).collect();
    all_fail(&*sandbox, &calls).await;
    let watch = "it is told when another opens the file, who then waits for it";
    all_fail(
        &*sandbox,
        &[
            ("fcntl.fcntl(os.open('/usr/bin', 0), 1026, 1)", "ENOSYS", "it sees what others run"),
            ("fcntl.fcntl(os.open('/var/task/f.py', 0), 1024, fcntl.F_RDLCK)", "ENOSYS", watch),
            ("fcntl.fcntl(os.open('/var/task/f.py', 0), 1040, b'\\0' * 16)", "ENOSYS", watch),
            (
                "socket.socket().setsockopt(1, 26, struct.pack('HxxxxxxP', 0, 0))",
                "ENOSYS",
                "the machine's bpf_jit_limit",
            ),
            ("fcntl.ioctl(os.openpty()[1], 0x5423, struct.pack('i', 21))", "ENOTTY", module),
            ("[os.openpty() for n in range(9)]", "ENOSPC", "counted for the machine"),
        ],
    )
    .await;
    let module = "the kernel would load a module for it";
    let ask = |request: u32| format!("fcntl.ioctl(socket.socket(), {request}, bytes(64))");
    let set = |level: i32, name: i32| {
        format!("socket.socket().setsockopt({level}, {name}, b'tls' + bytes(253))")
    };
    let by_number = [
        (ask(0x8940), "ENOTTY", module), // SIOCGIFBR
        (ask(0x8941), "ENOTTY", module),
        (ask(0x89a0), "ENOTTY", module), // SIOCBRADDBR
        (ask(0x89a1), "ENOTTY", module),
        (ask(0x8982), "ENOTTY", module), // SIOCGIFVLAN
        (ask(0x8983), "ENOTTY", module),
        (ask(0x8980), "ENOTTY", module), // SIOCADDDLCI
        (ask(0x8b01), "ENOTTY", "drivers of wireless networks"),
        (ask(0x89f0), "ENOTTY", "what a driver knows by itself"),
        (ask(0x894c), "ENOTTY", "the namespace of the network"),
        // FS_IOC_ADD_ENCRYPTION_KEY, FS_IOC_ENABLE_VERITY: ciphers and hashes by name or number.
        ("fcntl.ioctl(os.open('/tmp', 0), 0xc0506617, bytes(80))".to_owned(), "ENOTTY", module),
        ("fcntl.ioctl(os.open('/tmp', 0), 0x40806685, bytes(128))".to_owned(), "ENOTTY", module),
        (set(6, 31), "ENOSYS", "TCP_ULP: a module by its name, and ciphers in the kernel"),
        (set(6, 14), "ENOSYS", "TCP_MD5SIG: a hash"),
        (set(6, 32), "ENOSYS", "as above"),
        (set(6, 38), "ENOSYS", "TCP_AO_ADD_KEY: a hash by its name"),
        (set(6, 41), "ENOSYS", "as above"),
        (set(17, 100), "ENOSYS", "UDP_ENCAP: it slows down the machine's every UDP packet"),
        // No power to have a module loaded by these.
        (set(6, 13), "ENOENT", "TCP_CONGESTION of a name that nobody has loaded"),
        (set(0, 64), "EPERM ENOPROTOOPT", "tables of filters"),
        (
            "socket.socket().getsockopt(0, 64, 84)".to_owned(),
            "EPERM ENOPROTOOPT EINVAL",
            "as above",
        ),
    ];
    let by_number: Vec<_> =
        by_number.iter().map(|(code, errors, why)| (&**code, *errors, *why)).collect();
    all_fail(&*sandbox, &by_number).await;
    // The size of a buffer is a wish, and the kernel's own stays.
    let size = "
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
before = s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
result = s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == before
";
    assert_eq!(result(&*sandbox, size).await, true);
    containers.factory.shutdown().await;
}

/// Each sandbox has its own share, also of what is counted for the worker's user.
#[tokio::test(flavor = "multi_thread")]
async fn signals_timers_and_locked_memory_are_bounded_for_each() {
    let containers = containers();
    let fill = "
import builtins, mmap
signal.pthread_sigmask(signal.SIG_BLOCK, [34])
def most(take):
    for n in range(3000):
        try: take()
        except OSError as error: return [n, errno.errorcode[error.errno]]
    return n
queue = lambda: call(129, os.getpid(), 34, struct.pack('iii4xii104x', 34, 0, -1, os.getpid(), 0))
signals = most(queue) if os.uname().machine == 'x86_64' else [1024, 'EAGAIN']
while signal.sigtimedwait([34], 0): pass
timers = most(lambda: call(222, 1, 0, ctypes.byref(ctypes.c_int()))) if os.uname().machine == 'x86_64' else [1024, 'EAGAIN']
builtins.kept = mmap.mmap(-1, 16 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
at = ctypes.addressof(ctypes.c_char.from_buffer(kept))
libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
locked = [libc.mlock(at, size) for size in (4 << 20, 16 << 20)]
result = [signals, timers, locked]
";
    let bounded = json!([[1024, "EAGAIN"], [1024, "EAGAIN"], [0, -1]]);
    let (one, other) = tokio::join!(trying(&containers), trying(&containers));
    assert_eq!(result(&*one, fill).await, bounded);
    assert_eq!(result(&*other, fill).await, bounded);
    containers.factory.shutdown().await;
}

/// What ordinary programs do with the neighbours of what is refused.
#[tokio::test(flavor = "multi_thread")]
async fn what_libraries_do_every_day_works() {
    let containers = containers();
    let sandbox = trying(&containers).await;
    for code in [
        "
import multiprocessing as mp
fork = mp.get_context('fork')
pool = fork.Pool(2); result = pool.map(abs, [-1, -2]); pool.terminate()
queue = fork.Queue(); queue.put('x'); assert queue.get() == 'x'
number = fork.Value('i', 3); assert number.value == 3
lock = fork.Lock(); lock.acquire()
from multiprocessing import shared_memory
m = shared_memory.SharedMemory(create=True, size=4096); m.buf[0] = 1; m.close(); m.unlink()
",
        "
import asyncio
async def main():
    process = await asyncio.create_subprocess_exec('/bin/echo', 'x', stdout=-1)
    return (await process.communicate())[0].decode()
result = asyncio.run(main())
",
        "
import sqlite3
base = sqlite3.connect('/tmp/base'); base.execute('pragma journal_mode=wal')
base.execute('create table t (x)'); base.execute('insert into t values (1)'); base.commit()
result = base.execute('select x from t').fetchall()
",
        "
import mmap
with open('/tmp/file', 'w+b') as file:
    file.truncate(4096); fcntl.flock(file, fcntl.LOCK_EX); fcntl.lockf(file, fcntl.LOCK_EX)
    m = mmap.mmap(file.fileno(), 4096); m[0] = 1
own = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); own[0] = 1
one, other = socket.socketpair(); one.send(b'x'); result = other.recv(1).decode()
signal.setitimer(signal.ITIMER_REAL, 1000); signal.alarm(0)
",
        "
import select
e = select.epoll(); r, w = os.pipe(); e.register(r, select.EPOLLIN); os.write(w, b'x')
result = len(e.poll(1)); os.eventfd(0) if hasattr(os, 'eventfd') else 0
",
        "result = subprocess.run(['dd', 'if=/dev/zero', 'of=/tmp/zero', 'bs=4096', 'count=1']).returncode",
        "result = open('/dev/zero', 'rb').read(4096) == b'\\0' * 4096",
        // The kinds of sockets that there are, and what is asked of them by number.
        "
import array, termios
kinds = [(2, 1, 0), (2, 1, 6), (2, 2, 0), (2, 2, 17), (10, 1, 6), (10, 2, 17), (1, 1, 0), (1, 2, 0), (1, 5, 0), (16, 3, 0), (16, 2, 0)]
for family, kind, protocol in kinds:
    for flags in (0, 0x800, 0x80000, 0x80800):
        try: socket.socket(family, kind | flags, protocol).close()
        except OSError as error: assert (family, error.errno) == (10, errno.EAFNOSUPPORT), (family, kind, protocol, error)
one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET); one.send(b'xyz')
waits = array.array('i', [0]); fcntl.ioctl(other, termios.FIONREAD, waits)
fcntl.ioctl(other, termios.FIONBIO, array.array('i', [1])); fcntl.ioctl(other, termios.FIOCLEX)
assert socket.if_nametoindex('lo') == 1 and socket.if_indextoname(1) == 'lo'
address = fcntl.ioctl(socket.socket(), 0x8915, struct.pack('256s', b'lo'))[20:24]
assert not os.isatty(0)
s = socket.socket(); s.setsockopt(6, socket.TCP_NODELAY, 1); s.setsockopt(6, socket.TCP_KEEPIDLE, 9)
s.setsockopt(6, 13, s.getsockopt(6, 13, 16)); s.setsockopt(1, socket.SO_REUSEPORT, 1)
result = [waits[0], socket.inet_ntoa(address)]
",
    ] {
        let (ended, result) = attempt(&*sandbox, code).await;
        assert_eq!(ended, "done", "{code}: {result}");
    }
    containers.factory.shutdown().await;
}

/// Node.js says that it cannot watch, and what looks by itself now and then works.
#[tokio::test(flavor = "multi_thread")]
async fn node_says_that_it_cannot_watch_files() {
    let containers = containers();
    let code = r#"
const fs = require("node:fs");
exports.handler = async (event) => {
    const seen = [];
    try { fs.watch("/tmp"); seen.push("watches"); } catch (error) { seen.push(error.code); }
    fs.writeFileSync("/tmp/x", "1");
    await new Promise((resolve) => {
        fs.watchFile("/tmp/x", { interval: 20 }, () => { fs.unwatchFile("/tmp/x"); resolve(); });
        setTimeout(() => fs.writeFileSync("/tmp/x", "22"), 50);
    });
    const { Worker } = require("node:worker_threads");
    const worker = new Worker("require('worker_threads').parentPort.postMessage(new SharedArrayBuffer(65536).byteLength)", { eval: true });
    seen.push(await new Promise((resolve) => worker.once("message", resolve)));
    seen.push(Object.keys(require("node:os").networkInterfaces()).length > 0);
    return seen;
};
"#;
    let manifest = "memory_mb = 256\nhandler = \"index.handler\"";
    let spec = containers.spec(&[("index.js", code), ("ol.toml", manifest)]);
    let sandbox = containers.create(spec).await;
    let seen: Value = serde_json::from_str(&call(&*sandbox, "null").await.unwrap()).unwrap();
    assert_eq!(seen, json!(["ENOSYS", 65536, true]));
    containers.factory.shutdown().await;
}

/// Memory that is written and then belongs to no process, or to no page table of one. Each way takes
/// what it can get, up to four times its limit, and says how much it has.
const KEEP: &str = r#"
import ctypes, errno, mmap, os, select, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.shmat.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.shmdt.argtypes = [ctypes.c_void_p]
WANTED = 256 << 20
PIECE = 16 << 20
kept, held = [], 0
def check(value):
    if value in (-1, ctypes.c_void_p(-1).value): raise OSError(ctypes.get_errno(), "refused")
    return value
def map_shared(fd, flags):
    return check(libc.mmap(None, PIECE, 3, flags, fd, 0))
def segments():
    global held
    while held < WANTED:
        at = check(libc.shmat(check(libc.shmget(0, PIECE, 0o1600)), None, 0))
        ctypes.memset(at, 1, PIECE); libc.shmdt(at); held += PIECE
def nameless_mapped_and_closed():
    global held
    while held < WANTED:
        fd = os.memfd_create("x"); os.ftruncate(fd, PIECE)
        at = map_shared(fd, 1); os.close(fd)
        ctypes.memset(at, 1, PIECE); libc.madvise(at, PIECE, 4); held += PIECE
def nameless_written_and_one_page_mapped():
    global held
    while held < WANTED:
        fd = os.memfd_create("x"); os.write(fd, b"x" * PIECE)
        kept.append(mmap.mmap(fd, 4096)); os.close(fd); held += PIECE
def nameless_executed_or_sent():
    global held
    one, other = socket.socketpair(); kept.extend([one, other])
    while held < WANTED:
        fd = os.memfd_create("x"); os.write(fd, b"x" * PIECE)
        socket.send_fds(one, [b"x"], [fd]); os.close(fd); held += PIECE
def shared_and_out_of_the_page_table():
    global held
    while held < WANTED:
        at = map_shared(-1, 0x21)
        ctypes.memset(at, 1, PIECE); libc.madvise(at, PIECE, 4); held += PIECE
def shared_but_for_one_page_unmapped():
    global held
    while held < WANTED:
        at = map_shared(-1, 0x21)
        ctypes.memset(at, 1, PIECE); libc.munmap(at + 4096, PIECE - 4096); held += PIECE
def zeros_shared():
    global held
    fd = os.open("/dev/zero", os.O_RDWR)
    while held < WANTED:
        at = map_shared(fd, 1)
        ctypes.memset(at, 1, PIECE); libc.madvise(at, PIECE, 4); held += PIECE
def page_tables():
    global held
    # The page of zeros that all share counts for nobody, but the tables that lead to it are there.
    while held < WANTED:
        at = check(libc.mmap(None, 1 << 33, 1, 0x4022, -1, 0))
        for offset in range(0, 1 << 33, 1 << 21): ctypes.c_char.from_address(at + offset).value
        held += 4096 << 12
def fill(sockets):
    global held
    for s in sockets:
        s.setblocking(False)
        try: s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        except OSError: pass
        for size in (1 << 16, 1 << 10):
            try:
                while held < WANTED: held += s.send(b"x" * size)
            except BlockingIOError: pass
        kept.append(s)
def unix_sockets():
    while held < WANTED:
        one, other = socket.socketpair(); fill([one, other])
def unix_sockets_whose_senders_are_closed():
    global held
    while held < WANTED:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); fill([one]); one.close(); kept.append(other)
def unix_sockets_with_a_byte_a_message():
    global held
    while held < WANTED:
        one, other = socket.socketpair(); one.setblocking(False); kept.append(other)
        try:
            # The least that the kernel takes for a message.
            while True: one.send(b"x"); held += 512
        except BlockingIOError: one.close()
def tcp_sockets():
    server = socket.create_server(("127.0.0.1", 0)); kept.append(server)
    while held < WANTED:
        one = socket.create_connection(server.getsockname()); other = server.accept()[0]
        other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        fill([one, other])
def udp_sockets():
    global held
    out = socket.socket(type=socket.SOCK_DGRAM)
    while held < WANTED:
        to = socket.socket(type=socket.SOCK_DGRAM); to.bind(("127.0.0.1", 0)); kept.append(to)
        to.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        for n in range(300): out.sendto(b"x" * 16000, to.getsockname())
        # SO_MEMINFO: what was dropped is not there.
        held += struct.unpack("9I", to.getsockopt(socket.SOL_SOCKET, 55, 36))[0]
def routes():
    global held
    # RTM_GETADDR of everything, again and again, and nobody reads the answers.
    ask = struct.pack("IHHIIB15x", 32, 22, 0x301, 1, 0, 0)
    while held < WANTED:
        s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); kept.append(s)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        for n in range(400):
            try: s.send(ask)
            except OSError: break
        held += struct.unpack("9I", s.getsockopt(socket.SOL_SOCKET, 55, 36))[0]
def sockets_in_flight():
    global held
    while held < WANTED:
        one, other = socket.socketpair(); fill([one, other])
        if len(kept) > 500:
            for s in kept[1:]: socket.send_fds(kept[0], [b"x"], [s.fileno()]); s.close()
            del kept[1:]
def pipes():
    global held
    while held < WANTED:
        r, w = os.pipe(); os.set_blocking(w, False); kept.append((r, w))
        try:
            while True: held += os.write(w, b"x" * 4096)
        except BlockingIOError: pass
def in_processes(way):
    def several():
        global held
        ends = []
        for n in range(8):
            r, w = os.pipe()
            if os.fork() == 0:
                try: way()
                except BaseException: pass
                os.write(w, struct.pack("q", held)); time.sleep(1000)
            ends.append(r); os.close(w)
        for end in ends: held += sum(struct.unpack("q", os.read(end, 8) or bytes(8)))
    return several
def small_files():
    global held
    n = 0
    while True:
        os.close(os.open(f"/tmp/{n}", os.O_CREAT)); n += 1; held += 1024
def mappings():
    # Every second page of another kind, so that no two are one mapping.
    at = check(libc.mmap(None, 60000 << 12, 1, 0x4022, -1, 0))
    for n in range(0, 60000, 2): libc.mprotect(ctypes.c_void_p(at + (n << 12)), 4096, 0)
    global held; held = 60000 * 200
def locks():
    global held
    import fcntl
    for file in range(100):
        kept.append(open(f"/tmp/{os.getpid()}-{file}", "w"))
        for n in range(3000): fcntl.lockf(kept[-1], fcntl.LOCK_EX, 1, 2 * n); held += 200
def f(event):
    if event == "held": return held
    name, _, several = event.partition(" ")
    way = globals()[name]
    if several: way = in_processes(way)
    try: way()
    except OSError as error: return [errno.errorcode[error.errno], held]
    return ["done", held]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn memory_of_no_process_counts_or_cannot_be_had() {
    let containers = containers();
    const LIMIT: u64 = 64 << 20;
    // What the watchdog cannot see in time, or version 1 counts beside: docs/kernel-limits.md.
    let beside = LIMIT / 4;
    for way in [
        "segments",
        "nameless_mapped_and_closed",
        "nameless_written_and_one_page_mapped",
        "nameless_executed_or_sent",
        "shared_and_out_of_the_page_table",
        "shared_but_for_one_page_unmapped",
        "zeros_shared",
        "page_tables",
        "unix_sockets",
        "unix_sockets_whose_senders_are_closed",
        "unix_sockets_with_a_byte_a_message",
        "tcp_sockets",
        "udp_sockets",
        "routes",
        "routes in several",
        "sockets_in_flight",
        "pipes",
        "unix_sockets in several",
        "tcp_sockets in several",
        "pipes in several",
        "small_files",
        "mappings in several",
        "locks in several",
    ] {
        let manifest = "memory_mb = 64\ntmp_mb = 1024\nprocesses = 64";
        let spec = containers.spec(&[("f.py", KEEP), ("ol.toml", manifest)]);
        let sandbox = containers.create(spec).await;
        let said = call(&*sandbox, &json!(way).to_string()).await;
        let ended = |error: &SandboxError| {
            assert_eq!(error.kind, SandboxErrorKind::OutOfMemory, "{way}: {error}");
        };
        match said {
            Err(error) => ended(&error),
            Ok(said) => {
                let (_, held): (String, u64) = serde_json::from_str(&said).unwrap();
                if held > LIMIT + beside {
                    // It answered before anybody had looked again.
                    eventually(way, || async {
                        call(&*sandbox, "\"held\"").await.inspect_err(ended).is_err()
                    })
                    .await;
                }
            }
        }
        sandbox.destroy().await;
    }
    containers.factory.shutdown().await;
}

/// What the kernel counts for the user of the machine who is the worker's own, without root: a sandbox
/// that takes all of it ends, and the others and the worker go on.
#[tokio::test(flavor = "multi_thread")]
async fn the_worker_s_user_keeps_enough_for_the_worker() {
    if !alone("the_worker_s_user_keeps_enough_for_the_worker") {
        return;
    }
    // As many as most machines give: a function may have no fewer.
    let most = rustix::process::getrlimit(Resource::Nofile).maximum;
    let few = Rlimit { current: Some(1024), maximum: most };
    rustix::process::setrlimit(Resource::Nofile, few).unwrap();
    let containers = containers();
    // Each file at each number is another thing to watch.
    let watch = "
import builtins, select, time
e = select.epoll(); files = [os.eventfd(0) for n in range(300)]
builtins.kept = e, files
result = 0
try:
    for file in files:
        for number in range(650, 1000):
            os.dup2(file, number); e.register(number, select.EPOLLIN); result += 1
        for number in range(650, 1000): os.close(number)
except OSError as error: result = errno.errorcode[error.errno]
";
    let manifest = "memory_mb = 32";
    let spec = containers.spec(&[("f.py", attempts::TRY), ("ol.toml", manifest)]);
    let sandbox = containers.create(spec).await;
    let watching = call(&*sandbox, &json!(watch).to_string()).await;
    if !is_root() {
        assert!(watching.is_err() || watching.unwrap() == r#"["done", 105000]"#);
        eventually("it ends", || async { call(&*sandbox, "\"result = 1\"").await.is_err() }).await;
        assert_eq!(sandbox.exited().await, Exit::OutOfMemory);
    }
    let send = "
import builtins
builtins.kept = one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
builtins.pairs = [socket.socketpair() for n in range(100)]; result = 0
try:
    for pair in pairs:
        for n in range(5): socket.send_fds(pair[0], [b'x'], [0] * 250); result += 250
except OSError as error: pass
";
    let sandbox = trying(&containers).await;
    let (ended, sent) = attempt(&*sandbox, send).await;
    assert!(ended == "done" && sent.as_u64() >= Some(1024), "{ended} {sent}");
    let other = trying(&containers).await;
    assert_eq!(result(&*other, "result = 1").await, 1);
    containers.factory.shutdown().await;
}

#[test]
fn everything_again_as_an_ordinary_user() {
    again_as_an_ordinary_user("everything_again_as_an_ordinary_user");
}
