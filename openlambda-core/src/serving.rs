//! What servers share: [`Serving`] runs one in a task of this process; a [`Door`] bounds its connections
//! and its patience with each, and learns [who](identity) comes; [`HttpServer`] is the one loop that answers
//! HTTP. A [`Connector`] is the other end.
//!
//! Each server (worker, balancer, native registry) takes a listener, and a future that says when to
//! stop. A program that embeds a cluster runs several of them beside each other, on free ports, and
//! stops them in the order that it needs:
//!
//! ```no_run
//! # async fn embed(worker: openlambda_core::worker::Worker) -> std::io::Result<()> {
//! use openlambda_core::serving::Serving;
//!
//! let serving = Serving::start(async move |listener, stop| worker.serve(listener, stop).await)?;
//! println!("{}", serving.url());
//! serving.stop().await
//! # }
//! ```

mod caller;
mod connector;
mod departure;
mod door;
mod flushing;
mod http;
pub mod identity;
mod lingering;
pub mod local;
mod log_file;
mod patient;
mod quiet;
mod steady;
mod stream;
mod told;
mod upgrade;

use std::future::Future;
use std::io;
use std::net::Ipv4Addr;

use futures_core::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::caller::Caller;
pub use self::connector::Connector;
pub use self::door::{Door, Patience};
pub use self::http::{HttpConfig, HttpServer};
pub use self::identity::{Access, Identity, Principal, Resource, Secret};
pub use self::lingering::LingeringBody;
pub use self::log_file::LogFile;
use self::patient::Patient;
pub use self::quiet::Quiet;
pub use self::steady::{Steady, SteadyBody};
pub use self::stream::Stream;
pub use self::upgrade::Upgrade;

/// A server that runs until it is told to stop; `T` is what it returns then.
///
/// **Drop** tells it to stop and does not wait: it ends in the background, or with the runtime.
#[derive(Debug)]
pub struct Serving<T = ()> {
    url: String,
    /// Dropped, it tells the server to stop.
    stop: DropGuard,
    task: JoinHandle<T>,
}

/// Resolves when a server is to stop.
pub type Stop = BoxFuture<'static, ()>;

impl<T: Send + 'static> Serving<T> {
    /// Spawns the server that `serve` makes from a listener on a free port of 127.0.0.1 and a future that
    /// resolves when it is to stop. Clients can connect from now on, and wait until the server accepts.
    ///
    /// Must be called within a tokio runtime with I/O.
    ///
    /// # Errors
    ///
    /// The system has no more ports or descriptors.
    pub fn start<F>(serve: impl FnOnce(TcpListener, Stop) -> F) -> io::Result<Self>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let url = format!("http://{}", listener.local_addr()?);
        let stop = CancellationToken::new();
        let stopped = Box::pin(stop.clone().cancelled_owned());
        let task = tokio::spawn(serve(TcpListener::from_std(listener)?, stopped));
        Ok(Serving { url, stop: stop.drop_guard(), task })
    }

    /// Where it is, `http://127.0.0.1:port`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Tells it to stop, waits until it has, and returns what it returned.
    ///
    /// # Panics
    ///
    /// When the server has.
    pub async fn stop(self) -> T {
        drop(self.stop);
        match self.task.await {
            Ok(returned) => returned,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => panic!("the runtime is shutting down"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;
    use tokio::sync::mpsc;

    use super::*;

    /// Counts connections until it is told to stop.
    async fn count(listener: TcpListener, mut stop: Stop, ended: mpsc::Sender<u32>) -> u32 {
        let mut connections = 0;
        loop {
            tokio::select! {
                biased;
                accepted = listener.accept() => connections += u32::from(accepted.is_ok()),
                () = &mut stop => break,
            }
        }
        let _ = ended.send(connections).await;
        connections
    }

    #[tokio::test]
    async fn a_server_stops_when_it_is_told_to_or_dropped() {
        let (ended, mut told) = mpsc::channel(2);
        let start = || {
            let ended = ended.clone();
            Serving::start(|listener, stop| count(listener, stop, ended)).unwrap()
        };
        let (one, two) = (start(), start());
        assert_ne!(one.url(), two.url());
        let address = one.url().strip_prefix("http://").unwrap().to_owned();
        for _ in 0..3 {
            TcpStream::connect(&address).await.unwrap();
        }
        assert_eq!(one.stop().await, 3);
        assert_eq!(told.recv().await, Some(3));
        drop(two);
        assert_eq!(told.recv().await, Some(0));
    }

    #[tokio::test]
    #[should_panic(expected = "quite broken")]
    async fn a_servers_panic_is_told() {
        let serving = Serving::start(|_, _| async { panic!("quite broken") }).unwrap();
        serving.stop().await
    }
}
