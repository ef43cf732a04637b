use std::time::Duration;

use super::*;
use crate::config::{ConfigError, Environment, Secret};
use crate::domain::retry::RetryPolicy;

const STORES: &str = "database: {url: 'postgres://u:hunter2@db/cortex'}\nqueue: {redis_url: 'redis://r:1'}\n";

fn read(yaml: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::from_yaml(yaml, &environment.iter().copied().collect())
}

fn with_stores(yaml: &str) -> Result<Config, ConfigError> {
    read(&format!("{STORES}{yaml}"), &[])
}

/// The keys that were found faulty, sorted.
fn faults(result: Result<Config, ConfigError>) -> Vec<String> {
    let mut keys: Vec<_> = result.unwrap_err().problems.into_iter().map(|problem| problem.key).collect();
    keys.sort();
    keys
}

#[test]
fn the_defaults_are_those_of_the_specification() {
    let config = with_stores("").unwrap();
    assert_eq!(config.http_listen().to_string(), "0.0.0.0:8080");
    assert_eq!(config.grpc_listen().to_string(), "0.0.0.0:9090");
    assert_eq!(config.scheduler.poll_interval, Duration::from_secs(1));
    assert_eq!(config.scheduler.worker_timeout, Duration::from_secs(300));
    assert_eq!((config.database.pool_size, config.database.max_overflow), (20, 10));
    assert_eq!(RetryPolicy::from(config.retry), RetryPolicy::default());
    assert_eq!(config.cluster.heartbeat, Duration::from_millis(50));
    assert_eq!(config.cluster.election_timeout, (Duration::from_millis(150), Duration::from_millis(300)));
    assert_eq!(config.cluster.seeds, [Seed { id: 1, address: "127.0.0.1:7070".into() }]);
    assert_eq!(config.limits.max_body_bytes, 1 << 20);
    assert_eq!(config.retention.finished_jobs, Some(Duration::from_secs(2_592_000)));
    assert_eq!(config.retention.queue_metrics, Some(Duration::from_secs(604_800)));
    assert_eq!(config.queue.metrics_interval, Some(Duration::from_secs(60)));
    assert!(config.security.require_auth);
}

#[test]
fn the_shipped_file_says_what_the_defaults_are() {
    let shipped = include_str!("../../../config/cortex.yaml");
    let environment = [("DATABASE_URL", "postgres://u:hunter2@db/cortex"), ("REDIS_URL", "redis://r:1")];
    let config = read(shipped, &environment).unwrap();
    let mut defaults = with_stores("").unwrap();
    // The one default that names a place rather than a value.
    defaults.cors.origins = vec!["http://localhost:3000".into()];
    assert_eq!(config, defaults);
    assert_eq!(faults(read(shipped, &[])), ["database.url", "queue.redis_url"]);
}

