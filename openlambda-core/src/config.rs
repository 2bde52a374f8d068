//! Parsing of TOML into valid types, with errors that a person can act on.
//!
//! Every configuration type of the project (manifests, daemons' files) is a serde type with
//! `deny_unknown_fields`, read by [`parse_toml`].

use serde::de::DeserializeOwned;
use thiserror::Error;

/// A configuration text that is not valid: says which file, which line and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}{message}", place(origin, *line))]
pub struct ConfigError {
    /// Where the text came from, as the person calls it: a path, a flag. Empty: whoever reports the error
    /// knows.
    pub origin: String,
    /// 1-based line, when the fault has a place.
    pub line: Option<usize>,
    /// What is wrong and what to do about it.
    pub message: String,
}

fn place(origin: &str, line: Option<usize>) -> String {
    match line {
        Some(line) => format!("{origin}, line {line}: "),
        None if origin.is_empty() => String::new(),
        None => format!("{origin}: "),
    }
}

impl ConfigError {
    /// An error in what `origin` names, without a line.
    pub fn new(origin: impl Into<String>, message: impl Into<String>) -> Self {
        ConfigError { origin: origin.into(), line: None, message: message.into() }
    }
}

/// Reads a `T` from TOML.
///
/// `origin` names the text in errors, for example its path.
///
/// # Errors
///
/// Text that is not TOML, a value of the wrong type, an unknown key: the latter names the key, its
/// line and the nearest known one.
pub fn parse_toml<T: DeserializeOwned>(text: &str, origin: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError {
        origin: origin.to_owned(),
        line: error.span().map(|span| 1 + text[..span.start].matches('\n').count()),
        message: explain(error.message()),
    })
}

/// The most brackets that a YAML text may open, wherever they stand, and the most dashes and question
/// marks that open something in one of its lines.
#[cfg(feature = "yaml")]
const YAML_OPENED: (usize, usize) = (1000, 100);

/// Reads a `T` from YAML: [`parse_toml`] for the other form.
///
/// The parser's time grows with the square of a text's depth, so how deep one can be is bounded before
/// it is parsed: by how much it opens, whatever of that is in quotes or closed again. (The parser of
/// TOML bounds depth itself.)
///
/// # Errors
///
/// Those of [`parse_toml`]; the text opens too much.
#[cfg(feature = "yaml")]
pub fn parse_yaml<T: DeserializeOwned>(text: &str, origin: &str) -> Result<T, ConfigError> {
    let brackets = text.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
    // All that YAML 1.1 takes for the end of a line.
    let lines = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']);
    let signs =
        |line: &str| line.split([' ', '\t']).filter(|word| ["-", "?"].contains(word)).count();
    if brackets > YAML_OPENED.0 || lines.map(signs).any(|signs| signs > YAML_OPENED.1) {
        let (brackets, signs) = YAML_OPENED;
        return Err(ConfigError::new(
            origin,
            format!(
                "it opens too many lists or mappings; use at most {brackets} brackets, and {signs} \
                 dashes and question marks in one line"
            ),
        ));
    }
    yaml_serde::from_str(text).map_err(|error| {
        let line = error.location().map(|place| place.line());
        let message = error.to_string();
        // The place is told by our own words, and the path to it is where the line says.
        let message = message.rsplit_once(" at line ").map_or(&*message, |(message, _)| message);
        let start = message.find("unknown ").unwrap_or(0);
        ConfigError { origin: origin.to_owned(), line, message: explain(&message[start..]) }
    })
}

/// Stands in what [`explain`] makes of a value that has the wrong type, before what to write.
pub const WRONG_TYPE: &str = " does not fit here; write ";

