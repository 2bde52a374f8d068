//! The output of `ol sim`.

use std::collections::BTreeMap;

use openlambda_lab::statistics::Interval;
use openlambda_lab::summary::Summary;
use serde::Serialize;

use super::args::SimArgs;
use crate::cli::{print, print_json, table};

/// Of one seed's table, and of that of the means.
const HEADINGS: [&str; 9] = [
    "POLICY",
    "ANSWERED",
    "FAILED",
    "COLD",
    "MEAN ms",
    "P50 ms",
    "P99 ms",
    "A SECOND",
    "MEMORY MiB",
];

pub(super) fn report(args: &SimArgs, summaries: &[Summary], seed: u64) {
    if args.json {
        print_json(&serde_json::json!({ "policies": summaries, "seed": seed }));
        return;
    }
    let rows: Vec<Vec<String>> = summaries
        .iter()
        .map(|summary| {
            vec![
                summary.name.clone(),
                summary.invocations.to_string(),
                summary.failed.to_string(),
                format!("{:.2} %", summary.cold_rate * 100.0),
                format!("{:.2}", summary.mean_ms),
                format!("{:.2}", summary.p50_ms),
                format!("{:.2}", summary.p99_ms),
                format!("{:.1}", summary.per_second.unwrap_or_default()),
                format!("{:.0}", summary.mean_memory_mb.unwrap_or_default()),
            ]
        })
        .collect();
    print(&table(&HEADINGS, &rows));
    print(&failures(summaries.iter().map(|summary| (&*summary.name, &summary.failures))));
}

/// What was measured, over the seeds.
#[derive(Debug, Serialize)]
struct Means<'a> {
    name: &'a str,
    /// Over all runs.
    invocations: u64,
    failed: u64,
    failures: BTreeMap<String, u64>,
    cold_rate: Interval,
    mean_ms: Interval,
    p50_ms: Interval,
    p99_ms: Interval,
    mean_wait_ms: Interval,
    cold_overhead: Interval,
    per_second: Interval,
    mean_memory_mb: Interval,
    /// Each run, in the order of the seeds.
    runs: &'a [Summary],
}

impl<'a> Means<'a> {
    fn of(runs: &'a [Summary]) -> Self {
        let over = |number: &dyn Fn(&Summary) -> f64| {
            Interval::of(&runs.iter().map(number).collect::<Vec<_>>())
        };
        let mut failures = BTreeMap::new();
        for (code, count) in runs.iter().flat_map(|run| &run.failures) {
            *failures.entry(code.clone()).or_default() += count;
        }
        Means {
            name: &runs[0].name,
            invocations: runs.iter().map(|run| run.invocations).sum(),
            failed: runs.iter().map(|run| run.failed).sum(),
            failures,
            cold_rate: over(&|run| run.cold_rate),
            mean_ms: over(&|run| run.mean_ms),
            p50_ms: over(&|run| run.p50_ms),
            p99_ms: over(&|run| run.p99_ms),
            mean_wait_ms: over(&|run| run.mean_wait_ms),
            cold_overhead: over(&|run| run.cold_overhead),
            per_second: over(&|run| run.per_second.unwrap_or_default()),
            mean_memory_mb: over(&|run| run.mean_memory_mb.unwrap_or_default()),
            runs,
        }
    }
}

pub(super) fn report_means(args: &SimArgs, summaries: &[Summary]) {
    let means: Vec<Means<'_>> = summaries.chunks(args.seeds.len()).map(Means::of).collect();
    if args.json {
        print_json(&serde_json::json!({ "policies": means, "seeds": args.seeds }));
        return;
    }
    let shown = |interval: Interval, digits: usize| {
        format!("{:.digits$} ± {:.digits$}", interval.mean, interval.half_width)
    };
    let rows: Vec<Vec<String>> = means
        .iter()
        .map(|means| {
            let cold = means.cold_rate;
            let percent = Interval { mean: 100.0 * cold.mean, half_width: 100.0 * cold.half_width };
            vec![
                means.name.to_owned(),
                means.invocations.to_string(),
                means.failed.to_string(),
                format!("{} %", shown(percent, 2)),
                shown(means.mean_ms, 2),
                shown(means.p50_ms, 2),
                shown(means.p99_ms, 2),
                shown(means.per_second, 1),
                shown(means.mean_memory_mb, 0),
            ]
        })
        .collect();
    print(&table(&HEADINGS, &rows));
    print(&format!(
        "Means over {} seeds, with their 95 % confidence intervals.\n",
        args.seeds.len()
    ));
    print(&failures(means.iter().map(|means| (means.name, &means.failures))));
}

/// Why calls failed, and what that means for the other numbers; nothing when none did.
fn failures<'a>(policies: impl Iterator<Item = (&'a str, &'a BTreeMap<String, u64>)>) -> String {
    let mut text = String::new();
    for (name, failures) in policies.filter(|(_, failures)| !failures.is_empty()) {
        let reasons: Vec<String> =
            failures.iter().map(|(code, count)| format!("{count} {code}")).collect();
        text.push_str(&format!("{name} failed: {}.\n", reasons.join(", ")));
    }
    if !text.is_empty() {
        text.push_str("Cold starts and times are those of the calls that were answered.\n");
    }
    text
}
