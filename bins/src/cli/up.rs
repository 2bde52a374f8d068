//! `ol up`, `ol down`, `ol status`: a cluster on this machine.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use openlambda_core::serving::Secret;
use openlambda_core::time::{Clock, SystemClock};
use openlambda_core::wire::{BalancerStatus, CLUSTER_PATH};
use openlambda_sandbox::sys::{CommandSpec, Output, Spawner};
use rustix::process::{Pid, Signal, kill_process};

use super::compare::{Differences, differences};
use super::progress::Progress;
use super::shown::Shown;
use super::{Common, block_on, print, print_json, table};
use crate::Catalog;
use crate::cluster::{ClusterState, DataDir, no_room_for};
use crate::daemon::Stops;
use crate::error::{CliError, Context, Result};
use crate::http_client;
use crate::private;
use crate::settings::{Given, Settings, Up, check_limits, is_policy, is_time};
use crate::silence::{is_stopped, silent_parts};
use crate::supervisor::{ClusterSpec, Supervisor};
use crate::terminal::say;
use crate::version::VERSION;

/// How long a cluster whose supervisor runs may take until it serves.
const READY: Duration = Duration::from_secs(30);

/// How much longer than its daemons may take a supervisor may take to stop.
const STOPPED: Duration = Duration::from_secs(10);

/// How long its balancer may take to answer whether it does.
const ANSWER: Duration = Duration::from_secs(1);

/// After how much waiting a person is told what for.
const SAY_AFTER: Duration = Duration::from_millis(1500);

/// The cluster that is meant, with all that can be wrong with it said before anything starts.
fn into_spec(settings: &Settings, catalog: &Catalog) -> Result<ClusterSpec> {
    let mut config = settings.config()?;
    let about = |names: &'static [&'static str]| {
        move |error: CliError| settings.blame(error, |name| names.contains(&name))
    };
    let workers = config.cluster.workers.get();
    check_limits(&config).map_err(|error| settings.blame(error, is_time))?;
    let built = catalog.policies().build(&config.balancer.policy);
    built.map_err(CliError::from).map_err(about(&["balancer.policy"]))?;
    let worker = config.worker.config("worker", Path::new(""), catalog);
    worker.map_err(|error| settings.blame(error, is_policy))?;
    if !matches!(config.cluster.registry.as_str(), "native" | "dir") {
        let opened = catalog.open_registry(&config.cluster.registry, None, "ol up");
        opened.map_err(about(&["cluster.registry"]))?;
    }
    if let Some(log) = &mut config.balancer.access_log {
        if log.as_os_str() == "-" {
            let message =
                "the balancer's standard output goes nowhere; name a file for --access-log";
            return Err(about(&["balancer.access_log"])(CliError::new(message)));
        }
        *log = absolute(log)?;
    }
    for (flag, file) in
        [("records", &mut config.worker.records), ("inputs", &mut config.worker.inputs)]
    {
        let Some(file) = file else { continue };
        if workers > 1 && !file.to_string_lossy().contains("{name}") {
            let message = format!(
                "{workers} workers cannot write one file; name {} in --{flag}, as in {{name}}.jsonl",
                "{name}"
            );
            let error = CliError::new(message);
            return Err(about(&["worker.records", "worker.inputs", "cluster.workers"])(error));
        }
        *file = absolute(file)?;
    }
    for file in [&mut config.registry.store, &mut config.cluster.secret_file].into_iter().flatten()
    {
        *file = absolute(file)?;
    }
    let options = config.worker.sandbox_options()?;
    (config.worker.python, config.worker.node) = (options.python.clone(), options.node.clone());
    let sandbox = catalog.sandbox_entry(&config.worker.sandbox, &options);
    config.worker.sandbox = match sandbox {
        Ok(entry) => entry.name.to_owned(),
        // That none works here is no fault of the call.
        Err(error) if config.worker.sandbox == "auto" => return Err(error),
        Err(error) => return Err(about(&["worker.sandbox"])(error)),
    };
    Ok(ClusterSpec { config, requests: None })
}

/// The file as a daemon finds it, wherever that is started.
fn absolute(file: &Path) -> Result<PathBuf> {
    std::path::absolute(file).context(|| format!("{} is not a usable path", file.display()))
}

#[derive(Args, Debug)]
pub(super) struct UpArgs {
    #[command(flatten)]
    given: Given<Up>,
    /// Return when the cluster serves, and leave it running
    #[arg(long)]
    detach: bool,
    /// This process is the supervisor that --detach has started
    #[arg(long, hide = true)]
    detached: bool,
    #[command(flatten)]
    common: Common,
}

