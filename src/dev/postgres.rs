//! A private PostgreSQL.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Uid;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::{Instant, sleep, timeout};

use super::account::Account;
use super::binaries;
use super::error::DevError;
use super::orphan;
use super::process::{Child, Launch};

/// Superuser of the cluster, and name of the database.
const NAME: &str = "cortex";
/// Longest wait for connections after the start; recovery from an unclean stop is part of it.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Longest wait for a fast shutdown, which writes a checkpoint.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// Longest path of a Unix socket's folder: the system allows 107 bytes with the socket's own name.
const LONGEST_SOCKET_FOLDER: usize = 80;
/// As durable as in production; sized for one machine that has other work to do.
const SETTINGS: [&str; 12] = [
    "listen_addresses=127.0.0.1",
    "fsync=on",
    "synchronous_commit=on",
    "shared_buffers=512MB",
    "max_connections=200",
    "max_wal_size=4GB",
    "checkpoint_timeout=10min",
    "timezone=UTC",
    "log_timezone=UTC",
    "log_checkpoints=off",
    "log_line_prefix=%m [%p] ",
    "logging_collector=off",
];

/// How to start a [`Postgres`].
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Folder of the cluster; created with everything above it.
    pub data_dir: PathBuf,
    /// Where PostgreSQL's output goes, appended.
    pub log: PathBuf,
    /// Port on 127.0.0.1.
    pub port: u16,
    /// Further settings, `name=value`; they win over those of this module.
    pub settings: Vec<String>,
}

/// A running PostgreSQL with the database `cortex`. Dropping it ends it at once, without a checkpoint;
/// the next start recovers.
pub struct Postgres {
    options: PostgresOptions,
    home: PathBuf,
    elsewhere: bool,
    server: Child,
}

impl Postgres {
    /// Starts PostgreSQL on its data, creating a cluster on first use, and waits until it answers.
    ///
    /// The caller must be the only one who uses the data directory: a PostgreSQL that an earlier run left
    /// behind there is ended.
    ///
    /// # Errors
    /// When PostgreSQL is not installed, the port is taken, or it does not start; the log is quoted.
    pub async fn start(options: PostgresOptions) -> Result<Self, DevError> {
        let account = Account::unprivileged()?;
        let (home, elsewhere) = prepare_home(&options.data_dir, account)?;
        let server = launch(&options, &home, account).await?;
        let postgres = Self { options, home, elsewhere, server };
        postgres.create_database(NAME).await?;
        Ok(postgres)
    }

    /// Starts it again on the same data and port after it has ended or was killed.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub async fn restart(&mut self) -> Result<(), DevError> {
        self.stop().await;
        self.server = launch(&self.options, &self.home, Account::unprivileged()?).await?;
        Ok(())
    }

    /// Stops it cleanly: sessions are ended, a checkpoint is written.
    pub async fn stop(&self) {
        self.server.stop(Signal::SIGINT, STOP_WITHIN).await;
    }

    /// URL of the database `cortex`.
    pub fn url(&self) -> String {
        self.url_of(NAME)
    }

    /// URL of another database of this cluster.
    pub fn url_of(&self, database: &str) -> String {
        url(self.options.port, database)
    }

    /// Process id of the postmaster.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Folder of the cluster: as asked for, or another if the account that PostgreSQL runs under could not reach it.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Whether the data had to be placed elsewhere than asked for.
    pub fn is_elsewhere(&self) -> bool {
        self.elsewhere
    }

    /// Sends a signal to the postmaster; answers whether it was there to take it.
    pub fn signal(&self, signal: Signal) -> bool {
        self.server.signal(signal)
    }

    /// Creates a database unless it exists, and answers its URL.
    ///
    /// # Errors
    /// When the name is not made of lower-case letters, digits and underscores, or PostgreSQL refuses.
    pub async fn create_database(&self, name: &str) -> Result<String, DevError> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if name.is_empty() || !name.chars().all(plain) {
            return Err(DevError::Failed(format!("{name:?} is not a name for a database")));
        }
        let failed =
            |error: sqlx::Error| DevError::Failed(format!("cannot create the database {name}: {error}"));
        let mut connection = PgConnection::connect(&self.url_of("postgres")).await.map_err(failed)?;
        let exists = sqlx::query("SELECT FROM pg_database WHERE datname = $1")
            .bind(name)
            .fetch_optional(&mut connection)
            .await
            .map_err(failed)?;
        if exists.is_none() {
            // The name cannot be a parameter here; it was checked above.
            let statement = AssertSqlSafe(format!("CREATE DATABASE \"{name}\""));
            sqlx::query(statement).execute(&mut connection).await.map_err(failed)?;
        }
        let _ = connection.close().await;
        Ok(self.url_of(name))
    }

    /// What [`Postgres::url`] will be on a port.
    pub(super) fn url_on(port: u16) -> String {
        url(port, NAME)
    }

    pub(super) fn server(&self) -> &Child {
        &self.server
    }
}

