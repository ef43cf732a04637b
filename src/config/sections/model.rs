//! The sections as types.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::config::Secret;
use crate::domain::retry::{RetryPolicy, RetryStrategy};

/// The configuration of one replica.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Listeners for clients and workers.
    pub server: Server,
    /// The leader's scheduling.
    pub scheduler: Scheduler,
    /// Redis and the ready queue.
    pub queue: Queue,
    /// Retries of jobs that bring no policy of their own.
    pub retry: Retry,
    /// PostgreSQL.
    pub database: Database,
    /// Who may call what, and encryption.
    pub security: Security,
    /// Logs, metrics and traces.
    pub observability: Observability,
    /// Calls from browsers on other origins.
    pub cors: Cors,
    /// The group of replicas.
    pub cluster: Cluster,
    /// Bounds on what a client may send.
    pub limits: Limits,
    /// How long data is kept.
    pub retention: Retention,
    /// The registry of models, if there is one.
    pub genome: Option<Genome>,
}

/// Section `server`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Address that both client listeners bind to. Default `0.0.0.0`; an IP address.
    pub host: IpAddr,
    /// Port of REST, `/metrics` and `/health`. Default 8080; 1 to 65535.
    pub http_port: u16,
    /// Port of gRPC. Default 9090; 1 to 65535.
    pub grpc_port: u16,
    /// Whether gRPC describes itself to whoever asks (server reflection). Default true.
    pub grpc_reflection: bool,
    /// Least severe level that is logged. Default `info`; `trace`, `debug`, `info`, `warn` or `error`.
    pub log_level: LogLevel,
    /// Both client listeners speak TLS with it. Default none: they do not.
    pub tls: Option<Tls>,
}

/// Section `server.tls`: both or neither.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM file with the certificate and what follows it up to a root.
    pub cert: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
}

/// Section `cluster.tls`: all or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerTls {
    /// PEM file with this replica's certificate, which names the host of `cluster.advertise.peer`.
    pub cert: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
    /// PEM file with the certificates of those who sign the replicas' certificates.
    pub ca: PathBuf,
}

/// Section `scheduler`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheduler {
    /// Whether this replica schedules while it leads. Default true.
    pub enabled: bool,
    /// Longest time between two looks at the queue; events wake the scheduler earlier. Default 1.0 seconds; 0.01 to 60.
    pub poll_interval: Duration,
    /// Most jobs of one scheduling round; rounds follow each other without a pause while there is work.
    /// Default 200; 1 to 1000.
    pub batch_size: u32,
    /// Silence after which a worker loses its leases. Default 300 seconds; 1 to 86400.
    pub worker_timeout: Duration,
    /// Failures in a row after which a worker gets nothing new for a while. Default 100; 0 (never) to 1000000. High,
    /// because failures are more often the jobs' than the worker's.
    pub unhealthy_after: u32,
    /// How long that is; then it is tried with one job. Default 30 seconds; 1 to 86400.
    pub unhealthy_pause: Duration,
    /// Timeout of a job that names none. Default 3600 seconds; 1 to 86400.
    pub job_timeout_default: Duration,
}

/// Section `queue`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Redis: a server, or one or several nodes of a cluster, separated by commas. Required; `redis://`, `rediss://` (TLS) or
    /// `unix://`, with a user and a password where Redis asks for them.
    pub redis_url: Secret,
    /// Certificates for `rediss://`. Default none: who signed Redis' certificate is looked up in the system's store.
    pub tls: Option<RedisTls>,
    /// Jobs that may wait before submissions are refused with 429. Default 10000; 0 (no limit) to 100000000.
    pub max_queue_size: u64,
    /// Time between two rows of `queue_metrics`. Default 60 seconds, whole; 0 records none, else up to 86400.
    pub metrics_interval: Option<Duration>,
    /// Prefix of every key of the ready queue. Default `cortex:queue`; 1 to 128 characters, no braces or spaces.
    pub queue_prefix: String,
    /// Prefix of keys about single jobs. Default `cortex:job`; as `queue_prefix`. Accepted, and without effect.
    pub job_prefix: String,
}

/// Section `queue.tls`, which goes with `rediss://`; `cert` and `key` both or neither.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RedisTls {
    /// PEM file with the certificates of those who sign Redis' certificate. Default none: the system's store.
    pub ca: Option<PathBuf>,
    /// PEM file with the certificate that CORTEX shows to Redis. Default none.
    pub cert: Option<PathBuf>,
    /// PEM file with its private key. Default none.
    pub key: Option<PathBuf>,
}

/// Section `retry`: the policy of jobs that bring none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retry {
    /// How the delay grows. Default `exponential`; `exponential`, `linear` or `fixed`.
    pub strategy: RetryStrategy,
    /// Retries after the first attempt. Default 3; 0 to 10.
    pub max_retries: u32,
    /// First delay, key `initial_delay`. Default 1 second; 1 to 2592000, whole.
    pub initial_delay_seconds: u32,
    /// Longest delay before jitter, key `max_delay`. Default 300 seconds; 1 to 2592000, whole.
    pub max_delay_seconds: u32,
    /// Growth of the delay. Default 2.0; 1.0 to 10.0.
    pub backoff_multiplier: f64,
    /// Whether the delay is spread by up to ten per cent either way. Default true.
    pub jitter: bool,
}

