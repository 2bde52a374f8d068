//! Compiles the programs that the crate carries inside of itself: the nursery, in which `sock`
//! sandboxes are born, and their init; `ol-init`, the first program of a `docker` one; and for the laboratory the function
//! that does nothing, with which starts are measured, and the least that a start can be, beside which they
//! are.
//!
//! Cargo cannot make one of a crate's programs a part of its library, so the compiler is called here.
//! They use nothing but std and the C library, which they are linked with statically: they must not
//! depend on what a root that they run in happens to hold.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/sys/nursery");
    println!("cargo:rerun-if-changed=src/sys/minimal");
    println!("cargo:rerun-if-changed=src/sys/init");
    println!("cargo:rerun-if-changed=src/noop");
    if env::var_os("CARGO_FEATURE_SOCK").is_some() {
        // The nursery has it inside of itself.
        compile_bare("ol-init-of-sock", "src/sys/nursery/init.rs");
        compile("nursery", "src/sys/nursery/main.rs");
    }
    if env::var_os("CARGO_FEATURE_DOCKER").is_some() {
        compile("ol-init", "src/sys/init/main.rs");
    }
    if env::var_os("CARGO_FEATURE_LAB").is_some() {
        compile("minimal", "src/sys/minimal/main.rs");
        compile("noop", "src/noop/main.rs");
    }
}

/// Compiles `source` into a program of this name in the folder of built things.
fn compile(name: &str, source: &str) {
    // Some systems keep the static C library in a package of its own. The nursery is started before
    // anything is hidden from it, and roots made of this machine's files have the libraries too, so
    // dynamic ones work in the usual cases.
    if !rustc(name, source, &["-C", "target-feature=+crt-static"]) && !rustc(name, source, &[]) {
        panic!("cannot compile {source}; the compiler's message is above");
    }
}

/// The same for a program that uses neither std nor the C library.
fn compile_bare(name: &str, source: &str) {
    let link = "link-args=-nostartfiles -nostdlib -static -no-pie -Wl,--build-id=none";
    let mut arguments = vec!["-C", link, "-C", "relocation-model=static"];
    if env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "musl") {
        // Else the compiler brings a beginning of its own for programs.
        arguments.extend(["-C", "link-self-contained=no"]);
    }
    // One page instead of two, if the linker knows how: each costs a start several microseconds.
    let one_page = [&arguments[..], &["-C", "link-arg=-Wl,--no-rosegment"]].concat();
    if !rustc(name, source, &one_page) && !rustc(name, source, &arguments) {
        panic!("cannot compile {source}; the compiler's message is above");
    }
}

/// Calls the compiler. Whether it has compiled the program.
fn rustc(name: &str, source: &str, arguments: &[&str]) -> bool {
    let var = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let mut rustc = Command::new(var("RUSTC"));
    rustc
        .args(["--edition", "2024", "--crate-name", &name.replace('-', "_")])
        .args(["--target", &var("TARGET")])
        .args(["-C", "opt-level=3", "-C", "panic=abort", "-C", "lto=fat"])
        .args(["-C", "codegen-units=1", "-C", "strip=symbols"])
        .args(arguments)
        .arg("-o")
        .arg(Path::new(&var("OUT_DIR")).join(name))
        .arg(source);
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={linker}"));
    }
    rustc.status().is_ok_and(|status| status.success())
}
