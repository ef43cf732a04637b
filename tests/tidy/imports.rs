//! Who may import what.

use crate::text::{Source, read, rust_files};

/// A place, and the crates and modules of this crate that it must not name.
struct Rule {
    place: &'static str,
    crates: &'static [&'static str],
    modules: &'static [&'static str],
}

/// As in ARCHITECTURE.md.
const RULES: [Rule; 16] = [
    Rule {
        place: "src/domain/",
        crates: &["tokio", "sqlx", "redis", "axum", "tonic", "cortex_cluster", "cortex_client"],
        modules: &[
            "api",
            "app",
            "bench",
            "cli",
            "config",
            "dev",
            "forward",
            "group",
            "leadership",
            "loops",
            "ready_queue",
            "security",
            "services",
            "storage",
            "telemetry",
        ],
    },
    Rule {
        place: "src/storage/",
        crates: &["redis", "axum", "tonic", "cortex_cluster"],
        modules: &["services", "api", "ready_queue", "loops", "leadership", "forward", "group", "app", "cli"],
    },
    Rule {
        place: "src/ready_queue/",
        crates: &["sqlx", "axum", "tonic", "cortex_cluster"],
        modules: &["storage", "services", "api", "loops", "leadership", "forward", "group", "app", "cli"],
    },
    Rule {
        place: "src/genome",
        crates: &["sqlx", "redis", "axum", "tonic", "cortex_cluster"],
        modules: &[
            "storage",
            "ready_queue",
            "services",
            "api",
            "loops",
            "leadership",
            "forward",
            "group",
            "app",
            "cli",
        ],
    },
    Rule {
        place: "src/verify/",
        crates: &["sqlx", "redis", "axum", "tonic", "cortex_cluster", "cortex_client"],
        modules: &[
            "services",
            "api",
            "loops",
            "leadership",
            "forward",
            "group",
            "app",
            "bench",
            "cli",
            "config",
            "dev",
        ],
    },
    Rule {
        place: "src/services/",
        crates: &["axum", "tonic", "cortex_cluster"],
        modules: &["api", "loops", "leadership", "forward", "group", "app", "cli", "dev"],
    },
    Rule {
        place: "src/loops/",
        crates: &["sqlx", "redis", "axum"],
        modules: &["api", "forward", "app", "cli"],
    },
    Rule {
        place: "src/group.rs",
        crates: &["sqlx", "redis", "axum"],
        modules: &["api", "storage", "ready_queue", "loops", "leadership", "forward", "app", "cli"],
    },
    Rule { place: "src/leadership", crates: &["sqlx", "redis", "axum"], modules: &["api", "app", "cli"] },
    Rule {
        place: "src/forward/",
        crates: &["sqlx", "redis", "axum"],
        modules: &["storage", "ready_queue", "api", "loops", "group", "app", "cli"],
    },
    Rule {
        place: "src/api/",
        crates: &["sqlx", "redis"],
        modules: &["storage", "ready_queue", "forward", "loops", "leadership", "group", "app", "cli", "dev"],
    },
    Rule {
        place: "src/security/",
        crates: &["sqlx", "redis", "axum", "tonic", "cortex_cluster", "cortex_client"],
        modules: &[
            "services",
            "storage",
            "ready_queue",
            "api",
            "loops",
            "leadership",
            "forward",
            "app",
            "cli",
        ],
    },
    Rule {
        place: "src/dev/",
        crates: &["cortex_cluster"],
        modules: &["services", "storage", "ready_queue", "api", "loops", "leadership", "app", "cli"],
    },
    Rule {
        place: "src/bench/",
        crates: &["sqlx", "redis", "axum", "tonic", "cortex_cluster"],
        modules: &[
            "services",
            "storage",
            "ready_queue",
            "api",
            "loops",
            "leadership",
            "forward",
            "dev",
            "app",
            "cli",
        ],
    },
    Rule {
        place: "cluster/src/",
        crates: &["cortex", "cortex_client", "sqlx", "redis", "axum"],
        modules: &[],
    },
    Rule {
        place: "client/src/",
        crates: &["cortex", "cortex_cluster", "sqlx", "redis", "axum"],
        modules: &[],
    },
];

/// What one file of a place may import all the same: the statements by themselves are what it measures; tests
/// of fetching need somebody who answers.
const EXEMPT: [(&str, &str); 4] = [
    ("src/genome_tests.rs", "axum"),
    ("src/bench/limit.rs", "storage"),
    ("src/bench/limit.rs", "sqlx"),
    ("src/security/jwks_tests.rs", "axum"),
];

