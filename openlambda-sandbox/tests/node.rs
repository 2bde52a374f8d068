//! Functions in Node.js: what handlers find, what they may do wrong, and what is said of it. With real
//! processes, and in lean containers where those make a difference.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;
#[path = "common/containers.rs"]
mod containers;

use std::fs;
use std::path::Path;

use openlambda_core::failure::{FunctionError, Started};
use openlambda_core::sandbox::{
    Exit, LogStream, Sandbox, SandboxError, SandboxErrorKind, SandboxFactory,
};
use openlambda_sandbox::find_node;
use openlambda_sandbox::process::ProcessFactory;
use serde_json::{Value, json};

use common::{Setup, call, config, eventually, invocation, own_mark, read, setup};
use containers::{ask, containers, containers_with, copy_program};

/// What the handler said, of a call that fails.
async fn told(sandbox: &dyn Sandbox, event: Value) -> (SandboxError, FunctionError) {
    let mut error = call(sandbox, &event.to_string()).await.unwrap_err();
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Function, Started::Yes), "{error}");
    let told = *error.function_error.take().unwrap();
    (error, told)
}

#[tokio::test]
async fn handlers_are_found_in_modules_of_every_form() {
    let setup = setup();
    const COMMON: &str = "exports.handler = async (event) => ['common', event];";
    const MODULE: &str = "const two = await 2; export const handler = async (e) => ['es', e, two];";
    const PACKAGE: (&str, &str) = ("package.json", "{\"type\": \"module\"}");
    for (files, expected) in [
        (&[("index.js", COMMON)][..], json!(["common", 1])),
        (&[("index.mjs", MODULE)], json!(["es", 1, 2])),
        (&[("index.js", MODULE), PACKAGE], json!(["es", 1, 2])),
        (&[("index.cjs", COMMON), PACKAGE], json!(["common", 1])),
        // A package.json further in counts more than one further out.
        (
            &[
                ("lib/app.js", COMMON),
                ("lib/package.json", "{}"),
                PACKAGE,
                ("ol.toml", "handler = \"lib/app.handler\""),
            ],
            json!(["common", 1]),
        ),
        (
            &[
                (
                    "app.mjs",
                    "export const api = {v1: {word: 'w', get(e) { return [this.word, e]; }}};",
                ),
                ("ol.toml", "handler = \"app.api.v1.get\""),
            ],
            json!(["w", 1]),
        ),
        // Packages lie beside the function, as npm leaves them.
        (
            &[
                ("index.mjs", "import pad from 'pad'; export const handler = async (e) => pad(e);"),
                ("node_modules/pad/package.json", "{\"name\": \"pad\", \"main\": \"pad.js\"}"),
                ("node_modules/pad/pad.js", "module.exports = (n) => '  ' + n;"),
            ],
            json!("  1"),
        ),
    ] {
        let sandbox = setup.create(setup.spec(files)).await;
        assert_eq!(ask(&*sandbox, json!(1)).await, expected, "{files:?}");
    }
    setup.factory.shutdown().await;
}

