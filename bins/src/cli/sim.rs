//! `ol sim`: policies side by side on one workload, in a simulation of the live code.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use openlambda_core::keep_alive::KeepAliveConfig;
use openlambda_core::scheduler::{Limits, SchedulerConfig};
use openlambda_lab::sim::{SimConfig, Users, simulate};
use openlambda_lab::summary::Tally;
use openlambda_lab::workload::{Bursts, FunctionMix, Service, WorkloadConfig};
use openlambda_lb::policies::PolicyConfig;

use super::{print, print_json, table};
use crate::Catalog;
use crate::error::{CliError, Context, Result};

#[derive(Args, Debug)]
pub(super) struct SimArgs {
    /// A policy, with parameters after commas; may be given more than once [default: all]
    #[arg(long = "policy", value_name = "NAME[,KEY=VALUE]")]
    policies: Vec<PolicyConfig>,
    /// How many workers
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    workers: u32,
    /// How many functions
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    functions: u32,
    /// Exponent of Zipf's law for the functions' popularity; 0 makes all alike
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    zipf: f64,
    /// Calls a second, over all functions
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// How many calls
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    invocations: u64,
    /// How functions differ: in popularity alone, or as those of a large provider in popularity,
    /// triggers, memory, times of handlers and of cold starts; then --zipf, --mean-ms and --cold-ms
    /// say nothing
    #[arg(long, value_enum, default_value_t = Mix::Alike)]
    mix: Mix,
    /// How the handlers' times are distributed
    #[arg(long, value_enum, default_value_t = Distribution::Exponential)]
    service: Distribution,
    /// Their mean, milliseconds
    #[arg(long, value_name = "MS", default_value_t = 50.0)]
    mean_ms: f64,
    /// With --service log-normal: the standard deviation of the logarithm; larger is more unequal
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    sigma: f64,
    /// Calls come in bursts of one function: how many calls one has, in the mean
    #[arg(long, value_name = "CALLS", default_value_t = 1.0)]
    burst: f64,
    /// The mean time between a burst's calls, milliseconds
    #[arg(long, value_name = "MS", default_value_t = 10.0)]
    burst_gap_ms: f64,
    /// A closed loop: so many users, each of whom waits for an answer before the next call; then
    /// --rate and --burst say nothing
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    users: Option<u32>,
    /// How long a user thinks between an answer and the next call, milliseconds in the mean
    #[arg(long, value_name = "MS", default_value_t = 1000.0)]
    think_ms: f64,
    /// How many processors a worker has, which its calls share [default: one for each call]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    processors: Option<u32>,
    /// Making a sandbox and starting its runtime, milliseconds
    #[arg(long, value_name = "MS", default_value_t = 100.0)]
    cold_ms: f64,
    /// Fetching a bundle, milliseconds
    #[arg(long, value_name = "MS", default_value_t = 20.0)]
    pull_ms: f64,
    /// One way between balancer and worker, milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0.1)]
    hop_ms: f64,
    /// Each worker's memory pool, MiB; an instance takes 128, unless --mix says
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    memory_mb: u64,
    /// Keep-alive policy, with parameters after commas; `ol policies` lists them
    #[arg(long, value_name = "NAME[,KEY=VALUE]", default_value = "ttl")]
    keep_alive: String,
    /// How long the keep-alive policy ttl keeps an idle instance, unless it says so itself
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0)]
    ttl_seconds: f64,
    /// Seed of everything: the same seed gives the same bytes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write a record of every call to this file, as JSON lines; with one --policy only
    #[arg(long, value_name = "FILE")]
    records: Option<PathBuf>,
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Distribution {
    Exponential,
    Fixed,
    LogNormal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mix {
    Alike,
    Azure,
}

impl SimArgs {
    fn config(&self) -> Result<SimConfig> {
        let ms = |flag: &str, value: f64| {
            Duration::try_from_secs_f64(value / 1e3).map_err(|_| {
                CliError::new(format!("--{flag} {value} is not a time; use 0 or more"))
            })
        };
        if !(self.rate > 0.0 && self.rate <= 1e9) {
            let message = format!("--rate {} is not a rate; use more than 0", self.rate);
            return Err(CliError::new(message));
        }
        if !(0.0..=10.0).contains(&self.zipf) {
            return Err(CliError::new(format!("--zipf {} is not usable; use 0 to 10", self.zipf)));
        }
        if !(0.0..=10.0).contains(&self.sigma) {
            return Err(CliError::new(format!(
                "--sigma {} is not usable; use 0 to 10",
                self.sigma
            )));
        }
        if !(1.0..=1e6).contains(&self.burst) {
            let message = format!("--burst {} is not a number of calls; use 1 or more", self.burst);
            return Err(CliError::new(message));
        }
        let bursts = Bursts { size: self.burst, gap: ms("burst-gap-ms", self.burst_gap_ms)? };
        let think = ms("think-ms", self.think_ms)?;
        let keep_alive: KeepAliveConfig = self.keep_alive.parse()?;
        let memory = 128 << 20;
        if self.memory_mb << 20 < memory {
            return Err(CliError::new("--memory-mb is too small for an instance; use 128 or more"));
        }
        let mean = ms("mean-ms", self.mean_ms)?;
        Ok(SimConfig {
            workload: WorkloadConfig {
                rate: self.rate,
                functions: self.functions,
                zipf: self.zipf,
                service: match self.service {
                    Distribution::Exponential => Service::Exponential(mean),
                    Distribution::Fixed => Service::Fixed(mean),
                    Distribution::LogNormal => Service::LogNormal { mean, sigma: self.sigma },
                },
                invocations: self.invocations,
                mix: FunctionMix {
                    bursts: (self.burst > 1.0).then_some(bursts),
                    ..match self.mix {
                        Mix::Alike => FunctionMix::default(),
                        Mix::Azure => FunctionMix::azure(),
                    }
                },
            },
            users: self.users.map(|count| Users { count, think }),
            workers: self.workers,
            processors: self.processors,
            scheduler: SchedulerConfig {
                memory: self.memory_mb << 20,
                ..SchedulerConfig::default()
            },
            keep_alive: keep_alive.to_string(),
            ttl: ms("ttl-seconds", self.ttl_seconds * 1e3)?,
            code_budget: 1 << 30,
            bundle_bytes: 1 << 20,
            limits: Limits {
                memory,
                slots: 1,
                max_instances: 16,
                queue: 1024,
                timeout: Duration::from_secs(30),
                reuse: true,
            },
            max_wait: Duration::from_secs(30),
            hop: ms("hop-ms", self.hop_ms)?,
            pull: ms("pull-ms", self.pull_ms)?,
            cold_start: ms("cold-ms", self.cold_ms)?,
            heartbeat: Duration::from_millis(500),
            seed: self.seed,
            ..SimConfig::default()
        })
    }
}

pub(super) fn sim(args: &SimArgs, catalog: &Catalog) -> Result<ExitCode> {
    let config = args.config()?;
    let policies = if args.policies.is_empty() {
        catalog.policies().entries().map(|entry| PolicyConfig::named(&*entry.name)).collect()
    } else {
        args.policies.clone()
    };
    if args.records.is_some() && policies.len() != 1 {
        return Err(CliError::new("--records holds one policy's calls; name one with --policy"));
    }
    let mut summaries = Vec::new();
    for policy in &policies {
        let built = catalog.policies().build(policy)?;
        let mut file = None;
        if let Some(path) = &args.records {
            let created = std::fs::File::create(path);
            let created = created.context(|| format!("cannot write {}", path.display()))?;
            file = Some(std::io::BufWriter::new(created));
        }
        let (mut tally, mut written) = (Tally::default(), Ok(()));
        simulate(&config, built, |call| {
            tally.add(call);
            if let (Some(file), Ok(())) = (&mut file, &written) {
                written = serde_json::to_writer(&mut *file, &call.record())
                    .map_err(std::io::Error::from)
                    .and_then(|()| file.write_all(b"\n"));
            }
        })
        .context(|| "cannot simulate".to_owned())?;
        let flushed = written.and_then(|()| file.as_mut().map_or(Ok(()), Write::flush));
        flushed.context(|| "cannot write the records".to_owned())?;
        summaries.push(tally.summary(&policy.to_string()));
    }
    if args.json {
        print_json(&serde_json::json!({ "policies": summaries, "seed": args.seed }));
        return Ok(ExitCode::SUCCESS);
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
            ]
        })
        .collect();
    let headings = ["POLICY", "ANSWERED", "FAILED", "COLD", "MEAN ms", "P50 ms", "P99 ms"];
    print(&table(&headings, &rows));
    Ok(ExitCode::SUCCESS)
}
