//! `ol-init`, the first process of a `sock` sandbox: it waits for orphans, and says how the function's
//! program has ended.
//!
//! A process namespace's first process is its init: the kernel makes it the parent of every orphan, and
//! keeps from it all signals that it has no handler for. A function's program is neither made to wait for
//! strangers nor to do without the default actions of signals, so this one stands before it:
//!
//! ```text
//! nursery ──clone──▶ process 1: the steps that take power ──clone──▶ process 2: the last steps, exec of
//!                        │                                           the function's program
//!                        └─ when that is done: exec of this one
//! ```
//!
//! * **It reaps** whatever ends, and has no other child of its own than the program.
//! * **It passes signals on** that somebody sends to process 1, as to the program that used to be there.
//! * **It tells the end**: it ends with the program's status. For a signal that is 128 and the signal's
//!   number, which a program could also exit with; so it says `signal: 9` on its descriptor 0 first. (A
//!   first process cannot die of most signals itself.)
//! * With it, the kernel ends everything in the namespace.
//!
//! # Why it is no way in
//!
//! It is the one process of a sandbox that is not in the sandbox's own user namespace, and has no other
//! filter of system calls than its own. So there is nothing about it that a function could use:
//!
//! | what | why not |
//! |---|---|
//! | memory of the nursery's, in which are other functions' variables | it is executed: the kernel gives it an empty memory, with this program and a page of stack |
//! | descriptors | all but 0, 1, 2 and three more are closed before the program runs; now there is the pipe of descriptor 0, to its own worker |
//! | `/proc/1/mem`, `fd`, `root`, `environ`, `maps` … | its file may not be read by its user, so the kernel makes it undumpable from its first moment; before, it is so too |
//! | capabilities | given up before the program runs, with `no_new_privs`; without root all but `CAP_SETFCAP`, which the program's user namespace needs, and that before this one is executed |
//! | what it reads | nothing but signals' numbers |
//! | system calls | those below, by a filter of a dozen instructions |
//!
//! It uses neither std nor the C library: what these set up at a start takes six times as long as all else,
//! and it waits in a page or two.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

// The arguments are on the stack: their count, then pointers to them.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "mov rdi, rsp", "and rsp, -16", "call {begin}", "ud2", begin = sym begin);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x0, sp", "bl {begin}", "brk 1", begin = sym begin);

#[cfg(target_arch = "x86_64")]
mod number {
    pub(super) const WRITE: u32 = 1;
    pub(super) const WAIT4: u32 = 61;
    pub(super) const KILL: u32 = 62;
    pub(super) const PRCTL: u32 = 157;
    pub(super) const EXIT_GROUP: u32 = 231;
    pub(super) const RT_SIGTIMEDWAIT: u32 = 128;
    pub(super) const PRLIMIT64: u32 = 302;
    /// `AUDIT_ARCH_X86_64`
    pub(super) const MACHINE: u32 = 0xc000_003e;
}
#[cfg(target_arch = "aarch64")]
mod number {
    pub(super) const WRITE: u32 = 64;
    pub(super) const WAIT4: u32 = 260;
    pub(super) const KILL: u32 = 129;
    pub(super) const PRCTL: u32 = 167;
    pub(super) const EXIT_GROUP: u32 = 94;
    pub(super) const RT_SIGTIMEDWAIT: u32 = 137;
    pub(super) const PRLIMIT64: u32 = 261;
    /// `AUDIT_ARCH_AARCH64`
    pub(super) const MACHINE: u32 = 0xc000_00b7;
}

const SIGCHLD: i32 = 17;

/// # Safety
///
/// `stack` is what the kernel gives to a program: the count of arguments, then pointers to texts that
/// end with NUL.
unsafe extern "C" fn begin(stack: *const usize) -> ! {
    // SAFETY: the nursery gives two arguments: the program's name and the function's process.
    let program = unsafe { parse(*stack.add(2) as *const u8) };
    become_small();
    loop {
        // First of all: it may have ended before we were here to be told.
        while let Some((child, status)) = reap() {
            if child == program {
                end(status);
            }
        }
        match wait_for_signal() {
            SIGCHLD => {}
            signal if signal > 0 => pass_on(program, signal),
            _ => {}
        }
    }
}

/// # Safety
///
/// `text` ends with a byte that is no digit.
unsafe fn parse(mut text: *const u8) -> i32 {
    let mut number = 0;
    // SAFETY: it stops at the end of the text.
    while let digit @ b'0'..=b'9' = unsafe { *text } {
        number = number * 10 + i32::from(digit - b'0');
        // SAFETY: the last one was not the end.
        text = unsafe { text.add(1) };
    }
    number
}

