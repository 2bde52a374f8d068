//! The arguments of `ol sim`.

use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use openlambda_core::catalog::Choice;
use openlambda_core::keep_alive;
use openlambda_core::scheduler::{Limits, PauseAfter, RunningLimit, SchedulerConfig};
use openlambda_lab::sim::{SimConfig, Users};
use openlambda_lab::spacing::Spacing;
use openlambda_lab::workload::{Bursts, FunctionMix, Service, WorkloadConfig};
use openlambda_lb::policies::PolicyConfig;

use crate::Catalog;
use crate::error::{CliError, Result};

#[derive(Args, Debug)]
pub(in crate::cli) struct SimArgs {
    /// A policy, with parameters after commas; may be given more than once [default: all]
    #[arg(long = "policy", value_name = "NAME[,KEY=VALUE]")]
    pub(super) policies: Vec<PolicyConfig>,
    /// How many balancers, each with its own view; each call goes to a random one
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    balancers: u32,
    /// How many workers
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    workers: u32,
    /// How many functions
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    functions: u32,
    /// Exponent of Zipf's law for the functions' popularity; 0 makes all equally popular
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    zipf: f64,
    /// Calls a second, over all functions
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// How many calls
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    invocations: u64,
    /// How functions differ: in popularity alone, or, as a large provider's functions, in popularity,
    /// triggers, memory, times of handlers and of cold starts; then --zipf, --mean-ms and --cold-ms
    /// have no effect
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
    /// Where in its minute a call falls; traces of counts per minute leave it open. How often each function
    /// is called in each minute is the same with all
    #[arg(long, value_enum, default_value_t = Placing::AsDrawn)]
    spacing: Placing,
    /// A closed loop: so many users, each of whom waits for an answer before the next call; then
    /// --rate, --burst and --spacing have no effect
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
    /// The size of a function's bundle, MiB
    #[arg(long, value_name = "MIB", default_value_t = 1.0)]
    bundle_mb: f64,
    /// How much of unpacked bundles a worker keeps, MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024.0)]
    code_mb: f64,
    /// The time limit of a call, from the start of its handler
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    timeout_seconds: f64,
    /// How many namespaces the functions are in, in turns; workers are fair between them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    namespaces: u32,
    /// How long a call may wait on a worker
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    max_wait_seconds: f64,
    /// The most instances that a function has on one worker
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    max_instances: u32,
    /// The most calls of a function that wait on one worker
    #[arg(long, value_name = "N", default_value_t = 1024)]
    queue_limit: u32,
    /// How many calls a worker runs at once: none (no limit), a number, a multiple of the processors
    /// (2x), or load to follow it (load=1.5 for 1.5 threads per processor)
    #[arg(long, value_name = "LIMIT", default_value = "none")]
    running_limit: String,
    /// Each worker's queue policy, which orders the calls of all functions
    #[arg(long, value_name = "NAME", default_value = "fifo")]
    queue_policy: Choice,
    /// Each worker's memory pool, MiB; an instance takes 128, unless --mix says
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    memory_mb: u64,
    /// Keep-alive policy, with parameters after commas; `ol policies` lists them
    #[arg(long, value_name = "NAME[,KEY=VALUE]", default_value = keep_alive::DEFAULT)]
    keep_alive: Choice,
    /// How long the keep-alive policy ttl keeps an idle instance, unless it says so itself
    #[arg(long, value_name = "SECONDS", default_value_t = keep_alive::DEFAULT_TTL.as_secs_f64())]
    ttl_seconds: f64,
    /// Pause an instance after this time without a call: seconds or never
    #[arg(long, value_name = "SECONDS", default_value_t = PauseAfter::Never)]
    pause_after_seconds: PauseAfter,
    /// Resuming a paused instance, milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    resume_ms: f64,
    /// How much of its memory a paused instance uses, 0 to 1; the rest is lent when memory is short
    #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
    paused_share: f64,
    /// Seed of everything: the same seed gives the same bytes. May be given more than once: then means over
    /// the seeds are printed, with their 95 % confidence intervals
    #[arg(long = "seed", value_name = "SEED", default_values_t = [1])]
    pub(super) seeds: Vec<u64>,
    /// How many simulations run at once [default: one for each processor]
    #[arg(long, value_name = "N")]
    pub(super) threads: Option<NonZero<usize>>,
    /// Write a record of every call to this file, as JSON lines; with one --policy and one --seed only
    #[arg(long, value_name = "FILE")]
    pub(super) records: Option<PathBuf>,
    /// Print JSON, for scripts
    #[arg(long)]
    pub(super) json: bool,
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

/// [`Spacing`], as the command line has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Placing {
    /// By chance, timers at equal intervals, bursts together
    AsDrawn,
    /// Anywhere, timers too
    Uniform,
    /// A function's calls at equal intervals from the minute's start, as FaasCache has them
    Even,
    /// The same, each function from a moment of its own
    EvenShifted,
    /// All at the minute's start
    Start,
}

