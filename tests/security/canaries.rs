//! Secrets that nobody may ever see: a replica whose secrets can all be told by one word goes through good and bad
//! requests, refused passwords and stores that are away, and says the word nowhere.

use std::fmt::Write;
use std::process::Stdio;
use std::time::Duration;

use cortex::dev::{PortBlock, Postgres, PostgresOptions, Redis, RedisOptions, Signal};
use cortex::security::Role;
use cortex_client::proto::client_service_client::ClientServiceClient;
use cortex_client::proto::{GetStatsRequest, JobSubmission, SubmitJobRequest};
use reqwest::Method;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::process::Command;

use crate::collector::Collector;
use crate::scene::{Scene, headers, token, with_authorization, with_token};
use crate::support::{Scratch, eventually};

/// What all secrets have in common.
const WORD: &str = "canary";
/// The same for a key, which has to be hexadecimal.
const KEY_WORD: &str = "ca9a5ca9a5";
/// The account that a replica uses.
const ROLE: &str = "cortex_app";

/// Stores that ask for passwords.
struct Guarded {
    postgres: Postgres,
    redis: Redis,
    database_url: String,
    redis_url: String,
    _ports: PortBlock,
    _folder: Scratch,
}

impl Guarded {
    async fn start() -> Self {
        let (folder, ports) = (Scratch::new(), PortBlock::reserve(2).unwrap());
        let postgres = Postgres::start(PostgresOptions {
            data_dir: folder.path().join("postgres"),
            log: folder.path().join("postgres.log"),
            port: ports.first(),
            settings: vec!["fsync=off".to_owned()],
        });
        let redis = Redis::start(RedisOptions {
            data_dir: folder.path().join("redis"),
            log: folder.path().join("redis.log"),
            port: ports.first() + 1,
        });
        let (postgres, redis) = tokio::try_join!(postgres, redis).unwrap();
        let own = postgres.create_database("guarded").await.unwrap();
        let database_url = own.replace("cortex@", &format!("{ROLE}:{WORD}-database@"));
        let redis_url = redis.url().replace("redis://", &format!("redis://:{WORD}-redis@"));
        let guarded = Self { postgres, redis, database_url, redis_url, _ports: ports, _folder: folder };
        guarded.sql(&format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{WORD}-database'")).await;
        guarded.sql(&format!("ALTER DATABASE guarded OWNER TO {ROLE}")).await;
        let rules = format!(
            "host all {ROLE} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\nlocal all all trust\n"
        );
        std::fs::write(guarded.postgres.home().join("data/pg_hba.conf"), rules).unwrap();
        guarded.sql("SELECT pg_reload_conf()").await;
        guarded.redis_asks_for(&format!("{WORD}-redis")).await;
        guarded
    }

    async fn sql(&self, statement: &str) {
        let mut connection = PgConnection::connect(&self.postgres.url()).await.unwrap();
        sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await.unwrap();
    }

    /// Lets nobody in but with this password, and sends away who is in.
    async fn postgres_asks_for(&self, password: &str) {
        self.sql(&format!("ALTER ROLE {ROLE} PASSWORD '{password}'")).await;
        self.postgres_sends_away().await;
    }

    /// Sends away who is in. Who was just showing the former password is not yet in, and not seen.
    async fn postgres_sends_away(&self) {
        let away = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'");
        self.sql(&away).await;
    }

    async fn redis_asks_for(&self, password: &str) {
        let url = self.redis.url();
        let way_in = [url.clone(), self.redis_url.clone(), url.replace("redis://", "redis://:other@")];
        for url in way_in {
            let client = redis::Client::open(url).unwrap();
            let Ok(mut connection) = client.get_multiplexed_async_connection().await else { continue };
            let set = redis::cmd("CONFIG").arg("SET").arg("requirepass").arg(password).to_owned();
            if set.query_async::<()>(&mut connection).await.is_ok() {
                let mut kill = redis::cmd("CLIENT");
                kill.arg("KILL").arg("TYPE").arg("normal");
                kill.query_async::<i64>(&mut connection).await.unwrap();
                return;
            }
        }
        panic!("Redis lets nobody in");
    }
}

/// All that a replica has said to anybody.
#[derive(Default)]
struct Heard(String);

impl Heard {
    fn note(&mut self, what: &str, text: impl AsRef<str>) {
        let _ = writeln!(self.0, "{what}: {}", text.as_ref());
    }