pub(super) fn up(args: UpArgs, catalog: &Catalog) -> Result<ExitCode> {
    let dir = args.common.dir_alone()?;
    let by_file = args.given.file().is_some();
    let settings = Settings::complete(args.given, dir.config_file()?.as_deref())?;
    let mut spec = into_spec(&settings, catalog)?;
    dir.create()?;
    let found = |state: &ClusterState, answers: bool| {
        let asked = differences(&settings, &spec.config, by_file, &dir, state, catalog)?;
        block_on(use_found(&dir, state, answers, &asked, &args.common))
    };
    let lock = match block_on(look(&dir))? {
        Found::Lock(lock) => lock,
        // Who is started by another `ol up` leaves the comparing to that.
        Found::Cluster { .. } if args.detached => return Ok(ExitCode::SUCCESS),
        Found::Cluster { state, answers } => return found(&state, answers),
    };
    dir.mark_format()?;
    if args.detach {
        drop(lock);
        return match block_on(detach(&dir, &spec, &args.common))? {
            Detached::Started => Ok(ExitCode::SUCCESS),
            // Another `ol up` was quicker.
            Detached::Found { state, answers } => found(&state, answers),
        };
    }
    dir.make_private()?;
    let left = dir.clean();
    if left.processes > 0 {
        say!("removed {} processes that an earlier cluster had left", left.processes);
    }
    if args.detached {
        crate::daemon::start_log();
    }
    let shows = !args.detached && !args.common.json;
    let requests = dir.join("logs/calls.jsonl");
    spec.requests = shows.then(|| requests.clone());
    let requests = spec.config.balancer.access_log.clone().unwrap_or(requests);
    let ended = block_on(async {
        let mut stops = Stops::listen()?;
        let starting = Progress::start("starting the cluster");
        let supervisor = tokio::select! {
            supervisor = Supervisor::start(dir.clone(), &spec) => supervisor?,
            () = stops.any() => return Ok(true),
        };
        drop(starting);
        if args.detached {
            stops.any().await;
            supervisor.stop().await;
            return Ok(true);
        }
        let state = dir.read_state().unwrap_or_default();
        report_up(&state, &args.common).await?;
        let shown = shows.then(|| Shown::start(dir.clone(), requests));
        say!("Ctrl-C does too");
        stops.any().await;
        let calm = stop(supervisor, &state, &mut stops, &spec).await;
        drop(shown);
        Ok(calm)
    });
    let ended = ended.inspect(|_| drop(dir.clean())).inspect_err(|_| drop(dir.clean()))?;
    drop(lock);
    Ok(if ended { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Stops a cluster before the eyes of a person, who may have no patience: then this is `false`, and what
/// is left is to be killed.
async fn stop(
    supervisor: Supervisor,
    state: &ClusterState,
    stops: &mut Stops,
    spec: &ClusterSpec,
) -> bool {
    let within = Duration::from_millis(300);
    let asked = tokio::time::timeout(within, balancer_status(state)).await;
    let asked = asked.ok().and_then(Result::ok);
    let calls = asked.map_or(0, |balancer| {
        balancer.workers.iter().map(|worker| u64::from(worker.in_flight)).sum::<u64>()
    });
    match calls {
        0 => say!("stopping; Ctrl-C again ends it at once"),
        1 => say!("stopping when 1 call under way has come to its end; Ctrl-C again cuts it off"),
        _ => say!(
            "stopping when {calls} calls under way have come to their end; Ctrl-C again cuts them off"
        ),
    }
    let left = supervisor.left();
    let progress = Progress::start("stopping");
    let stopping = supervisor.stop();
    tokio::pin!(stopping);
    let most = spec.config.cluster.stop_grace_seconds.get();
    for seconds in 0u64.. {
        tokio::select! {
            () = &mut stopping => return true,
            () = stops.interrupt() => break,
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                let names = left.names().join(", ");
                progress.set(|| {
                    format!("stopping: waiting for {names}, {seconds} s of at most {most:.0} s")
                });
            }
        }
    }
    drop(progress);
    say!("ol: ended at once; calls under way were cut off");
    false
}

/// Says that the cluster runs already, and whether it is the one that was asked for.
async fn use_found(
    dir: &DataDir,
    state: &ClusterState,
    answers: bool,
    asked: &Differences,
    common: &Common,
) -> Result<ExitCode> {
    if !asked.demands.is_empty() {
        return Err(CliError::new(format!(
            "a cluster runs here already, and not the one that is asked for:\n    {}\n\
             `ol down`, then the same again, starts the one that is asked for; `ol up` alone uses the one \
             that runs",
            asked.demands.join("\n    ")
        )));
    }
    say!("the cluster runs already; `ol down` stops it");
    if state.release != VERSION {
        say!("{}", of_another_release(&state.release));
    }
    if !asked.wishes.is_empty() {
        say!(
            "what the settings say now takes effect after `ol down` and `ol up`:\n    {}",
            asked.wishes.join("\n    ")
        );
    }
    if !answers {
        for part in silent_parts(state, ANSWER / 2).await {
            say!("{part}");
        }
        say!("its balancer takes long to answer; see {}", dir.join("logs").display());
    }
    report_up(state, common).await?;
    Ok(ExitCode::SUCCESS)
}

/// That a cluster runs which another release has started, and how to go on.
fn of_another_release(release: &str) -> String {
    let release = if release.is_empty() { "an earlier release" } else { release };
    format!("it is of {release}, this is {VERSION}: `ol down`, then `ol up`, changes to this one")
}

/// Starts this very command again as a supervisor of its own session, and waits until it serves or
/// has said why not.
///
/// It has no mark of the cluster: whoever gets the lock first removes what carries it, and several may
/// be on their way to the lock.
async fn detach(dir: &DataDir, spec: &ClusterSpec, common: &Common) -> Result<Detached> {
    let progress = Progress::start("starting the cluster");
    let program =
        std::env::current_exe().context(|| "cannot find the path of this program".to_owned())?;
    let log = dir.join("logs/supervisor.log");
    let open = private::open_file(&log, File::options().create(true).append(true));
    let file = open.context(|| format!("cannot write {}", log.display()))?;
    let begin = file.metadata().map_or(0, |metadata| metadata.len());
    let mut command = CommandSpec::new(program);
    for arg in std::env::args_os().skip(1).filter(|arg| arg != "--detach") {
        command = command.arg(arg);
    }
    command = command.arg("--detached").env("OPENLAMBDA_DATA_DIR", dir.path());
    command.inherit_env = true;
    command.parent_death = None;
    command.stderr = Output::File(file);
    let spawner = Spawner::start().context(|| "cannot start a thread".to_owned())?;
    let child = spawner.spawn(command).await.context(|| "cannot start".to_owned())?;
    let pid = child.pid().as_raw_nonzero().get() as u32;
    let ready = async {
        loop {
            if let Some(state) = dir.read_state().filter(|state| state.pid == pid) {
                if state.ready {
                    return state;
                }
                let started = state.workers.iter().filter(|worker| worker.pid.is_some()).count();
                progress.set(|| {
                    format!(
                        "starting the cluster: {started} of {} workers",
                        spec.config.cluster.workers
                    )
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        state = ready => {
            drop(progress);
            child.release();
            report_up(&state, common).await?;
            Ok(Detached::Started)
        }
        status = child.wait() => {
            if status.success() {
                drop(progress);
                return match look(dir).await? {
                    Found::Cluster { state, answers } => Ok(Detached::Found { state, answers }),
                    Found::Lock(_) => {
                        Err(CliError::new("the cluster was stopped while it started; try again"))
                    }
                };
            }
            let text = std::fs::read(&log).unwrap_or_default();
            let text = text.get(usize::try_from(begin).unwrap_or(0)..).unwrap_or_default();
            let text = String::from_utf8_lossy(text);
            let said = text.lines().rev().find_map(|line| line.strip_prefix("ol: "));
            Err(CliError::new(match (said, no_room_for(&log)) {
                (Some(said), None) => said.to_owned(),
                // What was said may be what the full disk has led to, or a part of it.
                (Some(said), Some(full)) if !said.contains(&full) => format!("{said}\n    {full}"),
                (Some(said), Some(_)) => said.to_owned(),
                (None, Some(full)) => format!("the cluster did not start: {full}"),
                (None, None) => format!("the cluster did not start; see {}", log.display()),
            }))
        }
    }
}

/// What became of a cluster that was to be started.
enum Detached {
    /// It serves.
    Started,
    /// Another one was there first.
    Found { state: Box<ClusterState>, answers: bool },
}

/// What there is in a cluster's folder.
enum Found {
    /// No supervisor runs, and none can be started while this is held.
    Lock(File),
    /// A cluster that runs, and whether its balancer answers in time.
    Cluster { state: Box<ClusterState>, answers: bool },
}

/// Takes the lock, or finds the cluster that runs. That the lock is held does not tell it: a supervisor that was
/// killed holds it until the kernel is through with it, and other commands hold it for a moment to look.
async fn look(dir: &DataDir) -> Result<Found> {
    let look = async {
        let clock = SystemClock::new();
        let mut said = false;
        loop {
            if !said && clock.now().as_secs_f64() > SAY_AFTER.as_secs_f64() {
                said = true;
                let pid = dir.read_state().map(|state| state.pid).filter(|pid| is_stopped(*pid));
                match pid {
                    Some(pid) => say!(
                        "ol: the supervisor of the cluster here is stopped; `kill -CONT {pid}` lets it go on"
                    ),
                    None => say!("ol: a cluster is being started or stopped here; waiting for it"),
                }
            }
            if let Some(lock) = dir.try_lock()? {
                return Ok(Found::Lock(lock));
            }
            if let Some(state) = dir.read_state().filter(|state| state.ready) {
                if let (None, Some(file)) = (&state.secret, &state.secret_file) {
                    // Nobody answers without it.
                    Secret::read(file)?;
                }
                match tokio::time::timeout(ANSWER, balancer_status(&state)).await {
                    Ok(Ok(_)) => {
                        return Ok(Found::Cluster { state: Box::new(state), answers: true });
                    }
                    // It is started again, or stopped.
                    Ok(Err(_)) => {}
                    // It is there and does not speak, which is no reason to start another one: the
                    // kernel would be through by now with a supervisor that was killed.
                    Err(_) => match dir.try_lock()? {
                        Some(lock) => return Ok(Found::Lock(lock)),
                        None if dir.read_state().as_ref() == Some(&state) => {
                            return Ok(Found::Cluster { state: Box::new(state), answers: false });
                        }
                        None => {}
                    },
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(READY, look).await.unwrap_or_else(|_| Err(CliError::new(waits_for(dir))))
}

/// Why there is still neither a lock nor a cluster.
fn waits_for(dir: &DataDir) -> String {
    let logs = dir.join("logs");
    match dir.read_state() {
        Some(ClusterState { ready: true, url, .. }) => format!(
            "a cluster runs here, but nothing answers at {url}; see {}, or stop it with `ol down`",
            logs.display()
        ),
        _ => format!(
            "a cluster is being started or stopped here and takes long; see {}, or stop it with \
             `ol down`",
            logs.display()
        ),
    }
}

async fn report_up(state: &ClusterState, common: &Common) -> Result<()> {
    if common.json {
        let asked = tokio::time::timeout(ANSWER, balancer_status(state)).await;
        let balancer = asked.ok().and_then(Result::ok);
        print_json(&status_json(state, balancer.as_ref()));
        return Ok(());
    }
    print(&format!("{}\n", state.url));
    let sandbox = state.workers.first().map_or("no", |worker| worker.sandbox.as_str());
    say!(
        "serving with {} ({sandbox} sandboxes), the {} registry and the policy {}",
        match state.workers.len() {
            1 => "1 worker".to_owned(),
            workers => format!("{workers} workers"),
        },
        state.registry.kind,
        state.policy
    );
    if sandbox == "process" {
        say!("process sandboxes do not isolate functions: deploy only code that you trust");
    }
    say!("go on with `ol new DIR`, `ol deploy DIR`; `ol down` stops it all");
    Ok(())
}

pub(super) fn down(args: &Common) -> Result<ExitCode> {
    let dir = args.dir_alone()?;
    let was_up = dir.is_up()?;
    if was_up {
        let _progress = Progress::start("stopping; calls under way come to their end first");
        let state = dir.read_state();
        let within = state.as_ref().map_or(0.0, |state| state.stops_within);
        let patience = STOPPED + Duration::try_from_secs_f64(within).unwrap_or_default();
        let pid = state.and_then(|state| Pid::from_raw(i32::try_from(state.pid).ok()?));
        if let Some(pid) = pid {
            // Gone meanwhile is as good as stopped.
            let _ = kill_process(pid, Signal::TERM);
            // One that somebody has stopped would not hear it.
            let _ = kill_process(pid, Signal::CONT);
        }
        block_on(async {
            let stopped = async {
                while dir.is_up()? {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Ok(())
            };
            if let Ok(stopped) = tokio::time::timeout(patience, stopped).await {
                return stopped;
            }
            Err(CliError::new("the supervisor does not stop; kill it and run `ol down` again"))
        })?;
    }
    let mut cleaned = None;
    if dir.path().exists() {
        let Some(_lock) = dir.try_lock()? else {
            return Err(CliError::new("another cluster was just started here; try again"));
        };
        dir.make_private()?;
        let report = dir.clean();
        if !report.failed.is_empty() {
            let message = format!("could not remove {}", report.failed.join(", "));
            return Err(CliError::new(message));
        }
        cleaned = Some(report);
    }
    let killed = cleaned.as_ref().map_or(0, |report| report.processes);
    if args.json {
        print_json(&serde_json::json!({ "was_up": was_up, "killed": killed }));
    } else if was_up {
        say!("stopped");
    } else if killed > 0 {
        say!("no cluster ran; removed {killed} processes that an earlier one had left");
    } else {
        say!("no cluster runs here");
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn status(args: &Common) -> Result<ExitCode> {
    let state = args.dir_alone()?.running()?;
    let (asked, silent) = block_on(async {
        let asked = tokio::time::timeout(ANSWER, balancer_status(&state));
        Ok(tokio::join!(asked, silent_parts(&state, ANSWER)))
    })?;
    let slow = asked.is_err();
    let (balancer, why) = match asked {
        Ok(Ok(balancer)) => (Some(balancer), None),
        Ok(Err(error)) => (None, Some(openlambda_core::failure::chain(&error))),
        Err(_) => (None, None),
    };
    if args.json {
        let mut told = status_json(&state, balancer.as_ref());
        told["silent"] = silent.iter().map(|part| part.name.as_str()).collect();
        print_json(&told);
        return Ok(ExitCode::SUCCESS);
    }
    let mut text =
        format!("{}  policy {}  registry {}\n", state.url, state.policy, state.registry.spec);
    for part in &silent {
        text.push_str(&format!("{part}\n"));
    }
    if slow {
        text.push_str("the balancer takes long to answer: the state of the workers is not known\n");
    } else if balancer.is_none() {
        match why {
            // Somebody answers, and not as one who knows the secret that this command has read.
            Some(why) if why.contains("secret") => text.push_str(&format!("{why}\n")),
            _ => {
                text.push_str("the balancer does not answer; the supervisor is starting it again\n")
            }
        }
    }
    let rows: Vec<Vec<String>> = state
        .workers
        .iter()
        .map(|worker| {
            let known = known_worker(&worker.id, balancer.as_ref());
            let (running, idle) =
                known.map_or((0, 0), |known| (known.load.running, known.load.idle));
            vec![
                worker.id.clone(),
                match silent.iter().any(|part| part.name == worker.id) {
                    true => "no answer".to_owned(),
                    false => worker_state(&worker.id, balancer.as_ref()).to_owned(),
                },
                worker.sandbox.clone(),
                running.to_string(),
                idle.to_string(),
                worker.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                worker.url.clone(),
            ]
        })
        .collect();
    text.push_str(&table(&["WORKER", "STATE", "SANDBOX", "RUNNING", "IDLE", "PID", "URL"], &rows));
    print(&text);
    Ok(ExitCode::SUCCESS)
}

async fn balancer_status(state: &ClusterState) -> Result<BalancerStatus> {
    let url = &state.url;
    let request = http::Request::get(format!("{url}{CLUSTER_PATH}")).body(Bytes::new());
    let request = request.context(|| format!("{url} is not an address"))?;
    let answer = http_client::send(request, state.secret.as_ref()).await?;
    serde_json::from_slice(answer.body())
        .context(|| "the balancer's answer is not understood".to_owned())
}

fn known_worker<'a>(
    id: &str,
    balancer: Option<&'a BalancerStatus>,
) -> Option<&'a openlambda_core::wire::WorkerStatus> {
    balancer?.workers.iter().find(|known| known.name == id)
}

/// What the balancer says of a worker.
fn worker_state<'a>(id: &str, balancer: Option<&'a BalancerStatus>) -> &'a str {
    match (balancer, known_worker(id, balancer)) {
        (None, _) => "unknown",
        (_, None) => "starting",
        (_, Some(known)) => known.state.as_str(),
    }
}

/// The documented form of `ol status --json`.
fn status_json(state: &ClusterState, balancer: Option<&BalancerStatus>) -> serde_json::Value {
    let workers = state.workers.iter().map(|worker| {
        serde_json::json!({
            "id": worker.id,
            "url": worker.url,
            "sandbox": worker.sandbox,
            "state": worker_state(&worker.id, balancer),
            "pid": worker.pid,
        })
    });
    serde_json::json!({
        "url": state.url,
        "policy": state.policy,
        "pid": state.pid,
        "balancer_pid": state.balancer_pid,
        "workers": workers.collect::<Vec<_>>(),
        "registry": state.registry,
    })
}
