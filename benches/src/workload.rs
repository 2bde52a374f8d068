//! What a simulated cluster is asked to do: which function is called when, and how long it runs.
//!
//! A [`Workload`] is drawn from a seed alone, in streams with labels of their own, so every policy
//! under comparison sees the very same calls.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use openlambda_core::random::Rng;
use openlambda_core::time::Time;
use serde::Serialize;

use crate::cumulative::Cumulative;
use crate::spacing::{MINUTE, Spacing};

/// How long handlers run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Service {
    /// Exponentially distributed with this mean: the "M" of queueing theory's M/M/1.
    Exponential(Duration),
    /// Always the same.
    Fixed(Duration),
    /// A mixture of two exponential distributions with balanced means: mostly short times, and few
    /// that are long. The usual one to try a variance with that is above the exponential's.
    HyperExponential {
        /// The mean.
        mean: Duration,
        /// The squared coefficient of variation, at least 1 (which is the exponential's).
        scv: f64,
    },
    /// Log-normal, what handlers' times look like in production.
    LogNormal {
        /// The mean.
        mean: Duration,
        /// The standard deviation of the logarithm: the larger, the heavier the tail.
        sigma: f64,
    },
}

impl Service {
    /// The same kind with this mean.
    fn with_mean(self, mean: Duration) -> Self {
        match self {
            Service::Exponential(_) => Service::Exponential(mean),
            Service::Fixed(_) => Service::Fixed(mean),
            Service::HyperExponential { scv, .. } => Service::HyperExponential { mean, scv },
            Service::LogNormal { sigma, .. } => Service::LogNormal { mean, sigma },
        }
    }

    /// The mean.
    pub fn mean(self) -> Duration {
        match self {
            Service::Exponential(mean)
            | Service::Fixed(mean)
            | Service::HyperExponential { mean, .. }
            | Service::LogNormal { mean, .. } => mean,
        }
    }

    fn draw(self, rng: &mut Rng) -> Duration {
        match self {
            Service::Exponential(mean) => rng.exponential(mean),
            Service::Fixed(time) => time,
            Service::HyperExponential { mean, scv } => {
                // Each branch carries half of the mean: p₁ m₁ = p₂ m₂ = mean / 2.
                let scv = scv.max(1.0);
                let short = (1.0 + libm::sqrt((scv - 1.0) / (scv + 1.0))) / 2.0;
                let share = if rng.chance(short) { short } else { 1.0 - short };
                rng.exponential(mean.div_f64(2.0 * share))
            }
            Service::LogNormal { mean, sigma } => {
                mean.mul_f64(libm::exp(sigma * rng.normal() - sigma * sigma / 2.0))
            }
        }
    }
}

/// A log-normal distribution, cut off at both ends: what falls outside counts as the end.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LogNormal {
    /// Half of what is drawn is below.
    pub median: f64,
    /// The standard deviation of the logarithm.
    pub sigma: f64,
    /// The least that is drawn.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl LogNormal {
    fn draw(self, rng: &mut Rng) -> f64 {
        (self.median * libm::exp(self.sigma * rng.normal())).clamp(self.least, self.most)
    }
}

/// How functions differ. The default is not at all: then popularity alone is unequal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct FunctionMix {
    /// How popular each is beside the others; `None`: by Zipf's law.
    pub popularity: Option<LogNormal>,
    /// The share of functions that a timer calls, at equal intervals; the others are called by
    /// chance.
    pub timers: f64,
    /// The mean of a function's service times, milliseconds; `None`: that of
    /// [`WorkloadConfig::service`].
    pub service_ms: Option<LogNormal>,
    /// What an instance takes, MiB; `None`: what the experiment says for all.
    pub memory_mb: Option<LogNormal>,
    /// What a cold start takes, milliseconds; `None`: what the experiment says for all.
    pub cold_start_ms: Option<LogNormal>,
    /// How many packages there are: each function needs one of them, drawn by Zipf's law with the
    /// exponent 1. What a worker pulls is the package, and functions that need the same share it.
    /// `None`: none, and each function's bundle is its own.
    pub packages: Option<u32>,
    /// Calls by chance come in bursts. `None`: each by itself.
    pub bursts: Option<Bursts>,
    /// Where in its minute a call falls. Anything but [`Spacing::AsDrawn`] holds a minute's calls in memory.
    pub spacing: Spacing,
}

