//! An asynchronous stream of bytes as a blocking reader.

use std::io::{self, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use bytes::{Buf, Bytes};
use futures_core::Stream;

use crate::registry::BundleStream;

/// A bundle on its way in, for code that reads and waits. Call it on a thread that may block, while
/// the stream's own runtime goes on elsewhere.
pub fn reader(stream: BundleStream) -> impl Read + Send {
    StreamReader { stream: Some(stream), chunk: Bytes::new() }
}

/// The most that one piece of [`stream`] holds, bytes.
pub const PIECE: usize = 256 << 10;

/// A bundle on its way out, from what can be read: the counterpart of [`reader`]. It is read on
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

/// A stream as a reader: parks the thread until more comes.
struct StreamReader {
    /// `None` after its end: a reader may be asked again, a stream may not.
    stream: Option<BundleStream>,
    chunk: Bytes,
}

impl Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        while self.chunk.is_empty() {
            let Some(stream) = &mut self.stream else { return Ok(0) };
            match Pin::new(stream).poll_next(&mut context) {
                Poll::Ready(Some(chunk)) => self.chunk = chunk?,
                Poll::Ready(None) => self.stream = None,
                Poll::Pending => std::thread::park(),
            }
        }
        let count = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
