//! The best of a pool of recently probed workers: [`Prequal`].

use std::time::Duration;

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, PolicyEvent, Refusal, RequestInfo, Why,
    WorkerId,
};
use openlambda_core::time::Time;

use super::catalog::{ParameterInfo, PolicyEntry};
use super::parts::Candidates;

/// Probing to reduce queueing and latency: asynchronous probes, reused and removed.
///
/// Algorithm: each request sends `probes` probes to random workers and does not wait for them. An
/// answer says how many requests the worker has in flight, for all balancers (running and queued:
/// its RIF), and how long a request that came now would take, which the worker estimates from recent calls
/// that found about as many ([`LatencyByLoad`]). The answer goes into a pool of at most `pool` answers,
/// one per worker; the oldest is dropped for it. A request takes its worker from the pool:
///
/// * an answer is *hot* when its RIF is above the quantile `quantile` of the last 128 answers';
/// * among the cold ones the one with the least latency is taken, of equals the one with the least
///   RIF; when all are hot, the one with the least RIF. With the quantile 0 all are hot, so that only
///   RIF counts; with 1 none is.
/// * fewer than two usable answers: a random worker.
///
/// An answer that was used counts one request more, and is used up to b times, then removed:
///
/// ```text
/// b = max(1, (1 + delta) / ((1 − m/n) · probes − remove))     m: pool, n: workers
/// ```
///
/// rounded up or down at random so that the mean is b. Besides, `remove` answers are removed for each
/// request, in turn the oldest and the worst (the hot one of most RIF, or else the cold one of most
/// latency), and those older than `age`. When the denominator is not positive, which is so with few
/// workers, b is 16; and the pool holds answers of at most half of the workers, but two.
///
/// The latency must be that at the present RIF. A mean over the replies that the balancer saw lags behind
/// the worker's queue: the worker that looks fastest gets all requests until the first late reply, as long
/// as its queue has become, and the hot-cold rule does not limit that, because the quantile rises with the
/// queues. (With 50 workers and exponential times of 10 ms that took 140, 663 and 1,459 ms at load 0.5, 0.7
/// and 0.9, where `random` takes 20, 34 and 101; it is 15, 16 and 21 now.)
///
/// Departures from the paper: probes are sent only with requests, not when there have been none for
/// `age`: the first request after such a pause goes to a random worker, and the next one finds the
/// answers to its probes. A worker here runs many functions and has one estimate for all of them. One
/// whose latency is not known, because no call of it ended lately or because it is older than this field,
/// counts as fastest until it is hot, so that a new worker is tried.
///
/// At low load, what requests wait comes from answers that are used more than once: the one with the
/// least latency is taken again, with its latency of before. `delta=0` halves that, or better.
///
/// Cost: O(`pool` + `probes`) per decision and O(128) per answer, no allocation. Weights are not
/// considered: latency tells.
///
/// Source: B. Wydrowski, R. Kleinberg, S. M. Rumble, A. Archer, Load is not what you should balance:
/// Introducing Prequal, NSDI 2024.
///
/// [`LatencyByLoad`]: openlambda_core::balancing::LatencyByLoad
#[derive(Clone, Debug)]
pub struct Prequal {
    parameters: PrequalParameters,
    pool: Vec<Answer>,
    rifs: Window,
    /// Parts of probes and removals that are due.
    probes_due: f64,
    removals_due: f64,
    oldest_next: bool,
}

/// The parameters of [`Prequal`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrequalParameters {
    /// Probes per request; may have a fraction. At most 16 are sent at once.
    pub probes: f64,
    /// The most answers in the pool.
    pub pool: usize,
    /// Answers that are removed per request; may have a fraction.
    pub remove: f64,
    /// The quantile of RIF above which a worker is hot, 0 to 1.
    pub quantile: f64,
    /// The age at which an answer is removed.
    pub age: Duration,
    /// How much faster than it is emptied the pool would be filled if answers were not removed.
    pub delta: f64,
}

impl Default for PrequalParameters {
    /// As in the paper's experiments.
    fn default() -> Self {
        PrequalParameters {
            probes: 3.0,
            pool: 16,
            remove: 1.0,
            quantile: 0.84,
            age: Duration::from_secs(1),
            delta: 1.0,
        }
    }
}

