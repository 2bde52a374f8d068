//! `ol doctor`: what OpenLambda needs, which of it this machine has, and how to get the rest.

mod check;
mod kernel;

use std::path::Path;
use std::process::{Command, ExitCode};

use clap::Args;
use openlambda_sandbox::sys::processes_with_mark;
use openlambda_sandbox::{Python, Pythons, find_node};
use rustix::process::{Resource, getrlimit};

use self::check::{Check, check};
use super::{Common, print, print_json};
use crate::Catalog;
use crate::catalog::{SandboxEntry, SandboxOptions};
use crate::cluster::DataDir;
use crate::error::Result;

#[derive(Args, Debug)]
pub(super) struct DoctorArgs {
    /// Remove what a crashed cluster has left
    #[arg(long)]
    clean: bool,
    #[command(flatten)]
    common: Common,
}

pub(super) fn doctor(args: &DoctorArgs, catalog: &Catalog) -> Result<ExitCode> {
    let dir = args.common.dir()?;
    let settings = dir.worker_settings()?;
    let options = settings.sandbox_options()?;
    let mut checks = vec![
        python(&settings.pythons()?),
        node(options.node.as_deref()),
        curl(),
        loopback(),
        port(&dir)?,
        data_dir(&dir),
        proc_readable(),
        descriptors(),
        kernel::namespaces(),
        kernel::user_namespaces(),
        kernel::cgroups(),
        kernel::overlay(),
        kernel::kvm(),
        runtimes(),
    ];
    checks.extend(catalog.sandboxes().iter().map(|entry| sandbox(entry, &options)));
    checks.push(leftovers(&dir, args.clean)?);
    let well = checks.iter().all(|check| check.ok || !check.needed);
    if args.common.json {
        print_json(&serde_json::json!({ "ok": well, "checks": checks }));
    } else {
        let mut text = String::new();
        for check in &checks {
            let sign = match (check.ok, check.needed) {
                (true, _) => "ok     ",
                (false, true) => "MISSING",
                (false, false) => "note   ",
            };
            text.push_str(&format!("{sign}  {}: {}\n", check.check, check.detail));
            text.push_str(&format!("         for: {}\n", check.why));
            if let Some(next) = check.next {
                text.push_str(&format!("         do:  {next}\n"));
            }
        }
        text.push_str(match well {
            true => "\nAll that a cluster needs is here; go on with `ol up --detach`.\n",
            false => "\nWhat is MISSING is needed; see what to do beside it.\n",
        });
        print(&text);
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Tries a kind of sandbox, and says what it does not enforce here.
fn sandbox(entry: &SandboxEntry, options: &SandboxOptions) -> Check {
    let result = match (entry.check)(options) {
        Ok(withheld) if withheld.is_empty() => Ok(format!("{} works", entry.name)),
        Ok(withheld) => {
            Ok(format!("{} works, but does not give {}", entry.name, withheld.join("; ")))
        }
        Err(error) => Err(format!("{}: {}", entry.name, openlambda_core::failure::chain(&*error))),
    };
    let purpose = "functions run in sandboxes of one of these kinds";
    check("sandbox", false, purpose, result, "`ol up` takes the first kind that works")
}

/// The Python that runs functions and checks them at deploy, and those that they can name by version.
fn python(pythons: &Pythons) -> Check {
    let asked = || {
        let program = pythons.usual().ok_or("there is no python3 in /usr/bin or PATH")?;
        let mut usual = Python::ask(program)
            .map_err(|error| format!("{} is no Python 3 that runs: {error}", program.display()))?;
        // Not the one that a wrapper finds.
        usual.program = program.to_owned();
        let sqlite = Command::new(program).args(["-I", "-c", "import sqlite3"]).output();
        if !sqlite.is_ok_and(|output| output.status.success()) {
            return Err(format!("Python {} ({}) has no sqlite3", usual.version, program.display()));
        }
        let name = |python: &Python| format!("{} ({})", python.version, python.program.display());
        let all = pythons.all();
        let others = all.iter().filter(|other| other.minor != usual.minor).map(name);
        let others = others.collect::<Vec<_>>().join(", ");
        let others = match others.is_empty() {
            true => String::new(),
            false => format!("; functions that name their version can have {others}"),
        };
        Ok(format!("Python {}, with sqlite3{others}", name(&usual)))
    };
    let why = "it runs functions in Python; the demo's chat room keeps its messages in sqlite3";
    let next = "apt-get install python3, or name another with --python";
    check("python", true, why, asked(), next)
}

fn node(set: Option<&Path>) -> Check {
    const OLDEST: u32 = 18;
    let asked = || {
        let path = set.map(Path::to_owned).or_else(find_node).ok_or("there is no Node.js")?;
        let output = Command::new(&path).arg("--version").output();
        let output = output.map_err(|error| format!("{} does not run: {error}", path.display()))?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let major = version.trim_start_matches('v').split('.').next();
        let found = format!("Node.js {version} ({})", path.display());
        match major.and_then(|major| major.parse::<u32>().ok()) {
            Some(major) if major >= OLDEST => Ok(found),
            _ => Err(format!("{found} is older than {OLDEST}")),
        }
    };
    let next = "apt-get install nodejs; containers of Docker take the one of their image";
    check("node", false, "it runs functions in Node.js", asked(), next)
}

fn curl() -> Check {
    let result = match Command::new("curl").arg("--version").output() {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok(text.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
        }
        Ok(output) => Err(format!("curl fails: {}", output.status)),
        Err(error) => Err(format!("curl does not run: {error}")),
    };
    let why = "the demo and functions from the template bootstrap-sh speak HTTP with it";
    check("curl", false, why, result, "apt-get install curl")
}

fn loopback() -> Check {
    let result = match std::net::TcpListener::bind("127.0.0.1:0") {
        Ok(_) => Ok("127.0.0.1 is available".to_owned()),
        Err(error) => Err(format!("127.0.0.1 is not available: {error}")),
    };
    let why = "balancer, registry and workers speak to each other over it";
    check("loopback", true, why, result, "bring it up: ip link set lo up")
}

fn proc_readable() -> Check {
    let result = std::fs::read("/proc/self/environ")
        .map(|_| "/proc is mounted".to_owned())
        .map_err(|error| format!("/proc cannot be read: {error}"));
    let next = "mount -t proc proc /proc";
    let why = "processes that a crash left behind are found through it";
    check("proc", true, why, result, next)
}

fn descriptors() -> Check {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let detail = format!("{limit} open files a process");
    let result = if limit >= 4096 { Ok(detail) } else { Err(detail) };
    let why = "each call under way takes a few";
    check("descriptors", false, why, result, "many calls at once need more: ulimit -n 65536")
}

fn data_dir(dir: &DataDir) -> Check {
    let existing = dir.path().ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let writable = rustix::fs::access(existing, rustix::fs::Access::WRITE_OK);
    let result = match writable {
        Ok(()) => Ok(match rustix::fs::statvfs(existing) {
            Ok(disk) => {
                let free = disk.f_bavail.saturating_mul(disk.f_frsize) >> 20;
                format!("{}, with {free} MiB free", dir.path().display())
            }
            Err(_) => dir.path().display().to_string(),
        }),
        Err(error) => Err(format!("{} cannot be written: {error}", existing.display())),
    };
    let why = "bundles, volumes and logs are kept there";
    check("data folder", true, why, result, "name another one with --data-dir")
}

fn port(dir: &DataDir) -> Result<Check> {
    let own = dir.read_state().filter(|state| state.url.ends_with(":8080"));
    let result = match std::net::TcpListener::bind("127.0.0.1:8080") {
        Ok(_) => Ok("8080 is free".to_owned()),
        Err(_) if own.is_some() && dir.is_up()? => {
            Ok("8080 is taken by the cluster that runs".to_owned())
        }
        Err(error) => Err(format!("8080 is not available: {error}")),
    };
    let why = "`ol up` listens there by default";
    Ok(check("port", false, why, result, "`ol up --listen 127.0.0.1:0` takes a free one"))
}

/// OCI runtimes in `PATH`. Which of them an engine knows, it says itself.
fn runtimes() -> Check {
    let found: Vec<String> = ["runc", "crun", "runsc"]
        .into_iter()
        .filter_map(|name| {
            let output = std::process::Command::new(name).arg("--version").output().ok()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            // "runc version 1.1.5+ds1", "runsc version release-20221219.0"
            let version = text.lines().next()?.split_whitespace().nth(2).unwrap_or_default();
            output.status.success().then(|| format!("{name} {version}").trim().to_owned())
        })
        .collect();
    let result = match found.is_empty() {
        false => Ok(found.join(", ")),
        true => Err("none of runc, crun and runsc is in PATH".to_owned()),
    };
    let why = "docker sandboxes are run by one of them (OPENLAMBDA_DOCKER_RUNTIME)";
    check("runtimes", false, why, result, "apt-get install runc, or runsc for gVisor's kernel")
}

fn leftovers(dir: &DataDir, clean: bool) -> Result<Check> {
    let why = "a crash may leave processes and folders, which the next `ol up` removes too";
    if dir.is_up()? {
        return Ok(check("leftovers", false, why, Ok("a cluster runs".to_owned()), ""));
    }
    if clean
        && dir.path().exists()
        && let Some(_lock) = dir.try_lock()?
    {
        let report = dir.clean();
        let detail =
            format!("removed {} processes, {} files", report.processes, report.removed.len());
        let result =
            if report.failed.is_empty() { Ok(detail) } else { Err(report.failed.join(", ")) };
        return Ok(check("leftovers", false, why, result, "remove them by hand"));
    }
    let left = processes_with_mark(&dir.mark()).len();
    let result = match left {
        0 => Ok("none".to_owned()),
        _ => Err(format!("{left} processes of a cluster that crashed")),
    };
    Ok(check("leftovers", false, why, result, "`ol doctor --clean` or `ol down` removes them"))
}
