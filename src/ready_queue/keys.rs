//! The names of the keys.

use crate::domain::matching::Shape;

use super::error::QueueError;

/// The keys of one queue. All share one hash tag, so that scripts can use them together in a cluster.
#[derive(Debug)]
pub(super) struct Keys {
    /// `epoch`, `generation`, `shapes`, `depth`, `claims`: the order in which scripts expect them.
    pub fixed: [String; 5],
    pub generation: String,
    pub depth: String,
    pub claims: String,
    pub shape_prefix: String,
}

impl Keys {
    pub fn new(prefix: &str) -> Result<Self, QueueError> {
        // A brace in the prefix would end the hash tag early and could scatter the keys.
        if prefix.is_empty() || prefix.contains(['{', '}']) {
            return Err(QueueError::Config(format!("the prefix {prefix:?} is empty or contains a brace")));
        }
        let key = |name: &str| format!("{prefix}:{{{prefix}}}:{name}");
        Ok(Self {
            fixed: ["epoch", "generation", "shapes", "depth", "claims"].map(key),
            generation: key("generation"),
            depth: key("depth"),
            claims: key("claims"),
            shape_prefix: key("shape:"),
        })
    }

    pub fn shape(&self, shape: &Shape) -> String {
        format!("{}{shape}", self.shape_prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_begins_with_the_prefix_and_carries_one_hash_tag() {
        let keys = Keys::new("cortex:queue").unwrap();
        let shape = Shape { model_name: "m{x}".into(), requires_gpu: true, required_memory_mib: 512 };
        for key in keys.fixed.iter().chain([&keys.depth, &keys.claims, &keys.shape(&shape)]) {
            assert!(key.starts_with("cortex:queue:{cortex:queue}:"), "{key}");
        }
    }

    #[test]
    fn a_prefix_that_would_break_the_hash_tag_is_refused() {
        for prefix in ["", "a{b", "a}b"] {
            assert!(matches!(Keys::new(prefix), Err(QueueError::Config(_))), "{prefix}");
        }
    }
}
