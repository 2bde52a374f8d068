//! Prints the tables of docs/keep-alive.md: every keep-alive policy at several sizes of the worker's
//! memory, over 20 seeds, with calls at random and with calls spaced evenly in each minute; and why the
//! two differ.
//!
//!     cargo run --release -p openlambda-lab --example keep_alive [SEEDS]
//!
//! Each seed draws functions and calls of its own, which all policies get. The tables state a direction
//! where the 95 % confidence interval of the paired differences excludes 0.

use std::collections::BTreeMap;

use openlambda_core::keep_alive;
use openlambda_lab::keep_alive::{Use, day, look, run};
use openlambda_lab::parallel::in_parallel;
use openlambda_lab::sim::{SimConfig, SimError};
use openlambda_lab::spacing::Spacing;
use openlambda_lab::statistics::Interval;

/// From a few functions' worth to most of them at once.
const MEMORY_GIB: [u64; 4] = [10, 20, 40, 60];

const PER_INSTANCE: &str = "greedy-dual,per_instance=1";

/// When calls come, and how many instances of a function there may be; `None`: as many as `day` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Setting {
    spacing: Spacing,
    max_instances: Option<u32>,
}

const fn spaced(spacing: Spacing) -> Setting {
    Setting { spacing, max_instances: None }
}

const CHANCE: Setting = spaced(Spacing::Uniform);
const EVEN: Setting = spaced(Spacing::Even);

/// What greedy-dual is tried under, to see what decides.
const TRIALS: [(&str, Setting, &str); 7] = [
    ("evenly, as FaasCache", EVEN, "greedy-dual"),
    ("evenly, shifted by chance", spaced(Spacing::EvenShifted), "greedy-dual"),
    ("by chance", CHANCE, "greedy-dual"),
    ("by chance, timers at equal intervals", spaced(Spacing::AsDrawn), "greedy-dual"),
    ("all at the minute's start", spaced(Spacing::Start), "greedy-dual"),
    (
        "by chance, one instance of a function at most",
        Setting { max_instances: Some(1), ..CHANCE },
        "greedy-dual",
    ),
    ("by chance, each instance by its own calls", CHANCE, PER_INSTANCE),
];

fn main() -> Result<(), SimError> {
    let mut arguments = std::env::args().skip(1);
    let seeds = arguments.next().map_or(Ok(20), |seeds| seeds.parse());
    let (Ok(seeds @ 2..), None) = (seeds, arguments.next()) else {
        eprintln!("usage: keep_alive [SEEDS]; SEEDS is 2 or more, for an interval");
        std::process::exit(2);
    };
    let mut experiment = Experiment { seeds, runs: BTreeMap::new(), failed: 0 };
    let catalog = keep_alive::standard();
    let names = catalog.entries().map(|entry| &*entry.name);
    let policies: Vec<&str> = names.chain([PER_INSTANCE]).collect();
    println!("Means over {seeds} seeds, with 95 % confidence intervals.");
    for (name, setting) in [("evenly", EVEN), ("by chance", CHANCE)] {
        heading(&format!(
            "Calls fall {name}: wait for cold starts, % of the time that handlers ran"
        ));
        for policy in &policies {
            let cells = experiment.row(setting, policy, |runs| interval(&runs.overhead))?;
            println!("| `{policy}` | {} |", cells.join(" | "));
        }
        heading(&format!("Calls fall {name}: calls that started cold, %"));
        for policy in &policies {
            let cells = experiment.row(setting, policy, |runs| interval(&runs.cold))?;
            println!("| `{policy}` | {} |", cells.join(" | "));
        }
        heading(&format!("Calls fall {name}: how much more they wait than with `greedy-dual`"));
        for policy in policies.iter().filter(|policy| **policy != "greedy-dual") {
            let cells = experiment.against(setting, policy, "greedy-dual")?;
            println!("| `{policy}` | {} |", cells.join(" | "));
        }
    }
    heading("What decides: how much more calls wait with `lru` than with `greedy-dual`");
    for (name, setting, policy) in TRIALS {
        println!("| {name} | {} |", experiment.against(setting, "lru", policy)?.join(" | "));
    }
    println!(
        "\nWith one instance at most, {} calls failed in the run with most of them; otherwise none.",
        experiment.failed
    );
    println!("\nWhat memory is used for:\n");
    println!(
        "| calls fall | GiB | policy | overlap, % | of these cold, % of all | others cold, % of all | spare instances, GiB | functions with an instance |\n|---|---|---|---|---|---|---|---|"
    );
    for (name, setting) in [("evenly", EVEN), ("by chance", CHANCE)] {
        for memory in [20, 40] {
            for policy in ["lru", "greedy-dual", PER_INSTANCE] {
                let cells = experiment.uses(setting, policy, memory)?;
                println!("| {name} | {memory} | `{policy}` | {} |", cells.join(" | "));
            }
        }
    }
    Ok(())
}

