//! Prints the table of docs/orderings.md: what policies' authors found, and what the simulator
//! finds, over 20 seeds, each with calls and a placement of its own. A direction is told when the 95 %
//! confidence interval of the paired differences does not hold 0.
//!
//!     cargo run --release -p openlambda-lab --example orderings

use openlambda_lab::orderings::{COMPARISONS, Comparison, OrderingError, measure};
use openlambda_lab::parallel::in_parallel;
use openlambda_lab::statistics::Interval;

const SEEDS: usize = 20;

fn main() -> Result<(), OrderingError> {
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
