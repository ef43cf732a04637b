//! Checks that REST and gRPC share.

use std::str::FromStr;
use std::time::Duration;

use uuid::Uuid;

use crate::domain::ids::{JobId, WorkerId};
use crate::domain::validate::{FieldError, Validator, check_text};
use crate::domain::worker::WorkerDraft;
use crate::security::Caller;

/// Longest error message or stack, in characters.
pub(super) const MAX_TEXT: usize = 65_536;
/// Longest duration that is accepted, in milliseconds: what a PostgreSQL `INTEGER` holds, 24 days.
pub(super) const MAX_DURATION_MS: i64 = i32::MAX as i64;
/// Most jobs that a heartbeat may list.
pub(super) const MAX_LISTED_JOBS: usize = 1_000;
/// Most models that a worker may name as loaded.
const MAX_LOADED_MODELS: usize = 100;
/// Longest that a worker may wait for a job.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(30);

/// Most tags that one listing can filter by.
pub(super) const MAX_TAGS_OF_FILTER: usize = 32;
/// Last page that can be asked for.
pub(super) const MAX_PAGE: i64 = 100_000;
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
    Caller::current().and_then(|caller| caller.subject().map(str::to_owned)).unwrap_or_default()
}

/// The models that a worker says it has loaded.
pub(super) fn loaded_models(v: &mut Validator, names: Vec<String>) -> Option<Vec<String>> {
    if names.len() > MAX_LOADED_MODELS {
        v.reject("loaded_models", format!("may name at most {MAX_LOADED_MODELS} models"));
        return None;
    }
    if let Some(wrong) = names.iter().find_map(|name| check_text(name, 1, 255).err()) {
        v.reject("loaded_models", wrong);
        return None;
    }
    Some(names)
}

/// The jobs that a worker says it holds.
pub(super) fn listed_jobs(v: &mut Validator, ids: &[String]) -> Option<Vec<JobId>> {
    if ids.len() > MAX_LISTED_JOBS {
        v.reject("current_jobs", format!("may list at most {MAX_LISTED_JOBS} jobs"));
        return None;
    }
    let jobs: Option<Vec<JobId>> = ids.iter().map(|id| id.parse().ok()).collect();
    if jobs.is_none() {
        v.reject("current_jobs", "must be UUIDs");
    }
    jobs
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