impl From<Placing> for Spacing {
    fn from(placing: Placing) -> Self {
        match placing {
            Placing::AsDrawn => Spacing::AsDrawn,
            Placing::Uniform => Spacing::Uniform,
            Placing::Even => Spacing::Even,
            Placing::EvenShifted => Spacing::EvenShifted,
            Placing::Start => Spacing::Start,
        }
    }
}

impl SimArgs {
    /// What is simulated, with the first of the seeds.
    pub(super) fn config(&self, catalog: &Catalog) -> Result<SimConfig> {
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
        let seconds = |flag: &str, value: f64| {
            let time = Duration::try_from_secs_f64(value).ok().filter(|time| !time.is_zero());
            time.ok_or_else(|| {
                let message = format!("--{flag} {value} is not a time; use more than 0");
                CliError::new(message)
            })
        };
        let size = |flag: &str, value: f64| {
            let bytes = value * f64::from(1 << 20);
            (0.0..=1e15).contains(&bytes).then_some(bytes as u64).ok_or_else(|| {
                CliError::new(format!("--{flag} {value} is not a size; use 0 or more"))
            })
        };
        let processors = self.processors.unwrap_or(1);
        let by_processors = |limit: &str| limit.ends_with('x') || limit.starts_with("load");
        if self.processors.is_none() && by_processors(&self.running_limit) {
            return Err(CliError::new(format!(
                "--running-limit {} needs --processors: without it each call has a processor of its own",
                self.running_limit
            )));
        }
        let running = RunningLimit::parse(&self.running_limit, processors)
            .map_err(|error| CliError::new(format!("--running-limit: {error}")))?;
        let bursts = Bursts { size: self.burst, gap: ms("burst-gap-ms", self.burst_gap_ms)? };
        let think = ms("think-ms", self.think_ms)?;
        let ttl = ms("ttl-seconds", self.ttl_seconds * 1e3)?;
        let keep_alive = keep_alive::or_ttl(self.keep_alive.clone(), ttl);
        let keep_alive = catalog.keep_alive_policies().maker(&keep_alive)?;
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
                    spacing: self.spacing.into(),
                    ..match self.mix {
                        Mix::Alike => FunctionMix::default(),
                        Mix::Azure => FunctionMix::azure(),
                    }
                },
            },
            users: self.users.map(|count| Users { count, think }),
            balancers: self.balancers,
            workers: self.workers,
            processors: self.processors,
            scheduler: SchedulerConfig {
                memory: self.memory_mb << 20,
                running,
                pause_after: self.pause_after_seconds.time(),
                ..SchedulerConfig::default()
            },
            resume: ms("resume-ms", self.resume_ms)?,
            paused_share: match self.paused_share {
                share if (0.0..=1.0).contains(&share) => share,
                share => {
                    let message = format!("--paused-share {share} is not a share; use 0 to 1");
                    return Err(CliError::new(message));
                }
            },
            keep_alive,
            queue: catalog.queue_policies().maker(&self.queue_policy)?,
            code_budget: size("code-mb", self.code_mb)?,
            bundle_bytes: size("bundle-mb", self.bundle_mb)?,
            limits: Limits {
                memory,
                slots: 1,
                max_instances: self.max_instances,
                queue: self.queue_limit,
                timeout: seconds("timeout-seconds", self.timeout_seconds)?,
                reuse: true,
                pause_after: None,
            },
            namespaces: self.namespaces,
            max_wait: seconds("max-wait-seconds", self.max_wait_seconds)?,
            hop: ms("hop-ms", self.hop_ms)?,
            pull: ms("pull-ms", self.pull_ms)?,
            cold_start: ms("cold-ms", self.cold_ms)?,
            heartbeat: Duration::from_millis(500),
            seed: self.seeds[0],
            ..SimConfig::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SimArgs,
    }

    #[test]
    fn the_time_to_live_is_a_default_of_the_policy_that_has_one() {
        for (line, text) in [
            ("sim", "ttl,seconds=600"),
            ("sim --ttl-seconds 0.5", "ttl,seconds=0.5"),
            ("sim --ttl-seconds 0.5 --keep-alive ttl,seconds=7", "ttl,seconds=7"),
            ("sim --ttl-seconds 0.5 --keep-alive lru", "lru"),
        ] {
            let Line { args } = Line::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(args.config(&Catalog::standard()).unwrap().keep_alive.text(), text);
        }
    }
}
