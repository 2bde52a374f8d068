//! `histogram`: learns when a function will be called again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{InstanceFacts, KeepAliveEntry, KeepAlivePolicy, Lru};
use crate::catalog::{CENTURY, ParameterInfo};
use crate::scheduler::{InstanceId, VersionId};
use crate::time::Time;

/// Ends a function's idle instance when no call is due soon, and starts one before the next is.
///
/// The hybrid histogram policy (Shahrad et al., *Serverless in the Wild: Characterizing and
/// Optimizing the Serverless Workload at a Large Cloud Provider*, USENIX ATC 2020). A version
/// *rests* from the end of its last invocation until the next one arrives. Its rests are counted in
/// bins of a minute:
///
/// ```text
///   last invocation ends                                    next one is expected in here
///        │                                                ┌────────────┴────────────┐
///   ─────●────────────────────────────────────────────────●─────────────────────────●─────▶ time
///        │◀─────────── pre-warm window ──────────────────▶│◀── keep-alive window ──▶│
///     evicted                                          started                   evicted
///
///   pre-warm window = (1 − margin) × head      head: lower edge of the bin of the 5th percentile
///   keep-alive window ends at (1 + margin) × tail    tail: upper edge of that of the 99th
/// ```
///
/// A pre-warm window of 0, when the head is in the first bin, keeps the instance all the time. The
/// histogram is not used, and an instance is kept for a fixed time, while
///
/// * it holds fewer than `samples` rests (the paper leaves the number open);
/// * its bins are alike: the coefficient of variation of their counts is below `cv`;
/// * most rests were longer than its range. There the paper predicts with ARIMA, which is not built
///   here: such functions get the fixed time too.
///
/// When memory is short the least recently used instance is evicted first; the paper does not say which.
/// One instance is started ahead, however many ran at once before. An instance that becomes idle while
/// another of its version still runs is kept until the keep-alive window would end.
///
/// O(log n) in instances and versions; O(range) when a version begins to rest. A version's history
/// (4 bytes a bin) stays when its instances are gone, as the scheduler's state of the version does. Each
/// version of a function has its own history.
#[derive(Debug)]
pub struct Histogram {
    config: HistogramConfig,
    recency: Lru,
    instances: BTreeMap<InstanceId, Member>,
    versions: BTreeMap<VersionId, History>,
    wakeups: BTreeSet<(Time, VersionId)>,
}

/// The parameters of [`Histogram`].
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramConfig {
    /// The longest rest that is counted: one bin a minute.
    pub range_minutes: u32,
    /// The share of rests that may be shorter than the pre-warm window.
    pub head: f64,
    /// The share of rests that end before the keep-alive window does.
    pub tail: f64,
    /// The windows' safety margin, a share of head and tail.
    pub margin: f64,
    /// The least coefficient of variation of the bins' counts of a histogram that is used.
    pub cv: f64,
    /// The least number of rests in a histogram that is used.
    pub samples: u64,
    /// How long an idle instance is kept while the histogram is not used.
    pub fallback: Duration,
}

impl Default for HistogramConfig {
    /// The paper's values; 5 rests.
    fn default() -> Self {
        HistogramConfig {
            range_minutes: 240,
            head: 0.05,
            tail: 0.99,
            margin: 0.1,
            cv: 2.0,
            samples: 5,
            fallback: Duration::from_secs(4 * 3600),
        }
    }
}

#[derive(Debug)]
struct Member {
    version: VersionId,
    /// It has run an invocation since it was idle last, or since it started.
    ran: bool,
}

/// A version's rests.
#[derive(Debug)]
struct History {
    bins: Vec<u32>,
    counted: u64,
    /// The sum of the squares of the bins' counts.
    squares: u64,
    /// Rests longer than the range.
    beyond: u64,
    /// Instances that run an invocation.
    running: u32,
    /// Since when none does; `None` before the first invocation and while one runs.
    resting_since: Option<Time>,
    /// When it is to be started ahead; its key in `wakeups`.
    wakeup: Option<Time>,
}

/// When an instance is away, counted from when its version began to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Windows {
    /// It is started again after this time; zero: it is not evicted before.
    prewarm: Duration,
    /// It is evicted after this time.
    end: Duration,
}

const MINUTE: Duration = Duration::from_secs(60);

impl History {
    fn new(config: &HistogramConfig) -> Self {
        History {
            bins: vec![0; config.range_minutes as usize],
            counted: 0,
            squares: 0,
            beyond: 0,
            running: 0,
            resting_since: None,
            wakeup: None,
        }
    }

