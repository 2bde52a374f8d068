//! Folders of other releases. `fixtures/data-folder-1.tar.gz` is one that the last release without a
//! `FORMAT` file has written, packed by `fixtures/make-data-folder.sh`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::common::{Cluster, Place, secret, texts, wait_for};

/// Puts what the earlier release wrote where the place's data folder is.
fn unpack(place: &Place) {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data-folder-1.tar.gz");
    let into = place.data_dir().parent().unwrap().to_owned();
    let unpacked = Command::new("tar").arg("-C").arg(into).arg("-xzf").arg(packed).status();
    assert!(unpacked.unwrap().success());
}

/// Everything below a folder: contents and times of files.
fn tree(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, i64, i64)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let content = if metadata.is_dir() { Vec::new() } else { fs::read(&path).unwrap() };
        if metadata.is_dir() {
            found.extend(tree(&path));
        }
        found.insert(path, (content, metadata.mtime(), metadata.mtime_nsec()));
    }
    found
}

fn format_of(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("FORMAT")).unwrap()).unwrap()
}

/// What a later release would have written into the folder.
fn of_a_later_release(folder: &Path, kind: &str) {
    let said = json!({ "kind": kind, "format": 3, "release": "9.9.9", "more": [] });
    fs::write(folder.join("FORMAT"), said.to_string()).unwrap();
}

