//! What a workload says is what is drawn.

use std::time::Duration;

use openlambda_core::random::Rng;
use openlambda_core::time::Time;

use super::*;
use crate::spacing::{MINUTE, Spacing};

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