/// Every import that a rule forbids, with its place.
pub fn violations() -> Vec<String> {
    let mut found = Vec::new();
    for path in rust_files() {
        let exempt = |name: &str| EXEMPT.contains(&(path.as_str(), name));
        for rule in RULES.iter().filter(|rule| path.starts_with(rule.place)) {
            let code = Source::of(&read(&path)).code;
            let external = crates(&code);
            let named = rule
                .crates
                .iter()
                .filter(|name| !exempt(name) && external.iter().any(|found| found == *name));
            found.extend(named.map(|name| format!("{path} imports the crate {name}")));
            let internal = modules(&code, depth(&path));
            let named = rule
                .modules
                .iter()
                .filter(|name| !exempt(name) && internal.iter().any(|found| found == *name));
            found.extend(named.map(|name| format!("{path} imports the module {name}")));
        }
    }
    found
}

/// How many modules a file lies below its crate's root.
fn depth(path: &str) -> usize {
    let inside = path.split_once("src/").map_or(path, |(_, inside)| inside);
    let folders = inside.matches('/').count();
    folders + usize::from(!inside.ends_with("/mod.rs"))
}

/// Identifiers and `::`, `{`, `}`, `,` and `;`, in order; anything else parts them.
fn tokens(code: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = code;
    while let Some(c) = rest.chars().next() {
        let length = if c.is_alphanumeric() || c == '_' {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            c.len_utf8()
        };
        let (token, after) = rest.split_at(length);
        if !token.trim().is_empty() {
            tokens.push(token);
        }
        rest = after;
    }
    tokens
}

/// First names of all paths.
fn crates(code: &str) -> Vec<String> {
    let tokens = tokens(code);
    let begins = |at: usize| at == 0 || tokens[at - 1] != "::";
    let named = |at: usize| tokens.get(at + 1) == Some(&"::") || (at > 0 && tokens[at - 1] == "use");
    (0..tokens.len()).filter(|at| begins(*at) && named(*at)).map(|at| tokens[at].to_owned()).collect()
}

/// Modules of the crate's root that are named, by `crate::`, or by `super::` from `depth` modules below.
fn modules(code: &str, depth: usize) -> Vec<String> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let mut supers = 0;
        let mut next = at;
        while tokens[next] == "super" && tokens.get(next + 1) == Some(&"::") && next + 2 < tokens.len() {
            supers += 1;
            next += 2;
        }
        if tokens[at] == "crate" && tokens.get(at + 1) == Some(&"::") {
            found.extend(heads(&tokens[at + 2..]));
        } else if supers > 0 && supers >= depth {
            found.extend(heads(&tokens[next..]));
        }
        at = next.max(at + 1);
    }
    found
}

/// The name that comes next, or, in braces, the first name of each path.
fn heads(tokens: &[&str]) -> Vec<String> {
    if tokens.first() != Some(&"{") {
        return tokens.first().map(|name| (*name).to_owned()).into_iter().collect();
    }
    let mut level = 0;
    let mut heads = Vec::new();
    for pair in tokens.windows(2) {
        match pair[0] {
            "{" => level += 1,
            "}" => level -= 1,
            _ => {}
        }
        if level == 0 {
            break;
        }
        if level == 1 && (pair[0] == "{" || pair[0] == ",") {
            heads.push(pair[1].to_owned());
        }
    }
    heads
}

#[test]
fn imports_are_found_in_every_form() {
    let code = "use tokio; use sqlx::{query, Row}; fn f() { redis::cmd(); a::axum::b(); }";
    let named = crates(code);
    assert!(
        ["tokio", "sqlx", "redis"].iter().all(|name| named.iter().any(|found| found == name)),
        "{named:?}"
    );
    assert!(!named.iter().any(|found| found == "axum"), "{named:?}");
    let code =
        "use crate::{api::{a, b}, services}; use crate::loops::x; use super::super::storage::y; super::z();";
    assert_eq!(modules(code, 2), ["api", "services", "loops", "storage"]);
}

#[test]
fn files_know_how_deep_they_lie() {
    let depths = ["src/app.rs", "src/api/mod.rs", "src/api/guard.rs", "src/api/rest/mod.rs"].map(depth);
    assert_eq!(depths, [1, 1, 2, 2]);
}
