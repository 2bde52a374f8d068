#!/bin/sh
# Makes ./bootstrap. What cargo leaves behind stays out of this folder, since all of it is deployed.
set -eu
cd "$(dirname "$0")"
target=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/openlambda/{{name}}}
cargo build --release --target-dir "$target"
cp "$target/release/bootstrap" bootstrap
