//! `ol bench memory`: how much of the machine's memory one more idle instance takes.

use std::process::ExitCode;

use clap::Args;
use openlambda_lab::live::{self, Memory, MemoryConfig, MemoryRatio};

use super::kinds::CatalogKinds;
use super::{print, print_json, table};
use crate::error::Result;

#[derive(Args, Debug)]
pub(super) struct MemoryArgs {
    /// The kind of sandbox
    #[arg(long, value_name = "NAME", default_value = "auto")]
    sandbox: String,
    /// A kind to compare with; may be given more than once
    #[arg(long, value_name = "NAME")]
    against: Vec<String>,
    /// How many idle instances
    #[arg(short, long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    instances: u32,
    /// The function of the idle instances: noop (a static program) or python (f.py that returns its event)
    #[arg(long, default_value = "noop", value_parser = ["noop", "python"])]
    function: String,
    /// Rounds in which the kinds take turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

pub(super) async fn memory(args: MemoryArgs, kinds: &CatalogKinds<'_>) -> Result<ExitCode> {
    let config = MemoryConfig {
        sandbox: args.sandbox,
        against: args.against,
        instances: args.instances,
        function: args.function,
        rounds: args.rounds,
    };
    let memory = live::memory(&config, kinds).await?;
    report(args.json, &memory);
    Ok(ExitCode::SUCCESS)
}

fn report(json: bool, memory: &Memory) {
    let Memory { rows, ratios } = memory;
    if json {
        return print_json(&serde_json::json!(memory));
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.sandbox.clone(),
                row.isolation.clone(),
                row.instances.to_string(),
                format!("{:.0}", row.kib),
                format!("{:.0} to {:.0}", row.spread[0], row.spread[1]),
            ]
        })
        .collect();
    let headings = ["SANDBOX", "ISOLATION", "IDLE", "KiB OF EACH", "ROUNDS"];
    print(&table(&headings, &cells));
    for MemoryRatio { of, against, memory, spread: [low, high] } in ratios {
        print(&format!(
            "{against} takes {memory:.1} times the memory of {of} ({low:.1} to {high:.1})\n"
        ));
    }
}
