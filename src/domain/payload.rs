//! JSON objects that travel as they came: checked once, never parsed and printed again.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// How deep an object may be nested. JSON is commonly read to 128 levels, and lists and batches put some around it.
const MAX_DEPTH: usize = 120;
/// Longest number literal that is accepted, in characters; PostgreSQL's `jsonb` refuses extreme ones.
const MAX_NUMBER_LENGTH: usize = 300;
/// Decimal exponents that are accepted: those of a double, as small as they come.
const EXPONENTS: std::ops::RangeInclusive<i64> = -324..=308;
/// How many characters the numbers of an object may gain together when `jsonb` writes their exponents out.
/// Without it a small body becomes a job that no worker and no replica can take from another.
const MAX_GROWTH: u64 = 1 << 20;

/// A JSON object as text, known to be valid and storable as PostgreSQL `jsonb`.
#[derive(Clone, PartialEq, Eq, utoipa::ToSchema)]
#[schema(value_type = Object)]
pub struct Payload(Arc<str>);

impl Default for Payload {
    fn default() -> Self {
        Self::empty()
    }
}

impl Payload {
    /// Checks that `text` is a JSON object which PostgreSQL can store and everybody can read again: nested at most 120
    /// levels, no U+0000 in strings, numbers within the range of a double.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if !text.starts_with('{') {
            return Err("must be a JSON object".to_owned());
        }
        let mut deserializer = serde_json::Deserializer::from_str(text);
        Storable { levels: MAX_DEPTH }
            .deserialize(&mut deserializer)
            .and_then(|()| deserializer.end())
            .map_err(|error| format!("must be a JSON object that can be stored: {error}"))?;
        check_numbers(text)?;
        Ok(Self(text.into()))
    }

    /// The same for bytes, which must be UTF-8.
    pub fn from_utf8(bytes: &[u8]) -> Result<Self, String> {
        std::str::from_utf8(bytes).map_err(|_| "must be UTF-8".to_owned()).and_then(Self::parse)
    }

    /// A payload that was stored before and needs no check.
    pub fn trusted(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The object `{}`.
    pub fn empty() -> Self {
        Self("{}".into())
    }

    /// Whether the object has no members.
    pub fn is_empty(&self) -> bool {
        self.0[1..].trim_start().starts_with('}')
    }

    /// The object with these members behind its own, which has none of their names.
    pub fn with(&self, members: &Map<String, Value>) -> Self {
        let added = Value::Object(members.clone()).to_string();
        match self.0.trim_end().strip_suffix('}') {
            Some(own) if !self.is_empty() && !members.is_empty() => {
                Self(format!("{own},{}", &added[1..]).into())
            }
            _ if members.is_empty() => self.clone(),
            _ => Self(added.into()),
        }
    }

    /// The JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The JSON text as bytes that share it.
    pub fn bytes(&self) -> Bytes {
        Bytes::from_owner(self.clone())
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

/// In JSON the object itself, elsewhere its text.
impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            let raw: &RawValue = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
            raw.serialize(serializer)
        } else {
            serializer.serialize_str(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let raw = Box::<RawValue>::deserialize(deserializer)?;
            Self::parse(raw.get()).map_err(de::Error::custom)
        } else {
            String::deserialize(deserializer).map(Self::trusted)
        }
    }
}

/// Walks a JSON value, keeps nothing, and fails on what `jsonb` cannot hold and on what is nested too deeply.
struct Storable {
    /// How many more there may be.
    levels: usize,
}

impl Storable {
    /// What stands in an array or an object.
    fn inside<E: de::Error>(self) -> Result<Self, E> {
        let levels = self.levels.checked_sub(1);
        levels
            .map(|levels| Self { levels })
            .ok_or_else(|| E::custom(format_args!("it may be nested at most {MAX_DEPTH} levels deep")))
    }
}

impl<'de> DeserializeSeed<'de> for Storable {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Storable {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        if text.contains('\0') {
            return Err(E::custom("the character U+0000 cannot be stored"));
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Self { levels } = self.inside()?;
        while items.next_element_seed(Self { levels })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let Self { levels } = self.inside()?;
        while members.next_key_seed(Self { levels })?.is_some() {
            members.next_value_seed(Self { levels })?;
        }
        Ok(())
    }
}

/// Refuses number literals that fit a double but not PostgreSQL's `numeric`, and too many that are long
/// once they are written out.
fn check_numbers(json: &str) -> Result<(), String> {
    let bytes = json.as_bytes();
    let mut growth = 0;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = end_of_string(bytes, at),
            b'-' | b'0'..=b'9' => {
                let length = bytes[at..]
                    .iter()
                    .take_while(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'))
                    .count();
                growth += check_number(&json[at..at + length])?;
                at += length;
            }
            _ => at += 1,
        }
    }
    if growth > MAX_GROWTH {
        return Err(format!(
            "holds numbers that gain {growth} characters when their exponents are written out; {MAX_GROWTH} \
             at most"
        ));
    }
    Ok(())
}

