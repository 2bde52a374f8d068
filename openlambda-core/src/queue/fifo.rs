//! First in, first out.

use super::{Arrival, QueuePolicy};
use crate::time::Time;

/// Serves calls in the order of their arrival: all ranks are alike.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fifo;

impl QueuePolicy for Fifo {
    fn rank(&mut self, _: &Arrival, _: Time) -> u64 {
        0
    }
}
