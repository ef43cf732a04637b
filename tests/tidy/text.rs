//! Files of the working copy, and Rust without its comments and strings.

use std::fs;
use std::path::{Path, PathBuf};

/// Endings of files that people write.
const TEXT: [&str; 12] = ["rs", "toml", "md", "sql", "lua", "proto", "sh", "py", "yaml", "yml", "html", "js"];

/// The repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a file, by its path from the root.
pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every text file, sorted, by its path from the root; what is built or ignored left out.
pub fn files() -> impl Iterator<Item = String> {
    let mut found = Vec::new();
    walk(&root(), &mut found);
    found.sort();
    found.into_iter()
}

/// Every Rust file.
pub fn rust_files() -> impl Iterator<Item = String> {
    files().filter(|path| Path::new(path).extension().is_some_and(|ending| ending == "rs"))
}

fn walk(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !["target", ".git", ".cortex"].contains(&name.as_str()) {
                walk(&path, found);
            }
        } else if path.extension().is_some_and(|ending| TEXT.iter().any(|text| ending == *text))
            || name == "justfile"
        {
            found.push(path.strip_prefix(root()).unwrap().to_string_lossy().into_owned());
        }
    }
}

/// Whether `word` stands in `line` with no letter or digit beside it.
pub fn has_word(line: &str, word: &str) -> bool {
    let part_of_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        !part_of_word(line[..at].chars().next_back()) && !part_of_word(line[at + word.len()..].chars().next())
    })
}

/// The number at the beginning.
pub fn leading_number(text: &str) -> Option<u32> {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Rust with comments and the insides of strings blanked out; lines stay where they are.
pub struct Source {
    pub code: String,
}

impl Source {
    pub fn of(text: &str) -> Self {
        let mut code = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let length = opaque(rest, code.chars().next_back());
            let taken = &rest[..length.unwrap_or(first.len_utf8())];
            if length.is_some() {
                code.extend(taken.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            } else {
                code.push(first);
            }
            rest = &rest[taken.len()..];
        }
        Self { code }
    }
}

/// The length of the comment, string or character that `text` begins with.
fn opaque(text: &str, before: Option<char>) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if text.starts_with("/*") {
        return Some(text.find("*/").map_or(text.len(), |end| end + 2));
    }
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if text.starts_with('r') && !in_word {
        let hashes = text[1..].chars().take_while(|c| *c == '#').count();
        if text[1 + hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let begin = hashes + 2;
            return Some(text[begin..].find(&close).map_or(text.len(), |end| begin + end + close.len()));
        }
    }
    if text.starts_with('"') {
        return Some(quoted(text, '"'));
    }
    // A lifetime has no second quote right behind its first letter.
    let mut after = text.strip_prefix('\'')?.chars();
    (after.next() == Some('\\') || after.next() == Some('\'')).then(|| quoted(text, '\''))
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[test]
fn comments_and_strings_are_blanked_out() {
    let text = "a // b\n\"c\\\"d\" 'e' '\\'' <'f> r#\"g\"h\"# /* i */ j";
    let code = Source::of(text).code;
    assert_eq!(code.split_whitespace().collect::<Vec<_>>(), ["a", "<'f>", "j"]);
    assert_eq!(code.lines().count(), 2);
}
