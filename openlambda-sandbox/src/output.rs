//! Reads what a function prints from its pipes, line by line, into the log.
//!
//! [`FunctionOutput`] reads two pipes as fast as the function writes and keeps at most one partial line
//! of each, so a function that prints gigabytes neither blocks nor fills the worker's memory. A line
//! carries the request id when exactly one invocation runs, or when the runtime [says](TAG) whose it is;
//! [`FunctionOutput::settle`] is called at an invocation's end, so that its output is read before it counts
//! as over.
//!
//! What is read from one pipe is logged before anything is read from the other. So a runtime that lets the
//! one run empty before it writes to the other has its lines in their order. One that cannot see whether a
//! pipe is empty writes to one pipe only, and [frames](FRAME) there what is of the other stream.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use openlambda_core::function::FunctionName;
use openlambda_core::invocation::RequestId;
use openlambda_core::sandbox::{LogLine, LogSink, LogStream};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio_util::task::AbortOnDropHandle;

use crate::sys::watch_readable;

/// Longer lines are split.
pub const LINE_LIMIT: usize = 64 << 10;

/// A line that begins with this byte names the invocation that printed it: its id follows, then [`TAG_END`],
/// then the text. Runtimes write so where several invocations run at once. An id of none that runs is text.
pub const TAG: u8 = 0x1e;
/// Ends the id in a line that begins with [`TAG`].
pub const TAG_END: u8 = 0x1f;

/// This byte, a length in decimal digits (at most [`FRAME_LIMIT`]) and [`TAG_END`] say, anywhere in what is
/// read from one pipe, that as many bytes as that, which follow, are of the other stream. What does not
/// read so is text.
pub const FRAME: u8 = 0x1d;
/// The most bytes in a frame, so that it can be written with its head in one piece among others that write
/// to the same pipe.
pub const FRAME_LIMIT: usize = 4000;

/// The streams of the two pipes.
const STREAMS: [LogStream; 2] = [LogStream::Stdout, LogStream::Stderr];

/// How many of the last lines are kept for the error of an instance that never got ready.
const TAIL_LINES: usize = 10;

/// Reads an instance's standard output and error into its function's log, until dropped.
#[derive(Debug)]
pub struct FunctionOutput {
    pipes: [Arc<Pipe>; 2],
    _pumps: [AbortOnDropHandle<()>; 2],
}

/// The invocations that run in an instance now.
#[derive(Clone, Debug, Default)]
pub struct Running(Arc<Mutex<Vec<RequestId>>>);

impl Running {
    /// An invocation begins.
    pub fn add(&self, id: &RequestId) {
        self.0.lock().push(id.clone());
    }

    /// An invocation is over.
    pub fn remove(&self, id: &RequestId) {
        let mut running = self.0.lock();
        if let Some(place) = running.iter().position(|other| other == id) {
            running.swap_remove(place);
        }
    }

    /// Whether this one runs.
    fn has(&self, id: &str) -> bool {
        self.0.lock().iter().any(|known| known.as_str() == id)
    }

