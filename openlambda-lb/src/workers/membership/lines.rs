//! A body as lines of JSON: [`Lines`].

use std::io;
use std::pin::Pin;

use futures_util::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use openlambda_core::invocation::BoxError;
use openlambda_core::wire::WorkerEvent;
use tokio::io::AsyncRead;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;

/// The longest line of events, bytes.
const LONGEST_LINE: usize = 16 << 20;

pub(super) struct Lines(FramedRead<Pin<Box<dyn AsyncRead + Send>>, LinesCodec>);

impl Lines {
    pub(super) fn of(body: Incoming) -> Self {
        let body = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
        Lines(FramedRead::new(Box::pin(body), LinesCodec::new_with_max_length(LONGEST_LINE)))
    }

    /// The next event. Cancel-safe: what was read is kept.
    pub(super) async fn next(&mut self) -> Result<WorkerEvent, BoxError> {
        let line = self.0.next().await.ok_or("the stream ended")??;
        Ok(serde_json::from_str(&line)?)
    }
}
