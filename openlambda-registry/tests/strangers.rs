//! Who does not know the cluster's secret takes no connection away from those who do, for long.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use openlambda_core::registry::Registry;
use openlambda_core::serving::identity::prove;
use openlambda_core::serving::{Secret, Serving};
use openlambda_registry::native::{NativeRegistry, RemoteRegistry, ServeConfig, Store, serve};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a stranger may stay.
const HEAD: Duration = Duration::from_millis(300);

/// What HTTP/2 begins with, and its first frame, of settings, which is empty.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A frame that asks whether anybody is there.
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0whoisit?";

struct Site {
    _folder: TempDir,
    _serving: Serving,
    url: String,
    secret: Option<Secret>,
}

impl Site {
    fn start(secret: Option<Secret>, most_connections: usize) -> Site {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let registry = Arc::new(NativeRegistry::new(store));
        let mut config = ServeConfig::default();
        config.secret.clone_from(&secret);
        config.patience.most_connections = most_connections;
        config.patience.head = HEAD;
        let serving = Serving::start(async move |listener, stop| {
            serve(registry, listener, config, stop).await.unwrap();
        })
        .unwrap();
        let url = serving.url().to_owned();
        Site { _folder: folder, _serving: serving, url, secret }
    }

    fn address(&self) -> SocketAddr {
        self.url.strip_prefix("http://").unwrap().parse().unwrap()
    }

    async fn list(&self) -> usize {
        let registry = RemoteRegistry::connect(&self.url).unwrap();
        registry.with_secret(self.secret.clone()).list().await.unwrap().len()
    }
}

/// Says `begin` and then, again and again, `more`, until the other end closes.
async fn stays(address: SocketAddr, begin: &'static [u8], more: &'static [u8]) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(begin).await.unwrap();
    let (mut reads, mut writes) = stream.split();
    let speaks = async {
        while writes.write_all(more).await.is_ok() {
            tokio::time::sleep(HEAD / 10).await;
        }
    };
    let listens = async {
        let mut heard = [0; 4096];
        while reads.read(&mut heard).await.is_ok_and(|count| count > 0) {}
    };
    tokio::select! {
        () = listens => {}
        () = speaks => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_leave_in_time_however_they_begin() {
    let secret = Some(Secret::generate().unwrap());
    let unfinished = &PREFACE[..PREFACE.len() - 12];
    let cases: [(bool, &[u8], &[u8]); 9] = [
        (true, b"", b""),
        (true, b"P", b""),
        (true, b"o", b""),
        (true, b"openlambda/1 ", b"0"),
        (true, unfinished, b""),
        // It has begun, and even answers whether it is there.
        (true, PREFACE, b""),
        (true, PREFACE, PING),
        (false, b"P", b""),
        (false, unfinished, b""),
    ];
    for (asks, begin, more) in cases {
        let site = Site::start(secret.clone().filter(|_| asks), 20);
        let strangers: Vec<_> =
            (0..60).map(|_| tokio::spawn(stays(site.address(), begin, more))).collect();
        let all = async {
            for stranger in strangers {
                stranger.await.unwrap();
            }
        };
        let begun = begin.escape_ascii();
        let left = tokio::time::timeout(Duration::from_secs(60), all).await;
        assert!(left.is_ok(), "after \"{begun}\", some of them are still there");
        assert_eq!(site.list().await, 0);
    }
}

/// However long they are silent.
#[tokio::test(flavor = "multi_thread")]
async fn those_who_have_shown_that_they_know_the_secret_stay() {
    let secret = Secret::generate().unwrap();
    for asks in [true, false] {
        let site = Site::start(Some(secret.clone()).filter(|_| asks), 20);
        let mut stream = TcpStream::connect(site.address()).await.unwrap();
        if asks {
            let address = site.address();
            prove(&mut stream, &secret, address.into(), &address.to_string()).await.unwrap();
        }
        stream.write_all(PREFACE).await.unwrap();
        let mut heard = [0; 4096];
        let silence = tokio::time::timeout(HEAD * 5, async {
            while stream.read(&mut heard).await.unwrap() > 0 {}
        });
        assert!(silence.await.is_err(), "it was closed");
        stream.write_all(PING).await.unwrap();
        let answered = tokio::time::timeout(Duration::from_secs(60), async {
            let mut all = Vec::new();
            while !all.ends_with(b"whoisit?") {
                assert!(stream.read_buf(&mut all).await.unwrap() > 0);
            }
        });
        answered.await.unwrap();
    }
}
