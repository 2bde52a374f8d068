//! `ol-init`: the program that a container starts with, and its process 1 until the function's program ends.
//!
//! A container's program must not ask for its first event before the Runtime API listens, and its output
//! should reach the worker without a detour through the engine. So this program runs first:
//!
//! ```text
//! ol-init output PROGRAM ARGUMENT…   asks the worker for its standard output and error, runs PROGRAM
//! ol-init listen PROGRAM ARGUMENT…   the same; and opens the Runtime API's port, for the worker to serve
//! ol-init wait   PROGRAM ARGUMENT…   waits until the Runtime API's port takes connections, runs PROGRAM
//! ol-init go     PROGRAM ARGUMENT…   runs PROGRAM
//! ```
//!
//! Then it is what `sys/nursery/init.rs` is to `sock` sandboxes: it waits for orphans, passes signals on, and
//! ends as PROGRAM does, with 128 and the number for a signal, as engines tell signals.
//!
//! The first two speak with the worker over a Unix socket that is mounted in: a byte and the listener
//! go out, a byte and two pipes come in, and when PROGRAM cannot be run, the reason goes out. The others
//! are for containers with their own kernel (gVisor), into which no descriptor can pass.
//!
//! It uses nothing but std and the C library.

#[path = "../nursery/c.rs"]
#[allow(dead_code, reason = "the nursery uses all of it")]
mod c;

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// Where the worker waits for us.
const WORKER: &str = "/run/openlambda/init.sock";
/// Where the code finds the Runtime API.
const API: &str = "127.0.0.1:9001";

fn main() {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [how, program, arguments @ ..] = &arguments[..] else {
        eprintln!("ol-init: usage: ol-init output|listen|wait|go PROGRAM [ARGUMENT…]");
        std::process::exit(2);
    };
    let mut command = Command::new(program);
    // Its own group: what it sends to that is not for us.
    command.args(arguments).process_group(0);
    // None is lost that comes before we wait for it, and the program begins with none blocked.
    c::block_signals();
    let unblock = || {
        c::unblock_signals();
        Ok(())
    };
    // SAFETY: between fork and exec it makes one system call.
    unsafe { command.pre_exec(unblock) };
    let begun = match how.to_str() {
        Some("go") => Ok(None),
        Some("wait") => wait().map(|()| None),
        Some("listen") => greet(true, &mut command).map(Some),
        _ => greet(false, &mut command).map(Some),
    };
    let failed = match begun {
        Ok(worker) => match command.spawn() {
            Ok(child) => {
                drop((worker, command));
                attend(child.id().cast_signed());
            }
            Err(error) => {
                if let Some(mut worker) = worker {
                    let _ = write!(worker, "execute: {error}");
                }
                format!("cannot run {}: {error}", program.display())
            }
        },
        Err(error) => format!("cannot prepare the container: {error}"),
    };
    eprintln!("ol-init: {failed}");
    std::process::exit(125);
}

/// Waits for whoever ends, passes signals on to the program, and ends as it does.
fn attend(program: i32) -> ! {
    c::be_dumpable(false);
    loop {
        while let Some((child, status)) = c::reap() {
            if child == program {
                let signal = status & 0x7f;
                std::process::exit(if signal == 0 { status >> 8 & 0xff } else { 128 + signal });
            }
        }
        match c::wait_for_signal() {
            c::SIGCHLD => {}
            signal if signal > 0 => c::send_signal(program, signal),
            _ => {}
        }
    }
}

/// Polls, since nothing else tells. The worker gives up sooner than this does.
fn wait() -> io::Result<()> {
    loop {
        match TcpStream::connect(API) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Exchanges descriptors with the worker. That the connection is closed says that the program runs.
fn greet(listen: bool, command: &mut Command) -> io::Result<UnixStream> {
    let worker = UnixStream::connect(WORKER)?;
    let listener = if listen { Some(TcpListener::bind(API)?) } else { None };
    let out: Vec<_> = listener.iter().map(AsRawFd::as_raw_fd).collect();
    c::send(worker.as_raw_fd(), b"1", &out).map_err(io::Error::from_raw_os_error)?;
    let received = c::receive(worker.as_raw_fd(), &mut [0; 1]);
    let (_, pipes) = received.map_err(io::Error::from_raw_os_error)?;
    let pipes: Result<[OwnedFd; 2], _> = pipes.try_into();
    let [stdout, stderr] = pipes.map_err(|_| io::ErrorKind::UnexpectedEof)?;
    command.stdout(stdout).stderr(stderr);
    Ok(worker)
}
