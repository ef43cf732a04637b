//! docs/SPEC.md: whether all that is served has a row, and every row a test that is there, or a reason.

use std::collections::BTreeSet;

use cortex::api::rest;

use crate::reference;
use crate::text::{has_word, read, root};

const DOCUMENT: &str = "docs/SPEC.md";

/// The rows of the chapters with these titles, or of all.
fn rows(chapter: Option<&str>) -> Vec<Vec<String>> {
    let text = read(DOCUMENT);
    let wanted = |part: &&str| chapter.is_none_or(|title| part.lines().next() == Some(title));
    let lines =
        text.split("\n## ").filter(wanted).flat_map(str::lines).filter(|line| line.starts_with("| `"));
    lines.map(cells).collect()
}

/// The cells of a row. A bar within backticks parts nothing.
fn cells(line: &str) -> Vec<String> {
    let (mut cells, mut quoted) = (vec![String::new()], false);
    for c in line.trim().trim_matches('|').chars() {
        quoted ^= c == '`';
        match c {
            '|' if !quoted => cells.push(String::new()),
            _ => cells.last_mut().unwrap().push(c),
        }
    }
    cells.into_iter().map(|cell| cell.trim().to_owned()).collect()
}

/// What stands in backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Routes, RPCs and metrics that have no row with a test, and keys that have none with a test or a reason.
pub fn missing_rows() -> Vec<String> {
    let mut missing = Vec::new();
    let mut check = |chapter: &str, shown: fn(&str) -> bool, items: BTreeSet<String>| {
        let rows = rows(Some(chapter));
        for item in items {
            let row = rows.iter().find(|row| quoted(&row[0]).any(|name| name == item));
            if row.and_then(|row| row.last()).is_none_or(|cell| !shown(cell)) {
                missing.push(format!("{chapter}: {item}"));
            }
        }
    };
    let routes = rest::routes().into_iter().map(|(method, path, _)| format!("{method} {path}"));
    check("Endpoints", names_a_test, routes.collect());
    check("RPCs", names_a_test, rpcs());
    let metrics = read("src/telemetry/metrics.rs");
    let metrics = metrics.split("\" [").filter_map(|before| before.rsplit('"').next());
    let metrics = metrics.filter(|name| name.starts_with("cortex_")).map(str::to_owned);
    check("Metrics", names_a_test, metrics.collect());
    check("Configuration", |cell| !cell.is_empty(), reference::keys().0);
    missing
}

/// Whether a cell quotes a test, as `path.rs::name`, that is there.
fn names_a_test(cell: &str) -> bool {
    quoted(cell).filter_map(|name| name.split_once("::")).any(|(path, test)| is_test_of(path, test))
}

/// Every RPC of the protocol, as `Service.Rpc`.
fn rpcs() -> BTreeSet<String> {
    let (mut service, mut rpcs) = (String::new(), BTreeSet::new());
    for line in read("proto/cortex.proto").lines() {
        let mut words = line.trim().split([' ', '(']);
        match (words.next(), words.next()) {
            (Some("service"), Some(name)) => name.clone_into(&mut service),
            (Some("rpc"), Some(name)) => {
                rpcs.insert(format!("{service}.{name}"));
            }
            _ => {}
        }
    }
    rpcs
}

/// Rows whose last cells are empty, and tests and files that rows name and that are not there.
pub fn unfounded_rows() -> Vec<String> {
    let mut unfounded = Vec::new();
    for row in rows(None) {
        if row[1..].iter().all(String::is_empty) {
            unfounded.push(format!("{}: neither a place nor a test", row[0]));
        }
        for name in row[1..].iter().flat_map(|cell| quoted(cell)) {
            let there = match name.split_once("::") {
                Some((path, test)) if path.ends_with(".rs") => is_test_of(path, test),
                _ if is_path(name) => root().join(name).exists(),
                _ => true,
            };
            if !there {
                unfounded.push(format!("{}: {name} is not there", row[0]));
            }
        }
    }
    unfounded
}

fn is_path(name: &str) -> bool {
    let rooms = ["src/", "tests/", "migrations/", "client/", "docs/", "deploy/", "config/", "proto/"];
    rooms.iter().any(|room| name.starts_with(room)) && !name.contains(' ')
}

/// Whether there is a source at this path with a test of this name.
fn is_test_of(path: &str, name: &str) -> bool {
    path.ends_with(".rs") && root().join(path).is_file() && is_test(&read(path), name)
}

/// Whether a source has a test of this name: a function right below an attribute that says so.
fn is_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let declared = |line: &&str| line.contains(&format!("fn {name}("));
    let Some(at) = lines.iter().position(declared) else { return false };
    let above = lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("///"));
    above.into_iter().any(|line| line.starts_with("#[") && has_word(line, "test"))
}
