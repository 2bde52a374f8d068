//! Keeps control characters of strangers from a terminal.
//!
//! Functions print any bytes, and names, messages and replies may hold any bytes too. A terminal obeys some
//! of them: they set colours and titles, but also change its clipboard, send answers to the command line,
//! and make text look different. So on a terminal control characters are shown (`\x1b`), not sent. Files
//! and pipes get every byte unchanged: the program that reads them decides.

use std::borrow::Cow;
use std::fmt::Write;
use std::io::{IsTerminal, Write as _};

/// Whether a terminal, or whoever reads it, is led astray by this character: it moves the cursor, begins
/// a sequence, turns the direction of the text around, or is not seen at all, so that two names look like
/// one. Lines and tabs are what they seem; joiners between letters are seen by what they join.
fn misleads(character: char) -> bool {
    matches!(character,
        '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{61c}'
        | '\u{ad}' | '\u{200b}' | '\u{2060}'..='\u{2064}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
        || (character.is_control() && !matches!(character, '\n' | '\t'))
}

/// The text with control characters written out: `\r`, `\x1b`, `\u{202e}`.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    if !text.contains(misleads) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        let _ = match character {
            '\r' => shown.write_str("\\r"),
            _ if !misleads(character) => shown.write_char(character),
            '\0'..='\u{ff}' => write!(shown, "\\x{:02x}", u32::from(character)),
            _ => write!(shown, "{}", character.escape_unicode()),
        };
    }
    Cow::Owned(shown)
}

/// The same for a text that is JSON, which it still is: JSON's own way to write them.
pub(crate) fn shown_json(json: &str) -> Cow<'_, str> {
    if !json.contains(misleads) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len() + 16);
    for character in json.chars() {
        let _ = match misleads(character) {
            true => character
                .encode_utf16(&mut [0; 2])
                .iter()
                .try_for_each(|unit| write!(shown, "\\u{unit:04x}")),
            false => shown.write_char(character),
        };
    }
    Cow::Owned(shown)
}

/// A message without the numbers that Rust puts behind what the system says: `(os error 28)`.
pub(crate) fn plain(message: &str) -> String {
    let mut parts = message.split(" (os error ");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
                plain.push_str(rest);
            }
            _ => plain.extend([" (os error ", part]),
        }
    }
    plain
}

/// The text as standard output may get it.
pub(crate) fn for_output(text: &str) -> Cow<'_, str> {
    if std::io::stdout().is_terminal() { shown(text) } else { Cow::Borrowed(text) }
}

/// The text as standard error may get it.
pub(crate) fn for_errors(text: &str) -> Cow<'_, str> {
    if std::io::stderr().is_terminal() { shown(text) } else { Cow::Borrowed(text) }
}

/// `eprintln!` for a text that may hold words of strangers. It is lost where it cannot be written, as on a
/// full disk.
macro_rules! say {
    ($($text:tt)*) => {{
        let text = format!($($text)*);
        let _ = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("{}\n", crate::terminal::for_errors(&text)),
        );
    }};
}
pub(crate) use say;

/// A message of clap without the words by which Rust tells that a text is no number.
fn in_words(message: &str) -> String {
    let mut told = message.to_owned();
    for (rust, words) in [
        ("invalid digit found in string", "it is not a whole number"),
        ("cannot parse integer from empty string", "it is empty; write a whole number"),
        ("number too large to fit in target type", "it is too large"),
        ("number too small to fit in target type", "it is too small"),
        ("number would be zero for non-zero type", "use 1 or more"),
        ("invalid float literal", "it is not a number"),
        ("cannot parse float from empty string", "it is empty; write a number"),
    ] {
        told = told.replace(rust, words);
    }
    // `0 is not in 1..=1000`
    let Some((before, bounds)) = told.split_once(" is not in ") else { return told };
    let end = bounds.find(|c: char| !c.is_ascii_digit() && !".=-".contains(c));
    let (bounds, after) = bounds.split_at(end.unwrap_or(bounds.len()));
    let Some((least, most)) = bounds.split_once("..") else { return told };
    match most.trim_start_matches('=') {
        "" => format!("{before} is out of range; use {least} or more{after}"),
        most => format!("{before} is out of range; use {least} to {most}{after}"),
    }
}

/// What the command line says; one that is wrong, or asks for help, ends the program as
/// [`clap::Parser::parse`] does. Its words may be a stranger's, in a name that was pasted.
pub(crate) fn parsed<T>(parsed: Result<T, clap::Error>) -> T {
    parsed.unwrap_or_else(|error| {
        if !error.use_stderr() {
            // Help, or the version.
            let printed = error.print().and_then(|()| std::io::stdout().flush());
            match printed {
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                    let error = plain(&error.to_string());
                    say!("cannot write to standard output: {error}");
                    std::process::exit(1);
                }
                _ => std::process::exit(0),
            }
        }
        let text = error.render().to_string();
        let told = in_words(&text);
        if told != text {
            eprint!("{}", for_errors(&told));
            std::process::exit(error.exit_code());
        }
        // Both may be told again. In a text without colours clap leaves out what begins with an escape.
        let ours = std::env::vars_os()
            .filter(|(name, _)| name.as_encoded_bytes().starts_with(b"OPENLAMBDA_"))
            .map(|(_, value)| value);
        let words = std::env::args_os().chain(ours);
        let mut words = words.map(|word| word.to_string_lossy().contains(misleads));
        if error.use_stderr() && std::io::stderr().is_terminal() && words.any(|misleads| misleads) {
            eprint!("{}", shown(&error.render().to_string()));
            std::process::exit(error.exit_code());
        }
        error.exit()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_cannot_be_are_told_without_words_of_rust() {
        for (rust, told) in [
            ("'x': invalid digit found in string\n", "'x': it is not a whole number\n"),
            ("0 is not in 1..=1000\n\nFor more", "0 is out of range; use 1 to 1000\n\nFor more"),
            ("0 is not in 1..", "0 is out of range; use 1 or more"),
            ("it is not in the list", "it is not in the list"),
        ] {
            assert_eq!(in_words(rust), told);
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        for (text, expected) in [
            ("a\tb\nü€😀 \\x1b", "a\tb\nü€😀 \\x1b"),
            ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
            ("ok\rno", "ok\\rno"),
            ("\u{9b}31m\u{7f}\0", "\\x9b31m\\x7f\\x00"),
            ("a\u{202e}b\u{2066}", "a\\u{202e}b\\u{2066}"),
            ("a\u{200b}b\u{feff}\u{2060}\u{ad}", "a\\u{200b}b\\u{feff}\\u{2060}\\xad"),
            ("a\u{e0041}\u{e007f}", "a\\u{e0041}\\u{e007f}"),
            ("\u{1f468}\u{200d}\u{1f469}", "\u{1f468}\u{200d}\u{1f469}"),
        ] {
            assert_eq!(shown(text), expected);
            let json = serde_json::json!({ "text": text }).to_string();
            let there_and_back: serde_json::Value =
                serde_json::from_str(&shown_json(&json)).unwrap();
            assert_eq!(there_and_back["text"], text);
            assert!(!shown_json(&json).contains(misleads));
        }
    }
}
