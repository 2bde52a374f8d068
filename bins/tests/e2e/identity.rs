//! Who is let in: without the cluster's secret, nobody gets anything but calls of functions and checks.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::StreamExt;
use http::{Method, Request};
use openlambda_core::function::{FunctionName, FunctionRef, Version};
use openlambda_core::registry::{Registry, RegistryError, Revision};
use openlambda_core::serving::Secret;
use openlambda_registry::native::RemoteRegistry;
use serde_json::{Value, json};

use crate::common::{
    COPIES, Cluster, Place, by_socket, client, client_of, copy_program, post, program, raw, secret,
    send, texts, wait_for,
};

const COUNTS: &str = "
def f(event):
    print('called')
    return {'statusCode': 200, 'body': event.get('body', '')}
";

/// A user that nobody is.
const STRANGER: u32 = 54_321;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The URLs of balancer, worker and registry.
fn urls(cluster: &Cluster) -> [String; 3] {
    let status = cluster.status();
    let worker = status["workers"][0]["url"].as_str().unwrap().to_owned();
    let registry = status["registry"]["spec"].as_str().unwrap();
    [cluster.url.clone(), worker, registry.strip_prefix("native=").unwrap().to_owned()]
}

fn address(url: &str) -> SocketAddr {
    url.strip_prefix("http://").unwrap().parse().unwrap()
}