/// What serde says of a value, in words for a person: an unknown key or word has the nearest known one
/// beside it instead of all, and a type of Rust is told as what to write.
pub fn explain(message: &str) -> String {
    if message.starts_with("invalid ")
        && let Some((found, expected)) = message.rsplit_once(", expected ")
    {
        let write = match expected.trim_end_matches(" or null") {
            "f64" | "f32" => "a number",
            "u8" => "a whole number from 0 to 255",
            "u16" => "a whole number from 0 to 65535",
            "u32" => "a whole number from 0 to 4294967295",
            "u64" | "u128" | "usize" => "a whole number, 0 or more",
            "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
            "a boolean" => "true or false",
            "a string" | "path string" => "a text in quotes",
            "a sequence" => "a list in brackets",
            "a map" => "a table",
            "a character" => "one character in quotes",
            "a nonzero u32" | "a nonzero u64" | "a nonzero usize" => "a whole number, 1 or more",
            "string or map" => "a text in quotes or a table",
            "field identifier" => "a key",
            "variant identifier" => "a word in quotes",
            "socket address" => "an address and a port, such as \"127.0.0.1:8080\"",
            named if named.starts_with("struct ") => "a table",
            named if named.starts_with("enum ") => "a word in quotes",
            named if named.starts_with("a tuple") || named.starts_with("tuple ") => {
                "a list in brackets"
            }
            as_it_is => as_it_is,
        };
        let (fault, found) = found.split_once(": ").unwrap_or(("", found));
        let found = match found.split_once(' ') {
            Some(("string" | "character", text)) => text,
            Some(("integer" | "boolean", text)) => text.trim_matches('`'),
            Some(("floating", text)) => text.trim_start_matches("point ").trim_matches('`'),
            _ => match found {
                "sequence" => "a list",
                "map" => "a table",
                "unit value" | "null" | "Option value" => "nothing",
                as_it_is => as_it_is,
            },
        };
        // What has the right type may be out of range.
        let fault =
            if fault == "invalid type" { WRONG_TYPE } else { " cannot be used here; write " };
        return format!("{found}{fault}{write}");
    }
    match message {
        "invalid socket address syntax" => {
            return "it is not an IP address with a port; write one such as 127.0.0.1:8080"
                .to_owned();
        }
        "u64 value was too large" => {
            return format!("the number is too large; use one up to {}", i64::MAX);
        }
        _ => {}
    }
    if let Some(key) = message.strip_prefix("missing field `").and_then(|key| key.strip_suffix('`'))
    {
        return format!("\"{key}\" is missing");
    }
    if let Some(key) =
        message.strip_prefix("duplicate field `").and_then(|key| key.strip_suffix('`'))
    {
        return format!("\"{key}\" is there twice; leave one out");
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    if !message.starts_with("unknown field") && !message.starts_with("unknown variant") {
        return message.to_owned();
    }
    let what = if message.starts_with("unknown field") { "key" } else { "value" };
    let unknown = quoted.next().unwrap_or_default();
    let known: Vec<&str> = quoted.collect();
    match nearest(unknown, known.iter().copied()) {
        Some(nearest) => format!("unknown {what} \"{unknown}\"; did you mean \"{nearest}\"?"),
        None => format!("unknown {what} \"{unknown}\"; known are {}", known.join(", ")),
    }
}

/// The candidate nearest to `word` by edit distance, if one is near enough to be a typing mistake.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= 1 + word.len().min(candidate.len()) / 3
                || (word.len() >= 3 && candidate.starts_with(word))
        })
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its field names matter")]
    struct Sample {
        memory_mb: Option<u32>,
        timeout_seconds: Option<u32>,
    }

    #[test]
    fn an_unknown_key_names_its_line_and_the_nearest_known_one() {
        let error =
            parse_toml::<Sample>("timeout_seconds = 3\nmemory = 3\n", "ol.toml").unwrap_err();
        assert_eq!(
            error.to_string(),
            "ol.toml, line 2: unknown key \"memory\"; did you mean \"memory_mb\"?"
        );
    }

    #[test]
    fn a_key_like_no_other_lists_the_known_ones() {
        let error = parse_toml::<Sample>("zzz = 1", "ol.toml").unwrap_err();
        assert_eq!(error.message, "unknown key \"zzz\"; known are memory_mb, timeout_seconds");
    }

    #[test]
    fn no_word_of_rust_is_said() {
        for (serde, told) in [
            (
                "invalid type: map, expected u32",
                "a table does not fit here; write a whole number from 0 to 4294967295",
            ),
            (
                "invalid type: integer `3`, expected struct Cors",
                "3 does not fit here; write a table",
            ),
            (
                "invalid type: floating point `1.5`, expected usize",
                "1.5 does not fit here; write a whole number, 0 or more",
            ),
            (
                "invalid type: boolean `true`, expected a sequence",
                "true does not fit here; write a list in brackets",
            ),
            (
                "invalid value: integer `-1`, expected u8",
                "-1 cannot be used here; write a whole number from 0 to 255",
            ),
            (
                "invalid type: sequence, expected string or map",
                "a list does not fit here; write a text in quotes or a table",
            ),
            ("missing field `name`", "\"name\" is missing"),
            ("duplicate field `name`", "\"name\" is there twice; leave one out"),
        ] {
            assert_eq!(explain(serde), told);
        }
    }

    #[cfg(feature = "yaml")]
    #[test]
    fn yaml_is_told_about_like_toml() {
        let error = parse_yaml::<Sample>("timeout_seconds: 3\nmemory: 3\n", "a.yaml").unwrap_err();
        let expected = "a.yaml, line 2: unknown key \"memory\"; did you mean \"memory_mb\"?";
        assert_eq!(error.to_string(), expected);
        let error = parse_yaml::<Sample>("\nmemory_mb: [", "a.yaml").unwrap_err();
        assert!(error.line.is_some() && !error.message.contains(" at line"), "{error}");
    }

    #[test]
    fn a_wrong_type_names_its_line() {
        let error = parse_toml::<Sample>("\n\nmemory_mb = \"much\"", "ol.toml").unwrap_err();
        assert_eq!(error.line, Some(3));
        assert_eq!(
            error.message,
            "\"much\" does not fit here; write a whole number from 0 to 4294967295"
        );
    }
}
