//! Requests and replies on their way through: limits, headers, trailers, slow and odd clients.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_body_limit_holds_while_a_body_streams() {
    let config = ProxyConfig { body_limit: 100_000, ..ProxyConfig::default() };
    let lb = Lb::with(config).await;
    let ran = Arc::new(AtomicUsize::new(0));
    let worker = lb.worker("a").await;
    let count = ran.clone();
    lb.functions.register_async("echo".parse().unwrap(), move |body| {
        count.fetch_add(1, Ordering::SeqCst);
        async { Ok(body) }
    });
    let chunked = |chunks: usize| {
        let mut bytes = b"POST /run/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                          Transfer-Encoding: chunked\r\n\r\n"
            .to_vec();
        for _ in 0..chunks {
            bytes.extend_from_slice(b"2710\r\n");
            bytes.extend_from_slice(&[b'x'; 10_000]);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        bytes
    };
    assert!(lb.raw(&chunked(10)).await.starts_with("HTTP/1.1 200"));
    let over = lb.raw(&chunked(11)).await;
    assert!(over.starts_with("HTTP/1.1 413") && over.contains("body_too_large"), "{over}");
    let declared = "POST /run/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                    Content-Length: 100001\r\n\r\n";
    assert!(lb.raw(declared.as_bytes()).await.starts_with("HTTP/1.1 413"));
    assert_eq!(ran.load(Ordering::SeqCst), 1);
    assert_eq!(worker.worker.counts().waiting, 0);
    lb.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_carry_the_cors_headers_of_the_function() {
    let lb =
        Lb::with(ProxyConfig { body_limit: 10, most_calls: 1, ..ProxyConfig::default() }).await;
    let cors = "methods = [\"POST\"]\ncors = { allow_origins = [\"https://a.org\"] }";
    lb.publish("page", cors, "").await;
    let ask = |path: &str, body: &'static str| {
        let request = Request::post(format!("{}/run/{path}", lb.url));
        lb.send(request.header("origin", "https://a.org"), body)
    };
    let allowed = |answer: &Answer| answer.header("access-control-allow-origin").to_owned();
    // Refused before it is looked at which function it is; nothing is cached yet.
    let large = ask("page", "01234567890").await;
    assert_eq!((large.status, &*allowed(&large)), (413, "https://a.org"));
    let nobody = ask("page", "1").await;
    assert_eq!((nobody.status, &*allowed(&nobody)), (503, "https://a.org"));
    let missing = ask("nothing", "1").await;
    assert_eq!((missing.status, &*allowed(&missing)), (404, ""));
    // A call too many is told by what is known already.
    let gates = lb.gated("slow").await;
    let _worker = lb.worker("w").await;
    let first = tokio::spawn(lb.call("slow", "1"));
    gates.came("1").await;
    let surplus = ask("page", "1").await;
    assert_eq!((surplus.status, &*allowed(&surplus)), (503, "https://a.org"));
    gates.open("1");
    assert_eq!(first.await.unwrap().status, 200);
    lb.nothing_left().await;
}