/// Section `database`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// PostgreSQL. Required; `postgres://` or `postgresql://`. The specification's `postgresql+asyncpg://` is accepted
    /// and read as `postgresql://`.
    pub url: Secret,
    /// Most connections for reads, and as many for a leader's writes; idle ones beyond six of each close after 60 s. Default 20; 1 to 1000.
    pub pool_size: u32,
    /// Connections on top of `pool_size` under load. Default 10; 0 to 1000. Accepted, and without effect.
    pub max_overflow: u32,
    /// Longest wait for a connection, and never more than 5 seconds. Default 30 seconds; 0.1 to 600.
    pub pool_timeout: Duration,
    /// Age at which a connection is replaced. Default 3600 seconds; 1 to 604800.
    pub pool_recycle: Duration,
    /// How a pooler between CORTEX and PostgreSQL, such as PgBouncer, lends its servers. Default `none`: there is none, or
    /// it lends one for a whole session; `none` or `transaction`.
    pub pooler: Option<Pooler>,
    /// Whether every statement is logged. Default false. Accepted, and without effect.
    pub echo: bool,
}

/// How a pooler lends its servers, where that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooler {
    /// For a transaction at a time.
    Transaction,
}

/// Section `security`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Security {
    /// Whether a call needs a token. Default true.
    pub require_auth: bool,
    /// Public key that tokens are checked with, PEM text or the path of a PEM file. Default none.
    pub jwt_public_key: Option<String>,
    /// Where to fetch public keys. Default none; `http://` or `https://`.
    pub jwks_url: Option<Secret>,
    /// Accepted signature algorithm. `RS256` is the default and the only value.
    pub jwt_algorithm: JwtAlgorithm,
    /// Required `iss` claim. Default none: not checked.
    pub jwt_issuer: Option<String>,
    /// Required `aud` claim. Default none: not checked.
    pub jwt_audience: Option<String>,
    /// Key of the original service. Default none; accepted and unused, since RS256 has no shared secret.
    pub jwt_secret_key: Option<Secret>,
    /// Lifetime of tokens issued here. Default 3600 seconds; 1 to 31536000. Accepted, and without effect.
    pub jwt_expiration: Duration,
    /// AES-256 keys of the payload columns, newest first. Default none: payloads are not encrypted. At most 16 keys,
    /// each 32 bytes as 64 hexadecimal digits or as base64.
    pub payload_keys: Vec<Secret>,
}

/// Signature algorithms of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JwtAlgorithm {
    /// RSA with SHA-256.
    Rs256,
}

/// Section `observability`.
#[derive(Debug, Clone, PartialEq)]
pub struct Observability {
    /// Collector that traces are sent to, by OTLP over gRPC (usually port 4317). Default none: no traces are sent; `http://` or `https://`, without a user or a password. `OTEL_EXPORTER_OTLP_HEADERS` in the environment is sent along.
    pub otlp_endpoint: Option<String>,
    /// `service.name` in traces. Default `cortex`.
    pub service_name: String,
    /// `service.version` in traces. Default: the version of this program.
    pub service_version: String,
    /// `deployment.environment.name` in traces. Default `development`.
    pub environment: String,
    /// Whether `/metrics` is served. Default true.
    pub metrics_enabled: bool,
    /// Whether traces are sent when `otlp_endpoint` is set. Default true.
    pub tracing_enabled: bool,
    /// Share of the submissions without a `traceparent` whose trace is recorded. Default 1, 0 to 1. Where a caller sends a `traceparent`, its `sampled` flag decides.
    pub trace_sample_ratio: f64,
    /// Overrides `server.log_level`. Default none.
    pub logging_level: Option<LogLevel>,
    /// Shape of the log. Default `text`; `text` or `json`.
    pub log_format: LogFormat,
}

/// Section `cors`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// Whether browsers on other origins may call. Default true, though without `origins` no origin may.
    pub enabled: bool,
    /// Allowed origins, or `*`. Default none; at most 100, each `scheme://host[:port]`.
    pub origins: Vec<String>,
    /// Whether credentials may be sent; not together with the origin `*`. Default true.
    pub allow_credentials: bool,
    /// Allowed methods. Default `*`: all that a path has.
    pub allow_methods: Vec<String>,
    /// Allowed request headers. Default `*`: all that are asked for.
    pub allow_headers: Vec<String>,
}

