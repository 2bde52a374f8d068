//! What servers count, and the text in which Prometheus reads it.
//!
//! Counting is a few atomic additions and takes no lock. [`Text`] writes the
//! [text format](https://prometheus.io/docs/instrumenting/exposition_formats/), version 0.0.4;
//! names are in base units, counters end in `_total`.
//!
//! Labels are bounded: a function has series only once it was found in a registry, at most
//! [`MOST_FUNCTIONS`] have them at once (of more, those that were called longest ago lose theirs),
//! and one that is deleted, or was not called for an hour, loses them too.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::failure::FailureKind;
use crate::function::FunctionName;
use crate::invocation::StartKind;
use crate::time::Time;

/// The `Content-Type` of [`Text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The most functions that have series of their own.
pub const MOST_FUNCTIONS: usize = 1000;

/// A function that was not called for so long loses its series.
const FORGET_AFTER: Duration = Duration::from_secs(3600);

/// How an invocation came out, as the label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The client got the function's whole reply.
    Ok,
    /// The client got a failure; the label is its code.
    Failed(FailureKind),
    /// The reply broke off in the middle.
    BrokenOff,
    /// The client left before the end.
    Cancelled,
}

impl Outcome {
    const COUNT: usize = FailureKind::ALL.len() + 3;

    /// The label's value: `ok`, a failure's code, `broken_off`, `cancelled`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Failed(kind) => kind.code(),
            Outcome::BrokenOff => "broken_off",
            Outcome::Cancelled => "cancelled",
        }
    }

    fn index(self) -> usize {
        match self {
            Outcome::Ok => 0,
            Outcome::BrokenOff => 1,
            Outcome::Cancelled => 2,
            Outcome::Failed(kind) => {
                3 + FailureKind::ALL.iter().position(|known| *known == kind).unwrap_or_default()
            }
        }
    }

    fn at(index: usize) -> Self {
        match index {
            0 => Outcome::Ok,
            1 => Outcome::BrokenOff,
            2 => Outcome::Cancelled,
            more => Outcome::Failed(FailureKind::ALL[more - 3]),
        }
    }
}

/// The label `start`: how warm the instance was, and nothing for a call that never ran.
const STARTS: [(&str, Option<StartKind>); 4] = [
    ("", None),
    ("cold", Some(StartKind::Cold)),
    ("zygote", Some(StartKind::Zygote)),
    ("warm", Some(StartKind::Warm)),
];

/// The upper bounds of a [`Histogram`]'s buckets, nanoseconds: 100 µs to 60 s.
const BOUNDS: [u64; 18] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
];

/// Durations in buckets from 100 µs to 60 s.
#[derive(Debug, Default)]
pub struct Histogram {
    /// The last one has no bound.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum: AtomicU64,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < nanos);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(nanos, Ordering::Relaxed);
    }
}

/// What is counted of one function's invocations.
#[derive(Debug)]
pub struct FunctionCalls {
    /// `None`: of those that never got as far as a function.
    name: Option<FunctionName>,
    counts: [[AtomicU64; STARTS.len()]; Outcome::COUNT],
    durations: Histogram,
    /// When it was called last.
    used: AtomicU64,
    /// Whether [`CallMetrics`] still writes it out.
    listed: AtomicBool,
}

impl FunctionCalls {
    fn new(name: Option<FunctionName>, now: Time) -> Self {
        FunctionCalls {
            name,
            counts: Default::default(),
            durations: Histogram::default(),
            used: AtomicU64::new(now.as_nanos()),
            listed: AtomicBool::new(true),
        }
    }

    fn add(&self, outcome: Outcome, start: Option<StartKind>, took: Duration, now: Time) {
        let start = STARTS.iter().position(|(_, known)| *known == start).unwrap_or_default();
        self.counts[outcome.index()][start].fetch_add(1, Ordering::Relaxed);
        self.durations.observe(took);
        self.used.store(now.as_nanos(), Ordering::Relaxed);
    }
}

