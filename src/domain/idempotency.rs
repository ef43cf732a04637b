//! Idempotency keys: the same key again means the same submission, not another one.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::job::JobDraft;
use super::validate::FieldError;

/// Longest key, in characters.
const MAX_KEY: usize = 255;

/// A key as it arrives.
#[derive(Debug, Clone)]
pub struct KeyDraft {
    /// What the request calls it, for errors.
    pub field: &'static str,
    /// Whose key it is; empty for callers without a name.
    pub scope: String,
    /// The key itself.
    pub text: String,
}

/// A key whose bounds were checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdempotencyKey {
    /// Whose key it is: the keys of two callers never meet.
    pub scope: String,
    /// 1 to 255 visible ASCII characters.
    pub key: String,
}

impl KeyDraft {
    /// Checks the key's bounds.
    pub fn check(self) -> Result<IdempotencyKey, FieldError> {
        let visible = self.text.bytes().all(|byte| (b'!'..=b'~').contains(&byte));
        if !visible || !(1..=MAX_KEY).contains(&self.text.len()) {
            return Err(FieldError::new(
                self.field,
                format!("must be 1 to {MAX_KEY} visible ASCII characters"),
            ));
        }
        Ok(IdempotencyKey { scope: self.scope, key: self.text })
    }
}

/// What tells one submission from another: a SHA-256 over all fields as they were sent, defaults left open, so
/// that it stays the same where defaults change. Neither the order of members nor white space counts.
pub fn fingerprint(drafts: &[JobDraft]) -> Vec<u8> {
    let sorted = serde_json::to_value(drafts).map(|drafts| drafts.to_string());
    // What cannot be read as JSON values is refused by the check of its fields.
    let text = sorted.or_else(|_| serde_json::to_string(drafts)).unwrap_or_default();
    Sha256::digest(text).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Result<IdempotencyKey, FieldError> {
        KeyDraft { field: "Idempotency-Key", scope: String::new(), text: text.to_owned() }.check()
    }

    fn print(bodies: &[&str]) -> Vec<u8> {
        let drafts: Vec<JobDraft> = bodies.iter().map(|body| serde_json::from_str(body).unwrap()).collect();
        fingerprint(&drafts)
    }

    #[test]
    fn a_key_has_1_to_255_visible_characters() {
        for good in ["a".to_owned(), "x".repeat(MAX_KEY), "\"8e03978e-40d5\"!~".to_owned()] {
            assert_eq!(key(&good).unwrap().key, good);
        }
        for bad in
            [String::new(), "x".repeat(MAX_KEY + 1), "a b".into(), "é".into(), "a\0".into(), "\u{7f}".into()]
        {
            assert_eq!(key(&bad).unwrap_err().field, "Idempotency-Key", "{bad:?}");
        }
    }

    #[test]
    fn a_fingerprint_depends_on_what_is_meant_and_not_on_how_it_is_written() {
        let one = print(&[r#"{"name": "n", "input_data": {"a": 1, "b": [2]}, "priority": null}"#]);
        assert_eq!(one.len(), 32);
        assert_eq!(one, print(&[r#"{"input_data":{"b":[2],"a":1},"name":"n","unknown":1}"#]));
        for other in [
            r#"{"name": "n", "input_data": {"a": 1, "b": [3]}}"#,
            r#"{"name": "n", "input_data": {"a": 1, "b": [2]}, "priority": 5}"#,
            r#"{"name": "n", "input_data": {"a": 1, "b": [2]}, "run_at": "2030-01-01T00:00:00Z"}"#,
        ] {
            assert_ne!(one, print(&[other]), "{other}");
        }
        assert_ne!(print(&["{}"]), print(&["{}", "{}"]));
    }
}
