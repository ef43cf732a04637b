//! Habits that a compiler does not check: what may import what, how large a file may be, whether the
//! documents name what exists. Reads the working copy and starts nothing.

#[path = "tidy/checks.rs"]
mod checks;
#[path = "tidy/documents.rs"]
mod documents;
#[path = "tidy/imports.rs"]
mod imports;
#[path = "tidy/reference.rs"]
mod reference;
#[path = "tidy/spec.rs"]
mod spec;
#[path = "tidy/text.rs"]
mod text;

use std::collections::BTreeSet;
use std::path::Path;

use text::{Source, files, read, rust_files};

/// Most lines of a Rust file.
const LINES: usize = 500;

/// What may stand at the top. A new room of the house is a decision, not an accident.
const TOP_LEVEL: [&str; 28] = [
    ".cargo",
    ".ci",
    ".git",
    ".gitignore",
    ".sqlx",
    "ARCHITECTURE.md",
    "Cargo.lock",
    "Cargo.toml",
    "README.md",
    "benches",
    "build.rs",
    "chaos",
    "client",
    "clippy.toml",
    "cluster",
    "config",
    "deny.toml",
    "deploy",
    "docs",
    "fuzz",
    "justfile",
    "migrations",
    "proto",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "src",
    "tests",
    "LICENSE",
];

/// Longest pause, in milliseconds, between two looks of a test that awaits a condition.
const LOOK_MS: u32 = 20;

/// Sleeps of tests that await nothing, and why they may.
const SLEEPS: [(&str, &str, &str); 6] = [
    ("tests/dev_stores.rs", "from_secs(600)", "a process that waits to be killed"),
    ("tests/forward/support.rs", "wait_of(&command)", "a leader that takes as long as a long poll asks"),
    ("tests/faults/ledger.rs", "self.takes", "the work of a job"),
    ("tests/faults/leaders.rs", "FREEZE", "the fault is a pause of this length"),
    ("tests/faults/load.rs", "PACE", "the rate of the load"),
    ("tests/faults/scene.rs", "LOOK_EVERY", "between two looks"),
];

#[test]
fn nothing_imports_what_it_must_not() {
    let found = imports::violations();
    assert!(found.is_empty(), "forbidden imports:\n{}", found.join("\n"));
}

#[test]
fn no_rust_file_is_too_long() {
    let long: Vec<String> = rust_files()
        .map(|path| (read(&path).lines().count(), path))
        .filter(|(lines, _)| *lines > LINES)
        .map(|(lines, path)| format!("{path}: {lines} lines; split it by what its parts are about"))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn only_known_entries_stand_at_the_top() {
    let ignored: BTreeSet<String> =
        read(".gitignore").lines().map(|line| line.trim_matches('/').to_owned()).collect();
    let strangers: Vec<String> = std::fs::read_dir(text::root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| !TOP_LEVEL.contains(&name.as_str()) && !ignored.contains(name))
        .collect();
    assert!(strangers.is_empty(), "put these into one of the folders: {strangers:?}");
}

#[test]
fn nothing_is_left_unfinished() {
    // Written in two halves, so that this file does not name what it looks for.
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("X", "XX"),
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("place", "holder"),
        concat!("#[ig", "nore]"),
    ];
    let mut found = Vec::new();
    for path in files().filter(|path| path != "Cargo.lock") {
        for (number, line) in (1..).zip(read(&path).lines()) {
            for mark in marks.iter().filter(|mark| text::has_word(line, mark)) {
                found.push(format!("{path}:{number}: {mark}"));
            }
        }
    }
    assert!(found.is_empty(), "finish these:\n{}", found.join("\n"));
}