fn announcement(url: &str) -> String {
    json!({"name": "worker-1", "incarnation": 1, "url": url, "weight": 1e6, "capacity": 1000})
        .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_port_of_each_daemon_refuses_those_who_do_not_know_the_secret() {
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", "process", "--admin", "any"]);
    let url = cluster.deploy("counts", &[("f.py", COUNTS), ("ol.toml", "event = \"http\"")]);
    let [balancer, worker, registry] = urls(&cluster);
    let client = client();
    let (get, post_, delete) = (Method::GET, Method::POST, Method::DELETE);
    let announced = announcement("http://127.0.0.1:1");
    for (method, url, body) in [
        (&get, format!("{balancer}/stats"), ""),
        (&get, format!("{balancer}/metrics"), ""),
        (&get, format!("{balancer}/status"), ""),
        (&get, format!("{balancer}/internal/cluster"), ""),
        (&get, format!("{balancer}/internal/nothing"), ""),
        (&post_, format!("{balancer}/internal/workers"), &announced),
        (&post_, format!("{balancer}/internal/refresh"), "counts"),
        (&get, format!("{balancer}/registry/"), ""),
        (&get, format!("{balancer}/registry/counts"), ""),
        (&get, format!("{balancer}/ns/default/registry/counts/config"), ""),
        (&post_, format!("{balancer}/registry/counts"), "tar"),
        (&delete, format!("{balancer}/registry/counts"), ""),
        (&post_, format!("{worker}/run/counts"), "x"),
        (&post_, format!("{worker}/runLambda/counts"), "x"),
        (&post_, format!("{worker}/ns/default/run/counts"), "x"),
        (&get, format!("{worker}/stats"), ""),
        (&get, format!("{worker}/metrics"), ""),
        (&get, format!("{worker}/status"), ""),
        (&get, format!("{worker}/internal/events"), ""),
        (&get, format!("{worker}/internal/load"), ""),
        (&post_, format!("{worker}/internal/reservations"), "{}"),
        (&get, format!("{worker}/nothing"), ""),
    ] {
        for header in [None, Some("Bearer 0123456789abcdef0123456789abcdef"), Some("Bearer")] {
            let mut request = Request::builder().method(method).uri(&url);
            if let Some(header) = header {
                request = request.header("authorization", header);
            }
            let answer = send(&client, request.body(body.to_owned()).unwrap()).await.unwrap();
            assert_eq!(answer.status, 401, "{method} {url} {header:?}: {answer:?}");
            assert_eq!(answer.json()["error"], "unauthorized");
        }
    }
    for url in [&balancer, &worker] {
        for path in ["livez", "readyz"] {
            let request = Request::get(format!("{url}/{path}")).body("").unwrap();
            assert_eq!(send(&client, request).await.unwrap().status, 200, "{url}/{path}");
        }
    }
    // The socket beside the worker's port is no other way in.
    let sockets = abstract_sockets(address(&worker).port());
    assert_eq!(sockets.len(), 1);
    for name in &sockets {
        let answer = by_abstract_socket(name, "GET /stats HTTP/1.0\r\nHost: localhost\r\n\r\n");
        assert!(
            answer.starts_with("HTTP/1.0 401") || answer.starts_with("HTTP/1.1 401"),
            "{answer}"
        );
    }
    // Nor is the registry's own port.
    for other in [None, Some(Secret::generate().unwrap())] {
        let registry = RemoteRegistry::connect(&registry).unwrap().with_secret(other);
        let refused = |error: RegistryError| {
            let told = openlambda_core::failure::chain(&error);
            assert!(told.contains("secret"), "{told}");
        };
        let name: FunctionName = "counts".parse().unwrap();
        refused(registry.list().await.unwrap_err());
        refused(registry.resolve(&FunctionRef::latest(name.clone())).await.unwrap_err());
        refused(registry.delete(&name).await.unwrap_err());
        refused(registry.versions(&name).await.unwrap_err());
        refused(registry.set_alias(&name, "live", Some(Version(1)), None).await.unwrap_err());
        let part = futures_util::stream::once(async { Ok(bytes::Bytes::from_static(b"tar")) });
        refused(registry.publish(&name, Box::pin(part)).await.unwrap_err());
        let mut events = registry.watch(Revision(0));
        let told = tokio::time::timeout(Duration::from_secs(1), events.next()).await;
        assert!(told.is_err(), "{told:?}");
    }
    // All of it left no trace.
    assert_eq!(post(&client, &url, "x").await.body, "x");
    let logged = cluster.place.ol(&["logs", "counts"]);
    assert_eq!(logged.matches("called").count(), 1, "{logged}");
    assert_eq!(cluster.status()["workers"].as_array().unwrap().len(), 1);
}

/// The names of the sockets beside a worker's port.
fn abstract_sockets(port: u16) -> Vec<String> {
    let begin = format!("@openlambda/{port}/");
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    let names = sockets.lines().filter_map(|line| line.split_whitespace().last());
    let mut names: Vec<_> =
        names.filter(|name| name.starts_with(&begin)).map(|name| name[1..].to_owned()).collect();
    names.sort();
    names.dedup();
    names
}

fn by_abstract_socket(name: &str, request: &str) -> String {
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
    by_socket(UnixStream::connect_addr(&address).unwrap(), request)
}

/// What another user of the machine tries, with everything that it can see.
const INTRUDER: &str = r#"
import http.client, json, os, re, socket, subprocess, sys
balancer, worker, registry, data, digest = sys.argv[1:]
def ask(address, method, path, body=None, headers={}):
    api = http.client.HTTPConnection(address, timeout=60)
    api.request(method, path, body, headers)
    answer = api.getresponse()
    answer.read()
    return answer.status
told = {}
told["call"] = ask(balancer, "POST", "/run/counts", b"x")
told["publish"] = ask(balancer, "POST", "/registry/counts", b"x")
told["delete"] = ask(balancer, "DELETE", "/registry/counts")
told["state"] = ask(balancer, "GET", "/internal/cluster")
worker_1 = {"name": "worker-1", "incarnation": 1, "url": "http://127.0.0.1:1", "weight": 1e6, "capacity": 9}
told["announce"] = ask(balancer, "POST", "/internal/workers", json.dumps(worker_1))
# Its own bundle as another's function, with that function's volume.
own = {"x-openlambda-digest": digest, "x-openlambda-version": "1", "x-openlambda-balancer": "b"}
told["worker"] = ask(worker, "POST", "/run/counts", b"x", own)
told["events"] = ask(worker, "GET", "/internal/events?balancer=b")
for file in ("secret", "cluster.json", "balancer.sock", "volumes"):
    try:
        if file.endswith("sock"): socket.socket(socket.AF_UNIX).connect(f"{data}/{file}")
        else: os.listdir(f"{data}/{file}") if file == "volumes" else open(f"{data}/{file}").read()
        told[file] = "open"
    except PermissionError: told[file] = "closed"
for line in open("/proc/net/unix"):
    name = line.split()[-1]
    if not name.startswith(f"@openlambda/{worker.split(':')[1]}/"): continue
    beside = socket.socket(socket.AF_UNIX)
    beside.connect("\0" + name[1:])
    beside.sendall(b"POST /run/counts HTTP/1.0\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx")
    told["local socket"] = int(beside.recv(4096).split()[1])
# HTTP/2 as gRPC speaks it, without a message: status 16, nobody knows who asks.
def grpc(method, *headers):
    asks = ["curl", "-s", "--max-time", "60", "--http2-prior-knowledge", "-D", "-", "-o", "/dev/null"]
    for header in ("content-type: application/grpc", "te: trailers") + headers: asks += ["-H", header]
    asks += ["-X", "POST", f"http://{registry}/openlambda.registry.v1.Registry/{method}"]
    said = subprocess.run(asks, capture_output=True)
    status = re.search(rb"(?m)^grpc-status: (\d+)", said.stdout)
    return int(status.group(1)) if status else str(said)
for method in ("List", "Delete", "Publish", "Watch", "Fetch"): told[f"registry {method}"] = grpc(method)
told["registry guessed"] = grpc("List", "authorization: Bearer 0123456789abcdef0123456789abcdef")
print(json.dumps(told))
"#;

/// A user of the machine whom the cluster does not know: it calls functions, and that is all.
#[tokio::test(flavor = "multi_thread")]
async fn another_user_of_the_machine_gets_nothing_but_calls() {
    let place = Place::with_its_own_secret();
    let cluster = Cluster::start_in(place, &["--workers", "1", "--sandbox", "process"]);
    let url = cluster.deploy("counts", &[("f.py", COUNTS), ("ol.toml", "event = \"http\"")]);
    assert_eq!(post(&client(), &url, "x").await.status, 200);
    let [balancer, worker, registry] = urls(&cluster);
    let digest = cluster.place.json(&["describe", "counts", "--json"])["digest"].clone();
    let bare = |url: &str| address(url).to_string();
    let mut intruder = Command::new("/usr/bin/python3");
    intruder.args(["-c", INTRUDER, &bare(&balancer), &bare(&worker), &bare(&registry)]);
    intruder.arg(cluster.place.data_dir()).arg(digest.as_str().unwrap_or("sha256:00"));
    // Who is not root tries as itself, and has its own files.
    let as_root = is_root();
    if as_root {
        intruder.uid(STRANGER).gid(STRANGER);
    }
    let output = intruder.current_dir("/").output().unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "{out}{err}");
    let mut told: Value = serde_json::from_str(&out).unwrap();
    let mut expected = json!({
        "call": 200, "publish": 401, "delete": 401, "state": 401, "announce": 401, "worker": 401,
        "events": 401, "secret": "closed", "cluster.json": "closed", "balancer.sock": "closed",
        "volumes": "closed", "local socket": 401, "registry List": 16, "registry Delete": 16,
        "registry Publish": 16, "registry Watch": 16, "registry Fetch": 16, "registry guessed": 16,
    });
    if !as_root {
        for own in ["secret", "cluster.json", "balancer.sock", "volumes"] {
            told[own] = Value::Null;
            expected[own] = Value::Null;
        }
    }
    assert_eq!(told, expected);
    let state = cluster.status();
    assert_eq!(state["workers"].as_array().unwrap().len(), 1);
    assert_eq!(post(&client(), &url, "y").await.body, "y");

    // With daemons of its own, and a secret of its own.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let file = folder.path().join("secret");
    let own = |name: &str| {
        let copy = folder.path().join(name);
        copy_program(&program(name), &copy);
        let mut command = Command::new(copy);
        command.env("HOME", folder.path()).current_dir("/").stdin(Stdio::null());
        if as_root {
            command.uid(STRANGER).gid(STRANGER);
        }
        command
    };
    assert!(own("ol").arg("secret").arg(&file).status().unwrap().success());
    let log = fs::File::create(folder.path().join("log")).unwrap();
    let mut intruder = Ends(
        own("ol-worker")
            .args(["--name=worker-1", "--sandbox=process", "--listen=127.0.0.1:0"])
            .arg("--secret-file")
            .arg(&file)
            .arg("--state-dir")
            .arg(folder.path().join("state"))
            .args(["--registry", &format!("native={registry}"), "--balancer", &balancer])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap(),
    );
    let said = wait_for(|| {
        let log = fs::read_to_string(folder.path().join("log")).unwrap();
        log.contains("cannot announce").then_some(log)
    });
    let said = said.expect("it tries to announce itself");
    assert!(said.contains("the other end has another secret"), "{said}");
    let pid = state["workers"][0]["pid"].clone();
    assert_eq!(cluster.status()["workers"][0]["pid"], pid);
    for n in 0..20 {
        assert_eq!(post(&client(), &url, &n.to_string()).await.body, n.to_string());
    }
    intruder.0.kill().unwrap();
}