/// Calls by chance that come in bursts of one function: a burst begins by chance (Poisson), and its
/// calls follow each other at exponential intervals. How many calls a second there are does not change.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bursts {
    /// How many calls a burst has: the mean of a geometric distribution, at least 1.
    pub size: f64,
    /// The mean time between a burst's calls.
    pub gap: Duration,
}

impl Bursts {
    /// Whether the burst has one more call. Asked after each.
    fn goes_on(self, rng: &mut Rng) -> bool {
        rng.chance(1.0 - 1.0 / self.size.max(1.0))
    }
}

impl FunctionMix {
    /// Functions as at a large provider (Shahrad et al., *Serverless in the Wild*, USENIX ATC 2020,
    /// on the Azure Functions trace of 2019), each an application of its own:
    ///
    /// * popularity: 45 % of functions are called at most once an hour, 81 % at most once a minute.
    ///   Cut off at 10,000 calls a day: what is called more often is warm under any policy;
    /// * 15.6 % are called by a timer;
    /// * service times: log-normal with μ = −0.38 and σ = 2.36 (of seconds), cut off at 10 s;
    /// * memory: half take at most 170 MiB, 90 % at most 400.
    ///
    /// The trace says nothing of cold starts. They are drawn around 1 s, 90 % between 0.2 and 5.2 s.
    pub fn azure() -> Self {
        FunctionMix {
            popularity: Some(LogNormal { median: 40.0, sigma: 4.08, least: 2.0, most: 10_000.0 }),
            timers: 0.156,
            service_ms: Some(LogNormal { median: 684.0, sigma: 2.36, least: 1.0, most: 10_000.0 }),
            memory_mb: Some(LogNormal { median: 170.0, sigma: 0.668, least: 32.0, most: 2048.0 }),
            cold_start_ms: Some(LogNormal {
                median: 1000.0,
                sigma: 1.0,
                least: 100.0,
                most: 20_000.0,
            }),
            packages: None,
            bursts: None,
            spacing: Spacing::AsDrawn,
        }
    }
}

/// What one function of a workload is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    /// Calls a second, on average.
    pub rate: f64,
    /// A timer calls it, at equal intervals.
    pub timer: bool,
    /// How long its handler runs.
    pub service: Service,
    /// What an instance takes, bytes, when the workload says.
    pub memory: Option<u64>,
    /// What a cold start takes, when the workload says.
    pub cold_start: Option<Duration>,
    /// The package that it needs, `0..packages`, when the workload says.
    pub package: Option<u32>,
}

/// The calls of an experiment: arrivals by chance (Poisson, or in bursts) and by timers over functions
/// of unequal popularity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct WorkloadConfig {
    /// Calls a second, over all functions.
    pub rate: f64,
    /// How many functions there are.
    pub functions: u32,
    /// The exponent of Zipf's law for their popularity: 0 makes all alike, 1 is the classic.
    pub zipf: f64,
    /// How long handlers run.
    pub service: Service,
    /// How many calls there are.
    pub invocations: u64,
    /// How functions differ.
    pub mix: FunctionMix,
}

impl WorkloadConfig {
    /// The same calls, but so many a second that their handlers keep `busy` processors busy on
    /// average. Functions that differ make that another rate under each seed.
    #[must_use]
    pub fn with_busy(mut self, busy: f64, seed: u64) -> Self {
        let seconds_of = |profile: &Profile| profile.rate * profile.service.mean().as_secs_f64();
        let now: f64 = self.profiles(seed).iter().map(seconds_of).sum();
        self.rate *= busy / now;
        self
    }

