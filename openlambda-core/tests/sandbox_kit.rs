//! What a kind of sandbox around an async handler does at the end of an instance.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use openlambda_core::failure::Started;
use openlambda_core::function::Digest;
use openlambda_core::invocation::{Invocation, RequestIds, full_body};
use openlambda_core::manifest::{Manifest, Network};
use openlambda_core::sandbox::kit::{Call, Fault, Handler, Simple};
use openlambda_core::sandbox::{
    Capabilities, LogLine, LogSink, LogStream, NoLog, Sandbox, SandboxErrorKind, SandboxFactory,
    SandboxSpec,
};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::timeout;

/// What hangs has not ended by then.
const LIMIT: Duration = Duration::from_secs(10);

fn spec() -> SandboxSpec {
    let (name, digest) = ("f".parse().unwrap(), Digest::from_bytes([0; 32]));
    let manifest = Arc::new(Manifest { concurrency: 1, ..Manifest::default() });
    SandboxSpec::new(name, digest, "/".into(), manifest, Arc::new(NoLog))
}

fn capabilities() -> Capabilities {
    let mut capabilities = Capabilities::none();
    capabilities.networks = vec![Network::None, Network::Host];
    capabilities
}

fn call(body: &'static str) -> Invocation {
    Invocation::new(RequestIds::new(7).next(), "f".parse().unwrap(), body)
}

/// A call whose body comes when the sender is used, and a permit of the semaphore when somebody waits
/// for it.
fn slow_call() -> (Invocation, Arc<Semaphore>, oneshot::Sender<()>) {
    let (send, sent) = oneshot::channel();
    let asked = Arc::new(Semaphore::new(0));
    let tell = Arc::clone(&asked);
    let body = futures_util::stream::once(async move {
        tell.add_permits(1);
        let _ = sent.await;
        Ok(Frame::data(Bytes::from_static(b"1")))
    });
    let mut call = call("");
    call.body = StreamBody::new(body).boxed_unsync();
    (call, asked, send)
}

/// An instance whose handler counts its calls.
async fn counting(calls: &Arc<AtomicUsize>) -> Arc<dyn Sandbox> {
    let calls = Arc::clone(calls);
    let factory = Simple::new("counting", capabilities(), move |_| {
        let calls = Arc::clone(&calls);
        async move {
            Ok(move |call: Call| {
                calls.fetch_add(1, Ordering::SeqCst);
                async move { Ok::<_, Fault>(http::Response::new(call.body)) }
            })
        }
    });
    factory.create(spec()).await.unwrap().sandbox
}

/// What was printed, with the call's id.
#[derive(Debug, Default)]
struct Lines(Mutex<Vec<(Option<String>, LogStream, String)>>);

impl LogSink for Lines {
    fn line(&self, line: LogLine<'_>) {
        let id = line.request_id.map(str::to_owned);
        self.0.lock().unwrap().push((id, line.stream, line.text.to_owned()));
    }
}

#[tokio::test]
async fn a_handler_hands_what_was_printed_to_the_function_s_log() {
    let factory = Simple::new("printing", capabilities(), |spec| async move {
        spec.print(None, LogStream::Stdout, b"ready");
        Ok(move |call: Call| {
            spec.print(Some(&call.id), LogStream::Stderr, b"one\r\n\xfftwo\n");
            async move { Ok::<_, Fault>(http::Response::new(call.body)) }
        })
    });
    let lines = Arc::new(Lines::default());
    let mut spec = spec();
    spec.log = Arc::clone(&lines) as Arc<dyn LogSink>;
    let sandbox = factory.create(spec).await.unwrap().sandbox;
    let call = call("1");
    let id = Some(call.id.as_str().to_owned());
    let reply = sandbox.invoke(call).await.unwrap();
    assert_eq!(reply.body.collect().await.unwrap().to_bytes(), "1");
    let expected = [
        (None, LogStream::Stdout, "ready".to_owned()),
        (id.clone(), LogStream::Stderr, "one".to_owned()),
        (id, LogStream::Stderr, "\u{fffd}two".to_owned()),
    ];
    assert_eq!(*lines.0.lock().unwrap(), expected);
    factory.shutdown().await;
}

#[tokio::test]
async fn destroy_does_not_wait_for_a_client_that_does_not_send_its_body() {
    let sandbox = counting(&Arc::default()).await;
    let (call, asked, _never_sent) = slow_call();
    let used = Arc::clone(&sandbox);
    let invoked = tokio::spawn(async move { used.invoke(call).await });
    asked.acquire().await.unwrap().forget();
    timeout(LIMIT, sandbox.destroy()).await.expect("it waits for the body");
    let error = invoked.await.unwrap().unwrap_err();
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Exited, Started::No));
}

