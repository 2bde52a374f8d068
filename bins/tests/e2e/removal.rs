//! What is removed leaves nothing behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use futures_util::stream;

use crate::common::{Cluster, client, inside, post, wait_for};

/// Deploys, calls and removes that many functions, a few at a time: then there are as many files,
/// processes and cgroups as before, in the registry and on the workers.
#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_functions_that_were_removed_leave_nothing() {
    const FUNCTIONS: usize = 200;
    const AT_ONCE: usize = 8;
    let cluster = Cluster::start(&[]);
    // What the first function on a worker brings with it, such as folders, may stay.
    let workers = cluster.status()["workers"].as_array().unwrap().clone();
    let workers = workers.iter().map(|worker| worker["url"].as_str().unwrap().to_owned());
    one_function(&cluster, 0, &workers.collect::<Vec<_>>()).await;
    let before = settled(&cluster);
    assert!(before.files.iter().all(|file| !file.ends_with(".tar")), "{before:#?}");
    let lives = stream::iter(1..=FUNCTIONS).map(|n| one_function(&cluster, n, &[]));
    lives.buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    let as_before = wait_for(|| (Left::of(&cluster) == before).then_some(()));
    let after = Left::of(&cluster);
    assert!(as_before.is_some(), "before: {before:#?}\nafter: {after:#?}");
    let list = cluster.place.json(&["ls", "--json"]);
    assert_eq!(list["functions"].as_array().unwrap().len(), 0);
}

/// The life of a function, which has a bundle of its own. It is called through the balancer and
/// straight at these workers.
async fn one_function(cluster: &Cluster, n: usize, workers: &[String]) {
    let name = format!("f{n}");
    let code = format!("def f(event):\n    print(event)\n    return {n}\n");
    let folder = cluster.place.function(&name, &[("f.py", &code)]);
    let ol = async |args: &[&str]| {
        let output = tokio::process::Command::from(cluster.place.command(args)).output().await;
        let output = output.unwrap();
        let (out, err) = crate::common::texts(&output);
        assert!(output.status.success(), "ol {args:?}: {out}{err}");
        out
    };
    let url = ol(&["deploy", folder.to_str().unwrap()]).await;
    let straight = workers.iter().map(|worker| format!("{worker}/run/{name}"));
    for url in straight.chain([url.trim().to_owned()]) {
        let answer = post(&inside(), &url, "7").await;
        assert_eq!((answer.status, answer.body), (200, n.to_string()));
    }
    ol(&["rm", &name]).await;
}

const KEEPS: &str = r#"
import os
PLACE = os.environ["OPENLAMBDA_VOLUME_KEPT"] + "/secret"
def f(event):
    if event: open(PLACE, "w").write(event)
    return open(PLACE).read() if os.path.exists(PLACE) else None
"#;

/// Who deploys a function under a name that was free gets nothing of the one that had it.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_s_next_function_does_not_read_the_volumes_of_the_last() {
    let client = client();
    for (sandbox, registry) in [("process", "native"), ("process", "dir"), ("sock", "native")] {
        let cluster =
            Cluster::start(&["--workers", "1", "--sandbox", sandbox, "--registry", registry]);
        let manifest = "[[volumes]]\nname = \"kept\"\npath = \"/kept\"";
        let deploy = |remark: &str| {
            let code = format!("{KEEPS}# {remark}\n");
            cluster.deploy("keeps", &[("f.py", &code), ("ol.toml", manifest)])
        };
        let call = async |url: &str, body: &str| {
            let answer = post(&client, url, body).await;
            assert_eq!(answer.status, 200, "{sandbox}, {registry}: {answer:?}");
            answer.body
        };
        let url = deploy("first");
        assert_eq!(call(&url, "\"hers\"").await, "\"hers\"");
        // A later version has them.
        deploy("second");
        assert_eq!(call(&url, "").await, "\"hers\"");
        let removed = cluster.place.run(&["rm", "keeps"]);
        let said = crate::common::texts(&removed).1;
        assert!(removed.status.success() && said.contains("volumes are kept"), "{said}");
        // Nor with the same code, however often.
        let back: Vec<_> = said.trim().rsplit_once("mv ").unwrap().1.split(' ').collect();
        assert!(Path::new(back[0]).join("kept/secret").exists(), "{said}");
        deploy("first");
        assert_eq!(call(&url, "").await, "null", "{sandbox}, {registry}");
        assert_eq!(call(&url, "\"his\"").await, "\"his\"");
        cluster.place.ol(&["rm", "keeps", "--volumes"]);
        deploy("third");
        assert_eq!(call(&url, "").await, "null", "{sandbox}, {registry}");

        // As it is said to be done.
        assert_eq!(call(&url, "\"hers again\"").await, "\"hers again\"");
        let removed = cluster.place.json(&["rm", "keeps", "--json"]);
        let (kept, back) =
            (removed["volumes"].as_str().unwrap(), removed["back"].as_str().unwrap());
        fs::rename(kept, back).unwrap();
        deploy("fourth");
        assert_eq!(call(&url, "").await, "\"hers again\"", "{sandbox}, {registry}");

        // Over HTTP as by `ol rm`.
        let delete = http::Request::delete(format!("{}/registry/keeps", cluster.url));
        let deleted = crate::common::send(&crate::common::inside(), delete.body("").unwrap()).await;
        assert_eq!(deleted.unwrap().status, 200);
        deploy("fifth");
        assert_eq!(call(&url, "").await, "null", "{sandbox}, {registry}");
    }
}

