//! What README.md and ARCHITECTURE.md speak of.

use crate::text::{has_word, read, root, rust_files};

const DOCUMENTS: [&str; 2] = ["README.md", "ARCHITECTURE.md"];
/// A path of the repository begins with one of these.
const ROOMS: [&str; 12] = [
    ".ci",
    ".sqlx",
    "benches",
    "client",
    "cluster",
    "config",
    "deploy",
    "docs",
    "migrations",
    "proto",
    "src",
    "tests",
];

/// Paths that do not exist.
pub fn missing_paths() -> Vec<String> {
    let mut missing = Vec::new();
    for document in DOCUMENTS {
        let text = read(document);
        let in_path = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
        for word in text.split(|c: char| !in_path(c)).map(|word| word.trim_end_matches('.')) {
            let room = word.split('/').next().unwrap_or_default();
            if word.contains('/') && ROOMS.contains(&room) && !root().join(word).exists() {
                missing.push(format!("{document}: {word}"));
            }
        }
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap_or_default();
            if !target.contains("://") && !root().join(path).exists() {
                missing.push(format!("{document}: the link to {target}"));
            }
        }
    }
    missing
}

/// Functions and types, as in `Leader::take_over`, that no source names.
pub fn missing_items() -> Vec<String> {
    let sources: Vec<String> = rust_files().map(|path| read(&path)).collect();
    let mut missing = Vec::new();
    for document in DOCUMENTS {
        for quoted in read(document).split('`').skip(1).step_by(2) {
            let name = quoted.trim_end_matches("()");
            let path = |c: char| c.is_ascii_alphanumeric() || "_:".contains(c);
            if !name.contains("::") || !name.chars().all(path) {
                continue;
            }
            for part in name.split("::") {
                if !sources.iter().any(|source| has_word(source, part)) {
                    missing.push(format!("{document}: {name}"));
                }
            }
        }
    }
    missing
}

/// The commands in the README's chapter on setting up.
pub fn set_up_commands() -> Vec<String> {
    let readme = read("README.md");
    let chapter = readme.split("\n## ").find(|chapter| chapter.starts_with("Two commands"));
    let chapter = chapter.expect("a chapter called `Two commands`");
    let blocks = chapter.split("```").skip(1).step_by(2);
    blocks.flat_map(|block| block.lines().skip(1)).map(str::to_owned).collect()
}
