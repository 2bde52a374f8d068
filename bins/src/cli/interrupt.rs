//! Ctrl-C, where a command has something to bring to an end first: [`Interrupts`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use super::block_on;
use crate::error::{CliError, Context, Result};

/// The status of a program that Ctrl-C has ended.
const INTERRUPTED: i32 = 130;

/// Ends the process at Ctrl-C, but for the times when somebody else [sees to it](Self::during).
#[derive(Debug, Default)]
pub(super) struct Interrupts {
    asked: AtomicBool,
    /// There is somebody who is told.
    held: AtomicBool,
    told: Notify,
}

impl Interrupts {
    /// Listens from now on, for as long as the process lives.
    pub(super) fn listen() -> Arc<Interrupts> {
        let interrupts = Arc::<Interrupts>::default();
        let own = Arc::clone(&interrupts);
        // What the signal does by itself is gone for good once somebody has listened to it.
        std::thread::spawn(move || {
            let end = block_on::<()>(async {
                loop {
                    tokio::signal::ctrl_c()
                        .await
                        .context(|| "cannot listen to signals".to_owned())?;
                    own.asked.store(true, Ordering::SeqCst);
                    if !own.held.load(Ordering::SeqCst) {
                        return Err(CliError::new(""));
                    }
                    own.told.notify_one();
                }
            });
            if end.is_err() {
                std::process::exit(INTERRUPTED);
            }
        });
        interrupts
    }

    /// Whether somebody has pressed it.
    pub(super) fn asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// Runs this; meanwhile, `pressed` says at each Ctrl-C whether that ends it. When it is done, Ctrl-C ends
    /// nothing until [`release`](Self::release): what came of it is to be said first.
    pub(super) async fn during<T>(
        &self,
        work: impl Future<Output = T>,
        mut pressed: impl FnMut() -> Result<()>,
    ) -> Result<T> {
        self.held.store(true, Ordering::SeqCst);
        tokio::pin!(work);
        let done = loop {
            tokio::select! {
                done = &mut work => break Ok(done),
                () = self.told.notified() => if let Err(end) = pressed() {
                    break Err(end);
                },
            }
        };
        if done.is_err() {
            self.release();
        }
        done
    }

    /// From now on Ctrl-C ends the process again.
    pub(super) fn release(&self) {
        self.held.store(false, Ordering::SeqCst);
    }
}
