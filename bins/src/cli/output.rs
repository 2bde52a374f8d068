//! How commands print text, JSON and tables.

use std::io::{IsTerminal, Write};

use crate::terminal::{for_output, shown_json};

/// Prints to standard output, on a terminal with control characters written out. A reader that has
/// gone, as in `ol ls | head`, is no error.
pub(super) fn print(text: &str) {
    let _ = write(&for_output(text));
}

pub(super) fn print_json(value: &serde_json::Value) {
    let _ = write(&json_line(&value.to_string()));
}

/// One line of JSON, as standard output may get it.
pub(super) fn json_line(json: &str) -> String {
    let json = if std::io::stdout().is_terminal() { shown_json(json) } else { json.into() };
    format!("{json}\n")
}

/// Writes a text as it is.
pub(super) fn write(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
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