/// An instance of the first is in the middle of a call all the while, and has room for another.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_instance_of_a_removed_function_serves_no_later_one_with_the_same_code() {
    let client = client();
    let code = "\
import os, time
def f(event):
    folder = os.environ['OPENLAMBDA_VOLUME_KEPT']
    if event == 'hold':
        open(folder + '/secret', 'w').close()
        for n in range(1200):
            if os.path.exists(folder + '/go'): return 'held'
            time.sleep(0.05)
    return sorted(os.listdir(folder))
";
    let manifest =
        "concurrency = 2\ntimeout_seconds = 60\n[[volumes]]\nname = \"kept\"\npath = \"/kept\"";
    for sandbox in ["process", "sock"] {
        let cluster = Cluster::start(&["--workers", "1", "--sandbox", sandbox]);
        let deploy = || cluster.deploy("keeps", &[("f.py", code), ("ol.toml", manifest)]);
        let url = deploy();
        let held = tokio::spawn({
            let (client, url) = (client.clone(), url.clone());
            async move { post(&client, &url, "\"hold\"").await }
        });
        let volume = cluster.place.data_dir().join("volumes/default/keeps/kept");
        wait_for(|| volume.join("secret").exists().then_some(())).expect("it holds");
        assert_eq!(post(&client, &url, "").await.body, "[\"secret\"]", "it has room");
        let removed = cluster.place.json(&["rm", "keeps", "--json"]);
        deploy();
        assert_eq!(post(&client, &url, "").await.body, "[]", "{sandbox}");
        let kept = Path::new(removed["volumes"].as_str().unwrap()).join("kept");
        fs::write(kept.join("go"), "").unwrap();
        assert_eq!(held.await.unwrap().body, "\"held\"");
        assert_eq!(post(&client, &url, "").await.body, "[]", "{sandbox}");
    }
}

/// What there is of a cluster.
#[derive(Debug, PartialEq)]
struct Left {
    /// Below the data folder.
    files: BTreeSet<String>,
    /// Without their ids: those that stand ready for the next function may be others.
    processes: Vec<String>,
    cgroups: usize,
}

impl Left {
    fn of(cluster: &Cluster) -> Left {
        let mut files = BTreeSet::new();
        list(&cluster.place.data_dir(), Path::new(""), &mut files);
        let processes = cluster.place.processes();
        let mut processes: Vec<String> = processes
            .iter()
            .map(|process| process.split_once(": ").unwrap().1.to_owned())
            .collect();
        processes.sort();
        Left { files, processes, cgroups: cluster.place.cgroups().len() }
    }
}

/// Once it stays as it is.
fn settled(cluster: &Cluster) -> Left {
    let mut last = Left::of(cluster);
    let settled = wait_for(|| {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let now = Left::of(cluster);
        let same = now == last;
        last = now;
        same.then_some(())
    });
    assert!(settled.is_some());
    last
}

fn list(root: &Path, below: &Path, files: &mut BTreeSet<String>) {
    for entry in fs::read_dir(root.join(below)).into_iter().flatten().flatten() {
        let path: PathBuf = below.join(entry.file_name());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(root, &path, files);
        }
        files.insert(path.display().to_string());
    }
}
