//! Prints the table of docs/orderings.md: what policies' authors found, and what the simulator
//! finds, as the mean over some seeds with its 95 % confidence interval.
//!
//!     cargo run --release -p openlambda-lab --example orderings

use openlambda_lab::orderings::{COMPARISONS, Comparison, OrderingError, measure};

const SEEDS: u64 = 5;
/// Student's t at 95 % for 4 degrees of freedom.
const STUDENT: f64 = 2.776;

fn main() -> Result<(), OrderingError> {
    let mut reasons = Vec::new();
    println!(
        "| better, by the source | worse | workload | measure | authors | here, worse → better | ratio | |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for comparison in COMPARISONS {
        let Comparison { better, worse, authors, workload, source, .. } = comparison;
        let (good, bad) = (runs(comparison, better)?, runs(comparison, worse)?);
        let ratios: Vec<f64> = bad.iter().zip(&good).map(|(bad, good)| bad / good).collect();
        let shown = match comparison.otherwise {
            None if ratios.iter().all(|ratio| *ratio > 1.0) => "as published".to_owned(),
            None => "not under every seed".to_owned(),
            Some(reason) => {
                reasons.push(reason);
                format!("otherwise ({})", reasons.len())
            }
        };
        println!(
            "| `{better}` ({source}) | `{worse}` | {workload} | {} | {authors} | {} → {} | {} | {shown} |",
            comparison.measure.name(),
            interval(&bad),
            interval(&good),
            interval(&ratios),
        );
    }
    for (number, reason) in (1..).zip(reasons) {
        println!("\n({number}) {reason}");
    }
    Ok(())
}

fn runs(comparison: &Comparison, policy: &str) -> Result<Vec<f64>, OrderingError> {
    let run = |seed| measure(&(comparison.setting)(seed), policy, comparison.measure);
    (1..=SEEDS).map(run).collect()
}

fn interval(values: &[f64]) -> String {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    format!("{mean:.2} ± {:.2}", STUDENT * (variance / n).sqrt())
}
