//! `ol bench start`: create → first answer of a function that does nothing → destroy, for several kinds
//! side by side.

use std::process::ExitCode;

use clap::Args;
use openlambda_core::time::Duration;
use openlambda_lab::live::{self, StartConfig, Starts};

use super::kinds::CatalogKinds;
use super::{print, print_json, table};
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
    /// Compare with the same kind while this many paused instances are alive
    #[arg(long, value_name = "N")]
    paused: Option<usize>,
    /// How many instances start at once; may be several, separated by commas
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

pub(super) async fn start(args: StartArgs, kinds: &CatalogKinds<'_>) -> Result<ExitCode> {
    let time = Duration::try_from_secs_f64(args.seconds);
    let time = time.context(|| "--seconds is not a time; write for example 2.5".to_owned())?;
    let config = StartConfig {
        sandbox: args.sandbox,
        against: args.against,
        paused: args.paused,
        concurrency: args.concurrency,
        function: args.function,
        rounds: args.rounds,
        time,
        turns: ["bench", "turns", "--function"].map(str::to_owned).into(),
    };
    let starts = live::starts(&config, kinds).await?;
    report(args.json, &starts);
    Ok(ExitCode::SUCCESS)
}

fn report(json: bool, starts: &Starts) {
    let Starts { rows, ratios } = starts;
    if json {
        return print_json(&serde_json::json!(starts));
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
