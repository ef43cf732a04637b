//! Compiles the descriptors of `proto/cortex.proto`, without protoc, for server reflection. The messages
//! and the service trait come from the client crate.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/cortex.proto");
    let descriptors = protox::Compiler::new(["proto"])?
        .include_imports(true)
        .open_files(["cortex.proto"])?
        .encode_file_descriptor_set();
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("cortex.descriptors"), descriptors)?;
    Ok(())
}