#[tokio::test]
async fn handlers_answer_by_promise_by_callback_or_at_once() {
    let setup = setup();
    const CODE: &str = "
const later = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const ways = {
    async promise() { await later(5); return 'promise'; },
    async nothing() {},
    async cyclic() { const a = {}; a.a = a; return a; },
    thenable() { return {then: (resolve) => setTimeout(resolve, 1, 'thenable')}; },
    value() { return 'value'; },
    callback(event, context, callback) { setTimeout(callback, 5, null, 'callback'); },
    at_once(event, context, callback) { callback(null, 'at once'); },
    failing(event, context, callback) { callback('no luck'); },
    done(event, context) { setImmediate(context.done, null, 'done'); },
    succeed(event, context) { context.succeed('succeed'); context.fail(new Error('too late')); },
    silent() {},
    // What is returned with them is no reply.
    timer: (event, context) => setTimeout(context.succeed, 5, 'timer'),
    server: (event, context) => require('net').createServer().unref().listen(0, () => context.done(null, 'server')),
    proxies: (event, context) => ({ promise: new Promise((resolve) => setTimeout(resolve, 5)).then(() => context.succeed('proxied')) }),
    // The reply waits for what is left to do, unless it is told not to.
    waits(event, context, callback) {
        callback(null, globalThis.order = []);
        setTimeout(() => order.push('later'), 20);
    },
    hurries(event, context, callback) {
        context.callbackWaitsForEmptyEventLoop = false;
        const interval = setInterval(() => {}, 1000);
        callback(null, 'hurries');
    },
};
exports.handler = (event, context, callback) => ways[event](event, context, callback);
exports.plain = (event, context) => ways[event](event, context);
Object.assign(exports, ways);
";
    let sandbox = setup.create(setup.spec(&[("index.js", CODE)])).await;
    for (way, expected) in [
        ("promise", json!("promise")),
        ("nothing", Value::Null),
        ("thenable", json!("thenable")),
        ("callback", json!("callback")),
        ("at_once", json!("at once")),
        ("done", json!("done")),
        ("succeed", json!("succeed")),
        ("silent", Value::Null),
        ("timer", json!("timer")),
        ("server", json!("server")),
        ("proxies", json!("proxied")),
        ("waits", json!(["later"])),
        ("hurries", json!("hurries")),
    ] {
        assert_eq!(ask(&*sandbox, json!(way)).await, expected, "{way}");
    }
    let (error, words) = told(&*sandbox, json!("failing")).await;
    assert_eq!((&*words.kind, &*words.message, error.reusable), ("string", "no luck", true));
    let (_, words) = told(&*sandbox, json!("cyclic")).await;
    assert_eq!(words.kind, "Runtime.MarshalError");
    assert!(words.message.starts_with("Unable to marshal response: "), "{}", words.message);
    let plain = ("ol.toml", "runtime = \"node\"\nhandler = \"index.plain\"");
    let sandbox = setup.create(setup.spec(&[("index.js", CODE), plain])).await;
    for (way, expected) in
        [("value", "value"), ("timer", "timer"), ("server", "server"), ("proxies", "proxied")]
    {
        assert_eq!(ask(&*sandbox, json!(way)).await, expected, "{way}");
    }
    // A handler that takes no callback may return what it has.
    for style in ["", "style = \"event\"\n"] {
        let manifest = format!("{style}runtime = \"node\"\nhandler = \"index.value\"");
        let value = setup.create(setup.spec(&[("index.js", CODE), ("ol.toml", &manifest)])).await;
        assert_eq!(ask(&*value, json!("value")).await, "value");
    }
    setup.factory.shutdown().await;
}

#[tokio::test]
async fn the_context_is_as_on_aws() {
    let setup = setup();
    let code = "
exports.handler = async (event, context) => ({
    left: context.getRemainingTimeInMillis() > 0 && context.getRemainingTimeInMillis() <= 30000,
    id: context.awsRequestId, name: context.functionName, version: context.functionVersion,
    memory: context.memoryLimitInMB, arn: context.invokedFunctionArn,
    client: context.clientContext.custom, trace: process.env._X_AMZN_TRACE_ID,
    cwd: process.cwd() === process.env.LAMBDA_TASK_ROOT, waits: context.callbackWaitsForEmptyEventLoop,
});
";
    let sandbox = setup.create(setup.spec(&[("index.js", code)])).await;
    let mut call = invocation("the-id", "1");
    for (name, value) in [
        ("x-amzn-trace-id", "Root=1-a-b"),
        // {"custom": {"ü": 1}, "client": {"app_title": "t"}}
        (
            "x-amz-client-context",
            "eyJjdXN0b20iOiB7IsO8IjogMX0sICJjbGllbnQiOiB7ImFwcF90aXRsZSI6ICJ0In19",
        ),
    ] {
        call.head.headers.insert(name, value.parse().unwrap());
    }
    let (reply, done) = read(sandbox.invoke(call).await.unwrap()).await;
    let expected = json!({
        "left": true, "id": "the-id", "name": "tested", "version": "$LATEST", "memory": "128",
        "arn": "arn:aws:lambda:local:000000000000:function:tested", "client": {"ü": 1},
        "trace": "Root=1-a-b", "cwd": true, "waits": true,
    });
    assert_eq!(serde_json::from_str::<Value>(&reply).unwrap(), expected);
    assert!(done.reusable);
    setup.factory.shutdown().await;
}