/// Its name in lists of processes, no memory dumps, and no system call but those of the loop. The function,
/// whose user it is, may change its limits and its place in line for a core: only downwards.
fn become_small() {
    const PR_SET_NAME: usize = 15;
    const PR_SET_DUMPABLE: usize = 4;
    const PR_SET_SECCOMP: usize = 22;
    const RLIMIT_SIGPENDING: usize = 11;
    const RLIMIT_NICE: usize = 13;
    const RLIMIT_RTPRIO: usize = 14;
    call(number::PRCTL, [PR_SET_NAME, c"ol-init".as_ptr() as usize, 0, 0, 0]);
    call(number::PRCTL, [PR_SET_DUMPABLE, 0, 0, 0, 0]);
    let none = [0_u64; 2];
    for limit in [RLIMIT_SIGPENDING, RLIMIT_NICE, RLIMIT_RTPRIO] {
        call(number::PRLIMIT64, [0, limit, none.as_ptr() as usize, 0, 0]);
    }
    let filter = filter();
    let program = Program { length: filter.len() as u16, filter: filter.as_ptr() };
    call(number::PRCTL, [PR_SET_SECCOMP, 2, (&raw const program) as usize, 0, 0]);
}

/// `struct sock_filter`: code, jumps, value.
#[repr(C)]
struct Instruction(u16, u8, u8, u32);

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    length: u16,
    filter: *const Instruction,
}

fn filter() -> [Instruction; 11] {
    const LOAD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const KILL_PROCESS: u32 = 0x8000_0000;
    const ALLOW: u32 = 0x7fff_0000;
    [
        Instruction(LOAD, 0, 0, 4),
        Instruction(JUMP_EQUAL, 1, 0, number::MACHINE),
        Instruction(RETURN, 0, 0, KILL_PROCESS),
        Instruction(LOAD, 0, 0, 0),
        Instruction(JUMP_EQUAL, 5, 0, number::RT_SIGTIMEDWAIT),
        Instruction(JUMP_EQUAL, 4, 0, number::WAIT4),
        Instruction(JUMP_EQUAL, 3, 0, number::KILL),
        Instruction(JUMP_EQUAL, 2, 0, number::WRITE),
        Instruction(JUMP_EQUAL, 1, 0, number::EXIT_GROUP),
        Instruction(RETURN, 0, 0, KILL_PROCESS),
        Instruction(RETURN, 0, 0, ALLOW),
    ]
}

/// A child that has ended, and its wait status.
fn reap() -> Option<(i32, i32)> {
    const ANY: usize = usize::MAX;
    const WNOHANG: usize = 1;
    let mut status = 0_i32;
    let child = call(number::WAIT4, [ANY, (&raw mut status) as usize, WNOHANG, 0, 0]);
    (child > 0).then_some((child as i32, status))
}

/// Signals are blocked, since before the function's program began. Not so those that a C library keeps to
/// itself, 32, 33 and perhaps 34, which nobody waits for: without a handler the kernel drops them.
fn wait_for_signal() -> i32 {
    let all = u64::MAX;
    call(number::RT_SIGTIMEDWAIT, [(&raw const all) as usize, 0, 0, size_of::<u64>(), 0]) as i32
}

fn pass_on(program: i32, signal: i32) {
    call(number::KILL, [program as usize, signal as usize, 0, 0, 0]);
}

fn end(status: i32) -> ! {
    let signal = status & 0x7f;
    let mut code = status >> 8 & 0xff;
    if signal != 0 {
        code = 128 + signal;
        let digit = |digit: i32| b'0' + digit as u8;
        let mut told = *b"signal: 00";
        (told[8], told[9]) = (digit(signal / 10), digit(signal % 10));
        call(number::WRITE, [0, told.as_ptr() as usize, told.len(), 0, 0]);
    }
    loop {
        call(number::EXIT_GROUP, [code as usize, 0, 0, 0, 0]);
    }
}

#[cfg(target_arch = "x86_64")]
fn call(number: u32, arguments: [usize; 5]) -> isize {
    let result;
    let [a, b, c, d, e] = arguments;
    // SAFETY: the callers pass pointers to values that live until the call is over and have the sizes
    // that the kernel writes or reads; the instruction changes the registers that are named.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as usize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

#[cfg(target_arch = "aarch64")]
fn call(number: u32, arguments: [usize; 5]) -> isize {
    let result;
    let [a, b, c, d, e] = arguments;
    // SAFETY: as above.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number as usize,
            inlateout("x0") a => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e,
            options(nostack),
        );
    }
    result
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    end(125 << 8)
}
