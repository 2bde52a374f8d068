//! A blocking HTTP client over one connection, without a runtime: it costs the same whatever server it
//! talks to.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// What each call sends, and gets back.
const EVENT: &str = r#"{"one": 1}"#;

/// A reply that takes longer ends the bench.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(10));

/// Where a server listens.
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp(String),
}

/// One connection, and the function that is called over it.
pub(crate) struct Client {
    connection: Box<dyn Connection>,
    request: Vec<u8>,
    reply: Vec<u8>,
}

trait Connection: Read + Write + Send {}

impl<T: Read + Write + Send> Connection for T {}

impl Client {
    pub(crate) fn connect(address: &Address, function: &str) -> Client {
        match address {
            Address::Unix(socket) => {
                let connection = UnixStream::connect(socket).expect("the bare server listens");
                connection.set_read_timeout(PATIENCE).expect("it is a time");
                Client::over(Box::new(connection), function)
            }
            Address::Tcp(url) => {
                let address = url.strip_prefix("http://").expect("it is an address");
                let connection = TcpStream::connect(address).expect("it listens");
                connection.set_nodelay(true).expect("it is a TCP connection");
                connection.set_read_timeout(PATIENCE).expect("it is a time");
                Client::over(Box::new(connection), function)
            }
        }
    }

    fn over(connection: Box<dyn Connection>, function: &str) -> Client {
        let length = EVENT.len();
        let request = format!(
            "POST /run/{function} HTTP/1.1\r\nhost: bench\r\ncontent-length: {length}\r\n\r\n{EVENT}"
        );
        Client { connection, request: request.into_bytes(), reply: Vec::new() }
    }

    /// Sends the event and waits for it to come back.
    pub(crate) fn call(&mut self) {
        self.connection.write_all(&self.request).expect("the connection is kept");
        self.reply.clear();
        let mut buffer = [0; 4096];
        while !self.reply.ends_with(EVENT.as_bytes()) {
            let count = self.connection.read(&mut buffer).expect("the connection is kept");
            let so_far = String::from_utf8_lossy(&self.reply);
            assert!(count > 0, "the connection ended after {so_far:?}");
            self.reply.extend_from_slice(&buffer[..count]);
        }
        assert!(self.reply.starts_with(b"HTTP/1.1 200 OK\r\n"), "the call failed");
    }
}