    /// The functions under `seed`, `0..functions`. Each property has a stream of its own, so a mix
    /// with one distribution more draws the same for the others.
    pub fn profiles(&self, seed: u64) -> Vec<Profile> {
        let mix = &self.mix;
        let stream = |label| Rng::from_seed_and_label(seed, label);
        let (mut popularity, mut timers) = (stream("popularity"), stream("timers"));
        let (mut service, mut memory) = (stream("service means"), stream("memory"));
        let (mut cold_start, mut package) = (stream("cold starts"), stream("packages"));
        let millis = |value: f64| Duration::from_secs_f64(value / 1e3);
        let mut profiles: Vec<Profile> = (1..=self.functions)
            .map(|rank| Profile {
                rate: match mix.popularity {
                    Some(distribution) => distribution.draw(&mut popularity),
                    None => libm::pow(f64::from(rank), -self.zipf),
                },
                timer: timers.chance(mix.timers),
                service: match mix.service_ms {
                    Some(means) => self.service.with_mean(millis(means.draw(&mut service))),
                    None => self.service,
                },
                memory: mix.memory_mb.map(|mb| (mb.draw(&mut memory) * 1048576.0) as u64),
                cold_start: mix.cold_start_ms.map(|ms| millis(ms.draw(&mut cold_start))),
                package: mix.packages.map(|count| draw_by_rank(count, &mut package)),
            })
            .collect();
        let total: f64 = profiles.iter().map(|profile| profile.rate).sum();
        for profile in &mut profiles {
            profile.rate *= self.rate / total;
        }
        profiles
    }
}

impl Default for WorkloadConfig {
    /// 100,000 calls at 100 a second, 50 ms each in the mean, of 100 functions by the classic law.
    fn default() -> Self {
        WorkloadConfig {
            mix: FunctionMix::default(),
            rate: 100.0,
            functions: 100,
            zipf: 1.0,
            service: Service::Exponential(Duration::from_millis(50)),
            invocations: 100_000,
        }
    }
}

/// One of `0..count` by Zipf's law with the exponent 1; 0 when there is only that.
fn draw_by_rank(count: u32, rng: &mut Rng) -> u32 {
    let weights = || (1..=count).map(|rank| 1.0 / f64::from(rank));
    let mut left = rng.unit() * weights().sum::<f64>();
    let before = weights().take_while(|weight| {
        left -= weight;
        left >= 0.0
    });
    (before.count() as u32).min(count.saturating_sub(1))
}

/// One call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival {
    /// When.
    pub at: Time,
    /// Which function, `0..functions`.
    pub function: u32,
    /// How long its handler will run.
    pub service: Duration,
}

/// The calls, in order of time. An iterator, so that a long experiment needs no memory for them; at most those
/// of one minute are held, and only where [`FunctionMix::spacing`] moves them.
///
/// That is an *open* system: calls come whatever becomes of those before them. In a *closed* one a
/// user waits for the answer before the next call; then the caller says when, with
/// [`Workload::call_at`].
#[derive(Debug)]
pub struct Workload {
    profiles: Vec<Profile>,
    /// The share of functions `0..=i` in the calls by chance, up to 1.
    cumulative: Cumulative,
    left: u64,
    /// The mean time between calls by chance (of bursts: between their beginnings), and when the next
    /// one is; `None` without such calls.
    gap: Duration,
    chance: Option<Time>,
    bursts: Option<Bursts>,
    /// The next call of each timer, and of each burst that goes on.
    known: BinaryHeap<Reverse<(Time, u32)>>,
    spacing: Spacing,
    /// The calls of the minute that is being played, and the first one of a later minute.
    minute: VecDeque<Arrival>,
    later: Option<Arrival>,
    within_minutes: Rng,
    arrivals: Rng,
    within_bursts: Rng,
    functions: Rng,
    services: Rng,
}

