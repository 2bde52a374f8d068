//! What a live worker did comes of its recorded inputs again, byte for byte.

use std::io::BufReader;

use openlambda_core::keep_alive::{self, KeepAliveCatalog, KeepAliveEntry};
use openlambda_core::queue;
use openlambda_core::scheduler::{LoadLimit, PauseAfter, RunningLimit};
use openlambda_core::worker_core::recording::{ReplayError, replay};

use super::*;

fn record_inputs(config: &mut WorkerConfig) {
    config.inputs = Some(config.state_dir.join("inputs.jsonl"));
    config.max_wait = Duration::from_millis(300);
    config.scheduler.memory = 384 << 20;
    config.pause_after = Some(PauseAfter::After(Duration::from_millis(20)));
}

/// The records that come of the worker's inputs, as lines.
fn replayed(rig: &Rig) -> Result<String, ReplayError> {
    replayed_with(rig, &keep_alive::standard())
}

/// The same with these keep-alive policies.
fn replayed_with(rig: &Rig, policies: &KeepAliveCatalog) -> Result<String, ReplayError> {
    let inputs = std::fs::File::open(rig.folder.path().join("inputs.jsonl")).unwrap();
    let mut lines = String::new();
    replay(BufReader::new(inputs), policies, &queue::standard(), |record| {
        lines.push_str(&serde_json::to_string(&record).unwrap());
        lines.push('\n');
    })?;
    Ok(lines)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_runs_inputs_give_the_same_records_again() {
    let mut rig = Rig::start(record_inputs).await;
    for n in 0..4 {
        let manifest = "max_instances = 1\nqueue = 3\ntimeout_seconds = 0.1";
        let slow = n == 3;
        rig.function(&format!("f{n}"), manifest, move |body: Bytes| async move {
            if body.is_empty() {
                return Err(FunctionError::default());
            }
            tokio::time::sleep(Duration::from_millis(if slow { 250 } else { 5 })).await;
            Ok(body)
        })
        .await;
    }
    let calls = (0..60).map(|n| {
        let (rig, body) = (&rig, if n % 7 == 0 { "" } else { "1" });
        async move {
            tokio::time::sleep(Duration::from_millis(n * 11 % 400)).await;
            let request = Request::post(format!("{}/run/f{}", rig.url, n % 5));
            let call = rig.send(request, body);
            // Some clients do not wait.
            let patience = Duration::from_millis(if n % 9 == 0 { 3 } else { 5_000 });
            let _ = tokio::time::timeout(patience, call).await;
        }
    });
    join_all(calls).await;
    rig.registry.delete(&"f1".parse().unwrap()).await.unwrap();
    rig.stop().await;
    let written = std::fs::read_to_string(rig.folder.path().join("records.jsonl")).unwrap();
    let outcomes: std::collections::BTreeSet<String> =
        rig.records().into_iter().map(|record| record.outcome).collect();
    for outcome in ["ok", "function_error", "timeout", "queue_full"] {
        assert!(outcomes.contains(outcome), "{outcomes:?}");
    }
    assert_eq!(replayed(&rig).unwrap(), written);
}

/// One call at a time: the calls of a function that is known to be short run before those that came
/// earlier, and a replay puts them in the same order.
#[tokio::test(flavor = "multi_thread")]
async fn a_live_worker_runs_the_shortest_first_and_a_replay_too() {
    let mut rig = Rig::start(|config| {
        record_inputs(config);
        config.max_wait = Duration::from_secs(30);
        config.queue = queue::by_name("sjf").unwrap();
        config.scheduler.running = RunningLimit::Calls(1);
    })
    .await;
    for (name, milliseconds) in [("long", 60), ("short", 1)] {
        rig.function(name, "", move |body: Bytes| async move {
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            Ok(body)
        })
        .await;
        assert_eq!(rig.call(name, "1").await.status, 200);
    }
    let order = std::sync::Mutex::new(Vec::new());
    let calls = ["long", "long", "long", "short", "short"].into_iter().enumerate();
    let calls = calls.map(|(n, name)| {
        let (rig, order) = (&rig, &order);
        async move {
            // In this order, while the first one runs.
            tokio::time::sleep(Duration::from_millis(5 * n as u64)).await;
            assert_eq!(rig.call(name, "1").await.status, 200);
            order.lock().unwrap().push(name);
        }
    });
    join_all(calls).await;
    assert_eq!(*order.lock().unwrap(), ["long", "short", "short", "long", "long"]);
    rig.stop().await;
    let written = std::fs::read_to_string(rig.folder.path().join("records.jsonl")).unwrap();
    assert_eq!(replayed(&rig).unwrap(), written);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_follows_the_load_serves_all() {
    let mut rig = Rig::start(|config| {
        record_inputs(config);
        config.scheduler.running = RunningLimit::Load(LoadLimit::default());
    })
    .await;
    rig.function("f", "", echo).await;
    let call = async |_| assert_eq!(rig.call("f", "1").await.status, 200);
    join_all((0..50).map(call)).await;
    // Some reports of the load.
    tokio::time::sleep(3 * LoadLimit::EVERY).await;
    rig.stop().await;
    let inputs = std::fs::read_to_string(rig.folder.path().join("inputs.jsonl")).unwrap();
    assert!(inputs.contains("per_processor"), "the load was reported");
    let written = std::fs::read_to_string(rig.folder.path().join("records.jsonl")).unwrap();
    assert_eq!(replayed(&rig).unwrap(), written);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_that_was_cut_off_is_played_as_far_as_it_goes() {
    let mut rig = Rig::start(record_inputs).await;
    rig.function("f", "", echo).await;
    for _ in 0..5 {
        assert_eq!(rig.call("f", "1").await.status, 200);
    }
    rig.stop().await;
    let path = rig.folder.path().join("inputs.jsonl");
    let written = std::fs::read_to_string(rig.folder.path().join("records.jsonl")).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for cut in (whole.len() / 2..whole.len()).step_by(97) {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let lines = replayed(&rig).unwrap();
        assert!(written.starts_with(&lines), "{lines}");
    }
    std::fs::write(&path, "no recording\n").unwrap();
    let error = replayed(&rig).unwrap_err().to_string();
    assert!(error.contains("line 1 of the recording"), "{error}");
}

/// What releases wrote before recordings and records had a number, and what later ones may write.
#[tokio::test(flavor = "multi_thread")]
async fn a_recording_of_an_earlier_release_is_played_and_one_of_a_later_release_refused() {
    let mut rig = Rig::start(record_inputs).await;
    rig.function("f", "", echo).await;
    assert_eq!(rig.call("f", "1").await.status, 200);
    rig.stop().await;
    let path = rig.folder.path().join("inputs.jsonl");
    let (written, lines) = (std::fs::read_to_string(&path).unwrap(), replayed(&rig).unwrap());
    assert!(written.starts_with(r#"{"v":1,"worker":"#), "{written}");
    assert!(lines.starts_with(r#"{"v":1,"request_id":"#), "{lines}");

    std::fs::write(&path, written.replacen(r#""v":1,"#, "", 1)).unwrap();
    assert_eq!(replayed(&rig).unwrap(), lines);
    let record: InvocationRecord =
        serde_json::from_str(&lines.replacen(r#""v":1,"#, "", 1)).unwrap();
    assert_eq!(serde_json::to_string(&record).unwrap(), lines.trim_end());

    let later = written.replacen(r#""v":1,"#, r#""v":2,"what":"more","#, 1);
    std::fs::write(&path, &later).unwrap();
    let error = replayed(&rig).unwrap_err().to_string();
    assert!(error.contains("format 2") && error.contains("the release that wrote it"), "{error}");
    let later = lines.replacen(r#""v":1,"#, r#""v":2,"what":"more","#, 1);
    let error = serde_json::from_str::<InvocationRecord>(&later).unwrap_err().to_string();
    assert!(error.contains("format 2, of a later release"), "{error}");
}

/// Calls that find an instance or not, as the keep-alive policy has it.
async fn call_now_and_then(rig: &mut Rig) -> String {
    rig.function("f", "", echo).await;
    for pause in [0, 0, 60, 0, 60] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        assert_eq!(rig.call("f", "1").await.status, 200);
    }
    rig.stop().await;
    std::fs::read_to_string(rig.folder.path().join("records.jsonl")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_whose_time_to_live_stands_beside_its_policy_is_played() {
    let mut rig = Rig::start(|config| {
        record_inputs(config);
        config.keep_alive = keep_alive::standard().maker_of("ttl,seconds=0.03").unwrap();
    })
    .await;
    let written = call_now_and_then(&mut rig).await;
    assert!(written.matches("\"cold\"").count() > 1, "{written}");
    let path = rig.folder.path().join("inputs.jsonl");
    let recorded = std::fs::read_to_string(&path).unwrap();
    let (now, before) = (
        "\"keep_alive\":\"ttl,seconds=0.03\"",
        "\"keep_alive\":\"ttl\",\"ttl\":{\"secs\":0,\"nanos\":30000000}",
    );
    assert!(recorded.contains(now), "{recorded}");
    std::fs::write(&path, recorded.replace(now, before)).unwrap();
    assert_eq!(replayed(&rig).unwrap(), written);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_of_ones_own_is_played_by_whoever_knows_it() {
    let about = "a short time without use";
    let mut policies = keep_alive::standard();
    policies.register(KeepAliveEntry::new("short", about, "this test", || {
        Box::new(Ttl::new(Duration::from_millis(30)))
    }));
    let mut rig = Rig::start(|config| {
        record_inputs(config);
        config.keep_alive = policies.maker_of("short").unwrap();
    })
    .await;
    let written = call_now_and_then(&mut rig).await;
    assert_eq!(replayed_with(&rig, &policies).unwrap(), written);
    let error = replayed(&rig).unwrap_err().to_string();
    assert!(error.starts_with("keep-alive: unknown policy \"short\""), "{error}");
}
