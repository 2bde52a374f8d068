//! Counts of invocations for each function.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::histogram::Histogram;
use super::outcome::Outcome;
use super::text::{Kind, Text};
use crate::function::FunctionName;
use crate::invocation::StartKind;
use crate::time::Time;

/// The most functions that have series of their own.
pub const MOST_FUNCTIONS: usize = 1000;

/// A function that was not called for this time loses its series.
const FORGET_AFTER: Duration = Duration::from_secs(3600);

/// The label `start`: cold or warm; empty for a call that never ran.
const STARTS: [(&str, Option<StartKind>); 4] = [
    ("", None),
    ("cold", Some(StartKind::Cold)),
    ("zygote", Some(StartKind::Zygote)),
    ("warm", Some(StartKind::Warm)),
];

/// What is counted of one function's invocations.
#[derive(Debug)]
pub struct FunctionCalls {
    /// `None`: of calls whose function was never resolved.
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
    /// The counters of a resolved function. Keep them: looking them up takes a lock.
    pub fn of(&self, function: &FunctionName, now: Time) -> Arc<FunctionCalls> {
        let mut functions = self.functions.lock();
        if let Some(calls) = functions.get(function) {
            return Arc::clone(calls);
        }
        let calls = Arc::new(FunctionCalls::new(Some(function.clone()), now));
        list(&mut functions, function, &calls);
        calls
    }

    /// The counters of calls whose function was never resolved.
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
                let mut functions = self.functions.lock();
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
        if let Some(calls) = self.functions.lock().remove(function) {
            calls.listed.store(false, Ordering::Relaxed);
        }
    }

    /// Writes `ol_invocations_total` and `ol_invocation_duration_seconds`.
    pub fn write(&self, text: &mut Text, now: Time) {
        let functions: Vec<Arc<FunctionCalls>> = {
            let mut functions = self.functions.lock();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::FailureKind;

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
