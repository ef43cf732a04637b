//! Stores for tests: one private PostgreSQL and Redis per test process, started by the first test that
//! asks, ended with the process however it ends. Nothing of them is left behind.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::PathBuf;

use cortex::dev::{Janitor, PortBlock, Postgres, PostgresOptions, Redis, RedisOptions};
use cortex::domain::ambient::{Ambient, System};
use tokio::sync::OnceCell;

/// A database and a queue prefix that no other test has.
#[derive(Debug, Clone)]
pub struct Stores {
    /// URL of a new, empty database.
    pub database_url: String,
    /// URL of the Redis that all tests of the process share.
    pub redis_url: String,
    /// A value for `queue.queue_prefix`.
    pub queue_prefix: String,
}

impl Stores {
    /// New stores for one test. Cheap after the first call of a process.
    pub async fn fresh() -> Self {
        let shared = shared().await;
        let name = format!("t_{}", System.uuid().simple());
        let database_url = shared.postgres.create_database(&name).await.unwrap();
        Self { database_url, redis_url: shared.redis.url(), queue_prefix: format!("test:{name}") }
    }

    /// Connections to the database.
    pub async fn pool(&self, connections: u32) -> sqlx::PgPool {
        let options = sqlx::postgres::PgPoolOptions::new().max_connections(connections);
        options.connect(&self.database_url).await.unwrap()
    }
}

/// A folder that is removed when the test process ends.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _janitor: Janitor,
}

impl Scratch {
    /// A new, empty folder that every account can reach.
    pub fn new() -> Self {
        let path = new_folder();
        let janitor = Janitor::watch(&path, &[]).unwrap();
        Self { path, _janitor: janitor }
    }

    /// Its path.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
}

struct Shared {
    postgres: Postgres,
    redis: Redis,
    _ports: PortBlock,
    _janitor: Janitor,
}

async fn shared() -> &'static Shared {
    static SHARED: OnceCell<Shared> = OnceCell::const_new();
    SHARED.get_or_init(start).await
}

async fn start() -> Shared {
    let folder = new_folder();
    let ports = PortBlock::reserve(2).unwrap();
    let postgres = Postgres::start(PostgresOptions {
        data_dir: folder.join("postgres"),
        log: folder.join("postgres.log"),
        port: ports.first(),
        // Nothing of this survives the process, so nothing needs to reach the disk.
        settings: ["fsync=off", "full_page_writes=off"].map(str::to_owned).to_vec(),
    });
    let redis = Redis::start(RedisOptions {
        data_dir: folder.join("redis"),
        log: folder.join("redis.log"),
        port: ports.first() + 1,
    });
    let (postgres, redis) = tokio::try_join!(postgres, redis).unwrap();
    let janitor = Janitor::watch(&folder, &[postgres.pid(), redis.pid()]).unwrap();
    Shared { postgres, redis, _ports: ports, _janitor: janitor }
}

fn new_folder() -> PathBuf {
    let path = std::env::temp_dir().join(format!("cortex-test-{}", System.uuid().simple()));
    std::fs::create_dir_all(&path).unwrap();
    path
}
