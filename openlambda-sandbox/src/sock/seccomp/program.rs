//! Rules about system calls as a program for the kernel.
//!
//! The kernel compiles a filter for each process that installs it, and runs it once for every system call,
//! to remember those that it always allows. A list that is searched from the front, as libraries generate
//! it, costs 460 calls × half of its length at each start; this program is a binary search.

use std::collections::BTreeMap;

/// What becomes of a call: what the first alternative says whose conditions all hold. It is denied if
/// there is none. No conditions hold always.
pub(super) type Rule = Vec<(Vec<Condition>, u32)>;

/// A condition on the lower half of an argument; the calls that are restricted take 32 bits there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) argument: u32,
    /// The bits of it that are looked at.
    pub(super) mask: u32,
    pub(super) holds: Holds,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// It is one of these; there is one at least.
    OneOf(Vec<u32>),
    NoneOf(Vec<u32>),
    /// None of these bits is set.
    Without(u32),
}

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    k: u32,
}

// Of `linux/bpf_common.h`: load a word, keep some of its bits, jump always, by equality, by greater
// or equal, by a bit, and return.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_FROM: u16 = 0x35;
const JUMP_BITS: u16 = 0x45;
const RETURN: u16 = 0x06;

// Of `struct seccomp_data`: where the call's number, the machine and the arguments are.
const NUMBER: u32 = 0;
const MACHINE: u32 = 4;
const ARGUMENTS: u32 = 16;

pub(super) const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
/// As on a kernel without the call.
pub(super) const DENY: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
/// As of a file, device or socket that knows no such request.
pub(super) const NOT_HERE: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOTTY as u32;
/// As for want of a capability.
pub(super) const NO_POWER: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
/// The call is not made, and returns 0.
pub(super) const NOTHING: u32 = libc::SECCOMP_RET_ERRNO;
/// A call in the form of another machine would pass for one that it is not.
pub(super) const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

#[cfg(target_arch = "x86_64")]
pub(super) const THIS_MACHINE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
pub(super) const THIS_MACHINE: u32 = 0xc000_00b7;

impl Instruction {
    pub(super) fn bytes(&self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&self.code.to_ne_bytes());
        (bytes[2], bytes[3]) = (self.jump_true, self.jump_false);
        bytes[4..].copy_from_slice(&self.k.to_ne_bytes());
        bytes
    }
}

fn instruction(code: u16, k: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, k }
}

pub(super) fn program(rules: &BTreeMap<u32, Rule>) -> Vec<Instruction> {
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
        // From its end on, since a condition that does not hold leads to the next alternative: over what
        // is left of this one.
        let mut rest = vec![instruction(RETURN, *verdict)];
        for condition in alternative.iter().rev() {
            let mut test = condition.instructions(rest.len());
            test.append(&mut rest);
            rest = test;
        }
        program.append(&mut rest);
        if alternative.is_empty() {
            return program;
        }
    }
    program.push(instruction(RETURN, DENY));
    program
}

impl Condition {
    /// Goes on behind these instructions if it holds, and else behind so many more.
    fn instructions(&self, more: usize) -> Vec<Instruction> {
        let far = |over: usize| u8::try_from(over).expect("an alternative is short");
        let mut program = vec![instruction(LOAD, ARGUMENTS + 8 * self.argument)];
        if self.mask != u32::MAX {
            program.push(instruction(AND, self.mask));
        }
        let (Holds::OneOf(values) | Holds::NoneOf(values)) = &self.holds else {
            let Holds::Without(bits) = self.holds else { unreachable!("the others have values") };
            program.push(Instruction { jump_true: far(more), ..instruction(JUMP_BITS, bits) });
            return program;
        };
        let is_one_of = matches!(self.holds, Holds::OneOf(_));
        for (n, value) in values.iter().enumerate() {
            let left = values.len() - n - 1;
            let mut compare = instruction(JUMP_EQUAL, *value);
            match (is_one_of, left) {
                (true, 0) => compare.jump_false = far(more),
                (true, left) => compare.jump_true = far(left),
                (false, left) => compare.jump_true = far(left + more),
            }
            program.push(compare);
        }
        program
    }
}

/// What the kernel's machine does with the program.
#[cfg(test)]
pub(super) fn run(program: &[Instruction], machine: u32, number: u32, arguments: [u32; 6]) -> u32 {
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
            AND => word &= k,
            JUMP => at += k as usize,
            JUMP_EQUAL => at += jump(word == k),
            JUMP_FROM => at += jump(word >= k),
            JUMP_BITS => at += jump(word & k != 0),
            RETURN => return k,
            other => panic!("no such instruction: {other:#x}"),
        }
    }
}
