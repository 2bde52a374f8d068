//! The calls of a workload, in order of their arrival.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use openlambda_core::random::Rng;
use openlambda_core::time::Time;

use super::config::{Profile, WorkloadConfig};
use super::mix::Bursts;
use crate::cumulative::Cumulative;
use crate::spacing::{MINUTE, Spacing};

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
/// of one minute are held, and only where [`FunctionMix::spacing`](super::FunctionMix::spacing) moves them.
///
/// That is an *open* system: calls come whether or not earlier ones are answered. In a *closed* one a
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

    /// The next call of a closed loop, made at `at`, whatever the rate: of a function that no timer calls,
    /// drawn by popularity. `None`: all calls were made, or timers alone call.
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
