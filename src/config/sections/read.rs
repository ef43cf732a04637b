//! Reads and checks the sections.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::error::ConfigError;
use crate::config::reader::{Reading, Section};
use crate::config::source::{self, Environment};
use crate::config::{Secret, sections::model::*};
use crate::domain::retry::{RetryPolicy, RetryStrategy};

const LEVELS: &[(&str, LogLevel)] = &[
    ("trace", LogLevel::Trace),
    ("debug", LogLevel::Debug),
    ("info", LogLevel::Info),
    ("warn", LogLevel::Warn),
    ("warning", LogLevel::Warn),
    ("error", LogLevel::Error),
];
const STRATEGIES: &[(&str, RetryStrategy)] = &[
    ("exponential", RetryStrategy::Exponential),
    ("linear", RetryStrategy::Linear),
    ("fixed", RetryStrategy::Fixed),
];
const FORMATS: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];
const POOLERS: &[(&str, Option<Pooler>)] = &[("none", None), ("transaction", Some(Pooler::Transaction))];
const ALGORITHMS: &[(&str, JwtAlgorithm)] = &[("RS256", JwtAlgorithm::Rs256)];
const UNAVAILABLE: &[(&str, OnUnavailable)] =
    &[("accept", OnUnavailable::Accept), ("reject", OnUnavailable::Reject)];
const AN_HOUR: u64 = 3600;
const A_DAY: u64 = 24 * 3600;
const SEVEN_DAYS: u64 = 7 * 24 * 3600;
const THIRTY_DAYS: u64 = 30 * 24 * 3600;
const TEN_YEARS: u64 = 3650 * 24 * 3600;
const HTTP_URL: &str = "must start with http:// or https://";
const COLLECTOR_URL: &str = "must be http://host:port or https://host:port, without a user or a password (OTEL_EXPORTER_OTLP_HEADERS is for those)";
const ADDRESS: &str = "must be host:port";

impl Config {
    /// Reads a file, with the variables of this process.
    ///
    /// # Errors
    /// When the file cannot be read, or as [`Config::from_yaml`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let origin = path.display().to_string();
        let yaml = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::whole(format!("cannot be read: {error}"), &origin))?;
        Self::read(&yaml, &origin, &Environment::process())
    }

    /// Reads a YAML text, with the given variables for `${VAR}` and for overrides.
    ///
    /// # Errors
    /// Names every key that is unknown, has the wrong type, is out of range or needs a missing variable.
    pub fn from_yaml(yaml: &str, environment: &Environment) -> Result<Self, ConfigError> {
        Self::read(yaml, "the configuration", environment)
    }

    fn read(yaml: &str, origin: &str, environment: &Environment) -> Result<Self, ConfigError> {
        let source = source::layers(yaml, origin, environment)?;
        let mut reading = Reading { figment: source.figment, problems: source.problems };
        let mut root = Section::root(source.tree, &mut reading);
        let config = sections(&mut root);
        root.finish();
        if reading.problems.is_empty() { Ok(config) } else { Err(ConfigError { problems: reading.problems }) }
    }
}

fn sections(root: &mut Section<'_>) -> Config {
    let server = root.section("server", server);
    let cluster = root.section("cluster", |section| cluster(section, &server));
    Config {
        server,
        scheduler: root.section("scheduler", scheduler),
        queue: root.section("queue", queue),
        retry: root.section("retry", retry),
        database: root.section("database", database),
        security: root.section("security", security),
        observability: root.section("observability", observability),
        cors: root.section("cors", cors),
        cluster,
        limits: root.section("limits", |limits| Limits {
            max_body_bytes: limits.whole("max_body_bytes", 1024..=8 << 20, 1 << 20),
            max_header_bytes: limits.whole("max_header_bytes", 1024..=256 << 10, 16 << 10),
            requests_per_second: limits.whole("requests_per_second", 0..=1_000_000, 0),
            request_burst: limits.whole("request_burst", 0..=1_000_000, 0),
        }),
        retention: root.section("retention", retention),
        genome: root.section("genome", genome),
    }
}

fn server(section: &mut Section<'_>) -> Server {
    let host = section.parsed("host", "must be an IP address", |text| text.parse().ok());
    Server {
        host: host.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        http_port: section.whole("http_port", 1..=65535, 8080),
        grpc_port: section.whole("grpc_port", 1..=65535, 9090),
        grpc_reflection: section.flag("grpc_reflection", true),
        log_level: section.one_of("log_level", LEVELS).unwrap_or(LogLevel::Info),
        tls: files(section, ["cert", "key"]).map(|[cert, key]| Tls { cert, key }),
    }
}

