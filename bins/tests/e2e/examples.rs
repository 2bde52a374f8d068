//! Every folder of examples/functions does what its README says.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use futures_util::future::join_all;

use crate::common::{Cluster, OL, Place, client, example, post, texts, wait_for};

/// Deploys and calls each of them by the commands of its README, word for word.
#[test]
fn every_example_does_what_its_readme_says() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let place = &cluster.place;
    let mut names: Vec<String> = fs::read_dir(example(""))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() >= 6, "{names:?}");
    for name in names {
        let readme = fs::read_to_string(example(&name).join("README.md"));
        let readme = readme.unwrap_or_else(|error| panic!("{name} has no README.md: {error}"));
        // The README's commands run in the repository's folder; this one has the same paths.
        let folder = place.copy_of_example(&name);
        let folder = folder.parent().unwrap();
        let root = folder.parent().unwrap().join("root");
        fs::create_dir_all(&root).unwrap();
        if !root.join("examples").exists() {
            std::os::unix::fs::symlink("..", root.join("examples")).unwrap();
        }
        let mut answers = 0;
        let commands = readme.lines().filter_map(|line| line.strip_prefix("    "));
        // Code is indented by four blanks; what a command prints stands behind its `# →`.
        for line in commands {
            let (command, expected) = match line.split_once("# → ") {
                Some((command, expected)) => (command, expected.trim()),
                None => (line, ""),
            };
            run(place, &root, command, expected);
            answers += usize::from(command.starts_with("ol invoke") && !expected.is_empty());
        }
        let deployed = place.ol(&["ls"]);
        assert!(deployed.contains(&format!("/run/{name}")), "{name} is not deployed:\n{deployed}");
        assert!(answers > 0, "{name}'s README shows no line `ol invoke … # → …`");
    }
}

fn run(place: &Place, folder: &Path, command: &str, expected: &str) {
    let bin = Path::new(OL).parent().unwrap();
    let search = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    // Lines of a log come from a thread of the worker's.
    let waits = command.starts_with("ol logs");
    let done = wait_for(|| {
        let output = Command::new("sh")
            .args(["-euc", command])
            .current_dir(folder)
            .env("PATH", &search)
            .env("OPENLAMBDA_DATA_DIR", place.data_dir())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let (out, err) = texts(&output);
        let well = output.status.success() && out.contains(expected);
        assert!(well || waits, "{command}: {expected:?}\n{out}{err}");
        well.then_some(())
    });
    assert!(done.is_some(), "{command}: {expected:?} did not come");
}

/// Four calls at once are in one instance, the fifth finds it as they have left it.
#[tokio::test(flavor = "multi_thread")]
async fn thread_counter_s_slots_take_four_calls_at_once() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let (client, url) = (client(), cluster.deploy_example("thread_counter"));
    let first = post(&client, &url, "").await.json();
    assert_eq!((&first["calls"], &first["most_at_once"]), (&1.into(), &1.into()));
    let calls = join_all((0..4).map(|_| post(&client, &url, r#"{"meet": 4}"#))).await;
    for call in calls {
        let call = call.json();
        assert_eq!(call["instance"], first["instance"]);
        assert_eq!((&call["met"], &call["most_at_once"]), (&true.into(), &4.into()), "{call}");
    }
    let last = post(&client, &url, "").await.json();
    assert_eq!((&last["instance"], &last["calls"]), (&first["instance"], &6.into()));
    assert!(last["ticks"].as_u64() > first["ticks"].as_u64(), "{first} {last}");
}
