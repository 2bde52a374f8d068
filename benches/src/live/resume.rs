//! The time to resume a paused instance and get its answer, beside a call of one that was not paused.

use std::sync::Arc;

use openlambda_core::sandbox::Sandbox;
use openlambda_core::time::Duration;
use serde::Serialize;

use super::error::{Context, Result};
use super::figures::{median, ms, quantile, spread};
use super::kinds::Kinds;
use super::lab::{Kind, Lab};

/// What is paused and resumed.
#[derive(Clone, Debug)]
pub struct ResumeConfig {
    /// The kind of sandbox.
    pub sandbox: String,
    /// Kinds to compare with.
    pub against: Vec<String>,
    /// What is paused: `noop` (a static program) or `python` (a file that returns its event).
    pub function: String,
    /// Rounds in which the kinds take turns.
    pub rounds: u32,
    /// How long each turn lasts.
    pub time: Duration,
}

/// What resumes took.
#[derive(Clone, Debug, Serialize)]
pub struct Resumes {
    /// Each kind.
    pub rows: Vec<ResumeRow>,
    /// The first kind beside each of the others.
    pub ratios: Vec<ResumeRatio>,
}

/// One kind.
#[derive(Clone, Debug, Serialize)]
pub struct ResumeRow {
    /// Its name.
    pub sandbox: String,
    /// What it keeps a function from, and how.
    pub isolation: String,
    /// How many there were.
    pub resumes: usize,
    /// Resume and answer: the median, milliseconds.
    pub p50_ms: f64,
    /// And the 99th percentile.
    pub p99_ms: f64,
    /// The medians of the rounds.
    pub spread: [f64; 2],
    /// The resume alone: the median, milliseconds.
    pub resume_p50_ms: f64,
    /// A call right afterwards: the median, milliseconds.
    pub warm_p50_ms: f64,
}

/// How many times faster one kind is than another.
#[derive(Clone, Debug, Serialize)]
pub struct ResumeRatio {
    /// This one is that many times faster
    pub of: String,
    /// than this one.
    pub against: String,
    /// The median of the rounds' ratios.
    pub p50: f64,
    /// The lowest and the highest of them.
    pub spread: [f64; 2],
}

/// One turn, milliseconds.
#[derive(Debug, Default)]
struct Turn {
    /// Resume and the answer.
    resumed: Vec<f64>,
    /// The resume in it.
    resume: Vec<f64>,
    /// A call right afterwards.
    warm: Vec<f64>,
}

/// Measures resumes.
///
/// # Errors
///
/// [`LiveError`](super::LiveError): a kind is not available, or an instance failed.
pub async fn resumes(config: &ResumeConfig, kinds: &dyn Kinds) -> Result<Resumes> {
    let lab = Lab::new(&config.function)?;
    let mut measured = Vec::new();
    let turns = measure(config, kinds, &lab, &mut measured).await;
    for kind in &measured {
        kind.factory.shutdown().await;
    }
    let turns = turns?;
    let of = |turns: &[Turn], what: fn(&Turn) -> &Vec<f64>| -> Vec<f64> {
        turns.iter().flat_map(|turn| what(turn).clone()).collect()
    };
    let medians = |turns: &[Turn]| -> Vec<f64> {
        turns.iter().map(|turn| median(turn.resumed.clone())).collect()
    };
    let rows: Vec<ResumeRow> = measured
        .iter()
        .zip(&turns)
        .map(|(kind, turns)| ResumeRow {
            sandbox: kind.name.to_owned(),
            isolation: kind.isolation.clone(),
            resumes: of(turns, |turn| &turn.resumed).len(),
            p50_ms: median(of(turns, |turn| &turn.resumed)),
            p99_ms: quantile(of(turns, |turn| &turn.resumed), 0.99),
            spread: spread(medians(turns)),
            resume_p50_ms: median(of(turns, |turn| &turn.resume)),
            warm_p50_ms: median(of(turns, |turn| &turn.warm)),
        })
        .collect();
    let ratios: Vec<ResumeRatio> = measured
        .iter()
        .zip(&turns)
        .skip(1)
        .map(|(kind, other)| {
            let each: Vec<f64> =
                medians(other).iter().zip(medians(&turns[0])).map(|(b, a)| b / a).collect();
            let (of, against) = (measured[0].name.to_owned(), kind.name.to_owned());
            ResumeRatio { of, against, p50: median(each.clone()), spread: spread(each) }
        })
        .collect();
    Ok(Resumes { rows, ratios })
}

/// The turns of each kind.
async fn measure(
    config: &ResumeConfig,
    kinds: &dyn Kinds,
    lab: &Lab,
    measured: &mut Vec<Kind>,
) -> Result<Vec<Vec<Turn>>> {
    let mut instances = Vec::new();
    for name in std::iter::once(&config.sandbox).chain(&config.against) {
        measured.push(lab.kind(kinds, name).await?);
        instances.push(lab.create(&*measured[measured.len() - 1].factory).await?);
    }
    let mut turns: Vec<Vec<Turn>> = measured.iter().map(|_| Vec::new()).collect();
    for instance in &instances {
        turn(lab, instance, Duration::from_millis(100)).await?;
    }
    let all = u64::from(config.rounds) * instances.len() as u64;
    let mut done = 0;
    for _ in 0..config.rounds {
        for (n, instance) in instances.iter().enumerate() {
            let turn = turn(lab, instance, config.time).await;
            turns[n].push(turn.context(|| measured[n].name.to_owned())?);
            done += 1;
            kinds.is_over(done, all);
        }
    }
    Ok(turns)
}

async fn turn(lab: &Lab, instance: &Arc<dyn Sandbox>, time: Duration) -> Result<Turn> {
    let end = lab.now() + time;
    let mut turn = Turn::default();
    loop {
        instance.pause().await.context(|| "pause failed".to_owned())?;
        let begin = lab.now();
        instance.resume().await.context(|| "resume failed".to_owned())?;
        let resumed = lab.now();
        lab.call(&**instance).await?;
        let answered = lab.now();
        lab.call(&**instance).await?;
        let again = lab.now();
        turn.resume.push(ms(resumed.since(begin)));
        turn.resumed.push(ms(answered.since(begin)));
        turn.warm.push(ms(again.since(answered)));
        if again >= end {
            return Ok(turn);
        }
    }
}
