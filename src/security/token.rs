//! What a token says, and whether to believe it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;

use super::caller::{Bearer, Caller, Role};

/// Longest token in bytes.
pub const MAX_TOKEN: usize = 8 * 1024;
/// Longest subject in bytes.
const MAX_SUBJECT: usize = 255;
/// By how much the clocks of issuer and replica may differ, in seconds. What has expired should not work on.
const LEEWAY: f64 = 5.0;

/// Why a token is not believed. The text is public.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Distrust {
    #[error("the token is longer than {MAX_TOKEN} bytes")]
    TooLong,
    #[error("the token is no JSON Web Token")]
    Malformed,
    #[error("the token is not signed with RS256")]
    Algorithm,
    #[error("the token has critical extensions")]
    Critical,
    #[error("the token is signed with a key that is not known")]
    UnknownKey,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token's claims cannot be used: {0}")]
    Claims(&'static str),
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    Early,
}

/// What is asked of every token beside its signature.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) issuer: Option<String>,
    pub(super) audience: Option<String>,
}

/// A token whose form is right, and of which nothing is believed yet.
pub(super) struct Unverified<'a> {
    token: &'a str,
    /// Which key is said to have signed it.
    pub(super) kid: Option<String>,
}

/// The claims that are looked at. Anything else may be there.
#[derive(Debug, Deserialize)]
pub(super) struct Claims {
    sub: Option<String>,
    role: Option<String>,
    exp: Option<f64>,
    nbf: Option<f64>,
    iss: Option<String>,
    aud: Option<Audience>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl<'a> Unverified<'a> {
    /// Looks at the form and the header.
    pub(super) fn read(token: &'a str) -> Result<Self, Distrust> {
        if token.len() > MAX_TOKEN {
            return Err(Distrust::TooLong);
        }
        let plain = |part: &str| part.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_');
        let parts: Vec<&str> = token.split('.').collect();
        if parts.len() != 3 || !parts.iter().all(|part| plain(part)) {
            return Err(Distrust::Malformed);
        }
        // An algorithm that the library does not know, `none` above all, makes a header that cannot be read.
        let header = jsonwebtoken::decode_header(token).map_err(|_| Distrust::Malformed)?;
        if header.alg != Algorithm::RS256 {
            return Err(Distrust::Algorithm);
        }
        if header.crit.is_some() {
            return Err(Distrust::Critical);
        }
        Ok(Self { token, kid: header.kid })
    }

    /// The claims, if one of the keys has signed them.
    pub(super) fn verify<'k>(&self, keys: impl Iterator<Item = &'k DecodingKey>) -> Result<Claims, Distrust> {
        // Claims are judged by `Claims::check`, with a clock that is handed in.
        let mut validation = Validation::new(Algorithm::RS256);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let mut distrust = Distrust::UnknownKey;
        for key in keys {
            match jsonwebtoken::decode::<Claims>(self.token, key, &validation) {
                Ok(data) => return Ok(data.claims),
                Err(error) => {
                    distrust = match error.kind() {
                        jsonwebtoken::errors::ErrorKind::Json(_)
                        | jsonwebtoken::errors::ErrorKind::Utf8(_) => {
                            Distrust::Claims("they are no JSON object with claims of the usual types")
                        }
                        _ => Distrust::Signature,
                    };
                }
            }
        }
        Err(distrust)
    }
}

