//! Times that depend on each other.
//!
//! ```text
//!  told to stop:   worker.drain + reply_grace    <  cluster.stop_grace, then it is killed
//!                  balancer.drain                <  cluster.stop_grace
//!  a call waits:   worker.max_wait               <  balancer.start_allowance, then the balancer gives up
//!  a worker lives: 2 × worker.heartbeat          <  balancer.silence, then it counts as unhealthy
//!                  balancer.silence              <  balancer.forget, then it has left
//!  a connection:   balancer keeps it without use 5 s  <  worker.head, then the worker closes it
//! ```

use super::balancer::BalancerSettings;
use super::config::Config;
use super::registry::RegistrySettings;
use super::worker::WorkerSettings;
use crate::error::{CliError, Result};

/// A balancer keeps a connection without use for 5 s, and would send a call over one that is being
/// closed.
const HEAD_OF_WORKER: f64 = 6.0;

/// Refuses times with which a cluster would break off what it promises to let end.
///
/// # Errors
///
/// The pair that does not fit, and what to set.
pub(crate) fn check(config: &Config) -> Result<()> {
    check_worker(&config.worker)?;
    check_balancer(&config.balancer)?;
    check_registry(&config.registry)?;
    if config.cluster.start_limit_seconds.get() <= 0.0 {
        let message = "cluster.start_limit_seconds = 0 leaves no time to start; use more than 0";
        return Err(CliError::new(message));
    }
    let (cluster, balancer, worker) = (&config.cluster, &config.balancer, &config.worker);
    let grace = cluster.stop_grace_seconds;
    let stops = [
        ("worker.drain_seconds + reply_grace_seconds", worker.stops_within()),
        ("balancer.drain_seconds", balancer.drain_seconds.get()),
    ];
    for (name, within) in stops {
        if within >= grace.get() {
            return Err(CliError::new(format!(
                "{name} = {within}, but a daemon that is told to stop is killed after \
                 cluster.stop_grace_seconds = {grace}; set that to more than {within}"
            )));
        }
    }
    let (wait, allowance) = (worker.max_wait_seconds, balancer.start_allowance_seconds);
    if wait >= allowance {
        return Err(CliError::new(format!(
            "worker.max_wait_seconds = {wait}, but the balancer gives a call up after \
             balancer.start_allowance_seconds = {allowance}; set that to more than {wait}"
        )));
    }
    let (beat, silence) = (worker.heartbeat_seconds, balancer.silence_seconds);
    if 2.0 * beat.get() >= silence.get() {
        return Err(CliError::new(format!(
            "worker.heartbeat_seconds = {beat}, but a worker is unhealthy after \
             balancer.silence_seconds = {silence}; set that to more than {}",
            2.0 * beat.get()
        )));
    }
    if worker.body_limit_mb < balancer.body_limit_mb {
        return Err(CliError::new(format!(
            "balancer.body_limit_mb = {}, but workers refuse what is over worker.body_limit_mb = {}; \
             set both",
            balancer.body_limit_mb, worker.body_limit_mb
        )));
    }
    Ok(())
}

/// What a worker's own times have to be.
///
/// # Errors
///
/// As [`check`].
pub(crate) fn check_worker(worker: &WorkerSettings) -> Result<()> {
    if worker.head_seconds.get() < HEAD_OF_WORKER {
        let message = format!(
            "worker.head_seconds = {} is too short; use {HEAD_OF_WORKER} or more",
            worker.head_seconds
        );
        return Err(CliError::new(message));
    }
    if worker.max_wait_seconds.get() <= 0.0 {
        let message =
            "worker.max_wait_seconds = 0 leaves no time for a cold start; use more than 0";
        return Err(CliError::new(message));
    }
    let (memory, one) = (worker.body_memory_mb.get(), worker.body_limit_mb.get());
    if memory < one.saturating_mul(2) {
        let message = format!(
            "worker.body_memory_mb = {memory} has no room for bodies of worker.body_limit_mb = {one}; set it \
             to {} or more",
            one.saturating_mul(2)
        );
        return Err(CliError::new(message));
    }
    if worker.heartbeat_seconds.get() < 0.01 {
        let message = format!(
            "worker.heartbeat_seconds = {} is too short; use 0.01 or more",
            worker.heartbeat_seconds
        );
        return Err(CliError::new(message));
    }
    Ok(())
}

