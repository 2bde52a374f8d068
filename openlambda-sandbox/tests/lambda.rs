//! Functions as AWS Lambda and API Gateway have them: what they may return, print and find. In Python and
//! in Node.js, in `process` and in `sock`.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;
#[path = "common/containers.rs"]
mod containers;

use std::sync::Arc;

use openlambda_core::invocation::Reply;
use openlambda_core::sandbox::{Sandbox, SandboxError, SandboxErrorKind, SandboxFactory};
use serde_json::{Value, json};

use common::{call, eventually, invocation, read};
use containers::{Containers, ask, containers};

/// Runs the same checks on an instance of this function in each kind of sandbox.
async fn in_each(
    containers: &Containers,
    files: &[(&str, &str)],
    check: impl AsyncFn(&dyn Sandbox),
) {
    let factories: [&dyn SandboxFactory; 2] = [&*containers.factory, &*containers.setup.factory];
    for factory in factories {
        let created = factory.create(containers.setup.spec(files)).await;
        let created = created.unwrap_or_else(|error| {
            let said = containers.setup.lines.texts();
            let why = openlambda_core::failure::chain(&error);
            panic!("{}: {why}\n{files:?}\n{said:?}", factory.kind())
        });
        let sandbox: Arc<dyn Sandbox> = created.sandbox;
        check(&*sandbox).await;
        sandbox.destroy().await;
    }
}

async fn shut_down(containers: Containers) {
    containers.factory.shutdown().await;
    containers.setup.factory.shutdown().await;
}

/// A call at this path, whose body is JSON.
async fn at(sandbox: &dyn Sandbox, path: &str, body: &Value) -> Result<Reply, SandboxError> {
    let mut call = invocation("the-id", body.to_string());
    call.head.path = path.to_owned();
    sandbox.invoke(call).await
}

