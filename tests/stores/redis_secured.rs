//! A Redis that speaks TLS, with its own certificate authority, and asks who comes.

use std::process::{Command, Stdio};

use cortex::dev::PortBlock;
use cortex::ready_queue::ReadyQueue;
use cortex::security::{RedisTls, TlsIdentity};

use crate::authority::Authority;
use crate::scene::{E1, Ended, entry};
use crate::support::{Scratch, eventually};

const PASSWORD: &str = "correct-horse";

/// A Redis that takes connections over TLS only.
pub struct Secured {
    pub authority: Authority,
    port: u16,
    _server: Ended,
    _ports: PortBlock,
    _scratch: Scratch,
}

impl Secured {
    /// Starts it. Its user `cortex` may do what the ready queue needs, and nothing else, under keys that begin with
    /// `cortex`.
    pub async fn start(asks_for_certificates: bool) -> Self {
        let (authority, scratch) = (Authority::new(), Scratch::new());
        let (cert, key) = authority.issue("redis");
        let ports = PortBlock::reserve(1).unwrap();
        let mut server = Command::new("redis-server");
        server.args(["--bind", "127.0.0.1", "--save", "", "--port", "0"]).arg("--dir").arg(scratch.path());
        server
            .args(["--tls-port", &ports.first().to_string(), "--tls-ca-cert-file"])
            .arg(authority.file("ca.pem"));
        server.arg("--tls-cert-file").arg(cert).arg("--tls-key-file").arg(key).stdout(Stdio::null());
        server.args(["--tls-auth-clients", if asks_for_certificates { "yes" } else { "no" }]);
        server.args([
            "--user",
            "cortex",
            "on",
            &format!(">{PASSWORD}"),
            "~cortex*",
            "-@all",
            "+@read",
            "+@write",
        ]);
        server.args(["+@scripting", "+@connection", "+time", "--user", "default", "off"]);
        let server = Ended(server.spawn().expect("redis-server is installed"));
        let secured =
            Self { authority, port: ports.first(), _server: server, _ports: ports, _scratch: scratch };
        let queue = secured.queue(PASSWORD, Some(&secured.trusting()));
        eventually("Redis answers", async || queue.ping().await.is_ok()).await;
        secured
    }

    pub fn url(&self) -> String {
        self.url_with(PASSWORD)
    }

    fn url_with(&self, password: &str) -> String {
        format!("rediss://cortex:{password}@localhost:{}", self.port)
    }

    /// Believes its authority, and shows a certificate of it.
    fn trusting(&self) -> RedisTls {
        let (cert, key) = self.authority.issue("client");
        let read = |file| std::fs::read(file).unwrap();
        let identity = Some(TlsIdentity { cert: read(cert), key: read(key) });
        RedisTls { identity, ca: Some(self.authority.pem.clone().into_bytes()) }
    }

    fn queue(&self, password: &str, tls: Option<&RedisTls>) -> ReadyQueue {
        ReadyQueue::connect_with(&self.url_with(password), "cortex:queue", tls).unwrap()
    }
}

#[tokio::test]
async fn a_user_with_few_rights_has_a_queue_over_tls() {
    let redis = Secured::start(false).await;
    let tls = RedisTls { identity: None, ..redis.trusting() };
    let queue = redis.queue(PASSWORD, Some(&tls));
    assert_eq!(queue.enqueue(E1, &[entry(1), entry(2)]).await.unwrap(), 2);
    assert_eq!(queue.total().await.unwrap(), 2);
    // Keys of somebody else.
    let other = ReadyQueue::connect_with(&redis.url(), "other", Some(&tls)).unwrap();
    let error = other.enqueue(E1, &[entry(1)]).await.unwrap_err();
    assert_eq!(error.to_string(), "Redis is unavailable: its user may not do what the ready queue needs");
    assert!(error.retryable());
}

#[tokio::test]
async fn a_wrong_password_is_named_and_not_shown() {
    let redis = Secured::start(false).await;
    let queue = redis.queue("wrong-horse", Some(&redis.trusting()));
    let error = queue.total().await.unwrap_err();
    assert_eq!(error.to_string(), "Redis is unavailable: it refuses the user or the password");
    assert!(!format!("{error:?}").contains("horse"), "{error:?}");
    assert!(error.retryable(), "it may be set right");
}

#[tokio::test]
async fn whoever_does_not_know_the_authority_does_not_send_the_password() {
    let redis = Secured::start(false).await;
    let strange = RedisTls { identity: None, ca: Some(Authority::new().pem.into_bytes()) };
    for tls in [None, Some(&strange)] {
        let error = redis.queue(PASSWORD, tls).total().await.unwrap_err();
        assert!(format!("{error:?}").contains("invalid peer certificate"), "{error:?}");
        assert_eq!(error.to_string(), "Redis is unavailable: TLS with it failed");
        assert!(error.retryable());
    }
}

#[tokio::test]
async fn a_redis_that_asks_for_a_certificate_is_shown_one() {
    let redis = Secured::start(true).await;
    redis.queue(PASSWORD, Some(&redis.trusting())).total().await.unwrap();
    let nothing_to_show = RedisTls { identity: None, ..redis.trusting() };
    let error = redis.queue(PASSWORD, Some(&nothing_to_show)).total().await.unwrap_err();
    assert!(error.retryable(), "{error:?}");
}