/// However a call ends, its line says how, and it is counted so.
#[tokio::test(flavor = "multi_thread")]
async fn every_end_of_a_call_is_logged_and_counted() {
    const HANGS: Act = Act::Hang("");
    const FIELDS: [&str; 6] = ["status", "outcome", "error", "worker", "retries", "request_bytes"];
    async fn check(lb: &Lb, id: &str, expected: Value) {
        let line = lb.logged(id).await;
        let fields: Vec<&Value> = FIELDS.iter().map(|name| &line[*name]).collect();
        assert_eq!(json!(fields), expected, "{line}");
        assert!(line["duration_ms"].as_f64().unwrap() > 0.0, "{line}");
        lb.nothing_left().await;
        let request = Request::get(format!("{}/metrics", lb.url));
        let text = lb.send(request, "").await.body;
        let (mut labels, outcome) = (String::new(), line["outcome"].as_str().unwrap());
        if let Some(function) = line["function"].as_str() {
            labels = format!("function=\"{function}\",");
        }
        let series = format!("ol_invocations_total{{{labels}outcome=\"{outcome}\"");
        assert!(text.contains(&series), "no {series} in {text}");
    }
    let ask = |lb: &Lb, id: &str| {
        let request = Request::post(format!("{}/run/echo", lb.url));
        lb.send(request.header("x-openlambda-request-id", id), "12345")
    };

    let lb = Lb::start().await;
    let _a = lb.fake("a", DRAINS).await;
    let b = lb.worker("b").await;
    assert_eq!(ask(&lb, "retried").await.status, 200);
    check(&lb, "retried", json!([200, "ok", null, "b", 1, 5])).await;
    assert_eq!(lb.logged("retried").await["reply_bytes"], 5);
    drop(b);

    let lb = Lb::start().await;
    let _a = lb.fake("a", BREAKS_OFF).await;
    assert!(ask(&lb, "broken").await.broken);
    check(&lb, "broken", json!([200, "broken_off", null, "a", 0, 5])).await;

    let lb = Lb::start().await;
    let _a = lb.fake("a", HALF_HEAD).await;
    assert_eq!(ask(&lb, "died").await.status, 502);
    check(&lb, "died", json!([502, "worker_died", "worker", "a", 0, 5])).await;

    // One that leaves, and one that is a call too many meanwhile.
    let lb = Lb::with(ProxyConfig { most_calls: 1, ..ProxyConfig::default() }).await;
    let a = lb.fake("a", HANGS).await;
    let mut stream = TcpStream::connect(&lb.address).await.unwrap();
    let head = "POST /run/echo HTTP/1.1\r\nHost: x\r\nX-OpenLambda-Request-Id: left\r\n";
    stream.write_all(format!("{head}Content-Length: 5\r\n\r\n12345").as_bytes()).await.unwrap();
    eventually("the call came", || a.calls() == 1).await;
    assert_eq!(ask(&lb, "surplus").await.status, 503);
    drop(stream);
    check(&lb, "left", json!([null, "cancelled", null, "a", 0, 5])).await;
    check(&lb, "surplus", json!([503, "no_worker", "balancer", null, 0, 0])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_reach_clients_that_take_them() {
    let lb = Lb::start().await;
    let _a = lb
        .fake(
            "a",
            Act::Answer(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: server-timing\r\n\r\n\
                 3\r\nabc\r\n0\r\nserver-timing: run;dur=5\r\n\r\n",
            ),
        )
        .await;
    let get = |more: &str| {
        format!("GET /run/echo HTTP/1.1\r\nHost: x\r\n{more}Connection: close\r\n\r\n")
    };
    let takes_them = get("TE: trailers\r\nx-openlambda-request-id: takes\r\n");
    let answer = lb.raw(takes_them.as_bytes()).await.to_ascii_lowercase();
    assert!(answer.ends_with("3\r\nabc\r\n0\r\nserver-timing: run;dur=5\r\n\r\n"), "{answer}");
    let answer = lb.raw(get("x-openlambda-request-id: leaves\r\n").as_bytes()).await;
    let answer = answer.to_ascii_lowercase();
    assert!(answer.ends_with("3\r\nabc\r\n0\r\n\r\n"), "{answer}");
    // Such replies are at their end, and not given up by the client.
    for id in ["takes", "leaves"] {
        assert_eq!(lb.logged(id).await["outcome"], "ok", "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_and_unusual_clients_are_served() {
    let lb = Lb::start().await;
    let _a = lb.worker("a").await;
    let tunnel = lb.raw(b"CONNECT /run/echo HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(tunnel.starts_with("HTTP/1.1 400") && tunnel.contains("tunnel"), "{tunnel}");
    let old = lb.raw(b"POST /run/echo HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc").await;
    assert!(old.starts_with("HTTP/1.0 200") && old.ends_with("\r\n\r\nabc"), "{old}");
    let head = lb.raw(b"HEAD /run/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    let absolute = "POST http://somewhere.else/run/echo HTTP/1.1\r\nHost: x\r\n\
                    Connection: close\r\nContent-Length: 3\r\n\r\nabc";
    assert!(lb.raw(absolute.as_bytes()).await.ends_with("\r\n\r\nabc"));
    // The body is sent only after the balancer has asked for it.
    let mut stream = TcpStream::connect(&lb.address).await.unwrap();
    let head = "POST /run/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                Expect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut read = vec![0; 25];
    stream.read_exact(&mut read).await.unwrap();
    assert_eq!(read, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"abc").await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200") && rest.ends_with("\r\n\r\nabc"), "{rest}");
    for odd in ["OPTIONS * HTTP/1.1", "CONNECT a:1 HTTP/1.1"] {
        let request = format!("{odd}\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = lb.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{odd}: {answer}");
    }
    lb.nothing_left().await;
}

/// The fake worker closes after each reply, and says so: no call is to go over a closed connection.
const EMPTY: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// Where two readings of a request are possible, the worker reads it as the balancer did.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_hides_in_another_one() {
    let lb = Lb::start().await;
    let a = lb.fake("a", Act::Answer(EMPTY)).await;
    let hidden = "5\r\nabcde\r\n0\r\n\r\n";
    for lengths in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
    ] {
        let request = format!(
            "POST /run/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lengths}\r\n\r\n{hidden}"
        );
        assert!(lb.raw(request.as_bytes()).await.starts_with("HTTP/1.1 200"), "{lengths}");
        assert_eq!(a.seen.body.swap(0, Ordering::SeqCst), hidden.len(), "{lengths}");
    }
    let named = "POST /run/echo HTTP/1.1\r\nHost: x\r\nConnection: close, content-length\r\n\
                 Content-Length: 3\r\n\r\nabc";
    assert!(lb.raw(named.as_bytes()).await.starts_with("HTTP/1.1 200"));
    assert_eq!(a.seen.body.load(Ordering::SeqCst), 3);
    let calls = a.calls();
    for bad in [
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: +3",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding : chunked",
    ] {
        let request = format!("POST /run/echo HTTP/1.1\r\nHost: x\r\n{bad}\r\n\r\nabc");
        assert!(lb.raw(request.as_bytes()).await.starts_with("HTTP/1.1 400"), "{bad}");
    }
    assert_eq!(a.calls(), calls, "none of them was passed on");
}

/// The balancer adds headers of its own, so its bound must be below the worker's.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_headers_are_refused_before_a_worker_sees_them() {
    let lb = Lb::start().await;
    let _a = lb.worker("a").await;
    for count in [80, 92, 96, 99] {
        let mut request = Request::post(format!("{}/run/echo", lb.url));
        for n in 0..count - 2 {
            request = request.header(format!("x-n-{n}"), "1");
        }
        let answer = lb.send(request, "1").await;
        if answer.status == 200 {
            assert_eq!(answer.body, "1");
        } else {
            assert!(count > 80);
            let refused = (400, "bad_request".to_owned(), "client", "no");
            assert_eq!(answer.failure(), refused, "{count} headers");
        }
    }
    let long = |length: usize| {
        let value = "y".repeat(length);
        format!("GET /run/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: {value}\r\n\r\n")
    };
    assert!(lb.raw(long(65_000).as_bytes()).await.starts_with("HTTP/1.1 200"));
    let answer = lb.raw(long(66_000).as_bytes()).await;
    // What it has not read of the request may undo the answer.
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_send_its_body_is_told_that_it_is_its_own_fault() {
    let lb = Lb::with(ProxyConfig {
        timeout_grace_seconds: 0.1,
        start_allowance_seconds: 0.2,
        ..ProxyConfig::default()
    })
    .await;
    lb.publish("echo", "timeout_seconds = 0.2", "").await;
    let a = lb.worker("a").await;
    let mut stream = TcpStream::connect(&lb.address).await.unwrap();
    let head = "POST /run/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("x-openlambda-error: client"), "{answer}");
    lb.nothing_left().await;
    assert_eq!(a.worker.counts(), Default::default(), "it never got so far as to need an instance");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_take_its_reply_is_cut_off() {
    let lb = Lb::with(ProxyConfig { write_seconds: 1.0, ..ProxyConfig::default() }).await;
    let _a = lb.worker("a").await;
    lb.publish("large", "", "").await;
    // More than the kernel keeps for a connection.
    let large = Bytes::from(vec![b'x'; 64 << 20]);
    lb.functions.register_async("large".parse().unwrap(), move |_| {
        let large = large.clone();
        async move { Ok(large) }
    });
    let mut stream = TcpStream::connect(&lb.address).await.unwrap();
    stream.write_all(b"GET /run/large HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    lb.nothing_left().await;
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.len() < 64 << 20);
    // One that takes longer than that, but takes something, gets all of it.
    let mut stream = TcpStream::connect(&lb.address).await.unwrap();
    let request = b"GET /run/large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let (mut buffer, mut total) = (vec![0; 1 << 20], 0);
    for reads in 0.. {
        let count = stream.read(&mut buffer).await.unwrap();
        total += count;
        if count == 0 {
            break;
        }
        if reads < 30 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    assert!(total > 64 << 20);
    lb.nothing_left().await;
}
