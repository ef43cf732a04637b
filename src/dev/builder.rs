//! What a development cluster is made of, and how it comes up.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use super::cluster::{DevCluster, Parts};
use super::error::DevError;
use super::events::{self, DevEvent, EventSink};
use super::keys::Keys;
use super::manifest::Manifest;
use super::ports::{self, PortBlock};
use super::postgres::{Postgres, PostgresOptions};
use super::probe::{Probe, SeenWorker};
use super::process::{Child, Launch};
use super::redis::{Redis, RedisOptions};
use super::replica::{Common, Replica, ReplicaOptions};
use super::worker::DemoWorker;
use crate::domain::ambient::{Ambient, System};

/// Most replicas of a development cluster: as many as a block of ports has.
pub const MAX_REPLICAS: u16 = 15;
/// Most demo workers of a development cluster.
pub const MAX_WORKERS: u16 = 100;
/// Longest wait for all replicas to be ready, and again for all workers to be registered.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Time between two questions while waiting.
const ASK_EVERY: Duration = Duration::from_millis(25);

/// Options of a [`DevCluster`].
pub struct DevClusterBuilder {
    data_dir: PathBuf,
    binary: Option<PathBuf>,
    replicas: u16,
    workers: u16,
    http_port: u16,
    grpc_port: u16,
    peer_port: u16,
    database_url: Option<String>,
    redis_url: Option<String>,
    overrides: Vec<String>,
    require_auth: bool,
    token: Option<String>,
    environment: BTreeMap<String, String>,
    own: BTreeMap<u16, ReplicaOptions>,
    events: EventSink,
}

