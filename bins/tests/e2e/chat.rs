//! The chat, in every kind of sandbox.

use rustix::process::Signal;
use serde_json::Value;

use crate::common::{Cluster, Place, client, inside, kill, post};
use crate::engine::Engine;

#[tokio::test(flavor = "multi_thread")]
async fn pychat_s_second_call_waits_for_the_third_without_isolation() {
    let cluster = Cluster::start(&["--sandbox", "process"]);
    the_second_call_waits_for_the_third(&cluster, "process").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pychat_s_second_call_waits_for_the_third_in_lean_containers() {
    let cluster = Cluster::start(&["--sandbox", "sock"]);
    the_second_call_waits_for_the_third(&cluster, "sock").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pychat_s_second_call_waits_for_the_third_in_docker_s() {
    let engine = Engine::with_image().await;
    let socket = format!("unix://{}", engine.socket().display());
    let place = Place::new().with("DOCKER_HOST", &socket);
    let cluster = Cluster::start_in(place, &["--sandbox", "docker"]);
    the_second_call_waits_for_the_third(&cluster, "docker").await;
    let containers = || engine.client(&["ps", "--all", "--quiet"]);
    assert!(!containers().is_empty(), "no container of this engine is used");
    drop(cluster);
    assert_eq!(containers(), [""; 0], "containers are left");
}

/// The engine is named by a flag, which the commands that clean up are not given.
#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_killed_cluster_are_removed_from_the_engine_that_it_was_told_of() {
    let engine = Engine::with_image().await;
    let socket = engine.socket().display().to_string();
    let args = ["--workers", "1", "--sandbox", "docker", "--docker-socket", &socket];
    let cluster = Cluster::start(&args);
    post(&client(), &cluster.deploy_example("echo"), "1").await;
    let containers = || engine.client(&["ps", "--all", "--quiet"]);
    assert!(!containers().is_empty(), "no container of this engine is used");
    let (status, worker) = (cluster.status(), cluster.worker_pid("worker-1").unwrap());
    kill(status["pid"].as_i64().unwrap() as i32, Signal::KILL);
    kill(worker, Signal::KILL);
    cluster.place.ol(&["down"]);
    assert_eq!(containers(), [""; 0], "containers are left");
}

async fn the_second_call_waits_for_the_third(cluster: &Cluster, kind: &str) {
    for worker in cluster.status()["workers"].as_array().unwrap() {
        assert_eq!(worker["sandbox"], kind);
    }
    let (client, url) = (client(), cluster.deploy_example("pychat"));
    assert_eq!(post(&client, &url, r#"{"op": "init"}"#).await.json()["result"], "created");
    // Many wait, on both workers; one message wakes them all.
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let (client, url) = (client.clone(), url.clone());
            let body = r#"{"op": "updates", "ts": "0"}"#;
            tokio::spawn(async move { post(&client, &url, body).await })
        })
        .collect();
    let inside = inside();
    let all_wait = async {
        loop {
            let stats =
                inside.get(format!("{}/stats", cluster.url).parse().unwrap()).await.unwrap();
            let stats = http_body_util::BodyExt::collect(stats.into_body()).await.unwrap();
            let stats: Value = serde_json::from_slice(&stats.to_bytes()).unwrap();
            if stats["in_flight"] == 8 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), all_wait).await.unwrap();
    assert!(waiting.iter().all(|call| !call.is_finished()));
    let sent = post(&client, &url, r#"{"op": "msg", "msg": "hello"}"#).await.json();
    assert!(sent["result"].as_str().unwrap().starts_with("insert "));
    for call in waiting {
        let rows = call.await.unwrap().json();
        assert_eq!(rows["result"][0]["msg"], "hello");
        assert_eq!(rows["result"].as_array().unwrap().len(), 1);
    }
}