/// Invocations by function. Shared by all calls of a server.
#[derive(Debug)]
pub struct CallMetrics {
    functions: Mutex<BTreeMap<FunctionName, Arc<FunctionCalls>>>,
    unresolved: Arc<FunctionCalls>,
}

impl Default for CallMetrics {
    fn default() -> Self {
        let unresolved = Arc::new(FunctionCalls::new(None, Time::ZERO));
        CallMetrics { functions: Mutex::default(), unresolved }
    }
}

impl CallMetrics {
    /// Where the calls of a function that was found are counted. Keep it: looking it up takes a lock.
    pub fn of(&self, function: &FunctionName, now: Time) -> Arc<FunctionCalls> {
        let mut functions = self.lock();
        if let Some(calls) = functions.get(function) {
            return Arc::clone(calls);
        }
        let calls = Arc::new(FunctionCalls::new(Some(function.clone()), now));
        list(&mut functions, function, &calls);
        calls
    }

    /// Where calls are counted of which the function was never known.
    pub fn unresolved(&self) -> &Arc<FunctionCalls> {
        &self.unresolved
    }

    /// Counts one invocation that is over.
    pub fn record(
        &self,
        calls: &Arc<FunctionCalls>,
        outcome: Outcome,
        start: Option<StartKind>,
        took: Duration,
        now: Time,
    ) {
        match &calls.name {
            Some(name) if !calls.listed.load(Ordering::Relaxed) => {
                // It lost its series and is called again: it, or another one by its name, has them.
                let mut functions = self.lock();
                if !functions.contains_key(name) {
                    list(&mut functions, name, calls);
                }
                functions[name].add(outcome, start, took, now);
            }
            _ => calls.add(outcome, start, took, now),
        }
    }

    /// The function is deleted: its series end.
    pub fn forget(&self, function: &FunctionName) {
        if let Some(calls) = self.lock().remove(function) {
            calls.listed.store(false, Ordering::Relaxed);
        }
    }

    /// Writes `ol_invocations_total` and `ol_invocation_duration_seconds`.
    pub fn write(&self, text: &mut Text, now: Time) {
        let functions: Vec<Arc<FunctionCalls>> = {
            let mut functions = self.lock();
            functions.retain(|_, calls| {
                let used = Time(calls.used.load(Ordering::Relaxed));
                let keep = now.since(used) < FORGET_AFTER;
                calls.listed.store(keep, Ordering::Relaxed);
                keep
            });
            functions.values().cloned().chain([Arc::clone(&self.unresolved)]).collect()
        };
        let name = |calls: &FunctionCalls| {
            calls.name.as_ref().map(ToString::to_string).unwrap_or_default()
        };
        let mut total = text.family(
            "ol_invocations_total",
            Kind::Counter,
            "Invocations that are over; without a function when none was found, without a start \
             when none ran.",
        );
        for calls in &functions {
            let function = name(calls);
            for (index, starts) in calls.counts.iter().enumerate() {
                for ((start, _), count) in STARTS.iter().zip(starts) {
                    let count = count.load(Ordering::Relaxed);
                    if count > 0 {
                        let outcome = Outcome::at(index).as_str();
                        let labels =
                            [("function", &*function), ("outcome", outcome), ("start", start)];
                        total.sample(&labels, count);
                    }
                }
            }
        }
        let mut durations = text.family(
            "ol_invocation_duration_seconds",
            Kind::Histogram,
            "From an invocation's arrival to its end.",
        );
        for calls in &functions {
            durations.histogram(&[("function", &*name(calls))], &calls.durations);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<FunctionName, Arc<FunctionCalls>>> {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn list(
    functions: &mut BTreeMap<FunctionName, Arc<FunctionCalls>>,
    name: &FunctionName,
    calls: &Arc<FunctionCalls>,
) {
    if functions.len() >= MOST_FUNCTIONS {
        let used = |calls: &FunctionCalls| calls.used.load(Ordering::Relaxed);
        let oldest = functions.iter().min_by_key(|(_, calls)| used(calls));
        if let Some(oldest) = oldest.map(|(name, _)| name.clone())
            && let Some(calls) = functions.remove(&oldest)
        {
            calls.listed.store(false, Ordering::Relaxed);
        }
    }
    calls.listed.store(true, Ordering::Relaxed);
    functions.insert(name.clone(), Arc::clone(calls));
}

/// What a family of series means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until a restart.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A [`Histogram`].
    Histogram,
}

/// Metrics in Prometheus' text format, family by family.
#[derive(Debug, Default)]
pub struct Text {
    text: String,
}

impl Text {
    /// A text that begins with `ol_build_info`: which part of the platform this is, and its version.
    pub fn of(part: &str) -> Self {
        let mut text = Text::default();
        let help = "The part and its version; always 1.";
        let version = env!("CARGO_PKG_VERSION");
        text.family("ol_build_info", Kind::Gauge, help)
            .sample(&[("part", part), ("version", version)], 1);
        text
    }

    /// Begins a family. All its samples must be written before the next one begins.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { text: &mut self.text, name }
    }

    /// A family of one sample without labels.
    pub fn counter(&mut self, name: &'static str, help: &str, value: u64) {
        self.family(name, Kind::Counter, help).sample(&[], value);
    }

    /// A family of one sample without labels.
    pub fn gauge(&mut self, name: &'static str, help: &str, value: u64) {
        self.family(name, Kind::Gauge, help).sample(&[], value);
    }

    /// The whole text.
    pub fn finish(self) -> String {
        self.text
    }
}

/// The samples of one family.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Family<'_> {
    /// One sample.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.line("", labels, None, value);
    }

