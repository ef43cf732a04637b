//! Compiles the protocols without an installed protoc.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    describe_cortex()?;
    compile_peer()?;
    compile_specification()
}

/// The descriptors of the public protocol, for server reflection. Its messages and service traits come
/// from the client crate.
fn describe_cortex() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/cortex.proto");
    let descriptors = protox::Compiler::new(["proto"])?
        .include_imports(true)
        .open_files(["cortex.proto"])?
        .encode_file_descriptor_set();
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("cortex.descriptors"), descriptors)?;
    Ok(())
}

/// The protocol between replicas. Bodies stay slices of the buffer that they arrived in.
fn compile_peer() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/peer.proto");
    let descriptors = protox::compile(["peer.proto"], ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}

/// The worker protocol as the specification prints it, for the tests: a worker that knows nothing newer.
fn compile_specification() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=tests/api/spec.proto");
    let descriptors = protox::compile(["spec.proto"], ["tests/api"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("specification");
    std::fs::create_dir_all(&out)?;
    tonic_prost_build::configure().build_server(false).out_dir(out).compile_fds(descriptors)?;
    Ok(())
}
