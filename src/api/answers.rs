//! Large answers to reads on their way: the memory that they take together is bounded, however slowly they are read.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, HttpBody, to_bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::{Problem, ProblemType};
use crate::services::error::ServiceError;

/// What is counted, in bytes; smaller answers are not.
const UNIT: usize = 1 << 20;
/// Units that are on their way at the most.
const MOST: usize = 256;
/// How much is handed to a connection at a time, in bytes.
const CHUNK: usize = 64 << 10;

/// Room for answers on their way.
pub struct Answers(Arc<Semaphore>);

impl Default for Answers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MOST)))
    }
}

impl Answers {
    /// Has a large answer count until it is written. If there is no room for it, another one goes out: it may be asked
    /// for again.
    pub(super) async fn carry(&self, response: Response) -> Response {
        let Some(size) = response.body().size_hint().exact().filter(|size| *size > UNIT as u64) else {
            return response;
        };
        let units = usize::try_from(size).unwrap_or(usize::MAX).div_ceil(UNIT);
        let permit = u32::try_from(units)
            .ok()
            .and_then(|units| Arc::clone(&self.0).try_acquire_many_owned(units).ok());
        let Some(permit) = permit else {
            let detail = format!("more than {MOST} MiB of answers are on their way to clients");
            return Problem::new(ProblemType::Overloaded, detail).into_response();
        };
        let (mut parts, body) = response.into_parts();
        // It is in memory already.
        let Ok(bytes) = to_bytes(body, usize::MAX).await else {
            return Problem::from(ServiceError::Internal).into_response();
        };
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
        Response::from_parts(parts, in_chunks(Bytes::from_owner(Counted { bytes, _permit: permit })))
    }
}

/// Bytes that count for as long as any part of them is kept.
struct Counted {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A connection asks for no more than it can pass on.
fn in_chunks(bytes: Bytes) -> Body {
    let chunks = stream::unfold(bytes, async |mut rest| {
        let chunk = rest.split_to(CHUNK.min(rest.len()));
        (!chunk.is_empty()).then_some((Ok::<_, Infallible>(chunk), rest))
    });
    Body::from_stream(chunks)
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    fn answer(bytes: usize) -> Response {
        Body::from(vec![b'a'; bytes]).into_response()
    }

    #[tokio::test]
    async fn a_large_answer_counts_until_it_is_read_or_dropped() {
        let answers = Answers(Arc::new(Semaphore::new(3)));
        let first = answers.carry(answer(UNIT + 1)).await;
        assert_eq!(first.headers()[header::CONTENT_LENGTH], "1048577");
        let refused = answers.carry(answer(UNIT + 1)).await;
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(refused.headers().contains_key(header::RETRY_AFTER));
        assert_eq!(answers.carry(answer(UNIT)).await.status(), StatusCode::OK, "a small one always goes");
        let read = to_bytes(first.into_body(), usize::MAX).await.unwrap();
        assert!(read.len() == UNIT + 1 && read.iter().all(|byte| *byte == b'a'));
        drop(read);
        let second = answers.carry(answer(UNIT + 1)).await;
        assert_eq!(second.status(), StatusCode::OK);
        drop(second);
        assert_eq!(answers.0.available_permits(), 3);
    }
}