    /// The one that runs, if it is exactly one.
    fn only(&self) -> Option<RequestId> {
        match &**self.0.lock() {
            [id] => Some(id.clone()),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct Pipe {
    fd: AsyncFd<OwnedFd>,
    function: FunctionName,
    log: Arc<dyn LogSink>,
    running: Running,
    /// Which of the streams is its own.
    place: usize,
    /// Of both pipes of an instance: who reads one holds up who reads the other.
    readers: Arc<Mutex<Readers>>,
}

#[derive(Debug, Default)]
struct Readers {
    streams: [Reader; 2],
    /// One pipe has come to its end, so that the other is the last from which anything comes.
    one_ended: bool,
}

/// What is known of a stream, and of the pipe that has its name.
#[derive(Debug, Default)]
struct Reader {
    /// The head of a frame whose end has not come yet.
    head: Vec<u8>,
    /// How many bytes that come next are of the other stream.
    framed: usize,
    /// A line whose end has not come yet; shorter than [`LINE_LIMIT`].
    partial: Vec<u8>,
    /// Whose the line is of which a part is logged already, if it has said so.
    tagged: Option<String>,
    tail: VecDeque<String>,
}

enum Read {
    Data(usize),
    Nothing,
    End,
}

impl FunctionOutput {
    /// Reads from `stdout` and `stderr`. Must be called within a tokio runtime with I/O.
    ///
    /// # Errors
    ///
    /// The pipes cannot be watched.
    pub fn new(
        stdout: OwnedFd,
        stderr: OwnedFd,
        function: &FunctionName,
        log: &Arc<dyn LogSink>,
        running: &Running,
    ) -> io::Result<Self> {
        let readers = Arc::<Mutex<Readers>>::default();
        let pipe = |fd: OwnedFd, place| {
            let flags = rustix::fs::fcntl_getfl(&fd)? | rustix::fs::OFlags::NONBLOCK;
            rustix::fs::fcntl_setfl(&fd, flags)?;
            io::Result::Ok(Arc::new(Pipe {
                fd: watch_readable(fd)?,
                function: function.clone(),
                log: Arc::clone(log),
                running: running.clone(),
                place,
                readers: Arc::clone(&readers),
            }))
        };
        let pipes = [pipe(stdout, 0)?, pipe(stderr, 1)?];
        let read = |pipe: &Arc<Pipe>| AbortOnDropHandle::new(tokio::spawn(pump(Arc::clone(pipe))));
        Ok(FunctionOutput { _pumps: pipes.each_ref().map(read), pipes })
    }

    /// Reads what the pipes hold now, without waiting, and ends lines that have no end yet.
    pub fn settle(&self) {
        let readable = self.readable();
        for (pipe, readable) in self.pipes.iter().zip(readable) {
            let mut readers = pipe.readers.lock();
            // Not more: what else comes while we read may never end.
            let held = readable.then(|| rustix::io::ioctl_fionread(pipe.fd.get_ref()).unwrap_or(0));
            let mut held = held.unwrap_or(0);
            while held > 0
                && let Read::Data(count) = pipe.read(&mut readers)
            {
                held = held.saturating_sub(count as u64);
            }
            if !pipe.is_of_another(&readers.streams[pipe.place]) {
                pipe.end_line(&mut readers, pipe.place);
            }
        }
    }

    /// Adds a line of ours to the log, among those of standard error.
    pub fn note(&self, text: &str) {
        let pipe = &self.pipes[1];
        let id = pipe.running.only();
        let id = id.as_ref().map(RequestId::as_str);
        pipe.log.line(LogLine::new(&pipe.function, id, LogStream::Stderr, text));
    }

    /// Which pipes hold something: mostly none does, and one question is enough for both.
    fn readable(&self) -> [bool; 2] {
        let mut asked = [0, 1].map(|n| PollFd::new(self.pipes[n].fd.get_ref(), PollFlags::IN));
        match rustix::event::poll(&mut asked, Some(&Timespec::default())) {
            Ok(_) => asked.map(|pipe| pipe.revents().contains(PollFlags::IN)),
            Err(_) => [true; 2],
        }
    }

    /// The last lines of standard error, or of standard output when there are none.
    pub fn last_words(&self) -> String {
        let readers = self.pipes[0].readers.lock();
        let [stdout, stderr] =
            readers.streams.each_ref().map(|it| Vec::from(it.tail.clone()).join("\n"));
        if stderr.is_empty() { stdout } else { stderr }
    }
}

async fn pump(pipe: Arc<Pipe>) {
    loop {
        let Ok(mut ready) = pipe.fd.readable().await else { return };
        let read = pipe.read(&mut pipe.readers.lock());
        match read {
            Read::Data(_) => tokio::task::yield_now().await,
            Read::Nothing => ready.clear_ready(),
            Read::End => {
                pipe.end(&mut pipe.readers.lock());
                return;
            }
        }
    }
}

impl Pipe {
    /// One read that does not wait.
    fn read(&self, readers: &mut Readers) -> Read {
        let mut chunk = [0; 16 << 10];
        match rustix::io::read(self.fd.get_ref(), &mut chunk) {
            Ok(0) => Read::End,
            Ok(count) => {
                self.take(readers, &chunk[..count]);
                Read::Data(count)
            }
            Err(Errno::AGAIN | Errno::INTR) => Read::Nothing,
            Err(_) => Read::End,
        }
    }

    /// Tells what is of the pipe's own stream from what is framed as the other's.
    fn take(&self, readers: &mut Readers, mut chunk: &[u8]) {
        while !chunk.is_empty() {
            let reader = &mut readers.streams[self.place];
            if reader.framed > 0 {
                let (theirs, rest) = chunk.split_at(reader.framed.min(chunk.len()));
                reader.framed -= theirs.len();
                self.take_lines(readers, 1 - self.place, theirs);
                chunk = rest;
            } else if reader.head.is_empty() {
                let end = chunk.iter().position(|byte| *byte == FRAME).unwrap_or(chunk.len());
                let (own, rest) = chunk.split_at(end);
                reader.head.extend(rest.first());
                self.take_lines(readers, self.place, own);
                chunk = rest.get(1..).unwrap_or_default();
            } else if let (b'0'..=b'9', 1..=4) = (chunk[0], reader.head.len()) {
                reader.head.push(chunk[0]);
                chunk = &chunk[1..];
            } else if chunk[0] == TAG_END
                && let Some(length) = length_of(&reader.head)
            {
                reader.head.clear();
                reader.framed = length;
                chunk = &chunk[1..];
            } else {
                self.end_head(readers);
            }
        }
    }

    /// What began as the head of a frame is none, but text.
    fn end_head(&self, readers: &mut Readers) {
        let head = std::mem::take(&mut readers.streams[self.place].head);
        self.take_lines(readers, self.place, &head);
    }

    fn take_lines(&self, readers: &mut Readers, place: usize, chunk: &[u8]) {
        let only = self.running.only();
        let only = only.as_ref().map(RequestId::as_str);
        let reader = &mut readers.streams[place];
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            reader.partial.extend_from_slice(text);
            while reader.partial.len() > LINE_LIMIT {
                let rest = reader.partial.split_off(split_at(&reader.partial));
                let line = std::mem::replace(&mut reader.partial, rest);
                self.emit(reader, place, only, &line);
            }
            if ended {
                self.whole_line(reader, place, only);
            }
        }
    }

    /// Nothing else comes from this pipe.
    fn end(&self, readers: &mut Readers) {
        self.end_line(readers, self.place);
        if std::mem::replace(&mut readers.one_ended, true) {
            self.end_line(readers, 1 - self.place);
        }
    }

    fn end_line(&self, readers: &mut Readers, place: usize) {
        if place == self.place {
            self.end_head(readers);
        }
        let reader = &mut readers.streams[place];
        if !reader.partial.is_empty() {
            let only = self.running.only();
            self.whole_line(reader, place, only.as_ref().map(RequestId::as_str));
        }
    }

    /// Whether the line that has begun says that it is one's of several that run: its end will come.
    fn is_of_another(&self, reader: &Reader) -> bool {
        let tagged = reader.tagged.is_some() || self.tag_of(&reader.partial).is_some();
        tagged && self.running.only().is_none()
    }

    fn whole_line(&self, reader: &mut Reader, place: usize, only: Option<&str>) {
        let mut line = std::mem::take(&mut reader.partial);
        self.emit(reader, place, only, &line);
        line.clear();
        (reader.partial, reader.tagged) = (line, None);
    }

    /// Logs a line, or a part of one that is too long.
    fn emit(&self, reader: &mut Reader, place: usize, only: Option<&str>, line: &[u8]) {
        let Reader { tagged, tail, .. } = reader;
        let mut text = line;
        if tagged.is_none()
            && let Some((id, rest)) = self.tag_of(line)
        {
            (*tagged, text) = (Some(id.to_owned()), rest);
        }
        let text = String::from_utf8_lossy(text);
        let id = tagged.as_deref().or(only);
        self.log.line(LogLine::new(&self.function, id, STREAMS[place], &text));
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(text.chars().take(500).collect());
    }

    /// Whose a line says that it is, and the rest of it.
    fn tag_of<'a>(&self, line: &'a [u8]) -> Option<(&'a str, &'a [u8])> {
        let rest = line.strip_prefix(&[TAG])?;
        let end = rest.iter().take(RequestId::LONGEST + 1).position(|byte| *byte == TAG_END)?;
        let id = std::str::from_utf8(&rest[..end]).ok().filter(|id| self.running.has(id))?;
        Some((id, &rest[end + 1..]))
    }
}

/// The length in the head of a frame.
fn length_of(head: &[u8]) -> Option<usize> {
    let digits = std::str::from_utf8(&head[1..]).ok()?;
    digits.parse().ok().filter(|length| (1..=FRAME_LIMIT).contains(length))
}

/// The last place in the limit that is not inside a UTF-8 character.
fn split_at(line: &[u8]) -> usize {
    let inside = |place: &usize| line[*place] & 0xc0 == 0x80;
    (LINE_LIMIT - 3..=LINE_LIMIT).rev().find(|place| !inside(place)).unwrap_or(LINE_LIMIT)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{PipeWriter, Write};

    use super::*;

    #[derive(Debug, Default)]
    pub(crate) struct Lines(Mutex<Vec<(Option<String>, LogStream, String)>>);

    impl Lines {
        /// What has been logged: request id, stream and text.
        pub(crate) fn all(&self) -> Vec<(Option<String>, LogStream, String)> {
            self.0.lock().clone()
        }
    }

    impl LogSink for Lines {
        fn line(&self, line: LogLine<'_>) {
            let id = line.request_id.map(str::to_owned);
            self.0.lock().push((id, line.stream, line.text.to_owned()));
        }
    }

    fn setup() -> (Arc<Lines>, Running, PipeWriter, PipeWriter, FunctionOutput) {
        let lines = Arc::new(Lines::default());
        let log: Arc<dyn LogSink> = Arc::<Lines>::clone(&lines);
        let running = Running::default();
        let (out, out_writer) = io::pipe().unwrap();
        let (err, err_writer) = io::pipe().unwrap();
        let name = "f".parse().unwrap();
        let output = FunctionOutput::new(out.into(), err.into(), &name, &log, &running).unwrap();
        (lines, running, out_writer, err_writer, output)
    }

    #[tokio::test]
    async fn lines_carry_the_only_invocation_and_no_other() {
        let (lines, running, mut out, mut err, output) = setup();
        let [one, two] = ["one", "two"].map(|id| id.parse::<RequestId>().unwrap());
        out.write_all(b"before\n").unwrap();
        output.settle();
        running.add(&one);
        out.write_all(b"a\nno end").unwrap();
        err.write_all(b"bad \xff byte\n").unwrap();
        output.settle();
        running.add(&two);
        out.write_all(b"both\n").unwrap();
        output.settle();
        running.remove(&one);
        out.write_all(b"\n").unwrap();
        output.settle();
        let expected = [
            (None, LogStream::Stdout, "before"),
            (Some("one"), LogStream::Stdout, "a"),
            (Some("one"), LogStream::Stdout, "no end"),
            (Some("one"), LogStream::Stderr, "bad \u{fffd} byte"),
            (None, LogStream::Stdout, "both"),
            (Some("two"), LogStream::Stdout, ""),
        ];
        let lines = lines.0.lock();
        let lines: Vec<_> =
            lines.iter().map(|(id, s, text)| (id.as_deref(), *s, &**text)).collect();
        assert_eq!(lines, expected);
        assert_eq!(output.last_words(), "bad \u{fffd} byte");
    }

    #[tokio::test]
    async fn a_line_may_say_whose_it_is() {
        let (lines, running, mut out, mut err, output) = setup();
        let [one, two] = ["one", "two"].map(|id| id.parse::<RequestId>().unwrap());
        running.add(&one);
        running.add(&two);
        let long = "x".repeat(LINE_LIMIT + 10);
        out.write_all(b"\x1etwo\x1fhis\n\x1eone\x1f\nnobody's\n\x1ethree\x1ftext\n\x1eone")
            .unwrap();
        output.settle();
        let writer = std::thread::spawn(move || {
            writeln!(err, "\x1eone\x1f{long}\nplain").unwrap();
            err
        });
        while !writer.is_finished() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        output.settle();
        let lines = lines.0.lock();
        let mut told: Vec<_> =
            lines.iter().map(|(id, _, text)| (id.as_deref(), text.len())).collect();
        assert_eq!(
            told.split_off(5),
            [(Some("one"), LINE_LIMIT - 5), (Some("one"), 15), (None, 5)]
        );
        let texts: Vec<_> =
            lines.iter().take(5).map(|line| (line.0.as_deref(), &*line.2)).collect();
        assert_eq!(
            texts,
            [
                (Some("two"), "his"),
                (Some("one"), ""),
                (None, "nobody's"),
                (None, "\u{1e}three\u{1f}text"),
                (None, "\u{1e}one"),
            ]
        );
    }

    #[tokio::test]
    async fn one_pipe_carries_both_streams_in_their_order() {
        let (lines, running, mut out, mut err, output) = setup();
        let [one, two] = ["one", "two"].map(|id| id.parse::<RequestId>().unwrap());
        running.add(&one);
        running.add(&two);
        out.write_all(b"a\nhalf, \x1d4\x1ferr\nand half\n\x1d9\x1f\x1etwo\x1fhis\n").unwrap();
        out.write_all(b"\x1d2\x1fno\x1d5\x1f end\n\x1dtext\n\x1d0\x1f\n\x1d4001\x1f\n").unwrap();
        out.write_all(b"\x1d12345\n\x1d1").unwrap();
        output.settle();
        // Of the other pipe, nothing is the first one's head.
        err.write_all(b"2\x1f!\n").unwrap();
        output.settle();
        // In parts, and when the other pipe has ended.
        drop(err);
        for part in ["\x1d3", "\x1f", "e", "nd"] {
            out.write_all(part.as_bytes()).unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        drop(out);
        while lines.0.lock().len() < 12 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let lines = lines.0.lock();
        let told: Vec<_> =
            lines.iter().map(|(id, stream, text)| (id.as_deref(), *stream, &**text)).collect();
        let expected = [
            (None, LogStream::Stdout, "a"),
            (None, LogStream::Stderr, "err"),
            (None, LogStream::Stdout, "half, and half"),
            (Some("two"), LogStream::Stderr, "his"),
            (None, LogStream::Stderr, "no end"),
            (None, LogStream::Stdout, "\u{1d}text"),
            (None, LogStream::Stdout, "\u{1d}0\u{1f}"),
            (None, LogStream::Stdout, "\u{1d}4001\u{1f}"),
            (None, LogStream::Stdout, "\u{1d}12345"),
            (None, LogStream::Stdout, "\u{1d}1"),
            (None, LogStream::Stderr, "2\u{1f}!"),
            (None, LogStream::Stderr, "end"),
        ];
        assert_eq!(told, expected);
    }

    #[tokio::test]
    async fn the_end_of_one_call_does_not_cut_another_s_line() {
        let (lines, running, mut out, _err, output) = setup();
        let [one, two] = ["one", "two"].map(|id| id.parse::<RequestId>().unwrap());
        running.add(&one);
        running.add(&two);
        out.write_all(b"\x1etwo\x1fits first half, ").unwrap();
        output.settle();
        running.remove(&one);
        running.add(&one);
        out.write_all(b"and its second\n\x1etwo\x1fno end").unwrap();
        output.settle();
        running.remove(&one);
        output.settle();
        let lines = lines.0.lock();
        let told: Vec<_> = lines.iter().map(|(id, _, text)| (id.as_deref(), &**text)).collect();
        assert_eq!(
            told,
            [(Some("two"), "its first half, and its second"), (Some("two"), "no end")]
        );
    }

    #[tokio::test]
    async fn long_lines_are_split_between_characters_and_everything_is_read() {
        let (lines, _, mut out, err, output) = setup();
        let text = "é".repeat(200_000);
        let expected = text.clone();
        let writer = std::thread::spawn(move || {
            writeln!(out, "x{text}").unwrap();
            drop(err);
        });
        while !writer.is_finished() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        output.settle();
        let lines = lines.0.lock();
        let all: String = lines.iter().map(|(.., text)| &**text).collect();
        assert_eq!(all, format!("x{expected}"));
        assert_eq!(lines.len(), 400_001 / LINE_LIMIT + 1);
    }
}
