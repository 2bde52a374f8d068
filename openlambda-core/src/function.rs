//! Names of functions, and what those names resolve to.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The namespace of a function whose name gives none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// A function: namespace and name. Text form `name` or `namespace/name`.
///
/// Both parts match `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`, so they are safe as file names and in URLs.
/// Names go along with every event, so a clone shares the text. In order by namespace, then name.
#[derive(Clone, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct FunctionName {
    /// `namespace/name`, also where the text form leaves the namespace out.
    text: Arc<str>,
    /// How long the namespace is.
    namespace: u8,
}

impl FunctionName {
    /// A function in a namespace.
    ///
    /// # Errors
    ///
    /// [`NameError`] when a part is not a valid name.
    pub fn new(namespace: &str, name: &str) -> Result<Self, NameError> {
        check_name("namespace", namespace)?;
        check_name("function name", name)?;
        let length = u8::try_from(namespace.len()).expect("a valid name has at most 64 bytes");
        Ok(FunctionName { text: format!("{namespace}/{name}").into(), namespace: length })
    }

    /// The namespace, [`DEFAULT_NAMESPACE`] when the text form gave none.
    pub fn namespace(&self) -> &str {
        &self.text[..usize::from(self.namespace)]
    }

    /// The name within the namespace.
    pub fn name(&self) -> &str {
        &self.text[usize::from(self.namespace) + 1..]
    }

    /// Namespace and name with a `/` between them, whatever the namespace: what hashes are of.
    pub(crate) fn full(&self) -> &str {
        &self.text
    }
}

impl PartialEq for FunctionName {
    fn eq(&self, other: &Self) -> bool {
        // Most names that are compared are clones of one.
        Arc::ptr_eq(&self.text, &other.text) || self.text == other.text
    }
}

impl PartialOrd for FunctionName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for FunctionName {
    fn cmp(&self, other: &Self) -> Ordering {
        // Not by the text: `/` sorts after `-` and `.`.
        self.namespace().cmp(other.namespace()).then_with(|| self.name().cmp(other.name()))
    }
}

impl Hash for FunctionName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.namespace() {
            DEFAULT_NAMESPACE => self.name(),
            _ => &self.text,
        })
    }
}

impl fmt::Debug for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for FunctionName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((namespace, name)) => FunctionName::new(namespace, name),
            None => FunctionName::new(DEFAULT_NAMESPACE, text),
        }
    }
}

impl TryFrom<String> for FunctionName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<FunctionName> for String {
    fn from(name: FunctionName) -> String {
        name.to_string()
    }
}

/// A text that is no valid name or reference.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("\"{text}\" is not a valid {what}: {rule}")]
pub struct NameError {
    what: &'static str,
    text: String,
    rule: &'static str,
}

/// Whether names, and request ids, may have this in them: a letter, a digit, or one of `._-`.
pub(crate) const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

fn check_name(what: &'static str, text: &str) -> Result<(), NameError> {
    let valid = (1..=64).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.bytes().all(is_name_byte);
    if valid {
        return Ok(());
    }
    let rule = "use 1 to 64 letters, digits, dots, underscores and hyphens, with a letter or digit \
                first";
    Err(NameError { what, text: text.chars().take(80).collect(), rule })
}

/// The number of a published version: 1, 2, 3, … Immutable once published, never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The digits of hexadecimal numbers.
pub(crate) const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

/// A bundle's digest: SHA-256 over its canonical uncompressed tar. Text form `sha256:<64 hex>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Digest(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal digits without the `sha256:` prefix, safe as a file name.
    pub fn hex(&self) -> String {
        let mut hex = String::with_capacity(64);
        for byte in self.0 {
            for digit in [byte >> 4, byte & 15] {
                hex.push(char::from(HEX_DIGITS[usize::from(digit)]));
            }
        }
        hex
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}…", &self.hex()[..12])
    }
}