/// Ended, whatever happens to the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns its event's headers.
const HEADERS: &str = "
import json
def f(event):
    return {'statusCode': 200, 'body': json.dumps(event['headers'])}
";

#[tokio::test(flavor = "multi_thread")]
async fn tools_use_the_secret_or_the_socket_and_no_function_sees_it() {
    let place = Place::with_its_own_secret();
    let data = place.data_dir();
    let cluster = Cluster::start_in(place, &["--workers", "1", "--sandbox", "process"]);
    let url = cluster.deploy("headers", &[("f.py", HEADERS), ("ol.toml", "event = \"http\"")]);
    let [balancer, worker, _] = urls(&cluster);
    let file = data.join("secret");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&file).unwrap();
    let bearer = format!("authorization: Bearer {}", text.trim());

    // As the README has it.
    let curl = |args: &[&str]| {
        let output = Command::new("curl").args(["-s", "--fail-with-body"]).args(args).output();
        let output = output.unwrap();
        (output.status.success(), texts(&output).0)
    };
    let socket = data.join("balancer.sock").display().to_string();
    for path in ["/stats", "/metrics", "/internal/cluster", "/registry/", "/status"] {
        let (done, said) = curl(&["-H", &bearer, &format!("{balancer}{path}")]);
        assert!(done, "{path}: {said}");
        let (done, said) = curl(&["--unix-socket", &socket, &format!("http://ol{path}")]);
        assert!(done, "{path}: {said}");
        let (done, said) = curl(&[&format!("{balancer}{path}")]);
        assert!(!done && said.contains("send authorization: Bearer"), "{path}: {said}");
        // A name that somebody pointed here, and a page that has come to know the secret.
        for header in ["host: evil.org", "origin: http://evil.org", "sec-fetch-site: same-origin"] {
            let (done, said) = curl(&["-H", &bearer, "-H", header, &format!("{balancer}{path}")]);
            assert!(!done && said.contains("forbidden"), "{path}, {header}: {said}");
        }
    }
    // A worker has names, too.
    let named = format!("http://{}/stats", address(&worker));
    let (done, said) = curl(&["-H", &bearer, "-H", "host: w1.lan", &named]);
    assert!(!done && said.contains("start it with --host NAME"), "{said}");
    for path in ["/livez", "/readyz"] {
        let (done, said) = curl(&["-H", "host: evil.org", &format!("{balancer}{path}")]);
        assert!(!done && said.contains("start it with --host NAME"), "{path}: {said}");
    }

    // Wherever it is sent by mistake.
    let straight = format!("{worker}/run/headers");
    for url in [&url, &straight] {
        let (done, said) = curl(&["-H", &bearer, "-H", "x-other: kept", url]);
        assert!(done && said.contains("kept") && !said.contains(text.trim()), "{url}: {said}");
    }
    let (_, said) = curl(&["-H", "authorization: Bearer of-the-function", &url]);
    assert!(said.contains("Bearer of-the-function"), "{said}");

    // Prometheus itself.
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("prometheus.yml");
    let targets = [&balancer, &worker].map(|url| address(url).to_string());
    let scrape = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: openlambda\n  \
         bearer_token_file: {}\n  static_configs: [{{targets: [\"{}\", \"{}\"]}}]\n",
        file.display(),
        targets[0],
        targets[1]
    );
    fs::write(&config, scrape).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let _prometheus = Ends(
        Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus is there: .ci/deps installs it"),
    );
    let scraped = wait_for(|| {
        let (_, said) = curl(&[&format!("http://{port}/api/v1/query?query=up==1")]);
        (said.matches("\"instance\"").count() == 2).then_some(())
    });
    let (_, said) = curl(&[&format!("http://{port}/api/v1/targets")]);
    assert!(scraped.is_some(), "{said}");
}

#[test]
fn daemons_by_hand_are_told_where_the_secret_comes_from() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    let name = file.to_str().unwrap();
    let run = |name: &str, args: &[&str]| {
        let output = Command::new(program(name)).args(args).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), texts(&output).1)
    };
    let store = folder.path().join("store");
    let state = folder.path().join("state");
    let daemons: [(&str, &[&str]); 3] = [
        ("ol-registry", &["--listen=127.0.0.1:0", "--store", store.to_str().unwrap()]),
        ("ol-lb", &["--listen=127.0.0.1:0", "--registry=dir=/tmp"]),
        ("ol-worker", &["--name=w", "--registry=dir=/tmp", "--state-dir", state.to_str().unwrap()]),
    ];
    let each = |secret: &[&str], status: i32, why: &str| {
        for (program, args) in daemons {
            let (code, said) = run(program, &[args, secret].concat());
            assert_eq!(code, Some(status), "{program}: {said}");
            assert!(said.contains(why) && said.contains("`ol secret FILE`"), "{program}: {said}");
        }
        assert!(!store.exists() && !state.exists());
    };
    // A call without it is wrong; a file without a secret is no fault of the call.
    each(&[], 2, "--secret-file is missing");
    fs::write(&file, "short\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    each(&["--secret-file", name], 1, "there is no secret in");
    fs::write(&file, "0123456789abcdef".repeat(3)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    each(&["--secret-file", name], 1, "is not this user's alone");

    // One that is there is not overwritten.
    let (code, said) = run("ol", &["secret", name]);
    assert_eq!(code, Some(1));
    assert!(said.contains("is there already"), "{said}");
    fs::remove_file(&file).unwrap();
    let (code, said) = run("ol", &["secret", name]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    Secret::read(&file).unwrap();
}

/// A cluster keeps its secret, or has the one that is named.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_its_secret_or_has_the_one_that_is_named() {
    let place = Place::with_its_own_secret();
    let file = place.data_dir().join("secret");
    let up = ["up", "--detach", "--listen=127.0.0.1:0", "--workers=1", "--sandbox=process"];
    place.ol(&up);
    let first = fs::read_to_string(&file).unwrap();
    place.ol(&["down"]);
    assert!(!place.data_dir().join("balancer.sock").exists());
    place.ol(&up);
    assert_eq!(fs::read_to_string(&file).unwrap(), first);
    place.ol(&["down"]);
    let url = place.ol(&[&up[..], &["--secret-file", &secret().file()]].concat());
    let stats = Request::get(format!("{}/stats", url.trim())).body("").unwrap();
    assert_eq!(send(&client_of(Some(secret().known())), stats).await.unwrap().status, 200);
    assert!(place.ol(&["status"]).contains("ready"));
    assert_eq!(fs::read_to_string(&file).unwrap(), first);
    place.ol(&["down"]);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(place.fails(&up).contains("chmod 600"));
    let said = place.fails(&[&up[..], &["--secret-file", "/nonexistent"]].concat());
    assert!(said.contains("cannot read the cluster's secret in /nonexistent"), "{said}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
}

/// By a name of its own, a balancer is called once it knows that name.
#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_goes_by_the_names_that_it_is_given() {
    let cluster =
        Cluster::start(&["--workers", "1", "--sandbox", "process", "--host", "balancer.lan"]);
    for (host, status) in
        [("balancer.lan", "200"), ("BALANCER.lan:80", "200"), ("other.lan", "403")]
    {
        let request = format!("GET /readyz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = raw(cluster.address(), request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {answer}");
    }
    let said = texts(&cluster.place.run(&["up", "--host", "http://x"])).1;
    assert!(said.contains("write NAME or NAME:PORT"), "{said}");
}

/// An ordinary user's cluster keeps strangers out as root's does.
#[test]
fn all_of_it_holds_for_an_ordinary_user() {
    if !is_root() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["ol", "ol-lb", "ol-registry", "ol-worker"] {
        copy_program(&program(name), &place.path().join(name));
    }
    let (test, tmp) = (place.path().join("test"), place.path().join("tmp"));
    copy_program(&std::env::current_exe().unwrap(), &test);
    fs::create_dir(&tmp).unwrap();
    std::os::unix::fs::chown(&tmp, Some(65_534), Some(65_534)).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"])
        .arg(&test)
        .args(["identity::", "--skip", "all_of_it_holds_for_an_ordinary_user"])
        .envs([("TMPDIR", tmp.as_path()), (COPIES, place.path()), ("HOME", tmp.as_path())])
        .current_dir("/")
        .output()
        .unwrap();
    let (out, err) = texts(&output);
    assert!(output.status.success(), "as an ordinary user: {out}\n{err}");
}

/// Three machines: each daemon in a network of its own, with a file that has the secret. Then a call, from
/// a fourth.
const THREE: &str = r#"
set -eu
bin=$1; functions=$2; dir=$3
mount -t tmpfs none /run
mkdir /run/netns
ip link add bridge0 type bridge
ip addr add 10.9.0.100/24 dev bridge0
ip link set bridge0 up
ip link set lo up
n=0
for name in registry worker lb; do
    n=$((n + 1))
    ip netns add $name
    ip link add to-$name type veth peer name eth0 netns $name
    ip link set to-$name master bridge0 up
    ip -n $name addr add 10.9.0.$n/24 dev eth0
    ip -n $name link set eth0 up
    ip -n $name link set lo up
done
"$bin/ol" secret "$dir/secret"
on() { name=$1; shift; ip netns exec "$name" "$@" >"$dir/$name.out" 2>"$dir/$name.log" & }
secret="--secret-file $dir/secret"
on registry "$bin/ol-registry" $secret --listen 10.9.0.1:9000 --store "$dir/store"
on worker "$bin/ol-worker" $secret --name w --listen 10.9.0.2:8081 --state-dir "$dir/w"     --sandbox process --registry native=http://10.9.0.1:9000 --balancer http://10.9.0.3:8080
on lb "$bin/ol-lb" $secret --listen 10.9.0.3:8080 --registry native=http://10.9.0.1:9000 --admin any
ask() { curl -s --max-time 20 -o "$dir/answer" -w '%{http_code}' "$@"; }
know="authorization: Bearer $(cat "$dir/secret")"
for try in $(seq 600); do
    [ "$(ask http://10.9.0.3:8080/readyz)" = 200 ] && break
    sleep 0.1
done
cat "$dir/answer"; echo
tar cf "$dir/bundle" -C "$functions" .
echo "stranger publishes: $(ask --data-binary "@$dir/bundle" http://10.9.0.3:8080/registry/echo)"
echo "publishes: $(ask -H "$know" --data-binary "@$dir/bundle" http://10.9.0.3:8080/registry/echo)"
echo "calls: $(ask -d 7 http://10.9.0.3:8080/run/echo) $(cat "$dir/answer")"
echo "stranger calls the worker: $(ask -d 7 http://10.9.0.2:8081/run/echo)"
echo "stranger announces: $(ask -d '{}' http://10.9.0.3:8080/internal/workers)"
echo "stranger looks: $(ask http://10.9.0.3:8080/internal/cluster)"
echo "looks: $(ask -H "$know" http://10.9.0.3:8080/internal/cluster)"
kill $(jobs -p)
wait
"#;

#[test]
fn three_daemons_in_three_networks_need_a_secret_file_alone() {
    let folder = tempfile::tempdir().unwrap();
    let functions = folder.path().join("echo");
    fs::create_dir(&functions).unwrap();
    fs::write(functions.join("f.py"), "def f(event):\n    return event\n").unwrap();
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "sh", "-c", THREE, "three"])
        .arg(program("ol").parent().unwrap())
        .args([&functions, folder.path()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = texts(&output);
    let logs = || -> String {
        ["registry", "worker", "lb"]
            .map(|name| {
                fs::read_to_string(folder.path().join(format!("{name}.log"))).unwrap_or_default()
            })
            .concat()
    };
    for line in [
        "\"ready\":true",
        "stranger publishes: 401",
        "publishes: 201",
        "calls: 200 7",
        "stranger calls the worker: 401",
        "stranger announces: 401",
        "stranger looks: 401",
        "looks: 200",
    ] {
        assert!(out.lines().any(|said| said.contains(line)), "no {line} in\n{out}{err}{}", logs());
    }
}

/// What strangers ask for leaves next to nothing in the logs.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_does_not_fill_the_logs() {
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", "process"]);
    let long = "A".repeat(60_000);
    for _ in 0..200 {
        for request in
            [format!("POST /registry/{long}"), format!("GET /{long}"), format!("POST /run/{long}")]
        {
            let request = format!("{request} HTTP/1.0\r\nHost: localhost\r\n\r\n");
            let answer = raw(cluster.address(), request.as_bytes());
            assert!(
                answer.starts_with("HTTP/1.0 4") || answer.starts_with("HTTP/1.1 4"),
                "{answer}"
            );
            assert!(answer.len() < 2000, "{answer}");
        }
    }
    let log = cluster.place.data_dir().join("logs/lb.log");
    assert!(fs::metadata(&log).unwrap().len() < 10_000, "{}", fs::read_to_string(&log).unwrap());
}

