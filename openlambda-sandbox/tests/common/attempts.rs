//! What a function tries, and how it ended.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "it is a module of several binaries")]

use std::sync::Arc;

use openlambda_core::sandbox::Sandbox;
use serde_json::{Value, json};

use crate::containers::{Containers, ask};

/// Runs what it is told, and says how it ended.
pub const TRY: &str = r#"
import ctypes, errno, fcntl, os, resource, signal, socket, stat, struct, subprocess
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    fix = lambda a: ctypes.c_long(a) if isinstance(a, int) else a
    result = libc.syscall(ctypes.c_long(number), *map(fix, arguments))
    if result == -1: raise OSError(ctypes.get_errno(), "refused")
    return result
def write(path, text="x"):
    with open(path, "w") as file: file.write(text)
def read(path):
    with open(path) as file: return file.read()
def connect(family, address):
    with socket.socket(family) as s:
        s.settimeout(5)
        s.connect(address)
def netlink(kind, payload):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as s:
        s.send(struct.pack("IHHII", 16 + len(payload), kind, 5, 1, 0) + payload)
        code = struct.unpack("i", s.recv(4096)[16:20])[0]
        if code: raise OSError(-code, "refused")
def f(event):
    try:
        space = dict(globals())
        exec(event, space)
        return ["done", space.get("result")]
    except OSError as error:
        return [errno.errorcode.get(error.errno, str(error)), None]
"#;

pub async fn attempt(sandbox: &dyn Sandbox, code: &str) -> (String, Value) {
    let reply = ask(sandbox, json!(code)).await;
    (reply[0].as_str().unwrap().to_owned(), reply[1].clone())
}

pub async fn result(sandbox: &dyn Sandbox, code: &str) -> Value {
    let (ended, result) = attempt(sandbox, code).await;
    assert_eq!(ended, "done", "{code}");
    result
}

/// Each must fail in one of these ways.
pub async fn all_fail(sandbox: &dyn Sandbox, attempts: &[(&str, &str, &str)]) {
    let mut worked = Vec::new();
    for (code, errors, why) in attempts {
        let (ended, result) = attempt(sandbox, code).await;
        if !errors.split(' ').any(|error| error == ended) {
            worked.push(format!("{code}: {ended} {result}, not {errors} ({why})"));
        }
    }
    assert!(worked.is_empty(), "{}", worked.join("\n"));
}

pub async fn trying(containers: &Containers) -> Arc<dyn Sandbox> {
    containers.create(containers.spec(&[("f.py", TRY)])).await
}
