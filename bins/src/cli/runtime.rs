//! The async runtime of commands that wait for something.

use crate::error::{CliError, Result};

/// Runs a command's future.
pub(super) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CliError::new(format!("cannot start: {error}")))?;
    runtime.block_on(future)
}
