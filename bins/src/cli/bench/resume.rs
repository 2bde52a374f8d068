//! `ol bench resume`: the time to resume a paused instance and get its answer, beside a call of one that
//! was not paused.

use std::process::ExitCode;

use clap::Args;
use openlambda_core::time::Duration;
use openlambda_lab::live::{self, ResumeConfig, ResumeRatio, Resumes};

use super::kinds::CatalogKinds;
use super::{print, print_json, table};
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

pub(super) async fn resume(args: ResumeArgs, kinds: &CatalogKinds<'_>) -> Result<ExitCode> {
    let time = Duration::try_from_secs_f64(args.seconds);
    let time = time.context(|| "--seconds is not a time; write for example 2.5".to_owned())?;
    let config = ResumeConfig {
        sandbox: args.sandbox,
        against: args.against,
        function: args.function,
        rounds: args.rounds,
        time,
    };
    let resumes = live::resumes(&config, kinds).await?;
    report(args.json, &resumes);
    Ok(ExitCode::SUCCESS)
}

fn report(json: bool, resumes: &Resumes) {
    let Resumes { rows, ratios } = resumes;
    if json {
        return print_json(&serde_json::json!(resumes));
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
    for ResumeRatio { of, against, p50, spread: [low, high] } in ratios {
        print(&format!(
            "{of} against {against}: {p50:.2} times faster at the median ({low:.2} to {high:.2})\n"
        ));
    }
}
