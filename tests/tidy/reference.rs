//! docs/CONFIG.md, made from the documentation of the configuration's types.

use std::collections::BTreeSet;
use std::fmt::Write;

use cortex::config::{Config, Environment};

use crate::text::read;

const MODEL: &str = "src/config/sections/model.rs";

/// One section, as its type documents it.
struct Section {
    name: String,
    about: String,
    /// Each with its meaning.
    keys: Vec<(String, String)>,
}

/// The whole reference.
pub fn configuration() -> String {
    let mut text = String::from(
        "# Configuration\n\n\
         Every key of the configuration file, with its default and its limits. Made from the sources: a test compares,\n\
         and writes it anew with `CORTEX_WRITE_DOCS=1 cargo test --test tidy`. [config/cortex.yaml](../config/cortex.yaml) shows\n\
         the keys in place.\n\n\
         Any key can be overridden by the environment: `scheduler.batch_size` by `CORTEX__SCHEDULER__BATCH_SIZE`. In the file\n\
         `${VAR}` is replaced by an environment variable, and stops the start where it is not set; `${VAR:-default}` has a\n\
         fallback. Unknown keys, wrong types and values beyond their limits stop the start; all of them are named at once.\n",
    );
    for Section { name, about, keys } in sections() {
        let _ = write!(text, "\n## `{name}`\n\n");
        if !about.is_empty() {
            let _ = write!(text, "{}{}\n\n", about[..1].to_uppercase(), &about[1..]);
        }
        text += "| key | meaning |\n| --- | --- |\n";
        for (key, meaning) in keys {
            let _ = writeln!(text, "| `{name}.{key}` | {} |", meaning.replace('|', "\\|"));
        }
    }
    text
}

/// The keys that are documented, and those that are read.
pub fn keys() -> (BTreeSet<String>, BTreeSet<String>) {
    let sections = sections();
    let (mut documented, mut read) = (BTreeSet::new(), BTreeSet::new());
    for Section { name, keys, .. } in &sections {
        documented.extend(keys.iter().map(|(key, _)| format!("{name}.{key}")));
        read.extend(keys_read(name).into_iter().map(|key| format!("{name}.{key}")));
    }
    read.retain(|key| sections.iter().all(|section| section.name != *key));
    (documented, read)
}

/// The keys of a section, as the refusal of an unknown one lists them.
fn keys_read(section: &str) -> Vec<String> {
    let yaml =
        section.rsplit('.').fold("no_such_key: 1".to_owned(), |inner, name| format!("{name}: {{{inner}}}"));
    let error = Config::from_yaml(&yaml, &Environment::default()).unwrap_err();
    let refused = format!("{section}.no_such_key");
    let problem = error.problems.iter().find(|problem| problem.key == refused);
    let message = &problem.unwrap_or_else(|| panic!("{refused} is not refused: {error}")).message;
    let (_, known) = message.split_once("the keys here are ").unwrap();
    known.split(", ").map(str::to_owned).collect()
}

/// The sections in the order of their types.
fn sections() -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let (mut docs, mut inside) = (String::new(), false);
    for line in read(MODEL).lines().map(str::trim) {
        if let Some(doc) = line.strip_prefix("///") {
            docs += doc;
        } else if !line.starts_with("#[") {
            let doc = std::mem::take(&mut docs);
            if line.starts_with("pub struct ") {
                let section = doc.trim().strip_prefix("Section `").and_then(|rest| rest.split_once('`'));
                inside = section.is_some();
                sections.extend(section.map(|(name, about)| Section {
                    name: name.to_owned(),
                    about: about.trim_start_matches([':', ',', '.', ' ']).to_owned(),
                    keys: Vec::new(),
                }));
            } else if line == "}" {
                inside = false;
            } else if let (true, Some(field)) = (inside, line.strip_prefix("pub ")) {
                let section = sections.last_mut().unwrap();
                section.keys.push(key(field.split(':').next().unwrap(), doc.trim()));
            }
        }
    }
    let nested: Vec<String> = sections.iter().map(|section| section.name.clone()).collect();
    for section in &mut sections {
        section.keys.retain(|(key, _)| !nested.contains(&format!("{}.{key}", section.name)));
    }
    sections
}

/// A key and its meaning. Where the file has another name for a field, its documentation says so.
fn key(field: &str, doc: &str) -> (String, String) {
    let named = doc.split_once(", key `").and_then(|(before, rest)| {
        let (name, after) = rest.split_once('`')?;
        Some((name.to_owned(), format!("{before}{after}")))
    });
    named.unwrap_or_else(|| (field.to_owned(), doc.to_owned()))
}
