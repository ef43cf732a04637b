//! Payloads at rest: `input_data`, `output_data` and error texts, sealed with AES-256-GCM.
//!
//! A sealed value is bound to its job and its column, so that it can be moved nowhere else. It names its key:
//! new values are sealed with the newest one, and older keys still open what they have sealed. What was stored
//! before encryption was turned on stays readable. Off by default, and free of cost then.
//!
//! Who can write to the database can still put a plain value in a sealed one's place: this keeps secrets, and
//! is no proof of where a value comes from.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::config::Secret;

/// What a sealed text begins with.
const PREFIX: &str = "cortex-sealed:";
/// Part of what a key's id is made from, so that the id says nothing else about the key.
const KEY_ID: &[u8] = b"cortex payload key id";

/// The columns that are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the columns of the specification's tables")]
pub enum Column {
    InputData,
    OutputData,
    ErrorMessage,
    ErrorStack,
}

/// Seals and opens payloads. Cheap to clone.
#[derive(Clone, Default)]
pub struct Vault(Option<Arc<[Key]>>);

/// A key of `security.payload_keys` that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("security.payload_keys: key {0} is not 32 bytes, as 64 hexadecimal digits or as base64")]
pub struct BadKey(usize);

/// A value could not be sealed: the system has no randomness to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a value could not be encrypted")]
pub struct Unsealed;

struct Key {
    id: String,
    aead: RandomizedNonceKey,
}

/// How a sealed value looks in a column of JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    cortex_sealed: Cow<'a, str>,
}

impl Column {
    const fn name(self) -> &'static str {
        match self {
            Self::InputData => "input_data",
            Self::OutputData => "output_data",
            Self::ErrorMessage => "error_message",
            Self::ErrorStack => "error_stack",
        }
    }

    /// What binds a value to its place.
    fn context(self, job: Uuid) -> Vec<u8> {
        [job.as_bytes().as_slice(), self.name().as_bytes()].concat()
    }
}

impl Vault {
    /// A vault with these keys, newest first; without keys nothing is sealed or opened.
    ///
    /// # Errors
    /// [`BadKey`], which says which one and nothing of what it holds.
    pub fn new(keys: &[Secret]) -> Result<Self, BadKey> {
        let key = |(at, secret): (usize, &Secret)| Key::read(secret.expose()).ok_or(BadKey(at + 1));
        let keys: Vec<Key> = keys.iter().enumerate().map(key).collect::<Result<_, _>>()?;
        Ok(Self(if keys.is_empty() { None } else { Some(keys.into()) }))
    }

    /// Whether anything is sealed.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// A JSON object as it is to be stored.
    ///
    /// # Errors
    /// [`Unsealed`]: it must not be stored then.
    pub fn seal_json<'a>(&self, job: Uuid, column: Column, text: &'a str) -> Result<Cow<'a, str>, Unsealed> {
        let sealed = self.seal(job, column, text)?;
        // Base64 has nothing that JSON would escape.
        Ok(sealed.map_or(Cow::Borrowed(text), |sealed| format!("{{\"cortex_sealed\":\"{sealed}\"}}").into()))
    }

    /// A text as it is to be stored, in the same way.
    ///
    /// # Errors
    /// [`Unsealed`].
    pub fn seal_text<'a>(&self, job: Uuid, column: Column, text: &'a str) -> Result<Cow<'a, str>, Unsealed> {
        let sealed = self.seal(job, column, text)?;
        Ok(sealed.map_or(Cow::Borrowed(text), |sealed| format!("{PREFIX}{sealed}").into()))
    }

    /// The JSON object that was stored. One that no key opens is handed on as it is stored.
    pub fn open_json(&self, job: Uuid, column: Column, stored: String) -> String {
        let Some(keys) = &self.0 else { return stored };
        let Ok(envelope) = serde_json::from_str::<Envelope<'_>>(&stored) else { return stored };
        open(keys, job, column, &envelope.cortex_sealed).unwrap_or_else(|| unopened(job, column, &stored))
    }

    /// The text that was stored, in the same way.
    pub fn open_text(&self, job: Uuid, column: Column, stored: String) -> String {
        let Some(keys) = &self.0 else { return stored };
        let Some(sealed) = stored.strip_prefix(PREFIX) else { return stored };
        open(keys, job, column, sealed).unwrap_or_else(|| unopened(job, column, &stored))
    }

    /// `<key id>:<nonce, ciphertext and tag in base64>`; nothing if there is no key.
    fn seal(&self, job: Uuid, column: Column, text: &str) -> Result<Option<String>, Unsealed> {
        let Some(key) = self.0.as_ref().and_then(|keys| keys.first()) else { return Ok(None) };
        let mut bytes = text.as_bytes().to_vec();
        let context = Aad::from(column.context(job));
        let nonce = key.aead.seal_in_place_append_tag(context, &mut bytes).map_err(|_| Unsealed)?;
        let mut sealed = nonce.as_ref().to_vec();
        sealed.append(&mut bytes);
        Ok(Some(format!("{}:{}", key.id, STANDARD.encode(sealed))))
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault({} keys)", self.0.as_ref().map_or(0, |keys| keys.len()))
    }
}

impl Key {
    fn read(text: &str) -> Option<Self> {
        let bytes = from_hex(text).or_else(|| from_base64(text))?;
        let aead = RandomizedNonceKey::new(&AES_256_GCM, &bytes).ok()?;
        let id = digest(&SHA256, &[KEY_ID, &bytes].concat());
        let id = id.as_ref()[..6].iter().map(|byte| format!("{byte:02x}")).collect();
        Some(Self { id, aead })
    }
}

