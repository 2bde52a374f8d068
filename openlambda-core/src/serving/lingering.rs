//! Bodies of requests whose senders get to read the answer: [`LingeringBody`].

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::EXPECT;
use http::{HeaderMap, Request};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::runtime::Handle;

use super::SteadyBody;

/// How much of a body is read that nobody wants, bytes, and for how long.
const MOST: u64 = 64 << 20;
const LONGEST: Duration = Duration::from_secs(30);

/// A body whose rest is read and thrown away when it is dropped before its end, within bounds: if the
/// connection were closed at once, most senders would find it broken while they write, and never read why.
///
/// Who waits to be told to go on (`Expect: 100-continue`) has sent nothing that would be in the way of the
/// answer, and is not told.
#[derive(Debug)]
pub struct LingeringBody {
    /// Taken by Drop.
    body: Option<SteadyBody<Incoming>>,
    /// Its sender sends.
    comes: bool,
}

impl LingeringBody {
    /// The body of `request`.
    pub fn of(request: Request<Incoming>) -> Request<Self> {
        let asks = asks_first(request.headers());
        request.map(|body| LingeringBody { body: Some(SteadyBody::new(body)), comes: !asks })
    }

    fn body(&self) -> &SteadyBody<Incoming> {
        self.body.as_ref().expect("only Drop takes it")
    }
}

fn asks_first(headers: &HeaderMap) -> bool {
    headers.contains_key(EXPECT)
}

impl Body for LingeringBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.comes = true;
        let body = self.body.as_mut().expect("only Drop takes it");
        Pin::new(body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body().size_hint()
    }
}

impl Drop for LingeringBody {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| self.comes && !body.is_end_stream()) else {
            return;
        };
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(tokio::time::timeout(LONGEST, pass_over(body)));
        }
    }
}

async fn pass_over(mut body: SteadyBody<Incoming>) {
    let mut passed = 0;
    while let Some(Ok(frame)) = body.frame().await {
        passed += frame.data_ref().map_or(0, |data| data.len() as u64);
        if passed > MOST {
            return;
        }
    }
}
