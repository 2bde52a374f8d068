//! What pages, operators and scripts do over HTTP beside plain calls.

use http::{Method, Request};

use crate::common::{Answer, Cluster, HttpClient, client, send};

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
