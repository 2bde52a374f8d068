//! The functions in examples/functions, in real processes.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use openlambda_core::manifest::Manifest;
use openlambda_core::sandbox::SandboxFactory;
use serde_json::{Value, json};

use common::{Setup, call, setup};

fn function(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/functions").join(name)
}

async fn ask(sandbox: &dyn openlambda_core::sandbox::Sandbox, event: Value) -> Value {
    let reply = call(sandbox, &event.to_string()).await.unwrap();
    serde_json::from_str(&reply).unwrap()
}

#[tokio::test]
async fn hello_greets_and_echo_returns_its_event() {
    let setup = setup();
    let hello = setup.create(setup.spec_of(&function("hello"))).await;
    assert_eq!(call(&*hello, "").await.unwrap(), r#""Hello, world!""#);
    assert_eq!(call(&*hello, r#"{"name": "Zoë"}"#).await.unwrap(), r#""Hello, Zoë!""#);
    let echo = setup.create(setup.spec_of(&function("echo"))).await;
    assert_eq!(call(&*echo, r#"{"one": 1}"#).await.unwrap(), r#"{"one": 1}"#);
    setup.factory.shutdown().await;
}

/// pychat with short long polls.
fn pychat(setup: &Setup, seconds: &str) -> openlambda_core::sandbox::SandboxSpec {
    let mut spec = setup.spec_of(&function("pychat"));
    let mut manifest = Manifest::clone(&spec.manifest);
    manifest.environment.insert("LONG_POLL_SECONDS".to_owned(), seconds.to_owned());
    spec.manifest = Arc::new(manifest);
    spec
}

#[tokio::test]
async fn pychat_answers_its_three_operations() {
    let setup = setup();
    let chat = setup.create(pychat(&setup, "0.2")).await;
    for operation in ["updates", "msg"] {
        let reply = ask(&*chat, json!({"op": operation, "ts": 0, "msg": "m"})).await;
        assert!(reply["error"].as_str().unwrap().contains("init"), "{reply}");
    }
    assert_eq!(ask(&*chat, json!({"op": "init"})).await, json!({"result": "created"}));
    let again = ask(&*chat, json!({"op": "init"})).await;
    assert_eq!(again, json!({"result": "dropped, then created"}));
    assert_eq!(ask(&*chat, json!({"op": "updates", "ts": "0"})).await, json!({"result": []}));
    for n in 0..3 {
        let reply = ask(&*chat, json!({"op": "msg", "msg": format!("m{n} ü")})).await;
        let text = reply["result"].as_str().unwrap();
        assert!(text.starts_with("insert ") && text.ends_with(" complete"), "{text}");
    }
    let rows = ask(&*chat, json!({"op": "updates", "ts": "0"})).await;
    let rows = rows["result"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| &row["msg"]).collect::<Vec<_>>(), ["m0 ü", "m1 ü", "m2 ü"]);
    // The ts of a row, as a number or a string, asks for those after it.
    let first = &rows[0]["ts"];
    for ts in [first.clone(), json!(first.to_string()), json!(format!("{first}.0"))] {
        let newer = ask(&*chat, json!({"op": "updates", "ts": ts})).await;
        assert_eq!(newer["result"].as_array().unwrap(), &rows[1..], "after {ts}");
    }
    // Who comes in keeps what is there; a name is told when there is one.
    let kept = ask(&*chat, json!({"op": "init", "keep": true})).await;
    assert_eq!(kept, json!({"result": "kept"}));
    ask(&*chat, json!({"op": "msg", "msg": "named", "name": "Ada"})).await;
    let newer = ask(&*chat, json!({"op": "updates", "ts": rows[2]["ts"]})).await;
    let newer = &newer["result"][0];
    assert_eq!(*newer, json!({"ts": newer["ts"], "msg": "named", "name": "Ada"}));
    assert_eq!(rows[2], json!({"ts": rows[2]["ts"], "msg": "m2 ü"}));
    for bad in [json!({"op": "x"}), json!({}), json!(null), json!([1])] {
        assert_eq!(ask(&*chat, bad).await, json!({"error": "bad op"}));
    }
    let broken = ask(&*chat, json!({"op": "updates"})).await;
    let trace = broken["error"].as_str().unwrap();
    assert!(trace.starts_with("Traceback") && trace.contains("KeyError: 'ts'"), "{trace}");
    setup.factory.shutdown().await;
}

/// Two workers on one machine share the volume: many instances wait, and one message wakes all.
#[tokio::test(flavor = "multi_thread")]
async fn pychat_wakes_who_waits_in_any_instance_of_any_worker() {
    use openlambda_sandbox::process::ProcessFactory;

    let one = setup();
    let mut config = common::config(one.dir.path(), &common::own_mark());
    // volumes_dir stays that of the first.
    config.state_dir = one.dir.path().join("second");
    let two = ProcessFactory::new(config).unwrap();
    let mut chats = Vec::new();
    let create = |n: usize| {
        let factory: &dyn SandboxFactory = if n.is_multiple_of(2) { &*one.factory } else { &two };
        factory.create(pychat(&one, "20"))
    };
    for created in futures_util::future::join_all((0..6).map(create)).await {
        chats.push(created.unwrap().sandbox);
    }
    assert_eq!(ask(&*chats[0], json!({"op": "init"})).await, json!({"result": "created"}));
    let writer = chats.pop().unwrap();
    let waiting: Vec<_> = chats
        .iter()
        .map(|chat| {
            let chat = Arc::clone(chat);
            tokio::spawn(async move { ask(&*chat, json!({"op": "updates", "ts": 0})).await })
        })
        .collect();
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert!(waiting.iter().all(|poll| !poll.is_finished()), "there was nothing to tell yet");
    ask(&*writer, json!({"op": "msg", "msg": "hello"})).await;
    for poll in waiting {
        assert_eq!(poll.await.unwrap()["result"][0]["msg"], "hello");
    }
    // All write at once: none is lost, none is out of order.
    let writes = chats.iter().map(|chat| async move {
        for _ in 0..10 {
            let reply = ask(&**chat, json!({"op": "msg", "msg": "x"})).await;
            assert!(reply["error"].is_null(), "{reply}");
        }
    });
    futures_util::future::join_all(writes).await;
    let rows = ask(&*writer, json!({"op": "updates", "ts": 0})).await;
    let stamps: Vec<_> =
        rows["result"].as_array().unwrap().iter().map(|row| row["ts"].as_u64().unwrap()).collect();
    assert_eq!(stamps.len(), 51);
    assert!(stamps.is_sorted_by(|a, b| a < b));
    // The messages outlive every instance.
    one.factory.shutdown().await;
    two.shutdown().await;
    let volume = one.dir.path().join("state/volumes/default/tested/messages/messages.db");
    assert!(volume.is_file());
}
