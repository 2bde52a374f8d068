//! Prints the tables of docs/keep-alive.md: every keep-alive policy against the worker's memory.
//!
//!     cargo run --release -p openlambda-lab --example keep_alive [SEED [MAX_INSTANCES]]
//!
//! The second number is how many instances of a function there may be at once.

use std::error::Error;

use openlambda_core::keep_alive::{self, KeepAliveMaker};
use openlambda_lab::keep_alive::{day, run};
use openlambda_lab::sim::Usage;
use openlambda_lab::summary::Summary;

/// From a few functions' worth to nearly all of them at once.
const MEMORY_GIB: [u64; 7] = [10, 15, 20, 30, 40, 60, 80];

/// What a table shows of a run.
type Cell = fn(&Summary, &Usage) -> String;

const TABLES: [(&str, Cell); 3] = [
    ("Calls that started cold, %", |summary, _| format!("{:.2}", summary.cold_rate * 100.0)),
    ("Time that calls waited for cold starts, % of the time that handlers ran", |summary, _| {
        format!("{:.2}", summary.cold_overhead * 100.0)
    }),
    ("Memory that instances held, mean over the day, GiB", |_, usage| {
        format!("{:.1}", usage.mean_memory / f64::from(1 << 30))
    }),
];

fn main() -> Result<(), Box<dyn Error>> {
    let number = |place| std::env::args().nth(place).and_then(|number| number.parse::<u64>().ok());
    let seed = number(1).unwrap_or(1);
    let max_instances = number(2).map(|number| number as u32);
    let simulate = |policy: &KeepAliveMaker, memory: u64| {
        let mut config = day(policy, memory, seed);
        config.limits.max_instances = max_instances.unwrap_or(config.limits.max_instances);
        run(&config)
    };
    let catalog = keep_alive::standard();
    let names = catalog.entries().map(|entry| &*entry.name);
    let mut rows = Vec::new();
    for policy in names.chain(["greedy-dual,per_instance=1"]) {
        let maker = catalog.maker_of(policy)?;
        let runs: Result<Vec<_>, _> =
            MEMORY_GIB.iter().map(|memory| simulate(&maker, *memory)).collect();
        rows.push((policy, runs?));
    }
    let failed = rows.iter().flat_map(|(_, runs)| runs).map(|(summary, _)| summary.failed).max();
    let failed = failed.unwrap_or_default();
    println!("Seed {seed}. Calls that failed, in the run with most of them: {failed}.");
    let sizes: Vec<String> = MEMORY_GIB.iter().map(|memory| format!("{memory} GiB")).collect();
    for (title, cell) in TABLES {
        println!("\n{title}:\n");
        println!("| policy | {} |\n|---|{}", sizes.join(" | "), "---|".repeat(sizes.len()));
        for (policy, runs) in &rows {
            let cells: Vec<String> =
                runs.iter().map(|(summary, usage)| cell(summary, usage)).collect();
            println!("| `{policy}` | {} |", cells.join(" | "));
        }
    }
    Ok(())
}
