//! A cluster's folder on a disk that fills up, and has room again.

use std::fs;
use std::process::{Command, Stdio};

use crate::common::{program, texts};

/// A disk of its own, which is a small one. Every daemon's log gets lines that there is no room for.
const FULL: &str = r#"
set -eu
bin=$1; function=$2; disk=$3
mount -t tmpfs -o size=16m none "$disk"
ip link set lo up
ol() { command=$1; shift; "$bin/ol" "$command" --data-dir "$disk/cluster" "$@" 2>&1; }
ol up --detach --listen 127.0.0.1:0 --workers 1 --sandbox process
ol deploy "$function" --name tell
url=$(sed -n 's/.*"url": "\(.*\)",/\1/p' "$disk/cluster/cluster.json" | head -1)
ask() { curl -s --max-time 20 -o /dev/null -w '%{http_code}' "$@"; }
worker() { sed -n 's/.*"pid": \([0-9]*\).*/\1/p' "$disk/cluster/cluster.json" | tail -1; }
echo "calls: $(ask -d '"before"' "$url/run/tell")"
cat /dev/zero >"$disk/fill" 2>/dev/null || true
# More than what is left of the last page of each log.
for try in $(seq 100); do ask -d '"full"' "$url/run/nothing"; echo; done | sort | uniq -c
for try in $(seq 100); do ask -d '"full"' "$url/run/tell"; echo; done | sort | uniq -c
ol deploy "$function" --name other || true
kill -9 "$(worker)"
for try in $(seq 200); do
    code=$(ask -d '"again"' "$url/run/tell")
    [ "$code" = 200 ] && break
    sleep 0.1
done
echo "calls after its worker died: $code"
rm "$disk/fill"
for try in $(seq 200); do
    ask -d '"after"' "$url/run/tell" >/dev/null
    ol logs tell | grep -q after && break
    sleep 0.1
done
ol logs tell | grep after | head -1
ol deploy "$function" --name other
ol rm tell
echo "supervisor: $(cat "$disk"/cluster/logs/*.log | grep -c panicked || true) panics"
ol down
"#;

#[test]
fn a_full_disk_stops_no_call_and_no_daemon_and_room_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let (function, disk) = (folder.path().join("tell"), folder.path().join("disk"));
    fs::create_dir(&function).unwrap();
    fs::create_dir(&disk).unwrap();
    fs::write(function.join("f.py"), "def f(event):\n    print(event * 20)\n").unwrap();
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "sh", "-c", FULL, "full"])
        .arg(program("ol").parent().unwrap())
        .args([&function, &disk])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = texts(&output);
    for line in [
        "calls: 200",
        "100 404",
        "100 200",
        "No space left on device",
        "calls after its worker died: 200",
        "afterafter",
        "other version 1 is deployed",
        "tell is removed",
        "supervisor: 0 panics",
        "stopped",
    ] {
        assert!(out.lines().any(|said| said.contains(line)), "no \"{line}\" in\n{out}{err}");
    }
}
