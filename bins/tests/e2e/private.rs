//! A cluster's folder must belong to its user: in a folder that another user may write, the daemons would
//! do what that user wants.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::common::{Cluster, OL, Place, client, copy_program, post, texts};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn a_folder_that_others_may_write_is_refused_and_nothing_in_it_is_touched() {
    let place = Place::new();
    let data = place.data_dir();
    fs::create_dir(&data).unwrap();
    let outside = data.with_file_name("outside");
    fs::write(&outside, "kept").unwrap();
    fs::create_dir(data.join("logs")).unwrap();
    symlink(&outside, data.join("logs/supervisor.log")).unwrap();
    symlink(&outside, data.join("lock")).unwrap();
    let refused = |why: &str| {
        for args in [&["up", "--detach"][..], &["up"], &["ls"], &["down"]] {
            let said = place.fails(args);
            assert!(said.contains(why) && said.contains("--data-dir"), "{args:?}: {said}");
        }
        assert_eq!(fs::read_to_string(&outside).unwrap(), "kept");
        assert!(!data.join("cluster.json").exists() && !data.join("workers").exists());
    };
    set_mode(&data, 0o777);
    refused("can be written by other users");
    if is_root() {
        set_mode(&data, 0o755);
        chown(&data, Some(1234), Some(1234)).unwrap();
        refused("belongs to another user");
        chown(&data, Some(0), Some(0)).unwrap();
    }
    // It is ours again, and what was put there still leads nowhere.
    set_mode(&data, 0o700);
    let said = place.fails(&["up", "--detach"]);
    assert!(said.contains("it is no file of this user's alone") || said.contains("lock"), "{said}");
    assert_eq!(fs::read_to_string(&outside).unwrap(), "kept");
    fs::remove_file(data.join("lock")).unwrap();
    let said = place.fails(&["up", "--detach"]);
    assert!(said.contains("supervisor.log"), "{said}");
    assert_eq!(fs::read_to_string(&outside).unwrap(), "kept");
    fs::remove_file(data.join("logs/supervisor.log")).unwrap();
}

#[test]
fn what_is_no_file_in_a_cluster_s_folder_is_neither_read_nor_waited_for() {
    let place = Place::new();
    let data = place.data_dir();
    fs::create_dir(&data).unwrap();
    set_mode(&data, 0o700);
    for name in ["FORMAT", "config.toml"] {
        let path = data.join(name);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        for round in 0..2 {
            let said = place.fails(&["up", "--detach"]);
            assert!(said.contains(name) && said.contains("no regular file"), "{said}");
            fs::remove_file(&path).unwrap();
            if round == 0 {
                symlink("/dev/zero", &path).unwrap();
            }
        }
    }
    fs::write(data.join("config.toml"), vec![b'#'; 2 << 20]).unwrap();
    let said = place.fails(&["up", "--detach"]);
    assert!(said.contains("over 1024 KiB"), "{said}");
}

#[test]
fn what_a_cluster_keeps_is_its_user_s_alone_whatever_was_there() {
    let place = Place::new();
    let data = place.data_dir();
    let outside = data.with_file_name("outside");
    fs::create_dir_all(data.join("logs")).unwrap();
    fs::create_dir_all(data.join("workers/worker-1")).unwrap();
    fs::create_dir_all(data.join("volumes/default")).unwrap();
    fs::create_dir_all(outside.join("sandboxes/kept")).unwrap();
    fs::write(data.join("logs/lb.log"), "").unwrap();
    for path in ["logs", "workers", "volumes", "volumes/default", "logs/lb.log"] {
        set_mode(&data.join(path), 0o777);
    }
    // Its sandboxes would be removed, and its code written.
    symlink(&outside, data.join("workers/worker-2")).unwrap();
    let said = place.fails(&["up", "--detach"]);
    assert!(said.contains("worker-2 is a link"), "{said}");
    assert!(outside.join("sandboxes/kept").exists());
    fs::remove_file(data.join("workers/worker-2")).unwrap();

    let cluster = Cluster::start_in(place, &["--workers", "1"]);
    for folder in [
        "logs",
        "registry",
        "functions",
        "volumes",
        "volumes/default",
        "workers",
        "workers/worker-1",
    ] {
        assert_eq!(mode(&data.join(folder)), 0o700, "{folder}");
    }
    for file in ["lock", "cluster.json", "daemons.toml", "logs/lb.log", "logs/supervisor.log"] {
        assert_eq!(mode(&data.join(file)), 0o600, "{file}");
    }
    drop(cluster);
}

