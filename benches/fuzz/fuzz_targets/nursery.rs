//! Messages between the worker and the nursery of its sandboxes: no message ends either of them, and a
//! message is the same after it has been written and read again.
//!
//! The first byte says which kind of message the rest is.

#![no_main]

use std::io;

use libfuzzer_sys::fuzz_target;

// A module of both programs, which uses nothing but std: so it can be one of this program too.
#[path = "../../../openlambda-sandbox/src/sys/nursery/message.rs"]
mod message;

use message::{Answer, NetworkRequest, Setup, Start};

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    match first & 3 {
        0 => same(rest, Setup::read, Setup::write),
        1 => same(rest, Start::read, Start::write),
        2 => same(rest, NetworkRequest::read, NetworkRequest::write),
        _ => same(rest, Answer::read, Answer::write),
    }
});

fn same<T: PartialEq + std::fmt::Debug>(
    data: &[u8],
    read: impl Fn(&[u8]) -> io::Result<T>,
    write: impl Fn(&T) -> Vec<u8>,
) {
    let Ok(message) = read(data) else { return };
    let written = write(&message);
    assert_eq!(read(&written).expect("it was written"), message);
}