#[test]
fn what_an_earlier_release_wrote_opens_with_all_that_is_in_it() {
    let place = Place::new();
    unpack(&place);
    let data = place.data_dir();
    assert!(!data.join("FORMAT").exists() && !data.join("registry/FORMAT").exists());
    // What a crash in the middle of marking the folders leaves.
    for folder in [data.clone(), data.join("registry"), data.join("workers/worker-1")] {
        fs::write(folder.join("FORMAT.new"), "{\"kind\":").unwrap();
    }
    let cluster = Cluster::start_in(place, &["--workers", "1", "--sandbox", "process"]);
    let ol = |args: &[&str]| cluster.place.ol(args);
    let (first, second) = ("sha256:b31ce15e", "sha256:4a2a3a2e");
    let list = cluster.place.json(&["ls", "--json"]);
    let names = list["functions"].as_array().unwrap().iter().map(|one| &one["name"]);
    assert_eq!(names.collect::<Vec<_>>(), ["greet", "team/notes"]);
    let versions = cluster.place.json(&["versions", "greet", "--json"]);
    let versions = versions["versions"].as_array().unwrap();
    let numbers: Vec<&Value> = versions.iter().map(|one| &one["version"]).collect();
    let digests: Vec<&str> =
        versions.iter().map(|one| &one["digest"].as_str().unwrap()[..15]).collect();
    let ascending = numbers[0] == &json!(1);
    assert_eq!(numbers, if ascending { [1, 2, 3] } else { [3, 2, 1] });
    assert_eq!(digests, [first, second, first]);
    for (function, expected) in
        [("greet", "Hello"), ("greet:1", "Hello"), ("greet:live", "Welcome"), ("greet:2", "Wel")]
    {
        let reply = ol(&["invoke", function, "-d", "\"me\""]);
        assert!(reply.starts_with(&format!("\"{expected}")), "{function}: {reply}");
    }
    // Its volume still holds the first line.
    assert_eq!(ol(&["invoke", "team/notes", "-d", "\"two\""]).trim(), r#""one\ntwo\n""#);
    let manifest = ol(&["describe", "team/notes", "--json"]);
    assert!(manifest.contains("green") && manifest.contains("96"), "{manifest}");
    // Two lines of a function's log from before, and those from now.
    let lines = || ol(&["logs", "greet"]).matches("asked").count();
    assert!(wait_for(|| (lines() == 3 + 4).then_some(())).is_some(), "{} lines", lines());

    // What comes now goes on from there: the number of a version that was removed is not used again.
    let folder = cluster.place.function("gone", &[("f.py", "def f(event):\n    return 2\n")]);
    ol(&["deploy", folder.to_str().unwrap()]);
    let versions = cluster.place.json(&["versions", "gone", "--json"]);
    assert_eq!(versions["versions"][0]["version"], 2);
    for (folder, kind, format) in [
        (data.clone(), "data folder", 1),
        (data.join("registry"), "registry store", 2),
        (data.join("workers/worker-1"), "worker's folder", 1),
    ] {
        let said = format_of(&folder);
        assert_eq!((&said["kind"], &said["format"]), (&json!(kind), &json!(format)));
        assert!(!folder.join("FORMAT.new").exists());
    }
}

/// The recorded inputs decide the same calls, and records of before are told apart only by their number.
#[test]
fn a_recording_of_an_earlier_release_is_played() {
    let place = Place::new();
    unpack(&place);
    let file = |name: &str| place.data_dir().join(name);
    let calls = |text: &str| -> Vec<(Value, Value, Value)> {
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let call = |mut line: Value| {
            let mut take = |key: &str| line[key].take();
            (take("request_id"), take("digest"), take("outcome"))
        };
        lines.map(call).collect()
    };
    let played = place.ol(&["replay", file("inputs.jsonl").to_str().unwrap()]);
    let written = fs::read_to_string(file("records.jsonl")).unwrap();
    assert_eq!(calls(&written).len(), 4);
    assert_eq!(calls(&played), calls(&written));
    assert!(played.lines().all(|line| line.starts_with(r#"{"v":1,"#)), "{played}");
}

#[test]
fn a_data_folder_of_a_later_release_is_refused_and_left_as_it_is() {
    let place = Place::new();
    unpack(&place);
    let data = place.data_dir();
    of_a_later_release(&data, "data folder");
    // A later release may have settings that this one does not know.
    fs::write(data.join("config.toml"), "colour_of_the_cluster = 3\n").unwrap();
    let before = tree(&data);
    for args in [
        &["up", "--detach", "--listen", "127.0.0.1:0"][..],
        &["up"],
        &["down"],
        &["status"],
        &["ls"],
        &["logs", "greet"],
        &["doctor", "--clean"],
        &["rm", "greet"],
    ] {
        let error = place.fails(args);
        let said = "is a data folder of format 3, written by release 9.9.9; this is release";
        assert!(error.contains(said), "{args:?}: {error}");
        assert!(error.contains("use release 9.9.9 or a later one, or another folder"), "{error}");
        assert_eq!(tree(&data), before, "{args:?}");
    }
    // So that the place can be stopped.
    fs::remove_file(data.join("FORMAT")).unwrap();
    fs::remove_file(data.join("config.toml")).unwrap();
}

#[test]
fn a_store_of_a_later_release_is_refused_and_left_as_it_is() {
    let place = Place::new();
    unpack(&place);
    let store = place.data_dir().join("registry");
    of_a_later_release(&store, "registry store");
    let before = tree(&store);
    let error = place.fails(&["up", "--detach", "--listen", "127.0.0.1:0"]);
    assert!(error.contains("is a registry store of format 3, written by release 9.9.9"), "{error}");
    assert_eq!(tree(&store), before);

    // The folder of something else is no store either.
    let data = place.data_dir();
    let before = tree(&data.join("volumes"));
    let other = data.to_str().unwrap();
    let registry = Path::new(crate::common::OL).with_file_name("ol-registry");
    let refused = Command::new(registry)
        .args(["--listen", "127.0.0.1:0", "--secret-file", &secret().file(), "--store", other])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let (_, error) = texts(&refused);
    assert!(error.contains("is a data folder and no registry store"), "{error}");
    assert!(!data.join("meta.redb").exists());
    assert_eq!(tree(&data.join("volumes")), before);
}

#[test]
fn a_workers_folder_of_a_later_release_is_refused_and_left_as_it_is() {
    let place = Place::new();
    unpack(&place);
    let folder = place.data_dir().join("workers/worker-1");
    of_a_later_release(&folder, "worker's folder");
    let before = tree(&folder);
    let error = place.fails(&["up", "--detach", "--listen", "127.0.0.1:0", "--workers", "1"]);
    assert!(
        error.contains("is a worker's folder of format 3, written by release 9.9.9"),
        "{error}"
    );
    assert_eq!(tree(&folder), before);
}

#[test]
fn who_meets_a_cluster_of_another_release_is_told_how_to_change() {
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", "process"]);
    let up = || {
        let output = cluster.place.run(&["up", "--detach"]);
        let (_, err) = texts(&output);
        assert!(output.status.success(), "{err}");
        err
    };
    assert!(!up().contains("it is of"));
    let file = cluster.place.data_dir().join("cluster.json");
    let mut state: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    for (release, expected) in [(Some("9.9.9"), "it is of 9.9.9"), (None, "an earlier release")] {
        match release {
            Some(release) => state["release"] = json!(release),
            None => drop(state.as_object_mut().unwrap().remove("release")),
        }
        fs::write(&file, state.to_string()).unwrap();
        let told = up();
        assert!(told.contains(expected), "{told}");
        assert!(told.contains("`ol down`, then `ol up`, changes to this one"), "{told}");
    }
    // All other commands work with it.
    assert_eq!(cluster.status()["workers"][0]["state"], "ready");
}
