//! Bodies, JSON or MessagePack: read within a limit and a deadline, then taken apart.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, OptionalFromRequest, Request};
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde::de::value::MapDeserializer;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;

use crate::api::messagepack;
use crate::api::problem::{Problem, ProblemType};
use crate::api::state::Api;
use crate::domain::validate::FieldError;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);
/// How much of a body over the limit is read and thrown away, so that its sender gets to see the answer
/// instead of a broken connection. In bytes.
const DRAINED_BYTES: usize = 16 << 20;
/// A MessagePack map without members.
const EMPTY_MAP: &[u8] = &[0x80];

/// A body that is one JSON object. Unknown members are ignored; of repeated ones the last counts.
pub(super) struct JsonObject<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Api> for JsonObject<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        let (headers, bytes) = arrived(request, api).await?;
        decode(&headers, &bytes).map(Self)
    }
}

/// An empty body is none, and needs no type: `curl -X POST` sends neither.
impl<T: DeserializeOwned> OptionalFromRequest<Api> for JsonObject<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Option<Self>, Problem> {
        let (headers, bytes) = arrived(request, api).await?;
        (!bytes.is_empty()).then(|| decode(&headers, &bytes).map(Self)).transpose()
    }
}

/// The body of a call that takes none. What would be ignored is refused: whoever sends it means something by it. An
/// empty object means nothing.
pub(super) struct NoBody;

impl FromRequest<Api> for NoBody {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Api) -> Result<Self, Problem> {
        let (_, bytes) = arrived(request, api).await?;
        match bytes.trim_ascii() {
            b"" | b"{}" | EMPTY_MAP => Ok(Self),
            _ => Err(Problem::invalid(vec![FieldError::new(
                "body",
                "must be empty: what this call takes is part of its URL",
            )])),
        }
    }
}

/// The headers, and the body once it is there.
async fn arrived(request: Request, api: &Api) -> Result<(HeaderMap, Bytes), Problem> {
    let (parts, body) = request.into_parts();
    let bytes = tokio::time::timeout(BODY_TIMEOUT, read(body, api.limits.max_body_bytes))
        .await
        .map_err(|_| Problem::new(ProblemType::RequestTimeout, "the body did not arrive in time"))??;
    Ok((parts.headers, bytes))
}

/// Reads a body of at most `limit` bytes.
async fn read(body: Body, limit: usize) -> Result<Bytes, Problem> {
    let mut chunks = body.into_data_stream();
    let mut read = BytesMut::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk
            .map_err(|_| Problem::new(ProblemType::MalformedRequest, "the body ended before its time"))?;
        if read.len() + chunk.len() > limit {
            drop(read);
            let mut rest = chunk.len();
            while let Some(Ok(chunk)) = chunks.next().await {
                rest += chunk.len();
                if rest > DRAINED_BYTES {
                    break;
                }
            }
            let detail = format!("a body may have at most {limit} bytes");
            return Err(Problem::new(ProblemType::BodyTooLarge, detail));
        }
        read.extend_from_slice(&chunk);
    }
    Ok(read.freeze())
}

/// Takes a body apart as its type says.
fn decode<T: DeserializeOwned>(headers: &HeaderMap, bytes: &[u8]) -> Result<T, Problem> {
    match media_type(headers)? {
        MediaType::Json => parse(bytes),
        MediaType::MessagePack => {
            let json = messagepack::to_json(bytes).map_err(|error| {
                let detail = format!("the body is not valid MessagePack: {error}");
                Problem::new(ProblemType::MalformedRequest, detail)
            })?;
            parse(&json)
        }
    }
}

/// How a body is written.
#[derive(Debug, PartialEq, Eq)]
enum MediaType {
    Json,
    MessagePack,
}