/// What a balancer's own times have to be.
///
/// # Errors
///
/// As [`check`].
pub(crate) fn check_balancer(balancer: &BalancerSettings) -> Result<()> {
    if balancer.head_seconds.get() <= 0.0 {
        let message = "balancer.head_seconds = 0 leaves no time; use more than 0";
        return Err(CliError::new(message));
    }
    let (silence, forget) = (balancer.silence_seconds, balancer.forget_seconds);
    if silence >= forget {
        return Err(CliError::new(format!(
            "balancer.silence_seconds = {silence}, but a worker has left after \
             balancer.forget_seconds = {forget}; set that to more than {silence}"
        )));
    }
    Ok(())
}

/// What a registry's own times have to be.
///
/// # Errors
///
/// As [`check`].
pub(crate) fn check_registry(registry: &RegistrySettings) -> Result<()> {
    if registry.head_seconds.get() <= 0.0 {
        let message = "registry.head_seconds = 0 leaves no time; use more than 0";
        return Err(CliError::new(message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::count::Count;
    use super::*;

    #[test]
    fn the_defaults_fit_each_other() {
        check(&Config::default()).unwrap();
    }

    #[test]
    fn each_pair_that_does_not_fit_is_told_by_both_names() {
        type Spoil = fn(&mut Config);
        let cases: [(Spoil, &str, &str); 10] = [
            (
                |c| c.balancer.silence_seconds = Duration::from_secs(60).into(),
                "balancer.silence_seconds = 60",
                "balancer.forget_seconds = 60; set that to more than 60",
            ),
            (
                |c| c.worker.drain_seconds = Duration::from_secs(40).into(),
                "worker.drain_seconds + reply_grace_seconds = 45",
                "cluster.stop_grace_seconds = 40; set that to more than 45",
            ),
            (
                |c| c.cluster.stop_grace_seconds = Duration::from_secs(30).into(),
                "worker.drain_seconds + reply_grace_seconds = 35",
                "set that to more than 35",
            ),
            (
                |c| c.balancer.drain_seconds = Duration::from_secs(40).into(),
                "balancer.drain_seconds = 40",
                "set that to more than 40",
            ),
            (
                |c| c.worker.max_wait_seconds = Duration::from_secs(60).into(),
                "worker.max_wait_seconds = 60",
                "balancer.start_allowance_seconds = 60; set that to more than 60",
            ),
            (
                |c| c.worker.heartbeat_seconds = Duration::from_secs(2).into(),
                "worker.heartbeat_seconds = 2",
                "set that to more than 4",
            ),
            (
                |c| c.worker.head_seconds = Duration::from_secs(5).into(),
                "worker.head_seconds = 5",
                "use 6 or more",
            ),
            (
                |c| c.registry.head_seconds = Duration::ZERO.into(),
                "registry.head_seconds = 0",
                "use more than 0",
            ),
            (
                |c| c.worker.body_memory_mb = Count::of(11),
                "worker.body_memory_mb = 11",
                "set it to 12 or more",
            ),
            (|c| c.balancer.body_limit_mb = Count::of(9), "balancer.body_limit_mb = 9", "set both"),
        ];
        for (spoil, what, next) in cases {
            let mut config = Config::default();
            spoil(&mut config);
            let error = check(&config).unwrap_err().to_string();
            assert!(error.starts_with(what) && error.ends_with(next), "{error}");
        }
    }
}
