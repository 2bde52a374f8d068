//! {{name}}: it speaks the Lambda Runtime API itself, over a plain TCP connection.
//! <https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html>

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// Gets a call's body, returns the reply's. What it prints is in `ol logs {{name}}`.
fn handler(event: &[u8]) -> Result<Vec<u8>, String> {
    eprintln!("got {} bytes", event.len());
    let event = if event.is_empty() { b"null" } else { event };
    let mut reply = br#"{"message": "Hello from Rust!", "event": "#.to_vec();
    reply.extend_from_slice(event);
    reply.push(b'}');
    Ok(reply)
}

fn main() -> io::Result<()> {
    let host = std::env::var("AWS_LAMBDA_RUNTIME_API").expect("only a worker runs this");
    let mut api = Api { stream: BufReader::new(TcpStream::connect(&host)?), host };
    loop {
        // Waits for the next call.
        let (id, event) = api.request("GET", "invocation/next", b"")?;
        match handler(&event) {
            Ok(reply) => api.request("POST", &format!("invocation/{id}/response"), &reply)?,
            Err(message) => {
                let error = format!(r#"{{"errorType": "Error", "errorMessage": {message:?}}}"#);
                api.request("POST", &format!("invocation/{id}/error"), error.as_bytes())?
            }
        };
    }
}

/// One connection to the worker, kept alive.
struct Api {
    stream: BufReader<TcpStream>,
    host: String,
}

impl Api {
    /// Returns the call's id, where the reply names one, and the reply's body.
    fn request(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<(String, Vec<u8>)> {
        let (host, length) = (&self.host, body.len());
        let head = format!(
            "{method} /2018-06-01/runtime/{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n"
        );
        self.stream.get_mut().write_all(&[head.as_bytes(), body].concat())?;
        let status = self.line()?;
        let (mut id, mut length) = (String::new(), 0);
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "lambda-runtime-aws-request-id" => id = value.trim().to_owned(),
                "content-length" => length = value.trim().parse().map_err(io::Error::other)?,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        if !status.contains(" 2") {
            return Err(io::Error::other(format!("the worker answered {status}")));
        }
        Ok((id, body))
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}
