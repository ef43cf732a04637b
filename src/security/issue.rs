//! Issuing tokens: for `cortex token issue`, for `cortex dev --auth`, and for tests.

use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa;
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use jsonwebtoken::jwk::{Jwk, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;

use super::caller::Role;

/// Letters in a line of PEM.
const PEM_LINE: usize = 64;

/// Why no token or key came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The text is no private key.
    #[error("it is no RSA private key in PEM form (PKCS#8 or PKCS#1)")]
    Key,
    /// The key is not fit for signing.
    #[error("the key cannot sign with RS256: RSA keys of 2048 to 8192 bits can")]
    Sign,
    /// The system has no randomness to give.
    #[error("no key pair could be generated")]
    Generate,
}

/// What a token is to say.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// Who bears it.
    pub subject: String,
    /// What the bearer may do.
    pub role: Role,
    /// How long it is good for.
    pub ttl: Duration,
    /// `iss`, where the replicas ask for one.
    pub issuer: Option<String>,
    /// `aud`, where the replicas ask for one.
    pub audience: Option<String>,
}

/// A private key that signs tokens.
pub struct Issuer {
    key: EncodingKey,
    /// The thumbprint of the public key (RFC 7638).
    kid: String,
}

/// A new pair of RSA keys.
pub struct KeyPair {
    private_pem: String,
    public_pem: String,
}

impl Issuer {
    /// Reads a private key.
    ///
    /// # Errors
    /// [`IssueError::Key`]; the error never quotes the key.
    pub fn from_pem(pem: &str) -> Result<Self, IssueError> {
        let key = EncodingKey::from_rsa_pem(pem.trim().as_bytes()).map_err(|_| IssueError::Key)?;
        let jwk = Jwk::from_encoding_key(&key, Algorithm::RS256).map_err(|_| IssueError::Key)?;
        let kid = jwk.thumbprint(ThumbprintHash::SHA256).map_err(|_| IssueError::Key)?;
        Ok(Self { key, kid })
    }

    /// Signs a token that is good from `now` on.
    ///
    /// # Errors
    /// [`IssueError::Sign`].
    pub fn issue(&self, token: &NewToken, now: DateTime<Utc>) -> Result<String, IssueError> {
        let issued = now.timestamp();
        let ttl = i64::try_from(token.ttl.as_secs()).unwrap_or(i64::MAX);
        let mut claims = json!({"sub": token.subject, "role": token.role, "iat": issued,
            "exp": issued.saturating_add(ttl)});
        for (claim, value) in [("iss", &token.issuer), ("aud", &token.audience)] {
            if let Some(value) = value {
                claims[claim] = json!(value);
            }
        }
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::RS256) };
        jsonwebtoken::encode(&header, &claims, &self.key).map_err(|_| IssueError::Sign)
    }
}

impl KeyPair {
    /// 2048 bits.
    ///
    /// # Errors
    /// [`IssueError::Generate`].
    pub fn generate() -> Result<Self, IssueError> {
        let failed = |_| IssueError::Generate;
        let pair = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).map_err(failed)?;
        let private = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).map_err(failed)?;
        let public = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).map_err(failed)?;
        Ok(Self {
            private_pem: pem("PRIVATE KEY", private.as_ref()),
            public_pem: pem("PUBLIC KEY", public.as_ref()),
        })
    }

    /// The private key, PKCS#8.
    pub fn private_pem(&self) -> &str {
        &self.private_pem
    }

    /// The public key.
    pub fn public_pem(&self) -> &str {
        &self.public_pem
    }

    /// The public key as a member of a JSON Web Key Set; `null` never, for the key was made here.
    pub fn public_jwk(&self, kid: &str) -> serde_json::Value {
        let key = EncodingKey::from_rsa_pem(self.private_pem.as_bytes());
        let jwk = key.and_then(|key| Jwk::from_encoding_key(&key, Algorithm::RS256));
        let mut jwk = jwk.ok().and_then(|jwk| serde_json::to_value(jwk).ok()).unwrap_or_default();
        jwk["kid"] = json!(kid);
        jwk
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(PEM_LINE));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_cannot_sign_is_refused_without_being_quoted() {
        let pair = KeyPair::generate().unwrap();
        assert!(Issuer::from_pem(pair.private_pem()).is_ok());
        for wrong in
            [pair.public_pem(), "", "MIIE", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"]
        {
            assert_eq!(Issuer::from_pem(wrong).err(), Some(IssueError::Key));
        }
    }

    #[test]
    fn tokens_of_one_key_name_the_same_key() {
        let pair = KeyPair::generate().unwrap();
        let kid = || Issuer::from_pem(pair.private_pem()).unwrap().kid;
        assert_eq!(kid(), kid());
        assert_eq!(kid().len(), 43);
    }
}
