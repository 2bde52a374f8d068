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
    /// Its sender sends, and is not at the end.
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
        let body = self.body.as_mut().expect("only Drop takes it");
        let frame = Pin::new(body).poll_frame(cx);
        // One whose length is not declared says in no other way that it is over.
        self.comes = !matches!(frame, Poll::Ready(None | Some(Err(_))));
        frame
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::Response;
    use http_body_util::Empty;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn nothing_is_left_of_a_body_that_was_read_to_its_end() {
        for (body, ends) in [("1\r\nx\r\n0\r\n\r\n", true), ("1\r\nx\r\nno length", false)] {
            let (mut client, server) = tokio::io::duplex(4096);
            let read = async |request: Request<Incoming>| {
                let mut body = LingeringBody::of(request).into_body();
                let mut last = None;
                while let Some(frame) = body.frame().await {
                    assert!(body.comes || frame.is_err());
                    last = Some(frame);
                    if last.as_ref().is_some_and(Result::is_err) {
                        break;
                    }
                }
                assert!(!body.comes);
                assert_eq!(last.is_some_and(|frame| frame.is_ok()), ends);
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            };
            let head =
                "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked";
            client.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.unwrap();
            let server = TokioIo::new(server);
            let served = http1::Builder::new().serve_connection(server, service_fn(read)).await;
            assert!(served.is_ok() || !ends);
        }
    }
}
