//! TLS: replicas among themselves, and what clients and workers meet.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cortex::dev::PortBlock;
use cortex::security::{KeyPair, Role};
use cortex_client::proto::job_service_client::JobServiceClient;
use cortex_client::proto::{HeartbeatRequest, WorkerRegistration};
use reqwest::Method;
use serde_json::json;
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::authority::Authority;
use crate::scene::{Scene, token, with_token};
use crate::support::{Stores, eventually};

async fn peer_connects(address: &str, tls: Option<ClientTlsConfig>) -> bool {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).unwrap();
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls).unwrap();
    }
    let Ok(channel) = endpoint.connect().await else { return false };
    // With TLS 1.3 a client learns only later that its certificate was asked for in vain.
    let mut client = tonic::client::Grpc::new(channel);
    if client.ready().await.is_err() {
        return false;
    }
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = http::uri::PathAndQuery::from_static("/nobody.Knows/It");
    let status = client.unary(tonic::Request::new(()), path, codec).await.unwrap_err();
    status.code() == Code::Unimplemented
}

#[tokio::test]
async fn replicas_speak_mutual_tls_and_let_nobody_else_in() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (cert, key) = ours.issue("replica");
    let setting = |key: &str, file: &Path| format!("cluster.tls.{key}={}", file.display());
    let settings = [setting("cert", &cert), setting("key", &key), setting("ca", &ours.file("ca.pem"))];
    let scene = Scene::start(3, &settings.each_ref().map(String::as_str)).await;
    let submitter = scene.token("ann", Role::Submitter);
    let draft = json!({"name": "job", "model_name": "m", "model_version": "1", "input_data": {"a": 1}});
    for replica in 0..3 {
        let answer = scene.send(replica, &Method::POST, "/api/v1/jobs", Some(&submitter), Some(&draft)).await;
        assert_eq!(answer.status(), 201, "writes are forwarded over TLS");
    }
    let address = scene.cluster.peer(0).to_string();
    let root = || ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&ours.pem));
    let with = |authority: &Authority| {
        let (cert, key) = authority.issue("caller");
        let read = |path: PathBuf| std::fs::read(path).unwrap();
        root().identity(tonic::transport::Identity::from_pem(read(cert), read(key)))
    };
    assert!(peer_connects(&address, Some(with(&ours))).await);
    assert!(!peer_connects(&address, None).await, "without TLS");
    assert!(!peer_connects(&address, Some(root())).await, "without a certificate");
    assert!(!peer_connects(&address, Some(with(&theirs))).await, "with somebody else's");
    scene.logs_are_clean(&[]);
}

/// One replica, started by its configuration file alone.
struct Replica(Child);

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn clients_and_workers_speak_tls_and_plain_text_is_not_understood() {
    let authority = Authority::new();
    let (cert, key) = authority.issue("server");
    let (stores, pair, ports) =
        (Stores::fresh().await, KeyPair::generate().unwrap(), PortBlock::reserve(3).unwrap());
    let public_key = authority.file("public.pem");
    std::fs::write(&public_key, pair.public_pem()).unwrap();
    let first = ports.first();
    let config = json!({
        "server": {"host": "127.0.0.1", "http_port": first, "grpc_port": first + 1, "tls": {"cert": cert, "key": key}},
        "database": {"url": stores.database_url},
        "queue": {"redis_url": stores.redis_url, "queue_prefix": stores.queue_prefix},
        "security": {"jwt_public_key": public_key},
        "cluster": {"data_dir": authority.file("raft"), "peer_listen": format!("127.0.0.1:{}", first + 2)},
    });
    let file = authority.file("cortex.yaml");
    std::fs::write(&file, config.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_cortex"));
    command.arg("serve").arg("--config").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
    let _replica = Replica(command.spawn().unwrap());

    let root = reqwest::Certificate::from_pem(authority.pem.as_bytes()).unwrap();
    let http = reqwest::Client::builder().tls_certs_only([root]).build().unwrap();
    let url = |path: &str| format!("https://127.0.0.1:{first}{path}");
    eventually("the replica is ready", async || {
        http.get(url("/health/ready")).send().await.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    let viewer = token(pair.private_pem(), "ann", Role::Viewer);
    assert_eq!(http.get(url("/api/v1/jobs")).bearer_auth(&viewer).send().await.unwrap().status(), 200);
    assert_eq!(http.get(url("/api/v1/jobs")).send().await.unwrap().status(), 401);
    let plain = reqwest::Client::new().get(format!("http://127.0.0.1:{first}/health/live")).send().await;
    assert!(plain.is_err(), "{plain:?}");
    let distrusting = reqwest::Client::new().get(url("/health/live")).send().await;
    assert!(distrusting.is_err(), "a certificate that nobody vouches for");

    let channel = async |tls: ClientTlsConfig| -> Result<Channel, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{}", first + 1))?;
        endpoint.tls_config(tls)?.connect().await
    };
    let trusting = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&authority.pem));
    let mut client = JobServiceClient::new(channel(trusting).await.unwrap());
    let worker = token(pair.private_pem(), "w", Role::Worker);
    let registration = WorkerRegistration {
        name: "w".to_owned(),
        hostname: "h".to_owned(),
        port: 1,
        max_concurrent_jobs: 1,
        ..WorkerRegistration::default()
    };
    // The address of the connection stands in for the one that is not given.
    let registered = client.register_worker(with_token(registration, &worker)).await.unwrap().into_inner();
    let heartbeat = HeartbeatRequest {
        worker_id: registered.worker_id,
        status: "idle".into(),
        ..HeartbeatRequest::default()
    };
    assert!(client.heartbeat(with_token(heartbeat, &worker)).await.unwrap().into_inner().acknowledged);
    assert!(channel(ClientTlsConfig::new()).await.is_err(), "a certificate that nobody vouches for");

    let mut jobs = Command::new(env!("CARGO_BIN_EXE_cortex"));
    jobs.args(["jobs", "list", "--endpoint", &url(""), "--output", "json", "--token", &viewer]);
    let output = tokio::task::spawn_blocking({
        let ca = authority.file("ca.pem");
        move || jobs.env("SSL_CERT_FILE", ca).output().unwrap()
    });
    let output = output.await.unwrap();
    assert!(output.status.success(), "{output:?}");
}
