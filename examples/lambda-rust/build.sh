#!/bin/sh
# Makes a folder that can be deployed: build.sh FOLDER. The program is static, so any image runs it.
set -eu
folder=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")"
target=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/openlambda/lambda-rust}
# Named, so that what runs in the compiler (procedural macros) is not made static too.
machine=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --release --locked --target "$machine" --target-dir "$target"
cp "$target/$machine/release/bootstrap" ol.toml "$folder"