impl Workload {
    /// The calls of `config` under `seed`.
    ///
    /// # Panics
    ///
    /// When the rate is not positive or there is no function.
    pub fn new(config: WorkloadConfig, seed: u64) -> Self {
        assert!(config.rate > 0.0 && config.functions > 0, "a workload needs calls and functions");
        let profiles = config.profiles(seed);
        let by_chance = |profile: &Profile| if profile.timer { 0.0 } else { profile.rate };
        let total: f64 = profiles.iter().map(by_chance).sum();
        let mut sum = 0.0;
        let cumulative = profiles.iter().map(|profile| {
            sum += by_chance(profile) / total;
            sum
        });
        let cumulative = Cumulative::new(cumulative.collect());
        let mut phases = Rng::from_seed_and_label(seed, "phases");
        let timers = (0..).zip(&profiles).filter(|(_, profile)| profile.timer);
        let timers = timers.map(|(function, profile)| {
            let first = Time::ZERO + period(profile).mul_f64(phases.unit());
            Reverse((first, function))
        });
        let mut workload = Workload {
            known: timers.collect(),
            profiles,
            cumulative,
            left: config.invocations,
            gap: Duration::ZERO,
            chance: None,
            bursts: config.mix.bursts,
            spacing: config.mix.spacing,
            minute: VecDeque::new(),
            later: None,
            within_minutes: Rng::from_seed_and_label(seed, "minutes"),
            within_bursts: Rng::from_seed_and_label(seed, "bursts"),
            arrivals: Rng::from_seed_and_label(seed, "arrivals"),
            functions: Rng::from_seed_and_label(seed, "functions"),
            services: Rng::from_seed_and_label(seed, "services"),
        };
        if total > 0.0 {
            let size = workload.bursts.map_or(1.0, |bursts| bursts.size.max(1.0));
            workload.gap = Duration::from_secs_f64(size / total);
            workload.chance = Some(Time::ZERO + workload.arrivals.exponential(workload.gap));
        }
        workload
    }

    /// The next call when somebody decides to make one at `at`, whatever the rate: a function that is
    /// called by chance, by popularity. `None`: all calls were made, or timers alone call.
    pub fn call_at(&mut self, at: Time) -> Option<Arrival> {
        self.chance?;
        self.left = self.left.checked_sub(1)?;
        let function = self.by_popularity();
        Some(self.call(at, function))
    }

    fn call(&mut self, at: Time, function: u32) -> Arrival {
        let service = self.profiles[function as usize].service.draw(&mut self.services);
        Arrival { at, function, service }
    }

    fn by_popularity(&mut self) -> u32 {
        let draw = self.functions.unit();
        let mut function = self.cumulative.first_above(draw);
        // Sums round: the draw may be beyond the last of them.
        while self.profiles.get(function).is_none_or(|profile| profile.timer) {
            function -= 1;
        }
        function as u32
    }

    /// After a call by chance of `function` at `at`: the next of its burst, if there is one.
    fn go_on(&mut self, at: Time, function: u32) {
        if let Some(bursts) = self.bursts
            && bursts.goes_on(&mut self.within_bursts)
        {
            let next = at + self.within_bursts.exponential(bursts.gap);
            self.known.push(Reverse((next, function)));
        }
    }

    /// The next call where it was drawn.
    fn draw(&mut self) -> Option<Arrival> {
        self.left = self.left.checked_sub(1)?;
        let known = self.known.peek().map(|Reverse((at, _))| *at);
        let (at, function) = match (self.chance, known) {
            (Some(chance), known) if known.is_none_or(|known| chance <= known) => {
                self.chance = Some(chance + self.arrivals.exponential(self.gap));
                let function = self.by_popularity();
                self.go_on(chance, function);
                (chance, function)
            }
            _ => {
                let Reverse((at, function)) = self.known.pop()?;
                let profile = &self.profiles[function as usize];
                if profile.timer {
                    self.known.push(Reverse((at + period(profile), function)));
                } else {
                    self.go_on(at, function);
                }
                (at, function)
            }
        };
        Some(self.call(at, function))
    }

