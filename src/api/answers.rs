//! Large answers to reads on their way: the memory that they take together is bounded, and none keeps its part for longer
//! than a slow client needs.

use std::io::{Error, ErrorKind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, HttpBody, to_bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use super::problem::{Problem, ProblemType};
use crate::services::error::ServiceError;

/// What is counted, in bytes; smaller answers are not.
const UNIT: usize = 1 << 20;
/// Units that are on their way at the most.
const MOST: usize = 256;
/// How much is handed to a connection at a time, in bytes.
const CHUNK: usize = 64 << 10;
/// How long any answer may take.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// How much longer for each unit.
const READ_UNIT_WITHIN: Duration = Duration::from_secs(1);

/// Room for answers on their way.
pub struct Answers(Arc<Semaphore>);

impl Default for Answers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MOST)))
    }
}

impl Answers {
    /// Has a large answer count until it is written, or breaks it off if that takes too long. If there is no room for it,
    /// another one goes out: it may be asked for again.
    pub(super) async fn carry(&self, response: Response) -> Response {
        let Some(size) = response.body().size_hint().exact().filter(|size| *size > UNIT as u64) else {
            return response;
        };
        let units = usize::try_from(size).unwrap_or(usize::MAX).div_ceil(UNIT);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let Ok(permit) = Arc::clone(&self.0).try_acquire_many_owned(units) else {
            let detail = format!("more than {MOST} MiB of answers are on their way to clients");
            return Problem::new(ProblemType::Overloaded, detail).into_response();
        };
        let (mut parts, body) = response.into_parts();
        // It is in memory already.
        let Ok(bytes) = to_bytes(body, usize::MAX).await else {
            return Problem::from(ServiceError::Internal).into_response();
        };
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
        let answer = Counted { bytes, _permit: permit };
        Response::from_parts(parts, in_chunks(answer, READ_WITHIN + READ_UNIT_WITHIN * units))
    }
}

/// What is left of an answer. It counts as a whole until it is gone.
struct Counted {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

/// A connection asks for no more than it can pass on, and gets copies: what it keeps is small and not counted. One that asks
/// too late finds the answer gone.
fn in_chunks(answer: Counted, within: Duration) -> Body {
    let left = Arc::new(Mutex::new(Some(answer)));
    let late = tokio::spawn({
        let left = Arc::clone(&left);
        async move {
            sleep(within).await;
            left.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    });
    let late = AbortOnDropHandle::new(late);
    Body::from_stream(stream::unfold((left, late), async |(left, late)| {
        let chunk = next_chunk(&mut left.lock().unwrap_or_else(PoisonError::into_inner)).transpose()?;
        Some((chunk, (left, late)))
    }))
}

fn next_chunk(left: &mut Option<Counted>) -> Result<Option<Bytes>, Error> {
    let Some(answer) = left else {
        return Err(Error::new(ErrorKind::TimedOut, "the client read too slowly"));
    };
    let chunk = answer.bytes.split_to(CHUNK.min(answer.bytes.len()));
    Ok((!chunk.is_empty()).then(|| Bytes::copy_from_slice(&chunk)))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use futures::StreamExt;

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
        let second = answers.carry(answer(UNIT + 1)).await;
        assert_eq!(second.status(), StatusCode::OK);
        drop(second);
        assert_eq!(answers.0.available_permits(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_read_too_slowly_is_broken_off_and_gives_its_room_back() {
        let answers = Answers(Arc::new(Semaphore::new(2)));
        let in_time = READ_WITHIN + 2 * READ_UNIT_WITHIN - Duration::from_millis(1);
        let mut slow = answers.carry(answer(UNIT + 1)).await.into_body().into_data_stream();
        sleep(in_time).await;
        assert_eq!(slow.next().await.unwrap().unwrap().len(), CHUNK);
        assert_eq!(answers.0.available_permits(), 0, "it counts as a whole");
        sleep(Duration::from_millis(2)).await;
        assert_eq!(answers.0.available_permits(), 2, "though nothing was asked for");
        assert!(slow.next().await.unwrap().is_err());
    }
}