fn scheduler(section: &mut Section<'_>) -> Scheduler {
    Scheduler {
        enabled: section.flag("enabled", true),
        poll_interval: section.seconds("poll_interval", 0.01..=60.0, 1.0),
        batch_size: section.whole("batch_size", 1..=1_000, 200),
        worker_timeout: section.seconds("worker_timeout", 1.0..=86_400.0, 300.0),
        unhealthy_after: section.whole("unhealthy_after", 0..=1_000_000, 100),
        unhealthy_pause: section.seconds("unhealthy_pause", 1.0..=86_400.0, 30.0),
        job_timeout_default: section.seconds("job_timeout_default", 1.0..=86_400.0, 3600.0),
    }
}

fn queue(section: &mut Section<'_>) -> Queue {
    let schemes = ["redis://", "rediss://", "unix://", "redis+unix://"];
    let redis_url = section.required_secret(
        "redis_url",
        "must be a Redis URL (redis://, rediss:// or unix://)",
        |text| schemes.iter().any(|scheme| text.starts_with(scheme)),
    );
    let tls = section.section("tls", redis_tls);
    let plain = !redis_url.expose().is_empty() && !redis_url.expose().starts_with("rediss://");
    if plain && tls.is_some() {
        section.note("tls", "is for a queue.redis_url that begins with rediss://");
    }
    Queue {
        redis_url,
        tls,
        max_queue_size: section.whole("max_queue_size", 0..=100_000_000, 10_000),
        metrics_interval: unless_zero(section.whole("metrics_interval", 0..=A_DAY, 60)),
        queue_prefix: prefix(section, "queue_prefix", "cortex:queue"),
        job_prefix: prefix(section, "job_prefix", "cortex:job"),
    }
}

fn redis_tls(section: &mut Section<'_>) -> Option<RedisTls> {
    let mut file = |key| section.optional_text(key).map(PathBuf::from);
    let tls = RedisTls { ca: file("ca"), cert: file("cert"), key: file("key") };
    if tls.cert.is_some() != tls.key.is_some() {
        let missing = if tls.cert.is_none() { "cert" } else { "key" };
        section.note(missing, "is missing: a certificate and its key go together");
    }
    (tls != RedisTls::default()).then_some(tls)
}

fn retention(section: &mut Section<'_>) -> Retention {
    let seconds: u64 = section.whole("finished_jobs", 0..=TEN_YEARS, THIRTY_DAYS);
    if (1..AN_HOUR).contains(&seconds) {
        // A submission that is sent again on its way to the leader must find its job.
        section.note("finished_jobs", "must be 0 or at least 3600 seconds");
    }
    Retention {
        finished_jobs: unless_zero(seconds),
        queue_metrics: unless_zero(section.whole("queue_metrics", 0..=TEN_YEARS, SEVEN_DAYS)),
    }
}

fn genome(section: &mut Section<'_>) -> Option<Genome> {
    let url = section.secret("url", HTTP_URL, |text| http_url(text).is_some());
    let on_unavailable = section.one_of("on_unavailable", UNAVAILABLE).unwrap_or(OnUnavailable::Accept);
    if url.is_none() && on_unavailable == OnUnavailable::Reject {
        section.note("on_unavailable", "must not be reject without genome.url: nothing would be asked");
    }
    let genome = Genome {
        timeout: section.millis("timeout_ms", 10..=60_000, 1000),
        cache_ttl: Duration::from_secs(section.whole("cache_ttl_s", 0..=A_DAY, 60)),
        on_unavailable,
        url: url?,
    };
    Some(genome)
}

/// A number of seconds of which 0 stands for never.
fn unless_zero(seconds: u64) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

/// Braces would be taken for the hash tag of a Redis cluster.
fn prefix(section: &mut Section<'_>, key: &'static str, default: &str) -> String {
    let expected = "must be 1 to 128 characters without braces and spaces";
    let accept =
        |text: &str| text.len() <= 128 && !text.contains(|c: char| "{}".contains(c) || c.is_whitespace());
    section
        .parsed(key, expected, |text| accept(text).then(|| text.to_owned()))
        .unwrap_or_else(|| default.to_owned())
}