/// The runs so far.
struct Experiment {
    seeds: usize,
    runs: BTreeMap<(Setting, String, u64), Runs>,
    /// Calls that failed, in the run with most of them.
    failed: u64,
}

/// One value per seed.
#[derive(Clone, Debug)]
struct Runs {
    /// Time that calls waited for cold starts, % of the time that handlers ran.
    overhead: Vec<f64>,
    /// Calls that started cold, %.
    cold: Vec<f64>,
}

impl Experiment {
    fn runs(&mut self, setting: Setting, policy: &str, memory: u64) -> Result<Runs, SimError> {
        let key = (setting, policy.to_owned(), memory);
        if let Some(known) = self.runs.get(&key) {
            return Ok(known.clone());
        }
        let runs = in_parallel(self.seeds, None, |number| {
            let (summary, _) = run(&configured(setting, policy, memory, number))?;
            // Means over those that were answered compare nothing where others were not.
            let bounded = setting.max_instances.is_some();
            assert!(summary.failed == 0 || bounded, "{setting:?}, {memory} GiB: {summary:?}");
            Ok((summary.cold_overhead * 100.0, summary.cold_rate * 100.0, summary.failed))
        });
        let runs = runs.into_iter().collect::<Result<Vec<_>, SimError>>()?;
        self.failed = runs.iter().map(|(.., failed)| *failed).fold(self.failed, u64::max);
        let (overhead, cold) = runs.iter().map(|(overhead, cold, _)| (*overhead, *cold)).unzip();
        Ok(self.runs.entry(key).or_insert(Runs { overhead, cold }).clone())
    }

    /// A cell for each size.
    fn row(
        &mut self,
        setting: Setting,
        policy: &str,
        cell: fn(&Runs) -> String,
    ) -> Result<Vec<String>, SimError> {
        let sizes = MEMORY_GIB.into_iter();
        sizes.map(|memory| Ok(cell(&self.runs(setting, policy, memory)?))).collect()
    }

    /// How much longer calls wait with one policy than with another, and whether that is decided.
    fn against(
        &mut self,
        setting: Setting,
        worse: &str,
        better: &str,
    ) -> Result<Vec<String>, SimError> {
        let mut cells = Vec::new();
        for memory in MEMORY_GIB {
            let worse = self.runs(setting, worse, memory)?.overhead;
            let better = self.runs(setting, better, memory)?.overhead;
            let difference = Interval::of_differences(&worse, &better);
            let verdict = match difference.sign() {
                Some(true) => "",
                Some(false) => ", **less**",
                None => ", not decided",
            };
            let Interval { mean, half_width } = difference;
            let (sign, mean) = (if mean < 0.0 { '−' } else { '+' }, mean.abs());
            let decimals = if mean < 1.0 { 3 } else { 2 };
            cells.push(format!("{sign}{mean:.decimals$} ± {half_width:.decimals$}{verdict}"));
        }
        Ok(cells)
    }

    fn uses(&self, setting: Setting, policy: &str, memory: u64) -> Result<Vec<String>, SimError> {
        let uses = in_parallel(self.seeds, None, |number| {
            look(&configured(setting, policy, memory, number))
        });
        let uses: Vec<Use> = uses.into_iter().collect::<Result<_, _>>()?;
        let percent = |share: fn(&Use) -> f64| -> Vec<f64> {
            uses.iter().map(|of| share(of) * 100.0).collect()
        };
        let spare = uses.iter().map(|of| of.spare / f64::from(1 << 30)).collect();
        let functions = uses.iter().map(|of| of.functions).collect();
        let columns: [Vec<f64>; 5] = [
            percent(|of| of.overlapping),
            percent(|of| of.cold_overlapping),
            percent(|of| of.cold_alone),
            spare,
            functions,
        ];
        Ok(columns.iter().map(|values| interval(values)).collect())
    }
}

/// `number`: 0 for the first seed.
fn configured(setting: Setting, policy: &str, memory: u64, number: usize) -> SimConfig {
    let maker = keep_alive::standard().maker_of(policy).expect("the tables' policies are known");
    let mut config = day(&maker, memory, number as u64 + 1);
    config.workload.mix.spacing = setting.spacing;
    config.limits.max_instances = setting.max_instances.unwrap_or(config.limits.max_instances);
    config
}

fn heading(title: &str) {
    let sizes = MEMORY_GIB.map(|memory| format!("{memory} GiB"));
    println!("\n{title}:\n\n| | {} |\n|---|{}", sizes.join(" | "), "---|".repeat(sizes.len()));
}

fn interval(values: &[f64]) -> String {
    let Interval { mean, half_width } = Interval::of(values);
    format!("{mean:.2} ± {half_width:.2}")
}
