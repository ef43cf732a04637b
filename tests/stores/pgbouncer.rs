//! `PgBouncer` in transaction mode, with fewer servers than its clients have connections.

use std::process::{Command, Stdio};
use std::time::Duration;

use cortex::dev::{PortBlock, Signal};
use cortex::domain::ambient::{Ambient, System};
use cortex::domain::ids::{ClusterId, Epoch, JobId, WorkerId};
use cortex::domain::job::{JobDefaults, JobDraft};
use cortex::domain::retry::RetryPolicy;
use cortex::domain::worker::WorkerDraft;
use cortex::storage::{Database, DatabaseOptions, Fence, Insertion, StorageError};
use nix::unistd::{Uid, User};
use serde_json::{Map, Value, json};
use sqlx::Row;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::scene::{Ended, Replicas};
use crate::support::{Scratch, Stores, eventually};

/// Connections to PostgreSQL that it makes for a database.
const SERVERS: i64 = 5;

struct PgBouncer {
    url: String,
    _process: Ended,
    _ports: PortBlock,
    _scratch: Scratch,
}

impl PgBouncer {
    /// Starts one in front of PostgreSQL.
    async fn start(stores: &Stores) -> Self {
        let postgres: PgConnectOptions = stores.database_url.parse().unwrap();
        Self::start_to(stores, postgres.get_port()).await
    }

    /// The same to another port.
    async fn start_to(stores: &Stores, port: u16) -> Self {
        let (scratch, ports) = (Scratch::new(), PortBlock::reserve(1).unwrap());
        let postgres: PgConnectOptions = stores.database_url.parse().unwrap();
        let (file, users) = (scratch.path().join("pgbouncer.ini"), scratch.path().join("users.txt"));
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = transaction\n\
             default_pool_size = {SERVERS}\nmax_client_conn = 500\n",
            ports.first(),
            users.display(),
        );
        std::fs::write(&file, settings).unwrap();
        std::fs::write(users, "\"cortex\" \"\"\n").unwrap();
        let mut process = Command::new("pgbouncer");
        if Uid::effective().is_root() {
            let account = ["postgres", "nobody"]
                .into_iter()
                .find(|name| User::from_name(name).is_ok_and(|u| u.is_some()));
            process.args(["-u", account.unwrap()]);
        }
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let process = process.arg(file).env("PATH", path).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let database = postgres.get_database().unwrap();
        let url = format!("postgres://cortex@127.0.0.1:{}/{database}", ports.first());
        let bouncer = Self {
            url,
            _process: Ended(process.expect("pgbouncer is installed")),
            _ports: ports,
            _scratch: scratch,
        };
        let database = bouncer.database();
        eventually("PgBouncer answers", async || database.check().await.is_ok()).await;
        bouncer
    }

    /// Prepared statements that its servers keep.
    async fn named_statements(&self) -> i64 {
        let options: PgConnectOptions = self.url.parse().unwrap();
        let pool = PgPoolOptions::new().connect_lazy_with(options.extra_float_digits(None));
        let (mut found, mut open) = (0, Vec::new());
        // One transaction on each.
        for _ in 0..SERVERS {
            let mut transaction = pool.begin().await.unwrap();
            let count = "SELECT count(*)::text FROM pg_prepared_statements";
            let row = sqlx::raw_sql(count).fetch_one(&mut *transaction).await.unwrap();
            found += row.get::<String, _>(0).parse::<i64>().unwrap();
            open.push(transaction);
        }
        found
    }

    fn database(&self) -> Database {
        let seconds = Duration::from_secs(10);
        Database::connect_lazily(&DatabaseOptions {
            url: self.url.clone(),
            max_connections: 20,
            acquire_timeout: seconds,
            max_lifetime: seconds * 60,
            pooler: true,
        })
        .unwrap()
    }
}

/// Connections to the test's database, but for that of who asks.
async fn servers(pool: &sqlx::PgPool) -> i64 {
    let count = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()";
    sqlx::query_scalar(count).fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn many_migrate_and_read_at_once_through_few_servers() {
    let stores = Stores::fresh().await;
    let bouncer = PgBouncer::start(&stores).await;
    let replicas: Vec<Database> = (0..6).map(|_| bouncer.database()).collect();
    for migrated in futures::future::join_all(replicas.iter().map(Database::migrate)).await {
        migrated.unwrap();
    }
    let mut reads = JoinSet::new();
    let database = bouncer.database();
    for _ in 0..400 {
        let database = database.clone();
        reads.spawn(async move {
            database.workers(None).await.unwrap();
            database.worker_stats().await.unwrap();
            database.now().await.unwrap();
        });
    }
    while let Some(read) = reads.join_next().await {
        read.unwrap();
    }
    let pool = stores.pool(1).await;
    let count = servers(&pool).await;
    assert!((1..=SERVERS).contains(&count), "{count} servers");
    let left = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database =
        (SELECT oid FROM pg_database WHERE datname = current_database())";
    let left: i64 = sqlx::query_scalar(left).fetch_one(&pool).await.unwrap();
    assert_eq!(left, 0, "advisory locks that nobody will release");
}

/// Has COMMIT take its time for what is written to jobs or workers, so that the way to its server can be cut meanwhile.
async fn commits_linger(pool: &sqlx::PgPool) {
    let statements = "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep(1.5); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER linger AFTER INSERT ON jobs DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION linger();
        CREATE CONSTRAINT TRIGGER linger AFTER INSERT ON workers DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION linger()";
    sqlx::raw_sql(statements).execute(pool).await.unwrap();
}

/// Passes bytes on between `PgBouncer` and PostgreSQL, until it is cut.
struct Relay {
    port: u16,
    cut: watch::Sender<()>,
}

impl Relay {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (relay, cut) = (listener.local_addr().unwrap().port(), watch::Sender::new(()));
        let cuts = cut.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cut = cuts.subscribe();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    tokio::select! {
                        _ = cut.changed() => {}
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                    }
                });
            }
        });
        Self { port: relay, cut }
    }

    /// Cuts all connections while a COMMIT lingers, and waits until that is over.
    async fn cut_a_commit(&self, pool: &sqlx::PgPool) {
        let lingers = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event = 'PgSleep'";
        let linger =
            async |count: i64| sqlx::query_scalar::<_, i64>(lingers).fetch_one(pool).await.unwrap() == count;
        eventually("a commit is under way", async || linger(1).await).await;
        self.cut.send_replace(());
        eventually("the commit has ended", async || linger(0).await).await;
    }
}

