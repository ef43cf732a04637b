//! Ids in paths.

use std::str::FromStr;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use crate::api::problem::Problem;
use crate::domain::ids::{JobId, WorkerId};

/// The job that a path names.
pub(super) struct JobPath(pub(super) JobId);

/// The worker that a path names.
pub(super) struct WorkerPath(pub(super) WorkerId);

/// The replica that a path names.
pub(super) struct MemberPath(pub(super) u64);

impl<S: Send + Sync> FromRequestParts<S> for JobPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        id(parts, state, "job_id").await.map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for WorkerPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        id(parts, state, "worker_id").await.map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for MemberPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        text(parts, state)
            .await
            .and_then(|text| text.parse().ok())
            .filter(|id| (1..=i64::MAX.cast_unsigned()).contains(id))
            .map(Self)
            .ok_or_else(|| Problem::malformed_field("id", "must be a whole number from 1"))
    }
}

async fn id<T: FromStr, S: Send + Sync>(parts: &mut Parts, state: &S, field: &str) -> Result<T, Problem> {
    text(parts, state)
        .await
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Problem::malformed_field(field, "must be a UUID"))
}

/// The path's one parameter, which may be anything that a client can encode.
async fn text<S: Send + Sync>(parts: &mut Parts, state: &S) -> Option<String> {
    Path::<String>::from_request_parts(parts, state).await.ok().map(|Path(text)| text)
}
