//! Prints the table of docs/orderings.md: what policies' authors found, and what the simulator
//! finds, over 20 seeds, each with calls and a placement of its own. The table states a direction where
//! the 95 % confidence interval of the paired differences excludes 0.
//!
//!     cargo run --release -p openlambda-lab --example orderings
//!
//! With `ch-rlu`, what that policy's lead over OpenWhisk's sharding depends on:
//!
//!     cargo run --release -p openlambda-lab --example orderings ch-rlu

use openlambda_lab::orderings::{COMPARISONS, Comparison, Measure, OrderingError, measure};
use openlambda_lab::parallel::in_parallel;
use openlambda_lab::sim::SimConfig;
use openlambda_lab::statistics::Interval;

const SEEDS: usize = 20;

fn main() -> Result<(), OrderingError> {
    match std::env::args().nth(1).as_deref() {
        None => published(),
        Some("ch-rlu") => lead(),
        Some(other) => {
            eprintln!(
                "there is no table \"{other}\"; use ch-rlu, or nothing for the published orderings"
            );
            std::process::exit(2);
        }
    }
}

/// The table of all comparisons.
fn published() -> Result<(), OrderingError> {
    let mut reasons = Vec::new();
    println!(
        "| better, by the source | worse | workload | measure | authors | here, worse → better | times | |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for comparison in COMPARISONS {
        let Comparison { better, worse, authors, workload, source, .. } = comparison;
        let (good, bad) = (runs(comparison, better)?, runs(comparison, worse)?);
        let times: Vec<f64> = bad.iter().zip(&good).map(|(bad, good)| bad / good).collect();
        let mut shown = match Interval::of_differences(&bad, &good).sign() {
            Some(true) => "as published",
            Some(false) => "otherwise",
            None => "not decided",
        }
        .to_owned();
        if let Some(reason) = comparison.otherwise {
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
            let number = reasons.iter().position(|known| *known == reason).unwrap_or_default();
            shown.push_str(&format!(" ({})", number + 1));
        }
        println!(
            "| `{better}` ({source}) | `{worse}` | {workload} | {} | {authors} | {} → {} | {} | {shown} |",
            comparison.measure.name(),
            interval(&bad),
            interval(&good),
            interval(&times),
        );
    }
    for (number, reason) in (1..).zip(reasons) {
        println!("\n({number}) {reason}");
    }
    Ok(())
}

/// CH-RLU against OpenWhisk on short runs and long cold starts, by each worker's memory and by how many calls
/// there are.
fn lead() -> Result<(), OrderingError> {
    const GIB: [f64; 11] = [4.0, 6.0, 7.0, 8.0, 10.0, 12.0, 16.0, 18.25, 20.0, 24.0, 32.0];
    const CALLS: [u64; 4] = [20_000, 50_000, 100_000, 200_000];
    let by_memory = GIB.map(|gib| {
        let memory = (gib * f64::from(1 << 30)) as u64;
        let change = move |setting: &mut SimConfig| setting.scheduler.memory = memory;
        (gib.to_string(), Box::new(change) as Change)
    });
    columns("GiB a worker", &by_memory)?;
    println!();
    let by_calls = CALLS.map(|calls| {
        let change = move |setting: &mut SimConfig| setting.workload.invocations = calls;
        (calls.to_string(), Box::new(change) as Change)
    });
    columns("calls", &by_calls)
}

type Change = Box<dyn Fn(&mut SimConfig) + Sync>;

/// A table with a column for each change of the setting.
fn columns(title: &str, changes: &[(String, Change)]) -> Result<(), OrderingError> {
    let comparison = COMPARISONS
        .iter()
        .find(|comparison| comparison.workload == "short runs, long cold starts")
        .expect("it is among them");
    let Comparison { better, worse, .. } = comparison;
    let mut rows = [
        title.to_owned(),
        format!("`{worse}` ÷ `{better}`, mean latency"),
        format!("`{worse}`, cold starts, %"),
        format!("`{better}`, cold starts, %"),
    ];
    for (name, change) in changes {
        let of = |policy, measured| {
            let runs = in_parallel(SEEDS, None, |number| {
                let mut setting = (comparison.setting)(number as u64 + 1);
                change(&mut setting);
                measure(&setting, policy, measured)
            });
            runs.into_iter().collect::<Result<Vec<f64>, _>>()
        };
        let (bad, good) = (of(worse, Measure::Latency)?, of(better, Measure::Latency)?);
        let times: Vec<f64> = bad.iter().zip(&good).map(|(bad, good)| bad / good).collect();
        let cells = [
            name.clone(),
            interval(&times),
            interval(&of(worse, Measure::ColdStarts)?),
            interval(&of(better, Measure::ColdStarts)?),
        ];
        for (row, cell) in rows.iter_mut().zip(cells) {
            row.push_str(&format!(" | {cell}"));
        }
    }
    let [heading, rows @ ..] = rows;
    println!("| {heading} |\n|---|{}", "---|".repeat(changes.len()));
    rows.iter().for_each(|row| println!("| {row} |"));
    Ok(())
}

fn runs(comparison: &Comparison, policy: &str) -> Result<Vec<f64>, OrderingError> {
    let runs = in_parallel(SEEDS, None, |number| {
        let setting = (comparison.setting)(number as u64 + 1);
        measure(&setting, policy, comparison.measure)
    });
    runs.into_iter().collect()
}

fn interval(values: &[f64]) -> String {
    let Interval { mean, half_width } = Interval::of(values);
    format!("{mean:.2} ± {half_width:.2}")
}