    /// A histogram's samples, seconds; none when nothing was counted.
    pub fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        let counts = histogram.buckets.each_ref().map(|count| count.load(Ordering::Relaxed));
        let count: u64 = counts.iter().sum();
        if count == 0 {
            return;
        }
        let mut below = 0;
        for (bound, count) in BOUNDS.iter().zip(counts) {
            below += count;
            let bound = (*bound as f64 / 1e9).to_string();
            self.line("_bucket", labels, Some(("le", &bound)), below);
        }
        self.line("_bucket", labels, Some(("le", "+Inf")), count);
        let sum = histogram.sum.load(Ordering::Relaxed) as f64 / 1e9;
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, count);
    }

    fn line(
        &mut self,
        suffix: &str,
        labels: &[(&str, &str)],
        more: Option<(&str, &str)>,
        value: impl Display,
    ) {
        let (text, name) = (&mut *self.text, self.name);
        let _ = write!(text, "{name}{suffix}");
        // A label without a value is the same as none.
        let labels = labels.iter().copied().chain(more).filter(|(_, value)| !value.is_empty());
        let mut between = '{';
        for (label, value) in labels {
            let _ = write!(text, "{between}{label}=\"");
            for letter in value.chars() {
                match letter {
                    '\\' => text.push_str("\\\\"),
                    '"' => text.push_str("\\\""),
                    '\n' => text.push_str("\\n"),
                    other => text.push(other),
                }
            }
            text.push('"');
            between = ',';
        }
        let _ = writeln!(text, "{} {value}", if between == ',' { "}" } else { "" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Time = Time(1_000_000_000);

    fn name(text: &str) -> FunctionName {
        text.parse().unwrap()
    }

    fn written(calls: &CallMetrics, now: Time) -> String {
        let mut text = Text::default();
        calls.write(&mut text, now);
        text.finish()
    }

    #[test]
    fn a_histogram_is_cumulative_and_its_bounds_are_inclusive() {
        let histogram = Histogram::default();
        for micros in [0, 100, 101, 61_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let mut text = Text::default();
        text.family("h_seconds", Kind::Histogram, "H.").histogram(&[("a", "b")], &histogram);
        let text = text.finish();
        for line in [
            "# HELP h_seconds H.\n# TYPE h_seconds histogram\n",
            "h_seconds_bucket{a=\"b\",le=\"0.0001\"} 2\n",
            "h_seconds_bucket{a=\"b\",le=\"0.00025\"} 3\n",
            "h_seconds_bucket{a=\"b\",le=\"60\"} 3\n",
            "h_seconds_bucket{a=\"b\",le=\"+Inf\"} 4\n",
            "h_seconds_sum{a=\"b\"} 61.000201\nh_seconds_count{a=\"b\"} 4\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }

    #[test]
    fn labels_are_escaped_and_empty_ones_left_out() {
        let mut text = Text::default();
        text.family("m", Kind::Gauge, "M.").sample(&[("a", ""), ("b", "\"\\\n")], 1.5);
        assert!(text.finish().ends_with("m{b=\"\\\"\\\\\\n\"} 1.5\n"));
        let mut text = Text::default();
        text.gauge("m", "M.", 7);
        assert!(text.finish().ends_with("\nm 7\n"));
    }

    #[test]
    fn every_outcome_is_counted_as_itself() {
        let calls = CallMetrics::default();
        let echo = calls.of(&name("echo"), SECOND);
        let failed = FailureKind::ALL.map(Outcome::Failed);
        let others = [Outcome::Ok, Outcome::BrokenOff, Outcome::Cancelled];
        let all: Vec<Outcome> = others.into_iter().chain(failed).collect();
        for outcome in &all {
            calls.record(&echo, *outcome, Some(StartKind::Warm), Duration::ZERO, SECOND);
        }
        calls.record(calls.unresolved(), all[5], None, Duration::ZERO, SECOND);
        let text = written(&calls, SECOND);
        for outcome in &all {
            let outcome = outcome.as_str();
            let line = format!("{{function=\"echo\",outcome=\"{outcome}\",start=\"warm\"}} 1\n");
            assert!(text.contains(&line), "{line}{text}");
        }
        assert!(text.contains(&format!("total{{outcome=\"{}\"}} 1\n", all[5].as_str())), "{text}");
    }

    #[test]
    fn functions_lose_their_series_when_deleted_or_unused_and_get_them_back_when_called() {
        let calls = CallMetrics::default();
        let (echo, other) = (calls.of(&name("echo"), SECOND), calls.of(&name("other"), SECOND));
        let record = |of, now| calls.record(of, Outcome::Ok, None, Duration::ZERO, now);
        record(&echo, SECOND);
        record(&other, SECOND);
        calls.forget(&name("echo"));
        assert!(!written(&calls, SECOND).contains("echo"));
        let later = SECOND + FORGET_AFTER;
        record(&other, later);
        assert!(written(&calls, later + FORGET_AFTER / 2).contains("other"));
        assert!(!written(&calls, later + FORGET_AFTER).contains("other"));
        // Whoever kept it counts on, and beside one who looked it up anew.
        let much_later = later + FORGET_AFTER;
        let anew = calls.of(&name("other"), much_later);
        record(&anew, much_later);
        record(&other, much_later);
        let text = written(&calls, much_later);
        assert!(text.contains("{function=\"other\",outcome=\"ok\"} 2\n"), "{text}");
    }

    #[test]
    fn not_more_functions_have_series_than_may() {
        let calls = CallMetrics::default();
        for n in 0..MOST_FUNCTIONS as u64 + 10 {
            let of = calls.of(&name(&format!("f{n}")), Time(n));
            calls.record(&of, Outcome::Ok, None, Duration::ZERO, Time(n));
        }
        let text = written(&calls, SECOND);
        assert_eq!(text.matches("_total{").count(), MOST_FUNCTIONS);
        assert!(!text.contains("\"f9\"") && text.contains("\"f10\""));
    }
}
