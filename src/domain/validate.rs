//! Collects every bad field of a request, so that one answer names them all.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One field of a request that cannot be accepted, and the limit that it breaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FieldError {
    /// Dotted path of the field.
    pub field: String,
    /// What is allowed.
    pub message: String,
}

impl FieldError {
    /// An error for one field.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }

    /// The same error in the element `index` of `list`.
    pub fn within(self, list: &str, index: usize) -> Self {
        Self { field: format!("{list}[{index}].{}", self.field), message: self.message }
    }
}

/// Gathers field errors while a request is taken apart.
#[derive(Debug, Default)]
pub struct Validator {
    errors: Vec<FieldError>,
}

impl Validator {
    /// Notes that `field` is bad.
    pub fn reject(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.errors.push(FieldError::new(field, message));
    }

    /// Whether `field` was rejected already.
    pub fn has(&self, field: &str) -> bool {
        self.errors.iter().any(|error| error.field == field)
    }

    /// The value, if no field was rejected.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Vec<FieldError>> {
        match value {
            Some(value) if self.errors.is_empty() => Ok(value),
            _ => Err(self.errors),
        }
    }

    /// Takes over the errors of a nested check.
    pub fn absorb<T>(&mut self, result: Result<T, Vec<FieldError>>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(errors) => {
                self.errors.extend(errors);
                None
            }
        }
    }

    /// A required text of `1..=max` characters.
    pub fn text(&mut self, field: &str, value: Option<&Value>, max: usize) -> Option<String> {
        if matches!(value, None | Some(Value::Null)) {
            self.reject(field, "is required");
            return None;
        }
        self.optional_text(field, value, 1, max)
    }

    /// A text of `min..=max` characters that may be absent.
    pub fn optional_text(
        &mut self,
        field: &str,
        value: Option<&Value>,
        min: usize,
        max: usize,
    ) -> Option<String> {
        match value {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => match check_text(text, min, max) {
                Ok(()) => Some(text.clone()),
                Err(message) => {
                    self.reject(field, message);
                    None
                }
            },
            Some(_) => {
                self.reject(field, "must be a string");
                None
            }
        }
    }

    /// A whole number within `min..=max` that may be absent.
    pub fn integer(&mut self, field: &str, value: Option<&Value>, min: i64, max: i64) -> Option<i64> {
        match value {
            None | Some(Value::Null) => None,
            Some(value) => match whole(value) {
                Some(number) if (min..=max).contains(&number) => Some(number),
                _ => {
                    self.reject(field, format!("must be a whole number from {min} to {max}"));
                    None
                }
            },
        }
    }

    /// A number within `min..=max` that may be absent.
    pub fn number(&mut self, field: &str, value: Option<&Value>, min: f64, max: f64) -> Option<f64> {
        match value {
            None | Some(Value::Null) => None,
            Some(value) => match value.as_f64() {
                Some(number) if (min..=max).contains(&number) => Some(number),
                _ => {
                    self.reject(field, format!("must be a number from {min} to {max}"));
                    None
                }
            },
        }
    }

    /// Anything else that serde can read; `expected` says what it must be.
    pub fn typed<T: DeserializeOwned>(
        &mut self,
        field: &str,
        value: Option<&Value>,
        expected: &str,
    ) -> Option<T> {
        match value {
            None | Some(Value::Null) => None,
            Some(value) => match T::deserialize(value) {
                Ok(value) => Some(value),
                Err(_) => {
                    self.reject(field, format!("must be {expected}"));
                    None
                }
            },
        }
    }
}

/// A whole number, also where it is written with a fraction of zero, as some clients write all numbers: 3.0 is 3.
pub fn whole(value: &Value) -> Option<i64> {
    // Beyond that not every whole number is one of these.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let rounded = || value.as_f64().filter(|number| number.fract() == 0.0 && number.abs() <= EXACT);
    #[expect(clippy::cast_possible_truncation, reason = "it is whole and within bounds")]
    value.as_i64().or_else(|| rounded().map(|number| number as i64))
}

/// Whether a text has `min..=max` characters and none that PostgreSQL cannot store.
pub fn check_text(text: &str, min: usize, max: usize) -> Result<(), String> {
    let length = text.chars().count();
    if length < min || length > max {
        return Err(format!("must have {min} to {max} characters, has {length}"));
    }
    if text.contains('\0') {
        return Err("must not contain the character U+0000".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_number_is_whole_however_it_is_written() {
        for (value, number) in [(json!(3), Some(3)), (json!(3.0), Some(3)), (json!(-2e3), Some(-2000))] {
            assert_eq!(whole(&value), number, "{value}");
        }
        assert_eq!(whole(&json!(i64::MAX)), Some(i64::MAX));
        for value in [json!(3.5), json!(1e300), json!(u64::MAX), json!("3"), json!(true), json!([3])] {
            assert_eq!(whole(&value), None, "{value}");
        }
    }
}