#[tokio::test]
async fn a_commit_whose_server_is_lost_behind_pgbouncer_has_an_unknown_outcome() {
    let stores = Stores::fresh().await;
    let postgres: PgConnectOptions = stores.database_url.parse().unwrap();
    let relay = Relay::to(postgres.get_port()).await;
    let bouncer = PgBouncer::start_to(&stores, relay.port).await;
    let database = bouncer.database();
    database.migrate().await.unwrap();
    let fence = Fence { cluster_id: ClusterId(System.uuid()), epoch: Epoch(1) };
    database.take_over(fence, 1, 1).await.unwrap();
    let pool = stores.pool(1).await;
    commits_linger(&pool).await;

    let worker = WorkerDraft {
        name: "w".into(),
        hostname: "h".into(),
        ip_address: "127.0.0.1".into(),
        port: 1,
        capabilities: Map::new(),
        max_concurrent_jobs: 1,
        heartbeat_interval_seconds: 30,
        version: None,
        metadata: Map::new(),
    };
    let mut transaction = database.begin(fence).await.unwrap();
    transaction.register_worker(&worker.check(WorkerId(System.uuid())).unwrap()).await.unwrap();
    let (committed, ()) = tokio::join!(transaction.commit(), relay.cut_a_commit(&pool));
    assert!(matches!(committed, Err(StorageError::OutcomeUnknown(_))), "{committed:?}");

    // The same of a statement that commits by itself.
    let draft = json!({"name": "n", "model_name": "m", "model_version": "1", "input_data": {"a": 1}});
    let draft: JobDraft = serde_json::from_value(draft).unwrap();
    let defaults = JobDefaults { retry: RetryPolicy::default(), timeout_seconds: 60 };
    let job = draft.check(JobId(System.uuid()), &defaults).unwrap();
    let jobs = [Insertion { job: &job, claim: None, trace: None }];
    let (stored, ()) = tokio::join!(database.insert_jobs(fence, 0, &jobs, 30), relay.cut_a_commit(&pool));
    assert!(matches!(stored, Err(StorageError::OutcomeUnknown(_))), "{stored:?}");
}

#[tokio::test]
async fn a_group_behind_pgbouncer_runs_jobs_retries_them_and_survives_its_leader() {
    let stores = Stores::fresh().await;
    let bouncer = PgBouncer::start(&stores).await;
    let replicas = Replicas::start(|builder| {
        builder
            .database_url(Some(bouncer.url.clone()))
            .set("database.pooler=transaction")
            .redis_url(Some(stores.redis_url.clone()))
            .set(format!("queue.queue_prefix={}", stores.queue_prefix))
    })
    .await;
    let succeeds_later = "test \"$CORTEX_ATTEMPT\" -gt 1 && echo '{}'";
    let worker = replicas.worker(
        4,
        &["--models", "later", "--exec", &format!("sh -c '{}'", succeeds_later.replace('\'', "'\\''"))],
    );
    let mut retried = Vec::new();
    for replica in 0..3 {
        let policy = json!({"model_name": "later",
            "metadata": {"retry_policy": {"initial_delay_seconds": 1, "max_delay_seconds": 1}}});
        retried.push(replicas.submit(replica, &policy).await.unwrap());
        for _ in 0..20 {
            replicas.submit(replica, &json!({})).await.unwrap();
        }
    }
    replicas.completes(0, 3).await;
    for id in &retried {
        let (_, executions) = replicas.get(1, &format!("/api/v1/jobs/{id}/executions")).await;
        let states: Vec<&Value> = executions.as_array().unwrap().iter().map(|one| &one["status"]).collect();
        assert_eq!(states, ["failed", "completed"]);
    }

    // A second worker takes the others, while the leader dies.
    let other = replicas.worker(4, &["--models", "m", "--sleep-ms", "20"]);
    let former = replicas.cluster.leader().await.unwrap();
    replicas.completes(former, 10).await;
    assert!(replicas.cluster.kill(former, Signal::SIGKILL));
    let next = replicas.cluster.wait_for_leader(Some(former), Duration::from_secs(60)).await.unwrap();
    eventually("the next leader takes jobs", async || replicas.submit(next, &json!({})).await.is_ok()).await;
    replicas.completes(next, 64).await;
    drop((worker, other));

    let pool = stores.pool(1).await;
    let count = servers(&pool).await;
    assert!((1..=SERVERS).contains(&count), "{count} servers");
    let executions: i64 = sqlx::query_scalar("SELECT count(*) FROM executions WHERE status = 'completed'")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(executions, 64, "each job was completed once");
    replicas.cluster.stop().await;
    assert_eq!(bouncer.named_statements().await, 0, "statements whose names would meet those of others");
}
