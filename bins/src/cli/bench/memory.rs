//! `ol bench memory`: what one more idle instance takes of the machine's memory.
//!
//! The machine's `MemAvailable` before and after so many instances have been made and have answered once:
//! so the kernel's part (namespaces, mounts, cgroups, page tables, sockets) and what an engine runs beside
//! each container count, and memory that instances share counts once.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::figures::{median, spread};
use super::lab::{Lab, destroy};
use super::{print, print_json, table};
use crate::Catalog;
use crate::error::{CliError, Context, Result};

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
    /// What is idle: noop (a static program) or python (f.py that returns its event)
    #[arg(long, default_value = "noop", value_parser = ["noop", "python"])]
    function: String,
    /// Rounds in which the kinds take turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    sandbox: String,
    isolation: String,
    instances: u32,
    /// Of one instance, KiB.
    kib: f64,
    /// The lowest and the highest of the rounds.
    spread: [f64; 2],
}

/// How many times less `of` takes.
#[derive(Debug, Serialize)]
struct Ratio {
    of: String,
    against: String,
    memory: f64,
    spread: [f64; 2],
}

pub(super) async fn memory(args: &MemoryArgs, catalog: &Catalog) -> Result<ExitCode> {
    let lab = Lab::new(&args.function)?;
    let names: Vec<&String> = std::iter::once(&args.sandbox).chain(&args.against).collect();
    let mut sides: Vec<(String, String, Vec<f64>)> = Vec::new();
    for _ in 0..args.rounds {
        for (n, name) in names.iter().enumerate() {
            let (name, isolation, kib) = marginal(&lab, catalog, name, args.instances).await?;
            match sides.get_mut(n) {
                Some((.., measured)) => measured.push(kib),
                None => sides.push((name, isolation, vec![kib])),
            }
        }
    }
    let rows: Vec<Row> = sides
        .iter()
        .map(|(name, isolation, measured)| Row {
            sandbox: name.clone(),
            isolation: isolation.clone(),
            instances: args.instances,
            kib: median(measured.clone()),
            spread: spread(measured.clone()),
        })
        .collect();
    let (of, _, first) = &sides[0];
    let ratios: Vec<Ratio> = sides[1..]
        .iter()
        .map(|(name, _, measured)| {
            let each: Vec<f64> = measured.iter().zip(first).map(|(b, a)| b / a.max(1.0)).collect();
            let (of, against) = (of.clone(), name.clone());
            Ratio { of, against, memory: median(each.clone()), spread: spread(each) }
        })
        .collect();
    report(args, &rows, &ratios);
    Ok(ExitCode::SUCCESS)
}

/// One turn: name, isolation, KiB of an instance. By a factory of its own, since what a pool keeps of the
/// last turn would not be taken again.
async fn marginal(
    lab: &Lab,
    catalog: &Catalog,
    name: &str,
    instances: u32,
) -> Result<(String, String, f64)> {
    let kind = lab.kind(catalog, name).await?;
    let measured = async {
        let before = available()?;
        let idle = lab.idle(&*kind.factory, instances as usize, false).await?;
        let after = available();
        destroy(&idle).await;
        Ok((before - after?) / f64::from(instances))
    };
    let measured: Result<f64> = measured.await;
    kind.factory.shutdown().await;
    Ok((kind.name.to_owned(), kind.isolation, measured.context(|| name.to_owned())?))
}

/// What the machine could give to programs, KiB.
fn available() -> Result<f64> {
    // The kernel keeps a part of its sums by processor until somebody reads this; for root alone.
    let _ = std::fs::read("/proc/sys/vm/stat_refresh");
    let text = std::fs::read_to_string("/proc/meminfo")
        .context(|| "/proc/meminfo cannot be read; mount /proc".to_owned())?;
    let value = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let value = value.and_then(|value| value.trim().strip_suffix(" kB")?.trim().parse().ok());
    value.ok_or_else(|| CliError::new("/proc/meminfo tells no MemAvailable; Linux 3.14 is needed"))
}

fn report(args: &MemoryArgs, rows: &[Row], ratios: &[Ratio]) {
    if args.json {
        return print_json(&serde_json::json!({ "rows": rows, "ratios": ratios }));
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
    for Ratio { of, against, memory, spread: [low, high] } in ratios {
        print(&format!(
            "{against} takes {memory:.1} times the memory of {of} ({low:.1} to {high:.1})\n"
        ));
    }
}
