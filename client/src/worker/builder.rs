//! [`Worker`] and its settings.

use std::{fmt, net::IpAddr, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{Handler, Identity, WorkerError, runtime};
use crate::endpoints;

/// A worker that is set up and not running yet.
#[derive(Debug)]
pub struct Worker {
    pub(super) settings: Settings,
}

/// Settings of a [`Worker`]; every one but the endpoints has a default.
#[derive(Debug)]
pub struct WorkerBuilder {
    endpoints: String,
    settings: Settings,
}

/// What a worker needs to know.
pub(super) struct Settings {
    pub(super) endpoints: Vec<String>,
    pub(super) name: String,
    pub(super) identity: Option<Identity>,
    pub(super) hostname: Option<String>,
    pub(super) ip_address: Option<IpAddr>,
    pub(super) port: Option<u16>,
    pub(super) models: Option<Vec<String>>,
    pub(super) gpu: bool,
    pub(super) memory_gb: Option<f64>,
    pub(super) slots: usize,
    pub(super) version: String,
    pub(super) token: Option<String>,
    pub(super) heartbeat_period: Duration,
    pub(super) drain_deadline: Duration,
    pub(super) abort: CancellationToken,
}

impl Worker {
    /// Settings for a worker.
    pub fn builder() -> WorkerBuilder {
        WorkerBuilder {
            endpoints: String::new(),
            settings: Settings {
                endpoints: Vec::new(),
                name: "worker".to_owned(),
                identity: None,
                hostname: None,
                ip_address: None,
                port: None,
                models: None,
                gpu: false,
                memory_gb: None,
                slots: 1,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                token: None,
                heartbeat_period: Duration::from_secs(1),
                drain_deadline: Duration::from_secs(30),
                abort: CancellationToken::new(),
            },
        }
    }

    /// Registers and works until `shutdown` fires, then drains: fetches nothing
    /// more, lets the running jobs finish, delivers their completions, returns.
    ///
    /// Handlers that are still running at the drain deadline, or when the token
    /// given to [`WorkerBuilder::abort`] fires, are cancelled; their jobs are
    /// reported as failed with the error code `worker_stopped`. Dropping the
    /// future stops everything at once and reports nothing.
    ///
    /// # Errors
    /// [`WorkerError::Refused`] if the server does not accept the registration
    /// (running jobs are drained first), [`WorkerError::Unreported`] if a drain
    /// ended with unacknowledged completions, [`WorkerError::Identity`] if no
    /// identity was given and none can be reserved.
    pub async fn run<H: Handler>(self, handler: H, shutdown: CancellationToken) -> Result<(), WorkerError> {
        runtime::run(self.settings, handler, shutdown).await
    }
}

impl WorkerBuilder {
    /// The replicas' gRPC addresses, a comma-separated list.
    pub fn endpoints(mut self, endpoints: impl Into<String>) -> Self {
        self.endpoints = endpoints.into();
        self
    }

    /// The worker's name, for people and, without an [`identity`](Self::identity),
    /// for reserving one. By default `worker`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// A reserved name, hostname and port. Without one, `run` reserves the
    /// identity of the worker's name, unless hostname and port are both given.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.settings.name = identity.name.clone();
        self.settings.identity = Some(identity);
        self
    }

    /// Overrides the hostname.
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.settings.hostname = Some(hostname.into());
        self
    }

    /// The worker's address; by default the one that faces the first endpoint.
    pub fn ip_address(mut self, address: IpAddr) -> Self {
        self.settings.ip_address = Some(address);
        self
    }

    /// Overrides the port. No second worker on this host may use it.
    pub fn port(mut self, port: u16) -> Self {
        self.settings.port = Some(port);
        self
    }

    /// The models that it runs; without this call any model.
    pub fn models<I>(mut self, models: I) -> Self
    where
        I: IntoIterator<Item: Into<String>>,
    {
        self.settings.models = Some(models.into_iter().map(Into::into).collect());
        self
    }

    /// Whether it has a GPU, by default not.
    pub fn gpu(mut self, gpu: bool) -> Self {
        self.settings.gpu = gpu;
        self
    }

    /// How much memory jobs may ask for, in GB; by default undeclared.
    pub fn memory_gb(mut self, memory_gb: f64) -> Self {
        self.settings.memory_gb = Some(memory_gb);
        self
    }

    /// How many jobs run at once, 1 to 100, by default 1.
    pub fn slots(mut self, slots: usize) -> Self {
        self.settings.slots = slots;
        self
    }

    /// The worker's version; by default this crate's.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.settings.version = version.into();
        self
    }

    /// The bearer token; none by default.
    pub fn token(mut self, token: Option<impl Into<String>>) -> Self {
        self.settings.token = token.map(Into::into);
        self
    }

    /// How often a heartbeat is sent, by default every second, at most every
    /// 300 s. The server is told to expect one every 5 s, or as rarely as this,
    /// and gives a worker up after three times as long.
    pub fn heartbeat_period(mut self, period: Duration) -> Self {
        self.settings.heartbeat_period = period;
        self
    }

    /// How long running jobs may go on after a shutdown, by default 30 s.
    pub fn drain_deadline(mut self, deadline: Duration) -> Self {
        self.settings.drain_deadline = deadline;
        self
    }

    /// A token that ends a drain before its deadline: a second signal, say.
    /// Firing it shuts the worker down, too.
    pub fn abort(mut self, abort: CancellationToken) -> Self {
        self.settings.abort = abort;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`WorkerError::Endpoint`] or [`WorkerError::Config`].
    pub fn build(mut self) -> Result<Worker, WorkerError> {
        self.settings.endpoints = endpoints::parse_list(&self.endpoints)?;
        check("slots", (1..=100).contains(&self.settings.slots), "must be 1 to 100")?;
        check(
            "name",
            (1..=255).contains(&self.settings.name.chars().count()),
            "must have 1 to 255 characters",
        )?;
        check(
            "heartbeat_period",
            (Duration::from_millis(1)..=Duration::from_secs(300)).contains(&self.settings.heartbeat_period),
            "must be at most 300 s and not zero",
        )?;
        check(
            "memory_gb",
            self.settings.memory_gb.is_none_or(|gb| gb.is_finite() && gb >= 0.0),
            "must be a number that is not negative",
        )?;
        check("port", self.settings.port != Some(0), "must not be 0")?;
        Ok(Worker { settings: self.settings })
    }
}

impl fmt::Debug for Settings {
    /// Without the token, which must not reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("endpoints", &self.endpoints)
            .field("name", &self.name)
            .field("identity", &self.identity)
            .field("models", &self.models)
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

fn check(setting: &'static str, holds: bool, reason: &str) -> Result<(), WorkerError> {
    if holds {
        return Ok(());
    }
    Err(WorkerError::Config { setting, reason: reason.to_owned() })
}
