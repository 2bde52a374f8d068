//! What pages, operators and scripts do over HTTP beside plain calls.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use http::{Method, Request};
use serde_json::{Value, json};

use crate::common::{
    Answer, Cluster, HttpClient, client, connect, inside, post, raw_inside, secret, send, texts,
    wait_for,
};

const RAISES: &str = "def f(event):\n    raise ValueError('no')\n";

/// A request as a page of `origin` makes it.
async fn page(
    client: &HttpClient,
    method: Method,
    url: &str,
    origin: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut request = Request::builder().method(method).uri(url).header("origin", origin);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(client, request.body(body.to_owned()).unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_may_do_what_the_manifest_says() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let client = client();
    let open = "cors = { allow_origins = [\"*\"], max_age_seconds = 60 }";
    let one = "methods = [\"POST\"]\n[cors]\nallow_origins = [\"https://a.org\"]\n\
               allow_credentials = true\nexpose_headers = [\"x-openlambda-request-id\"]";
    let closed = cluster.deploy("closed", &[("f.py", RAISES)]);
    let open = cluster.deploy("open", &[("f.py", RAISES), ("ol.toml", open)]);
    let one = cluster.deploy("one", &[("f.py", "def f(event): return event"), ("ol.toml", one)]);
    let asks = [
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "content-type"),
    ];

    // Answered without a sandbox: no worker has seen it.
    let answer = page(&client, Method::OPTIONS, &open, "null", &asks, "").await;
    assert_eq!((answer.status, &*answer.body), (204, ""), "{answer:?}");
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    assert_eq!(answer.header("access-control-allow-methods"), "POST");
    assert_eq!(answer.header("access-control-allow-headers"), "content-type");
    assert_eq!(answer.header("access-control-max-age"), "60");
    assert!(!answer.headers.contains_key("x-openlambda-worker"), "{answer:?}");

    // The handler's failure, and a page from a file that reads why.
    let answer = page(&client, Method::POST, &open, "null", &[], "1").await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (500, "*"));
    assert!(answer.headers.get_all("vary").iter().any(|value| value == "origin"), "{answer:?}");

    let answer = page(&client, Method::POST, &one, "https://a.org", &[], "1").await;
    assert_eq!((answer.status, &*answer.body), (200, "1"));
    assert_eq!(answer.header("access-control-allow-origin"), "https://a.org");
    assert_eq!(answer.header("access-control-allow-credentials"), "true");
    assert_eq!(answer.header("access-control-expose-headers"), "x-openlambda-request-id");
    let answer = page(&client, Method::OPTIONS, &one, "https://a.org", &asks, "").await;
    assert_eq!(answer.header("access-control-allow-methods"), "POST");
    // A failure that comes from the balancer.
    let answer = page(&client, Method::PUT, &one, "https://a.org", &[], "1").await;
    assert_eq!((answer.status, answer.header("allow")), (405, "POST"));
    assert_eq!(answer.header("access-control-allow-origin"), "https://a.org");
    let answer = page(&client, Method::POST, &one, "https://b.org", &[], "1").await;
    assert_eq!((answer.status, answer.header("vary")), (200, "origin"));
    assert!(!answer.headers.contains_key("access-control-allow-origin"), "{answer:?}");

    // Without [cors] the function is called as ever, and a browser lets no page read it.
    for method in [Method::OPTIONS, Method::POST] {
        let answer = page(&client, method, &closed, "https://a.org", &asks, "1").await;
        assert_eq!(answer.status, 500, "{answer:?}");
        let cors = answer.headers.keys().any(|name| name.as_str().starts_with("access-control"));
        assert!(!cors && !answer.headers.contains_key("vary"), "{answer:?}");
    }

    let folder = cluster.place.function(
        "wrong",
        &[
            ("f.py", RAISES),
            ("ol.toml", "cors = { allow_origins = [\"*\"], allow_credentials = true }"),
        ],
    );
    let error = cluster.place.fails(&["deploy", folder.to_str().unwrap()]);
    assert!(error.contains("name the origins"), "{error}");
}

/// A folder as `tar` packs it.
fn tar_gz(folder: &Path) -> Vec<u8> {
    let folder = folder.to_str().unwrap();
    let output = Command::new("tar").args(["-cz", "-C", folder, "."]).output().unwrap();
    assert!(output.status.success(), "{:?}", texts(&output));
    output.stdout
}

