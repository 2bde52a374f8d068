//! Connects streams of bytes with threads that read and write: a slow sender keeps no thread waiting.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;

use super::Limits;
use crate::registry::{BundleStream, RegistryError};
use crate::time::{Clock, SystemClock};

/// How fast a bundle has to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How long it may take until the first byte, and from one piece to the next; and by how much it
    /// may be late as a whole.
    pub patience: Duration,
    /// Bytes a second, from the beginning on.
    pub rate: u64,
    /// The most that all of it may take.
    pub total: Duration,
}

impl Default for Pace {
    /// 30 seconds, 16 KiB a second, 15 minutes.
    fn default() -> Self {
        Pace {
            patience: Duration::from_secs(30),
            rate: 16 << 10,
            total: Duration::from_secs(15 * 60),
        }
    }
}

/// Writes a bundle on its way in to an unnamed file, for code that reads files and blocks. Meanwhile no
/// thread waits for it. Must be called within a tokio runtime with time.
///
/// # Errors
///
/// What the stream says; it comes too slowly or is too large, whatever it is; a [`RegistryError`] that
/// says that the file cannot be written.
pub async fn spool(mut bundle: BundleStream, limits: Limits, pace: Pace) -> io::Result<File> {
    let most = limits.bytes.saturating_add(1024 * limits.entries as u64);
    let clock = SystemClock::new();
    let began = clock.now();
    let full = |error: io::Error| io::Error::other(RegistryError::storage(error));
    let mut file = tempfile::tempfile().map_err(full)?;
    let (mut pieces, mut held, mut taken) = (Vec::<Bytes>::new(), 0, 0);
    loop {
        let due = pace.patience + Duration::from_secs_f64(taken as f64 / pace.rate as f64);
        let left = due.min(pace.total).saturating_sub(clock.now().since(began));
        let next = tokio::time::timeout(left.min(pace.patience), bundle.next()).await;
        let next = next.map_err(|_| {
            let message = format!("it comes too slowly: {taken} bytes so far; send it faster");
            io::Error::new(io::ErrorKind::TimedOut, message)
        })?;
        let is_last = next.is_none();
        if let Some(piece) = next.transpose()? {
            taken += piece.len() as u64;
            if taken > most {
                return Err(io::Error::other(format!("it is over {} MiB", most >> 20)));
            }
            held += piece.len();
            pieces.push(piece);
        }
        // Many small pieces take far more than their bytes.
        if is_last || held >= PIECE / 4 || pieces.len() >= 256 {
            let write = std::mem::take(&mut pieces);
            held = 0;
            let written = tokio::task::spawn_blocking(move || {
                write.iter().try_for_each(|piece| file.write_all(piece))?;
                if is_last {
                    file.rewind()?;
                }
                Ok::<_, io::Error>(file)
            });
            file = written.await?.map_err(full)?;
        }
        if is_last {
            return Ok(file);
        }
    }
}

/// The most that one piece of [`stream`] holds, bytes.
pub const PIECE: usize = 256 << 10;

/// A bundle on its way out, from what can be read: the counterpart of [`spool`]. It is read on
/// threads that may block, so the stream must be polled within a tokio runtime.
pub fn stream(tar: impl Read + Send + 'static) -> BundleStream {
    Box::pin(futures_util::stream::try_unfold(tar, |mut tar| async {
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = Vec::new();
            (&mut tar).take(PIECE as u64).read_to_end(&mut piece)?;
            Ok((!piece.is_empty()).then(|| (Bytes::from(piece), tar)))
        });
        read.await?
    }))
}