    /// Draws the calls of the next minute that has any, and puts them where the spacing says.
    fn draw_minute(&mut self) -> Option<()> {
        let first = self.later.take().or_else(|| self.draw())?;
        let length = MINUTE.as_nanos() as u64;
        let minute = Time(first.at.as_nanos() / length * length);
        self.minute.push_back(first);
        while let Some(call) = self.draw() {
            if call.at >= minute + MINUTE {
                self.later = Some(call);
                break;
            }
            self.minute.push_back(call);
        }
        let functions: Vec<u32> = self.minute.iter().map(|call| call.function).collect();
        if let Some(offsets) = self.spacing.offsets(&functions, &mut self.within_minutes) {
            for (call, offset) in self.minute.iter_mut().zip(offsets) {
                call.at = minute + offset;
            }
            // Calls of the same moment stay in the order in which they were drawn.
            self.minute.make_contiguous().sort_by_key(|call| call.at);
        }
        Some(())
    }
}

/// The time between two calls by a timer.
fn period(profile: &Profile) -> Duration {
    Duration::from_secs_f64(1.0 / profile.rate)
}

impl Iterator for Workload {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        if self.spacing == Spacing::AsDrawn {
            return self.draw();
        }
        if self.minute.is_empty() {
            self.draw_minute()?;
        }
        self.minute.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_popularity_are_as_asked() {
        let config = WorkloadConfig {
            rate: 100.0,
            functions: 10,
            zipf: 1.0,
            service: Service::Exponential(Duration::from_millis(10)),
            invocations: 100_000,
            mix: FunctionMix::default(),
        };
        let calls: Vec<Arrival> = Workload::new(config, 3).collect();
        assert_eq!(calls.len(), 100_000);
        let seconds = calls.last().unwrap().at.as_secs_f64();
        assert!((seconds - 1000.0).abs() < 20.0, "{seconds}");
        let of = |function| calls.iter().filter(|call| call.function == function).count() as f64;
        assert!((of(0) / of(1) - 2.0).abs() < 0.1, "{} {}", of(0), of(1));
        let mean = calls.iter().map(|call| call.service.as_secs_f64()).sum::<f64>() / 1e5;
        assert!((mean - 0.010).abs() < 0.0002, "{mean}");
    }

    fn azure(functions: u32, invocations: u64) -> WorkloadConfig {
        WorkloadConfig {
            rate: 5.0,
            functions,
            zipf: 0.0,
            service: Service::Fixed(Duration::from_millis(10)),
            invocations,
            mix: FunctionMix::azure(),
        }
    }

    #[test]
    fn a_mix_has_the_marginals_that_it_names() {
        let profiles = azure(20_000, 0).profiles(1);
        let share = |of: &dyn Fn(&Profile) -> bool| {
            profiles.iter().filter(|profile| of(profile)).count() as f64 / 20_000.0
        };
        let near = |value: f64, wanted: f64| assert!((value - wanted).abs() < 0.01, "{value}");
        near(share(&|profile| profile.memory.unwrap() <= 170 << 20), 0.5);
        near(share(&|profile| profile.memory.unwrap() <= 400 << 20), 0.9);
        near(share(&|profile| profile.timer), 0.156);
        near(share(&|profile| profile.cold_start.unwrap() <= Duration::from_secs(1)), 0.5);
        // The rates are scaled to 5 a second over all; the rarest have 2 calls a day for 40 of the
        // median.
        let rarest = profiles.iter().map(|profile| profile.rate).fold(f64::MAX, f64::min);
        near(share(&|profile| profile.rate <= 20.0 * rarest), 0.5);
        near(share(&|profile| profile.rate <= 12.0 * rarest), 0.45);
        near(share(&|profile| profile.rate <= 720.0 * rarest), 0.81);
        let total: f64 = profiles.iter().map(|profile| profile.rate).sum();
        assert!((total - 5.0).abs() < 1e-9);
    }

