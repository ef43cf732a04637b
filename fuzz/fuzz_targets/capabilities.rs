#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cortex_fuzz::capabilities::run(data));
