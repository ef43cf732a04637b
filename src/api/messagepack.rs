//! MessagePack beside JSON: bodies are turned into JSON where they arrive, and answers into MessagePack where the
//! client asks for it, so that everything in between knows one format. Problems stay JSON.

use std::fmt;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::problem::Problem;
use crate::services::error::ServiceError;

/// The media type, as IANA has registered it.
pub(super) const MESSAGE_PACK: &str = "application/vnd.msgpack";
/// Names that are in use beside it.
const NAMES: [&str; 3] = [MESSAGE_PACK, "application/msgpack", "application/x-msgpack"];
/// How deep values may be nested: as deep as JSON's.
const DEPTH: usize = 128;

/// Whether this is the media type, in lower case and without parameters.
pub(super) fn is(essence: &str) -> bool {
    NAMES.contains(&essence)
}

/// Turns one value into JSON.
///
/// # Errors
/// Says what is wrong: no MessagePack, or something that JSON has not, such as binary data.
pub(super) fn to_json(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut rest = bytes;
    let mut reader = rmp_serde::Deserializer::new(&mut rest);
    reader.set_max_depth(DEPTH);
    let Plain(value) = Plain::deserialize(&mut reader).map_err(|error| error.to_string())?;
    if !rest.is_empty() {
        return Err(format!("{} bytes follow the value", rest.len()));
    }
    serde_json::to_vec(&value).map_err(|error| error.to_string())
}

/// Under which name the client wants MessagePack, if at least as much as JSON.
pub(super) fn wanted(headers: &HeaderMap) -> Option<&'static str> {
    let ranges = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (mut packed, mut json) = ((0.0, MESSAGE_PACK), 0.0);
    for range in ranges.flat_map(|value| value.split(',')) {
        let (essence, parameters) = range.split_once(';').unwrap_or((range, ""));
        let essence = essence.trim().to_ascii_lowercase();
        if let Some(name) = NAMES.into_iter().find(|name| *name == essence) {
            let asked = quality(parameters);
            if asked > packed.0 {
                packed = (asked, name);
            }
        } else if essence == "application/json" {
            json = quality(parameters);
        }
    }
    let (quality, name) = packed;
    (quality > 0.0 && quality >= json).then_some(name)
}

/// How much a media range is wanted: 1 where nothing is said.
fn quality(parameters: &str) -> f32 {
    let quality = parameters.split(';').find_map(|parameter| parameter.trim().strip_prefix("q="));
    quality.map_or(1.0, |quality| quality.trim().parse().unwrap_or(0.0))
}

/// Turns an answer in JSON into MessagePack. Others are left as they are, and so is one that holds a payload from before
/// 120 levels were the most: it may go beyond what can be read with what is around it.
pub(super) async fn packed(response: Response, name: &'static str) -> Response {
    let json = HeaderValue::from_static("application/json");
    if response.headers().get(header::CONTENT_TYPE) != Some(&json) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    // The body is in memory already, however long it is.
    let Ok(json) = to_bytes(body, usize::MAX).await else {
        return Problem::from(ServiceError::Internal).into_response();
    };
    let packed = serde_json::from_slice(&json).ok().and_then(|value: Value| rmp_serde::to_vec(&value).ok());
    let Some(packed) = packed else { return Response::from_parts(parts, Body::from(json)) };
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(name));
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(packed.len()));
    Response::from_parts(parts, Body::from(packed))
}

/// A value of which JSON knows every part.
struct Plain(Value);

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PlainVisitor).map(Self)
    }
}

struct PlainVisitor;

impl<'de> Visitor<'de> for PlainVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON has")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        let number = serde_json::Number::from_f64(value);
        number.map(Value::Number).ok_or_else(|| E::custom("a number is infinite or none"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Plain(value)) = items.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some((name, Plain(value))) = entries.next_entry::<String, Plain>()? {
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Value, String> {
        to_json(bytes).map(|json| serde_json::from_slice(&json).unwrap())
    }

    fn asked(accept: &str) -> Option<&'static str> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        wanted(&headers)
    }

    #[test]
    fn every_value_of_json_comes_through() {
        let value = json!({"a": [null, true, -1, u64::MAX, 1.5, "é"], "b": {"": {}}});
        assert_eq!(read(&rmp_serde::to_vec(&value).unwrap()), Ok(value));
    }

    #[test]
    fn what_json_has_not_is_refused() {
        let deep = [vec![0x91; DEPTH + 1], vec![0xc0]].concat();
        let bodies: [&[u8]; 8] = [
            b"",
            b"\xc1",
            b"\x92\xc0",
            // Binary data, an extension, a number as a name, two values, not a number.
            b"\xc4\x01a",
            b"\xd4\x01a",
            b"\x81\x01\xc0",
            b"\xc0\xc0",
            b"\xcb\x7f\xf8\0\0\0\0\0\0",
        ];
        for body in bodies.into_iter().chain([&*deep]) {
            assert!(read(body).is_err(), "{body:?}");
        }
        assert_eq!(read(b"\xc0\xc0"), Err("1 bytes follow the value".to_owned()));
        assert!(read(&[vec![0x91; DEPTH - 1], vec![0xc0]].concat()).is_ok());
    }

    #[test]
    fn it_is_answered_to_who_wants_it_no_less_than_json() {
        for (accept, name) in [
            ("application/vnd.msgpack", MESSAGE_PACK),
            ("application/msgpack", "application/msgpack"),
            ("text/html, Application/MsgPack;q=0.5", "application/msgpack"),
            ("application/json, application/x-msgpack", "application/x-msgpack"),
            (
                "application/x-msgpack;q=0.1, application/msgpack, application/vnd.msgpack;q=0",
                "application/msgpack",
            ),
        ] {
            assert_eq!(asked(accept), Some(name), "{accept}");
        }
        for accept in [
            "*/*",
            "application/json",
            "application/msgpack;q=0",
            "application/json, application/msgpack;q=0.9",
        ] {
            assert_eq!(asked(accept), None, "{accept}");
        }
        assert_eq!(wanted(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn an_answer_that_is_nested_too_deeply_stays_json() {
        for (depth, kind) in [(100, MESSAGE_PACK), (DEPTH, "application/json")] {
            let text = [vec![b'['; depth], vec![b']'; depth]].concat();
            let answer = ([(header::CONTENT_TYPE, "application/json")], text.clone()).into_response();
            let answer = packed(answer, MESSAGE_PACK).await;
            assert_eq!(
                (answer.status().as_u16(), &answer.headers()[header::CONTENT_TYPE]),
                (200, &kind.parse().unwrap())
            );
            let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
            assert_eq!(body == text, depth == DEPTH);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes in any::<Vec<u8>>()) {
            let _ = to_json(&bytes);
        }
    }
}