/// Whatever fills them.
#[tokio::test(flavor = "multi_thread")]
async fn the_logs_of_all_daemons_begin_anew_at_their_bound() {
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", "process"]);
    let logs = cluster.place.data_dir().join("logs");
    let at = |name: &str| logs.join(name);
    let names = ["lb.log", "registry.log", "worker-1.log"];
    for name in names {
        let mut log = fs::File::options().append(true).open(at(name)).unwrap();
        writeln!(log, "{}", "x".repeat(16 << 20)).unwrap();
    }
    for name in names {
        let older = at(&format!("{name}.1"));
        let begun = wait_for(|| {
            let length = |path| fs::metadata(path).map_or(0, |found| found.len());
            (length(older.clone()) > 16 << 20 && length(at(name)) < 1 << 20).then_some(())
        });
        assert!(begun.is_some(), "{name} has not begun anew");
        let mode = fs::metadata(&older).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    // The daemons go on at its new beginning.
    let url = format!("{}/registry/none", cluster.url);
    let folder = cluster.place.function("hi", &[("f.py", "def f(event): return 1")]);
    let tar = Command::new("tar").args(["cz", "-C", folder.to_str().unwrap(), "."]).output();
    let upload = Request::post(&url).body(tar.unwrap().stdout).unwrap();
    let inside = client_of(Some(secret().known()));
    assert_eq!(send(&inside, upload).await.unwrap().status, 201);
    let written = wait_for(|| {
        let log = fs::read_to_string(at("lb.log")).unwrap();
        log.contains("/registry/none").then_some(log)
    });
    let written = written.expect("the balancer logs that");
    assert!(!written.contains('\0'), "{written:?}");
}
