//! `ol bench soak`: thousands of starts beside some idle instances: what they leave behind, and whether
//! the last ones are slower than the first ones.

use std::process::ExitCode;

use clap::Args;
use openlambda_lab::live::{self, COUNTED, SoakConfig, Soaked};

use super::kinds::CatalogKinds;
use super::{print, print_json, table};
use crate::error::{CliError, Result};

#[derive(Args, Debug)]
pub(super) struct SoakArgs {
    /// The kind of sandbox
    #[arg(long, value_name = "NAME", default_value = "auto")]
    sandbox: String,
    /// How many instances are created, called and destroyed
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(10..))]
    rounds: u32,
    /// How many idle instances live beside them
    #[arg(long, default_value_t = 32)]
    idle: usize,
    /// How many instances are created at once
    #[arg(short, long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    concurrency: u32,
    /// What starts: noop (a static program) or python (f.py that returns its event)
    #[arg(long, default_value = "noop", value_parser = ["noop", "python"])]
    function: String,
    /// How many times longer the last tenth may take than the first
    #[arg(long, value_name = "TIMES", default_value_t = 1.3)]
    slower: f64,
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

pub(super) async fn soak(args: SoakArgs, kinds: &CatalogKinds<'_>) -> Result<ExitCode> {
    let config = SoakConfig {
        sandbox: args.sandbox.clone(),
        rounds: args.rounds,
        idle: args.idle,
        concurrency: args.concurrency,
        function: args.function.clone(),
    };
    let outcome = live::soak(&config, kinds).await?;
    report(&args, &outcome);
    if !outcome.left.is_empty() || !outcome.grown.is_empty() {
        return Err(CliError::new(format!(
            "something is left: {}; report it, with the table above",
            [&outcome.left[..], &outcome.grown[..]].concat().join(", ")
        )));
    }
    if outcome.slower.is_nan() || outcome.slower > args.slower {
        return Err(CliError::new(format!(
            "the last rounds took {:.2} times as long as the first, and {} is allowed; run it again when \
             nothing else runs beside it",
            outcome.slower, args.slower
        )));
    }
    Ok(ExitCode::SUCCESS)
}

fn report(args: &SoakArgs, outcome: &Soaked) {
    if args.json {
        return print_json(&serde_json::json!(outcome));
    }
    let Soaked { before, early, late, after, .. } = outcome;
    let columns = [before.each(), early.each(), late.each(), after.each()];
    let rows: Vec<Vec<String>> = COUNTED
        .iter()
        .enumerate()
        .map(|(n, what)| {
            let counts = columns.iter().map(|column| column[n].to_string());
            std::iter::once((*what).to_owned()).chain(counts).collect()
        })
        .collect();
    print(&format!(
        "{} ({}): {} rounds by {} at once, {} idle instances beside them\n",
        outcome.sandbox, outcome.isolation, outcome.rounds, args.concurrency, args.idle
    ));
    print(&table(&["", "BEFORE", "AFTER A TENTH", "AFTER ALL", "AFTER THE END"], &rows));
    print(&format!(
        "the last tenth took {:.2} times as long as the first ({} is allowed)\n",
        outcome.slower, args.slower
    ));
}