/// Accepts `application/json`, `application/*+json` and MessagePack, uncompressed.
fn media_type(headers: &HeaderMap) -> Result<MediaType, Problem> {
    let refused = |detail: &str| Err(Problem::new(ProblemType::UnsupportedMediaType, detail));
    let text =
        |name| headers.get(name).map(|value| value.to_str().unwrap_or("unreadable").to_ascii_lowercase());
    if text(header::CONTENT_ENCODING).is_some_and(|encoding| encoding.trim() != "identity") {
        return refused("compressed bodies are not read here");
    }
    let declared = text(header::CONTENT_TYPE).unwrap_or_default();
    let essence = declared.split(';').next().unwrap_or_default().trim();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(MediaType::Json);
    }
    if messagepack::is(essence) {
        return Ok(MediaType::MessagePack);
    }
    refused("Content-Type must be application/json or application/msgpack")
}

/// Reads one JSON object.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let malformed = |error: serde_json::Error| {
        Problem::new(ProblemType::MalformedRequest, format!("the body is not valid JSON: {error}"))
    };
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        serde_json::from_slice::<IgnoredAny>(bytes).map_err(malformed)?;
        return Err(Problem::new(ProblemType::MalformedRequest, "the body must be a JSON object"));
    }
    match serde_json::from_slice(bytes) {
        Ok(value) => Ok(value),
        // Well-formed JSON that the type does not take: a member that is given twice.
        Err(error) if error.is_data() => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_slice(bytes).map_err(malformed)?;
            T::deserialize(MapDeserializer::new(members.into_iter())).map_err(malformed)
        }
        Err(error) => Err(malformed(error)),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use serde::Deserialize;
    use serde_json::Value;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Draft {
        a: Option<Value>,
        raw: Option<Box<RawValue>>,
    }

    fn refusal(bytes: &[u8]) -> Problem {
        parse::<Draft>(bytes).unwrap_err()
    }

    #[test]
    fn of_a_repeated_member_the_last_counts() {
        let draft: Draft =
            parse(br#"{"a": 1, "raw": {"x":1}, "b": {}, "a": 2, "raw": {"y": 1.50}}"#).unwrap();
        assert_eq!(draft.a, Some(Value::from(2)));
        assert_eq!(draft.raw.unwrap().get(), r#"{"y": 1.50}"#);
    }

    #[test]
    fn malformed_json_is_located() {
        let problem = format!("{:?}", refusal(b"{\"a\": 1,\n \"raw\": }"));
        assert!(problem.contains("line 2 column 9"), "{problem}");
    }

    #[test]
    fn whatever_is_no_object_is_malformed() {
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        let bodies: [&[u8]; 12] = [
            b"",
            b" ",
            b"[]",
            b"[1, 2]",
            b"null",
            b"\"text\"",
            b"{",
            b"{} {}",
            b"{\"a\": \xff}",
            b"{\"raw\": \"\xff\"}",
            b"\xef\xbb\xbf{}",
            deep.as_bytes(),
        ];
        for body in bodies {
            assert_eq!(refusal(body).kind(), ProblemType::MalformedRequest, "{body:.20?}");
        }
    }

    #[test]
    fn only_json_and_messagepack_are_read() {
        let read = |kind: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            media_type(&headers).ok()
        };
        for json in ["application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"] {
            assert_eq!(read(json), Some(MediaType::Json), "{json}");
        }
        for packed in ["application/msgpack", "application/vnd.msgpack", "Application/X-MsgPack"] {
            assert_eq!(read(packed), Some(MediaType::MessagePack), "{packed}");
        }
        for bad in ["", "text/plain", "application/jsonx", "text/x+json", "multipart/form-data"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert!(media_type(&HeaderMap::new()).is_err());
    }

    #[tokio::test]
    async fn a_body_may_reach_its_limit_and_not_pass_it() {
        assert_eq!(read(Body::from(vec![b' '; 10]), 10).await.unwrap().len(), 10);
        assert_eq!(read(Body::from(vec![b' '; 11]), 10).await.unwrap_err().kind(), ProblemType::BodyTooLarge);
    }
}
