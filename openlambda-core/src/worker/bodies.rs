//! Bodies of requests, read whole and within a budget: [`Bodies`].
//!
//! A call's body is in memory before the call takes a slot, and for as long as the call waits. So all bodies
//! of a worker together have a [`Budget`], which is asked *before* a body is read: for its declared
//! length, or, where none is declared, piece by piece. What is over it gets 429. A body is one piece of
//! memory of its own size, and gives its bytes back to the budget when that is freed.
//!
//! A small body takes no more than its connection's own buffers do, which the number of connections
//! bounds: it is not counted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use parking_lot::Mutex;

use super::budget::{Budget, Full};
use crate::allow::Allow;
use crate::failure::{Failure, FailureKind};
use crate::function::FunctionName;
use crate::serving::SteadyBody;
use crate::time::{Clock, SystemClock};
use crate::wire;

/// A body of at most this many bytes is not counted.
const SMALL: u64 = 4 << 10;

/// What a body of unknown length takes ahead, bytes.
const STEP: usize = 64 << 10;

/// Bytes a second that the sender of a counted body has to send: one that sends a byte now and then would
/// keep others' room. A slow line is as fast.
const RATE: u64 = 1 << 10;

/// How much time is left for the next piece of a body of which so much has come in this time.
fn time_left(patience: Duration, bytes: u64, passed: Duration) -> Duration {
    let due = patience.saturating_add(Duration::from_secs_f64(bytes as f64 / RATE as f64));
    due.saturating_sub(passed).min(patience)
}

