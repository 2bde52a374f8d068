//! How commands print text, JSON and tables.

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::terminal::{for_output, plain, say, shown_json};

/// Whether something that was to be printed is lost.
static LOST: AtomicBool = AtomicBool::new(false);

/// Prints to standard output, on a terminal with control characters written out. What cannot be written
/// is said, and makes the command fail when it is through: see [`is_lost`]. A reader that has gone, as
/// in `ol ls | head`, is no error.
pub(super) fn print(text: &str) {
    print_bytes(for_output(text).as_bytes());
}

pub(super) fn print_json(value: &serde_json::Value) {
    print_bytes(json_line(&value.to_string()).as_bytes());
}

/// [`print`] for bytes that are as they are to be.
pub(super) fn print_bytes(bytes: &[u8]) {
    if let Err(error) = write(bytes) {
        note(&error);
    }
}

/// Says, once, that output cannot be written, unless it is because nobody reads it any more.
pub(super) fn note(error: &std::io::Error) {
    if error.kind() != ErrorKind::BrokenPipe && !LOST.swap(true, Ordering::Relaxed) {
        say!(
            "ol: cannot write to standard output: {}; make room there, or send it elsewhere",
            plain(&error.to_string())
        );
    }
}

/// Whether output could not be written.
pub(super) fn is_lost() -> bool {
    LOST.load(Ordering::Relaxed)
}

/// One line of JSON, as standard output may get it.
pub(super) fn json_line(json: &str) -> String {
    let json = if std::io::stdout().is_terminal() { shown_json(json) } else { json.into() };
    format!("{json}\n")
}

/// Writes bytes as they are.
pub(super) fn write(bytes: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush())
}

/// Columns under headings, as wide as their widest cell.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..headings.len())
        .map(|column| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> =
            cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut text = line(&mut headings.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}
