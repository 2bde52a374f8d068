//! `fifo`: first in, first out.

use super::{Arrival, QueueEntry, QueuePolicy};
use crate::time::Time;

/// Serves calls in the order of their arrival: all ranks are alike.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fifo;

impl QueuePolicy for Fifo {
    fn orders(&self) -> bool {
        false
    }

    fn rank(&mut self, _: &Arrival, _: Time) -> u64 {
        0
    }
}

/// Its line in the catalogue.
pub(super) fn entry() -> QueueEntry {
    let source = "the textbook";
    QueueEntry::new("fifo", "the call that came first", source, || Box::new(Fifo))
}
