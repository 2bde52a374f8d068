//! The least that a function can be: a static program that answers each event with `null`. Tests and
//! benchmarks compile it with `rustc -C strip=symbols -C target-feature=+crt-static`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

const BASE: &str = "/2018-06-01/runtime/invocation";

fn main() -> io::Result<()> {
    let address = std::env::var("AWS_LAMBDA_RUNTIME_API").map_err(io::Error::other)?;
    let stream = TcpStream::connect(&address)?;
    stream.set_nodelay(true)?;
    let mut worker = BufReader::new(stream);
    loop {
        write!(worker.get_mut(), "GET {BASE}/next HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
        let id = read_reply(&mut worker)?;
        let request = format!(
            "POST {BASE}/{id}/response HTTP/1.1\r\nHost: {address}\r\nContent-Length: 4\r\n\r\nnull"
        );
        worker.get_mut().write_all(request.as_bytes())?;
        read_reply(&mut worker)?;
    }
}

/// Reads a whole reply; returns the request id in it.
fn read_reply(worker: &mut impl BufRead) -> io::Result<String> {
    let (mut id, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if worker.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("lambda-runtime-aws-request-id") => {
                id = value.trim().to_owned();
            }
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
            None if line.trim_end().is_empty() => break,
            _ => {}
        }
    }
    io::copy(&mut worker.take(length), &mut io::sink())?;
    Ok(id)
}
