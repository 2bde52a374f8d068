//! Checks of the kernel features that each kind of sandbox needs.

use std::fs;
use std::path::Path;

use super::check::{Check, check};

/// What `sock` and every engine of containers separate sandboxes by.
pub(super) fn namespaces() -> Check {
    const KINDS: [(&str, &str); 7] = [
        ("cgroup", "cgroup"),
        ("ipc", "ipc"),
        ("mnt", "mount"),
        ("net", "network"),
        ("pid", "process"),
        ("user", "user"),
        ("uts", "host name"),
    ];
    let (there, missing): (Vec<_>, Vec<_>) =
        KINDS.iter().partition(|(file, _)| Path::new("/proc/self/ns").join(file).exists());
    let names = |kinds: Vec<&(&str, &str)>| {
        kinds.into_iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
    };
    let result = match missing.is_empty() {
        true => Ok(names(there)),
        false => Err(format!("this kernel has none of these: {}", names(missing))),
    };
    let why = "they isolate sandboxes of the kinds sock and docker";
    let next = "run a kernel with CONFIG_NAMESPACES and all that is below it, as distributions' have; or use \
                --sandbox process for code that you trust";
    check("namespaces", false, why, result, next)
}

pub(super) fn user_namespaces() -> Check {
    let number = |path: &str| read(path).and_then(|text| text.parse::<u64>().ok());
    let why = "sock sandboxes of a worker that is not root are made in them";
    let (problem, next) = if number("/proc/sys/user/max_user_namespaces").unwrap_or(0) == 0 {
        ("the kernel has none, or allows none", "sysctl user.max_user_namespaces=10000")
    } else if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        ("not allowed without root", "sysctl kernel.unprivileged_userns_clone=1")
    } else if number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        (
            "AppArmor takes their privileges away",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run workers as root",
        )
    } else {
        return check("user namespaces", false, why, Ok("allowed without root".to_owned()), "");
    };
    check("user namespaces", false, why, Err(problem.to_owned()), next)
}

/// Which version, and which of the controllers that limits are made of.
pub(super) fn cgroups() -> Check {
    let mounts = read("/proc/self/mounts").unwrap_or_default();
    let own = read("/proc/self/cgroup").unwrap_or_default();
    let why = "limits of memory, processor time and processes are made of them";
    let wanted = ["cpu", "memory", "pids"];
    let v1 = wanted.map(|controller| has_v1(&mounts, controller));
    let v2 = controllers_of_v2(&mounts, &own);
    let (version, has) = match (&v2, v1[1]) {
        (_, true) => ("v1", v1),
        (Some(found), false) => ("v2", wanted.map(|name| found.iter().any(|known| known == name))),
        (None, false) => {
            let next = "mount -t cgroup2 none /sys/fs/cgroup";
            return check("cgroups", false, why, Err("no cgroup tree is mounted".into()), next);
        }
    };
    let (there, missing): (Vec<_>, Vec<_>) = wanted.iter().zip(has).partition(|(_, has)| *has);
    let names = |list: Vec<(&&str, bool)>| {
        list.iter().map(|(name, _)| **name).collect::<Vec<_>>().join(", ")
    };
    let result = match missing.is_empty() {
        true => Ok(format!("{version} with {}", names(there))),
        false => Err(format!("{version}, without {}", names(missing))),
    };
    let next = match version {
        "v1" => {
            "mount the hierarchies that are missing: mount -t cgroup -o NAME none /sys/fs/cgroup/NAME"
        }
        _ => {
            "give them to this cgroup: write \"+cpu +memory +pids\" into cgroup.subtree_control of the ones \
              above it, or run workers as a unit of systemd with Delegate=yes"
        }
    };
    check("cgroups", false, why, result, next)
}

fn has_v1(mounts: &str, controller: &str) -> bool {
    mounts.lines().any(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, _, "cgroup", options, ..] = fields[..] else { return false };
        options.split(',').any(|option| option == controller)
    })
}

/// Those of this process's own group; `None` without a mount of version 2.
fn controllers_of_v2(mounts: &str, own: &str) -> Option<Vec<String>> {
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (place, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then_some(place)
    })?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let below = Path::new(mount).join(path.trim_start_matches('/'));
    let place = if below.is_dir() { below } else { mount.into() };
    let text = fs::read_to_string(place.join("cgroup.controllers")).unwrap_or_default();
    Some(text.split_whitespace().map(str::to_owned).collect())
}

pub(super) fn overlay() -> Check {
    let loaded = read("/proc/filesystems").is_some_and(|text| {
        text.lines().any(|line| line.split_whitespace().last() == Some("overlay"))
    });
    let module = || {
        let release = read("/proc/sys/kernel/osrelease")?;
        let modules = Path::new("/lib/modules").join(release).join("modules.dep");
        fs::read_to_string(modules).ok()?.contains("/overlay.ko").then_some(())
    };
    let result = match (loaded, module()) {
        (true, _) => Ok("the kernel has it".to_owned()),
        (false, Some(())) => Ok("a module, which is loaded when it is needed".to_owned()),
        (false, None) => Err("the kernel has no overlay file system".to_owned()),
    };
    let why = "Docker keeps containers' files in it; sock does not need it";
    check(
        "overlay",
        false,
        why,
        result,
        "modprobe overlay, or let Docker use another storage driver",
    )
}

pub(super) fn kvm() -> Check {
    let result = match fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok("/dev/kvm is there".to_owned()),
        Err(error) => Err(format!("/dev/kvm cannot be opened: {error}")),
    };
    let why = "tests that boot another kernel (make test-cgroup-v2) are fast with it; sandboxes need none";
    let next = "modprobe kvm_intel or kvm_amd, on a machine with virtualization; and be root or in the group kvm";
    check("kvm", false, why, result, next)
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_found_in_either_version() {
        let v1 = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0\n\
                  cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0";
        assert!(has_v1(v1, "cpu") && has_v1(v1, "cpuacct") && !has_v1(v1, "memory"));
        let dir = tempfile::tempdir().expect("a folder");
        let unit = dir.path().join("unit");
        fs::create_dir(&unit).expect("a folder");
        fs::write(unit.join("cgroup.controllers"), "cpu memory\n").expect("a file");
        fs::write(dir.path().join("cgroup.controllers"), "cpu io memory pids\n").expect("a file");
        let mounts = format!("cgroup2 {} cgroup2 rw 0 0", dir.path().display());
        assert_eq!(controllers_of_v2(&mounts, "0::/unit").expect("v2"), ["cpu", "memory"]);
        assert_eq!(controllers_of_v2(&mounts, "0::/elsewhere").expect("v2").len(), 4);
        assert_eq!(controllers_of_v2("proc /proc proc rw 0 0", "0::/"), None);
        assert!(!has_v1(&mounts, "memory"));
    }
}