    async fn answer(&mut self, what: &str, answer: reqwest::Response) -> u16 {
        let status = answer.status().as_u16();
        self.note(what, format!("{status} {:?}", headers(&answer)));
        let body = answer.text().await.unwrap_or_default();
        self.note(what, body);
        status
    }

    /// Asks everything that may answer with the reason of a failure.
    async fn ask_around(&mut self, scene: &Scene, token: &str) -> u16 {
        for path in
            ["/health", "/health/ready", "/metrics", "/api/v1/cluster", "/api/v1/queues", "/api/v1/jobs"]
        {
            let answer = scene.send(0, &Method::GET, path, Some(token), None).await;
            self.answer(path, answer).await;
        }
        let stats = scene.send(0, &Method::GET, "/api/v1/jobs/stats/summary", Some(token), None).await;
        self.answer("stats", stats).await;
        let mut client = ClientServiceClient::new(scene.channel(0).await);
        let stats = client.get_stats(with_token(GetStatsRequest {}, token)).await;
        self.note("gRPC", format!("{stats:?}"));
        let job = json!({"name": "n", "model_name": "m", "model_version": "1", "input_data": {"n": 1}});
        let submitted = scene.send(0, &Method::POST, "/api/v1/jobs", Some(token), Some(&job)).await;
        self.answer("submission", submitted).await
    }

    fn is_silent_about(&self, secrets: &[&str]) {
        for secret in secrets {
            let lines: Vec<&str> = self.0.lines().filter(|line| line.contains(secret)).collect();
            assert!(lines.is_empty(), "{secret} is told in {} lines: {:#?}", lines.len(), &lines[..1]);
        }
    }
}

async fn say_wrong_things(heard: &mut Heard, scene: &Scene, token: &str) {
    let bad_token = format!("{WORD}.token.{WORD}");
    for token in [None, Some(&*bad_token), Some(token)] {
        for (method, path) in
            [(Method::POST, "/api/v1/jobs"), (Method::PATCH, "/api/v1/jobs/x"), (Method::GET, "/x")]
        {
            let answer = scene.send(0, &method, path, token, Some(&json!({"name": 1}))).await;
            heard.answer(path, answer).await;
        }
    }
    let mut client = ClientServiceClient::new(scene.channel(0).await);
    let bad = client.get_stats(with_authorization(GetStatsRequest {}, &format!("Bearer {bad_token}"))).await;
    heard.note("gRPC with a bad token", format!("{bad:?}"));
    let job = SubmitJobRequest { job: Some(JobSubmission::default()), ..SubmitJobRequest::default() };
    let bad = client.submit_job(with_token(job, token)).await;
    heard.note("bad gRPC submission", format!("{bad:?}"));
    // The peer port, with another secret.
    let peer = format!("http://{}", scene.cluster.peer(0));
    let mut peer =
        tonic::client::Grpc::new(tonic::transport::Channel::from_shared(peer).unwrap().connect_lazy());
    peer.ready().await.unwrap();
    let path = "/cortex.peer.Forward/Exchange".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let refused = peer.unary(tonic::Request::new(()), path, codec).await;
    assert!(refused.is_err());
    heard.note("peer", format!("{refused:?}"));
}

#[tokio::test]
async fn no_secret_of_the_configuration_is_in_any_log_trace_metric_answer_or_error() {
    let (stores, collector, mut heard) = (Guarded::start().await, Collector::start().await, Heard::default());
    let key = KEY_WORD.repeat(7)[..64].to_owned();
    let settings = [
        format!("security.payload_keys=['{key}']"),
        format!("security.jwt_secret_key={WORD}-jwt-secret"),
        format!("genome.url=http://u:{WORD}-genome@127.0.0.1:1"),
        format!("cluster.secret={WORD}-cluster-secret"),
        format!("observability.otlp_endpoint={}", collector.endpoint),
        "observability.logging_level=debug".to_owned(),
    ];
    let scene = Scene::guarded(&stores.database_url, &stores.redis_url, &settings, |builder| {
        builder
            .env("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization=Bearer {WORD}-otlp"))
            // Beside the key that the group has made for itself.
            .env("CORTEX__SECURITY__JWKS_URL", format!("http://u:{WORD}-jwks@127.0.0.1:1/keys"))
            .env("RUST_LOG", "debug")
    })
    .await;
    let admin = token(&scene.private_pem, "ann", Role::Admin);