impl Claims {
    /// Who the token names, if it is good at this time and made for here, and for how long it still is.
    pub(super) fn check(self, policy: &Policy, now: DateTime<Utc>) -> Result<Bearer, Distrust> {
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of this age are exact in a double")]
        let now = now.timestamp_millis() as f64 / 1000.0;
        let exp = self.exp.ok_or(Distrust::Claims("exp is missing"))?;
        if !exp.is_finite() || now >= exp + LEEWAY {
            return Err(Distrust::Expired);
        }
        if self.nbf.is_some_and(|nbf| now + LEEWAY < nbf) {
            return Err(Distrust::Early);
        }
        if policy.issuer.is_some() && self.iss != policy.issuer {
            return Err(Distrust::Claims("iss is not the issuer that is trusted here"));
        }
        if let Some(audience) = &policy.audience {
            let here = match &self.aud {
                None => false,
                Some(Audience::One(one)) => one == audience,
                Some(Audience::Many(many)) => many.contains(audience),
            };
            if !here {
                return Err(Distrust::Claims("aud does not name this system"));
            }
        }
        let subject = self.sub.ok_or(Distrust::Claims("sub is missing"))?;
        if !(1..=MAX_SUBJECT).contains(&subject.len()) || subject.chars().any(char::is_control) {
            return Err(Distrust::Claims("sub must have 1 to 255 bytes, none of them a control character"));
        }
        let role: Option<Role> = self.role.as_deref().and_then(|role| role.parse().ok());
        let role = role.ok_or(Distrust::Claims("role must be one of viewer, submitter, worker, admin"))?;
        let good_for = Duration::try_from_secs_f64(exp + LEEWAY - now).unwrap_or(Duration::MAX);
        Ok(Bearer { caller: Caller::Known { subject, role }, good_for })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn check(claims: &Value, policy: &Policy) -> Result<Bearer, Distrust> {
        let claims: Claims = serde_json::from_value(claims.clone()).unwrap();
        claims.check(policy, DateTime::from_timestamp(NOW, 0).unwrap())
    }

    fn claims(change: &Value) -> Value {
        let mut claims = json!({"sub": "ann", "role": "viewer", "exp": NOW + 60});
        for (key, value) in change.as_object().unwrap() {
            claims[key] = value.clone();
        }
        claims
    }

    #[test]
    fn times_are_judged_with_a_leeway_of_five_seconds() {
        let at = |change: &Value| check(&claims(change), &Policy::default()).err();
        assert_eq!(at(&json!({})), None);
        assert_eq!(at(&json!({"exp": NOW - 4})), None);
        assert_eq!(at(&json!({"exp": NOW - 5})), Some(Distrust::Expired));
        assert_eq!(at(&json!({"exp": 1_800_000_000.5})), None);
        assert_eq!(at(&json!({"exp": -1})), Some(Distrust::Expired));
        assert_eq!(at(&json!({"exp": null})), Some(Distrust::Claims("exp is missing")));
        let left =
            |exp: f64| check(&claims(&json!({"exp": exp})), &Policy::default()).map(|bearer| bearer.good_for);
        assert_eq!(left(1_800_000_060.5).unwrap(), Duration::from_millis(65_500));
        assert_eq!(left(1e300).unwrap(), Duration::MAX);
        assert_eq!(at(&json!({"nbf": NOW + 5})), None);
        assert_eq!(at(&json!({"nbf": NOW + 6})), Some(Distrust::Early));
    }

    #[test]
    fn issuer_and_audience_are_asked_for_where_they_are_configured() {
        let policy = Policy { issuer: Some("https://id".into()), audience: Some("cortex".into()) };
        let ok = |change: &Value| check(&claims(change), &policy).is_ok();
        assert!(ok(&json!({"iss": "https://id", "aud": "cortex"})));
        assert!(ok(&json!({"iss": "https://id", "aud": ["other", "cortex"]})));
        assert!(!ok(&json!({"iss": "https://id/", "aud": "cortex"})));
        assert!(!ok(&json!({"aud": "cortex"})));
        assert!(!ok(&json!({"iss": "https://id"})));
        assert!(!ok(&json!({"iss": "https://id", "aud": []})));
        assert!(check(&claims(&json!({"iss": "else", "aud": "where"})), &Policy::default()).is_ok());
    }

    #[test]
    fn a_token_must_name_a_subject_and_a_role() {
        let ok = |change: &Value| check(&claims(change), &Policy::default()).is_ok();
        for bad in [
            json!({"sub": ""}),
            json!({"sub": null}),
            json!({"sub": "a\nb"}),
            json!({"sub": "x".repeat(256)}),
        ] {
            assert!(!ok(&bad), "{bad}");
        }
        for bad in
            [json!({"role": null}), json!({"role": "root"}), json!({"role": "Admin"}), json!({"role": ""})]
        {
            assert!(!ok(&bad), "{bad}");
        }
    }

    #[test]
    fn a_token_of_the_wrong_form_is_refused_before_any_key_is_looked_for() {
        let of = |token: &str| Unverified::read(token).err();
        for token in ["", ".", "..", "a.b", "a.b.c.d", "a b.c.d", "é.b.c", "e30.e30.e30", "e30=.e30.e30"] {
            assert_eq!(of(token), Some(Distrust::Malformed), "{token}");
        }
        assert_eq!(of(&"a".repeat(MAX_TOKEN + 1)), Some(Distrust::TooLong));
    }
}
