//! JSON lines: writes a value as one line of JSON, for records, events, logs and replies.

use std::io::{self, Write};

use serde::Serialize;

/// The value as a line, with its end.
pub fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Writes the value as a line.
///
/// # Errors
///
/// What the writer says. It may have taken a part of the line.
pub fn write(to: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *to, value)?;
    to.write_all(b"\n")
}