/// An author links a function's folder to where it is worked on; and moves that away.
#[tokio::test(flavor = "multi_thread")]
async fn folders_of_functions_may_be_links() {
    let place = Place::new();
    let data = place.data_dir();
    let work = place.function("work", &[("f.py", "def f(event): return 'linked'")]);
    fs::create_dir(&data).unwrap();
    fs::create_dir(data.join("functions")).unwrap();
    symlink(&work, data.join("functions/linked")).unwrap();
    symlink("nowhere", data.join("functions/dangling")).unwrap();
    set_mode(&work, 0o755);
    let cluster = Cluster::start_in(place, &["--workers", "1", "--registry", "dir"]);
    let url = format!("{}/run/linked", cluster.url);
    assert_eq!(post(&client(), &url, "").await.body, "\"linked\"");
    fs::remove_dir_all(&work).unwrap();
    assert_eq!(cluster.place.json(&["down", "--json"])["was_up"], true);
    assert_eq!(cluster.place.json(&["down", "--json"])["was_up"], false);
    assert_eq!(mode(&data.join("functions")), 0o700);
}

/// An ordinary user may start a cluster where only root can do it harm, and not where others can.
#[test]
fn an_ordinary_user_has_a_cluster_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    set_mode(dir.path(), 0o755);
    let program = dir.path().join("ol");
    copy_program(Path::new(OL), &program);
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    if is_root() {
        chown(&home, Some(1234), Some(1234)).unwrap();
    }
    // As a distribution has it where each user has a group.
    set_mode(&home, 0o775);
    let ol = |data: &Path, args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(args).env("OPENLAMBDA_DATA_DIR", data).env("HOME", &home);
        if is_root() {
            command.uid(1234).gid(1234);
        }
        let output = command.current_dir("/").output().unwrap();
        (output.status.success(), texts(&output))
    };
    let up =
        ["up", "--detach", "--listen", "127.0.0.1:0", "--workers", "1", "--sandbox", "process"];
    let (done, (_, said)) = ol(Path::new("/usr/share"), &up);
    assert!(!done && said.contains("belongs to another user"), "{said}");
    let (done, said) = ol(&home.join("data"), &up);
    assert!(done, "{said:?}");
    // Root does not take that user's word for what runs there.
    if is_root() {
        let down = Command::new(OL).args(["down", "--data-dir"]).arg(home.join("data")).output();
        let said = texts(&down.unwrap()).1;
        assert!(said.contains("belongs to another user"), "{said}");
    }
    let (done, said) = ol(&home.join("data"), &["down"]);
    assert!(done, "{said:?}");
}

/// Runs a program of `sh` as the root of a world of its own, where it may mount; `$ol` is `ol`.
fn in_a_world_of_its_own(script: &str, folder: &Path) -> String {
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-ec", script, "script"])
        .env("ol", crate::common::program("ol"))
        .env("dir", folder)
        .output()
        .unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{out}{err}");
    format!("{out}{err}")
}

#[test]
fn a_cluster_whose_folder_nobody_can_write_any_more_tells_its_status() {
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", "process"]);
    let data = cluster.place.data_dir();
    let script = "mount --bind \"$dir\" \"$dir\"; mount -o remount,bind,ro \"$dir\"
        ! touch \"$dir/new\"; \"$ol\" status --data-dir \"$dir\"";
    let said = in_a_world_of_its_own(script, &data);
    assert!(said.contains(&cluster.url) && said.contains("worker-1"), "{said}");
}

#[test]
fn a_disk_that_is_too_small_for_a_cluster_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for size in ["16k", "64k", "100k"] {
        let script = format!(
            "mount -t tmpfs -o size={size},mode=700 none \"$dir\"
            ! \"$ol\" up --detach --data-dir \"$dir/data\" --listen 127.0.0.1:0 --workers 1 --sandbox process"
        );
        let said = in_a_world_of_its_own(&script, folder.path());
        assert!(said.contains("KiB are left on the disk of"), "{size}: {said}");
        assert!(said.contains("make room there"), "{size}: {said}");
    }
}
