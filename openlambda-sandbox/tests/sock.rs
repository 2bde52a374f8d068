//! Lean containers run functions of every kind. As root and, by the last test, as an ordinary user.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/containers.rs"]
mod containers;

use openlambda_core::sandbox::SandboxFactory;
use serde_json::json;

use containers::{again_as_an_ordinary_user, ask, containers};

#[tokio::test(flavor = "multi_thread")]
async fn a_function_finds_itself_at_home() {
    let containers = containers();
    containers.factory.probe().await.unwrap();
    let code = "
import getpass, os, socket
def f(event):
    with open(os.environ['HOME'] + '/file', 'w') as file: file.write('x')
    return [os.getcwd(), getpass.getuser(), socket.gethostname(), os.environ['TMPDIR'], os.listdir('/tmp'), event]
";
    let sandbox = containers.create(containers.spec(&[("f.py", code)])).await;
    let expected = json!(["/var/task", "sandbox", "sandbox", "/tmp", ["file"], 1]);
    assert_eq!(ask(&*sandbox, json!(1)).await, expected);
    containers.factory.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_in_shell_answers() {
    let containers = containers();
    let script = r#"#!/bin/sh
set -eu
api="http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation"
while true; do
    curl -sS -D /tmp/head -o /tmp/event "$api/next"
    id=$(tr -d '\r' < /tmp/head | sed -n 's/^[Ll]ambda-[Rr]untime-[Aa]ws-[Rr]equest-[Ii]d: //p')
    # A reader that stops early ends the writer, as a shell expects.
    yes | head -n 1 > /dev/null
    echo "{\"echo\": $(cat /tmp/event), \"in\": \"$PWD\"}" | curl -sS -o /dev/null -d @- "$api/$id/response"
done
"#;
    let sandbox = containers.create(containers.spec(&[("bootstrap", script)])).await;
    for n in 0..3 {
        assert_eq!(ask(&*sandbox, json!(n)).await, json!({"echo": n, "in": "/var/task"}));
    }
    containers.factory.shutdown().await;
}

#[test]
fn everything_again_as_an_ordinary_user() {
    again_as_an_ordinary_user("everything_again_as_an_ordinary_user");
}
