//! Large answers to reads on their way: the memory that they take together is bounded, and none keeps its part for longer
//! than a slow client needs.

use std::future::ready;
use std::io::{Error, ErrorKind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
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
    /// Has a large answer count until it is written, or breaks it off if that takes too long.
    ///
    /// # Errors
    /// If there is no room for it: it may be asked for again.
    pub(super) async fn carry(&self, response: Response) -> Result<Response, Problem> {
        match response.body().size_hint().exact() {
            Some(size) if size > UNIT as u64 => self.carry_whole(response).await,
            Some(_) | None => Ok(response),
        }
    }

    /// The same for one that need not say how large it is, and is in memory as a whole.
    ///
    /// # Errors
    /// If there is no room for it.
    pub(super) async fn carry_whole(&self, response: Response) -> Result<Response, Problem> {
        // What is all headers stays so; a refusal of gRPC is.
        if response.body().is_end_stream() {
            return Ok(response);
        }
        let (mut parts, body) = response.into_parts();
        let sized = body.size_hint().exact().is_some();
        let whole = body.collect().await.map_err(|_| Problem::from(ServiceError::Internal))?;
        let trailers = whole.trailers().cloned();
        let bytes = whole.to_bytes();
        if sized {
            parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
        }
        let units = u32::try_from(bytes.len().div_ceil(UNIT)).unwrap_or(u32::MAX);
        let counted = if units > 1 { units } else { 0 };
        let Ok(permit) = Arc::clone(&self.0).try_acquire_many_owned(counted) else {
            let detail = format!("more than {MOST} MiB of answers are on their way to clients");
            return Err(Problem::new(ProblemType::Overloaded, detail));
        };
        if counted == 0 {
            let body = Full::new(bytes).with_trailers(ready(trailers.map(Ok)));
            return Ok(Response::from_parts(parts, Body::new(body)));
        }
        let answer = Counted { bytes, _permit: permit };
        let body = in_chunks(answer, READ_WITHIN + READ_UNIT_WITHIN * units, trailers);
        Ok(Response::from_parts(parts, body))
    }
}

/// What is left of an answer. It counts as a whole until it is gone.
struct Counted {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

/// What a body goes on with.
struct Rest {
    left: Arc<Mutex<Option<Counted>>>,
    trailers: Option<HeaderMap>,
    _late: AbortOnDropHandle<()>,
}

/// A connection asks for no more than it can pass on, and gets copies: what it keeps is small and not counted. One that asks
/// too late finds the answer gone.
fn in_chunks(answer: Counted, within: Duration, trailers: Option<HeaderMap>) -> Body {
    let left = Arc::new(Mutex::new(Some(answer)));
    let late = tokio::spawn({
        let left = Arc::downgrade(&left);
        async move {
            sleep(within).await;
            if let Some(left) = left.upgrade() {
                left.lock().unwrap_or_else(PoisonError::into_inner).take();
            }
        }
    });
    let rest = Rest { left, trailers, _late: AbortOnDropHandle::new(late) };
    Body::new(StreamBody::new(stream::unfold(rest, async |mut rest| {
        let frame = rest.next().transpose()?;
        Some((frame, rest))
    })))
}

impl Rest {
    fn next(&mut self) -> Result<Option<Frame<Bytes>>, Error> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(answer) = left.as_mut() else {
            return Err(Error::new(ErrorKind::TimedOut, "the client read too slowly"));
        };
        let chunk = answer.bytes.split_to(CHUNK.min(answer.bytes.len()));
        Ok(if chunk.is_empty() {
            self.trailers.take().map(Frame::trailers)
        } else {
            Some(Frame::data(Bytes::copy_from_slice(&chunk)))
        })
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use axum::http::StatusCode;
    use axum::response::IntoResponse;
    use futures::StreamExt;

    use super::*;

    fn answer(bytes: usize) -> Response {
        Body::from(vec![b'a'; bytes]).into_response()
    }

    fn answers(units: usize) -> Answers {
        Answers(Arc::new(Semaphore::new(units)))
    }

    #[tokio::test]
    async fn a_large_answer_counts_until_it_is_read_or_dropped() {
        let answers = answers(3);
        let first = answers.carry(answer(UNIT + 1)).await.unwrap();
        assert_eq!(first.headers()[header::CONTENT_LENGTH], "1048577");
        let refused = answers.carry(answer(UNIT + 1)).await.unwrap_err().into_response();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(refused.headers().contains_key(header::RETRY_AFTER));
        assert!(answers.carry(answer(UNIT)).await.is_ok(), "a small one always goes");
        let read = to_bytes(first.into_body(), usize::MAX).await.unwrap();
        assert!(read.len() == UNIT + 1 && read.iter().all(|byte| *byte == b'a'));
        let second = answers.carry(answer(UNIT + 1)).await.unwrap();
        drop(second);
        assert_eq!(answers.0.available_permits(), 3);
    }

    #[tokio::test]
    async fn one_that_does_not_tell_its_size_counts_as_well_and_keeps_its_trailers() {
        let answers = answers(2);
        let message = |bytes: usize| {
            let trailers = HeaderMap::from_iter([(header::ETAG, HeaderValue::from_static("last"))]);
            let frames = [Frame::data(Bytes::from(vec![b'a'; bytes])), Frame::trailers(trailers)];
            Response::new(Body::new(StreamBody::new(stream::iter(frames.map(Ok::<_, Error>)))))
        };
        let first = answers.carry_whole(message(UNIT + 1)).await.unwrap();
        assert!(answers.carry_whole(message(UNIT + 1)).await.is_err());
        for (response, bytes) in
            [(first, UNIT + 1), (answers.carry_whole(message(UNIT)).await.unwrap(), UNIT)]
        {
            assert!(response.headers().is_empty());
            let read = response.into_body().collect().await.unwrap();
            assert_eq!(read.trailers().unwrap()[header::ETAG], "last");
            assert_eq!(read.to_bytes().len(), bytes);
        }
        assert_eq!(answers.0.available_permits(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_read_too_slowly_is_broken_off_and_gives_its_room_back() {
        let answers = answers(2);
        let in_time = READ_WITHIN + 2 * READ_UNIT_WITHIN - Duration::from_millis(1);
        let mut slow = answers.carry(answer(UNIT + 1)).await.unwrap().into_body().into_data_stream();
        sleep(in_time).await;
        assert_eq!(slow.next().await.unwrap().unwrap().len(), CHUNK);
        assert_eq!(answers.0.available_permits(), 0, "it counts as a whole");
        sleep(Duration::from_millis(2)).await;
        assert_eq!(answers.0.available_permits(), 2, "though nothing was asked for");
        assert!(slow.next().await.unwrap().is_err());
    }
}
