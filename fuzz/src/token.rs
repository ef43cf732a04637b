//! Tokens: the value of the `Authorization` header, and headers and claims under a signature that is good.

use std::sync::LazyLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use axum::body::Body;
use axum::http::{HeaderValue, Request, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use cortex::api::Gate;
use cortex::config::sections::{JwtAlgorithm, Security};
use cortex::domain::ambient::System;
use cortex::security::{Authenticator, KeyPair};
use serde_json::{Map, Value};

use crate::surface::Surface;

const AUDIENCE: &str = "cortex";

/// The first byte says what the others are: `s` a header and claims, a line feed between them, which are signed
/// with the right key; anything else the value of `Authorization`.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    if *kind == b's' {
        let mut parts = rest.splitn(2, |byte| *byte == b'\n');
        let (header, claims) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let status = call(format!("Bearer {}", SIGNER.sign(header, claims)).as_bytes());
        if status == Some(StatusCode::OK) {
            believable(header, claims);
        }
    } else if let Some(status) = call(rest) {
        assert_eq!(status, StatusCode::UNAUTHORIZED, "a token was believed that nobody has signed");
    }
}

/// What a token must say at the least, looked at in another way than the product does.
fn believable(header: &[u8], claims: &[u8]) {
    let header: Map<String, Value> = serde_json::from_slice(header).unwrap();
    let claims: Map<String, Value> = serde_json::from_slice(claims).unwrap();
    assert_eq!(header["alg"], "RS256");
    assert!(header.get("crit").is_none_or(Value::is_null), "{header:?}");
    assert!(claims["exp"].as_f64().is_some_and(|exp| exp > 1.7e9), "{claims:?}");
    assert!(claims["sub"].as_str().is_some_and(|subject| !subject.is_empty()), "{claims:?}");
    let roles = ["viewer", "submitter", "worker", "admin"];
    assert!(claims["role"].as_str().is_some_and(|role| roles.contains(&role)), "{claims:?}");
    let here = match &claims["aud"] {
        Value::Array(many) => many.iter().any(|one| one == AUDIENCE),
        one => one == AUDIENCE,
    };
    assert!(here, "{claims:?}");
}

/// What a call with this header is answered; nothing if no HTTP header can say that.
fn call(authorization: &[u8]) -> Option<StatusCode> {
    thread_local! {
        static SURFACE: Surface = Surface::new(gate);
    }
    let value = HeaderValue::from_bytes(authorization).ok()?;
    let request = Request::builder().uri("/api/v1/cluster").header("authorization", value);
    let (status, answer) = SURFACE.with(|surface| surface.call(request.body(Body::empty()).unwrap()));
    let answer = String::from_utf8_lossy(&answer);
    assert!([StatusCode::OK, StatusCode::UNAUTHORIZED].contains(&status), "{status}: {answer}");
    Some(status)
}

fn gate() -> Gate {
    let security = Security {
        require_auth: true,
        jwt_public_key: Some(SIGNER.public_pem.clone()),
        jwks_url: None,
        jwt_algorithm: JwtAlgorithm::Rs256,
        jwt_issuer: None,
        jwt_audience: Some(AUDIENCE.to_owned()),
        jwt_secret_key: None,
        jwt_expiration: std::time::Duration::from_secs(3600),
        payload_keys: Vec::new(),
    };
    let authenticator = Authenticator::new(&security, std::sync::Arc::new(System));
    Gate { authenticator: authenticator.unwrap(), ..Gate::default() }
}

/// A key of this process: none has to lie in a repository.
static SIGNER: LazyLock<Signer> = LazyLock::new(|| {
    let pair = KeyPair::generate().unwrap();
    let der: String = pair.private_pem().lines().filter(|line| !line.starts_with('-')).collect();
    let key = RsaKeyPair::from_pkcs8(&STANDARD.decode(der).unwrap()).unwrap();
    Signer { key, public_pem: pair.public_pem().to_owned() }
});

struct Signer {
    key: RsaKeyPair,
    public_pem: String,
}

impl Signer {
    fn sign(&self, header: &[u8], claims: &[u8]) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}
