//! A PostgreSQL that lets its user in over TLS only, together with a Redis that speaks TLS.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;
use std::time::Duration;

use cortex::dev::{PortBlock, Postgres, PostgresOptions};
use cortex::storage::{Database, DatabaseOptions, StorageError};
use serde_json::json;
use sqlx::AssertSqlSafe;

use crate::authority::Authority;
use crate::redis_secured::Secured;
use crate::scene::Replicas;
use crate::support::{Scratch, eventually};

const PASSWORD: &str = "correct-horse";

struct Guarded {
    authority: Authority,
    postgres: Postgres,
    port: u16,
    _ports: PortBlock,
    _scratch: Scratch,
}

impl Guarded {
    /// Starts it with the user `app`, who owns the database `app`. Its certificate is for the host `localhost`.
    async fn start() -> Self {
        let (authority, scratch) = (Authority::new(), Scratch::new());
        let ports = PortBlock::reserve(1).unwrap();
        let postgres = Postgres::start(PostgresOptions {
            data_dir: scratch.path().join("postgres"),
            log: scratch.path().join("postgres.log"),
            port: ports.first(),
            settings: ["fsync=off", "full_page_writes=off"].map(str::to_owned).to_vec(),
        });
        let postgres = postgres.await.unwrap();
        let (cert, key) = authority.issue_for("postgres", &["localhost"]);
        // It wants its key for itself.
        let owner = std::fs::metadata(postgres.home().join("data")).unwrap().uid();
        chown(&key, Some(owner), None).unwrap();
        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
        let access = "host all cortex 127.0.0.1/32 trust\nhostssl app app all scram-sha-256\n";
        std::fs::write(postgres.home().join("data/pg_hba.conf"), access).unwrap();
        let admin = sqlx::PgPool::connect(&postgres.url()).await.unwrap();
        for statement in [
            format!("CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'"),
            "CREATE DATABASE app OWNER app".to_owned(),
            format!("ALTER SYSTEM SET ssl_cert_file = '{}'", cert.display()),
            format!("ALTER SYSTEM SET ssl_key_file = '{}'", key.display()),
            "ALTER SYSTEM SET ssl = on".to_owned(),
            "SELECT pg_reload_conf()".to_owned(),
        ] {
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&admin).await.unwrap();
        }
        let guarded = Self { authority, postgres, port: ports.first(), _ports: ports, _scratch: scratch };
        let tls = format!("sslmode=verify-full&sslrootcert={}", guarded.authority.file("ca.pem").display());
        eventually("PostgreSQL speaks TLS", async || {
            guarded.check(&guarded.url("localhost", PASSWORD, &tls)).await.is_ok()
        })
        .await;
        guarded
    }

    fn url(&self, host: &str, password: &str, parameters: &str) -> String {
        format!("postgres://app:{password}@{host}:{}/app?{parameters}", self.port)
    }

    async fn check(&self, url: &str) -> Result<(), StorageError> {
        let database = Database::connect_lazily(&DatabaseOptions {
            url: url.to_owned(),
            max_connections: 1,
            acquire_timeout: Duration::from_secs(5),
            max_lifetime: Duration::from_secs(60),
            pooler: false,
        });
        database.unwrap().check().await
    }
}

#[tokio::test]
async fn tls_is_as_strict_as_the_url_says_and_a_refusal_says_why() {
    let guarded = Guarded::start().await;
    let ours = format!("sslrootcert={}", guarded.authority.file("ca.pem").display());
    let strange = Authority::new();
    let theirs = format!("sslrootcert={}", strange.file("ca.pem").display());
    for (host, parameters, refused) in [
        ("localhost", format!("sslmode=verify-full&{ours}"), None),
        ("127.0.0.1", format!("sslmode=verify-ca&{ours}"), None),
        ("127.0.0.1", "sslmode=require".to_owned(), None),
        // What is not said: TLS where PostgreSQL has it.
        ("127.0.0.1", String::new(), None),
        ("127.0.0.1", format!("sslmode=verify-full&{ours}"), Some("TLS with it failed")),
        ("localhost", format!("sslmode=verify-full&{theirs}"), Some("TLS with it failed")),
        ("localhost", "sslmode=verify-full".to_owned(), Some("TLS with it failed")),
        ("localhost", "sslmode=disable".to_owned(), Some("it refuses the user or the password")),
    ] {
        let answer = guarded.check(&guarded.url(host, PASSWORD, &parameters)).await;
        match (answer, refused) {
            (Ok(()), None) => {}
            (Err(error), Some(reason)) => {
                let story = format!("{error:?}");
                let said = format!("PostgreSQL is unavailable: {reason}");
                assert_eq!(error.to_string(), said, "{host} {parameters}: {story}");
                assert!(!story.contains(PASSWORD), "{story}");
            }
            (answer, _) => panic!("{host} {parameters}: {answer:?}"),
        }
    }
}

#[tokio::test]
async fn a_group_over_tls_to_both_stores_runs_jobs_and_a_wrong_password_ends_the_start() {
    let (guarded, redis) = (Guarded::start().await, Secured::start(true).await);
    let ca = guarded.authority.file("ca.pem");
    let url = |password| {
        guarded.url("localhost", password, &format!("sslmode=verify-full&sslrootcert={}", ca.display()))
    };
    let (cert, key) = redis.authority.issue("replica");
    let replicas = Replicas::start(|builder| {
        let redis_ca = redis.authority.file("ca.pem");
        builder
            .database_url(Some(url(PASSWORD)))
            .redis_url(Some(redis.url()))
            .set(format!("queue.tls.ca={}", redis_ca.display()))
            .set(format!("queue.tls.cert={}", cert.display()))
            .set(format!("queue.tls.key={}", key.display()))
    })
    .await;
    for replica in 0..3 {
        for _ in 0..10 {
            replicas.submit(replica, &json!({})).await.unwrap();
        }
    }
    let worker = replicas.worker(4, &["--sleep-ms", "0"]);
    replicas.completes(0, 30).await;
    eventually("all is well", async || replicas.get(2, "/health").await.0 == 200).await;
    drop(worker);
    let admin = sqlx::PgPool::connect(&guarded.postgres.url()).await.unwrap();
    let plain = "SELECT count(*) FILTER (WHERE ssl), count(*) FILTER (WHERE NOT ssl)
        FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'app'";
    let (encrypted, plain): (i64, i64) = sqlx::query_as(plain).fetch_one(&admin).await.unwrap();
    assert!(encrypted > 0 && plain == 0, "{encrypted} connections with TLS, {plain} without");

    // Started again with a password that is wrong.
    let file = replicas.cluster.data_dir().join("replica-1.yaml");
    let yaml = std::fs::read_to_string(&file).unwrap().replace("app:correct-horse@", "app:wrong-horse@");
    let changed = replicas.cluster.data_dir().join("wrong.yaml");
    std::fs::write(&changed, yaml).unwrap();
    replicas.cluster.stop().await;
    let ended = Command::new(env!("CARGO_BIN_EXE_cortex")).args(["serve", "--config"]).arg(changed).output();
    let ended = ended.unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned() + &String::from_utf8_lossy(&ended.stdout);
    assert!(!ended.status.success());
    assert!(
        said.contains("database.url cannot be used: PostgreSQL is unavailable: it refuses the user"),
        "{said}"
    );
    assert!(!said.contains("horse"), "{said}");
}
