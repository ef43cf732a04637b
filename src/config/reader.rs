//! Takes a tree of values apart, key by key, and notes everything that is wrong with it.
//!
//! A getter that finds a bad value notes a problem and answers the default, so that reading goes on and
//! all problems come out together; the caller throws the result away when there are any.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use figment::Figment;
use figment::value::{Dict, Value};

use super::error::Problem;
use super::secret::Secret;

/// What is shared by all sections of one reading.
pub(super) struct Reading {
    pub(super) figment: Figment,
    pub(super) problems: Vec<Problem>,
}

/// One mapping of the configuration while it is read.
pub(super) struct Section<'a> {
    path: String,
    values: Dict,
    known: Vec<&'static str>,
    reading: &'a mut Reading,
}

impl<'a> Section<'a> {
    /// The whole document.
    pub(super) fn root(values: Dict, reading: &'a mut Reading) -> Self {
        Self { path: String::new(), values, known: Vec::new(), reading }
    }

    /// Reads a mapping below this one; absent means empty.
    pub(super) fn section<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'_>) -> T) -> T {
        let values = match self.take(key) {
            None => Dict::new(),
            Some(Value::Dict(_, dict)) => dict,
            Some(other) => {
                self.reject(key, &other, "must be a mapping of keys");
                Dict::new()
            }
        };
        let path = self.path_of(key);
        let mut section = Section { path, values, known: Vec::new(), reading: &mut *self.reading };
        let result = read(&mut section);
        section.finish();
        result
    }

    /// Notes the keys that nobody asked for.
    pub(super) fn finish(&mut self) {
        let known = self.known.join(", ");
        for (key, value) in std::mem::take(&mut self.values) {
            self.reject(&key, &value, format!("is not a known key; the keys here are {known}"));
        }
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> bool {
        self.value(key, "must be true or false", |value| match value {
            Value::Bool(_, flag) => Some(*flag),
            Value::String(_, text) => text.parse().ok(),
            _ => None,
        })
        .unwrap_or(default)
    }

    /// A whole number within limits.
    pub(super) fn whole<T: TryFrom<u64>>(
        &mut self,
        key: &'static str,
        limits: RangeInclusive<u64>,
        default: T,
    ) -> T {
        let expected = format!("must be a whole number from {} to {}", limits.start(), limits.end());
        self.value(key, &expected, |value| whole(value, &limits).and_then(|number| number.try_into().ok()))
            .unwrap_or(default)
    }

    /// A number within limits.
    pub(super) fn number(&mut self, key: &'static str, limits: RangeInclusive<f64>, default: f64) -> f64 {
        let expected = format!("must be a number from {} to {}", limits.start(), limits.end());
        self.value(key, &expected, |value| number(value).filter(|number| limits.contains(number)))
            .unwrap_or(default)
    }

    /// A time in seconds, fractions allowed.
    pub(super) fn seconds(
        &mut self,
        key: &'static str,
        limits: RangeInclusive<f64>,
        default: f64,
    ) -> Duration {
        let expected = format!("must be a time in seconds from {} to {}", limits.start(), limits.end());
        let seconds =
            self.value(key, &expected, |value| number(value).filter(|number| limits.contains(number)));
        Duration::from_secs_f64(seconds.unwrap_or(default))
    }

    /// A time in whole milliseconds.
    pub(super) fn millis(
        &mut self,
        key: &'static str,
        limits: RangeInclusive<u64>,
        default: u64,
    ) -> Duration {
        Duration::from_millis(self.whole(key, limits, default))
    }

    /// A shortest and a longest time in whole milliseconds, written `[min, max]`.
    pub(super) fn millis_range(
        &mut self,
        key: &'static str,
        limits: RangeInclusive<u64>,
        default: (u64, u64),
    ) -> (Duration, Duration) {
        let (from, to) = (limits.start(), limits.end());
        let expected = format!("must be [min, max] in milliseconds, both from {from} to {to}, min below max");
        let (min, max) = self
            .value(key, &expected, |value| {
                let bounds: Vec<u64> =
                    items(value)?.iter().map(|item| whole(item, &limits)).collect::<Option<_>>()?;
                match bounds[..] {
                    [min, max] if min < max => Some((min, max)),
                    _ => None,
                }
            })
            .unwrap_or(default);
        (Duration::from_millis(min), Duration::from_millis(max))
    }

    /// A text that is not empty.
    pub(super) fn text(&mut self, key: &'static str, default: &str) -> String {
        self.optional_text(key).unwrap_or_else(|| default.to_owned())
    }

    /// A text; absent and empty are the same.
    pub(super) fn optional_text(&mut self, key: &'static str) -> Option<String> {
        self.parsed(key, "must be text (put quotes around a number)", |text| Some(text.to_owned()))
    }

    /// A text that `parse` understands; absent and empty are the same.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        self.value(key, expected, |value| match value.as_str()? {
            "" => Some(None),
            text => parse(text).map(Some),
        })
        .flatten()
    }

    /// One of several words, in any case.
    pub(super) fn one_of<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let allowed: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let expected = format!("must be one of {}", allowed.join(", "));
        self.parsed(key, &expected, |text| {
            words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)).map(|(_, value)| *value)
        })
    }

    /// A secret text; its value never shows in an error.
    pub(super) fn secret(
        &mut self,
        key: &'static str,
        expected: &str,
        accept: impl FnOnce(&str) -> bool,
    ) -> Option<Secret> {
        let value = self.take(key)?;
        match value.as_str() {
            Some("") => None,
            Some(text) if accept(text) => Some(Secret::new(text)),
            _ => {
                self.reject(key, &value, expected);
                None
            }
        }
    }

    /// As [`Self::secret`], but a problem when absent or empty.
    pub(super) fn required_secret(
        &mut self,
        key: &'static str,
        expected: &str,
        accept: impl FnOnce(&str) -> bool,
    ) -> Secret {
        let secret = self.secret(key, expected, accept);
        let path = self.path_of(key);
        let reported = self.reading.problems.iter().any(|problem| problem.key == path);
        if secret.is_none() && !reported {
            self.note(key, format!("is required: {expected}"));
        }
        secret.unwrap_or_else(|| Secret::new(""))
    }

    /// A list of texts, each of which `parse` understands. Text with commas counts as a list.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<Vec<T>> {
        self.value(key, expected, |value| {
            items(value)?.iter().map(|item| item.as_str().and_then(&parse)).collect()
        })
    }

    /// As [`Self::list`], but for secrets.
    pub(super) fn secrets(
        &mut self,
        key: &'static str,
        expected: &str,
        accept: impl Fn(&str) -> bool,
    ) -> Vec<Secret> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let accepted = items(&value).and_then(|items| {
            let secret = |item: &Value| item.as_str().filter(|text| accept(text)).map(Secret::new);
            items.iter().map(secret).collect()
        });
        accepted.unwrap_or_else(|| {
            self.reject(key, &value, expected);
            Vec::new()
        })
    }

    /// Notes a problem with a key whose value was read before.
    pub(super) fn note(&mut self, key: &str, message: impl Into<String>) {
        self.report(key, message, None);
    }

    fn value<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.take(key)?;
        let result = read(&value);
        if result.is_none() {
            self.reject(key, &value, format!("{expected}, is {}", shown(&value)));
        }
        result
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.values.remove(key).filter(|value| !matches!(value, Value::Empty(..)))
    }

    fn reject(&mut self, key: &str, value: &Value, message: impl Into<String>) {
        let origin = self.reading.figment.get_metadata(value.tag()).map(|metadata| metadata.name.to_string());
        self.report(key, message, origin);
    }

    fn report(&mut self, key: &str, message: impl Into<String>, origin: Option<String>) {
        let key = self.path_of(key);
        self.reading.problems.push(Problem { key, message: message.into(), origin });
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// A number may also be text: an expanded variable and an override always are.
#[expect(clippy::cast_precision_loss, reason = "settings are small; the limits are checked afterwards")]
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::String(_, text) => text.trim().parse().ok(),
        Value::Num(_, number) => number
            .to_f64()
            .or_else(|| number.to_i128().map(|number| number as f64))
            .or_else(|| number.to_u128().map(|number| number as f64)),
        _ => None,
    }
}