fn retry(section: &mut Section<'_>) -> Retry {
    let defaults = RetryPolicy::default();
    Retry {
        strategy: section.one_of("strategy", STRATEGIES).unwrap_or(defaults.strategy),
        max_retries: section.whole("max_retries", 0..=10, defaults.max_retries),
        initial_delay_seconds: section.whole(
            "initial_delay",
            1..=THIRTY_DAYS,
            defaults.initial_delay_seconds,
        ),
        max_delay_seconds: section.whole("max_delay", 1..=THIRTY_DAYS, defaults.max_delay_seconds),
        backoff_multiplier: section.number("backoff_multiplier", 1.0..=10.0, defaults.backoff_multiplier),
        jitter: section.flag("jitter", defaults.jitter),
    }
}

fn database(section: &mut Section<'_>) -> Database {
    let schemes = ["postgres://", "postgresql://", "postgresql+asyncpg://"];
    let url = section.required_secret("url", "must be a PostgreSQL URL (postgres://...)", |text| {
        schemes.iter().any(|scheme| text.starts_with(scheme))
    });
    Database {
        url: Secret::new(url.expose().replacen("postgresql+asyncpg://", "postgresql://", 1)),
        pool_size: section.whole("pool_size", 1..=1000, 20),
        max_overflow: section.whole("max_overflow", 0..=1000, 10),
        pool_timeout: section.seconds("pool_timeout", 0.1..=600.0, 30.0),
        pool_recycle: section.seconds("pool_recycle", 1.0..=604_800.0, 3600.0),
        pooler: section.one_of("pooler", POOLERS).flatten(),
        echo: section.flag("echo", false),
    }
}

fn security(section: &mut Section<'_>) -> Security {
    let keys = "must be a list of keys of 32 bytes each, as 64 hexadecimal digits or as base64";
    let payload_keys = section.secrets("payload_keys", keys, is_key);
    if payload_keys.len() > 16 {
        section.note("payload_keys", "must have at most 16 keys");
    }
    Security {
        require_auth: section.flag("require_auth", true),
        jwt_public_key: section.optional_text("jwt_public_key"),
        // It may hold a password.
        jwks_url: section.secret("jwks_url", HTTP_URL, |text| http_url(text).is_some()),
        jwt_algorithm: section.one_of("jwt_algorithm", ALGORITHMS).unwrap_or(JwtAlgorithm::Rs256),
        jwt_issuer: section.optional_text("jwt_issuer"),
        jwt_audience: section.optional_text("jwt_audience"),
        jwt_secret_key: section.secret("jwt_secret_key", "must be text", |_| true),
        jwt_expiration: section.seconds("jwt_expiration", 1.0..=31_536_000.0, 3600.0),
        payload_keys,
    }
}

fn observability(section: &mut Section<'_>) -> Observability {
    Observability {
        // Not shown in an error: it may hold a password all the same.
        otlp_endpoint: section
            .secret("otlp_endpoint", COLLECTOR_URL, is_collector_url)
            .map(|url| url.expose().to_owned()),
        service_name: section.text("service_name", "cortex"),
        service_version: section.text("service_version", env!("CARGO_PKG_VERSION")),
        environment: section.text("environment", "development"),
        metrics_enabled: section.flag("metrics_enabled", true),
        tracing_enabled: section.flag("tracing_enabled", true),
        trace_sample_ratio: section.number("trace_sample_ratio", 0.0..=1.0, 1.0),
        logging_level: section.one_of("logging_level", LEVELS),
        log_format: section.one_of("log_format", FORMATS).unwrap_or(LogFormat::Text),
    }
}

fn cors(section: &mut Section<'_>) -> Cors {
    let all = || vec!["*".to_owned()];
    let origins = section.list("origins", "must be a list of * or scheme://host[:port]", origin);
    let methods = section.list("allow_methods", "must be a list of HTTP methods or *", token);
    let headers = section.list("allow_headers", "must be a list of header names or *", token);
    let cors = Cors {
        enabled: section.flag("enabled", true),
        origins: origins.unwrap_or_default(),
        allow_credentials: section.flag("allow_credentials", true),
        allow_methods: methods.unwrap_or_else(all),
        allow_headers: headers.unwrap_or_else(all),
    };
    if cors.origins.len() > 100 {
        section.note("origins", "must have at most 100 origins");
    }
    if cors.enabled && cors.allow_credentials && cors.origins.iter().any(|origin| origin == "*") {
        section.note("origins", "must not hold * while cors.allow_credentials is true: browsers refuse that");
    }
    cors
}

