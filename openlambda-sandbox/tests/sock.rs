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
    places = [os.listdir('/host/tmp'), os.listdir('/handler')]
    return [os.getcwd(), getpass.getuser(), socket.gethostname(), os.environ['TMPDIR'], os.listdir('/tmp'), places, event]
";
    let sandbox = containers.create(containers.spec(&[("f.py", code)])).await;
    // The Go project's places, too.
    let places = [["file"], ["f.py"]];
    let expected = json!(["/var/task", "sandbox", "sandbox", "/tmp", ["file"], places, 1]);
    assert_eq!(ask(&*sandbox, json!(1)).await, expected);
    let volumes = "[[volumes]]\nname = \"a\"\npath = \"/host/tmp\"\n[[volumes]]\nname = \"b\"\npath = \"/handler\"\n";
    let own = [
        (
            "f.py",
            "import os\ndef f(event): return os.listdir('/host/tmp') + os.listdir('/handler')",
        ),
        ("ol.toml", volumes),
    ];
    let sandbox = containers.create(containers.spec(&own)).await;
    assert_eq!(ask(&*sandbox, json!(1)).await, json!([]));
    containers.factory.shutdown().await;
}

/// What programs find in /dev, as they use it.
#[tokio::test(flavor = "multi_thread")]
async fn output_can_be_opened_by_name_and_a_terminal_can_be_had() {
    let containers = containers();
    let code = "
import os, pty, subprocess, sys
def sh(command): return subprocess.run(command, shell=True).returncode
def f(event):
    told = []
    for name in ['/dev/stdout', '/dev/stderr', '/dev/fd/1', '/dev/fd/2', '/proc/self/fd/1']:
        told.append(sh(f'echo a shell to {name} > {name}') + sh(f'echo a shell adds to {name} >> {name}'))
        with open(name, 'w') as file: print('Python to', name, file=file)
    told.append(subprocess.run('cat /dev/stdin | tee /dev/stderr > /dev/fd/1', shell=True, input=b'by tee\\n').returncode)
    told.append(sh('cat < /dev/stdin'))
    r, w = os.pipe()
    os.write(w, b'own'); os.close(w)
    with open(f'/dev/fd/{r}') as file: told.append(file.read())
    pid, terminal = pty.fork()
    if pid == 0: os.execv('/bin/sh', ['sh', '-c', 'test -t 0 && test -t 1 && tty && echo by name > /dev/tty && stty size'])
    said = b''
    try:
        while data := os.read(terminal, 1000): said += data
    except OSError: pass
    os.waitpid(pid, 0); os.close(terminal)
    told.append(said.decode().split())
    told.append(subprocess.run(['script', '-qec', 'echo in a script', '/dev/null'], capture_output=True).stdout.decode().split())
    for n in range(20):
        for fd in os.openpty(): os.close(fd)
    told.append(sorted(os.listdir('/dev/pts')))
    told.append([sorted(os.listdir('/dev/shm')), oct(os.stat('/dev/shm').st_mode)])
    return told
";
    let sandbox = containers.create(containers.spec(&[("f.py", code)])).await;
    let expected = json!([
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        "own",
        ["/dev/pts/0", "by", "name", "0", "0"],
        ["in", "a", "script"],
        ["ptmx"],
        [[], "0o41777"],
    ]);
    assert_eq!(ask(&*sandbox, json!(1)).await, expected);
    let said = containers.setup.lines.texts();
    for name in ["/dev/stdout", "/dev/stderr", "/dev/fd/1", "/dev/fd/2", "/proc/self/fd/1"] {
        for line in [
            format!("a shell to {name}"),
            format!("a shell adds to {name}"),
            format!("Python to {name}"),
        ] {
            assert!(said.contains(&line), "{line}: {said:?}");
        }
    }
    assert_eq!(said.iter().filter(|line| *line == "by tee").count(), 2, "{said:?}");
    let code = "
const fs = require('fs');
const { execSync } = require('child_process');
exports.f = async () => {
  for (const name of ['/dev/stdout', '/dev/stderr', '/dev/fd/1', '/dev/fd/2']) {
    fs.writeFileSync(name, `Node to ${name}\\n`);
    execSync(`echo its shell to ${name} > ${name}`, { stdio: 'inherit' });
  }
};
";
    let files = [("f.js", code), ("ol.toml", "handler = \"f.f\"")];
    let sandbox = containers.create(containers.spec(&files)).await;
    ask(&*sandbox, json!(1)).await;
    let said = containers.setup.lines.texts();
    for name in ["/dev/stdout", "/dev/stderr", "/dev/fd/1", "/dev/fd/2"] {
        for line in [format!("Node to {name}"), format!("its shell to {name}")] {
            assert!(said.contains(&line), "{line}: {said:?}");
        }
    }
    containers.factory.shutdown().await;
}

/// One sandbox's terminals and shared memory are not another's.
#[tokio::test(flavor = "multi_thread")]
async fn terminals_and_shared_memory_are_its_own() {
    let containers = containers();
    let code = "
import os
kept = []
def f(event):
    if event: kept.append(os.openpty()); open('/dev/shm/x', 'w').close()
    return [sorted(os.listdir('/dev/pts')), os.listdir('/dev/shm')]
";
    let spec = containers.spec(&[("f.py", code)]);
    let one = containers.create(spec.clone()).await;
    let other = containers.create(spec).await;
    assert_eq!(ask(&*one, json!(true)).await, json!([["0", "ptmx"], ["x"]]));
    assert_eq!(ask(&*other, json!(false)).await, json!([["ptmx"], []]));
    assert_eq!(ask(&*other, json!(true)).await, json!([["0", "ptmx"], ["x"]]));
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
