//! Checks that REST and gRPC share.

use std::str::FromStr;
use std::time::Duration;

use uuid::Uuid;

use crate::domain::ids::WorkerId;
use crate::domain::validate::{FieldError, Validator};
use crate::domain::worker::WorkerDraft;

/// Longest error message or stack, in characters.
pub(super) const MAX_TEXT: usize = 65_536;
/// Longest duration that is accepted, in milliseconds: what a PostgreSQL `INTEGER` holds, 24 days.
pub(super) const MAX_DURATION_MS: i64 = i32::MAX as i64;
/// Longest that a worker may wait for a job.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(30);

/// Most tags that one listing can filter by.
pub(super) const MAX_TAGS: usize = 32;
/// Last page that can be asked for.
pub(super) const MAX_PAGE: i64 = i32::MAX as i64;
/// Largest page, in jobs.
pub(super) const MAX_PAGE_SIZE: i64 = 100;

/// An id of whichever kind is wanted.
pub(super) fn id<T: FromStr>(v: &mut Validator, field: &str, text: &str) -> Option<T> {
    let id = text.parse().ok();
    if id.is_none() {
        v.reject(field, "must be a UUID");
    }
    id
}

/// Whose idempotency keys a caller uses. Callers without a name share theirs.
pub(super) fn key_scope() -> String {
    String::new()
}

/// Passes a registration on, or names all that is wrong with it: what `noted` holds already and what the
/// registration's own check finds.
pub(super) fn checked_draft(noted: Validator, draft: WorkerDraft) -> Result<WorkerDraft, Vec<FieldError>> {
    let Err(mut errors) = noted.finish(Some(())) else { return Ok(draft) };
    for error in draft.check(WorkerId(Uuid::nil())).err().unwrap_or_default() {
        if errors.iter().all(|known| known.field != error.field) {
            errors.push(error);
        }
    }
    Err(errors)
}

/// A text from a worker, made storable: no U+0000, at most [`MAX_TEXT`] characters.
pub(super) fn storable_text(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c == '\0' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_made_storable() {
        assert_eq!(storable_text("a\0b"), "a\u{fffd}b");
        assert_eq!(storable_text(&"é".repeat(MAX_TEXT + 1)).chars().count(), MAX_TEXT);
    }
}
