//! Compiles the protocol without protoc. The server half is generated too, and
//! hidden behind the feature `server`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=../proto/cortex.proto");
    let descriptors = protox::compile(["cortex.proto"], ["../proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .server_mod_attribute("cortex", "#[cfg(feature = \"server\")]")
        .compile_fds(descriptors)?;
    Ok(())
}
