#![no_main]

libfuzzer_sys::fuzz_target!(
    // A damaged file may make the database panic, which the store catches: only what it does not catch counts.
    init: std::panic::set_hook(Box::new(|_| {})),
    |data: &[u8]| cortex_cluster::fuzzing::run(data)
);