impl DevClusterBuilder {
    pub(super) fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            binary: None,
            replicas: 3,
            workers: 2,
            http_port: 0,
            grpc_port: 0,
            peer_port: 0,
            database_url: None,
            redis_url: None,
            overrides: Vec::new(),
            require_auth: false,
            token: None,
            environment: BTreeMap::new(),
            own: BTreeMap::new(),
            events: events::ignore(),
        }
    }

    /// Number of replicas. Default 3; 1 to [`MAX_REPLICAS`].
    #[must_use]
    pub fn replicas(self, replicas: u16) -> Self {
        Self { replicas, ..self }
    }

    /// Number of demo workers. Default 2; 0 to [`MAX_WORKERS`].
    #[must_use]
    pub fn workers(self, workers: u16) -> Self {
        Self { workers, ..self }
    }

    /// First HTTP, gRPC and peer port; replica *i* (from 0) listens on the first port + *i*.
    /// Default 0: free ports are chosen.
    #[must_use]
    pub fn ports(self, http_port: u16, grpc_port: u16, peer_port: u16) -> Self {
        Self { http_port, grpc_port, peer_port, ..self }
    }

    /// Uses a PostgreSQL that runs already. Default: a private one.
    #[must_use]
    pub fn database_url(self, database_url: Option<String>) -> Self {
        Self { database_url, ..self }
    }

    /// Uses a Redis that runs already. Default: a private one.
    #[must_use]
    pub fn redis_url(self, redis_url: Option<String>) -> Self {
        Self { redis_url, ..self }
    }

    /// Sets any configuration key in every replica: `dotted.key=value`. Later ones win.
    #[must_use]
    pub fn set(mut self, override_: impl Into<String>) -> Self {
        self.overrides.push(override_.into());
        self
    }

    /// Whether calls need a token. Default false. Unless a public key is set, a pair of keys is made, and a token
    /// for every role (see [`DevCluster::tokens`]).
    #[must_use]
    pub fn require_auth(self, require_auth: bool) -> Self {
        Self { require_auth, ..self }
    }

    /// The token that this cluster's own questions and its demo workers carry. Default: those that were made.
    #[must_use]
    pub fn token(self, token: Option<String>) -> Self {
        Self { token, ..self }
    }

    /// The `cortex` program. Default: the program of this process.
    #[must_use]
    pub fn binary(self, binary: impl Into<PathBuf>) -> Self {
        Self { binary: Some(binary.into()), ..self }
    }

    /// Adds an environment variable to every replica and worker.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    /// Sets replica `index` (from 0) apart from the others.
    #[must_use]
    pub fn replica(mut self, index: u16, options: ReplicaOptions) -> Self {
        self.own.insert(index, options);
        self
    }

    /// Where events go. The function is called from any thread and must not block. Default: nowhere.
    #[must_use]
    pub fn on_event(self, events: impl Fn(DevEvent) + Send + Sync + 'static) -> Self {
        Self { events: Arc::new(events), ..self }
    }

    /// Starts everything and waits until every replica is ready and every worker is registered.
    /// On an error, and when the future is dropped, what was started is ended.
    ///
    /// # Errors
    /// Says in one line what is missing, taken, refused or broken; logs are quoted.
    pub async fn start(self) -> Result<DevCluster, DevError> {
        let started_at = System.now();
        self.check_counts()?;
        let failed = || DevError::io(format!("create {}", self.data_dir.display()));
        fs::create_dir_all(&self.data_dir).map_err(failed())?;
        let data_dir = self.data_dir.canonicalize().map_err(failed())?;
        let lock = lock(&data_dir)?;
        Manifest::remove(&data_dir);
        let binary = match &self.binary {
            Some(binary) => binary.clone(),
            None => std::env::current_exe().map_err(DevError::io("find this program"))?,
        };
        let keys = if self.makes_keys() { Some(Keys::prepare(&data_dir)?) } else { None };
        let (mut replicas, mut blocks) = self.place_replicas(&data_dir)?;
        let stores = PortBlock::reserve(2)?;
        let ports = (stores.first(), stores.first() + 1);
        blocks.push(stores);
        let common = Common {
            data_dir: data_dir.clone(),
            database_url: self.database_url_on(ports.0),
            redis_url: self.redis_url_on(ports.1),
            require_auth: self.require_auth,
            keys,
            overrides: self.overrides.clone(),
        };
        write_configs(&replicas, &common)?;

        let (postgres, redis) = tokio::try_join!(
            async {
                let postgres = self.start_postgres(&data_dir, ports.0).await?;
                self.migrate(&binary, &replicas[0], &data_dir).await?;
                Ok(postgres)
            },
            self.start_redis(&data_dir, ports.1),
        )?;
        for replica in &mut replicas {
            replica.clear_log();
            replica.start(&binary, &self.environment)?;
        }
        let keys = common.keys.as_ref();
        let admin = self.token.clone().or_else(|| keys.map(|keys| keys.admin.clone()));
        let worker = self.token.clone().or_else(|| keys.map(|keys| keys.worker.clone()));
        let may_ask = !self.require_auth || admin.is_some();
        let mut cluster = DevCluster::new(Parts {
            common,
            probe: Probe::new(admin)?,
            events: self.events,
            environment: self.environment,
            binary,
            lock,
            blocks,
            postgres,
            redis,
            replicas,
        });
        cluster.wait_until_ready(READY_WITHIN).await?;
        cluster.start_workers(self.workers, worker.as_deref())?;
        // Without a token nobody may ask a protected replica about its workers.
        if may_ask {
            wait_for_workers(&cluster, started_at, self.database_url.is_none()).await?;
        }
        cluster.write_manifest()?;
        Ok(cluster)
    }

    /// Whether tokens are required and nobody has said whose they are.
    fn makes_keys(&self) -> bool {
        let own = |text: &String| {
            ["security.jwt_public_key", "security.jwks_url"].iter().any(|key| text.starts_with(key))
        };
        self.require_auth && !self.overrides.iter().any(own)
    }

    fn check_counts(&self) -> Result<(), DevError> {
        if !(1..=MAX_REPLICAS).contains(&self.replicas) {
            return Err(DevError::Options(format!("--replicas must be from 1 to {MAX_REPLICAS}")));
        }
        if self.workers > MAX_WORKERS {
            return Err(DevError::Options(format!("--workers must be from 0 to {MAX_WORKERS}")));
        }
        Ok(())
    }

    /// Gives each replica its ports: the ones asked for, which must be free, or free ones.
    fn place_replicas(&self, data_dir: &Path) -> Result<(Vec<Replica>, Vec<PortBlock>), DevError> {
        let mut blocks = Vec::new();
        let mut first = |asked: u16, purpose: &str, option: &str| -> Result<u16, DevError> {
            if asked == 0 {
                let block = PortBlock::reserve(self.replicas)?;
                let first = block.first();
                blocks.push(block);
                return Ok(first);
            }
            if asked.checked_add(self.replicas).is_none() {
                return Err(DevError::Options(format!("{option} {asked} leaves too few ports below 65536")));
            }
            for index in 0..self.replicas {
                let purpose = format!("{purpose} of replica {}", index + 1);
                ports::check_free(asked + index, &purpose, Some(option))?;
            }
            Ok(asked)
        };
        let http = first(self.http_port, "HTTP", "--http-port")?;
        let grpc = first(self.grpc_port, "gRPC", "--grpc-port")?;
        let peer = first(self.peer_port, "peer", "--peer-port")?;
        for (one, other) in [(http, grpc), (http, peer), (grpc, peer)] {
            if one.abs_diff(other) < self.replicas {
                let text = "--http-port, --grpc-port and --peer-port must lie further apart than --replicas";
                return Err(DevError::Options(text.to_owned()));
            }
        }
        let place = |index| {
            let options = self.own.get(&index).cloned().unwrap_or_default();
            Replica::new(u64::from(index) + 1, data_dir, http + index, grpc + index, peer + index, options)
        };
        Ok(((0..self.replicas).map(place).collect(), blocks))
    }

    fn database_url_on(&self, port: u16) -> String {
        self.database_url.clone().unwrap_or_else(|| Postgres::url_on(port))
    }

    fn redis_url_on(&self, port: u16) -> String {
        self.redis_url.clone().unwrap_or_else(|| Redis::url_on(port))
    }

    async fn start_postgres(&self, data_dir: &Path, port: u16) -> Result<Option<Postgres>, DevError> {
        if self.database_url.is_some() {
            return Ok(None);
        }
        let log = data_dir.join("postgres.log");
        let options =
            PostgresOptions { data_dir: data_dir.join("postgres"), log, port, settings: Vec::new() };
        let postgres = Postgres::start(options).await?;
        if postgres.is_elsewhere() {
            self.say(DevEvent::Notice(format!(
                "PostgreSQL's data is in {}: the account that it runs under cannot reach {}",
                postgres.home().display(),
                data_dir.display()
            )));
        }
        self.say(DevEvent::Progress("PostgreSQL is ready".to_owned()));
        Ok(Some(postgres))
    }

    async fn start_redis(&self, data_dir: &Path, port: u16) -> Result<Option<Redis>, DevError> {
        if self.redis_url.is_some() {
            return Ok(None);
        }
        let log = data_dir.join("redis.log");
        let redis = Redis::start(RedisOptions { data_dir: data_dir.join("redis"), log, port }).await?;
        self.say(DevEvent::Progress("Redis is ready".to_owned()));
        Ok(Some(redis))
    }

    /// The URL is in the configuration file rather than among the arguments, which everybody can see.
    async fn migrate(&self, binary: &Path, replica: &Replica, data_dir: &Path) -> Result<(), DevError> {
        let mut command = Command::new(binary);
        command.arg("migrate").arg("--config").arg(&replica.config).envs(&self.environment);
        let log = data_dir.join("migrate.log");
        let _ = fs::remove_file(&log);
        let name = "cortex migrate".to_owned();
        Launch { name, command, log, account: None, abandon: Signal::SIGKILL }.run().await?;
        self.say(DevEvent::Progress("the database is migrated".to_owned()));
        Ok(())
    }

    fn say(&self, event: DevEvent) {
        (self.events)(event);
    }
}

