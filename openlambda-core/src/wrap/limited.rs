//! Operations of which only a limited number run at once.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::disturbance::{Disturbance, Operation, Permit, Trouble};

/// Lets at most a given number of operations run at once, of all kinds together.
#[derive(Debug)]
pub struct Limited {
    at_once: usize,
    waits: bool,
    places: Arc<Semaphore>,
}

impl Limited {
    /// More than `at_once` wait for their turn, in order.
    pub fn waiting(at_once: usize) -> Self {
        let at_once = at_once.min(Semaphore::MAX_PERMITS);
        Limited { at_once, waits: true, places: Arc::new(Semaphore::new(at_once)) }
    }

    /// More than `at_once` fail.
    pub fn refusing(at_once: usize) -> Self {
        Limited { waits: false, ..Limited::waiting(at_once) }
    }
}

#[async_trait]
impl Disturbance for Limited {
    async fn before(&self, operation: Operation) -> Result<Permit, Trouble> {
        let places = Arc::clone(&self.places);
        let place = match self.waits {
            true => places.acquire_owned().await.ok(),
            false => places.try_acquire_owned().ok(),
        };
        match place {
            Some(place) => Ok(Permit::with(place)),
            None => Err(Trouble::Full { operation, at_once: self.at_once }),
        }
    }
}
