//! The corpus of the fuzz targets (`fuzz/corpus`), through what the targets do with it: whatever a fuzzer has found
//! stays found. The Raft log's is run in `cluster/src/fuzzing.rs`.

#[path = "../fuzz/src/capabilities.rs"]
mod capabilities;
#[path = "../fuzz/src/rest_bodies.rs"]
mod rest_bodies;
#[path = "../fuzz/src/retry_policy.rs"]
mod retry_policy;
#[path = "../fuzz/src/surface.rs"]
mod surface;
#[path = "../fuzz/src/token.rs"]
mod token;

use std::path::Path;

/// Runs every file of a target's corpus.
fn run(target: &str, run: impl Fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for file in std::fs::read_dir(corpus).unwrap() {
        let path = file.unwrap().path();
        // Shown if the test fails.
        println!("{}", path.display());
        run(&std::fs::read(path).unwrap());
        count += 1;
    }
    assert!(count > 0, "{target} has no corpus");
}

#[test]
fn bodies_of_requests_are_taken_or_refused() {
    run("rest_bodies", rest_bodies::run);
}

#[test]
fn retry_policies_are_taken_or_refused() {
    run("retry_policy", retry_policy::run);
}

#[test]
fn capabilities_are_taken_or_refused() {
    run("capabilities", capabilities::run);
}

#[test]
fn tokens_are_believed_or_refused() {
    run("token", token::run);
}

#[test]
fn every_route_that_reads_a_body_is_fuzzed() {
    let document = cortex::api::rest::document();
    let document = serde_json::to_value(document).unwrap();
    let mut reading = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if operation.get("requestBody").is_some() {
                reading.push((method.to_uppercase(), path.clone()));
            }
        }
    }
    let mut fuzzed: Vec<_> =
        rest_bodies::ROUTES.iter().map(|(method, path)| ((*method).to_owned(), (*path).to_owned())).collect();
    reading.sort();
    fuzzed.sort();
    assert_eq!(reading, fuzzed);
}