#[tokio::test]
async fn http_replies_are_read_as_on_aws() {
    let containers = containers();
    let python = "
import json
def f(event):
    return json.loads(event['body'])
";
    let node = "exports.handler = async (event) => JSON.parse(event.body);";
    for files in [
        [("f.py", python), ("ol.toml", "event = \"http\"")],
        [("index.js", node), ("ol.toml", "event = \"http\"")],
    ] {
        in_each(&containers, &files, async |sandbox| {
            for body in [json!([{"id": 1}]), json!([404]), json!([301, {"location": "/x"}])] {
                let reply = at(sandbox, "/", &body).await.unwrap();
                assert_eq!(reply.status, 200);
                assert!(!reply.headers.contains_key("location"));
                let text = read(reply).await.0;
                assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), body);
            }
            let cookies = json!({"statusCode": 200, "headers": {"set-cookie": ["a=1", "b=2"]}});
            let reply = at(sandbox, "/", &cookies).await.unwrap();
            assert_eq!(reply.headers.get_all("set-cookie").iter().count(), 2);
            let order =
                json!({"statusCode": 200.0, "body": {"z": 1, "a": 2, "b": {"y": 1, "c": 2}}});
            let mut written = order.to_string();
            // (This side's maps are in order of their keys.)
            written = written
                .replace(r#""a":2,"b":{"c":2,"y":1},"z":1"#, r#""z":1,"a":2,"b":{"y":1,"c":2}"#);
            let mut call = invocation("r", written);
            call.head.path = "/".to_owned();
            let text = read(sandbox.invoke(call).await.unwrap()).await.0;
            let text: String = text.split_whitespace().collect();
            assert_eq!(text, r#"{"z":1,"a":2,"b":{"y":1,"c":2}}"#);
            let none = at(sandbox, "/", &json!({"statusCode": 204})).await.unwrap();
            assert!(none.status == 204 && !none.headers.contains_key("content-type"));
            let bad = json!({"statusCode": 200, "headers": [["a", "b"]], "body": "x"});
            let error = at(sandbox, "/", &bad).await.unwrap_err();
            assert_eq!(error.kind, SandboxErrorKind::BadReply, "{error}");
        })
        .await;
    }
    let digits = "
def f(event):
    return {'statusCode': 200, 'body': {'z': 1, 'id': 12345678901234567890123, 'a': 1e2}}
";
    in_each(&containers, &[("f.py", digits), ("ol.toml", "event = \"http\"")], async |sandbox| {
        let text = read(at(sandbox, "/", &json!(1)).await.unwrap()).await.0;
        assert_eq!(text, r#"{"z": 1, "id": 12345678901234567890123, "a": 100.0}"#);
    })
    .await;
    shut_down(containers).await;
}

#[tokio::test]
async fn version_1_of_http_events_is_api_gateways() {
    let containers = containers();
    let python = "
import json
def lambda_handler(event, context):
    return {'statusCode': 200, 'body': json.dumps(event), 'multiValueHeaders': {'Set-Cookie': ['a=1', 'b=2']}}
";
    let node = "
exports.handler = async (event) => (
    {statusCode: 200, body: JSON.stringify(event), multiValueHeaders: {'Set-Cookie': ['a=1', 'b=2']}});
";
    let manifest = (
        "ol.toml",
        "event = \"http-v1\"\nroutes = [\"/{proxy+}\", \"/items/{id}\", \"/items/new\"]",
    );
    for file in [("lambda_function.py", python), ("index.js", node)] {
        in_each(&containers, &[file, manifest], async |sandbox| {
            let mut call = invocation("the-id", "text");
            call.head.path = "/items/5".to_owned();
            call.head.query = Some("x=1&x=2".to_owned());
            for value in ["1", "2"] {
                call.head.headers.append("x-a", value.parse().unwrap());
            }
            call.head.headers.insert("x-forwarded-for", "192.0.2.1".parse().unwrap());
            let reply = sandbox.invoke(call).await.unwrap();
            assert_eq!(reply.headers.get_all("set-cookie").iter().count(), 2);
            let event: Value = serde_json::from_str(&read(reply).await.0).unwrap();
            assert_eq!((&event["httpMethod"], &event["body"]), (&json!("GET"), &json!("text")));
            assert_eq!(event["multiValueHeaders"]["x-a"], json!(["1", "2"]));
            assert_eq!(event["multiValueQueryStringParameters"]["x"], json!(["1", "2"]));
            assert_eq!(event["requestContext"]["identity"]["sourceIp"], "192.0.2.1");
            assert_eq!(
                (&event["resource"], &event["path"]),
                (&json!("/items/{id}"), &json!("/items/5"))
            );
            assert_eq!(event["pathParameters"], json!({"id": "5"}));
        })
        .await;
    }
    shut_down(containers).await;
}

#[tokio::test]
async fn coroutines_and_asynchronous_generators_run_in_every_style() {
    let containers = containers();
    let body = "
    import asyncio
    await asyncio.sleep(0.001)
    if event == 'loop': return id(asyncio.get_running_loop())
    if event == 'raise': raise ValueError('in a coroutine')
    if event == 'exit': raise SystemExit(3)
    if event == 'pieces': return pieces()
    if event == 'plain pieces': return (piece for piece in ['a', 'b'])
    return [event]
async def pieces():
    import asyncio
    # What begins and ends in one task.
    async with Manager():
        for piece in 'abc':
            await asyncio.sleep(0.001)
            yield piece
class Manager:
    async def __aenter__(self):
        import asyncio
        self.task = asyncio.current_task()
    async def __aexit__(self, *error):
        import asyncio
        assert asyncio.current_task() is self.task
";
    let f = format!("async def f(event):{body}");
    let legacy = format!("async def handler(conn, event):{body}");
    let lambda = format!("async def lambda_handler(event, context):{body}");
    for concurrency in ["", "concurrency = 3"] {
        for file in [("f.py", &*f), ("lambda_func.py", &*legacy), ("lambda_function.py", &*lambda)]
        {
            in_each(&containers, &[file, ("ol.toml", concurrency)], async |sandbox| {
                assert_eq!(ask(sandbox, json!("x")).await, json!(["x"]));
                let error = call(sandbox, "\"raise\"").await.unwrap_err();
                let told = error.function_error.unwrap();
                assert_eq!((&*told.kind, &*told.message), ("ValueError", "in a coroutine"));
                let stack = told.stack_trace.join("");
                assert!(
                    stack.contains("raise ValueError") && !stack.contains("bootstrap"),
                    "{stack}"
                );
                for pieces in ["pieces", "plain pieces"] {
                    let text = call(sandbox, &json!(pieces).to_string()).await.unwrap();
                    assert_eq!(text, if pieces == "pieces" { "abc" } else { "ab" });
                }
                if concurrency.is_empty() {
                    // Clients that live in the event loop outlive a call.
                    let looped = ask(sandbox, json!("loop")).await;
                    assert_eq!(ask(sandbox, json!("loop")).await, looped);
                }
                let error = call(sandbox, "\"exit\"").await.unwrap_err();
                assert!(error.message.contains("exited with 3"), "{error}");
            })
            .await;
        }
    }
    let generator = "
async def f(event):
    if event['rawPath'] == '/early': raise KeyError('before the first piece')
    yield {'statusCode': 201, 'headers': {'content-type': 'text/x-a'}}
    yield 'one'
    if event['rawPath'] == '/late': raise KeyError('after it')
    yield b'two'
";
    in_each(
        &containers,
        &[("f.py", generator), ("ol.toml", "event = \"http\"")],
        async |sandbox| {
            let reply = at(sandbox, "/", &json!(1)).await.unwrap();
            assert_eq!(
                (reply.status.as_u16(), reply.headers["content-type"].as_bytes()),
                (201, &b"text/x-a"[..])
            );
            let (text, completion) = read(reply).await;
            assert_eq!(text, "onetwo");
            assert!(completion.reusable && completion.failure.is_none());
            let error = at(sandbox, "/early", &json!(1)).await.unwrap_err();
            assert!(error.message.contains("before the first piece"), "{error}");
            let failure =
                at(sandbox, "/late", &json!(1)).await.unwrap().done.await.failure.unwrap();
            assert!(failure.message.contains("after it"), "{failure}");
        },
    )
    .await;
    shut_down(containers).await;
}

#[tokio::test]
async fn handlers_in_awss_style_return_decimals_and_bytes() {
    let containers = containers();
    let code = "
from decimal import Decimal
values = {
    'decimal': {'n': Decimal('1.10'), 'many': (Decimal('100000000000000000000.5'), 1, None), 2: True},
    'bytes': [b'text', {'b': 'ü'.encode()}],
    'surrogate': [Decimal(1), '\\ud800'],
    'set': {1}, 'nan': Decimal('NaN'),
}
def lambda_handler(event, context):
    return values[event]
f = lambda event: values[event]
";
    in_each(&containers, &[("lambda_function.py", code)], async |sandbox| {
        let text = call(sandbox, "\"decimal\"").await.unwrap();
        let expected = r#"{"n": 1.10, "many": [100000000000000000000.5, 1, null], "2": true}"#;
        assert_eq!(text, expected);
        assert_eq!(call(sandbox, "\"bytes\"").await.unwrap(), r#"["text", {"b": "ü"}]"#);
        assert_eq!(call(sandbox, "\"surrogate\"").await.unwrap(), r#"[1, "\ud800"]"#);
        for bad in ["set", "nan"] {
            let error = call(sandbox, &json!(bad).to_string()).await.unwrap_err();
            assert_eq!(error.function_error.unwrap().kind, "Runtime.MarshalError");
        }
    })
    .await;
    in_each(&containers, &[("f.py", code)], async |sandbox| {
        let error = call(sandbox, "\"decimal\"").await.unwrap_err();
        assert!(error.message.contains("Decimal"), "{error}");
    })
    .await;
    shut_down(containers).await;
}

/// The lines that came since the last look.
async fn lines(containers: &Containers, last: &str) -> Vec<String> {
    let lines = &containers.setup.lines;
    eventually(last, || async { lines.texts().iter().any(|line| line.contains(last)) }).await;
    std::mem::take(&mut *lines.0.lock().unwrap()).into_iter().map(|(.., text)| text).collect()
}

#[tokio::test]
async fn the_root_logger_has_a_handler_in_awss_style() {
    let containers = containers();
    let code = "
import logging
logging.getLogger().setLevel(logging.INFO)
logging.basicConfig(format='not used')
def lambda_handler(event, context):
    logging.debug('not shown')
    logging.info('told %d', 7, extra={'order': 12})
    try: 1 / 0
    except ZeroDivisionError: logging.exception('it failed')
    logging.getLogger('other').warning('the end')
";
    in_each(&containers, &[("lambda_function.py", code)], async |sandbox| {
        call(sandbox, "1").await.unwrap();
        let lines = lines(&containers, "the end").await;
        let first: Vec<&str> = lines[0].split('\t').collect();
        assert!(
            matches!(&first[..], ["[INFO]", time, "r", "told 7"] if time.ends_with('Z')),
            "{lines:?}"
        );
        assert!(lines.iter().any(|line| line.contains("ZeroDivisionError")), "{lines:?}");
        assert!(!lines.iter().any(|line| line.contains("not shown")), "{lines:?}");
    })
    .await;
    let json_format = ("ol.toml", "environment = { AWS_LAMBDA_LOG_FORMAT = \"JSON\" }");
    in_each(&containers, &[("lambda_function.py", code), json_format], async |sandbox| {
        call(sandbox, "1").await.unwrap();
        let lines = lines(&containers, "the end").await;
        let lines: Vec<Value> =
            lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [info, error, end] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!(
            (&info["level"], &info["message"], &info["requestId"]),
            (&json!("INFO"), &json!("told 7"), &json!("r"))
        );
        assert_eq!(info["order"], 12);
        assert_eq!(
            (&error["errorType"], &error["message"]),
            (&json!("ZeroDivisionError"), &json!("it failed"))
        );
        assert_eq!((&end["logger"], &end["level"]), (&json!("other"), &json!("WARNING")));
    })
    .await;
    let node = "
exports.handler = async () => {
    console.debug('hidden');
    console.info('told %d', 7);
    console.error(new TypeError('it failed'));
    console.log({a: 1});
    console.warn('the end');
};
";
    let manifest =
        "environment = { AWS_LAMBDA_LOG_FORMAT = \"JSON\", AWS_LAMBDA_LOG_LEVEL = \"INFO\" }";
    in_each(&containers, &[("index.js", node), ("ol.toml", manifest)], async |sandbox| {
        call(sandbox, "1").await.unwrap();
        let lines = lines(&containers, "the end").await;
        let lines: Vec<Value> =
            lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [info, error, object, _] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!(
            (&info["level"], &info["message"], &info["requestId"]),
            (&json!("INFO"), &json!("told 7"), &json!("r"))
        );
        assert_eq!(
            (&error["errorType"], &error["errorMessage"]),
            (&json!("TypeError"), &json!("it failed"))
        );
        assert_eq!(object["message"], json!({"a": 1}));
    })
    .await;
    // Its own module is left alone, and other styles have none.
    let own = [
        ("lambda_function.py", "import logging\ndef lambda_handler(e, c): return logging.V"),
        ("logging.py", "V = 1"),
    ];
    in_each(&containers, &own, async |sandbox| {
        assert_eq!(ask(sandbox, json!(1)).await, 1);
    })
    .await;
    let plain = [("f.py", "import logging\ndef f(event): return len(logging.root.handlers)")];
    in_each(&containers, &plain, async |sandbox| {
        assert_eq!(ask(sandbox, json!(1)).await, 0);
    })
    .await;
    shut_down(containers).await;
}

#[tokio::test]
async fn packages_are_found_where_layers_have_them() {
    let containers = containers();
    let version = std::process::Command::new("python3")
        .args(["-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
        .output()
        .unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let site = format!("python/lib/python{}/site-packages/one.py", version.trim());
    let files = [
        (
            "f.py",
            "import one, two, token\ndef f(event): return [one.V, two.V, hasattr(token, 'V')]",
        ),
        (&*site, "V = 1"),
        ("python/two.py", "V = 2"),
        // Python's own come first.
        ("python/token.py", "V = 3"),
    ];
    in_each(&containers, &files, async |sandbox| {
        assert_eq!(ask(sandbox, json!(1)).await, json!([1, 2, false]));
    })
    .await;
    let package = [
        ("nodejs/node_modules/pad/package.json", "{\"name\": \"pad\", \"main\": \"pad.js\"}"),
        ("nodejs/node_modules/pad/pad.js", "module.exports = (n) => '  ' + n;"),
    ];
    let common = "const pad = require('pad'); exports.handler = async (e) => pad(e);";
    in_each(&containers, &[("index.js", common), package[0], package[1]], async |sandbox| {
        assert_eq!(ask(sandbox, json!(1)).await, "  1");
    })
    .await;
    shut_down(containers).await;
}

#[tokio::test]
async fn what_the_manifest_sets_goes_before_our_defaults() {
    let containers = containers();
    const NAMES: &str = "['AWS_REGION', 'AWS_DEFAULT_REGION', 'TZ', 'LANG']";
    let python = format!("import os\ndef f(event): return [os.environ[name] for name in {NAMES}]");
    let node = format!("exports.handler = async () => {NAMES}.map((name) => process.env[name]);");
    for file in [("f.py", &*python), ("index.js", &*node)] {
        for (environment, expected) in [
            ("", json!(["local", "local", ":UTC", "C.UTF-8"])),
            (
                "AWS_REGION = \"eu-central-1\"",
                json!(["eu-central-1", "eu-central-1", ":UTC", "C.UTF-8"]),
            ),
            (
                "AWS_DEFAULT_REGION = \"a\"\nTZ = \"Europe/Berlin\"",
                json!(["a", "a", "Europe/Berlin", "C.UTF-8"]),
            ),
            (
                "AWS_REGION = \"a\"\nAWS_DEFAULT_REGION = \"b\"",
                json!(["a", "b", ":UTC", "C.UTF-8"]),
            ),
        ] {
            let manifest = format!("[environment]\n{environment}");
            in_each(&containers, &[file, ("ol.toml", &*manifest)], async |sandbox| {
                assert_eq!(ask(sandbox, json!(1)).await, expected);
            })
            .await;
        }
    }
    shut_down(containers).await;
}
