//! `ol bench resume`: resume of a paused instance and its next answer, beside a call of one that was not
//! paused.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use openlambda_core::sandbox::Sandbox;
use openlambda_core::time::Duration;
use serde::Serialize;

use super::figures::{median, ms, quantile, spread};
use super::lab::{Kind, Lab};
use super::{print, print_json, table};
use crate::Catalog;
use crate::error::{Context, Result};

#[derive(Args, Debug)]
pub(super) struct ResumeArgs {
    /// The kind of sandbox
    #[arg(long, value_name = "NAME", default_value = "auto")]
    sandbox: String,
    /// A kind to compare with; may be given more than once
    #[arg(long, value_name = "NAME")]
    against: Vec<String>,
    /// What is paused: noop (a static program) or python (f.py that returns its event)
    #[arg(long, default_value = "noop", value_parser = ["noop", "python"])]
    function: String,
    /// Rounds in which the kinds take turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long each turn lasts, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    seconds: f64,
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
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

#[derive(Debug, Serialize)]
struct Row {
    sandbox: String,
    isolation: String,
    resumes: usize,
    /// Resume and answer.
    p50_ms: f64,
    p99_ms: f64,
    /// The medians of the rounds.
    spread: [f64; 2],
    resume_p50_ms: f64,
    warm_p50_ms: f64,
}

/// How many times faster `of` is.
#[derive(Debug, Serialize)]
struct Ratio {
    of: String,
    against: String,
    p50: f64,
    spread: [f64; 2],
}

pub(super) async fn resume(args: &ResumeArgs, catalog: &Catalog) -> Result<ExitCode> {
    let time = Duration::try_from_secs_f64(args.seconds);
    let time = time.context(|| "--seconds is not a time; write for example 2.5".to_owned())?;
    let lab = Lab::new(&args.function)?;
    let mut kinds = Vec::new();
    let measured = measure(args, catalog, &lab, time, &mut kinds).await;
    for kind in &kinds {
        kind.factory.shutdown().await;
    }
    let turns = measured?;
    let of = |turns: &[Turn], what: fn(&Turn) -> &Vec<f64>| -> Vec<f64> {
        turns.iter().flat_map(|turn| what(turn).clone()).collect()
    };
    let medians = |turns: &[Turn]| -> Vec<f64> {
        turns.iter().map(|turn| median(turn.resumed.clone())).collect()
    };
    let rows: Vec<Row> = kinds
        .iter()
        .zip(&turns)
        .map(|(kind, turns)| Row {
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
    let ratios: Vec<Ratio> = kinds
        .iter()
        .zip(&turns)
        .skip(1)
        .map(|(kind, other)| {
            let each: Vec<f64> =
                medians(other).iter().zip(medians(&turns[0])).map(|(b, a)| b / a).collect();
            let (of, against) = (kinds[0].name.to_owned(), kind.name.to_owned());
            Ratio { of, against, p50: median(each.clone()), spread: spread(each) }
        })
        .collect();
    report(args, &rows, &ratios);
    Ok(ExitCode::SUCCESS)
}

/// The turns of each kind.
async fn measure(
    args: &ResumeArgs,
    catalog: &Catalog,
    lab: &Lab,
    time: Duration,
    kinds: &mut Vec<Kind>,
) -> Result<Vec<Vec<Turn>>> {
    let mut instances = Vec::new();
    for name in std::iter::once(&args.sandbox).chain(&args.against) {
        kinds.push(lab.kind(catalog, name).await?);
        instances.push(lab.create(&*kinds[kinds.len() - 1].factory).await?);
    }
    let mut turns: Vec<Vec<Turn>> = kinds.iter().map(|_| Vec::new()).collect();
    for instance in &instances {
        turn(lab, instance, Duration::from_millis(100)).await?;
    }
    for _ in 0..args.rounds {
        for (n, instance) in instances.iter().enumerate() {
            let measured = turn(lab, instance, time).await.context(|| kinds[n].name.to_owned())?;
            turns[n].push(measured);
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

fn report(args: &ResumeArgs, rows: &[Row], ratios: &[Ratio]) {
    if args.json {
        return print_json(&serde_json::json!({ "rows": rows, "ratios": ratios }));
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.sandbox.clone(),
                row.isolation.clone(),
                row.resumes.to_string(),
                format!("{:.3}", row.p50_ms),
                format!("{:.3} to {:.3}", row.spread[0], row.spread[1]),
                format!("{:.3}", row.p99_ms),
                format!("{:.3}", row.resume_p50_ms),
                format!("{:.3}", row.warm_p50_ms),
            ]
        })
        .collect();
    let headings = [
        "SANDBOX",
        "ISOLATION",
        "RESUMES",
        "P50 ms",
        "ROUNDS",
        "P99 ms",
        "THE RESUME",
        "WARM CALL",
    ];
    print(&table(&headings, &cells));
    for Ratio { of, against, p50, spread: [low, high] } in ratios {
        print(&format!(
            "{of} against {against}: {p50:.2} times faster at the median ({low:.2} to {high:.2})\n"
        ));
    }
}