#[tokio::test]
async fn no_handler_begins_in_an_instance_that_has_ended() {
    let calls = Arc::default();
    let sandbox = counting(&calls).await;
    let (call, asked, send) = slow_call();
    let used = Arc::clone(&sandbox);
    let invoked = tokio::spawn(async move { used.invoke(call).await });
    asked.acquire().await.unwrap().forget();
    let ends = Arc::clone(&sandbox);
    let destroyed = tokio::spawn(async move { ends.destroy().await });
    sandbox.exited().await;
    let _ = send.send(());
    let error = invoked.await.unwrap().unwrap_err();
    destroyed.await.unwrap();
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Exited, Started::No));
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

struct BadCleaner;

#[async_trait]
impl Handler for BadCleaner {
    async fn answer(&self, call: Call) -> Result<http::Response<Bytes>, Fault> {
        Ok(http::Response::new(call.body))
    }

    async fn clean(&self) {
        panic!("cannot clean");
    }
}

#[tokio::test]
async fn a_panic_while_cleaning_does_not_hang_destroy() {
    let factory = Simple::new("bad", capabilities(), |_| async { Ok(BadCleaner) });
    let sandbox = factory.create(spec()).await.unwrap().sandbox;
    timeout(LIMIT, sandbox.destroy()).await.expect("destroy hangs");
    timeout(LIMIT, factory.shutdown()).await.expect("shutdown hangs");
    assert_eq!(factory.lives().count(), 0);
}

/// Holds something from the beginning of its start until it is cleaned.
struct Holds(Arc<AtomicUsize>);

#[async_trait]
impl Handler for Holds {
    async fn answer(&self, call: Call) -> Result<http::Response<Bytes>, Fault> {
        Ok(http::Response::new(call.body))
    }

    async fn clean(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// `shutdown` destroys everything that the factory has made, and waits until it is gone.
#[tokio::test]
async fn shutdown_waits_for_an_instance_that_is_being_started() {
    let (held, begun, may) = (Arc::default(), Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let (counts, tells, waits) = (Arc::clone(&held), Arc::clone(&begun), Arc::clone(&may));
    let factory = Simple::new("holding", capabilities(), move |_| {
        let (held, begun, may) = (Arc::clone(&counts), Arc::clone(&tells), Arc::clone(&waits));
        async move {
            AtomicUsize::fetch_add(&held, 1, Ordering::SeqCst);
            begun.add_permits(1);
            may.notified().await;
            Ok(Holds(held))
        }
    });
    let starts = factory.clone();
    let created = tokio::spawn(async move { starts.create(spec()).await });
    begun.acquire().await.unwrap().forget();
    let ends = factory.clone();
    let shut_down = tokio::spawn(async move { ends.shutdown().await });
    tokio::task::yield_now().await;
    assert!(!shut_down.is_finished());
    may.notify_one();
    timeout(LIMIT, shut_down).await.unwrap().unwrap();
    assert_eq!(held.load(Ordering::SeqCst), 0, "something is left after the shutdown");
    created.await.unwrap().unwrap_err();
    factory.create(spec()).await.unwrap_err();
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_keeps_its_slot_until_the_handler_is_done() {
    let (begun, may) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (tells, waits) = (Arc::clone(&begun), Arc::clone(&may));
    let factory = Simple::new("waiting", capabilities(), move |_| {
        let (tells, waits) = (Arc::clone(&tells), Arc::clone(&waits));
        async move {
            Ok(move |call: Call| {
                let (begun, may) = (Arc::clone(&tells), Arc::clone(&waits));
                async move {
                    begun.add_permits(1);
                    may.acquire().await.unwrap().forget();
                    assert!(&call.body[..] != b"panic", "told to panic");
                    Ok::<_, Fault>(http::Response::new(call.body))
                }
            })
        }
    });
    let sandbox = factory.create(spec()).await.unwrap().sandbox;
    let used = Arc::clone(&sandbox);
    let invoked = tokio::spawn(async move { used.invoke(call("1")).await });
    begun.acquire().await.unwrap().forget();
    invoked.abort();
    let _ = invoked.await;
    assert_eq!(sandbox.invoke(call("1")).await.unwrap_err().kind, SandboxErrorKind::Busy);
    may.add_permits(1000);
    while sandbox.invoke(call("1")).await.is_err() {
        assert_eq!(factory.lives().count(), 1);
        tokio::task::yield_now().await;
    }
    let mut panics = call("1");
    panics.body = full_body("panic");
    let error = sandbox.invoke(panics).await.unwrap_err();
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Exited, Started::Yes));
    assert!(!error.reusable);
    factory.shutdown().await;
}
