//! Tokens that must not be believed: `bad_tokens.json` says what is wrong with each.

use std::sync::Arc;

use aws_lc_rs::signature::{self, RsaEncoding, RsaKeyPair};
use aws_lc_rs::{hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use cortex::domain::ambient::{Ambient, System};
use cortex::security::{KeyPair, MAX_TOKEN};
use cortex_client::proto::HeartbeatRequest;
use cortex_client::proto::job_service_client::JobServiceClient;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tonic::Code;

use crate::scene::{AUDIENCE, ISSUER, Scene, shared, with_authorization};

/// One line of the corpus: a good token with something wrong.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bad {
    wrong: String,
    /// The whole value of the header.
    authorization: Option<String>,
    /// Members of the token's header that differ; `null` leaves one out.
    #[serde(default)]
    header: Map<String, Value>,
    header_text: Option<String>,
    /// Claims that differ; `now-60` is a time.
    #[serde(default)]
    claims: Map<String, Value>,
    claims_text: Option<String>,
    sign: Option<String>,
    edit: Option<String>,
}

/// What signs the corpus.
struct Signer {
    ours: RsaKeyPair,
    stranger: RsaKeyPair,
    stranger_jwk: Value,
    public_pem: String,
}

fn pair(pem: &str) -> RsaKeyPair {
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    RsaKeyPair::from_pkcs8(&STANDARD.decode(body).unwrap()).unwrap()
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Signer {
    fn of(scene: &Scene) -> Self {
        let stranger = KeyPair::generate().unwrap();
        Self {
            ours: pair(&scene.private_pem),
            stranger: pair(stranger.private_pem()),
            stranger_jwk: stranger.public_jwk("stranger"),
            public_pem: scene.public_pem.clone(),
        }
    }

    fn sign(&self, how: &str, message: &str) -> Vec<u8> {
        let rsa = |key: &RsaKeyPair, padding: &'static dyn RsaEncoding| {
            let mut signature = vec![0; key.public_modulus_len()];
            key.sign(padding, &rand::SystemRandom::new(), message.as_bytes(), &mut signature).unwrap();
            signature
        };
        let hmac = |secret: &[u8]| {
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes()).as_ref().to_vec()
        };
        match how {
            "ours" => rsa(&self.ours, &signature::RSA_PKCS1_SHA256),
            "stranger" => rsa(&self.stranger, &signature::RSA_PKCS1_SHA256),
            "sha512" => rsa(&self.ours, &signature::RSA_PKCS1_SHA512),
            "pss" => rsa(&self.ours, &signature::RSA_PSS_SHA256),
            "hmac_public_pem" => hmac(self.public_pem.as_bytes()),
            "hmac_empty" => hmac(b""),
            "nothing" => Vec::new(),
            other => panic!("nobody signs so: {other}"),
        }
    }

    /// The value of the `Authorization` header.
    fn authorization(&self, bad: &Bad) -> String {
        if let Some(authorization) = &bad.authorization {
            return authorization.clone();
        }
        let header = match bad.header_text.as_deref() {
            Some("nested") => format!("{}{}", "[".repeat(2000), "]".repeat(2000)),
            Some(text) => text.to_owned(),
            None => changed(json!({"alg": "RS256", "typ": "JWT"}), &bad.header),
        };
        let header = header.replace("\"stranger\"", &self.stranger_jwk.to_string());
        let mut claims = bad.claims_text.clone().unwrap_or_else(|| {
            let good =
                json!({"sub": "mallory", "role": "admin", "exp": "now+3600", "iss": ISSUER, "aud": AUDIENCE});
            changed(good, &bad.claims)
        });
        if bad.edit.as_deref() == Some("long") {
            claims = claims.replacen('{', &format!("{{\"pad\":\"{}\",", "x".repeat(MAX_TOKEN)), 1);
        }
        let message = format!("{}.{}", encode(header), encode(claims));
        let signature = self.sign(bad.sign.as_deref().unwrap_or("ours"), &message);
        edited(self, bad.edit.as_deref().unwrap_or("none"), &message, signature)
    }
}