/// Answers how many characters the number may gain when its exponent is written out.
fn check_number(literal: &str) -> Result<u64, String> {
    let exponent = literal.split(['e', 'E']).nth(1).unwrap_or("0");
    let exponent = exponent.parse().ok().filter(|exponent| EXPONENTS.contains(exponent));
    match exponent {
        Some(exponent) if literal.len() <= MAX_NUMBER_LENGTH => Ok(exponent.unsigned_abs()),
        _ => Err(format!(
            "holds a number that cannot be stored: at most {MAX_NUMBER_LENGTH} characters and an exponent \
             from {} to {}",
            EXPONENTS.start(),
            EXPONENTS.end()
        )),
    }
}

/// The index after the string that begins at `start`, in JSON known to be well formed.
fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_text_as_it_came() {
        let text = r#"{"b": 1.50, "a": ["\u00e9", {"x": null}]}"#;
        assert_eq!(Payload::parse(text).unwrap().as_str(), text);
    }

    #[test]
    fn refuses_what_postgresql_cannot_store() {
        for text in [
            r#"{"a": "\u0000"}"#,
            r#"{"\u0000": 1}"#,
            r#"{"a": "\ud800"}"#,
            r#"{"a": 1e400}"#,
            r#"{"a": 1e-400}"#,
            &format!(r#"{{"a": 0.{}1}}"#, "0".repeat(20_000)),
            &format!(r#"{{"a": {}1{}}}"#, "[".repeat(200), "]".repeat(200)),
            &format!(r#"{{"a": [{}1]}}"#, "1e308,".repeat(4_000)),
            "[]",
            "{",
            "{} {}",
            "null",
            "",
        ] {
            assert!(Payload::parse(text).is_err(), "accepted {text:.60}");
        }
    }

    #[test]
    fn what_is_nested_deeply_can_still_be_read_in_the_middle_of_something() {
        let nested =
            |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1));
        let taken = Payload::parse(&nested(MAX_DEPTH)).unwrap();
        let shown = serde_json::json!({"jobs": [{"input_data": null}]}).to_string();
        assert!(serde_json::from_str::<Value>(&shown.replace("null", taken.as_str())).is_ok());
        for levels in [MAX_DEPTH + 1, 100_000] {
            let refused = Payload::parse(&nested(levels)).unwrap_err();
            assert!(refused.contains("at most 120 levels"), "{refused}");
        }
    }

    #[test]
    fn numbers_may_not_grow_beyond_all_measure() {
        let numbers = |count: usize| format!(r#"{{"a": [{}]}}"#, vec!["1e-256"; count].join(","));
        assert!(Payload::parse(&numbers(4096)).is_ok());
        assert!(Payload::parse(&numbers(4097)).unwrap_err().contains("written out"));
    }

    #[test]
    fn every_double_is_taken() {
        for number in [f64::MAX, f64::MIN, f64::MIN_POSITIVE, 5e-324, -5e-324] {
            let text = serde_json::json!({"a": [number]}).to_string();
            assert!(Payload::parse(&text).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_number_inside_a_string_is_text() {
        assert!(Payload::parse(r#"{"a": "1e99999 \" 1e99999"}"#).is_ok());
    }

    #[test]
    fn knows_an_empty_object() {
        assert!(Payload::parse(" { \n } ").unwrap().is_empty());
        assert!(!Payload::parse(r#"{"a":1}"#).unwrap().is_empty());
    }

    #[test]
    fn is_an_object_in_json_and_a_string_in_message_pack() {
        let payload = Payload::parse(r#"{"a":1}"#).unwrap();
        assert_eq!(serde_json::to_string(&payload).unwrap(), r#"{"a":1}"#);
        let packed = rmp_serde::to_vec(&payload).unwrap();
        assert_eq!(rmp_serde::from_slice::<Payload>(&packed).unwrap(), payload);
    }
}
