//! The worker's queue policies in the simulator, against what queueing theory says of one server.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::time::Duration;

use openlambda_core::queue;
use openlambda_core::scheduler::{LoadLimit, RunningLimit, SchedulerConfig};
use openlambda_lab::sim::{SimConfig, simulate};
use openlambda_lab::workload::{FunctionMix, LogNormal, Profile, Service, WorkloadConfig};
use openlambda_lb::policies::PolicyCatalog;

const SEED: u64 = 3;

/// One worker that runs one call at a time, of 20 functions whose fixed times differ 50-fold, with a load
/// of 0.8. All are warm from the first call on, as cold starts take no time.
fn one_server(queue: &str) -> SimConfig {
    let service_ms = LogNormal { median: 20.0, sigma: 1.0, least: 4.0, most: 200.0 };
    SimConfig {
        workload: WorkloadConfig {
            functions: 20,
            zipf: 0.0,
            service: Service::Fixed(Duration::from_millis(1)),
            invocations: 200_000,
            mix: FunctionMix { service_ms: Some(service_ms), ..FunctionMix::default() },
            ..WorkloadConfig::default()
        }
        .with_busy(0.8, SEED),
        workers: 1,
        queue: queue::by_name(queue).unwrap(),
        scheduler: SchedulerConfig {
            memory: 1 << 40,
            running: RunningLimit::Calls(1),
            ..SchedulerConfig::default()
        },
        max_wait: Duration::from_secs(100_000),
        hop: Duration::ZERO,
        pull: Duration::ZERO,
        cold_start: Duration::ZERO,
        seed: SEED,
        ..SimConfig::default()
    }
}

/// The mean time that calls waited, milliseconds: of all, and by function.
fn mean_waits(config: &SimConfig) -> (f64, Vec<f64>) {
    let policy = PolicyCatalog::standard().build(&"round-robin".parse().unwrap()).unwrap();
    let mut sums = vec![(0.0, 0.0); config.workload.functions as usize];
    simulate(config, policy, |call| {
        assert!(call.is_ok());
        let (sum, count) = &mut sums[call.function as usize];
        *sum += call.phases.queue.as_secs_f64() * 1e3;
        *count += 1.0;
    })
    .unwrap();
    let (sum, count) = sums.iter().fold((0.0, 0.0), |(a, b), (sum, count)| (a + sum, b + count));
    (sum / count, sums.iter().map(|(sum, count)| sum / count).collect())
}

fn milliseconds(profile: &Profile) -> f64 {
    profile.service.mean().as_secs_f64() * 1e3
}

/// The mean work that a call finds under way: Σ λ E[S²] / 2, milliseconds.
fn residual(profiles: &[Profile]) -> f64 {
    let of = |profile: &Profile| profile.rate / 1e3 * milliseconds(profile).powi(2);
    profiles.iter().map(of).sum::<f64>() / 2.0
}

fn assert_near(measured: f64, expected: f64, what: &str) {
    let ratio = measured / expected;
    assert!((0.95..1.05).contains(&ratio), "{what}: {measured} ms, expected {expected}");
}

/// Pollaczek and Khinchine: W = R / (1 - ρ).
#[test]
fn fifo_waits_as_an_m_g_1_queue() {
    let config = one_server("fifo");
    let profiles = config.workload.profiles(SEED);
    let (wait, _) = mean_waits(&config);
    assert_near(wait, residual(&profiles) / (1.0 - 0.8), "fifo");
}

/// A. Cobham, Priority assignment in waiting line problems, Operations Research 2(1), 1954: with the load σ
/// of all that go before, and σ' with one's own, W = R / ((1 - σ) (1 - σ')).
#[test]
fn sjf_waits_as_a_queue_with_priorities() {
    let config = one_server("sjf");
    let profiles = config.workload.profiles(SEED);
    let mut order: Vec<usize> = (0..profiles.len()).collect();
    order.sort_by(|a, b| milliseconds(&profiles[*a]).total_cmp(&milliseconds(&profiles[*b])));
    let (residual, total) = (residual(&profiles), config.workload.rate);
    let (mut before, mut expected) = (0.0, 0.0);
    let mut waits = vec![0.0; profiles.len()];
    for function in order {
        let own = profiles[function].rate / 1e3 * milliseconds(&profiles[function]);
        waits[function] = residual / ((1.0 - before) * (1.0 - before - own));
        expected += profiles[function].rate / total * waits[function];
        before += own;
    }
    let (wait, by_function) = mean_waits(&config);
    assert_near(wait, expected, "sjf");
    let (fifo, _) = mean_waits(&one_server("fifo"));
    assert!(wait < 0.7 * fifo, "{wait} ms against {fifo}");
    // The shortest, and the one that waits the longest.
    let shortest = (0..profiles.len())
        .min_by(|a, b| milliseconds(&profiles[*a]).total_cmp(&milliseconds(&profiles[*b])))
        .unwrap();
    assert_near(by_function[shortest], waits[shortest], "the shortest");
}

/// Whatever the order of calls of alike functions, the mean wait is that of fifo (conservation).
#[test]
fn an_order_that_does_not_look_at_times_does_not_change_the_mean() {
    let alike = |queue| {
        let mut config = one_server(queue);
        config.workload.mix = FunctionMix::default();
        config.workload.service = Service::Exponential(Duration::from_millis(20));
        config.workload = config.workload.with_busy(0.8, SEED);
        config.workload.invocations = 100_000;
        mean_waits(&config).0
    };
    let fifo = alike("fifo");
    for queue in ["adaptive-lifo", "fair"] {
        assert_near(alike(queue), fifo, queue);
    }
}