fn cluster(section: &mut Section<'_>, server: &Server) -> Cluster {
    let node_id = section.whole("node_id", 1..=i64::MAX as u64, 1);
    let peer_listen = section
        .parsed("peer_listen", "must be an IP address and a port, such as 0.0.0.0:7070", |text| {
            text.parse().ok()
        })
        .unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7070)));
    let advertise = section.section("advertise", |advertise| {
        let mut own = |key, port| {
            advertise.parsed(key, ADDRESS, address).unwrap_or_else(|| format!("127.0.0.1:{port}"))
        };
        Advertise {
            peer: own("peer", peer_listen.port()),
            http: own("http", server.http_port),
            grpc: own("grpc", server.grpc_port),
        }
    });
    let seeds = section.list("seeds", "must be a list of id=host:port", seed);
    let seeds = seeds.unwrap_or_else(|| vec![Seed { id: node_id, address: advertise.peer.clone() }]);
    check_seeds(section, &seeds);
    let heartbeat = section.millis("heartbeat_ms", 5..=10_000, 50);
    let election_timeout = section.millis_range("election_timeout_ms", 20..=60_000, (150, 300));
    if election_timeout.0 < heartbeat * 2 {
        section.note("election_timeout_ms", "must start at two times cluster.heartbeat_ms or more");
    }
    Cluster {
        node_id,
        data_dir: PathBuf::from(section.text("data_dir", "/var/lib/cortex")),
        peer_listen,
        advertise,
        seeds,
        heartbeat,
        election_timeout,
        forward_timeout: section.millis("forward_timeout_ms", 10..=60_000, 2000),
        secret: section.secret("secret", "must be 16 to 256 visible ASCII characters", |text| {
            (16..=256).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
        }),
        tls: files(section, ["cert", "key", "ca"]).map(|[cert, key, ca]| PeerTls { cert, key, ca }),
    }
}

/// The files of section `tls`: all of them or none.
fn files<const N: usize>(section: &mut Section<'_>, keys: [&'static str; N]) -> Option<[PathBuf; N]> {
    section.section("tls", |tls| {
        let files = keys.map(|key| tls.optional_text(key).map(PathBuf::from));
        let (given, all) = (files.iter().flatten().count(), files.len());
        if given > 0 && given < all {
            for (key, _) in keys.iter().zip(&files).filter(|(_, file)| file.is_none()) {
                tls.note(key, "is missing: TLS needs all of its files");
            }
        }
        let files: Vec<PathBuf> = files.into_iter().flatten().collect();
        files.try_into().ok()
    })
}

fn check_seeds(section: &mut Section<'_>, seeds: &[Seed]) {
    if seeds.is_empty() || seeds.len() > 99 {
        section.note("seeds", "must name 1 to 99 members");
    }
    for (index, seed) in seeds.iter().enumerate() {
        let (id, address) = (seed.id, &seed.address);
        if seeds[..index].iter().any(|other| other.id == id) {
            section.note("seeds", format!("names the id {id} twice"));
        }
        if seeds[..index].iter().any(|other| other.address == *address) {
            section.note("seeds", format!("names the address {address} twice"));
        }
    }
}

fn seed(text: &str) -> Option<Seed> {
    let (id, at) = text.split_once('=')?;
    let id = id.trim().parse().ok().filter(|id| (1..=i64::MAX as u64).contains(id))?;
    Some(Seed { id, address: address(at.trim())? })
}

fn address(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let plain = !host.is_empty() && !host.contains(|c: char| ":/@".contains(c) || c.is_whitespace());
    (port > 0 && (bracketed || plain)).then(|| text.to_owned())
}

fn http_url(text: &str) -> Option<String> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"))?;
    (!rest.is_empty()).then(|| text.to_owned())
}

fn is_collector_url(text: &str) -> bool {
    let url = http_url(text).and_then(|text| reqwest::Url::parse(&text).ok());
    url.is_some_and(|url| url.has_host() && url.username().is_empty() && url.password().is_none())
}

fn origin(text: &str) -> Option<String> {
    let plain = text.split_once("://").is_some_and(|(scheme, host)| {
        !scheme.is_empty() && !host.is_empty() && !host.contains(['/', '*', ' '])
    });
    (text == "*" || plain).then(|| text.to_owned())
}

fn token(text: &str) -> Option<String> {
    let plain = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    (text == "*" || plain).then(|| text.to_owned())
}

/// 32 bytes: 64 hexadecimal digits, or 43 base64 digits with or without the padding.
fn is_key(text: &str) -> bool {
    let hexadecimal = text.len() == 64 && text.chars().all(|c| c.is_ascii_hexdigit());
    let digits = text.strip_suffix('=').unwrap_or(text);
    let base64 =
        digits.len() == 43 && digits.chars().all(|c| c.is_ascii_alphanumeric() || "+/-_".contains(c));
    hexadecimal || base64
}