fn url(port: u16, database: &str) -> String {
    format!("postgres://{NAME}@127.0.0.1:{port}/{database}")
}

/// Creates the folder, or another one if the account cannot reach it: the folder, and whether it is another.
fn prepare_home(data_dir: &Path, account: Option<Account>) -> Result<(PathBuf, bool), DevError> {
    let home = create_private(data_dir)?;
    let Some(account) = account else { return Ok((home, false)) };
    account
        .own(&home)
        .map_err(DevError::io(format!("give {} to an unprivileged account", home.display())))?;
    if account.can_enter(&home) {
        return Ok((home, false));
    }
    // Nothing was put there yet; whether it stays makes no difference.
    let _ = fs::remove_dir(&home);
    let name = home.to_string_lossy().replace('-', "--").replace('/', "-");
    let elsewhere = Path::new("/var/tmp").join(format!("cortex-dev{name}"));
    let home = create_private(&elsewhere)?;
    let owner =
        fs::symlink_metadata(&home).map_err(DevError::io(format!("look at {}", home.display())))?.uid();
    if owner != account.uid && !Uid::from_raw(owner).is_root() {
        return Err(DevError::Failed(format!("{} belongs to somebody else", home.display())));
    }
    account
        .own(&home)
        .map_err(DevError::io(format!("give {} to an unprivileged account", home.display())))?;
    Ok((home, true))
}

fn create_private(folder: &Path) -> Result<PathBuf, DevError> {
    let failed = || DevError::io(format!("create {}", folder.display()));
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent).map_err(failed())?;
    }
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(failed()(error)),
        _ => folder.canonicalize().map_err(failed()),
    }
}

async fn launch(options: &PostgresOptions, home: &Path, account: Option<Account>) -> Result<Child, DevError> {
    let cluster = home.join("data");
    let data_version = fs::read_to_string(cluster.join("PG_VERSION")).ok();
    let programs = binaries::postgres_folder(data_version.as_deref().map(str::trim))?;
    if data_version.is_none() {
        initialize(&programs, home, &cluster, &options.log, account).await?;
    }
    orphan::end(&cluster.join("postmaster.pid"), "postgres", &cluster, Signal::SIGQUIT).await;

    let sockets = if home.as_os_str().len() <= LONGEST_SOCKET_FOLDER { home } else { Path::new("") };
    let mut command = Command::new(programs.join("postgres"));
    command.arg("-D").arg(&cluster).args(["-p", &options.port.to_string()]).current_dir(home);
    command.arg("-c").arg(format!("unix_socket_directories={}", sockets.display()));
    for setting in SETTINGS.iter().copied().chain(options.settings.iter().map(String::as_str)) {
        command.args(["-c", setting]);
    }
    let log = options.log.clone();
    let server =
        Launch { name: "PostgreSQL".into(), command, log, account, abandon: Signal::SIGQUIT }.start()?;
    wait_until_ready(&server, options.port).await?;
    Ok(server)
}

/// Creates the cluster aside and moves it into place, so that a half-made one is never taken for a whole one.
async fn initialize(
    programs: &Path,
    home: &Path,
    cluster: &Path,
    log: &Path,
    account: Option<Account>,
) -> Result<(), DevError> {
    let unfinished = home.join("data.new");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(DevError::io(format!("remove {}", unfinished.display())))?;
    }
    let mut command = Command::new(programs.join("initdb"));
    command.arg("-D").arg(&unfinished).args(["-U", NAME, "--encoding=UTF8", "--locale=C.UTF-8"]);
    // Only 127.0.0.1 and the socket inside a private folder are listened on.
    command.args(["--auth-local=trust", "--auth-host=trust"]).current_dir(home);
    let name = "initdb (the set-up of PostgreSQL's data)".to_owned();
    Launch { name, command, log: log.to_owned(), account, abandon: Signal::SIGKILL }.run().await?;
    fs::rename(&unfinished, cluster).map_err(DevError::io(format!("create {}", cluster.display())))
}

async fn wait_until_ready(server: &Child, port: u16) -> Result<(), DevError> {
    let url = url(port, "postgres");
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        if !server.is_running() {
            let status = server.exited().await;
            return Err(DevError::child(format!("PostgreSQL ended ({status})"), server.log()));
        }
        if let Ok(Ok(connection)) = timeout(Duration::from_secs(2), PgConnection::connect(&url)).await {
            let _ = connection.close().await;
            return Ok(());
        }
        if Instant::now() > deadline {
            let what = format!("PostgreSQL took no connection within {} s", READY_WITHIN.as_secs());
            return Err(DevError::child(what, server.log()));
        }
        sleep(Duration::from_millis(20)).await;
    }
}