    assert_eq!(heard.ask_around(&scene, &admin).await, 201);
    say_wrong_things(&mut heard, &scene, &admin).await;
    eventually("spans have arrived", async || collector.everything().contains("rest.job.submit")).await;
    let sent = collector.headers();
    assert!(sent.iter().all(|headers| headers.contains(&format!("{WORD}-otlp"))), "{sent:?}");
    collector.refuse();

    stores.postgres_asks_for("other").await;
    // A connection that breaks is an error, too, before any is refused.
    eventually("PostgreSQL refuses", async || {
        stores.postgres_sends_away().await;
        let log = std::fs::read_to_string(scene.cluster.log(0)).unwrap();
        heard.ask_around(&scene, &admin).await >= 500 && log.contains("password authentication failed")
    })
    .await;
    stores.postgres_asks_for(&format!("{WORD}-database")).await;
    eventually("PostgreSQL answers", async || heard.ask_around(&scene, &admin).await == 201).await;
    stores.redis_asks_for("other").await;
    eventually("Redis refuses", async || {
        heard.ask_around(&scene, &admin).await;
        scene.send(0, &Method::GET, "/health", None, None).await.status() == 503
    })
    .await;
    stores.redis_asks_for(&format!("{WORD}-redis")).await;
    stores.redis.stop().await;
    stores.postgres.stop().await;
    eventually("the stores are away", async || heard.ask_around(&scene, &admin).await >= 500).await;
    // It starts anew, and waits for stores that are away; then it is told to stop.
    assert!(scene.cluster.kill(0, Signal::SIGTERM));
    scene.cluster.wait_for_exit(0).await;

    heard.note("spans", collector.everything());
    let log = std::fs::read_to_string(scene.cluster.log(0)).unwrap();
    for told in [
        "password authentication failed",
        "The collector does not take spans",
        "The keys of security.jwks_url could not be fetched",
        "The model registry says nothing",
        "PostgreSQL",
        "Redis",
    ] {
        assert!(log.contains(told), "the log does not tell: {told}");
    }
    heard.note("log", log);
    heard.is_silent_about(&[WORD, KEY_WORD, &admin, "PRIVATE KEY"]);
}

