//! A body as lines of JSON: [`Lines`].

use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use openlambda_core::invocation::BoxError;
use openlambda_core::wire::WorkerEvent;

/// The longest line of events.
const LONGEST_LINE: usize = 16 << 20;

pub(super) struct Lines {
    body: Incoming,
    buffer: BytesMut,
    /// So much of the buffer holds no end of a line.
    searched: usize,
}

impl Lines {
    pub(super) fn of(body: Incoming) -> Self {
        Lines { body, buffer: BytesMut::new(), searched: 0 }
    }

    /// The next event. Cancel-safe: what was read is kept.
    pub(super) async fn next(&mut self) -> Result<WorkerEvent, BoxError> {
        loop {
            let end = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
            if let Some(end) = end {
                let line = self.buffer.split_to(self.searched + end + 1);
                self.searched = 0;
                return Ok(serde_json::from_slice(&line)?);
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LONGEST_LINE {
                return Err("a line of events has no end".into());
            }
            let frame = self.body.frame().await.ok_or("the stream ended")??;
            if let Some(data) = frame.data_ref() {
                self.buffer.extend_from_slice(data);
            }
        }
    }
}
