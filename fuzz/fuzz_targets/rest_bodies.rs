#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cortex_fuzz::rest_bodies::run(data));