/// Starts a replica with this configuration. Answers whether it ended well and what it said; it must end by itself, or
/// when it is told to after it has said `stop_at`.
async fn serve(
    folder: &Scratch,
    yaml: &str,
    environment: &[(&str, &str)],
    stop_at: Option<&str>,
) -> (bool, String) {
    let (config, log) = (folder.path().join("cortex.yaml"), folder.path().join("log"));
    std::fs::write(&config, yaml).unwrap();
    let output = std::fs::File::create(&log).unwrap();
    let mut replica = Command::new(env!("CARGO_BIN_EXE_cortex"));
    replica
        .args(["serve", "--config"])
        .arg(&config)
        .envs(environment.iter().copied())
        .env("RUST_LOG", "debug");
    replica.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output).kill_on_drop(true);
    let mut replica = replica.spawn().unwrap();
    let read = || std::fs::read_to_string(&log).unwrap();
    if let Some(stop_at) = stop_at {
        let said = async {
            while !read().contains(stop_at) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let said = tokio::time::timeout(Duration::from_secs(60), said).await;
        assert!(said.is_ok(), "it does not say {stop_at:?}: {}", read());
        let pid = nix::unistd::Pid::from_raw(i32::try_from(replica.id().unwrap()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }
    let status = tokio::time::timeout(Duration::from_secs(60), replica.wait()).await;
    let status = status.unwrap_or_else(|_| panic!("it does not end: {}", read())).unwrap();
    (status.success(), read())
}

/// Values that no key takes, with a secret in each.
fn wrong_values(garbage: &str, pem: &str) -> Vec<(&'static str, &'static str, String)> {
    let list = format!("[{WORD}]");
    vec![
        ("database", "url", format!("mysql://u:{WORD}@h/d")),
        ("database", "url", format!("postgres://u:{WORD}@h:port/d")),
        ("database", "url", list.clone()),
        ("queue", "redis_url", format!("http://u:{WORD}@h")),
        ("queue", "redis_url", format!("redis://u:{WORD}@h:port/0")),
        ("queue", "redis_url", format!("redis://u:{WORD}@h:1/database")),
        ("cluster", "secret", WORD.to_owned()),
        ("cluster", "secret", list.clone()),
        ("cluster", "secrets", WORD.to_owned()),
        ("cluster", "tls", format!("{{cert: '{garbage}', key: '{garbage}', ca: '{garbage}'}}")),
        ("server", "tls", format!("{{cert: '{garbage}', key: '{garbage}'}}")),
        ("security", "payload_keys", list.clone()),
        ("security", "payload_keys", WORD.to_owned()),
        ("security", "payload_key", WORD.to_owned()),
        ("security", "jwt_secret_key", list.clone()),
        ("security", "jwt_public_key", serde_json::to_string(pem).unwrap()),
        ("security", "jwt_public_key", garbage.to_owned()),
        ("security", "jwt_public_key", list),
        ("security", "jwks_url", format!("ftp://u:{WORD}@h/keys")),
        ("observability", "otlp_endpoint", format!("http://u:{WORD}@h:4317")),
        ("observability", "otlp_endpoint", format!("grpc://u:{WORD}@h:4317")),
        ("genome", "url", format!("ftp://u:{WORD}@h")),
        ("genome", "url", format!("http://u:{WORD}@h:port")),
        ("observability", "otlp_headers", format!("authorization={WORD}")),
    ]
}

#[tokio::test]
async fn a_start_that_fails_tells_the_key_and_not_the_secret() {
    let stores = Guarded::start().await;
    let (folder, ports) = (Scratch::new(), PortBlock::reserve(3).unwrap());
    let garbage = folder.path().join("garbage.pem");
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{WORD}\n-----END PRIVATE KEY-----\n");
    std::fs::write(&garbage, &pem).unwrap();
    let garbage = garbage.to_str().unwrap();
    // What is right but for one key.
    let yaml = |section: &str, key: &str, value: &str| {
        let mut all = json!({
            "server": {"host": "127.0.0.1", "http_port": ports.first(), "grpc_port": ports.first() + 1},
            "database": {"url": stores.database_url},
            "queue": {"redis_url": stores.redis_url},
            "security": {"require_auth": false},
            "observability": {},
            "cluster": {
                "node_id": 1,
                "data_dir": folder.path().join("raft"),
                "peer_listen": format!("127.0.0.1:{}", ports.first() + 2),
                "advertise": {
                    "peer": format!("127.0.0.1:{}", ports.first() + 2),
                    "http": "127.0.0.1:1", "grpc": "127.0.0.1:2",
                },
                "seeds": [format!("1=127.0.0.1:{}", ports.first() + 2)],
                "secret": format!("{WORD}-cluster-secret"),
            },
        });
        all[section][key] = yaml_serde::from_str(value).unwrap();
        if key.starts_with("jwt") || key.starts_with("jwks") {
            all["security"]["require_auth"] = json!(true);
        }
        yaml_serde::to_string(&all).unwrap()
    };
    let mut heard = Heard::default();
    for (section, key, value) in &wrong_values(garbage, &pem) {
        let (well, text) = serve(&folder, &yaml(section, key, value), &[], None).await;
        assert!(!well, "{section}.{key} = {value}: {text}");
        assert!(text.contains(&format!("{section}.{key}")), "{section}.{key} = {value}: {text}");
        heard.note(&format!("{section}.{key}"), text);
    }
    let good = yaml("cluster", "node_id", "1");
    for (yaml, environment, told) in [
        (format!("database: {{url: 'postgres://u:{WORD}@h/d"), vec![], "YAML"),
        (format!("database: {{url: postgres://u:{WORD}@h/d}}\n\tqueue: ["), vec![], "YAML"),
        (good.clone(), vec![("CORTEX__CLUSTER__SECRET", WORD)], "CORTEX__CLUSTER__SECRET"),
        (good.clone(), vec![("CORTEX__SECURITY__SECRET", WORD)], "CORTEX__SECURITY__SECRET"),
        (good.replace("cluster-secret", "${MISSING_SECRET}"), vec![], "MISSING_SECRET"),
    ] {
        let (well, text) = serve(&folder, &yaml, &environment, None).await;
        assert!(!well && text.contains(told), "{told}: {text}");
        heard.note(told, text);
    }
    // A password that PostgreSQL refuses ends the start; for a PostgreSQL that is away the replica waits until it is
    // told to stop.
    stores.postgres_asks_for("other").await;
    let (well, text) = serve(&folder, &good, &[], None).await;
    assert!(!well && text.contains("refuses the user or the password"), "{text}");
    heard.note("PostgreSQL refuses", text);
    stores.postgres.stop().await;
    let (_, text) = serve(&folder, &good, &[], Some("PostgreSQL cannot be used yet")).await;
    heard.note("PostgreSQL is away", text);
    heard.is_silent_about(&[WORD]);
}
