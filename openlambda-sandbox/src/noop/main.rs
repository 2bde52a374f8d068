//! The function that does nothing: a `bootstrap` that answers each event with `null`, as small and quick
//! to start as possible. `ol bench` measures starts with it.

use std::io::{Read, Write};
use std::net::TcpStream;

fn main() -> std::io::Result<()> {
    // With nobody to speak with it ends at once, which is what is measured of other programs.
    let Ok(api) = std::env::var("AWS_LAMBDA_RUNTIME_API") else { return Ok(()) };
    let mut stream = TcpStream::connect(&api)?;
    stream.set_nodelay(true)?;
    let mut head = Vec::new();
    loop {
        write!(stream, "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: api\r\n\r\n")?;
        let text = read_message(&mut stream, &mut head)?;
        let id = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("lambda-runtime-aws-request-id").then(|| value.trim())
        });
        let id = id.ok_or_else(|| std::io::Error::other("an event without an id"))?;
        let answer = format!(
            "POST /2018-06-01/runtime/invocation/{id}/response HTTP/1.1\r\nHost: api\r\n\
             Content-Length: 4\r\n\r\nnull"
        );
        stream.write_all(answer.as_bytes())?;
        read_message(&mut stream, &mut head)?;
    }
}

/// Reads one message and returns its head.
fn read_message(stream: &mut TcpStream, data: &mut Vec<u8>) -> std::io::Result<String> {
    data.clear();
    let mut chunk = [0; 4096];
    loop {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            std::process::exit(0);
        }
        data.extend_from_slice(&chunk[..count]);
        let Some(end) = data.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&data[..end]).into_owned();
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
        });
        let mut left = length.unwrap_or(0).saturating_sub(data.len() - end - 4);
        while left > 0 {
            left = left.saturating_sub(stream.read(&mut chunk)?);
        }
        return Ok(head);
    }
}