fn write_configs(replicas: &[Replica], common: &Common) -> Result<(), DevError> {
    let seeds: Vec<String> = replicas.iter().map(Replica::seed).collect();
    replicas.iter().try_for_each(|replica| replica.write_config(common, &seeds))
}

/// Takes the data directory for this process, until the file is closed.
fn lock(data_dir: &Path) -> Result<File, DevError> {
    let path = data_dir.join("dev.lock");
    let failed = || DevError::io(format!("lock {}", path.display()));
    let mut options = OpenOptions::new();
    let mut file =
        options.create(true).truncate(false).read(true).write(true).open(&path).map_err(failed())?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            return Err(DevError::InUse { path: data_dir.to_owned(), holder: holder.trim().to_owned() });
        }
        Err(fs::TryLockError::Error(error)) => return Err(failed()(error)),
    }
    file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).map_err(failed())?;
    Ok(file)
}

/// Waits until every demo worker is registered. Rows of an earlier run do not count; a database
/// elsewhere may have another clock, so there its times are not compared.
async fn wait_for_workers(
    cluster: &DevCluster,
    started_at: DateTime<Utc>,
    same_clock: bool,
) -> Result<(), DevError> {
    let deadline = Instant::now() + READY_WITHIN;
    let is_up = |worker: &DemoWorker, seen: &[SeenWorker]| {
        seen.iter().any(|row| {
            row.name == worker.name
                && (row.status == "idle" || row.status == "busy")
                && (!same_clock || row.last_heartbeat >= started_at)
        })
    };
    loop {
        let seen = cluster.seen_workers().await.unwrap_or_default();
        let Some(missing) = cluster.demo_workers().iter().find(|worker| !is_up(worker, &seen)) else {
            return Ok(());
        };
        check_alive(cluster.demo_workers().iter().map(|worker| &worker.process)).await?;
        if Instant::now() > deadline {
            let what =
                format!("worker {} did not register within {} s", missing.name, READY_WITHIN.as_secs());
            return Err(DevError::child(what, missing.process.log()));
        }
        sleep(ASK_EVERY).await;
    }
}

/// Fails when one of the processes has ended.
pub(super) async fn check_alive<'a>(mut processes: impl Iterator<Item = &'a Child>) -> Result<(), DevError> {
    match processes.find(|process| !process.is_running()) {
        None => Ok(()),
        Some(process) => {
            let status = process.exited().await;
            Err(DevError::child(format!("{} ended ({status})", process.name()), process.log()))
        }
    }
}
