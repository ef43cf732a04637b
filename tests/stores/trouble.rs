//! Stores that are slow, full, or read-only.

use std::time::Duration;

use cortex::dev::{PortBlock, Redis, RedisOptions};
use cortex::domain::ids::Epoch;
use cortex::ready_queue::{Group, Offer, ReadyQueue};
use cortex::storage::{Database, DatabaseOptions};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tokio::task::JoinSet;

use crate::scene::{E1, Replicas, entry, shape};
use crate::support::{Scratch, Stores, eventually};

async fn tell(redis_url: &str, command: &str) {
    let client = redis::Client::open(redis_url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut words = command.split(' ');
    let mut told = redis::cmd(words.next().unwrap());
    told.arg(words.collect::<Vec<_>>()).exec_async(&mut connection).await.unwrap();
}

async fn run(pool: &sqlx::PgPool, statement: impl Into<String>) {
    sqlx::raw_sql(AssertSqlSafe(statement.into())).execute(pool).await.unwrap();
}

fn own_redis(scratch: &Scratch, ports: &PortBlock, number: u16) -> RedisOptions {
    RedisOptions {
        data_dir: scratch.path().join(format!("redis-{number}")),
        log: scratch.path().join(format!("redis-{number}.log")),
        port: ports.first() + number,
    }
}

#[tokio::test]
async fn a_redis_that_is_full_takes_no_jobs_and_gives_them_also_to_a_new_leader() {
    let (scratch, ports) = (Scratch::new(), PortBlock::reserve(1).unwrap());
    let redis = Redis::start(own_redis(&scratch, &ports, 0)).await.unwrap();
    let queue = ReadyQueue::connect(&redis.url(), "full").unwrap();
    queue.enqueue(E1, &[entry(1), entry(2), entry(3)]).await.unwrap();
    tell(&redis.url(), "CONFIG SET maxmemory 1").await;
    let error = queue.enqueue(E1, &[entry(4)]).await.unwrap_err();
    assert_eq!(error.to_string(), "Redis is unavailable: its memory is full");
    assert!(error.retryable());
    for epoch in [E1, Epoch(2)] {
        let offer = Offer { shape: shape(), groups: vec![0] };
        let claims = queue.claim(epoch, 1, &[Group { free_slots: 1 }], &[offer]).await.unwrap();
        assert_eq!(claims.len(), 1);
        assert_eq!(queue.confirm(epoch, &[claims[0].job_id]).await.unwrap(), 1);
    }
    tell(&redis.url(), "CONFIG SET maxmemory 0").await;
    assert_eq!(queue.enqueue(Epoch(2), &[entry(4)]).await.unwrap(), 1);
    assert_eq!(queue.total().await.unwrap(), 2);
}

#[tokio::test]
async fn a_redis_that_has_become_a_replica_says_so_until_it_is_master_again() {
    let (scratch, ports) = (Scratch::new(), PortBlock::reserve(2).unwrap());
    let redis = Redis::start(own_redis(&scratch, &ports, 0)).await.unwrap();
    let master = Redis::start(own_redis(&scratch, &ports, 1)).await.unwrap();
    let queue = ReadyQueue::connect(&redis.url(), "replica").unwrap();
    queue.enqueue(E1, &[entry(1)]).await.unwrap();
    tell(&redis.url(), &format!("REPLICAOF 127.0.0.1 {}", ports.first() + 1)).await;
    let error = queue.enqueue(E1, &[entry(2)]).await.unwrap_err();
    assert_eq!(error.to_string(), "Redis is unavailable: it is a replica, which takes no writes");
    assert!(error.retryable());
    tell(&redis.url(), "REPLICAOF NO ONE").await;
    queue.enqueue(E1, &[entry(2)]).await.unwrap();
    drop(master);
}

#[tokio::test]
async fn no_more_connections_are_made_than_allowed_and_whoever_waits_too_long_is_told() {
    let stores = Stores::fresh().await;
    let database = Database::connect_lazily(&DatabaseOptions {
        url: stores.database_url.clone(),
        max_connections: 3,
        // Time enough to open those that are allowed, and less than a statement may take.
        acquire_timeout: Duration::from_secs(6),
        max_lifetime: Duration::from_secs(60),
        pooler: false,
    })
    .unwrap();
    database.migrate().await.unwrap();
    let pool = stores.pool(2).await;
    let mut lock = pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE workers").execute(&mut *lock).await.unwrap();
    let mut reads = JoinSet::new();
    for _ in 0..10 {
        let database = database.clone();
        reads.spawn(async move { database.workers(None).await });
    }
    let mut refused = 0;
    while refused < 7 {
        let error = reads.join_next().await.unwrap().unwrap().unwrap_err();
        assert_eq!(
            error.to_string(),
            "PostgreSQL is unavailable: no connection was free or could be opened in time"
        );
        assert!(error.retryable());
        refused += 1;
    }
    let waiting = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'cortex'";
    eventually("only those are open that are allowed", async || {
        sqlx::query_scalar::<_, i64>(waiting).fetch_one(&pool).await.unwrap() == 3
    })
    .await;
    lock.rollback().await.unwrap();
    while let Some(read) = reads.join_next().await {
        read.unwrap().unwrap();
    }
}

/// The process of PostgreSQL that serves a database's reads, once there is only one for it.
async fn process(database: &Database, pool: &sqlx::PgPool) -> i32 {
    let processes = "SELECT pid FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'cortex'";
    let mut found: Vec<i32> = Vec::new();
    eventually("one connection is open", async || {
        database.workers(None).await.unwrap();
        found = sqlx::query_scalar(processes).fetch_all(pool).await.unwrap();
        found.len() == 1
    })
    .await;
    found[0]
}

#[tokio::test]
async fn a_connection_is_replaced_at_its_age_and_kept_until_then() {
    let open = async |age: u64| {
        let stores = Stores::fresh().await;
        let database = Database::connect_lazily(&DatabaseOptions {
            url: stores.database_url.clone(),
            max_connections: 1,
            acquire_timeout: Duration::from_secs(30),
            max_lifetime: Duration::from_secs(age),
            pooler: false,
        })
        .unwrap();
        database.migrate().await.unwrap();
        (database, stores.pool(1).await)
    };
    let ((aging, its_pool), (lasting, other_pool)) = (open(1).await, open(3600).await);
    let (first, kept) = (process(&aging, &its_pool).await, process(&lasting, &other_pool).await);
    eventually("the connection is replaced", async || process(&aging, &its_pool).await != first).await;
    assert_eq!(process(&lasting, &other_pool).await, kept);
}

#[tokio::test]
async fn half_of_the_connections_stand_ready_for_whoever_may_lead_next() {
    for (most, ready) in [(1, 0), (5, 4), (40, 12)] {
        let stores = Stores::fresh().await;
        let database = Database::connect_lazily(&DatabaseOptions {
            url: stores.database_url.clone(),
            max_connections: most,
            acquire_timeout: Duration::from_secs(30),
            max_lifetime: Duration::from_secs(3600),
            pooler: false,
        })
        .unwrap();
        database.migrate().await.unwrap();
        // A machine that is busy may not manage in its time.
        eventually("all have rehearsed", async || database.rehearse().await == ready).await;
        let open = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'cortex'";
        let pool = stores.pool(1).await;
        let open: i64 = sqlx::query_scalar(open).fetch_one(&pool).await.unwrap();
        // After a rehearsal that took too long, others may have been opened.
        let bound = usize::try_from(most).unwrap() * 2;
        assert!((ready..=bound).contains(&usize::try_from(open).unwrap()), "{open} of {most}");
        database.close().await;
    }
}

/// A user of its own for the test's database, whom PostgreSQL may refuse what it never refuses a superuser.
async fn with_user(stores: &Stores, user: &str) -> String {
    let pool = stores.pool(1).await;
    let database = stores.database_url.rsplit('/').next().unwrap();
    run(&pool, format!("CREATE ROLE {user} LOGIN; ALTER DATABASE {database} OWNER TO {user}")).await;
    stores.database_url.replacen("cortex@", &format!("{user}@"), 1)
}

async fn end_sessions(pool: &sqlx::PgPool, user: &str) {
    run(pool, format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{user}'"))
        .await;
}

/// Waits until a submission is answered with 503 for this reason, and can be sent again.
async fn refuses(replicas: &Replicas, reason: &str) {
    eventually(&format!("a submission is refused because {reason}"), async || {
        let Err((status, problem)) = replicas.submit(0, &json!({})).await else { return false };
        assert_eq!(status, 503, "{problem}");
        problem["type"] == "urn:cortex:problem:store-unavailable"
            && problem["detail"] == format!("PostgreSQL is unavailable: {reason}")
    })
    .await;
}

async fn accepts(replicas: &Replicas) {
    eventually("a submission is accepted", async || replicas.submit(0, &json!({})).await.is_ok()).await;
}

#[tokio::test]
async fn a_group_says_what_is_wrong_with_its_stores_and_goes_on_afterwards() {
    let stores = Stores::fresh().await;
    let url = with_user(&stores, "troubled").await;
    let pool = stores.pool(2).await;
    let replicas =
        Replicas::start(|builder| builder.replicas(1).database_url(Some(url)).set("database.pool_timeout=1"))
            .await;
    accepts(&replicas).await;

    // Redis is full: submissions are accepted all the same.
    let redis_url = replicas.cluster.redis_url().to_owned();
    tell(&redis_url, "CONFIG SET maxmemory 1").await;
    accepts(&replicas).await;
    tell(&redis_url, "CONFIG SET maxmemory 0").await;

    // PostgreSQL takes no writes.
    run(&pool, "ALTER ROLE troubled SET default_transaction_read_only = on").await;
    end_sessions(&pool, "troubled").await;
    refuses(&replicas, "it is read-only, as a standby is").await;
    eventually("reading goes on", async || replicas.get(0, "/api/v1/jobs").await.0 == 200).await;
    run(&pool, "ALTER ROLE troubled RESET default_transaction_read_only").await;
    end_sessions(&pool, "troubled").await;
    accepts(&replicas).await;

    // PostgreSQL takes no more connections.
    run(&pool, "ALTER ROLE troubled CONNECTION LIMIT 0").await;
    end_sessions(&pool, "troubled").await;
    let full = "PostgreSQL is unavailable: it takes no more connections";
    eventually("health says that PostgreSQL is full", async || {
        replicas.health(0, "postgres").await["detail"] == full
    })
    .await;
    let (status, problem) = replicas.get(0, "/api/v1/jobs").await;
    assert_eq!(
        (status, &problem["type"]),
        (503, &json!("urn:cortex:problem:store-unavailable")),
        "{problem}"
    );
    run(&pool, "ALTER ROLE troubled CONNECTION LIMIT -1").await;
    eventually("health says that PostgreSQL is well", async || {
        replicas.health(0, "postgres").await["ok"] == true
    })
    .await;
    accepts(&replicas).await;

    // PostgreSQL is slow: somebody holds what everybody needs.
    let mut lock = pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE jobs").execute(&mut *lock).await.unwrap();
    let (read, ()) =
        tokio::join!(replicas.get(0, "/api/v1/jobs"), refuses(&replicas, "a lock was not free in time"));
    let (status, problem) = read;
    assert_eq!(status, 503, "{problem}");
    assert_eq!(problem["detail"], "PostgreSQL is unavailable: a statement took too long");
    lock.rollback().await.unwrap();
    accepts(&replicas).await;

    // All that was accepted runs.
    let jobs: Value = replicas.get(0, "/api/v1/jobs?page_size=100").await.1;
    let worker = replicas.worker(4, &["--sleep-ms", "0"]);
    replicas.completes(0, jobs["total"].as_u64().unwrap()).await;
    drop(worker);
    replicas.cluster.stop().await;
}

#[tokio::test]
#[ignore = "needs stores that are too old on PATH, see deploy/postgres-versions.sh"]
async fn a_postgresql_that_is_too_old_ends_the_start_and_is_named() {
    let stores = Stores::fresh().await;
    let migrate = std::process::Command::new(env!("CARGO_BIN_EXE_cortex"))
        .args(["migrate", "--database-url", &stores.database_url])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&migrate.stderr);
    assert!(said.contains("is too old: CORTEX needs PostgreSQL 14 or newer"), "{said}");
    assert_eq!(migrate.status.code(), Some(1));
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(sqlx::query_scalar::<_, i64>(tables).fetch_one(&stores.pool(1).await).await.unwrap(), 0);
}

#[tokio::test]
#[ignore = "needs a Redis that is too old on PATH"]
async fn a_redis_that_is_too_old_is_named() {
    let stores = Stores::fresh().await;
    let error = ReadyQueue::connect(&stores.redis_url, "old").unwrap().ping().await.unwrap_err();
    assert!(error.to_string().contains("is too old: CORTEX needs Redis 7 or newer"), "{error}");
}