impl FromStr for Digest {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError {
            what: "digest",
            text: text.chars().take(80).collect(),
            rule: "it is sha256: and 64 lower-case hexadecimal digits",
        };
        let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64).ok_or_else(wrong)?;
        let digit = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().as_chunks::<2>().0) {
            let [high, low] = pair.map(digit);
            *byte = high.zip(low).map(|(high, low)| high << 4 | low).ok_or_else(wrong)?;
        }
        Ok(Digest(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

/// Which version of a function is meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Qualifier {
    /// The newest version: no qualifier.
    Latest,
    /// `:3`.
    Version(Version),
    /// `:live`. An alias starts with a letter, so it is never a version.
    Alias(Box<str>),
    /// `@sha256:…`.
    Digest(Digest),
}

/// A function and the version that is meant: `name`, `ns/name:3`, `name:live`, `name@sha256:…`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct FunctionRef {
    /// The function.
    pub name: FunctionName,
    /// Which of its versions.
    pub qualifier: Qualifier,
}

impl FunctionRef {
    /// The newest version of `name`.
    pub fn latest(name: FunctionName) -> Self {
        FunctionRef { name, qualifier: Qualifier::Latest }
    }

    /// Reads a reference to a function of `namespace`, whose text does not name it.
    ///
    /// # Errors
    ///
    /// [`NameError`] when a part is not valid.
    pub(crate) fn parse_in(namespace: &str, text: &str) -> Result<Self, NameError> {
        FunctionRef::parse_with(text, |name| FunctionName::new(namespace, name))
    }

    fn parse_with(
        text: &str,
        name: impl FnOnce(&str) -> Result<FunctionName, NameError>,
    ) -> Result<Self, NameError> {
        let Some(at) = text.bytes().position(|byte| matches!(byte, b'@' | b':')) else {
            return Ok(FunctionRef::latest(name(text)?));
        };
        let (function, qualifier) = (&text[..at], &text[at + 1..]);
        let qualifier = if text.as_bytes()[at] == b'@' {
            Qualifier::Digest(qualifier.parse()?)
        } else if let Ok(number) = qualifier.parse::<u64>() {
            Qualifier::Version(Version(number))
        } else {
            Qualifier::Alias(check_alias(qualifier)?.into())
        };
        Ok(FunctionRef { name: name(function)?, qualifier })
    }
}

impl From<FunctionName> for FunctionRef {
    fn from(name: FunctionName) -> Self {
        FunctionRef::latest(name)
    }
}

impl fmt::Display for FunctionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.qualifier {
            Qualifier::Latest => write!(f, "{}", self.name),
            Qualifier::Version(version) => write!(f, "{}:{version}", self.name),
            Qualifier::Alias(alias) => write!(f, "{}:{alias}", self.name),
            Qualifier::Digest(digest) => write!(f, "{}@{digest}", self.name),
        }
    }
}

impl fmt::Debug for FunctionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for FunctionRef {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        FunctionRef::parse_with(text, str::parse)
    }
}

/// Checks that `text` can be an alias: a name that starts with a letter.
///
/// # Errors
///
/// [`NameError`] says the rule.
pub fn check_alias(text: &str) -> Result<&str, NameError> {
    check_name("alias", text)?;
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        let rule = "an alias starts with a letter; a number names a version";
        return Err(NameError { what: "alias", text: text.to_owned(), rule });
    }
    Ok(text)
}

impl TryFrom<String> for FunctionRef {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<FunctionRef> for String {
    fn from(reference: FunctionRef) -> String {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_survive_a_round_trip() {
        let digest = format!("@sha256:{}", "0a".repeat(32));
        for text in ["echo", "team/echo", "echo:3", "team/echo:live", &format!("echo{digest}")] {
            let reference: FunctionRef = text.parse().unwrap();
            assert_eq!(reference.to_string(), text);
            let json = serde_json::to_string(&reference).unwrap();
            assert_eq!(serde_json::from_str::<FunctionRef>(&json).unwrap(), reference);
        }
        assert_eq!("default/echo".parse::<FunctionRef>().unwrap().to_string(), "echo");
    }

    #[test]
    fn bad_names_are_refused_with_the_rule() {
        let long = "a".repeat(65);
        for text in ["", ".", "..", "-a", "_a", "a b", "a/b/c", "ä", "a\0", "/a", "a/", &long] {
            let error = text.parse::<FunctionName>().unwrap_err();
            assert!(error.to_string().contains("use 1 to 64 letters"), "{text}: {error}");
        }
        for text in ["a:", "a:1x", "a@sha256:00", "a@md5:00", "a:é"] {
            assert!(text.parse::<FunctionRef>().is_err(), "{text}");
        }
    }
}
