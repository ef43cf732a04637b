//! Tags as the table of tags names them.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::domain::payload::Payload;

/// A tag's name: short and of one length, whatever its key and value are. The same as `cortex_tag` in PostgreSQL.
pub(super) fn tag_id(key: &str, value: &str) -> Uuid {
    let text = format!("{}:{key}{value}", key.len());
    let digest: [u8; 32] = Sha256::digest(text).into();
    digest.first_chunk().map_or(Uuid::nil(), |bytes| Uuid::from_bytes(*bytes))
}

/// The same in eight bytes: short enough for all of a job's to stand in an index. The same as `cortex_short_tags` in
/// PostgreSQL.
pub(super) fn short(tag: Uuid) -> i64 {
    let digest = tag.into_bytes();
    digest.first_chunk().map_or(0, |bytes| i64::from_be_bytes(*bytes))
}

/// All names of a job's tags.
pub(super) fn tag_ids(tags: &Payload) -> Vec<Uuid> {
    // Most jobs have none.
    if tags.as_str() == "{}" {
        return Vec::new();
    }
    let tags: BTreeMap<String, String> = serde_json::from_str(tags.as_str()).unwrap_or_default();
    tags.iter().map(|(key, value)| tag_id(key, value)).collect()
}
