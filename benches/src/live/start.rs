//! Create → first answer of a function that does nothing → destroy, for several kinds side by side.

use std::collections::BTreeMap;
use std::sync::Arc;

use openlambda_core::time::Duration;
use serde::Serialize;

use super::error::{Context, Result};
use super::figures::{median, quantile, spread};
use super::kinds::Kinds;
use super::lab::Lab;
use super::side::Side;
use super::turn::Turn;

/// What is started, how often and beside what.
#[derive(Clone, Debug)]
pub struct StartConfig {
    /// The kind of sandbox.
    pub sandbox: String,
    /// Kinds to compare with; or `runc` (the program, on the same function), `minimal` (a program that makes
    /// the same system calls as `sock` and nothing else), `rootless` (`sock` as an ordinary user, from root).
    pub against: Vec<String>,
    /// Compare with the same kind while this many paused instances are alive.
    pub paused: Option<usize>,
    /// How many at once, one series of turns each.
    pub concurrency: Vec<usize>,
    /// What starts: `noop` (a static program) or `python` (a file that returns its event).
    pub function: String,
    /// Rounds in which the kinds take turns.
    pub rounds: u32,
    /// How long each turn lasts.
    pub time: Duration,
    /// With which arguments, before the function's, this very program runs [`turns`](super::turns), for
    /// `rootless`.
    pub turns: Vec<String>,
}

/// What starts took.
#[derive(Clone, Debug, Serialize)]
pub struct Starts {
    /// Each kind at each concurrency.
    pub rows: Vec<StartRow>,
    /// The first kind beside each of the others.
    pub ratios: Vec<StartRatio>,
}

/// One kind at one concurrency.
#[derive(Clone, Debug, Serialize)]
pub struct StartRow {
    /// Its name.
    pub sandbox: String,
    /// What it keeps a function from, and how.
    pub isolation: String,
    /// How many started at once.
    pub concurrency: usize,
    /// How many there were.
    pub starts: usize,
    /// Their median, milliseconds.
    pub p50_ms: f64,
    /// Their 99th percentile, milliseconds.
    pub p99_ms: f64,
    /// How many there were in a second: the median of the rounds.
    pub per_second: f64,
}

/// How many times faster one kind is than another.
#[derive(Clone, Debug, Serialize)]
pub struct StartRatio {
    /// This one is that many times faster
    pub of: String,
    /// than this one.
    pub against: String,
    /// How many started at once.
    pub concurrency: usize,
    /// At the median.
    pub p50: f64,
    /// The lowest and the highest of the rounds' ratios.
    pub p50_spread: [f64; 2],
    /// At the 99th percentile.
    pub p99: f64,
    /// The lowest and the highest of the rounds' ratios.
    pub p99_spread: [f64; 2],
    /// Of starts in a second.
    pub throughput: f64,
    /// Those of throughput.
    pub spread: [f64; 2],
}

/// The turns of each side, by its place, at each concurrency.
type Turns = BTreeMap<(usize, usize), Vec<Turn>>;

/// Measures starts.
///
/// # Errors
///
/// [`LiveError`](super::LiveError): a kind is not available, or a start failed.
pub async fn starts(config: &StartConfig, kinds: &dyn Kinds) -> Result<Starts> {
    let lab = Arc::new(Lab::new(&config.function)?);
    let mut sides = Vec::new();
    let measured = measure(config, kinds, &lab, &mut sides).await;
    let names: Vec<_> =
        sides.iter().map(|side| (side.name.clone(), side.isolation.clone())).collect();
    for side in sides {
        side.end().await;
    }
    let turns = measured?;
    Ok(summarize(config, &names, &turns))
}

async fn measure(
    config: &StartConfig,
    kinds: &dyn Kinds,
    lab: &Arc<Lab>,
    sides: &mut Vec<Side>,
) -> Result<Turns> {
    for name in std::iter::once(&config.sandbox).chain(&config.against) {
        let side = Side::named(lab, kinds, name, &config.function, &config.turns).await;
        sides.push(side.context(|| format!("{name} cannot be measured"))?);
    }
    if let Some(paused) = config.paused {
        sides.push(Side::paused(lab, kinds, &config.sandbox, paused).await?);
    }
    for side in &*sides {
        // What is made once is no part of a start.
        let warm = side.turn(lab, 2, Duration::from_millis(500)).await;
        warm.context(|| side.name.clone())?;
    }
    let mut turns = Turns::new();
    let all = u64::from(config.rounds) * (config.concurrency.len() * sides.len()) as u64;
    let mut done = 0;
    for _ in 0..config.rounds {
        for &concurrency in &config.concurrency {
            for (n, side) in sides.iter().enumerate() {
                let turn = side.turn(lab, concurrency, config.time).await;
                let turn = turn.context(|| format!("{} at {concurrency}", side.name))?;
                turns.entry((n, concurrency)).or_default().push(turn);
                done += 1;
                kinds.is_over(done, all);
            }
        }
    }
    Ok(turns)
}

fn summarize(config: &StartConfig, sides: &[(String, String)], turns: &Turns) -> Starts {
    let (mut rows, mut ratios) = (Vec::new(), Vec::new());
    for &concurrency in &config.concurrency {
        for (n, (name, isolation)) in sides.iter().enumerate() {
            let turns_of = &turns[&(n, concurrency)];
            let times: Vec<f64> = turns_of.iter().flat_map(|turn| turn.times_ms.clone()).collect();
            rows.push(StartRow {
                sandbox: name.clone(),
                isolation: isolation.clone(),
                concurrency,
                starts: times.len(),
                p50_ms: median(times.clone()),
                p99_ms: quantile(times, 0.99),
                per_second: median(turns_of.iter().map(|turn| turn.per_second).collect()),
            });
            if n == 0 {
                continue;
            }
            let pairs = || turns[&(0, concurrency)].iter().zip(turns_of);
            let at = |share: f64| -> Vec<f64> {
                let of = |turn: &Turn| quantile(turn.times_ms.clone(), share);
                pairs().map(|(first, other)| of(other) / of(first)).collect()
            };
            let throughput: Vec<f64> = pairs().map(|(a, b)| a.per_second / b.per_second).collect();
            ratios.push(StartRatio {
                of: sides[0].0.clone(),
                against: name.clone(),
                concurrency,
                p50: median(at(0.5)),
                p50_spread: spread(at(0.5)),
                p99: median(at(0.99)),
                p99_spread: spread(at(0.99)),
                spread: spread(throughput.clone()),
                throughput: median(throughput),
            });
        }
    }
    Starts { rows, ratios }
}
