//! Runs the simulations of `ol sim`, one for each policy and seed.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use openlambda_core::json_lines;
use openlambda_lab::parallel::in_parallel;
use openlambda_lab::sim::{SimConfig, simulate_with};
use openlambda_lab::summary::{Summary, Tally};
use openlambda_lb::policies::{PolicyConfig, PolicyMaker};

use super::args::SimArgs;
use super::report::{report, report_means};
use crate::Catalog;
use crate::cli::progress::Pace;
use crate::error::{CliError, Context, Result};

pub(in crate::cli) fn sim(args: &SimArgs, catalog: &Catalog) -> Result<ExitCode> {
    let config = args.config(catalog).map_err(CliError::by_the_call)?;
    let policies = if args.policies.is_empty() {
        catalog.policies().entries().map(|entry| PolicyConfig::named(&*entry.name)).collect()
    } else {
        args.policies.clone()
    };
    let makers = policies.iter().map(|policy| catalog.policies().maker(policy));
    let policies = makers.collect::<Result<Vec<_>, _>>();
    let policies = policies.map_err(|error| CliError::from(error).by_the_call())?;
    let runs: Vec<(&PolicyMaker, u64)> = policies
        .iter()
        .flat_map(|policy| args.seeds.iter().map(move |seed| (policy, *seed)))
        .collect();
    let records = args.records.as_deref();
    if records.is_some() && runs.len() != 1 {
        let message = "--records holds the calls of one run; name one --policy and one --seed";
        return Err(CliError::new(message).by_the_call());
    }
    let watch = Watch::start(config.workload.invocations * runs.len() as u64);
    let summaries = in_parallel(runs.len(), args.threads, |number| {
        let (policy, seed) = runs[number];
        let config = SimConfig { seed, ..config.clone() };
        run(&config, policy, records, &watch)
    });
    drop(watch);
    let summaries = summaries.into_iter().collect::<Result<Vec<_>>>()?;
    match *args.seeds {
        [seed] => report(args, &summaries, seed),
        _ => report_means(args, &summaries),
    }
    Ok(ExitCode::SUCCESS)
}

/// One simulation.
fn run(
    config: &SimConfig,
    policy: &PolicyMaker,
    records: Option<&Path>,
    watch: &Watch,
) -> Result<Summary> {
    let mut file = None;
    if let Some(path) = records {
        let created = std::fs::File::create(path);
        let created = created.context(|| format!("cannot write {}", path.display()))?;
        file = Some(std::io::BufWriter::new(created));
    }
    let (mut tally, mut written, mut count) = (Tally::default(), Ok(()), 0u64);
    let make_policy = || policy.make();
    let usage = simulate_with(config, make_policy, |call| {
        tally.add(call);
        count += 1;
        if count.is_multiple_of(Watch::STEP) {
            watch.over();
        }
        if let (Some(file), Ok(())) = (&mut file, &written) {
            written = json_lines::write(file, &call.record());
        }
    })
    .context(|| "cannot simulate".to_owned())?;
    let flushed = written.and_then(|()| file.as_mut().map_or(Ok(()), Write::flush));
    flushed.context(|| "cannot write the records".to_owned())?;
    Ok(tally.summary(policy.text()).with_usage(&usage))
}

/// Shows on a terminal how far all simulations are.
struct Watch {
    pace: Pace,
    all: u64,
    over: AtomicU64,
}

impl Watch {
    /// So many calls are counted at once.
    const STEP: u64 = 8192;

    fn start(all: u64) -> Self {
        Watch { pace: Pace::start("simulating", "calls"), all, over: AtomicU64::new(0) }
    }

    /// [`STEP`](Self::STEP) more calls are over.
    fn over(&self) {
        let over = self.over.fetch_add(Self::STEP, Ordering::Relaxed) + Self::STEP;
        self.pace.at(over, self.all);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;
    use openlambda_core::keep_alive::{KeepAliveEntry, Ttl};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SimArgs,
    }

    #[test]
    fn a_keep_alive_policy_of_ones_own_is_simulated() {
        let line =
            "sim --keep-alive never --policy random --functions 1 --rate 1 --invocations 500";
        let Line { args } = Line::try_parse_from(line.split(' ')).unwrap();
        let never = KeepAliveEntry::new("never", "no time at all", "this test", || {
            Box::new(Ttl::new(Duration::ZERO))
        });
        let error = args.config(&Catalog::standard()).unwrap_err().to_string();
        assert!(error.starts_with("keep-alive: unknown policy \"never\""), "{error}");
        let catalog = Catalog::standard().keep_alive(never);
        let config = args.config(&catalog).unwrap();
        let policy = catalog.policies().maker(&args.policies[0]).unwrap();
        let summary = run(&config, &policy, None, &Watch::start(0)).unwrap();
        assert_eq!((summary.invocations, summary.failed), (500, 0));
        // A call finds an instance only when it has waited for the one before.
        assert!(summary.cold_rate > 0.95, "{}", summary.cold_rate);
    }
}
