//! Public keys: from PEM text and from a JSON Web Key Set.

use std::path::Path;

use jsonwebtoken::DecodingKey;
use serde::Deserialize;
use serde_json::Value;

/// Most keys of one set; what comes after them is left out.
const MAX_KEYS: usize = 100;
/// What opens a block of PEM.
const BEGIN: &str = "-----BEGIN ";

/// Keys that tokens may be signed with.
#[derive(Clone, Default)]
pub(super) struct KeySet {
    keys: Vec<(Option<String>, DecodingKey)>,
}

impl KeySet {
    /// Reads `security.jwt_public_key`: one or several public keys as PEM text, or the path of a file with
    /// them. Several, so that tokens of an old and of a new key are accepted while keys change.
    pub(super) fn from_pem(text_or_path: &str) -> Result<Self, String> {
        let read;
        let text = if text_or_path.contains(BEGIN) {
            text_or_path
        } else {
            let path = Path::new(text_or_path.trim());
            read = std::fs::read_to_string(path)
                .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            &read
        };
        if text.contains("PRIVATE KEY") {
            return Err("holds a private key; only the public one belongs here".to_owned());
        }
        let blocks = text.match_indices(BEGIN).map(|(at, _)| at);
        let mut keys = Vec::new();
        for start in blocks {
            let rest = &text[start..];
            let end = rest[BEGIN.len()..].find(BEGIN).map_or(rest.len(), |end| end + BEGIN.len());
            // The text may come from a variable in which the ends of lines were written out.
            let block = rest[..end].replace("\\n", "\n");
            let key = DecodingKey::from_rsa_pem(block.trim().as_bytes())
                .map_err(|_| "is no RSA public key in PEM form".to_owned())?;
            keys.push((None, key));
        }
        match keys.len() {
            0 => Err("holds no public key in PEM form".to_owned()),
            1..=MAX_KEYS => Ok(Self { keys }),
            _ => Err(format!("holds more than {MAX_KEYS} keys")),
        }
    }

    /// Reads a key set. Keys for anything but RS256 signatures are left out, as are those that cannot be
    /// read: a set may hold what other services need.
    pub(super) fn from_jwks(body: &[u8]) -> Result<Self, String> {
        let document: Document =
            serde_json::from_slice(body).map_err(|error| format!("is no JSON Web Key Set: {error}"))?;
        let keys: Vec<_> = document.keys.into_iter().filter_map(usable).take(MAX_KEYS).collect();
        if keys.is_empty() {
            Err("holds no RSA key for RS256 signatures".to_owned())
        } else {
            Ok(Self { keys })
        }
    }

    /// The keys that may have signed a token with this key id. Keys that have no id are tried for any.
    pub(super) fn candidates(&self, kid: Option<&str>) -> impl Iterator<Item = &DecodingKey> {
        let only = self.keys.len() == 1;
        self.keys.iter().filter_map(move |(id, key)| match (id.as_deref(), kid) {
            (None, _) => Some(key),
            (Some(_), None) => only.then_some(key),
            (Some(id), Some(kid)) => (id == kid).then_some(key),
        })
    }
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

/// The members of RFC 7517 that matter for RSA signatures.
#[derive(Deserialize)]
struct RsaKey {
    kty: String,
    kid: Option<String>,
    r#use: Option<String>,
    alg: Option<String>,
    n: String,
    e: String,
}

fn usable(key: Value) -> Option<(Option<String>, DecodingKey)> {
    let key: RsaKey = serde_json::from_value(key).ok()?;
    let signs = key.r#use.as_deref().is_none_or(|usage| usage == "sig");
    let rs256 = key.kty == "RSA" && key.alg.as_deref().is_none_or(|alg| alg == "RS256");
    if !(signs && rs256) {
        return None;
    }
    Some((key.kid, DecodingKey::from_rsa_components(&key.n, &key.e).ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::security::KeyPair;

    fn count(keys: &KeySet, kid: Option<&str>) -> usize {
        keys.candidates(kid).count()
    }

    #[test]
    fn several_pem_keys_are_all_tried() {
        let (old, new) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let keys = KeySet::from_pem(&format!("{}{}", old.public_pem(), new.public_pem())).unwrap();
        assert_eq!(count(&keys, Some("any")), 2);
        let one_line = new.public_pem().replace('\n', "\\n");
        assert_eq!(count(&KeySet::from_pem(&one_line).unwrap(), None), 1);
    }

    #[test]
    fn what_is_no_public_rsa_key_is_refused_with_the_reason() {
        let pair = KeyPair::generate().unwrap();
        for (text, part) in [
            (pair.private_pem().to_owned(), "private key"),
            ("/nowhere/key.pem".to_owned(), "cannot read /nowhere/key.pem"),
            ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----".to_owned(), "is no RSA public key"),
        ] {
            let error = KeySet::from_pem(&text).err().unwrap();
            assert!(error.contains(part), "{error}");
            assert!(!error.contains("MII"), "{error}");
        }
    }

    #[test]
    fn a_key_set_is_searched_by_key_id_and_foreign_keys_are_left_out() {
        let pair = KeyPair::generate().unwrap();
        let key = |kid: &str, change: (&str, &str)| {
            let mut key = pair.public_jwk(kid);
            key[change.0] = json!(change.1);
            key
        };
        let set = json!({"keys": [key("a", ("use", "sig")), key("b", ("alg", "RS256")), key("c", ("use", "enc")),
            key("d", ("alg", "PS256")), key("e", ("kty", "EC")), key("f", ("n", "!")), {"kty": "oct", "k": "AAAA"}, 7]});
        let keys = KeySet::from_jwks(set.to_string().as_bytes()).unwrap();
        let found = ["a", "b", "c", "d", "e", "f"].map(|kid| count(&keys, Some(kid)));
        assert_eq!(found, [1, 1, 0, 0, 0, 0]);
        assert_eq!(count(&keys, None), 0, "which of the two is not known");
        let one = json!({"keys": [key("a", ("use", "sig"))]}).to_string();
        assert_eq!(count(&KeySet::from_jwks(one.as_bytes()).unwrap(), None), 1);
        for wrong in ["", "[]", "{}", r#"{"keys": []}"#, r#"{"keys": [1]}"#, "<html>"] {
            assert!(KeySet::from_jwks(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
