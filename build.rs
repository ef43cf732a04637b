//! Compiles the protocols without an installed protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    compile_peer()
}

/// The protocol between replicas. Bodies stay slices of the buffer that they arrived in.
fn compile_peer() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/peer.proto");
    let descriptors = protox::compile(["peer.proto"], ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