/// An answer to a probe.
#[derive(Clone, Copy, Debug)]
struct Answer {
    worker: WorkerId,
    rif: u32,
    latency_ns: u64,
    at: Time,
    uses_left: u32,
}

const MOST_PROBES: usize = 16;
const MOST_USES: f64 = 16.0;

impl Prequal {
    /// An empty pool.
    pub fn new(parameters: PrequalParameters) -> Self {
        Prequal {
            parameters,
            pool: Vec::with_capacity(parameters.pool.max(2)),
            rifs: Window::default(),
            probes_due: 0.0,
            removals_due: 0.0,
            oldest_next: false,
        }
    }

    /// The answers in the pool, the oldest first: worker, RIF, and how often it may still be used.
    pub fn pool(&self) -> impl Iterator<Item = (WorkerId, u32, u32)> {
        self.pool.iter().map(|answer| (answer.worker, answer.rif, answer.uses_left))
    }

    /// How often an answer is used on average, with `n` workers.
    pub fn reuse(&self, n: usize) -> f64 {
        let p = &self.parameters;
        let gained = (1.0 - self.size(n) as f64 / n.max(1) as f64) * p.probes - p.remove;
        if gained <= 0.0 { MOST_USES } else { ((1.0 + p.delta) / gained).clamp(1.0, MOST_USES) }
    }

    fn size(&self, n: usize) -> usize {
        self.parameters.pool.min(n / 2).max(2)
    }

    /// How bad an answer is: by whether it is hot, then by RIF, or by latency and among equals by
    /// RIF.
    fn badness(&self, answer: &Answer, hot_above: Option<u32>) -> (bool, u64, u32) {
        match hot_above.is_none_or(|limit| answer.rif > limit) {
            true => (true, u64::from(answer.rif), 0),
            false => (false, answer.latency_ns, answer.rif),
        }
    }

    /// The place in the pool of the best or the worst answer among those that `usable` admits.
    fn extreme(&self, worst: bool, usable: impl Fn(&Answer) -> bool) -> Option<usize> {
        let hot_above = self.rifs.quantile(self.parameters.quantile);
        let usable = self.pool.iter().enumerate().filter(|(_, answer)| usable(answer));
        let rated = usable.map(|(at, answer)| (self.badness(answer, hot_above), at));
        let found = match worst {
            true => rated.max_by_key(|(badness, _)| *badness),
            false => rated.min_by_key(|(badness, _)| *badness),
        };
        found.map(|(_, at)| at)
    }

    fn use_up(&mut self, at: usize) {
        let answer = &mut self.pool[at];
        answer.uses_left -= 1;
        answer.rif = answer.rif.saturating_add(1);
        if answer.uses_left == 0 {
            self.pool.remove(at);
        }
    }

    fn remove_some(&mut self) {
        self.removals_due += self.parameters.remove;
        while self.removals_due >= 1.0 {
            self.removals_due -= 1.0;
            self.oldest_next = !self.oldest_next;
            let removed = if self.oldest_next { Some(0) } else { self.extreme(true, |_| true) };
            if let Some(at) = removed.filter(|at| *at < self.pool.len()) {
                self.pool.remove(at);
            }
        }
    }

    fn send_probes(&mut self, view: &ClusterView<'_>, cx: &mut PolicyContext<'_>) {
        self.probes_due += self.parameters.probes;
        let whole = self.probes_due.floor();
        self.probes_due -= whole;
        let n = view.ready().len();
        let count = (whole as usize).min(n).min(MOST_PROBES);
        // Floyd's sampling, as in `PowerOfD`.
        let mut places = [0; MOST_PROBES];
        for (taken, top) in (n - count..n).enumerate() {
            let drawn = cx.rng.below(top + 1);
            let place = if places[..taken].contains(&drawn) { top } else { drawn };
            places[taken] = place;
            cx.probe(view.ready()[place]);
        }
    }
}

