//! `ol bench`: small runs of each, with the real sandboxes. What the figures are is nobody's promise here.

use std::process::Command;

use serde_json::Value;

use crate::common::{Place, texts};

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn names(rows: &Value) -> Vec<&str> {
    rows.as_array().unwrap().iter().map(|row| row["sandbox"].as_str().unwrap()).collect()
}

#[test]
fn starts_are_compared_with_the_minimal_program_an_ordinary_user_and_paused_instances() {
    let place = Place::new();
    let mut args =
        vec!["bench", "start", "--sandbox", "sock", "--against", "minimal", "--paused", "3"];
    args.extend(["-c", "1,2", "--rounds", "2", "--seconds", "0.2", "--json"]);
    let mut sides = vec!["sock", "minimal"];
    if is_root() {
        args.extend(["--against", "rootless"]);
        sides.push("rootless");
    }
    sides.push("sock beside 3 paused");
    let measured = place.json(&args);
    assert_eq!(names(&measured["rows"]), [&sides[..], &sides[..]].concat());
    for row in measured["rows"].as_array().unwrap() {
        assert!(row["starts"].as_u64() >= Some(2) && row["p50_ms"].as_f64() > Some(0.0), "{row}");
        assert!(row["isolation"].as_str().unwrap().starts_with("namespaces, seccomp"), "{row}");
    }
    let ratios = measured["ratios"].as_array().unwrap();
    assert_eq!(ratios.len(), 2 * (sides.len() - 1));
    for ratio in ratios {
        assert!(ratio["of"] == "sock" && ratio["p99"].as_f64() > Some(0.0), "{ratio}");
    }
    let said = place.fails(&["bench", "start", "--against", "minimal", "--function", "python"]);
    assert!(said.contains("leave out --function"), "{said}");
    if !is_root() {
        let said = place.fails(&["bench", "start", "--against", "rootless"]);
        assert!(said.contains("as root"), "{said}");
    }
}

#[test]
fn memory_and_resumes_are_measured_of_kinds_in_turn() {
    let place = Place::new();
    let kinds = ["--sandbox", "sock", "--against", "process", "--rounds", "1", "--json"];
    let memory = place.json(&[&["bench", "memory", "--instances", "8"][..], &kinds].concat());
    assert_eq!(names(&memory["rows"]), ["sock", "process"]);
    assert!(memory["rows"][0]["kib"].is_f64() && memory["ratios"][0]["against"] == "process");
    let resumes = place.json(&[&["bench", "resume", "--seconds", "0.2"][..], &kinds].concat());
    assert_eq!(names(&resumes["rows"]), ["sock", "process"]);
    for row in resumes["rows"].as_array().unwrap() {
        assert!(row["resumes"].as_u64() > Some(0), "{row}");
        assert!(row["p50_ms"].as_f64() >= row["resume_p50_ms"].as_f64(), "{row}");
    }
}

#[test]
fn a_soak_leaves_nothing() {
    let place = Place::new();
    let ol =
        place.command(&["bench", "soak", "--sandbox", "sock", "--rounds", "200", "--idle", "4"]);
    // What others mount meanwhile is not its own.
    let mut soak = match is_root() {
        true => Command::new("unshare"),
        false => Command::new("env"),
    };
    if is_root() {
        soak.args(["--mount", "--propagation", "private"]);
    }
    soak.arg(ol.get_program()).args(ol.get_args());
    // How long the last rounds take on a machine that does other things is no question here.
    let output = soak.args(["-c", "4", "--slower", "1000", "--json"]).output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{out}{err}");
    let told: Value = serde_json::from_str(&out).unwrap();
    for what in ["mounts", "cgroups", "namespaces", "processes", "descriptors", "files"] {
        assert_eq!(told["before"][what], told["after"][what], "{what}: {told}");
    }
    // They are counted while there are some: the nursery and its network maker, four instances.
    assert!(told["early"]["processes"].as_u64() >= Some(6), "{told}");
    assert!(told["early"]["namespaces"].as_u64() > told["before"]["namespaces"].as_u64(), "{told}");
    assert_eq!(told["seconds"].as_array().unwrap().len(), 10);
}