fn whole(value: &Value, limits: &RangeInclusive<u64>) -> Option<u64> {
    let number = match value {
        Value::String(_, text) => text.trim().parse().ok(),
        _ => value.to_u128().or_else(|| value.to_i128().and_then(|number| number.try_into().ok())),
    };
    number.and_then(|number: u128| number.try_into().ok()).filter(|number| limits.contains(number))
}

/// The members of a list. Text counts as a list too, `a, b` or `[a, b]`, for overrides have no other form.
fn items(value: &Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(_, items) => Some(items.clone()),
        Value::String(_, text) => {
            let text = text.trim();
            let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
            let members = inner.split(',').map(|item| item.trim().trim_matches(['"', '\'']));
            Some(members.filter(|item| !item.is_empty()).map(Value::from).collect())
        }
        _ => None,
    }
}

fn shown(value: &Value) -> String {
    fn quoted(value: impl Display) -> String {
        const MOST: usize = 60;
        let text = value.to_string();
        let short: String = text.chars().take(MOST).collect();
        if short.len() < text.len() { format!("\"{short}...\"") } else { format!("\"{text}\"") }
    }
    match value {
        Value::String(_, text) => quoted(text),
        Value::Char(_, text) => quoted(text),
        Value::Bool(_, flag) => flag.to_string(),
        Value::Num(..) => number(value).map_or_else(|| "a number".to_owned(), |number| number.to_string()),
        Value::Empty(..) => "empty".to_owned(),
        Value::Dict(..) => "a mapping".to_owned(),
        Value::Array(..) => "a list".to_owned(),
    }
}