fn open(keys: &[Key], job: Uuid, column: Column, sealed: &str) -> Option<String> {
    let (id, sealed) = sealed.split_once(':')?;
    let key = keys.iter().find(|key| key.id == id)?;
    let mut bytes = STANDARD.decode(sealed).ok()?;
    let (nonce, sealed) = bytes.split_at_mut_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let opened = key.aead.open_in_place(nonce, Aad::from(column.context(job)), sealed).ok()?;
    String::from_utf8(opened.to_vec()).ok()
}

/// A value whose key is gone, that was tampered with, or that only looks sealed must not make its whole page of
/// jobs unreadable.
fn unopened(job: Uuid, column: Column, stored: &str) -> String {
    tracing::warn!(job_id = %job, column = column.name(), "A sealed value cannot be opened with any of security.payload_keys.");
    stored.to_owned()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.len() == 64 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).ok();
    if digits { (0..64).step_by(2).map(byte).collect() } else { None }
}

/// Either alphabet, with or without padding, as the configuration accepts it.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let text = text.replace('-', "+").replace('_', "/");
    GeneralPurpose::new(&alphabet::STANDARD, config.with_decode_allow_trailing_bits(true))
        .decode(text)
        .ok()
        .filter(|key| key.len() == 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: Uuid = Uuid::from_u128(1);
    const TEXT: &str = r#"{"prompt": "secret", "n": 1.50}"#;

    fn vault(keys: &[&str]) -> Vault {
        Vault::new(&keys.iter().map(|key| Secret::new(*key)).collect::<Vec<_>>()).unwrap()
    }

    fn key(digit: &str) -> String {
        digit.repeat(64)
    }

    #[test]
    fn a_value_is_sealed_and_opened_to_the_letter() {
        let vault = vault(&[&key("a")]);
        let json = vault.seal_json(JOB, Column::InputData, TEXT).unwrap().into_owned();
        assert!(!json.contains("secret") && json.starts_with('{'), "{json}");
        assert_ne!(json, vault.seal_json(JOB, Column::InputData, TEXT).unwrap(), "never twice the same");
        // As jsonb writes it.
        let stored = json.replace(":\"", ": \"");
        assert_eq!(vault.open_json(JOB, Column::InputData, stored), TEXT);
        let text = vault.seal_text(JOB, Column::ErrorStack, "trace").unwrap().into_owned();
        assert!(!text.contains("trace"));
        assert_eq!(vault.open_text(JOB, Column::ErrorStack, text), "trace");
    }

    #[test]
    fn a_value_opens_nowhere_but_in_its_place_and_only_unharmed() {
        let vault = vault(&[&key("a")]);
        let sealed = vault.seal_text(JOB, Column::ErrorMessage, "why").unwrap().into_owned();
        let mut harmed = sealed.clone();
        harmed.replace_range(40..41, if &sealed[40..41] == "A" { "B" } else { "A" });
        for (job, column, stored) in [
            (Uuid::from_u128(2), Column::ErrorMessage, &sealed),
            (JOB, Column::ErrorStack, &sealed),
            (JOB, Column::ErrorMessage, &harmed),
            (JOB, Column::ErrorMessage, &format!("{PREFIX}{}", "x".repeat(9))),
        ] {
            assert_eq!(vault.open_text(job, column, stored.clone()), *stored);
        }
    }

    #[test]
    fn older_keys_still_open_and_the_newest_seals() {
        let (old, new) = (vault(&[&key("a")]), vault(&[&key("b"), &key("a")]));
        let sealed = old.seal_text(JOB, Column::ErrorMessage, "why").unwrap().into_owned();
        assert_eq!(new.open_text(JOB, Column::ErrorMessage, sealed), "why");
        let sealed = new.seal_text(JOB, Column::ErrorMessage, "why").unwrap().into_owned();
        assert_eq!(
            old.open_text(JOB, Column::ErrorMessage, sealed.clone()),
            sealed,
            "the old one does not know it"
        );
    }

    #[test]
    fn plain_values_of_before_stay_readable_and_without_keys_nothing_is_touched() {
        let (off, on) = (Vault::default(), vault(&[&key("a")]));
        assert!(matches!(off.seal_json(JOB, Column::InputData, TEXT).unwrap(), Cow::Borrowed(TEXT)));
        assert_eq!(on.open_json(JOB, Column::InputData, TEXT.to_owned()), TEXT);
        assert_eq!(on.open_text(JOB, Column::ErrorMessage, "plain".to_owned()), "plain");
        // What looks sealed and was sent by somebody is sealed in its turn, and comes back as it was.
        let fake = r#"{"cortex_sealed": "x:y"}"#;
        let sealed = on.seal_json(JOB, Column::InputData, fake).unwrap().into_owned();
        assert_eq!(on.open_json(JOB, Column::InputData, sealed), fake);
        assert_eq!(on.open_json(JOB, Column::InputData, fake.to_owned()), fake);
    }

    #[test]
    fn keys_are_hexadecimal_or_base64_and_show_in_no_text() {
        let base64 = STANDARD.encode([0xaa; 32]);
        let ids = [key("a"), base64.clone(), base64.trim_end_matches('=').to_owned()]
            .map(|key| Key::read(&key).unwrap().id);
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        assert!(Key::read(&"_".repeat(43)).is_some(), "the other alphabet");
        let error = Vault::new(&[Secret::new(key("a")), Secret::new("hunter2")]).unwrap_err();
        assert!(error.to_string().contains("key 2") && !error.to_string().contains("hunter2"));
        assert!(!format!("{:?}", vault(&[&key("a")])).contains("aaaa"));
    }
}