/// Half of the calls are of a function that takes a hundredth of the other's time. With `bypass` they
/// wait for nobody once their time is known.
#[test]
fn short_calls_wait_for_nobody_with_bypass() {
    let with = |queue: &str| {
        let mut config = one_server(queue);
        let service_ms = LogNormal { median: 30.0, sigma: 2.0, least: 1.0, most: 100.0 };
        config.workload.mix.service_ms = Some(service_ms);
        config.workload = config.workload.with_busy(0.8, SEED);
        config.workload.invocations = 50_000;
        let profiles = config.workload.profiles(SEED);
        let short = |function: usize| milliseconds(&profiles[function]) < 10.0;
        let (_, waits) = mean_waits(&config);
        let (sum, count) = (0..20)
            .filter(|function| short(*function))
            .fold((0.0, 0), |(sum, count), function| (sum + waits[function], count + 1));
        assert!(count > 2, "{count} functions are short");
        sum / f64::from(count)
    };
    let (fifo, bypass) = (with("fifo"), with("bypass"));
    assert!(bypass < 0.3 * fifo, "{bypass} ms against {fifo}");
}

/// Eight processors that calls share, and more of them than that at once. A limit that follows the load
/// keeps about as many running as there are processors, whatever it began with.
#[test]
fn a_limit_follows_the_load() {
    let running = |limit| {
        let config = SimConfig {
            workload: WorkloadConfig {
                functions: 20,
                zipf: 0.0,
                service: Service::Exponential(Duration::from_millis(100)),
                rate: 120.0,
                invocations: 20_000,
                ..WorkloadConfig::default()
            },
            workers: 1,
            processors: Some(8),
            scheduler: SchedulerConfig {
                memory: 1 << 40,
                running: limit,
                ..SchedulerConfig::default()
            },
            max_wait: Duration::from_secs(100_000),
            cold_start: Duration::ZERO,
            limits: openlambda_core::scheduler::Limits {
                queue: 100_000,
                timeout: Duration::from_secs(100_000),
                max_instances: 1000,
                ..SimConfig::default().limits
            },
            seed: SEED,
            ..SimConfig::default()
        };
        let policy = PolicyCatalog::standard().build(&"round-robin".parse().unwrap()).unwrap();
        let (mut run, mut count) = (0.0, 0.0);
        simulate(&config, policy, |call| {
            assert!(call.is_ok());
            run += call.phases.run.as_secs_f64() * 1e3;
            count += 1.0;
        })
        .unwrap();
        run / count
    };
    // 12 calls' worth of work for 8 processors: without a limit all crawl.
    let free = running(RunningLimit::None);
    let followed = running(RunningLimit::Load(LoadLimit { least: 1, most: 1000, target: 1.0 }));
    assert!(free > 1000.0, "{free} ms");
    assert!((100.0..150.0).contains(&followed), "{followed} ms, alone 100");
}

/// One server, beside a function whose calls come faster than it serves them: function 1, which is called
/// little. The mean wait of all calls, and by function.
fn beside_a_flood(namespaces: u32) -> (f64, Vec<f64>) {
    let mut config = one_server("fifo");
    config.workload.functions = 2;
    config.workload.zipf = 4.0;
    config.workload.mix = FunctionMix::default();
    config.workload.service = Service::Exponential(Duration::from_millis(20));
    config.workload = config.workload.with_busy(1.5, SEED);
    config.workload.invocations = 20_000;
    config.limits.queue = 1_000_000;
    config.namespaces = namespaces;
    mean_waits(&config)
}

/// A flood of one namespace delays another's call by one call, and by the other's own that wait; within
/// one namespace the flood's queue is everybody's.
#[test]
fn a_flood_of_one_namespace_makes_no_other_wait_for_longer_than_its_share_says() {
    let ((mean, together), (mean_apart, apart)) = (beside_a_flood(1), beside_a_flood(2));
    // The running call ends in 20 ms on average, and after a call of its own the flood may have one more.
    assert!(apart[1] < 40.0, "{apart:?}");
    assert!(together[1] > 100.0 * apart[1], "{together:?}, {apart:?}");
    // Conservation: what the one does not wait, the other does.
    assert!((mean_apart / mean - 1.0).abs() < 0.01, "{mean} {together:?}, {mean_apart} {apart:?}");
}

/// The same where memory is scarce: 60 functions that are called more than the memory holds instances for,
/// and another namespace's.
#[test]
fn a_flood_of_one_namespace_leaves_another_its_memory() {
    let waits = |namespaces: u32| {
        let mut config = one_server("fifo");
        config.workload.functions = 2;
        config.workload.zipf = 3.0;
        config.workload.mix = FunctionMix::default();
        config.workload.service = Service::Exponential(Duration::from_millis(100));
        config.workload = config.workload.with_busy(8.0, SEED);
        config.workload.invocations = 20_000;
        config.scheduler.running = RunningLimit::None;
        config.scheduler.memory = 4 * config.limits.memory;
        config.cold_start = Duration::from_millis(50);
        config.limits.queue = 1_000_000;
        config.namespaces = namespaces;
        mean_waits(&config).1
    };
    let (together, apart) = (waits(1), waits(2));
    // The first of four calls of 100 ms to end, and a start of 50 ms, where there is no instance yet. Within
    // one namespace a function that has none waits for as long as `fairness` says, which is a second.
    assert!(apart[1] < 150.0, "{together:?}, {apart:?}");
    assert!(together[1] > 4.0 * apart[1], "{together:?}, {apart:?}");
}
