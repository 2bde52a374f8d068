//! Clients that leave in the middle of a streamed reply: the handler is told in its style's own way, and
//! the slot is free. In `process` and in `sock`, as root and, by the last test, as an ordinary user.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/containers.rs"]
mod containers;

use http_body_util::BodyExt;
use openlambda_core::sandbox::{Sandbox, SandboxFactory};

use common::{eventually, invocation, read};
use containers::{again_as_an_ordinary_user, containers};

/// Endless pieces, and what is printed when it is over.
const GENERATOR: &str = "
def f(event):
    if event == 'short': return 'short'
    return pieces(event)
def pieces(event):
    try:
        while True: yield 'x' * 1000
    except GeneratorExit: print('told')
    if event == 'raise': raise ValueError('while closing')
";
const WSGI: &str = "
class Pieces:
    def __iter__(self): return self
    def __next__(self): return b'x' * 1000
    def close(self): print('told')
def app(environ, start_response):
    if environ['PATH_INFO'] == '/short':
        start_response('200 OK', []); return [b'\"short\"']
    write = start_response('200 OK', [])
    if environ['PATH_INFO'] == '/write':
        try:
            while True: write(b'x' * 1000)
        except OSError: print('told'); raise
    return Pieces()
";
const ASGI: &str = "
async def app(scope, receive, send):
    if scope['type'] == 'lifespan': return
    await send({'type': 'http.response.start', 'status': 200})
    if scope['path'] == '/short': return await send({'type': 'http.response.body', 'body': b'\"short\"'})
    try:
        while True: await send({'type': 'http.response.body', 'body': b'x' * 1000, 'more_body': True})
    except OSError as error:
        print('told')
        if scope['path'] == '/wrapped': raise RuntimeError('a framework says') from error
        if scope['path'] == '/raise': raise
";
const NODE: &str = "
const { pipeline } = require('stream/promises');
const { Readable } = require('stream');
exports.f = awslambda.streamifyResponse(async (event, stream) => {
  if (event === 'short') return stream.end('\"short\"');
  const forever = async function* () {
    try {
      for (;;) { yield 'x'.repeat(1000); await new Promise(setImmediate); }
    } finally { console.log('told'); }
  };
  if (event === 'pipeline') return pipeline(Readable.from(forever()), stream);
  stream.on('close', () => console.log('told'));
  for (;;) {
    if (event === 'timer') await new Promise((resolve) => setTimeout(resolve, 1));
    if (!stream.write('x'.repeat(1000)) && event === 'drain') {
      // For ever, when nobody reads: there is no drain after the close.
      await new Promise((resolve) => stream.once('drain', resolve));
    }
    if (stream.destroyed && event !== 'drain') return;
    await new Promise(setImmediate);
  }
});
";

#[tokio::test(flavor = "multi_thread")]
async fn handlers_are_told_that_the_client_has_left_and_the_slot_is_free() {
    let containers = containers();
    let factories: [&dyn SandboxFactory; 2] = [&*containers.factory, &*containers.setup.factory];
    let (web, streams) = (["/", "/write"], ["pipeline", "write", "timer", "drain"]);
    let asgi = ["/", "/wrapped", "/raise"];
    for factory in factories {
        for (file, code, manifest, ways) in [
            ("f.py", GENERATOR, "", &["pieces"][..]),
            ("app.py", WSGI, "handler = \"app.app\"\nstyle = \"wsgi\"\n", &web),
            ("app.py", ASGI, "handler = \"app.app\"\nstyle = \"asgi\"\n", &asgi),
            ("f.js", NODE, "handler = \"f.f\"\n", &streams),
        ] {
            for concurrency in [1, 2] {
                let manifest = format!("{manifest}concurrency = {concurrency}");
                let spec = containers.setup.spec(&[(file, code), ("ol.toml", &manifest)]);
                let sandbox = factory.create(spec).await.unwrap().sandbox;
                for way in ways {
                    let before = containers.setup.lines.texts().len();
                    let said = || containers.setup.lines.texts().split_off(before);
                    let completion = leave(&*sandbox, way).await;
                    let failure = completion.failure.map(|failure| failure.message);
                    assert_eq!((completion.reusable, failure), (true, None), "{file} {way}");
                    eventually("it was told", || async { said().contains(&"told".to_owned()) })
                        .await;
                    let short = sandbox.invoke(request("short")).await.unwrap();
                    assert_eq!(read(short).await.0, "\"short\"", "{file} {way}");
                    assert_eq!(said(), ["told"], "{file} {way}");
                }
                sandbox.destroy().await;
            }
        }
        // What goes wrong by that is told as ever.
        let spec = containers.setup.spec(&[("f.py", GENERATOR)]);
        let sandbox = factory.create(spec).await.unwrap().sandbox;
        let failure = leave(&*sandbox, "raise").await.failure.unwrap();
        assert!(failure.message.contains("while closing"), "{failure:?}");
        factory.shutdown().await;
    }
}

fn request(way: &str) -> openlambda_core::invocation::Invocation {
    let path = if way.starts_with('/') { way.to_owned() } else { format!("/{way}") };
    let mut request = invocation("r", format!("\"{way}\""));
    request.head.path = path;
    request
}

/// Reads some of a reply and leaves. How the call ended.
async fn leave(sandbox: &dyn Sandbox, way: &str) -> openlambda_core::invocation::Completion {
    let mut reply = sandbox.invoke(request(way)).await.unwrap();
    let mut read = 0;
    while read < 100_000 {
        read += reply.body.frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
    drop(reply.body);
    reply.done.await
}

#[test]
fn everything_again_as_an_ordinary_user() {
    again_as_an_ordinary_user("everything_again_as_an_ordinary_user");
}