#[tokio::test]
async fn errors_are_told_with_type_message_and_stack() {
    let setup = setup();
    let code = "
class NotThere extends Error { constructor(m) { super(m); this.name = 'NotThere'; } }
function inner(event) { throw new Function('NotThere', event + '; throw 0')(NotThere); }
exports.handler = (event) => {
    if (!event.startsWith('async ')) return inner(event);
    return new Promise((resolve, reject) => setTimeout(() => {
        try { inner(event.slice(6)); } catch (error) { reject(error); }
    }, 1));
};
";
    let sandbox = setup.create(setup.spec(&[("index.js", code)])).await;
    for (throws, kind, message) in [
        ("throw new TypeError('quite wrong')", "TypeError", "quite wrong"),
        ("async throw new NotThere('ü 中 🦀')", "NotThere", "ü 中 🦀"),
        ("throw new Error('', {cause: new RangeError('the cause')})", "Error", ""),
        ("null.x", "TypeError", "Cannot read properties of null (reading 'x')"),
        ("throw 'text'", "string", "text"),
        ("async throw {a: [1]}", "object", "{ a: [ 1 ] }"),
        ("throw undefined", "undefined", "undefined"),
        ("throw new Proxy({}, {get() { throw 1; }, has() { throw 1; }})", "object", "{}"),
    ] {
        let (error, told) = told(&*sandbox, json!(throws)).await;
        assert_eq!((&*told.kind, &*told.message), (kind, message), "{throws}");
        assert!(error.reusable);
        let stack = told.stack_trace.join("\n");
        if throws.contains(" new ") && !throws.contains("Proxy") {
            assert!(stack.contains("at inner (") && stack.contains("index.js:3:"), "{stack}");
        }
        assert!(!stack.contains("bootstrap"), "{stack}");
        assert_eq!(stack.contains("Caused by: RangeError: the cause"), throws.contains("cause"));
    }
    setup.factory.shutdown().await;
}

/// Nobody catches these, so the process ends; the call that runs learns why.
#[tokio::test]
async fn what_nobody_catches_is_the_calls_error_and_ends_the_instance() {
    let setup = setup();
    let code = "
const never = new Promise(() => {});
exports.handler = (event) => {
    const ways = {
        uncaught: () => setTimeout(() => { throw new RangeError('in a timer'); }, 1),
        rejected: () => { Promise.reject(new RangeError('forgotten')); },
        exit: () => process.exit(7),
        later: () => setTimeout(() => process.exit(0), 1),
        killed: () => process.kill(process.pid, 'SIGKILL'),
        closed: () => { for (let fd = 3; fd < 100; fd++) try { require('fs').closeSync(fd); } catch {} },
    };
    ways[event]();
    setInterval(() => {}, 1000);
    return never;
};
";
    for slots in [1, 2] {
        let manifest = format!("concurrency = {slots}");
        let files = [("index.js", code), ("ol.toml", &manifest)];
        for (way, kind, message, exit) in [
            ("uncaught", "RangeError", "in a timer", 129),
            ("rejected", "Runtime.UnhandledPromiseRejection", "forgotten", 129),
            ("exit", "Runtime.ExitError", "The handler called process.exit with 7", 7),
            ("later", "Runtime.ExitError", "The handler called process.exit with 0", 0),
        ] {
            let sandbox = setup.create(setup.spec(&files)).await;
            let (error, told) = told(&*sandbox, json!(way)).await;
            assert_eq!((&*told.kind, &*told.message), (kind, message), "{way}");
            assert!(!error.reusable, "{way}");
            assert_eq!(sandbox.exited().await, Exit::Status(exit), "{way}");
        }
        let sandbox = setup.create(setup.spec(&files)).await;
        let error = call(&*sandbox, "\"killed\"").await.unwrap_err();
        assert_eq!((error.kind, error.started), (SandboxErrorKind::Exited, Started::Yes));
        assert_eq!(sandbox.exited().await, Exit::Signal(9));
    }
    // Between two calls there is nobody to tell but the log.
    let idle =
        "exports.handler = async () => { setTimeout(() => { throw new Error('too late'); }, 50); }";
    let sandbox = setup.create(setup.spec(&[("index.js", idle)])).await;
    assert_eq!(ask(&*sandbox, json!(1)).await, Value::Null);
    assert_eq!(sandbox.exited().await, Exit::Status(129));
    assert!(setup.lines.texts().iter().any(|line| line.contains("Error: too late")));
    eventually("nothing is left", || async { setup.leftovers().is_empty() }).await;
}