    fn count(&mut self, rest: Duration) {
        let minute = (rest.as_secs() / MINUTE.as_secs()) as usize;
        let Some(bin) = self.bins.get_mut(minute) else {
            self.beyond += 1;
            return;
        };
        // (n + 1)² − n²
        self.squares += 2 * u64::from(*bin) + 1;
        *bin += 1;
        self.counted += 1;
    }

    fn windows(&self, config: &HistogramConfig) -> Windows {
        if !self.tells(config) {
            return Windows { prewarm: Duration::ZERO, end: config.fallback };
        }
        let head = MINUTE * self.percentile(config.head);
        let tail = MINUTE * (self.percentile(config.tail) + 1);
        Windows {
            prewarm: head.mul_f64(1.0 - config.margin),
            end: tail.mul_f64(1.0 + config.margin),
        }
    }

    fn tells(&self, config: &HistogramConfig) -> bool {
        if self.counted < config.samples || self.beyond > self.counted {
            return false;
        }
        let bins = self.bins.len() as f64;
        let mean = self.counted as f64 / bins;
        let variance = self.squares as f64 / bins - mean * mean;
        // The coefficient of variation is sqrt(variance) / mean.
        variance >= config.cv * config.cv * mean * mean
    }

    /// The first bin up to which `share` of all counted rests are.
    fn percentile(&self, share: f64) -> u32 {
        let wanted = share * self.counted as f64;
        let mut seen = 0;
        for (minute, count) in (0..).zip(&self.bins) {
            seen += u64::from(*count);
            if seen > 0 && seen as f64 >= wanted {
                return minute;
            }
        }
        self.bins.len() as u32 - 1
    }
}

impl Histogram {
    /// A policy that has seen no rest yet.
    ///
    /// # Panics
    ///
    /// When the range is 0: there is no bin to count in.
    pub fn new(config: HistogramConfig) -> Self {
        assert!(config.range_minutes > 0, "a histogram needs a bin");
        Histogram {
            config,
            recency: Lru::default(),
            instances: BTreeMap::new(),
            versions: BTreeMap::new(),
            wakeups: BTreeSet::new(),
        }
    }

    /// An instance does not run any more: its version begins to rest if it was the last.
    fn stopped(&mut self, version: VersionId, now: Time) {
        let Some(history) = self.versions.get_mut(&version) else { return };
        history.running -= 1;
        if history.running > 0 {
            return;
        }
        history.resting_since = Some(now);
        let windows = history.windows(&self.config);
        if windows.prewarm > Duration::ZERO {
            let at = now + windows.prewarm;
            history.wakeup = Some(at);
            self.wakeups.insert((at, version));
        }
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram::new(HistogramConfig::default())
    }
}

impl KeepAlivePolicy for Histogram {
    fn started(&mut self, instance: InstanceId, facts: &InstanceFacts, _now: Time) {
        let version = facts.version;
        self.versions.entry(version).or_insert_with(|| History::new(&self.config));
        self.instances.insert(instance, Member { version, ran: false });
    }

    fn used(&mut self, instance: InstanceId, now: Time) {
        self.recency.used(instance, now);
    }

    fn invoked(&mut self, instance: InstanceId, arrived: Time, _now: Time) {
        let Some(member) = self.instances.get_mut(&instance) else { return };
        let Some(history) = self.versions.get_mut(&member.version) else { return };
        if !std::mem::replace(&mut member.ran, true) {
            history.running += 1;
        }
        // One that arrived before its version began to rest has waited: it ends no rest.
        if let Some(since) = history.resting_since.take().filter(|since| *since <= arrived) {
            history.count(arrived.since(since));
        }
        if let Some(at) = history.wakeup.take() {
            self.wakeups.remove(&(at, member.version));
        }
    }

    fn idle(&mut self, instance: InstanceId, now: Time) -> Option<Time> {
        self.recency.idle(instance, now);
        let member = self.instances.get_mut(&instance)?;
        let version = member.version;
        let ran = std::mem::take(&mut member.ran);
        if ran {
            self.stopped(version, now);
        }
        let history = self.versions.get(&version)?;
        let windows = history.windows(&self.config);
        if ran && history.running == 0 && windows.prewarm > Duration::ZERO {
            return Some(now);
        }
        // One that was started ahead stays for what is left of the window, and at least for its
        // length when the window is over: whoever asked for it so late expects a call.
        let since = history.resting_since.filter(|_| !ran).unwrap_or(now);
        let end = since + windows.end;
        Some(if end > now { end } else { now + windows.end.saturating_sub(windows.prewarm) })
    }