#[test]
fn the_clusters_keys_of_three_replicas_are_read() {
    let config = with_stores(
        "cluster:
  node_id: 2
  data_dir: /data
  peer_listen: 0.0.0.0:7171
  advertise: {peer: cortex-2:7171, http: cortex-2:8080, grpc: cortex-2:9090}
  seeds: ['1=cortex-1:7070', '2=cortex-2:7171', '3=[::1]:7070']
  heartbeat_ms: 100
  election_timeout_ms: [300, 600]
  forward_timeout_ms: 500",
    )
    .unwrap();
    let cluster = config.cluster;
    assert_eq!(cluster.node_id, 2);
    assert_eq!(cluster.advertise.peer, "cortex-2:7171");
    assert_eq!(cluster.seeds.iter().map(|seed| seed.id).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(cluster.election_timeout.1, Duration::from_millis(600));
    assert_eq!(cluster.forward_timeout, Duration::from_millis(500));
}

#[test]
fn every_problem_is_named_at_once() {
    let keys = faults(read(
        "
server: {http_port: 0, reload: true, workers: 4, log_level: loud, host: localhost}
scheduler: {batch_size: many, poll_interval: -1, enabled: maybe}
retry: {backoff_multiplier: .nan, max_retries: 1.5}
database: {url: 'mysql://x'}
security: {jwt_algorithm: HS256, payload_keys: [short], jwks_url: ftp://x}
cluster: {seeds: ['1=a:1', '1=b:2', '3=b:2'], election_timeout_ms: [50, 60], peer_listen: here}
cors: {origins: ['*']}
limits: {max_body_bytes: 999999999999}
retention: {finished_jobs: 1.5, queue_metrics: -1}
queue: {metrics_interval: 86401}
extra: 1
",
        &[],
    ));
    let expected = [
        "cluster.election_timeout_ms",
        "cluster.peer_listen",
        "cluster.seeds",
        "cluster.seeds",
        "cors.origins",
        "database.url",
        "extra",
        "limits.max_body_bytes",
        "queue.metrics_interval",
        "queue.redis_url",
        "retention.finished_jobs",
        "retention.queue_metrics",
        "retry.backoff_multiplier",
        "retry.max_retries",
        "scheduler.batch_size",
        "scheduler.enabled",
        "scheduler.poll_interval",
        "security.jwks_url",
        "security.jwt_algorithm",
        "security.payload_keys",
        "server.host",
        "server.http_port",
        "server.log_level",
        "server.reload",
        "server.workers",
    ];
    assert_eq!(keys, expected);
}

#[test]
fn a_message_names_the_key_the_limits_the_value_and_its_origin() {
    let error =
        read(&format!("{STORES}scheduler: {{batch_size: 0}}"), &[("CORTEX__SERVER__HTTP_PORT", "http")]);
    assert_eq!(
        error.unwrap_err().to_string(),
        "the configuration has 2 problems:
  server.http_port: must be a whole number from 1 to 65535, is \"http\" (in environment variable CORTEX__SERVER__HTTP_PORT)
  scheduler.batch_size: must be a whole number from 1 to 1000, is 0 (in the configuration)"
    );
    let error = with_stores("server: {reload: true}").unwrap_err().to_string();
    assert!(
        error.contains("server.reload: is not a known key; the keys here are host, http_port"),
        "{error}"
    );
}

#[test]
fn a_missing_variable_is_named_with_its_key_and_reported_once() {
    let error =
        read("database: {url: '${DATABASE_URL}'}\nqueue: {redis_url: 'redis://r:1'}", &[]).unwrap_err();
    assert_eq!(error.problems.len(), 1, "{error}");
    assert!(
        error.to_string().contains("database.url: needs the environment variable DATABASE_URL"),
        "{error}"
    );
}

#[test]
fn variables_are_expanded_after_parsing_and_give_numbers_flags_and_lists() {
    let yaml = "
database: {url: 'postgres://u:${PASSWORD}@${HOST:-db}/cortex'}
queue: {redis_url: 'redis://r:1'}
server: {http_port: '${PORT}'}
security: {require_auth: '${AUTH:-false}'}
cluster: {seeds: '${SEEDS}', election_timeout_ms: '${ELECTION:-[200, 400]}'}
observability: {otlp_endpoint: '${OTLP_ENDPOINT:-}'}
";
    let environment = [("PASSWORD", "x', a: [b"), ("PORT", "81"), ("SEEDS", "1=a:1,2=b:2")];
    let config = read(yaml, &environment).unwrap();
    assert_eq!(config.database.url.expose(), "postgres://u:x', a: [b@db/cortex");
    assert_eq!(config.server.http_port, 81);
    assert!(!config.security.require_auth);
    assert_eq!(config.cluster.seeds.len(), 2);
    assert_eq!(config.cluster.election_timeout.0, Duration::from_millis(200));
    assert_eq!(config.observability.otlp_endpoint, None);
}

#[test]
fn an_override_wins_over_the_file_in_any_case_and_must_name_a_known_key() {
    let environment = [
        ("CORTEX__SCHEDULER__BATCH_SIZE", "64"),
        ("cortex__cluster__advertise__peer", "node:1"),
        ("Cortex__Cluster__Seeds", "[\"1=a:1\", '2=b:2']"),
        ("CORTEX__SECURITY__REQUIRE_AUTH", "false"),
        ("CORTEX_ENDPOINT", "ignored"),
    ];
    let config =
        read(&format!("{STORES}scheduler: {{batch_size: 5, enabled: false}}"), &environment).unwrap();
    assert_eq!(config.scheduler.batch_size, 64);
    assert!(!config.scheduler.enabled, "the neighbours of an overridden key stay");
    assert_eq!(config.cluster.advertise.peer, "node:1");
    assert_eq!(config.cluster.seeds[1], Seed { id: 2, address: "b:2".into() });
    assert!(!config.security.require_auth);

    let error = read(STORES, &[("CORTEX__QUEUE__PREFIX", "x")]).unwrap_err().to_string();
    assert!(error.contains("queue.prefix: is not a known key"), "{error}");
    assert!(error.contains("CORTEX__QUEUE__PREFIX"), "{error}");
}

#[test]
fn secrets_appear_neither_in_debug_output_nor_in_errors() {
    let key = "hunter2".repeat(9);
    let yaml = format!("{STORES}cluster: {{secret: 'hunter2-hunter2-hunter2'}}\n");
    let shown = format!("{:?}", read(&yaml, &[]).unwrap());
    assert!(!shown.contains("hunter2"), "{shown}");

    let yaml = format!(
        "database: {{url: 'hunter2'}}\nqueue: {{redis_url: 'http://u:hunter2@x'}}
security: {{payload_keys: ['{key}'], jwt_secret_key: [hunter2]}}\ncluster: {{secret: hunter2}}"
    );
    let error = read(&yaml, &[]).unwrap_err();
    assert_eq!(error.problems.len(), 5, "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[test]
fn the_original_services_database_url_is_understood() {
    let yaml = "database: {url: 'postgresql+asyncpg://u@db/c'}\nqueue: {redis_url: 'redis://r:1'}";
    assert_eq!(read(yaml, &[]).unwrap().database.url, Secret::new("postgresql://u@db/c"));
}

#[test]
fn broken_yaml_and_unreadable_files_say_so() {
    let error = read("server: [", &[]).unwrap_err().to_string();
    assert!(error.contains("is not valid YAML"), "{error}");
    let error = read("- a", &[]).unwrap_err().to_string();
    assert!(error.contains("must be a mapping of sections"), "{error}");
    let error = Config::load("/nonexistent/cortex.yaml".as_ref()).unwrap_err().to_string();
    assert!(error.contains("cannot be read") && error.contains("/nonexistent/cortex.yaml"), "{error}");
    assert!(Config::from_yaml("", &Environment::default()).is_err());
}

#[test]
fn limits_are_inclusive() {
    assert!(with_stores("scheduler: {batch_size: 1000, poll_interval: 0.01}").is_ok());
    assert_eq!(faults(with_stores("scheduler: {batch_size: 1001}")), ["scheduler.batch_size"]);
    let kept = |seconds: u32| {
        with_stores(&format!("retention: {{finished_jobs: {seconds}}}"))
            .map(|config| config.retention.finished_jobs)
    };
    assert_eq!(kept(0), Ok(None));
    assert_eq!(kept(3_600), Ok(Some(Duration::from_secs(3_600))));
    assert!(kept(1).is_err() && kept(3_599).is_err() && kept(315_360_001).is_err());
    assert_eq!(faults(with_stores("scheduler: {poll_interval: 0.009}")), ["scheduler.poll_interval"]);
    let off = with_stores("retention: {queue_metrics: 0}").unwrap();
    assert_eq!(off.retention.queue_metrics, None);
    assert!(with_stores(&format!("security: {{payload_keys: ['{}']}}", "0a".repeat(32))).is_ok());
    assert!(with_stores(&format!("security: {{payload_keys: ['{}=']}}", "a".repeat(43))).is_ok());
}

#[test]
fn tls_needs_all_of_its_files_or_none() {
    let config =
        with_stores("server: {tls: {cert: /c, key: /k}}\ncluster: {tls: {cert: /c, key: /k, ca: /a}}")
            .unwrap();
    assert_eq!(config.server.tls, Some(Tls { cert: "/c".into(), key: "/k".into() }));
    assert_eq!(config.cluster.tls, Some(PeerTls { cert: "/c".into(), key: "/k".into(), ca: "/a".into() }));
    let keys = faults(with_stores("server: {tls: {cert: /c}}\ncluster: {tls: {cert: /c, ca: ''}}"));
    assert_eq!(keys, ["cluster.tls.ca", "cluster.tls.key", "server.tls.key"]);
    assert_eq!(with_stores("").unwrap().cluster.tls, None);
}

#[test]
fn traces_go_to_a_url_without_a_password_and_their_share_is_from_none_to_all() {
    let endpoint = |url: &str| with_stores(&format!("observability: {{otlp_endpoint: '{url}'}}"));
    for url in ["http://collector:4317", "https://collector", "http://[::1]:4317/"] {
        assert_eq!(endpoint(url).unwrap().observability.otlp_endpoint.as_deref(), Some(url));
    }
    for url in
        ["collector:4317", "grpc://collector", "http://", "http://u@collector", "http://u:hunter2@collector"]
    {
        let error = endpoint(url).unwrap_err().to_string();
        assert!(error.contains("observability.otlp_endpoint") && !error.contains("hunter2"), "{error}");
    }
    let share = |share: &str| with_stores(&format!("observability: {{trace_sample_ratio: {share}}}"));
    assert!(share("0").is_ok() && share("0.001").is_ok() && share("1").is_ok());
    assert_eq!(faults(share("1.01")), ["observability.trace_sample_ratio"]);
    assert_eq!(faults(share("-0.1")), ["observability.trace_sample_ratio"]);
}

/// The variables of a service of the Compose file, as Compose fills them in.
fn of_service(name: &str) -> Environment {
    let file = include_str!("../../../deploy/compose.yaml");
    let mut file: yaml_serde::Value = yaml_serde::from_str(file).unwrap();
    file.apply_merge().unwrap();
    let variables = file["services"][name]["environment"].as_mapping().unwrap().iter();
    let mut filled = Vec::new();
    for (name, value) in variables {
        let given = [
            ("POSTGRES_PASSWORD", "p"),
            ("CORTEX_CLUSTER_SECRET", "0123456789abcdef"),
            ("JWT_PUBLIC_KEY", "PEM"),
        ];
        let mut value = value.as_str().unwrap().to_owned();
        for (variable, own) in given {
            value = value.replace(&format!("${{{variable}:?}}"), own);
        }
        assert!(!value.contains('$'), "{value}");
        filled.push((name.as_str().unwrap().to_owned(), value));
    }
    filled.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[test]
fn the_compose_file_configures_three_replicas_that_ask_for_tokens() {
    let image = include_str!("../../../config/cortex.yaml");
    for id in 1..=3_u64 {
        let config = Config::from_yaml(image, &of_service(&format!("cortex-{id}"))).unwrap();
        assert!(config.security.require_auth && config.security.jwt_public_key.is_some());
        assert_eq!((config.cluster.node_id, config.cluster.seeds.len()), (id, 3));
        let own = config.cluster.seeds.iter().find(|seed| seed.id == id).unwrap();
        assert_eq!(own.address, config.cluster.advertise.peer);
        assert!(!config.cluster.is_open());
    }
}

#[test]
fn a_registry_that_is_not_there_cannot_reject() {
    assert_eq!(faults(with_stores("genome: {on_unavailable: reject}")), ["genome.on_unavailable"]);
    assert_eq!(with_stores("genome: {url: '', timeout_ms: 5000}").unwrap().genome, None);
    let genome = with_stores("genome: {url: 'https://u:p@g/x', on_unavailable: reject}").unwrap().genome;
    assert_eq!(genome.unwrap().on_unavailable, OnUnavailable::Reject);
}

#[test]
fn certificates_for_redis_go_with_rediss_and_a_pooler_is_named() {
    let with = |url: &str, tls: &str, pooler: &str| {
        read(
            &format!(
                "database: {{url: 'postgres://u@db/c', pooler: {pooler}}}\nqueue: {{redis_url: '{url}', tls: {tls}}}"
            ),
            &[],
        )
    };
    let config = with("rediss://u:p@r:1", "{ca: /ca.pem}", "transaction").unwrap();
    assert_eq!(config.queue.tls.and_then(|tls| tls.ca), Some("/ca.pem".into()));
    assert_eq!(config.database.pooler, Some(Pooler::Transaction));
    let config = with("redis://r:1", "{ca: '', cert: '', key: ''}", "none").unwrap();
    assert_eq!((config.queue.tls, config.database.pooler), (None, None));
    assert_eq!(faults(with("redis://r:1", "{ca: /ca.pem}", "none")), ["queue.tls"]);
    assert_eq!(
        faults(with("rediss://r:1", "{cert: /c.pem}", "session")),
        ["database.pooler", "queue.tls.key"]
    );
}