fn edited(signer: &Signer, edit: &str, message: &str, mut signature: Vec<u8>) -> String {
    let whole = format!("{message}.{}", encode(&signature));
    let token = match edit {
        "none" | "long" => whole,
        "no_scheme" => return whole,
        "twice" => format!("{whole} {whole}"),
        "comma" => format!("{whole},"),
        "two_parts" => message.to_owned(),
        "four_parts" => format!("{whole}.e30"),
        "flip" => {
            signature[100] ^= 1;
            format!("{message}.{}", encode(signature))
        }
        "truncate" => format!("{message}.{}", encode(&signature[..signature.len() - 1])),
        "pad" => format!("{whole}=="),
        "zeros" => format!("{message}.{}", encode(vec![0; signature.len()])),
        "promote" => {
            let header = message.split('.').next().unwrap();
            let claims = changed(
                json!({"sub": "root", "role": "admin", "exp": "now+9999", "iss": ISSUER, "aud": AUDIENCE}),
                &Map::new(),
            );
            format!("{header}.{}.{}", encode(claims), encode(signature))
        }
        "swap" => format!("{message}.{}", encode(signer.sign("ours", "e30.e30"))),
        other => panic!("there is no such edit: {other}"),
    };
    format!("Bearer {token}")
}

/// `good` with other members; times are filled in.
fn changed(mut good: Value, change: &Map<String, Value>) -> String {
    let members = good.as_object_mut().unwrap();
    for (name, value) in change {
        members.insert(name.clone(), value.clone());
    }
    members.retain(|_, value| !value.is_null());
    for value in members.values_mut() {
        let seconds = value.as_str().and_then(|text| text.strip_prefix("now")?.parse::<i64>().ok());
        if let Some(seconds) = seconds {
            *value = json!(System.now().timestamp() + seconds);
        }
    }
    good.to_string()
}

fn corpus() -> Vec<Bad> {
    serde_json::from_str(include_str!("bad_tokens.json")).unwrap()
}

#[tokio::test]
async fn every_bad_token_is_refused_by_rest_and_grpc_at_every_replica() {
    let scene = shared().await;
    let signer = Arc::new(Signer::of(scene));
    let corpus = corpus();
    assert!(corpus.len() >= 40);
    for replica in scene.both().await {
        let mut client = JobServiceClient::new(scene.channel(replica).await);
        for bad in &corpus {
            let authorization = signer.authorization(bad);
            let url = format!("http://{}/api/v1/jobs", scene.cluster.http(replica));
            let request = scene.http.request(Method::GET, url).header("authorization", &authorization);
            let answer = request.send().await.unwrap();
            let challenge = answer.headers()["www-authenticate"].to_str().unwrap().to_owned();
            assert_eq!(answer.status(), 401, "{}", bad.wrong);
            assert!(challenge.contains("invalid_token"), "{}: {challenge}", bad.wrong);
            let problem: Value = answer.json().await.unwrap();
            assert_eq!(problem["type"], "urn:cortex:problem:token-refused", "{}", bad.wrong);

            let request = with_authorization(HeartbeatRequest::default(), &authorization);
            let status = client.heartbeat(request).await.unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{}: {status:?}", bad.wrong);
        }
    }
    scene.logs_are_clean(&[]);
}

#[tokio::test]
async fn the_token_that_the_corpus_spoils_is_a_good_one() {
    let scene = shared().await;
    let good: Bad = serde_json::from_str(r#"{"wrong": "nothing"}"#).unwrap();
    let authorization = Signer::of(scene).authorization(&good);
    let url = format!("http://{}/api/v1/jobs", scene.cluster.http(0));
    let answer = scene.http.get(url).header("authorization", &authorization).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let doubled = scene
        .http
        .get(format!("http://{}/api/v1/jobs", scene.cluster.http(0)))
        .header("authorization", &authorization)
        .header("authorization", &authorization);
    assert_eq!(doubled.send().await.unwrap().status(), 401, "which of two headers counts is not guessed");
}

#[test]
fn no_two_lines_of_the_corpus_say_the_same() {
    let mut wrongs: Vec<_> = corpus().into_iter().map(|bad| bad.wrong).collect();
    let all = wrongs.len();
    wrongs.sort_unstable();
    wrongs.dedup();
    assert_eq!(wrongs.len(), all);
}