/// A request to the registry.
async fn registry(
    client: &HttpClient,
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(client, request.body(body.to_vec()).unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_are_listed_uploaded_and_deleted_over_http() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let (client, base) = (inside(), format!("{}/registry/", cluster.url));
    let says = |text: &str| {
        let code = format!("def f(event): return {text:?}");
        let manifest = "methods = [\"POST\"]";
        tar_gz(&cluster.place.function("hi", &[("f.py", &code), ("ol.toml", manifest)]))
    };
    let hi = format!("{base}hi");
    let ask = |method, url: &str| {
        let (client, url) = (client.clone(), url.to_owned());
        async move { registry(&client, method, &url, &[], b"").await }
    };
    assert_eq!(ask(Method::GET, &base).await.json(), json!([]));

    let first = registry(&client, Method::POST, &hi, &[], &says("one")).await;
    assert_eq!(first.status, 201, "{first:?}");
    let published = first.json();
    assert_eq!((&published["name"], &published["version"]), (&json!("hi"), &json!(1)));
    assert_eq!(published["new"], true);
    assert!(published["digest"].as_str().unwrap().starts_with("sha256:"), "{published}");
    assert!(!first.header("x-openlambda-request-id").is_empty());
    let url = format!("{}/run/hi", cluster.url);
    for (number, text) in [(2, "two"), (3, "three"), (4, "four")] {
        let answer = registry(&client, Method::POST, &hi, &[], &says(text)).await;
        assert_eq!((answer.status, &answer.json()["version"]), (201, &json!(number)));
        // The next call gets it.
        assert_eq!(post(&client, &url, "").await.json(), text);
    }
    let again = registry(&client, Method::POST, &hi, &[], &says("four")).await;
    assert_eq!((again.status, &again.json()["new"]), (201, &json!(false)));

    // Many at once get a version each.
    let many = format!("{base}many");
    let texts = (0..8).map(|n| says(&format!("n{n}"))).collect::<Vec<_>>();
    let uploads = texts.iter().map(|tar| registry(&client, Method::POST, &many, &[], tar));
    let uploads = futures_util::future::join_all(uploads).await;
    let mut versions: Vec<u64> =
        uploads.iter().map(|answer| answer.json()["version"].as_u64().unwrap()).collect();
    versions.sort_unstable();
    assert_eq!(versions, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(ask(Method::DELETE, &many).await.status, 200);

    // As `ol` sees it, and the other way round.
    assert_eq!(cluster.place.json(&["ls", "--json"])["functions"][0]["version"], 4);
    cluster.deploy_example("echo");
    assert_eq!(ask(Method::GET, &base).await.json(), json!(["echo", "hi"]));
    assert_eq!(ask(Method::GET, &hi).await.json()["version"], 4);
    let old = ask(Method::GET, &format!("{hi}:1")).await.json();
    assert_eq!((&old["digest"], &old["version"]), (&published["digest"], &json!(1)));
    let config = ask(Method::GET, &format!("{hi}/config")).await.json();
    assert_eq!((&config["methods"], &config["handler"]), (&json!(["POST"]), &json!("f.f")));

    // Namespaces are apart.
    let team = format!("{}/ns/team/registry/", cluster.url);
    let answer = registry(&client, Method::POST, &format!("{team}hi"), &[], &says("team")).await;
    assert_eq!((answer.status, &answer.json()["name"]), (201, &json!("team/hi")));
    assert_eq!(ask(Method::GET, &team).await.json(), json!(["hi"]));
    let of_team = post(&client, &format!("{}/ns/team/run/hi", cluster.url), "").await;
    assert_eq!(of_team.json(), "team");

    let answer = ask(Method::DELETE, &hi).await;
    assert_eq!((answer.status, answer.json()), (200, json!({"name": "hi"})));
    assert_eq!(post(&client, &url, "").await.status, 404);
    assert_eq!(ask(Method::DELETE, &hi).await.status, 404);
    assert_eq!(ask(Method::GET, &base).await.json(), json!(["echo"]));
    assert_eq!(post(&client, &format!("{}/ns/team/run/hi", cluster.url), "").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_refused_leaves_nothing() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let (client, base) = (inside(), format!("{}/registry/", cluster.url));
    let good = tar_gz(&cluster.place.function("good", &[("f.py", "def f(event): return 1")]));
    let manifest = ("ol.toml", "memory = 3");
    let odd = tar_gz(&cluster.place.function("odd", &[("f.py", ""), manifest]));
    let empty = tar_gz(&cluster.place.function("empty", &[("readme", "")]));
    for (name, body, why) in [
        ("bad", &b"this is no tar"[..], ""),
        ("bad", &good[..good.len() / 2], ""),
        ("bad", &odd, "did you mean"),
        ("bad", &empty, "f.py"),
        ("a%20b", &good, "not a valid"),
        ("good:3", &good, "name the function alone"),
    ] {
        let answer = registry(&client, Method::POST, &format!("{base}{name}"), &[], body).await;
        assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("bad_request")), "{why}");
        assert!(answer.json()["message"].as_str().unwrap().contains(why), "{answer:?}");
    }
    let answer = raw_inside(
        cluster.address(),
        b"POST /registry/large HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\
          Content-Length: 9999999999\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("limit of"), "{answer}");
    // One that leaves in the middle.
    let mut stream = connect(cluster.address());
    let head = "POST /registry/half HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&good).unwrap();
    drop(stream);
    let put = registry(&client, Method::PUT, &format!("{base}good"), &[], &good).await;
    assert_eq!((put.status, put.header("allow")), (405, "GET, HEAD, POST, DELETE"));
    let post = registry(&client, Method::POST, &base, &[], &good).await;
    assert_eq!((post.status, post.header("allow")), (405, "GET, HEAD"));
    assert_eq!(registry(&client, Method::GET, &base, &[], b"").await.json(), json!([]));
    // No part of a bundle is left in the store.
    let left = wait_for(|| {
        let store = cluster.place.data_dir().join("registry");
        let output = Command::new("find").arg(&store).args(["-type", "f"]).output().unwrap();
        let store_own = |file: &&str| file.ends_with(".redb") || file.ends_with("/FORMAT");
        let files = texts(&output).0.lines().filter(|file| !store_own(file)).count();
        (files == 0).then_some(())
    });
    assert!(left.is_some(), "parts of bundles are left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_and_other_machines_cannot_deploy() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let client = client();
    let good = tar_gz(&cluster.place.function("good", &[("f.py", "def f(event): return 1")]));
    let url = format!("{}/registry/good", cluster.url);
    let own = cluster.url.clone();
    let bearer = secret().bearer();
    // Each knows the secret, from wherever it may have it.
    for headers in [
        &[("origin", "https://evil.org")][..],
        &[("origin", "null")],
        &[("origin", &own)],
        &[("sec-fetch-site", "cross-site")],
        &[("host", "evil.org")],
        &[("host", "evil.org"), ("origin", "http://evil.org")],
    ] {
        let headers = &[headers, &[("authorization", &*bearer)]].concat()[..];
        for method in [Method::POST, Method::DELETE, Method::GET] {
            let answer = registry(&client, method.clone(), &url, headers, &good).await;
            assert_eq!(answer.status, 403, "{method} {headers:?} {answer:?}");
            assert_eq!(answer.json()["error"], "forbidden");
        }
        let answer = registry(&client, Method::OPTIONS, &url, headers, b"").await;
        assert!(!answer.headers.contains_key("access-control-allow-origin"), "{answer:?}");
    }
    // Those who do not know it, from wherever they say that they are.
    for headers in [
        &[][..],
        &[("x-forwarded-for", "127.0.0.1")],
        &[("x-real-ip", "127.0.0.1")],
        &[("authorization", "Bearer 0123456789abcdef0123456789abcdef")],
        &[("authorization", "Basic b2w6b2w=")],
    ] {
        for method in [Method::POST, Method::DELETE, Method::GET] {
            let answer = registry(&client, method.clone(), &url, headers, &good).await;
            assert_eq!(answer.status, 401, "{method} {headers:?} {answer:?}");
            assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"openlambda\"");
            let message = answer.json()["message"].as_str().unwrap().to_owned();
            assert!(message.contains("authorization: Bearer"), "{message}");
        }
    }
    // Nor may a page name workers, to which calls would go then.
    let worker = json!({"name": "evil", "incarnation": 1, "url": "http://127.0.0.1:1",
        "weight": 1.0, "capacity": 1});
    let url = format!("{}/internal/workers", cluster.url);
    let page = [("origin", "https://evil.org"), ("authorization", &*bearer)];
    let body = worker.to_string();
    let announced = registry(&client, Method::POST, &url, &page, body.as_bytes()).await;
    assert_eq!(announced.status, 403);
    let list = format!("{}/registry/", cluster.url);
    assert_eq!(registry(&inside(), Method::GET, &list, &[], b"").await.json(), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_registry_can_be_closed_to_http() {
    let cluster = Cluster::start(&["--workers", "1", "--admin", "off"]);
    let client = inside();
    let good = tar_gz(&cluster.place.function("good", &[("f.py", "def f(event): return 1")]));
    let url = format!("{}/registry/good", cluster.url);
    for method in [Method::GET, Method::POST, Method::DELETE] {
        let answer = registry(&client, method, &url, &[], &good).await;
        assert_eq!(answer.status, 403, "{answer:?}");
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(message.contains("`ol deploy`"), "{message}");
    }
    cluster.deploy_example("echo");
    assert_eq!(post(&client, &format!("{}/run/echo", cluster.url), "1").await.body, "1");
    let error = cluster.place.run(&["up", "--admin", "all"]);
    assert_eq!(error.status.code(), Some(2));
    assert!(texts(&error).1.contains("off, loopback"), "{error:?}");
}

/// What a server counts, once it has these lines, and Prometheus' own tool has found nothing wrong
/// with it. A call is counted when it is over, which is a moment after its reply.
async fn metrics(client: &HttpClient, server: &str, lines: &[&str]) -> String {
    let url = format!("{server}/metrics");
    let mut missing = None;
    for _ in 0..1200 {
        let bearer = secret().bearer();
        let bearer = [("authorization", &*bearer)];
        let answer = registry(client, Method::GET, &url, &bearer, b"").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
        let there = |line: &&&str| !answer.body.lines().any(|known| known == **line);
        missing = lines.iter().find(there).map(|line| (*line, answer.body.clone()));
        if missing.is_none() {
            check_metrics(&answer.body);
            return answer.body;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (line, text) = missing.unwrap();
    panic!("no {line} in\n{text}");
}

fn check_metrics(text: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is there: .ci/deps installs it");
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = texts(&output);
    assert!(output.status.success() && said.0.is_empty() && said.1.is_empty(), "{said:?}\n{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_say_what_happened_in_prometheus_words() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let client = client();
    let worker = cluster.status()["workers"][0]["url"].as_str().unwrap().to_owned();
    // Nothing has happened yet, and it is valid.
    metrics(&client, &cluster.url, &[]).await;
    metrics(&client, &worker, &[]).await;

    let echo = cluster.deploy_example("echo");
    let raises = cluster.deploy("raises", &[("f.py", RAISES)]);
    for _ in 0..3 {
        assert_eq!(post(&client, &echo, "1").await.status, 200);
    }
    assert_eq!(post(&client, &raises, "1").await.status, 500);
    assert_eq!(post(&client, &format!("{}/run/made-up", cluster.url), "1").await.status, 404);

    let both = [
        "ol_invocations_total{function=\"echo\",outcome=\"ok\",start=\"cold\"} 1",
        "ol_invocations_total{function=\"echo\",outcome=\"ok\",start=\"warm\"} 2",
        "ol_invocation_duration_seconds_count{function=\"echo\"} 3",
    ];
    let of_balancer = [
        "ol_build_info{part=\"balancer\",version=\"0.1.0\"} 1",
        "ol_invocations_total{function=\"raises\",outcome=\"function_error\"} 1",
        "ol_invocations_total{outcome=\"not_found\"} 1",
        "ol_invocations_in_flight 0",
        "ol_retries_total 0",
        "ol_workers{state=\"ready\"} 1",
        "ol_policy_decisions_total{policy=\"least-outstanding\",decision=\"worker\"} 4",
    ];
    let balancer = metrics(&client, &cluster.url, &[&both[..], &of_balancer].concat()).await;
    assert!(!balancer.contains("made-up"), "a name that nobody deployed is a label");
    let of_worker = [
        "ol_build_info{part=\"worker\",version=\"0.1.0\"} 1",
        "ol_invocations_total{function=\"raises\",outcome=\"function_error\",start=\"cold\"} 1",
        "ol_sandbox_starts_total{outcome=\"ok\"} 2",
        "ol_sandbox_start_duration_seconds_count{phase=\"create\"} 2",
        "ol_sandbox_start_duration_seconds_count{phase=\"pull\"} 2",
        "ol_invocations_queued 0",
        "ol_memory_pool_bytes 4294967296",
    ];
    let text = metrics(&client, &worker, &[&both[..], &of_worker].concat()).await;
    assert!(text.contains("ol_sandboxes{state=\"idle\"}"), "{text}");

    cluster.place.ol(&["rm", "echo"]);
    let gone = wait_for(|| {
        let text = raw_inside(cluster.address(), b"GET /metrics HTTP/1.0\r\n\r\n");
        (!text.contains("echo")).then_some(())
    });
    assert!(gone.is_some(), "a function that is removed still has series");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_has_a_line_for_each_request() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("access.jsonl");
    let cluster = Cluster::start(&["--workers", "1", "--access-log", log.to_str().unwrap()]);
    let client = client();
    let lines = |count: usize| {
        let read = || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<Value> =
                text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            (lines.len() >= count).then_some(lines)
        };
        wait_for(read).unwrap_or_else(|| panic!("fewer than {count} lines came"))
    };
    let echo = cluster.deploy_example("echo");
    let raises = cluster.deploy("raises", &[("f.py", RAISES)]);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traceparent = format!("00-{trace}-00f067aa0ba902b7-01");
    let headers = [("traceparent", traceparent.as_str()), ("x-openlambda-request-id", "my.id")];
    let url = format!("{echo}/a/b?secret=1");
    assert_eq!(registry(&client, Method::PUT, &url, &headers, b"12345").await.status, 200);
    assert_eq!(post(&client, &raises, "1").await.status, 500);
    assert_eq!(post(&client, &format!("{}/run/nothing", cluster.url), "1").await.status, 404);
    let registry_url = format!("{}/registry/raises", cluster.url);
    assert_eq!(registry(&inside(), Method::DELETE, &registry_url, &[], b"").await.status, 200);
    // The checks are not of interest.
    metrics(&client, &cluster.url, &[]).await;

    let lines = lines(4);
    assert_eq!(lines.len(), 4, "{lines:#?}");
    let to = |path: &str| lines.iter().find(|line| line["path"] == path).unwrap();
    let (called, raised) = (to("/run/echo/a/b"), to("/run/raises"));
    let (missing, deleted) = (to("/run/nothing"), to("/registry/raises"));
    let fields = |line: &Value, names: &[&str]| -> Vec<Value> {
        names.iter().map(|name| line[*name].clone()).collect()
    };
    let who =
        ["request_id", "trace_id", "client", "method", "path", "function", "version", "worker"];
    let expected =
        json!(["my.id", trace, "127.0.0.1", "PUT", "/run/echo/a/b", "echo", 1, "worker-1"]);
    assert_eq!(json!(fields(called, &who)), expected);
    let how = ["status", "outcome", "error", "start", "retries", "request_bytes", "reply_bytes"];
    assert_eq!(json!(fields(called, &how)), json!([200, "ok", null, "cold", 0, 5, 5]));
    let number = |line: &Value, name: &str| line[name].as_f64().unwrap();
    assert!(number(called, "time_ms") > 1.7e12, "{called}");
    assert!(number(called, "duration_ms") >= number(called, "reply_ms"), "{called}");
    let phases = &called["phases_ms"];
    assert!(number(phases, "init") > 0.0 && number(phases, "run") > 0.0, "{called}");

    let expected = json!([500, "function_error", "function", null, 0, 1]);
    assert_eq!(json!(fields(raised, &how[..6])), expected, "{raised}");
    assert!(raised["reply_bytes"].as_u64().unwrap() > 0);
    assert_eq!((&raised["trace_id"], &raised["function"]), (&json!(null), &json!("raises")));
    let expected = json!([404, "not_found", "client", null, 0, 1]);
    assert_eq!(json!(fields(missing, &how[..6])), expected, "{missing}");
    let expected = json!([null, null, null]);
    assert_eq!(json!(fields(missing, &["function", "version", "worker"])), expected);
    assert_eq!(
        json!(fields(deleted, &["method", "status", "outcome"])),
        json!(["DELETE", 200, "ok"])
    );

    let fails = |args: &[&str]| cluster.place.run(&[&["up"], args].concat());
    let nowhere = folder.path().join("no/folder/log");
    let other = cluster.place.data_dir().join("other");
    let other = other.to_str().unwrap();
    let up = ["--detach", "--listen", "127.0.0.1:0", "--data-dir", other, "--access-log"];
    for (place, why, status) in
        [(nowhere.to_str().unwrap(), "another --access-log", 1), ("-", "name a file", 2)]
    {
        let output = fails(&[&up[..], &[place]].concat());
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        assert!(texts(&output).1.contains(why), "{output:?}");
    }
}
