//! One turn of one side: starts one after another, for a given time.

use std::sync::Arc;

use openlambda_core::time::{Duration, Time};
use serde::{Deserialize, Serialize};

use super::error::{Context, LiveError, Result};
use super::figures::ms;
use super::lab::Lab;

/// One turn: how long each start took, and how many there were in a second.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Turn {
    pub(super) times_ms: Vec<f64>,
    pub(super) per_second: f64,
}

/// Runs lanes beside each other, each one start after another until the time is over. The lanes come back.
pub(super) async fn lanes_for<L, F>(
    lab: &Arc<Lab>,
    time: Duration,
    lanes: impl IntoIterator<Item = L>,
    one: impl Fn(Arc<Lab>, L) -> F + Clone + Send + 'static,
) -> Result<(Turn, Vec<L>)>
where
    L: Send + 'static,
    F: Future<Output = Result<L>> + Send + 'static,
{
    let begin = lab.now();
    let end = begin + time;
    let mut tasks = Vec::new();
    for mut lane in lanes {
        let (lab, one) = (Arc::clone(lab), one.clone());
        tasks.push(tokio::spawn(async move {
            let mut times: Vec<(Time, f64)> = Vec::new();
            loop {
                let begin = lab.now();
                lane = one(Arc::clone(&lab), lane).await?;
                let now = lab.now();
                times.push((now, ms(now.since(begin))));
                if now >= end {
                    return Ok::<_, LiveError>((times, lane));
                }
            }
        }));
    }
    let mut turn = Turn::default();
    let mut last = begin;
    let mut lanes: Vec<L> = Vec::new();
    for task in tasks {
        let (times, lane) = task.await.context(|| "a task of the bench failed".to_owned())??;
        last = times.last().map_or(last, |(at, _)| last.max(*at));
        turn.times_ms.extend(times.into_iter().map(|(_, time)| time));
        lanes.push(lane);
    }
    turn.per_second = turn.times_ms.len() as f64 / last.since(begin).as_secs_f64();
    Ok((turn, lanes))
}