/// Section `cluster`. Left out, the replica is a group of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// This replica's id, unique and never reused. Default 1; 1 to 2^63 - 1.
    pub node_id: u64,
    /// Folder of the Raft log, vote and snapshots. Default `/var/lib/cortex`.
    pub data_dir: PathBuf,
    /// Address that the peer listener binds to. Default `0.0.0.0:7070`; IP address and port.
    pub peer_listen: SocketAddr,
    /// Where others reach this replica.
    pub advertise: Advertise,
    /// The first members, the same on each of them. Default: this replica alone; 1 to 99 of `id=host:port`.
    pub seeds: Vec<Seed>,
    /// Time between heartbeats of the leader, key `heartbeat_ms`. Default 50 ms; 5 to 10000.
    pub heartbeat: Duration,
    /// Shortest and longest silence before a follower stands for election, key `election_timeout_ms`.
    /// Default [150, 300] ms; 20 to 60000, min below max and at least two heartbeats.
    pub election_timeout: (Duration, Duration),
    /// How long a write waits for a leader, key `forward_timeout_ms`. Default 2000 ms; 10 to 60000.
    pub forward_timeout: Duration,
    /// Secret shared by the replicas on the peer port. Default none; 16 to 256 visible ASCII characters.
    pub secret: Option<Secret>,
    /// Mutual TLS on the peer port. Default none.
    pub tls: Option<PeerTls>,
}

/// Section `cluster.advertise`, each `host:port`. A default is 127.0.0.1 with the port that is listened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertise {
    /// The peer listener.
    pub peer: String,
    /// The HTTP listener.
    pub http: String,
    /// The gRPC listener.
    pub grpc: String,
}

/// One of `cluster.seeds`, written `id=host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// The member's `cluster.node_id`.
    pub id: u64,
    /// The member's `cluster.advertise.peer`.
    pub address: String,
}

/// Section `limits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest request body. Default 1048576 bytes (1 MiB); 1024 to 8388608 (8 MiB).
    pub max_body_bytes: usize,
    /// Largest sum of a request's headers. Default 16384 bytes (16 KiB); 1024 to 262144.
    pub max_header_bytes: usize,
    /// Requests a second that one subject may make, or one address without a token, at each replica. Default 0: any
    /// number; to 1000000.
    pub requests_per_second: u32,
    /// Requests that one caller may make at once. Default 0: as many as in a second; to 1000000.
    pub request_burst: u32,
}

/// Section `retention`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Time after its end at which a job is deleted, with its executions. Default 2592000 seconds (30 days), whole; 0 keeps
    /// jobs for ever, else 3600 to 315360000 (10 years).
    pub finished_jobs: Option<Duration>,
    /// Age at which a row of `queue_metrics` is deleted. Default 604800 seconds (7 days), whole; 0 keeps rows for ever, else
    /// up to 315360000 (10 years).
    pub queue_metrics: Option<Duration>,
}

/// Section `genome`: the registry that knows every model. Left out, or without `url`, any model is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Genome {
    /// Where it is: asked is `{url}/api/v1/models/{name}/versions/{version}`. `http://` or
    /// `https://`, with `user:password@` where it wants them.
    pub url: Secret,
    /// How long an answer may take, connecting included, key `timeout_ms`. Default 1000 ms; 10 to 60000.
    pub timeout: Duration,
    /// How long an answer counts, key `cache_ttl_s`. Default 60 seconds, whole; 0 to 86400. That a model is not there counts for 5 seconds
    /// at the most.
    pub cache_ttl: Duration,
    /// What becomes of a submission whose model it can say nothing about. Default `accept`; `accept` or `reject` (503).
    pub on_unavailable: OnUnavailable,
}

/// What to do when the registry of models does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnUnavailable {
    /// Take the job as it is.
    Accept,
    /// Ask its submitter to come again.
    Reject,
}

/// Log levels, from all to severe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// What a developer needs.
    Debug,
    /// What an operator wants to know.
    Info,
    /// What an operator should look at.
    Warn,
    /// What failed.
    Error,
}

/// Shapes of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

impl Config {
    /// The level to log at: `observability.logging_level`, else `server.log_level`.
    pub fn log_level(&self) -> LogLevel {
        self.observability.logging_level.unwrap_or(self.server.log_level)
    }

    /// Address of the HTTP listener.
    pub fn http_listen(&self) -> SocketAddr {
        SocketAddr::new(self.server.host, self.server.http_port)
    }

    /// Address of the gRPC listener.
    pub fn grpc_listen(&self) -> SocketAddr {
        SocketAddr::new(self.server.host, self.server.grpc_port)
    }
}

impl Cluster {
    /// Whether neither a secret nor certificates tell other replicas from strangers.
    pub fn is_open(&self) -> bool {
        self.secret.is_none() && self.tls.is_none()
    }
}

impl LogLevel {
    /// The level's name, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

impl From<Retry> for RetryPolicy {
    fn from(retry: Retry) -> Self {
        Self {
            strategy: retry.strategy,
            max_retries: retry.max_retries,
            initial_delay_seconds: retry.initial_delay_seconds,
            max_delay_seconds: retry.max_delay_seconds,
            backoff_multiplier: retry.backoff_multiplier,
            retry_on_errors: None,
            jitter: retry.jitter,
        }
    }
}
