#!/bin/sh
# The platform at work: a cluster on this machine, a chat room deployed to it, and three calls.
#
# usage: examples/demo.sh [OL]      OL: the command-line program, bin/ol or target/release/ol by default
set -eu
cd "$(dirname "$0")/.."
[ -x bin/ol ] && ol=bin/ol || ol=target/release/ol
ol=${1:-$ol}

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] && [ -z "${NO_COLOR:-}" ] || say() { printf '\n%s\n' "$*"; }
# With curl, as anybody would; where it is missing, with ol itself.
if command -v curl >/dev/null 2>&1; then
    shown() { printf '%s' "curl -w '\\n' $url -d '$1'"; }
    send() { curl -sS -w '\n' "$url" -d "$1"; }
else
    shown() { printf '%s' "ol invoke pychat -d '$1'"; }
    send() { $ol invoke pychat -d "$1" && echo; }
fi
call() { # call BODY
    say "\$ $(shown "$1")"
    send "$1"
}

say "\$ ol up --detach"
# Somebody else may have the usual port; a cluster that runs already is taken as it is.
if ! message=$($ol up --detach 2>&1); then
    case $message in
    *"is in use"*) $ol up --detach --listen 127.0.0.1:0 ;;
    *) echo "$message" >&2; exit 1 ;;
    esac
else
    echo "$message"
fi

say "\$ ol deploy examples/functions/pychat"
url=$($ol deploy examples/functions/pychat)
echo "$url"

call '{"op": "init"}'

poll='{"op": "updates", "ts": "0"}'
say "\$ $(shown "$poll") &    (it waits for a message)"
answer=$(mktemp)
trap 'rm -f "$answer"' EXIT
send "$poll" >"$answer" &
waiting=$!
sleep 1
if ! kill -0 "$waiting" 2>/dev/null; then
    echo "updates did not wait for a message; it answered: $(cat "$answer")" >&2
    exit 1
fi

call '{"op": "msg", "msg": "hello"}'

say "... and updates answers:"
wait "$waiting"
cat "$answer"
grep -q '"msg": "hello"' "$answer"

say "The cluster goes on: \`$ol status\` shows it, \`$ol logs pychat\` what pychat printed."
echo "Stop it with: $ol down"