    #[test]
    fn services_have_the_mean_and_the_variance_that_they_name() {
        let mean = Duration::from_millis(10);
        let sigma = libm::sqrt(libm::log(5.0));
        for (service, scv) in [
            (Service::Fixed(mean), 0.0),
            (Service::Exponential(mean), 1.0),
            (Service::HyperExponential { mean, scv: 5.0 }, 5.0),
            // exp(σ²) − 1.
            (Service::LogNormal { mean, sigma }, 4.0),
        ] {
            let mut rng = Rng::from_seed(3);
            let n = 400_000;
            let times: Vec<f64> = (0..n).map(|_| service.draw(&mut rng).as_secs_f64()).collect();
            let moment = |k: i32| times.iter().map(|time| time.powi(k)).sum::<f64>() / f64::from(n);
            assert!((moment(1) / 0.010 - 1.0).abs() < 0.02, "{service:?}: {}", moment(1));
            let measured = moment(2) / moment(1).powi(2) - 1.0;
            assert!((measured - scv).abs() <= 0.1 * scv + 1e-9, "{service:?}: {measured}");
            assert_eq!(service.mean(), mean);
            let longer = service.with_mean(2 * mean).draw(&mut Rng::from_seed(9));
            let twice = 2.0 * service.draw(&mut Rng::from_seed(9)).as_secs_f64();
            assert!((longer.as_secs_f64() - twice).abs() < 1e-8, "{service:?}");
        }
    }

    #[test]
    fn packages_are_drawn_by_zipfs_law_and_change_nothing_else() {
        let mut config = azure(30_000, 0);
        let without = config.profiles(1);
        config.mix.packages = Some(3);
        let with = config.profiles(1);
        for (package, share) in [(0, 6.0 / 11.0), (1, 3.0 / 11.0), (2, 2.0 / 11.0)] {
            let of = with.iter().filter(|profile| profile.package == Some(package)).count();
            assert!((of as f64 / 30_000.0 - share).abs() < 0.01, "package {package}: {of}");
        }
        let seconds = |profile: &Profile| profile.rate * profile.service.mean().as_secs_f64();
        let busy: f64 = config.with_busy(7.0, 1).profiles(1).iter().map(seconds).sum();
        assert!((busy - 7.0).abs() < 1e-6, "{busy}");
        let same = |(a, b): (&Profile, &Profile)| *a == Profile { package: None, ..*b };
        assert!(without.iter().zip(&with).all(same));
    }

    #[test]
    fn timers_go_off_at_equal_intervals_and_time_never_goes_back() {
        let config = azure(50, 20_000);
        let profiles = config.profiles(2);
        let calls: Vec<Arrival> = Workload::new(config, 2).collect();
        assert_eq!(calls.len(), 20_000);
        assert!(calls.is_sorted_by_key(|call| call.at));
        let mut timers = 0;
        for (function, profile) in (0..).zip(&profiles) {
            let of = calls.iter().filter(|call| call.function == function);
            let times: Vec<f64> = of.map(|call| call.at.as_secs_f64()).collect();
            if profile.timer && times.len() > 2 {
                timers += 1;
                for pair in times.windows(2) {
                    assert!((pair[1] - pair[0] - 1.0 / profile.rate).abs() < 1e-6);
                }
            }
        }
        assert!(timers > 2, "{timers}");
        let seconds = calls.last().unwrap().at.as_secs_f64();
        assert!((seconds / 4000.0 - 1.0).abs() < 0.05, "{seconds}");
    }