pub(super) fn entry() -> PolicyEntry {
    let p = PrequalParameters::default();
    let few = 0..=MOST_PROBES as u32;
    PolicyEntry {
        name: "prequal".to_owned(),
        about:
            "the best of a pool of probed workers: least latency, or least load when all are hot"
                .to_owned(),
        source: "Wydrowski et al., Load is not what you should balance: Introducing Prequal, \
                 NSDI 2024"
            .to_owned(),
        parameters: vec![
            ParameterInfo::new("probes", p.probes, "probes per request").within(few.clone()),
            ParameterInfo::new("pool", p.pool, "answers that are kept").within(2..=64),
            ParameterInfo::new("remove", p.remove, "answers that are removed per request")
                .within(few.clone()),
            ParameterInfo::new("quantile", p.quantile, "of load, above which a worker is hot")
                .within(0..=1),
            ParameterInfo::new("age", p.age.as_secs_f64(), "seconds that an answer is kept")
                .within(0.001..=3600.0),
            ParameterInfo::new("delta", p.delta, "surplus of answers, which sets their reuse")
                .within(few),
        ],
        build: Box::new(|given| {
            Ok(Box::new(Prequal::new(PrequalParameters {
                probes: given.number("probes")?,
                pool: given.whole("pool")? as usize,
                remove: given.number("remove")?,
                quantile: given.number("quantile")?,
                age: given.seconds("age")?,
                delta: given.number("delta")?,
            })))
        }),
    }
}

impl BalancingPolicy for Prequal {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        let candidates = Candidates::of(request, view);
        let Some(random) = candidates.any(cx.rng) else {
            return Decision::Refuse(Refusal::NoWorker);
        };
        let (now, age) = (cx.now, self.parameters.age);
        self.pool.retain(|answer| now.since(answer.at) < age);
        // Workers that are not ready were taken out when they became so.
        let usable = |answer: &Answer| candidates.allows(answer.worker);
        let decision = if self.pool.iter().filter(|answer| usable(answer)).count() < 2 {
            Decision::To(random, Why("random"))
        } else {
            match self.extreme(false, usable) {
                Some(at) => {
                    let worker = self.pool[at].worker;
                    self.use_up(at);
                    Decision::To(worker, Why("best probed"))
                }
                None => Decision::To(random, Why("random")),
            }
        };
        self.remove_some();
        self.send_probes(view, cx);
        decision
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) {
        match *event {
            PolicyEvent::Probed { worker, load } => {
                let rif = load.running.saturating_add(load.queued);
                self.rifs.push(rif);
                if !view.is_ready(worker) {
                    return;
                }
                self.pool.retain(|answer| answer.worker != worker);
                let n = view.ready().len();
                if self.pool.len() >= self.size(n) {
                    self.pool.remove(0);
                }
                let uses = self.reuse(n);
                let more = u32::from(cx.rng.chance(uses.fract()));
                let uses_left = uses as u32 + more;
                let latency_ns = load.latency_ns;
                self.pool.push(Answer { worker, rif, latency_ns, at: cx.now, uses_left });
            }
            PolicyEvent::Left { worker, .. } => {
                self.pool.retain(|answer| answer.worker != worker);
            }
            PolicyEvent::ReadyChanged { worker, ready: false } => {
                self.pool.retain(|answer| answer.worker != worker);
            }
            _ => {}
        }
    }
}

/// The last values, and their quantiles.
#[derive(Clone, Debug, Default)]
struct Window {
    /// In order of arrival; the oldest is at `next` once it is full.
    last: Vec<u32>,
    next: usize,
    sorted: Vec<u32>,
}

impl Window {
    const SIZE: usize = 128;

    fn push(&mut self, value: u32) {
        if self.last.len() < Self::SIZE {
            self.last.push(value);
        } else {
            let oldest = std::mem::replace(&mut self.last[self.next], value);
            self.next = (self.next + 1) % Self::SIZE;
            self.sorted.remove(self.sorted.partition_point(|other| *other < oldest));
        }
        self.sorted.insert(self.sorted.partition_point(|other| *other < value), value);
    }

    /// The least value that the part `q` of all does not exceed; `None` for q = 0.
    fn quantile(&self, q: f64) -> Option<u32> {
        let rank = (q * self.sorted.len() as f64).ceil() as usize;
        self.sorted.get(rank.checked_sub(1)?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_forgets_the_oldest() {
        let mut window = Window::default();
        for value in 0..1_000 {
            window.push(value);
        }
        assert_eq!(window.quantile(0.0), None);
        assert_eq!(window.quantile(1.0), Some(999));
        assert_eq!(window.quantile(0.5), Some(935));
        assert_eq!(window.quantile(0.001), Some(872), "128 values are remembered");
    }
}
