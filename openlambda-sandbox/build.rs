//! Compiles the nursery, a program of its own that the crate carries inside of itself.
//!
//! Cargo cannot make one of a crate's programs a part of its library, so the compiler is called here.
//! The program uses nothing but std and the C library, which it is linked with statically: it must not
//! depend on what a root that it makes happens to hold.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let source = PathBuf::from("src/sys/nursery/main.rs");
    for file in ["main.rs", "c.rs", "message.rs"] {
        println!("cargo:rerun-if-changed=src/sys/nursery/{file}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_SOCK").is_none() {
        return;
    }
    let var = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let out = PathBuf::from(var("OUT_DIR")).join("nursery");
    let compile = |link: &[&str]| {
        let mut rustc = Command::new(var("RUSTC"));
        rustc
            .args(["--edition", "2024", "--crate-name", "nursery", "--target", &var("TARGET")])
            .args(["-C", "opt-level=3", "-C", "panic=abort", "-C", "lto=fat"])
            .args(["-C", "codegen-units=1", "-C", "strip=symbols"])
            .args(link)
            .arg("-o")
            .arg(&out)
            .arg(&source);
        if let Ok(linker) = env::var("RUSTC_LINKER") {
            rustc.arg("-C").arg(format!("linker={linker}"));
        }
        rustc.status().is_ok_and(|status| status.success())
    };
    // Some systems keep the static C library in a package of its own. The nursery is started before
    // anything is hidden from it, so a dynamic one works where the worker itself does.
    if !compile(&["-C", "target-feature=+crt-static"]) && !compile(&[]) {
        panic!("cannot compile src/sys/nursery; the compiler's message is above");
    }
}
