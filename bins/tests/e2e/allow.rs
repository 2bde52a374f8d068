//! What the operator lets functions ask for: `[allow]`.

use std::fs;
use std::process::Command;

use crate::common::{Cluster, Place, client, inside, post, texts};

const ECHO: &str = "def f(event):\n    return event\n";
const BOUNDS: &str = "[allow]\nmemory_mb = 200\n[allow.namespace.big]\nmemory_mb = 300\n\
                      networks = [\"none\", \"host\"]\n";

/// A cluster with one worker and these settings.
fn cluster(settings: &str, flags: &[&str]) -> Cluster {
    let place = Place::new();
    fs::create_dir_all(place.data_dir()).unwrap();
    fs::write(place.data_dir().join("config.toml"), settings).unwrap();
    Cluster::start_in(place, &[&["--workers", "1"], flags].concat())
}

/// What `ol deploy` says of a function with this manifest, which it refuses.
fn refused(cluster: &Cluster, name: &str, manifest: &str) -> String {
    let folder = cluster.place.function("refused", &[("f.py", ECHO), ("ol.toml", manifest)]);
    cluster.place.fails(&["deploy", folder.to_str().unwrap(), "--name", name])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_manifest_may_not_ask_for_is_refused_at_deploy_with_line_and_bound() {
    for kind in ["native", "dir"] {
        let cluster = cluster(BOUNDS, &["--registry", kind]);
        let said = refused(&cluster, "f", "reuse = true\nnetwork = \"host\"\n");
        let expected = "the bundle is not allowed: ol.toml, line 2: network = \"host\", and the \
                        operator allows \"none\" or \"bridge\" (networks in [allow]); change \
                        network, or have the operator change networks";
        assert!(said.contains(expected), "{kind}: {said}");
        let said = refused(&cluster, "f", "\nmemory_mb = 201\n");
        let expected = "ol.toml, line 2: memory_mb = 201, and the operator allows at most 200";
        assert!(said.contains(expected), "{kind}: {said}");
        let said = refused(&cluster, "big/f", "memory_mb = 301");
        assert!(said.contains("(memory_mb in [allow.namespace.big])"), "{kind}: {said}");
        assert!(cluster.place.json(&["ls", "--json"])["functions"].as_array().unwrap().is_empty());

        // Over HTTP it is the same.
        let folder = cluster.place.function("refused", &[("ol.toml", "memory_mb = 201")]);
        let tar = folder.with_extension("tar");
        let mut pack = Command::new("tar");
        let packed = pack.arg("-cf").arg(&tar).arg("-C").arg(&folder).arg(".").status();
        assert!(packed.unwrap().success());
        let request = http::Request::post(format!("{}/registry/f", cluster.url));
        let answer =
            crate::common::send(&inside(), request.body(fs::read(&tar).unwrap()).unwrap()).await;
        let answer = answer.unwrap();
        assert_eq!((answer.status, answer.json()["error"].as_str()), (403, Some("forbidden")));
        assert!(answer.body.contains("ol.toml, line 1: memory_mb = 201"), "{}", answer.body);

        let manifest = "memory_mb = 300\nnetwork = \"host\"";
        let folder = cluster.place.function("f", &[("f.py", ECHO), ("ol.toml", manifest)]);
        let url = cluster.place.ol(&["deploy", folder.to_str().unwrap(), "--name", "big/f"]);
        assert_eq!(post(&client(), url.trim(), "1").await.body, "1", "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_before_the_bound_is_not_run() {
    let cluster = cluster("", &["--allow-network", "none", "--allow-network", "host"]);
    let url = cluster.deploy("f", &[("f.py", ECHO), ("ol.toml", "network = \"host\"")]);
    assert_eq!(post(&client(), &url, "1").await.body, "1");
    let place = cluster.place;
    place.ol(&["down"]);
    let cluster = Cluster::start_in(place, &["--workers", "1"]);
    for _ in 0..2 {
        let answer = post(&client(), &format!("{}/run/f", cluster.url), "1").await;
        assert_eq!((answer.status, answer.header("x-openlambda-error")), (403, "function"));
        assert_eq!(answer.header("x-openlambda-started"), "no");
        assert!(answer.body.contains("f may not run here: network = "), "{}", answer.body);
    }
    // Nor published again.
    cluster.deploy("f", &[("f.py", ECHO), ("ol.toml", "")]);
    let said = cluster.place.fails(&["rollback", "f"]);
    assert!(said.contains("ol.toml, line 1: network = "), "{said}");
}

#[test]
fn a_namespace_keeps_no_more_in_the_registry_than_its_quota() {
    let cluster = cluster("[allow]\nbundle_mb = 1\n[allow.namespace.a]\nversions = 1\n", &[]);
    let folder = cluster.place.function("f", &[("f.py", ECHO)]);
    let folder = folder.to_str().unwrap();
    cluster.place.ol(&["deploy", folder, "--name", "a/f"]);
    let said = cluster.place.fails(&["deploy", folder, "--name", "a/g"]);
    let expected = "the bundle is not allowed: namespace a would have 2 versions, and the operator \
                    allows at most 1 (versions in [allow.namespace.a]); remove functions";
    assert!(said.contains(expected), "{said}");
    cluster.place.ol(&["rm", "a/f"]);
    cluster.place.ol(&["deploy", folder, "--name", "a/g"]);
    let large = cluster.place.function("h", &[("f.py", ECHO), ("data", &"x".repeat(1 << 20))]);
    let said = cluster.place.fails(&["deploy", large.to_str().unwrap()]);
    assert!(said.contains("a bundle of 1.0 MiB unpacked, and the operator"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_over_a_quota_get_429_and_others_go_on() {
    let settings =
        "[allow.namespace.a]\ncalls_per_second = 3\n[allow.namespace.b]\nwaiting_calls = 2\n";
    let cluster = cluster(settings, &[]);
    let sleeps = "import time\ndef f(event):\n    time.sleep(event)\n    return event\n";
    let files = [("f.py", sleeps), ("ol.toml", "max_instances = 1")];
    let folder = cluster.place.function("f", &files);
    let client = client();
    let deploy = |name: &str| {
        let url = cluster.place.ol(&["deploy", folder.to_str().unwrap(), "--name", name]);
        url.trim().to_owned()
    };
    let (a, b, other) = (deploy("a/f"), deploy("b/f"), deploy("f"));
    let count = async |url: &str, calls: usize, body: &str, status: u16| {
        let answers = (0..calls).map(|_| post(&client, url, body));
        let answers = futures_util::future::join_all(answers).await;
        for answer in answers.iter().filter(|answer| answer.status != 200) {
            assert_eq!((answer.status, answer.json()["error"].as_str()), (429, Some("queue_full")));
            assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
            assert!(answer.body.contains("in [allow]"), "{}", answer.body);
        }
        answers.iter().filter(|answer| answer.status == status).count()
    };
    assert!((3..10).contains(&count(&a, 20, "0", 200).await));
    assert_eq!(count(&b, 1, "0", 200).await, 1);
    // One runs and two wait.
    assert_eq!(count(&b, 10, "1", 200).await, 3);
    assert_eq!(count(&other, 20, "0", 200).await, 20);
}

#[test]
fn bounds_are_settings_like_all_others() {
    let place = Place::new();
    fs::create_dir_all(place.data_dir()).unwrap();
    let file = place.data_dir().join("config.toml");
    fs::write(&file, BOUNDS).unwrap();
    for program in ["up", "worker", "lb", "registry"] {
        let shown = place.ol(&[
            "config",
            "show",
            program,
            "--origin",
            "--config",
            file.to_str().unwrap(),
            "--",
            "--allow-cpus",
            "2",
        ]);
        let line = |begin: &str| {
            let at = shown.find("[allow]").unwrap();
            let found = shown[at..].lines().find(|line| line.starts_with(begin));
            found.unwrap_or_else(|| panic!("{begin}: {shown}")).to_owned()
        };
        assert!(line("networks = [\"none\", \"bridge\"] ").ends_with("# default"), "{shown}");
        assert!(line("memory_mb = 200 ").ends_with("config.toml"), "{shown}");
        assert!(line("cpus = 2 ").ends_with("# flag --allow-cpus"), "{shown}");
        assert!(line("namespace = {").ends_with("config.toml"), "{shown}");
        assert!(line("# tmp_mb is not set").ends_with("set"), "{shown}");
        // What is shown is a file again.
        let copy = place.data_dir().join("copy.toml");
        fs::write(&copy, &shown).unwrap();
        let again = place.ol(&["config", "show", program, "--config", copy.to_str().unwrap()]);
        assert!(again.contains("memory_mb = 200"), "{again}");
    }
    for (text, expected) in [
        (
            "[allow]\nnetworks = [\"hots\"]\n",
            "line 2: networks: unknown value \"hots\"; did you mean \"host\"?",
        ),
        ("[allow]\n\nmemory = 3\n", "line 3: unknown key \"memory\" in [allow]; did you mean"),
        (
            "[allow.namespace.a]\nmemory = 3\n",
            "config.toml, line 2: namespace: unknown key \"memory\"; did you mean \"memory_mb\"?",
        ),
        ("[allow]\ncpus = 2\nmemory_share = 50\n", "line 3: memory_share: 50 is not a share; use"),
        ("[allow]\nmemory_share = nan\n", "line 2: memory_share: NaN is not a share; use"),
        ("[allow]\nmemory_share = -1\n", "line 2: memory_share: -1 is not a share; use"),
        ("[allow]\nvolume_places = [\"data\"]\n", "line 2: volume_places: \"data\" is no place"),
        (
            "[allow.namespace.a]\ncpus = 2\n\n[allow.namespace.b]\ncpus = 2\nmemory_share = 50\n",
            "line 6: namespace: memory_share: 50 is not a share; use more than 0 and at most 1, such as 0.5",
        ),
        (
            "[allow.namespace.a]\ncpus = 2\n[allow.namespace.\"no name\"]\ncpus = 2\n",
            "line 3: namespace: \"no name\" is not a valid namespace: use 1 to 64 letters",
        ),
        ("[balancer]\npolicy = \"random\"\n[allow.namespace]\na = 3\n", "line 4: namespace: "),
    ] {
        fs::write(&file, text).unwrap();
        let output = place.run(&["config", "show"]);
        assert!(texts(&output).1.contains(expected), "{text}: {:?}", texts(&output));
    }
    fs::remove_file(&file).unwrap();
    for (flag, value, expected) in [
        ("--allow-memory-share", "50", "50 is not a share; use more than 0 and at most 1"),
        ("--allow-volume-place", "data", "\"data\" is no place for volumes; use an absolute path"),
        ("--allow-namespace", "{a = {cpus = -1}}", "-1 is out of range; use 0 to 1024"),
        ("--allow-namespace", "{\"a/b\" = {cpus = 1}}", "\"a/b\" is not a valid namespace"),
    ] {
        for command in [&["config", "show", "--"][..], &["up"]] {
            let output = place.run(&[command, &[flag, value]].concat());
            let said = texts(&output).1;
            assert!(said.contains(expected) && said.contains(flag), "{flag} {value}: {said}");
            assert_ne!(output.status.code(), Some(0));
        }
    }
    let flag = "{a = {memory_mb = 3, networks = [\"host\"]}}";
    let shown = place.ol(&["config", "show", "--", "--allow-namespace", flag]);
    assert!(shown.contains("memory_mb = 3"), "{shown}");
}
