//! The turns of an ordinary user, in a separate process.

use std::sync::Arc;

use openlambda_core::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::error::{Context, Result};
use super::kinds::Kinds;
use super::lab::Lab;
use super::rootless::{Ready, Request};
use super::side::Side;

/// What the child process of `rootless` does: takes the turns that it is asked for on standard input, until
/// that ends, and answers each with a line.
///
/// # Errors
///
/// `sock` does not work for this user, or a turn failed.
pub async fn turns(
    function: &str,
    kinds: &dyn Kinds,
    answer: impl Fn(&serde_json::Value),
) -> Result<()> {
    let lab = Arc::new(Lab::new(function)?);
    let side = Side::named(&lab, kinds, "sock", function, &[]).await?;
    answer(&serde_json::json!(Ready { isolation: side.isolation.clone() }));
    let mut requests = BufReader::new(tokio::io::stdin()).lines();
    let served: Result<()> = async {
        while let Some(line) = requests.next_line().await.context(|| "no request".to_owned())? {
            let request: Request = serde_json::from_str(&line)
                .context(|| "the requests are those of ol bench start; run that".to_owned())?;
            let time = Duration::from_millis(request.ms);
            let turn = side.turn(&lab, request.concurrency, time).await?;
            answer(&serde_json::json!(turn));
        }
        Ok(())
    }
    .await;
    side.end().await;
    served
}