#[tokio::test]
async fn a_promise_that_can_never_settle_is_told() {
    let setup = setup();
    let code = "exports.handler = (event) => event ? new Promise(() => {}) : 'well';";
    let sandbox = setup.create(setup.spec(&[("index.js", code)])).await;
    for _ in 0..2 {
        let (error, told) = told(&*sandbox, json!(1)).await;
        assert_eq!((&*told.kind, error.reusable), ("Runtime.UnsettledPromise", true));
        assert!(told.message.contains("whose resolve is never called"), "{}", told.message);
        assert_eq!(ask(&*sandbox, json!(0)).await, "well");
    }
    setup.factory.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_loaded_is_told_with_its_place() {
    let setup = setup();
    const BAD: &str = "\nlet a = 1;\nexports.handler = async (event) => {\n  return event +\n}\n";
    const GOOD: &str = "exports.handler = () => {}; exports.number = 1;";
    let import_error = "Runtime.ImportModuleError";
    let syntax_error = "Runtime.UserCodeSyntaxError";
    for (files, kind, message) in [
        (&[("index.js", BAD)][..], syntax_error, "index.js, line 5: Unexpected token '}'"),
        (&[("index.mjs", BAD)], syntax_error, "index.mjs, line 5: Unexpected token '}'"),
        (
            &[("index.js", "require('./lib/b.js')"), ("lib/b.js", BAD)],
            syntax_error,
            "lib/b.js, line 5: Unexpected token '}'",
        ),
        (
            &[("index.mjs", "import './lib/b.mjs'"), ("lib/b.mjs", BAD), ("lib/a.mjs", "")],
            syntax_error,
            "lib/b.mjs, line 5: Unexpected token '}'",
        ),
        (
            &[("index.mjs", "import {nope} from 'node:fs'")],
            syntax_error,
            "index.mjs, line 1: The requested module 'node:fs' does not provide an export named 'nope'",
        ),
        (&[("index.js", "JSON.parse('{')")], "SyntaxError", "JSON"),
        (&[("index.js", "require('left-pad')")], import_error, "install it with npm"),
        (&[("index.mjs", "import 'left-pad'")], import_error, "install it with npm"),
        (&[("index.js", "require('./gone.js')")], import_error, "Cannot find module './gone.js'"),
        (
            &[("index.js", GOOD), ("ol.toml", "runtime = \"node\"\nhandler = \"other.handler\"")],
            import_error,
            "there is no other.js, other.mjs, other.cjs; add one of them",
        ),
        (
            &[("index.js", GOOD), ("ol.toml", "handler = \"index.missing\"")],
            "Runtime.HandlerNotFound",
            "Handler 'missing' is not exported in index.js; write exports.missing = ",
        ),
        (
            &[("index.js", GOOD), ("ol.toml", "handler = \"index.number\"")],
            "Runtime.HandlerNotFound",
            "Handler 'number' is not a function in index.js",
        ),
        (
            &[("index.js", GOOD), ("ol.toml", "runtime = \"node\"\nhandler = \"index\"")],
            "Runtime.MalformedHandlerName",
            "write it as file.function",
        ),
        (
            &[
                ("index.js", GOOD),
                ("ol.toml", "runtime = \"node\"\nhandler = \"../index.handler\""),
            ],
            "Runtime.MalformedHandlerName",
            "names no function in the code",
        ),
        (&[("index.js", "throw new RangeError('at import')")], "RangeError", "at import"),
        (&[("index.mjs", "await Promise.reject(new Error('rejected'))")], "Error", "rejected"),
        (&[("index.js", "throw 5")], "number", "5"),
        (
            &[
                ("index.js", "Promise.reject(new Error('floating')); while (Date.now() < 0);"),
                ("a", ""),
            ],
            "Runtime.HandlerNotFound",
            "is not exported",
        ),
        (
            &[("index.mjs", "await new Promise(() => {})")],
            "Runtime.InitError",
            "nothing is left that its top-level await could",
        ),
        (
            &[("index.js", "process.exit(3)")],
            "Runtime.ExitError",
            "index.handler called process.exit when it was loaded, with 3",
        ),
    ] {
        let error = setup.try_create(setup.spec(files)).await.unwrap_err();
        assert_eq!((error.kind, error.started), (SandboxErrorKind::Init, Started::No), "{files:?}");
        let told = error.function_error.unwrap();
        assert_eq!(told.kind, kind, "{files:?}: {}", told.message);
        assert!(told.message.contains(message), "{files:?}: {}", told.message);
        assert_eq!(setup.leftovers(), [""; 0], "{files:?}");
    }
}

#[tokio::test]
async fn what_is_printed_reaches_the_log_with_its_request() {
    let setup = setup();
    let code = "
console.log('at the start');
exports.handler = async (event) => {
    console.log('one\\ntwo %s', {event});
    console.error('err', event);
    require('child_process').execFileSync('/bin/echo', ['from a child'], {stdio: 'inherit'});
    for (let n = 0; n < 5000; n++) console.log('line', n, 'x'.repeat(60));
    process.stdout.write('no end');
};
";
    let sandbox = setup.create(setup.spec(&[("index.js", code)])).await;
    for id in ["first", "second"] {
        read(sandbox.invoke(invocation(id, "5")).await.unwrap()).await;
    }
    let lines = setup.lines.0.lock().unwrap().clone();
    let (out, err): (Vec<_>, Vec<_>) =
        lines.into_iter().partition(|(_, stream, _)| *stream == LogStream::Stdout);
    let line =
        |id: Option<&str>, text: &str| (id.map(str::to_owned), LogStream::Stdout, text.to_owned());
    let mut expected = vec![line(None, "at the start")];
    for id in ["first", "second"] {
        for text in ["one", "two { event: 5 }", "from a child"] {
            expected.push(line(Some(id), text));
        }
        for n in 0..5000 {
            expected.push(line(Some(id), &format!("line {n} {}", "x".repeat(60))));
        }
        expected.push(line(Some(id), "no end"));
    }
    assert!(out == expected, "{} lines: {:?} …", out.len(), &out[..out.len().min(8)]);
    let texts =
        ["first", "second"].map(|id| (Some(id.to_owned()), LogStream::Stderr, "err 5".to_owned()));
    assert_eq!(err, texts);
    setup.factory.shutdown().await;
}

/// The lines of one call, in their order: stream and text.
fn lines_of(setup: &Setup, id: &str) -> Vec<(LogStream, String)> {
    let lines = setup.lines.0.lock().unwrap();
    let own = lines.iter().filter(|(of, ..)| of.as_deref() == Some(id));
    own.map(|(_, stream, text)| (*stream, text.clone())).collect()
}

#[tokio::test]
async fn the_log_has_a_call_s_lines_in_their_order_and_streams_are_as_node_s() {
    let setup = setup();
    let code = "
const { Worker, isMainThread } = require('worker_threads');
const { spawnSync } = require('child_process');
const { pipeline } = require('stream/promises');
const { Readable } = require('stream');
const { promisify } = require('util');
const ways = {
    order() {
        for (let n = 0; n < 200; n++) { console.log('out', n); console.error('err', n); }
        process.stdout.write('half, ');
        process.stderr.write('a whole one\\n');
        process.stdout.write('and half\\n');
        process.stderr.write('no end');
    },
    large() {
        // Of whole characters at every place where it could be cut.
        console.error('é'.repeat(30_000));
        console.log('x'.repeat(200_000));
        console.error('short');
    },
    async as_node() {
        const { stdout, stderr } = process;
        const told = [];
        const note = (what) => () => told.push(what);
        told.push(stdout.write('616263', 'hex', note('hex')));
        told.push(stdout.write(new Uint8Array([100, 10]), note('bytes')));
        told.push(stderr.write('\\xe9\\n', 'latin1'));
        told.push(stderr.write('', note('nothing')));
        stdout.cork(); stdout.write('corked\\n'); stdout.uncork();
        for (const wrong of [null, 5]) {
            try { stdout.write(wrong); } catch (error) { told.push(error.code); }
        }
        try { stdout.write('x', 'no such'); } catch (error) { told.push(error.code); }
        await promisify(stdout.write.bind(stdout))('awaited\\n');
        // As Node's, they stay open.
        await pipeline(Readable.from(['piped\\n']), stdout, { end: false });
        stdout.destroy();
        await new Promise((resolve) => setImmediate(resolve));
        stdout.write('again\\n');
        const write = stdout.write;
        stdout.write = (text) => { told.push(`captured ${text}`); return true; };
        console.log('mine');
        stdout.write = write;
        return [stdout.fd, stderr.fd, stdout.isTTY === undefined, stdout === process.stdout, told];
    },
    async others() {
        console.error('before');
        spawnSync('sh', ['-c', 'echo out of a child; echo err of a child >&2'], { stdio: 'inherit' });
        await new Promise((resolve) => new Worker(__filename).on('exit', resolve));
    },
    exits() {
        console.error('x'.repeat(100_000));
        process.stdout.write('y'.repeat(200_000));
        process.exit(0);
    },
};
if (isMainThread) exports.handler = async (event) => ways[event]();
else { console.log('out of a thread'); console.error('err of a thread'); }
";
    use LogStream::{Stderr, Stdout};
    for concurrency in ["1", "2"] {
        let manifest = format!("concurrency = {concurrency}");
        let files = [("index.js", code), ("ol.toml", &*manifest)];
        let sandbox = setup.create(setup.spec(&files)).await;
        let run = async |way: &str| {
            let id = format!("{way}-{concurrency}");
            let body = json!(way).to_string();
            let reply = read(sandbox.invoke(invocation(&id, body)).await?).await;
            let lines = lines_of(&setup, &id);
            Ok::<_, SandboxError>((serde_json::from_str::<Value>(&reply.0).unwrap(), lines))
        };
        let text = |stream, text: &str| (stream, text.to_owned());
        let (_, lines) = run("order").await.unwrap();
        let mut expected: Vec<_> = (0..200)
            .flat_map(|n| [(Stdout, format!("out {n}")), (Stderr, format!("err {n}"))])
            .collect();
        expected.extend([
            text(Stderr, "a whole one"),
            text(Stdout, "half, and half"),
            text(Stderr, "no end"),
        ]);
        assert!(lines == expected, "{concurrency}: {lines:?}");

        let (_, lines) = run("large").await.unwrap();
        let of = |wanted: LogStream| -> String {
            lines.iter().filter(|(stream, _)| *stream == wanted).map(|(_, text)| &**text).collect()
        };
        assert!(of(Stderr) == format!("{}short", "é".repeat(30_000)), "{concurrency}");
        assert!(of(Stdout) == "x".repeat(200_000), "{concurrency}");
        assert_eq!(lines.last().unwrap(), &text(Stderr, "short"), "{concurrency}");

        let (reply, lines) = run("as_node").await.unwrap();
        let told = json!([
            true,
            true,
            true,
            true,
            "ERR_STREAM_NULL_VALUES",
            "ERR_INVALID_ARG_TYPE",
            "ERR_UNKNOWN_ENCODING",
            "hex",
            "bytes",
            "nothing",
            "captured mine\n"
        ]);
        assert_eq!(reply, json!([1, 2, true, true, told]), "{concurrency}");
        let expected = [
            text(Stdout, "abcd"),
            text(Stderr, "\u{fffd}"),
            text(Stdout, "corked"),
            text(Stdout, "awaited"),
            text(Stdout, "piped"),
            text(Stdout, "again"),
        ];
        assert_eq!(lines, expected, "{concurrency}");

        let (_, mut lines) = run("others").await.unwrap();
        assert_eq!(lines[0], text(Stderr, "before"), "{concurrency}");
        lines.sort_by(|a, b| a.1.cmp(&b.1));
        let expected = [
            text(Stderr, "before"),
            text(Stderr, "err of a child"),
            text(Stderr, "err of a thread"),
            text(Stdout, "out of a child"),
            text(Stdout, "out of a thread"),
        ];
        assert_eq!(lines, expected, "{concurrency}");

        run("exits").await.unwrap_err();
        let lines = lines_of(&setup, &format!("exits-{concurrency}"));
        let length = |wanted: LogStream| -> usize {
            let own = lines.iter().filter(|(stream, _)| *stream == wanted);
            own.map(|(_, text)| text.len()).sum()
        };
        assert_eq!((length(Stderr), length(Stdout)), (100_000, 200_000), "{concurrency}");
    }
    setup.factory.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_calls_that_overlap_have_each_their_own_id() {
    let setup = setup();
    let code = "
const { setTimeout: later } = require('timers/promises');
let here = 0, go;
const all = new Promise((resolve) => (go = resolve));
exports.handler = async (event) => {
    console.log('begins', event);
    process.stdout.write(`in `);
    process.stderr.write(Buffer.from(`beside `));
    if (++here === 4) go();
    await all;
    await new Promise((resolve) => setTimeout(() => {
        console.error('between', event);
        resolve();
    }, event));
    await Promise.all([later(1).then(() => process.stdout.write(`parts ${event}\\nand a`))]);
    process.stdout.write(` long one ${'x'.repeat(9_000)} ${event}`);
    await later(5 - event);
};
";
    let spec = setup.spec(&[("index.js", code), ("ol.toml", "concurrency = 4")]);
    let sandbox = setup.create(spec).await;
    let calls = (0..4).map(|n| sandbox.invoke(invocation(&format!("call-{n}"), n.to_string())));
    for reply in futures_util::future::join_all(calls).await {
        read(reply.unwrap()).await;
    }
    for n in 0..4 {
        let lines = lines_of(&setup, &format!("call-{n}"));
        let expected = [
            (LogStream::Stdout, format!("begins {n}")),
            (LogStream::Stderr, format!("beside between {n}")),
            (LogStream::Stdout, format!("in parts {n}")),
            (LogStream::Stdout, format!("and a long one {} {n}", "x".repeat(9_000))),
        ];
        assert_eq!(lines, expected, "{n}");
    }
    setup.factory.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_share_one_event_loop() {
    let setup = setup();
    let code = "
let meeting = [];
exports.handler = async (event) => {
    const met = new Promise((resolve) => meeting.push(resolve));
    if (meeting.length === event) { meeting.forEach((resolve) => resolve(process.pid)); meeting = []; }
    return met;
};
";
    let spec = setup.spec(&[("index.js", code), ("ol.toml", "concurrency = 4")]);
    let sandbox = setup.create(spec).await;
    assert_eq!(sandbox.slots(), 4);
    for _ in 0..10 {
        let calls = (0..4).map(|_| ask(&*sandbox, json!(4)));
        let pids = futures_util::future::join_all(calls).await;
        assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    }
    setup.factory.shutdown().await;
}

#[tokio::test]
async fn bodies_of_any_size_and_any_text_pass() {
    let setup = setup();
    let code = "
exports.handler = async (event) => event === 'huge' ? 'x'.repeat(7 << 20) : event;
";
    let sandbox = setup.create(setup.spec(&[("index.js", code)])).await;
    let large = json!("ü中🦀".repeat(500_000));
    for event in [json!(""), json!({"a": [1.5, null, "\u{0}\u{2028}"]}), large] {
        assert!(ask(&*sandbox, event.clone()).await == event);
    }
    let error = call(&*sandbox, "\"huge\"").await.unwrap_err();
    assert_eq!((error.kind, error.reusable), (SandboxErrorKind::BadReply, true));
    assert!(error.message.contains("over 6 MiB"), "{error}");
    assert_eq!(ask(&*sandbox, json!(1)).await, 1);
    setup.factory.shutdown().await;
}

#[tokio::test]
async fn replies_can_be_streamed() {
    let setup = setup();
    let code = "
const { pipeline } = require('stream/promises');
const { Readable } = require('stream');
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
exports.handler = awslambda.streamifyResponse(async (event, stream, context) => {
    const ways = {
        async http() {
            stream = awslambda.HttpResponseStream.from(stream, {
                statusCode: 418, headers: {'x-a': 'b', 'content-type': 'text/plain'}, cookies: ['c=d'],
            });
            stream.write('first ');
            stream.write('');
            await wait(5);
            stream.write({json: 1});
            stream.end(' end');
        },
        async piped() {
            stream.setContentType('text/csv');
            await pipeline(Readable.from(Array(100).fill('a,b\\n'.repeat(1000))), stream);
        },
        async empty() { stream.end(); },
        async early() { throw new TypeError('before the first byte'); },
        async midway() { stream.write('half'); await wait(5); throw new TypeError('midway'); },
        async broken() {
            stream.write('half');
            await pipeline(async function* () { yield 'more'; throw new TypeError('midway'); }, stream);
        },
        async forgotten() { stream.write('half'); },
    };
    await ways[event]();
});
";
    let sandbox = setup.create(setup.spec(&[("index.js", code)])).await;
    let invoke = |way: &str| sandbox.invoke(invocation("r", format!("\"{way}\"")));
    for _ in 0..2 {
        let reply = invoke("http").await.unwrap();
        let head = (reply.status.as_u16(), &reply.headers["x-a"], &reply.headers["set-cookie"]);
        assert_eq!(head, (418, &"b".parse().unwrap(), &"c=d".parse().unwrap()));
        let (body, done) = read(reply).await;
        assert_eq!((&*body, done.reusable), ("first {\"json\":1} end", true));

        let reply = invoke("piped").await.unwrap();
        assert_eq!(reply.headers["content-type"], "text/csv");
        assert_eq!(read(reply).await.0, "a,b\n".repeat(100_000));
        assert_eq!(read(invoke("empty").await.unwrap()).await.0, "");

        let (error, words) = told(&*sandbox, json!("early")).await;
        assert_eq!((&*words.kind, &*words.message), ("TypeError", "before the first byte"));
        assert!(error.reusable);
        for (way, message) in [
            ("midway", "midway"),
            ("broken", "midway"),
            ("forgotten", "the response stream was never ended"),
        ] {
            let reply = invoke(way).await.unwrap();
            let error = http_body_util::BodyExt::collect(reply.body).await.unwrap_err();
            assert!(error.to_string().contains(message), "{way}: {error}");
            let done = reply.done.await;
            assert!(done.reusable && done.failure.unwrap().message.contains(message), "{way}");
        }
    }
    setup.factory.shutdown().await;
}

#[tokio::test]
async fn a_state_folder_may_have_a_long_path() {
    let setup = setup();
    let mut config = config(setup.dir.path(), &own_mark());
    config.state_dir = setup.dir.path().join("long".repeat(40)).join("Ü ".repeat(20));
    let factory = ProcessFactory::new(config).unwrap();
    let spec = setup.spec(&[("index.js", "exports.handler = async (event) => event")]);
    let sandbox = factory.create(spec).await.unwrap().sandbox;
    assert_eq!(ask(&*sandbox, json!("x")).await, "x");
    factory.shutdown().await;
}

#[tokio::test]
async fn what_node_cannot_do_here_is_told_with_the_next_step() {
    let setup = setup();
    let mut without = config(setup.dir.path(), &own_mark());
    without.state_dir = setup.dir.path().join("without");
    without.node = None;
    let mut gone = config(setup.dir.path(), &own_mark());
    gone.state_dir = setup.dir.path().join("gone");
    gone.node = Some("/no/such/node".into());
    let containers = containers_with(|config| config.node = None);
    let code = ("index.js", "exports.handler = async () => {}");
    let (lacks, asks) = (SandboxErrorKind::Resources, SandboxErrorKind::Unsupported);
    let process =
        |config| Box::new(ProcessFactory::new(config).unwrap()) as Box<dyn SandboxFactory>;
    let usual = || process(config(setup.dir.path(), &own_mark()));
    for (factory, manifest, kind, next) in [
        (process(without), "", lacks, "apt-get install nodejs"),
        (process(gone), "", lacks, "cannot be run here"),
        (usual(), "style = \"legacy\"", asks, "style = \"lambda\""),
        (usual(), "processes = 8", asks, "processes = 16"),
    ] {
        let spec = setup.spec(&[code, ("ol.toml", manifest)]);
        let error = factory.create(spec).await.unwrap_err();
        assert_eq!((error.kind, error.started), (kind, Started::No));
        assert!(error.message.contains(next), "{error}");
        factory.shutdown().await;
    }
    let error = containers.try_create(containers.spec(&[code])).await.unwrap_err();
    assert!(error.message.contains("apt-get install nodejs"), "{error}");
    containers.factory.shutdown().await;
}

const HOME: &str = "
const os = require('os'), fs = require('fs');
exports.handler = async (event) => {
    fs.writeFileSync(process.env.HOME + '/file', 'x');
    const refused = (call) => { try { call(); return null; } catch (error) { return error.code; } };
    const threads = new Set();
    await Promise.all(Array.from({length: 8}, () => fs.promises.readFile(__filename)));
    return {
        event, cwd: process.cwd(), user: os.userInfo().username, tmp: os.tmpdir(),
        task: refused(() => fs.writeFileSync('/var/task/new', '')),
        machine: refused(() => fs.readFileSync('/etc/shadow')),
        child: require('child_process').execFileSync('/bin/echo', ['child']).toString(),
    };
};
";

/// V8 reserves much memory and makes threads; the sandbox's limits and filter must let it.
#[tokio::test(flavor = "multi_thread")]
async fn lean_containers_run_it_within_their_limits() {
    let containers = containers();
    for network in ["none", "host"] {
        let manifest = format!("network = \"{network}\"\nprocesses = 16\nmemory_mb = 128");
        let spec = containers.spec(&[("index.js", HOME), ("ol.toml", &manifest)]);
        let sandbox = containers.create(spec).await;
        let expected = json!({
            "event": 1, "cwd": "/var/task", "user": "sandbox", "tmp": "/tmp", "task": "EROFS",
            "machine": "ENOENT", "child": "child\n",
        });
        for _ in 0..3 {
            assert_eq!(ask(&*sandbox, json!(1)).await, expected, "{network}");
        }
        sandbox.pause().await.unwrap();
        sandbox.resume().await.unwrap();
        assert_eq!(ask(&*sandbox, json!(1)).await, expected);
    }
    // Garbage is collected before the manifest's memory is used up.
    let garbage = "
exports.handler = async (event) => {
    let kept = [];
    for (let n = 0; n < event; n++) kept[n % 20] = Array.from({length: 100_000}, (_, i) => n + i / 3);
    return kept.length;
};
";
    let spec = containers.spec(&[("index.js", garbage), ("ol.toml", "memory_mb = 128")]);
    let sandbox = containers.create(spec).await;
    assert_eq!(ask(&*sandbox, json!(500)).await, 20);
    // Where a module cannot be parsed, a second interpreter finds the place.
    let spec = containers
        .spec(&[("index.mjs", "\n\nexport const handler = (;"), ("ol.toml", "memory_mb = 128")]);
    let error = containers.try_create(spec).await.unwrap_err();
    assert!(error.message.contains("index.mjs, line 3: Unexpected token"), "{error}");
    containers.factory.shutdown().await;
}

/// As nvm and the like install it: somewhere below a home.
#[tokio::test(flavor = "multi_thread")]
async fn lean_containers_find_a_node_outside_of_usr() {
    let place = tempfile::tempdir().unwrap();
    let bin = place.path().join("versions/node/bin");
    fs::create_dir_all(&bin).unwrap();
    let node = bin.join("node");
    let own = find_node().expect("there is a Node.js; .ci/deps installs it");
    if fs::hard_link(&own, &node).is_err() {
        copy_program(&own, &node);
    }
    let containers = containers_with(|config| config.node = Some(node.clone()));
    let code =
        "exports.handler = async () => [process.execPath, require('fs').readdirSync('/opt/node')]";
    let sandbox = containers.create(containers.spec(&[("index.js", code)])).await;
    assert_eq!(ask(&*sandbox, json!(1)).await, json!(["/opt/node/node", ["node"]]));
    containers.factory.shutdown().await;
    assert!(Path::new(&node).exists());
}

#[test]
fn everything_again_as_an_ordinary_user() {
    containers::again_as_an_ordinary_user("everything_again_as_an_ordinary_user");
}