    #[test]
    fn bursts_change_when_calls_come_and_not_how_many() {
        let mut config = azure(20, 100_000);
        config.mix = FunctionMix::default();
        let gap = Duration::from_millis(1);
        config.mix.bursts = Some(Bursts { size: 8.0, gap });
        let calls: Vec<Arrival> = Workload::new(config, 4).collect();
        assert!(calls.is_sorted_by_key(|call| call.at));
        // 12,500 bursts at 0.625 a second.
        let seconds = calls.last().unwrap().at.as_secs_f64();
        assert!((seconds / 20_000.0 - 1.0).abs() < 0.05, "{seconds}");
        // Seven of eight calls follow another of their function at once; without bursts, nearly none.
        let following = |calls: &[Arrival]| {
            let pairs = calls.windows(2).filter(|pair| {
                let [before, after] = pair else { unreachable!() };
                before.function == after.function && after.at.since(before.at) < 20 * gap
            });
            pairs.count() as f64 / calls.len() as f64
        };
        assert!((following(&calls) - 0.875).abs() < 0.02, "{}", following(&calls));
        config.mix.bursts = None;
        let alone: Vec<Arrival> = Workload::new(config, 4).collect();
        assert!(following(&alone) < 0.03, "{}", following(&alone));
    }

    #[test]
    fn a_user_calls_when_it_likes_and_never_a_timers_function() {
        let config = azure(50, 1_000);
        let profiles = config.profiles(2);
        let mut workload = Workload::new(config, 2);
        let at = |n: u64| Time(n * 1_000);
        let calls: Vec<Arrival> = (0..2_000).map_while(|n| workload.call_at(at(n))).collect();
        assert_eq!(calls.len(), 1_000);
        for (n, call) in (0..).zip(&calls) {
            assert_eq!(call.at, at(n));
            assert!(!profiles[call.function as usize].timer);
        }
    }

    #[test]
    fn a_timer_of_twenty_seconds_goes_off_three_times_a_minute() {
        let config = WorkloadConfig {
            rate: 0.05,
            functions: 1,
            service: Service::Fixed(Duration::from_millis(1)),
            invocations: 12,
            mix: FunctionMix { timers: 1.0, spacing: Spacing::Even, ..FunctionMix::default() },
            ..WorkloadConfig::default()
        };
        let times: Vec<u64> = Workload::new(config, 1).map(|call| call.at.as_nanos()).collect();
        let wanted: Vec<u64> = (0..12).map(|n| n * 20_000_000_000).collect();
        assert_eq!(times, wanted);
    }

    #[test]
    fn a_spacing_changes_when_calls_come_and_nothing_else() {
        let calls = |spacing| {
            let config = WorkloadConfig {
                rate: 2.0,
                functions: 40,
                service: Service::Exponential(Duration::from_millis(100)),
                invocations: 5_000,
                mix: FunctionMix {
                    popularity: Some(LogNormal { median: 40.0, sigma: 2.0, least: 2.0, most: 1e4 }),
                    timers: 0.3,
                    spacing,
                    ..FunctionMix::default()
                },
                ..WorkloadConfig::default()
            };
            let calls: Vec<Arrival> = Workload::new(config, 3).collect();
            assert!(calls.is_sorted_by_key(|call| call.at), "{spacing:?}");
            calls
        };
        // Of each minute and function: which service times, in any order.
        let content = |calls: &[Arrival]| {
            let minute = |call: &Arrival| call.at.as_nanos() / (MINUTE.as_nanos() as u64);
            let mut all: Vec<(u64, u32, Duration)> =
                calls.iter().map(|call| (minute(call), call.function, call.service)).collect();
            all.sort_unstable();
            all
        };
        let drawn = calls(Spacing::AsDrawn);
        assert!(drawn.last().unwrap().at > Time::ZERO + 30 * MINUTE, "over half an hour");
        for spacing in [Spacing::Uniform, Spacing::Even, Spacing::EvenShifted, Spacing::Start] {
            let moved = calls(spacing);
            assert_eq!(content(&moved), content(&drawn), "{spacing:?}");
            assert_ne!(moved, drawn, "{spacing:?}");
            assert_eq!(moved, calls(spacing), "{spacing:?}: a second time");
        }
    }
}
