//! Keeps control characters of strangers from a terminal.
//!
//! Functions print any bytes, and names, messages and replies may hold any bytes too. A terminal obeys some
//! of them: they set colours and titles, but also change its clipboard, send answers to the command line,
//! and make text look different. So on a terminal control characters are shown (`\x1b`), not sent. Files
//! and pipes get every byte unchanged: the program that reads them decides.

use std::borrow::Cow;
use std::fmt::Write;
use std::io::IsTerminal;

/// Whether a terminal, or whoever reads it, is led astray by this character: it moves the cursor, begins
/// a sequence, or turns the direction of the text around. Lines and tabs are what they seem.
fn misleads(character: char) -> bool {
    matches!(character,
        '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{61c}')
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
            // All of them are of the first 65,536.
            true => write!(shown, "\\u{:04x}", u32::from(character)),
            false => shown.write_char(character),
        };
    }
    Cow::Owned(shown)
}

/// The text as standard output may get it.
pub(crate) fn for_output(text: &str) -> Cow<'_, str> {
    if std::io::stdout().is_terminal() { shown(text) } else { Cow::Borrowed(text) }
}

/// The text as standard error may get it.
pub(crate) fn for_errors(text: &str) -> Cow<'_, str> {
    if std::io::stderr().is_terminal() { shown(text) } else { Cow::Borrowed(text) }
}

/// `eprintln!` for a text that may hold words of strangers.
macro_rules! say {
    ($($text:tt)*) => {
        eprintln!("{}", crate::terminal::for_errors(&format!($($text)*)))
    };
}
pub(crate) use say;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        for (text, expected) in [
            ("a\tb\nü€😀 \\x1b", "a\tb\nü€😀 \\x1b"),
            ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
            ("ok\rno", "ok\\rno"),
            ("\u{9b}31m\u{7f}\0", "\\x9b31m\\x7f\\x00"),
            ("a\u{202e}b\u{2066}", "a\\u{202e}b\\u{2066}"),
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
