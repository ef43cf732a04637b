//! The groups that these tests call.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use cortex::dev::{DevCluster, DevClusterBuilder, Janitor};
use cortex::domain::ambient::{Ambient, System};
use cortex::security::{Issuer, NewToken, Role};
use reqwest::{Method, Response};
use serde_json::Value;
use tokio::sync::OnceCell;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

use crate::support::{Scratch, Stores};

/// What the shared group asks of tokens.
pub const ISSUER: &str = "https://id.test";
pub const AUDIENCE: &str = "cortex-test";

/// A running group that requires tokens.
pub struct Scene {
    pub cluster: DevCluster,
    pub private_pem: String,
    pub public_pem: String,
    pub stores: Stores,
    pub http: reqwest::Client,
    logs: Vec<PathBuf>,
    _folder: Scratch,
    _janitor: Janitor,
}

/// The group of three that most tests share.
pub async fn shared() -> &'static Scene {
    static SHARED: OnceCell<Scene> = OnceCell::const_new();
    SHARED
        .get_or_init(async || {
            let (issuer, audience) =
                (format!("security.jwt_issuer={ISSUER}"), format!("security.jwt_audience={AUDIENCE}"));
            Scene::start(3, &[&issuer, &audience]).await
        })
        .await
}

impl Scene {
    /// Starts a group of its own with these settings.
    pub async fn start(replicas: u16, settings: &[&str]) -> Self {
        Self::with_workers(replicas, 0, settings).await
    }

    /// The same with demo workers.
    pub async fn with_workers(replicas: u16, workers: u16, settings: &[&str]) -> Self {
        Self::on(Stores::fresh().await, replicas, workers, settings, |builder| builder).await
    }

    /// One replica on stores of its own.
    pub async fn guarded(
        database_url: &str,
        redis_url: &str,
        settings: &[String],
        configure: impl FnOnce(DevClusterBuilder) -> DevClusterBuilder,
    ) -> Self {
        let (database_url, redis_url) = (database_url.to_owned(), redis_url.to_owned());
        let stores = Stores { database_url, redis_url, queue_prefix: "guarded".to_owned() };
        let issuer = [format!("security.jwt_issuer={ISSUER}"), format!("security.jwt_audience={AUDIENCE}")];
        let settings: Vec<&str> = settings.iter().chain(&issuer).map(String::as_str).collect();
        Self::on(stores, 1, 0, &settings, configure).await
    }

    async fn on(
        stores: Stores,
        replicas: u16,
        workers: u16,
        settings: &[&str],
        configure: impl FnOnce(DevClusterBuilder) -> DevClusterBuilder,
    ) -> Self {
        let folder = Scratch::new();
        let mut builder = DevCluster::builder(folder.path().join("data"))
            .binary(env!("CARGO_BIN_EXE_cortex"))
            .replicas(replicas)
            .workers(workers)
            .require_auth(true)
            .database_url(Some(stores.database_url.clone()))
            .redis_url(Some(stores.redis_url.clone()))
            .set(format!("queue.queue_prefix={:?}", stores.queue_prefix))
            // These tests are not about failover, and the machine may be busy.
            .set("cluster.heartbeat_ms=100")
            .set("cluster.election_timeout_ms=[5000, 10000]")
            .set("cluster.forward_timeout_ms=60000");
        for setting in settings {
            builder = builder.set(*setting);
        }
        let cluster = configure(builder).start().await.unwrap();
        let manifest = std::fs::read(cluster.data_dir().join("cluster.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let pid = |replica: &Value| u32::try_from(replica["pid"].as_u64().unwrap()).unwrap();
        let pids: Vec<u32> = manifest["replicas"].as_array().unwrap().iter().map(pid).collect();
        let read = |name: &str| {
            let path = cluster.tokens().map(|folder| folder.join(name));
            path.map(|path| std::fs::read_to_string(path).unwrap()).unwrap_or_default()
        };
        Self {
            private_pem: read("private.pem"),
            public_pem: read("public.pem"),
            logs: (0..usize::from(replicas)).map(|at| cluster.log(at).to_owned()).collect(),
            _janitor: Janitor::watch(folder.path(), &pids).unwrap(),
            _folder: folder,
            cluster,
            stores,
            // A kept connection ends with the runtime of the test that opened it.
            http: reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .pool_max_idle_per_host(0)
                .build()
                .unwrap(),
        }
    }

    /// A token of this subject and role that the group believes.
    pub fn token(&self, subject: &str, role: Role) -> String {
        token(&self.private_pem, subject, role)
    }

    /// A request to a replica.
    pub async fn send(
        &self,
        replica: usize,
        method: &Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Response {
        let url = format!("http://{}{path}", self.cluster.http(replica));
        let mut request = self.http.request(method.clone(), url);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.unwrap()
    }

    /// A leader and a follower.
    pub async fn both(&self) -> [usize; 2] {
        let leader = self.leader().await;
        [leader, (leader + 1) % self.cluster.size()]
    }

    async fn leader(&self) -> usize {
        let admin = self.token("test", Role::Admin);
        let cluster = self.send(0, &Method::GET, "/api/v1/cluster", Some(&admin), None).await;
        let cluster: Value = cluster.json().await.unwrap();
        usize::try_from(cluster["leader"].as_u64().unwrap()).unwrap() - 1
    }

    /// A connection to a replica's gRPC listener.
    pub async fn channel(&self, replica: usize) -> Channel {
        let url = format!("http://{}", self.cluster.grpc(replica));
        Channel::from_shared(url).unwrap().connect().await.unwrap()
    }

    /// Sees that no replica has panicked or found a defect, and that no token or key is in its log.
    pub fn logs_are_clean(&self, tokens: &[&str]) {
        for log in &self.logs {
            let text = String::from_utf8_lossy(&std::fs::read(log).unwrap()).into_owned();
            let bad: Vec<_> =
                text.lines().filter(|line| line.contains("panicked") || line.contains(" ERROR ")).collect();
            assert!(bad.is_empty(), "{bad:#?}");
            assert!(!text.is_empty() && !text.contains("PRIVATE KEY"));
            for token in tokens {
                assert!(!text.contains(token), "a token is in {}", log.display());
            }
        }
    }
}

/// A token signed with this key, made for the shared group.
pub fn token(private_pem: &str, subject: &str, role: Role) -> String {
    token_since(private_pem, subject, role, Duration::ZERO)
}

/// The same of which so much of its hour has passed.
pub fn token_since(private_pem: &str, subject: &str, role: Role, age: Duration) -> String {
    let token = NewToken {
        subject: subject.to_owned(),
        role,
        ttl: Duration::from_secs(3600),
        issuer: Some(ISSUER.to_owned()),
        audience: Some(AUDIENCE.to_owned()),
    };
    Issuer::from_pem(private_pem).unwrap().issue(&token, System.now() - age).unwrap()
}

/// A gRPC message with a token.
pub fn with_token<T>(message: T, token: &str) -> tonic::Request<T> {
    with_authorization(message, &format!("Bearer {token}"))
}

/// A gRPC message with this `authorization`.
pub fn with_authorization<T>(message: T, value: &str) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("authorization", MetadataValue::try_from(value).unwrap());
    request
}

/// The headers of a REST answer as texts.
pub fn headers(response: &Response) -> HashMap<String, String> {
    let text = |value: &reqwest::header::HeaderValue| value.to_str().unwrap_or_default().to_owned();
    response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}
