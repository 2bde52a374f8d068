//! Compiles the protocol. `protox` is a compiler in Rust, so the machine needs no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/registry.proto");
    #[cfg(feature = "native")]
    {
        let descriptors = protox::compile(["proto/registry.proto"], ["proto"])?;
        tonic_prost_build::configure().bytes(".openlambda.registry.v1").compile_fds(descriptors)?;
    }
    Ok(())
}
