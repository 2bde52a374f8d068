//! Records a worker's inputs in a file, and replays them through a core.
//!
//! A live worker writes each input of its [core](super) with the time, one JSON object a line (see
//! [`WorkerConfig::inputs`](crate::worker::WorkerConfig)); [`replay`] feeds them to a core of the same
//! configuration. Since the core makes every decision and uses neither a clock nor randomness, the replay
//! gives the same records, byte for byte. So you can examine afterwards what a worker did, and try
//! another configuration on it.
//!
//! ```text
//! {"v": 1, "worker": "w1", "core": {…}, "keep_alive": "ttl,seconds=600", "queue": "fifo"}
//! {"at": 1201, "request": "0123…", "input": {"called": {"function": "f", "digest": "sha256:…"}}}
//! {"at": 1305, "input": {"fetched": {"digest": "sha256:…", "bytes": 812, "manifest": {…}}}}
//! ```

use std::io::{self, BufRead, Write};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{CoreConfig, Input, Output, WorkerCore};
use crate::arena::Owned;
use crate::catalog::Choice;
use crate::config::ConfigError;
use crate::format::{FormatNumber, RELEASE};
use crate::invocation::{InvocationRecord, RequestId};
use crate::json_lines;
use crate::keep_alive::{KeepAliveCatalog, or_ttl};
use crate::queue::QueueCatalog;
use crate::time::Time;

/// The first line: what makes a core like the worker's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The format of the recording, of all its lines. The first key, so that a later one is refused for
    /// that and not for a key that is not known here.
    #[serde(default)]
    pub v: FormatNumber<1>,
    /// The worker's name.
    pub worker: String,
    /// Its core's configuration.
    pub core: CoreConfig,
    /// Its keep-alive policy: the text of its [`Maker`](crate::catalog::Maker).
    pub keep_alive: String,
    /// The time of the policy `ttl`, unless that says so itself. Workers that tell the whole policy by
    /// its text leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
    /// Its queue policy, as a [`QueueCatalog`] knows it.
    pub queue: String,
}

impl Header {
    /// A core as the worker's was when it began, with the policies of these catalogues.
    ///
    /// # Errors
    ///
    /// [`ReplayError`]: a policy that is not known there.
    pub fn core(
        &self,
        keep_alive: &KeepAliveCatalog,
        queues: &QueueCatalog,
    ) -> Result<WorkerCore, ReplayError> {
        let mut choice: Choice = self.keep_alive.parse()?;
        if let Some(ttl) = self.ttl {
            choice = or_ttl(choice, ttl);
        }
        let keep_alive = keep_alive.build(&choice)?;
        let queue = queues.build(&self.queue.parse()?)?;
        Ok(WorkerCore::new(self.core.clone(), queue, keep_alive))
    }
}

#[derive(Serialize)]
struct Written<'a> {
    at: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<&'a RequestId>,
    input: &'a Input<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read<'a> {
    at: Time,
    #[serde(default)]
    request: Option<RequestId>,
    #[serde(borrow)]
    input: Input<'a>,
}

/// Writes inputs. The first error ends the recording; who writes learns of it once.
#[derive(Debug)]
pub struct Recording<W> {
    to: Option<W>,
}

impl<W: Write> Recording<W> {
    /// Begins with the header.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn start(mut to: W, header: &Header) -> io::Result<Self> {
        json_lines::write(&mut to, header)?;
        Ok(Recording { to: Some(to) })
    }

    /// Writes an input, of a call with its request's id.
    ///
    /// # Errors
    ///
    /// The recording ends here.
    pub fn input(
        &mut self,
        at: Time,
        input: &Input<'_>,
        request: Option<&RequestId>,
    ) -> io::Result<()> {
        let Some(to) = &mut self.to else { return Ok(()) };
        json_lines::write(to, &Written { at, request, input }).inspect_err(|_| self.to = None)
    }

    /// Sees that what was written is in the file.
    ///
    /// # Errors
    ///
    /// The recording ends here.
    pub fn flush(&mut self) -> io::Result<()> {
        self.to.as_mut().map_or(Ok(()), Write::flush)
    }
}

/// Why a recording cannot be played.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// It cannot be read.
    #[error("cannot read the recording")]
    Io(#[from] io::Error),
    /// A later release wrote it.
    #[error(
        "the recording has format {found}, of a later release; this is release {RELEASE}, which reads \
         format 1: play it with the release that wrote it, or a later one"
    )]
    Later {
        /// Its format.
        found: u32,
    },
    /// A line is not one of a recording.
    #[error("line {number} is not of a recording; name a file that `ol-worker --inputs` wrote")]
    Line {
        /// Which, from 1.
        number: u64,
        /// Why.
        source: serde_json::Error,
    },
    /// The worker had a keep-alive policy that is not known here.
    #[error(transparent)]
    KeepAlive(#[from] ConfigError),
}

/// The first line.
fn header(text: &str) -> Result<Header, ReplayError> {
    #[derive(Deserialize)]
    struct Begins {
        v: u32,
    }
    serde_json::from_str(text).map_err(|source| match serde_json::from_str(text) {
        Ok(Begins { v }) if v > 1 => ReplayError::Later { found: v },
        _ => ReplayError::Line { number: 1, source },
    })
}

/// Plays a recording into a core, whose policies are looked up in the catalogues; `record` sees each call
/// when it is over. A last line that is not whole, because its worker was killed, is left out.
///
/// # Errors
///
/// [`ReplayError`].
pub fn replay(
    mut recording: impl BufRead,
    keep_alive: &KeepAliveCatalog,
    queues: &QueueCatalog,
    mut record: impl FnMut(InvocationRecord),
) -> Result<(), ReplayError> {
    let mut text = String::new();
    recording.read_line(&mut text)?;
    let header = header(&text)?;
    let mut core = header.core(keep_alive, queues)?;
    let mut requests = Owned::default();
    for number in 2.. {
        text.clear();
        if recording.read_line(&mut text)? == 0 || !text.ends_with('\n') {
            break;
        }
        let Read { at, request, input } =
            serde_json::from_str(&text).map_err(|source| ReplayError::Line { number, source })?;
        match (input, request) {
            (Input::Called(call), Some(request)) => {
                requests.insert(core.call(at, call).invocation.0, request);
            }
            (input, _) => core.handle(at, input),
        }
        while let Some(output) = core.poll_output() {
            if let Output::Record(over) = output
                && let Some(request) = requests.remove(over.invocation.0)
            {
                record(core.named(&over, request, &header.worker));
            }
        }
    }
    Ok(())
}
