//! `ol bench start`: create → first answer of a function that does nothing → destroy, of several kinds
//! side by side.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use openlambda_core::time::Duration;
use serde::Serialize;

use super::figures::{median, quantile, spread};
use super::lab::Lab;
use super::side::{Side, Turn};
use super::{print, print_json, table};
use crate::Catalog;
use crate::error::{Context, Result};

#[derive(Args, Debug)]
pub(super) struct StartArgs {
    /// The kind of sandbox
    #[arg(long, value_name = "NAME", default_value = "auto")]
    sandbox: String,
    /// A kind to compare with; or runc (the program, on the same function), minimal (a program that makes
    /// the same system calls as sock and nothing else), rootless (sock as an ordinary user, from root).
    /// May be given more than once
    #[arg(long, value_name = "NAME")]
    against: Vec<String>,
    /// Compare with the same kind while so many paused instances are alive
    #[arg(long, value_name = "N")]
    paused: Option<usize>,
    /// How many at once
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', default_value = "1,10")]
    concurrency: Vec<usize>,
    /// What starts: noop (a static program) or python (f.py that returns its event)
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

/// One kind at one concurrency.
#[derive(Debug, Serialize)]
struct Row {
    sandbox: String,
    isolation: String,
    concurrency: usize,
    starts: usize,
    p50_ms: f64,
    p99_ms: f64,
    per_second: f64,
}

/// How many times faster `of` is.
#[derive(Debug, Serialize)]
struct Ratio {
    of: String,
    against: String,
    concurrency: usize,
    p50: f64,
    /// The lowest and the highest of the rounds' ratios.
    p50_spread: [f64; 2],
    p99: f64,
    p99_spread: [f64; 2],
    throughput: f64,
    /// Those of throughput.
    spread: [f64; 2],
}

/// The turns of each side, by its place, at each concurrency.
type Turns = BTreeMap<(usize, usize), Vec<Turn>>;

pub(super) async fn start(args: &StartArgs, catalog: &Catalog) -> Result<ExitCode> {
    let time = Duration::try_from_secs_f64(args.seconds);
    let time = time.context(|| "--seconds is not a time; write for example 2.5".to_owned())?;
    let lab = Arc::new(Lab::new(&args.function)?);
    let mut sides = Vec::new();
    let measured = measure(args, catalog, &lab, time, &mut sides).await;
    let names: Vec<_> =
        sides.iter().map(|side| (side.name.clone(), side.isolation.clone())).collect();
    for side in sides {
        side.end().await;
    }
    let turns = measured?;
    let (rows, ratios) = summarize(args, &names, &turns);
    report(args, &rows, &ratios);
    Ok(ExitCode::SUCCESS)
}

async fn measure(
    args: &StartArgs,
    catalog: &Catalog,
    lab: &Arc<Lab>,
    time: Duration,
    sides: &mut Vec<Side>,
) -> Result<Turns> {
    for name in std::iter::once(&args.sandbox).chain(&args.against) {
        let side = Side::named(lab, catalog, name, &args.function).await;
        sides.push(side.context(|| format!("{name} cannot be measured"))?);
    }
    if let Some(paused) = args.paused {
        sides.push(Side::paused(lab, catalog, &args.sandbox, paused).await?);
    }
    for side in &*sides {
        // What is made once is no part of a start.
        let warm = side.turn(lab, 2, Duration::from_millis(500)).await;
        warm.context(|| side.name.clone())?;
    }
    let mut turns = Turns::new();
    for _ in 0..args.rounds {
        for &concurrency in &args.concurrency {
            for (n, side) in sides.iter().enumerate() {
                let turn = side.turn(lab, concurrency, time).await;
                let turn = turn.context(|| format!("{} at {concurrency}", side.name))?;
                turns.entry((n, concurrency)).or_default().push(turn);
            }
        }
    }
    Ok(turns)
}

fn summarize(
    args: &StartArgs,
    sides: &[(String, String)],
    turns: &Turns,
) -> (Vec<Row>, Vec<Ratio>) {
    let (mut rows, mut ratios) = (Vec::new(), Vec::new());
    for &concurrency in &args.concurrency {
        for (n, (name, isolation)) in sides.iter().enumerate() {
            let turns_of = &turns[&(n, concurrency)];
            let times: Vec<f64> = turns_of.iter().flat_map(|turn| turn.times_ms.clone()).collect();
            rows.push(Row {
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
            ratios.push(Ratio {
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
    (rows, ratios)
}

fn report(args: &StartArgs, rows: &[Row], ratios: &[Ratio]) {
    if args.json {
        return print_json(&serde_json::json!({ "rows": rows, "ratios": ratios }));
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.sandbox.clone(),
                row.isolation.clone(),
                row.concurrency.to_string(),
                row.starts.to_string(),
                format!("{:.2}", row.p50_ms),
                format!("{:.2}", row.p99_ms),
                format!("{:.1}", row.per_second),
            ]
        })
        .collect();
    let headings = ["SANDBOX", "ISOLATION", "AT ONCE", "STARTS", "P50 ms", "P99 ms", "A SECOND"];
    print(&table(&headings, &cells));
    for ratio in ratios {
        let figure =
            |(of, [low, high]): (f64, [f64; 2])| format!("{of:.2} ({low:.2} to {high:.2})");
        print(&format!(
            "{} against {} at {}: times faster at the median {}, at the 99th percentile {}; times the \
             throughput {}\n",
            ratio.of,
            ratio.against,
            ratio.concurrency,
            figure((ratio.p50, ratio.p50_spread)),
            figure((ratio.p99, ratio.p99_spread)),
            figure((ratio.throughput, ratio.spread)),
        ));
    }
}
