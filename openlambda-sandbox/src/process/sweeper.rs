//! Kills the marked descendants of ended instances, many instances in one pass.
//!
//! A pass reads all of `/proc`, so instances that end while one is under way share the next.

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::sys::kill_all_marked;

#[derive(Debug, Default)]
pub(super) struct Sweeper {
    waiting: Mutex<Vec<(String, oneshot::Sender<()>)>>,
    turn: tokio::sync::Mutex<()>,
}

impl Sweeper {
    /// Resolves when no process carries `mark` any more.
    pub(super) async fn kill(&self, mark: String) {
        let (done, killed) = oneshot::channel();
        self.waiting.lock().push((mark, done));
        {
            let _turn = self.turn.lock().await;
            let batch = {
                let mut waiting = self.waiting.lock();
                std::mem::take(&mut *waiting)
            };
            // Empty when whoever had the turn before took ours along.
            if !batch.is_empty() {
                let pass = tokio::task::spawn_blocking(move || {
                    let marks: Vec<&str> = batch.iter().map(|(mark, _)| &**mark).collect();
                    kill_all_marked(&marks);
                    for (_, done) in batch {
                        let _ = done.send(());
                    }
                });
                let _ = pass.await;
            }
        }
        let _ = killed.await;
    }
}
