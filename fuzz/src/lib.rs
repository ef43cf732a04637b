//! What the fuzz targets do with their bytes: one function each, which panics where a promise is broken. The
//! test `tests/fuzz_corpus.rs` runs the corpus through the same functions, without the fuzzer.

pub mod capabilities;
pub mod rest_bodies;
pub mod retry_policy;
mod surface;
pub mod token;
