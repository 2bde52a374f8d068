//! `ol doctor`: what this machine has of what OpenLambda needs, and how to get the rest.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use openlambda_sandbox::sys::processes_with_mark;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use super::{Common, print, print_json};
use crate::Catalog;
use crate::catalog::SandboxEntry;
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

#[derive(Debug, Serialize)]
struct Check {
    /// What was looked at.
    check: &'static str,
    ok: bool,
    /// Nothing that ships today works without it.
    needed: bool,
    detail: String,
    /// What to do, when it is not well.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<&'static str>,
}

pub(super) fn doctor(args: &DoctorArgs, catalog: &Catalog) -> Result<ExitCode> {
    let dir = args.common.dir()?;
    let mut checks = vec![
        python(),
        proc_readable(),
        descriptors(),
        data_dir(&dir),
        port(),
        user_namespaces(),
        cgroups(),
    ];
    checks.extend(catalog.sandboxes().iter().map(sandbox));
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
            if let Some(next) = check.next {
                text.push_str(&format!("         {next}\n"));
            }
        }
        print(&text);
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Tries a kind of sandbox, and says what it does not enforce here.
fn sandbox(entry: &SandboxEntry) -> Check {
    let result = match (entry.check)() {
        Ok(withheld) if withheld.is_empty() => Ok(format!("{} works", entry.name)),
        Ok(withheld) => Ok(format!("{} works, but withholds {}", entry.name, withheld.join("; "))),
        Err(error) => Err(format!("{}: {}", entry.name, openlambda_core::failure::chain(&*error))),
    };
    check("sandbox", false, result, "`ol up` takes the first kind that works")
}

fn check(
    name: &'static str,
    needed: bool,
    result: std::result::Result<String, String>,
    next: &'static str,
) -> Check {
    let ok = result.is_ok();
    let (Ok(detail) | Err(detail)) = result;
    Check { check: name, ok, needed, detail, next: (!ok).then_some(next) }
}

fn python() -> Check {
    let version = std::process::Command::new("python3")
        .args(["-c", "import sys, sqlite3; print('%d.%d.%d' % sys.version_info[:3])"])
        .output();
    let result = match version {
        Ok(output) if output.status.success() => {
            Ok(format!("Python {}", String::from_utf8_lossy(&output.stdout).trim()))
        }
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("python3 does not run: {error}")),
    };
    let next = "functions in Python need python3 with sqlite3: apt-get install python3";
    check("python", true, result, next)
}

fn proc_readable() -> Check {
    let result = std::fs::read("/proc/self/environ")
        .map(|_| "/proc is mounted".to_owned())
        .map_err(|error| format!("/proc cannot be read: {error}"));
    let next = "leftover processes are found through /proc: mount -t proc proc /proc";
    check("proc", true, result, next)
}

fn descriptors() -> Check {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let detail = format!("{limit} open files a process");
    let result = if limit >= 4096 { Ok(detail) } else { Err(detail) };
    check("descriptors", false, result, "many calls at once need more: ulimit -n 65536")
}

fn data_dir(dir: &DataDir) -> Check {
    let existing = dir.path().ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let writable = rustix::fs::access(existing, rustix::fs::Access::WRITE_OK);
    let result = match writable {
        Ok(()) => Ok(dir.path().display().to_string()),
        Err(error) => Err(format!("{} cannot be written: {error}", existing.display())),
    };
    check("data folder", true, result, "name another one with --data-dir")
}

fn port() -> Check {
    let result = match std::net::TcpListener::bind("127.0.0.1:8080") {
        Ok(_) => Ok("8080 is free".to_owned()),
        Err(error) => Err(format!("8080 cannot be had: {error}")),
    };
    check("port", false, result, "pass `ol up --listen 127.0.0.1:0` for a free one")
}

fn user_namespaces() -> Check {
    let most = read("/proc/sys/user/max_user_namespaces").and_then(|text| text.parse().ok());
    let allowed = read("/proc/sys/kernel/unprivileged_userns_clone").is_none_or(|text| text != "0");
    let result = if allowed && most.is_some_and(|most: u64| most > 0) {
        Ok("allowed without root".to_owned())
    } else {
        Err("not allowed without root".to_owned())
    };
    let next = "isolated sandboxes without root will need: sysctl user.max_user_namespaces=10000";
    check("user namespaces", false, result, next)
}

fn cgroups() -> Check {
    let unified = PathBuf::from("/sys/fs/cgroup/cgroup.controllers");
    let v1 = Path::new("/sys/fs/cgroup/memory").exists();
    let result = match (unified.exists(), v1) {
        (true, _) => Ok("v2".to_owned()),
        (false, true) => Ok("v1".to_owned()),
        (false, false) => Err("no cgroup tree at /sys/fs/cgroup".to_owned()),
    };
    check("cgroups", false, result, "limits of isolated sandboxes will need cgroups")
}

fn leftovers(dir: &DataDir, clean: bool) -> Result<Check> {
    if dir.is_up()? {
        return Ok(check("leftovers", false, Ok("a cluster runs".to_owned()), ""));
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
        return Ok(check("leftovers", false, result, "remove them by hand"));
    }
    let left = processes_with_mark(&dir.mark()).len();
    let result = match left {
        0 => Ok("none".to_owned()),
        _ => Err(format!("{left} processes of a cluster that crashed")),
    };
    Ok(check("leftovers", false, result, "`ol doctor --clean` or `ol down` removes them"))
}

fn read(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}