/// Why a sender has no time any more, of whose body so much came in, and then nothing while it had this left.
fn late(patience: Duration, came: u64, left: Duration) -> String {
    // A sender that has sent nothing has had all of its patience, but for the moment before the first wait.
    if came == 0 || left == patience {
        return format!("the body broke off: nothing came for {patience:?}");
    }
    format!("the body comes too slowly: {came} bytes so far; send it faster")
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Bodies {
    budget: Arc<Mutex<Budget>>,
    total: u64,
    /// The largest body, bytes.
    limit: u64,
    /// How long the sender of a body that is counted may send nothing; and by how much all of it may be late.
    patience: Duration,
}

impl Bodies {
    pub(super) fn new(total: u64, limit: u64, patience: Duration) -> Self {
        Bodies { budget: Arc::new(Mutex::new(Budget::new(total))), total, limit, patience }
    }

    /// What the budget has given out, bytes.
    pub(super) fn held(&self) -> u64 {
        self.budget.lock().used()
    }

    /// All of the body of a call of this function. `asks_first`: its sender waits until it is told to go on
    /// (`Expect: 100-continue`), which the first look at the body does.
    ///
    /// # Errors
    ///
    /// [`FailureKind::QueueFull`] when the budget has no room for it, [`FailureKind::BodyTooLarge`], or
    /// that it broke off.
    pub(super) async fn read(
        &self,
        body: Incoming,
        asks_first: bool,
        function: &FunctionName,
        allow: &Allow,
    ) -> Result<Bytes, Failure> {
        let declared = body.size_hint().exact();
        let body = SteadyBody::new(body);
        if declared.is_some_and(|length| length <= SMALL.min(self.limit)) {
            let whole = Limited::new(body, SMALL as usize).collect().await;
            return whole.map(|body| body.to_bytes()).map_err(|error| self.broken(&*error));
        }
        let mut body = body;
        let bound = allow.waiting_bytes(function.namespace());
        let held = self.place_for(declared, function, bound);
        // Who has not been told to go on has sent nothing that would be in the way of the answer.
        let sends = held.is_ok() || !asks_first;
        let read = match held {
            Ok(held) => self.read_counted(&mut body, held, bound).await,
            Err(failure) => Err(failure),
        };
        if read.is_err() && sends && !body.is_end_stream() {
            tokio::spawn(pass_over(body, self.limit, self.patience));
        }
        read
    }

    /// Takes what a body declares that it is long from the budget, before any of it is read.
    fn place_for(
        &self,
        declared: Option<u64>,
        function: &FunctionName,
        bound: Option<u64>,
    ) -> Result<Held, Failure> {
        let mut held = Held {
            budget: Arc::clone(&self.budget),
            function: function.clone(),
            taken: 0,
            bytes: Vec::new(),
        };
        if let Some(declared) = declared {
            let length = usize::try_from(declared).ok().filter(|_| declared <= self.limit);
            let length = length.ok_or_else(|| wire::body_too_large(self.limit))?;
            held.take(length, bound).map_err(|full| self.full(function.namespace(), full))?;
        }
        Ok(held)
    }

    async fn read_counted(
        &self,
        body: &mut SteadyBody<Incoming>,
        mut held: Held,
        bound: Option<u64>,
    ) -> Result<Bytes, Failure> {
        let clock = SystemClock::new();
        let began = clock.now();
        loop {
            let came = held.bytes.len() as u64;
            let left = time_left(self.patience, came, clock.now().since(began));
            let frame = tokio::time::timeout(left, body.frame()).await.map_err(|_| {
                Failure::new(FailureKind::BadRequest, late(self.patience, came, left))
            })?;
            let Some(frame) = frame.transpose().map_err(|error| self.broken(&error))? else {
                break;
            };
            // Trailers say nothing to a function.
            let Ok(data) = frame.into_data() else { continue };
            let length = (held.bytes.len() + data.len()) as u64;
            if length > self.limit {
                return Err(wire::body_too_large(self.limit));
            }
            if let Some(needed @ 1..) = length.checked_sub(held.taken) {
                // Ahead, if there is room; what is needed suffices.
                let ahead = held.take(STEP.max(needed as usize), bound);
                let taken = ahead.or_else(|_| held.take(needed as usize, bound));
                taken.map_err(|full| self.full(held.function.namespace(), full))?;
            }
            held.bytes.extend_from_slice(&data);
        }
        held.settle();
        Ok(Bytes::from_owner(held))
    }

    fn broken(&self, error: &(dyn std::error::Error + 'static)) -> Failure {
        if error.is::<LengthLimitError>() {
            return wire::body_too_large(self.limit);
        }
        Failure::new(FailureKind::BadRequest, format!("the body broke off: {error}"))
    }

    fn full(&self, namespace: &str, full: Full) -> Failure {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let message = match full {
            Full::Bound(bound) => format!(
                "the bodies of the calls of {namespace} that wait here would be over {} MiB, which is \
                 what the operator allows it (waiting_mb in [allow]); try again later",
                mib(bound)
            ),
            Full::Shared(used) => format!(
                "{:.1} of {} MiB for the bodies of waiting calls are taken here, and no more is left \
                 for {namespace}; try again later, or give the worker more (body_memory_mb)",
                mib(used),
                mib(self.total)
            ),
        };
        Failure::new(FailureKind::QueueFull, message)
    }
}

/// Reads the rest of a body that is refused, and keeps nothing of it: its sender is told meanwhile. If the
/// connection were closed at once, most would find it broken while they write, and never read why.
async fn pass_over(mut body: SteadyBody<Incoming>, most: u64, patience: Duration) {
    let clock = SystemClock::new();
    let (began, mut passed) = (clock.now(), 0);
    loop {
        let left = time_left(patience, passed, clock.now().since(began));
        let Ok(Some(Ok(frame))) = tokio::time::timeout(left, body.frame()).await else { return };
        passed += frame.data_ref().map_or(0, |data| data.len() as u64);
        if passed > most {
            return;
        }
    }
}

/// A body that is counted, until it is freed.
#[derive(Debug)]
struct Held {
    budget: Arc<Mutex<Budget>>,
    function: FunctionName,
    taken: u64,
    bytes: Vec<u8>,
}

impl Held {
    /// Room for this many more bytes.
    fn take(&mut self, more: usize, bound: Option<u64>) -> Result<(), Full> {
        self.budget.lock().take(self.function.namespace(), more as u64, bound)?;
        self.taken += more as u64;
        self.bytes.reserve_exact(self.taken as usize - self.bytes.len());
        Ok(())
    }

    /// It is all there: what was taken ahead is given back.
    fn settle(&mut self) {
        self.bytes.shrink_to_fit();
        let surplus = self.taken - self.bytes.len() as u64;
        if surplus > 0 {
            self.budget.lock().give(self.function.namespace(), surplus);
            self.taken -= surplus;
        }
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Freed before it is given back.
        drop(std::mem::take(&mut self.bytes));
        if self.taken > 0 {
            self.budget.lock().give(self.function.namespace(), self.taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_has_time_as_a_whole_too() {
        let seconds = Duration::from_secs;
        let left = |bytes, passed| time_left(seconds(10), bytes, seconds(passed));
        assert_eq!(left(0, 0), seconds(10));
        assert_eq!(left(0, 9), seconds(1));
        // Who sends a byte now and then.
        assert_eq!(left(5, 11), Duration::ZERO);
        // Who sends steadily, for as long as it takes.
        assert_eq!(left(60 * RATE, 60), seconds(10));
        assert_eq!(left(60 * RATE, 50), seconds(10));
        assert_eq!(left(60 * RATE, 69), seconds(1));
        assert_eq!(left(u64::MAX, 0), seconds(10));
        // Who has all the time there is.
        assert!(time_left(Duration::MAX, 1, seconds(1)) > seconds(1 << 40));
    }

    #[test]
    fn only_who_sends_something_is_told_that_it_is_slow() {
        let seconds = Duration::from_secs;
        let patience = seconds(10);
        // A moment has passed before its first wait.
        let left = patience - Duration::from_micros(3);
        assert_eq!(late(patience, 0, left), "the body broke off: nothing came for 10s");
        assert_eq!(late(patience, 9000, patience), "the body broke off: nothing came for 10s");
        let slow = "the body comes too slowly: 10 bytes so far; send it faster";
        assert_eq!(late(patience, 10, seconds(1)), slow);
    }
}