#[test]
fn tests_await_conditions_instead_of_sleeping() {
    let mut found = Vec::new();
    for path in rust_files().filter(|path| path.starts_with("tests/") || path.contains("/tests/")) {
        for (number, line) in (1..).zip(Source::of(&read(&path)).code.lines()) {
            let Some((_, slept)) = line.split_once("sleep(") else { continue };
            let millis = slept.split_once("from_millis(").map(|(_, rest)| text::leading_number(rest));
            let looks = millis.flatten().is_some_and(|millis| millis <= LOOK_MS);
            let excused = SLEEPS.iter().any(|(file, how, _)| *file == path && slept.contains(how));
            if !looks && !excused {
                found.push(format!("{path}:{number}: {}", line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "await what is expected instead of sleeping:\n{}", found.join("\n"));
}

#[test]
fn all_that_is_served_has_a_row_in_the_table_of_the_specification() {
    let missing = spec::missing_rows();
    assert!(missing.is_empty(), "docs/SPEC.md has no row with a test for:\n{}", missing.join("\n"));
}

#[test]
fn the_table_of_the_specification_names_what_exists() {
    let unfounded = spec::unfounded_rows();
    assert!(unfounded.is_empty(), "in docs/SPEC.md:\n{}", unfounded.join("\n"));
}

#[test]
fn migrations_are_numbered_without_gaps() {
    let names: Vec<String> = files().filter(|path| path.starts_with("migrations/")).collect();
    assert!(!names.is_empty());
    for (number, path) in (1_usize..).zip(&names) {
        let name = Path::new(path).file_name().unwrap().to_string_lossy();
        let expected = format!("{number:04}_");
        assert!(name.starts_with(&expected) && name.ends_with(".sql"), "{path} should begin with {expected}");
    }
}

#[test]
fn the_documents_name_what_exists() {
    let found = documents::missing_paths();
    assert!(found.is_empty(), "these do not exist:\n{}", found.join("\n"));
    let found = documents::missing_items();
    assert!(found.is_empty(), "nothing in the sources is called that:\n{}", found.join("\n"));
}

#[test]
fn the_readme_gives_two_commands_and_ci_runs_the_second() {
    let commands = documents::set_up_commands();
    assert_eq!(commands, ["bash deploy/quickstart.sh", "bash deploy/test.sh"]);
    assert!(read(".ci/run").contains(&commands[1]), ".ci/run must call {}", commands[1]);
}

#[test]
fn every_configuration_key_is_documented() {
    let (documented, read) = reference::keys();
    assert_eq!(documented, read, "the keys that are documented, and those that are read");
}

#[test]
fn the_configuration_reference_says_what_the_sources_say() {
    is_written("docs/CONFIG.md", &reference::configuration());
}

#[test]
fn the_description_of_the_rest_surface_says_what_the_sources_say() {
    let document = serde_json::to_string_pretty(cortex::api::rest::document()).unwrap();
    is_written("docs/openapi.json", &(document + "\n"));
}

#[test]
fn the_page_of_checks_says_what_the_sources_say() {
    is_written("docs/VERIFY.md", &checks::page());
}

/// Holds a generated document against what is in the repository, or puts it there.
fn is_written(name: &str, expected: &str) {
    let path = text::root().join(name);
    if std::env::var_os("CORTEX_WRITE_DOCS").is_some() {
        std::fs::write(&path, expected).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let how = "CORTEX_WRITE_DOCS=1 cargo test --test tidy writes it anew";
    assert!(written == expected, "{name} is out of date; {how}");
}

#[test]
fn no_release_has_what_only_tests_may_have() {
    let dangerous =
        ["crash-points", "planted-defects", "CORTEX_PLANT", "CORTEX_CRASH_POINTS", "--all-features"];
    let released = ["deploy/Dockerfile", "deploy/compose.yaml", "deploy/quickstart.sh", "deploy/lib.sh"];
    let mut found = Vec::new();
    for path in released {
        let text = read(path);
        found.extend(
            dangerous.iter().filter(|word| text.contains(**word)).map(|word| format!("{path}: {word}")),
        );
    }
    for path in files().filter(|path| path.ends_with("Cargo.toml")) {
        for line in read(&path).lines().map(str::trim) {
            // A feature's own line, and the one that passes it on, turn nothing on.
            let declares = ["crash-points = ", "planted-defects = "].iter().any(|own| line.starts_with(own));
            if !declares && !line.starts_with('#') && dangerous.iter().any(|word| line.contains(word)) {
                found.push(format!("{path}: {line}"));
            }
        }
    }
    assert!(found.is_empty(), "never in a release: {found:#?}");
}

#[test]
fn only_tests_see_the_simulation() {
    let asks = |line: &&str| line.starts_with("cortex-cluster") && line.contains("\"simulation\"");
    for path in files().filter(|path| path.ends_with("Cargo.toml")) {
        let text = read(&path);
        let shipped = text.split("[dev-dependencies]").next().unwrap_or_default();
        let asking: Vec<&str> = shipped.lines().filter(asks).collect();
        assert!(asking.is_empty(), "{path}: {asking:?}");
    }
    let root = read("Cargo.toml");
    assert_eq!(root.lines().filter(asks).count(), 1, "its tests ask for it");
    assert!(read("src/lib.rs").contains("#[cfg(test)]\nmod simulation;"));
}

#[test]
fn only_builds_with_planted_defects_ask_for_one() {
    const ONLY_WITH_IT: &str = "#[cfg(feature = \"planted-defects\")]\n";
    // The harness only sets it.
    let product = |path: &String| path.contains("src/") && !path.starts_with("chaos/");
    let asking: Vec<String> =
        rust_files().filter(|path| product(path) && read(path).contains("\"CORTEX_PLANT")).collect();
    assert_eq!(asking, ["cluster/src/store/unsynced.rs", "src/planted.rs"]);
    let before =
        read("src/planted.rs").split_once("\"CORTEX_PLANT").map(|(before, _)| before.to_owned()).unwrap();
    assert!(before.contains(&format!("{ONLY_WITH_IT}mod with_the_feature {{")));
    assert!(read("cluster/src/store/mod.rs").contains(&format!("{ONLY_WITH_IT}pub(crate) mod unsynced;")));
}
