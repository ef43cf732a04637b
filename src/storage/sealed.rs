//! What came of attempts, as it is stored: sealed where `security.payload_keys` are set.

use std::borrow::Cow;

use serde_json::Value;

use super::error::StorageError;
use crate::domain::ids::JobId;
use crate::security::{Column, Unsealed, Vault};

/// A job, its output, its error message and its stack.
pub(super) type Outcome<'a> = (JobId, Option<&'a str>, Option<&'a str>, Option<&'a str>);

/// The same columns of many rows, ready to be bound.
pub(super) struct Sealed<'a>(Vec<[Option<Cow<'a, str>>; 3]>);

impl<'a> Sealed<'a> {
    pub(super) fn of(vault: &Vault, rows: impl Iterator<Item = Outcome<'a>>) -> Result<Self, StorageError> {
        let seal = |(JobId(job), output, message, stack): Outcome<'a>| {
            let text = |column, text: Option<&'a str>| {
                text.map(|text| vault.seal_text(job, column, text)).transpose()
            };
            let output = output.map(|output| vault.seal_json(job, Column::OutputData, output)).transpose()?;
            Ok([output, text(Column::ErrorMessage, message)?, text(Column::ErrorStack, stack)?])
        };
        Ok(Self(rows.map(seal).collect::<Result<_, Unsealed>>()?))
    }

    pub(super) fn outputs(&self) -> Vec<Option<&str>> {
        self.column(0)
    }

    pub(super) fn messages(&self) -> Vec<Option<&str>> {
        self.column(1)
    }

    pub(super) fn stacks(&self) -> Vec<Option<&str>> {
        self.column(2)
    }

    fn column(&self, at: usize) -> Vec<Option<&str>> {
        self.0.iter().map(|row| row[at].as_deref()).collect()
    }
}

/// Whether two outputs are the same JSON, however it is written.
pub(super) fn same_json(one: Option<&str>, other: Option<&str>) -> bool {
    let read = |text: Option<&str>| text.map(|text| serde_json::from_str::<Value>(text).unwrap_or_default());
    one == other || read(one) == read(other)
}