    fn ended(&mut self, instance: InstanceId, now: Time) {
        self.recency.ended(instance, now);
        if let Some(Member { version, ran: true }) = self.instances.remove(&instance) {
            self.stopped(version, now);
        }
    }

    fn victim(&mut self, now: Time) -> Option<InstanceId> {
        self.recency.victim(now)
    }

    fn next_wakeup(&self) -> Option<Time> {
        self.wakeups.first().map(|(at, _)| *at)
    }

    fn prewarm(&mut self, now: Time) -> Option<VersionId> {
        let &(at, version) = self.wakeups.first().filter(|(at, _)| *at <= now)?;
        self.wakeups.remove(&(at, version));
        if let Some(history) = self.versions.get_mut(&version) {
            history.wakeup = None;
        }
        Some(version)
    }
}

/// Its line in the catalogue.
pub(super) fn entry() -> KeepAliveEntry {
    let default = HistogramConfig::default();
    let range = ParameterInfo::new(
        "range_minutes",
        default.range_minutes,
        "the longest idle time that is counted, in bins of a minute",
    );
    let head = ParameterInfo::new(
        "head",
        default.head,
        "the share of idle times that may end before the instance is started again",
    );
    let tail = ParameterInfo::new(
        "tail",
        default.tail,
        "the share of idle times that end before the instance is evicted",
    );
    let margin = ParameterInfo::new(
        "margin",
        default.margin,
        "the share by which it is started earlier and evicted later",
    );
    let cv = ParameterInfo::new(
        "cv",
        default.cv,
        "the histogram is used from this coefficient of variation of its bins on",
    );
    let samples = ParameterInfo::new(
        "samples",
        default.samples,
        "the histogram is used from this many idle times on",
    );
    let fallback = ParameterInfo::new(
        "fallback_seconds",
        default.fallback.as_secs(),
        "how long an instance is kept while the histogram is not used",
    );
    KeepAliveEntry {
        name: "histogram".to_owned(),
        about: "learns how long each function rests: ends its instance, and starts one before the \
                next call is due"
            .to_owned(),
        source: "Shahrad et al., Serverless in the Wild, USENIX ATC 2020; without its ARIMA part"
            .to_owned(),
        parameters: vec![
            range.within(1..=10_080),
            head.within(0..=1),
            tail.within(0..=1),
            margin.within(0..=1),
            cv.within(0..=1000),
            samples.within(1.0..=1e9),
            fallback.within(0.0..=CENTURY),
        ],
        build: Box::new(|given| {
            Ok(Box::new(Histogram::new(HistogramConfig {
                range_minutes: given.whole("range_minutes")?,
                head: given.number("head")?,
                tail: given.number("tail")?,
                margin: given.number("margin")?,
                cv: given.number("cv")?,
                samples: given.whole("samples")?.into(),
                fallback: Duration::from_secs_f64(given.number("fallback_seconds")?),
            })))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::facts;
    use super::*;

    const A: InstanceId = InstanceId(1);
    const VERSION: VersionId = VersionId(0);

    fn minutes(minutes: f64) -> Duration {
        Duration::from_secs_f64(minutes * 60.0)
    }

    fn history_of(rests: &[f64]) -> History {
        let mut history = History::new(&HistogramConfig::default());
        for rest in rests {
            history.count(minutes(*rest));
        }
        history
    }

    fn windows_of(rests: &[f64]) -> Windows {
        history_of(rests).windows(&HistogramConfig::default())
    }

    const FALLBACK: Windows = Windows { prewarm: Duration::ZERO, end: Duration::from_secs(14_400) };

    #[test]
    fn windows_are_as_computed_by_hand() {
        // 100 rests: 4 in bin 7, 94 in bin 10, 2 in bin 20. The 5th percentile is in bin 10, the
        // 99th in bin 20: 0.9 × 10 and 1.1 × 21 minutes.
        let rests = [vec![7.5; 4], vec![10.2; 94], vec![20.0; 2]].concat();
        let windows = windows_of(&rests);
        assert_eq!(windows, Windows { prewarm: minutes(9.0), end: minutes(23.1) });
        // With a fifth in bin 7 the 5th percentile is there; with one less in bin 20 the 99th is in
        // bin 10.
        let rests = [vec![7.5; 5], vec![10.2; 94], vec![20.0; 1]].concat();
        let windows = windows_of(&rests);
        assert_eq!(windows, Windows { prewarm: minutes(6.3), end: minutes(12.1) });
    }

    #[test]
    fn a_head_in_the_first_minute_keeps_the_instance() {
        let windows = windows_of(&[0.9; 10]);
        assert_eq!(windows, Windows { prewarm: Duration::ZERO, end: minutes(1.1) });
    }

    #[test]
    fn few_rests_tell_nothing() {
        assert_eq!(windows_of(&[30.0; 4]), FALLBACK);
        assert_ne!(windows_of(&[30.0; 5]), FALLBACK);
    }

    #[test]
    fn bins_that_are_alike_tell_nothing() {
        // n rests each in k of 240 bins: mean = nk/240, mean square = n²k/240, so the square of the
        // coefficient of variation is 240/k − 1: 4 at k = 48.
        let spread = |k: u32| -> Vec<f64> { (0..k).map(f64::from).collect() };
        assert_eq!(windows_of(&spread(49)), FALLBACK);
        let windows = windows_of(&spread(47));
        assert_eq!(windows, Windows { prewarm: minutes(1.8), end: minutes(51.7) });
    }

    #[test]
    fn rests_beyond_the_range_tell_nothing_when_they_are_most() {
        let half = [vec![30.0; 6], vec![240.0; 6]].concat();
        assert_ne!(windows_of(&half), FALLBACK);
        let most = [vec![30.0; 6], vec![240.0; 7]].concat();
        assert_eq!(windows_of(&most), FALLBACK);
    }

    fn at(minute: f64) -> Time {
        Time::ZERO + minutes(minute)
    }

    /// A version that was called every half hour, six times; the last call ended at minute 150.
    fn trained() -> Histogram {
        let mut policy = Histogram::default();
        policy.started(A, &facts(0, 100, 500), at(0.0));
        for call in 0..6 {
            let now = at(30.0 * f64::from(call));
            policy.used(A, now);
            policy.invoked(A, now, now);
            let until = policy.idle(A, now);
            let expected = if call < 5 { now + FALLBACK.end } else { now };
            assert_eq!(until, Some(expected), "call {call}");
        }
        policy.ended(A, at(150.0));
        policy
    }

    #[test]
    fn an_instance_comes_back_before_the_next_call() {
        let mut policy = trained();
        // 150 + 0.9 × 30.
        assert_eq!(policy.next_wakeup(), Some(at(177.0)));
        assert_eq!(policy.prewarm(at(176.9)), None);
        assert_eq!(policy.prewarm(at(177.0)), Some(VERSION));
        assert_eq!((policy.prewarm(at(177.0)), policy.next_wakeup()), (None, None));
        let b = InstanceId(2);
        policy.started(b, &facts(0, 100, 500), at(177.1));
        // 150 + 1.1 × 31, from when the version began to rest.
        assert_eq!(policy.idle(b, at(177.1)), Some(at(184.1)));
        // Nobody came: it goes, and nothing wakes it again.
        policy.ended(b, at(184.1));
        assert_eq!(policy.next_wakeup(), None);
        assert!(policy.instances.is_empty());
    }

    #[test]
    fn a_call_before_its_time_calls_the_start_off() {
        let mut policy = trained();
        let b = InstanceId(2);
        policy.started(b, &facts(0, 100, 500), at(160.1));
        policy.invoked(b, at(160.0), at(160.1));
        assert_eq!(policy.next_wakeup(), None);
        assert_eq!(policy.versions[&VERSION].bins[10], 1, "it rested from minute 150 to 160");
    }

    #[test]
    fn a_version_rests_when_its_last_instance_does() {
        let mut policy = trained();
        let [b, c] = [InstanceId(2), InstanceId(3)];
        for instance in [b, c] {
            policy.started(instance, &facts(0, 100, 500), at(180.0));
            policy.invoked(instance, at(180.0), at(180.0));
        }
        assert_eq!(policy.idle(b, at(181.0)), Some(at(181.0 + 34.1)), "c still runs");
        assert_eq!(policy.next_wakeup(), None);
        // c dies, and so the rest begins.
        policy.ended(c, at(182.0));
        assert_eq!(policy.next_wakeup(), Some(at(182.0 + 27.0)));
    }

    #[test]
    fn a_call_that_waited_ends_no_rest() {
        let mut policy = trained();
        let b = InstanceId(2);
        policy.started(b, &facts(0, 100, 500), at(151.0));
        policy.invoked(b, at(149.0), at(151.0));
        assert_eq!(policy.versions[&VERSION].counted, 5);
    }
}
