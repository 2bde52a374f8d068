//! What the processes of one cluster know, and nobody else: [`Secret`].

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use rustix::fs::OFlags;
use sha2::Sha256;
use thiserror::Error;

/// How long a secret's text may be. The shortest that is random has 128 bits in hexadecimal. A stranger gets
/// a proof to try secrets on, so one that can be guessed is none.
const LENGTHS: std::ops::RangeInclusive<usize> = 32..=512;

/// How many different characters it has at least. Of 32 random hexadecimal digits some 14 are different.
const FEWEST_DIFFERENT: usize = 8;

/// A cluster's secret: 32 to 512 of the characters that a bearer token may have (RFC 6750: letters,
/// digits, `-._~+/`, and `=` at the end).
///
/// Cloning it shares the text. `Debug` does not show it.
#[derive(Clone)]
pub struct Secret(Arc<str>);

impl Secret {
    /// A new one, of 32 random bytes in hexadecimal.
    ///
    /// # Errors
    ///
    /// The system gives no random bytes.
    pub fn generate() -> io::Result<Self> {
        Ok(Secret(hex(&random::<32>()?).into()))
    }

    /// The secret in a file that has it as its only line.
    ///
    /// # Errors
    ///
    /// [`SecretError`]: the file cannot be read, others can read or change it, or there is no secret in it.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        let cannot = |source| SecretError::Unreadable { path: path.to_owned(), source };
        // A pipe in its place would be waited for.
        let flags = OFlags::NONBLOCK.bits() as i32;
        let file = File::options().read(true).custom_flags(flags).open(path).map_err(cannot)?;
        let found = file.metadata().map_err(cannot)?;
        let own = [0, rustix::process::geteuid().as_raw()];
        if !found.is_file() {
            return Err(SecretError::NoFile { path: path.to_owned() });
        }
        if !own.contains(&found.uid()) || found.mode() & 0o077 != 0 {
            return Err(SecretError::Open { path: path.to_owned() });
        }
        let mut text = String::new();
        let most = *LENGTHS.end() as u64 + 2;
        file.take(most).read_to_string(&mut text).map_err(cannot)?;
        let text = text.trim_end_matches(['\n', '\r']);
        text.parse().map_err(|()| SecretError::Unfit { path: path.to_owned() })
    }

    /// The text, for a file that nobody else can read, and for `authorization: Bearer`.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Whether a text is the secret. How long it takes does not depend on where they differ.
    pub fn is(&self, text: &[u8]) -> bool {
        let own = self.mac([b"same", self.0.as_bytes()]).finalize();
        self.mac([b"same", text]).verify(&own.into_bytes()).is_ok()
    }

    /// The authentication code of these parts, each with its length, so that no other parts have it.
    pub(super) fn mac<const N: usize>(&self, parts: [&[u8]; N]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_bytes())
            .expect("HMAC takes keys of every length");
        for part in parts {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(not shown)")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        self.is(other.0.as_bytes())
    }
}

impl Eq for Secret {}

impl FromStr for Secret {
    /// It cannot be a secret; what it is must not be repeated in a message.
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
        let bare = text.trim_end_matches('=');
        let different = bare.bytes().collect::<std::collections::BTreeSet<u8>>().len();
        let fits = LENGTHS.contains(&text.len())
            && LENGTHS.contains(&bare.len())
            && bare.bytes().all(allowed)
            && different >= FEWEST_DIFFERENT;
        fits.then(|| Secret(text.into())).ok_or(())
    }
}

/// Why a file gives no secret.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SecretError {
    /// It cannot be read.
    #[error(
        "cannot read the cluster's secret in {}; name its file with --secret-file, or make one with `ol secret \
         FILE`",
        path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no file.
    #[error(
        "{} is no file; name the one with the cluster's secret with --secret-file, or make one with `ol \
         secret FILE`",
        path.display()
    )]
    NoFile {
        /// The path.
        path: PathBuf,
    },
    /// Others can read or change it.
    #[error(
        "the cluster's secret in {0} is not this user's alone; own the file and run `chmod 600 {0}`, or \
         make another secret with `ol secret FILE`",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
    },
    /// There is none in it.
    #[error(
        "there is no secret in {}: it has one line of 32 to 512 letters, digits and -._~+/, at random; make one with \
         `ol secret FILE`",
        path.display()
    )]
    Unfit {
        /// The file.
        path: PathBuf,
    },
}

/// Bytes that nobody can foresee.
pub(super) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let (mut bytes, mut filled) = ([0; N], 0);
    while filled < N {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(more) => filled += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_known_and_not_shown() {
        let secret = Secret::generate().unwrap();
        assert_ne!(secret.text(), Secret::generate().unwrap().text());
        assert_eq!(secret.text().len(), 64);
        assert!(secret.is(secret.text().as_bytes()));
        for other in ["", &secret.text()[1..], &format!("{} ", secret.text())] {
            assert!(!secret.is(other.as_bytes()), "{other}");
        }
        assert!(!format!("{secret:?}").contains(secret.text()));
        let long = "0123456789abcdef".repeat(32);
        for (text, fits) in [
            ("0123456789abcdef0123456789abcdef", true),
            ("0123456789abcdef0123456789abcde", false),
            (&"k".repeat(40), false),
            (&"=".repeat(40), false),
            ("0123456701234567012345670123456=", false),
            (&long, true),
            (&format!("{long}x"), false),
            ("0123456789abcdef0123456789abcdef==", true),
            ("0123456789abcdef=0123456789abcdef", false),
            ("0123456789abcdef 0123456789abcdef", false),
            ("0123456789abcdef\n0123456789abcdef", false),
        ] {
            assert_eq!(text.parse::<Secret>().is_ok(), fits, "{text}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let text = Secret::generate().unwrap().text().to_owned();
        let read = |content: &str, mode| {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            Secret::read(&path).map_err(|error| error.to_string())
        };
        for content in [text.clone(), format!("{text}\n"), format!("{text}\r\n")] {
            assert_eq!(read(&content, 0o600).unwrap().text(), text);
        }
        assert_eq!(read(&text, 0o400).unwrap().text(), text);
        for mode in [0o640, 0o604, 0o620, 0o602] {
            let error = read(&text, mode).unwrap_err();
            assert!(
                error.contains("is not this user's alone; own the file and run `chmod 600"),
                "{error}"
            );
        }
        for content in ["", "\n", "short", &format!("{text}\n{text}\n"), &text.repeat(20)] {
            let error = read(content, 0o600).unwrap_err();
            assert!(error.contains("there is no secret in"), "{error}");
            assert!(error.ends_with("`ol secret FILE`"), "{error}");
        }
        let missing = Secret::read(&folder.path().join("none")).unwrap_err();
        assert!(matches!(missing, SecretError::Unreadable { .. }));
        assert!(matches!(Secret::read(folder.path()), Err(SecretError::NoFile { .. })));
    }
}
