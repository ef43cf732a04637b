//! One replica of a development cluster.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::error::DevError;
use super::keys::Keys;
use super::process::{Child, Launch};
use crate::config::{Config, Environment};

/// What sets one replica apart from the others of its cluster.
#[derive(Debug, Clone, Default)]
pub struct ReplicaOptions {
    /// Address that it listens on. Default 127.0.0.1.
    pub host: Option<IpAddr>,
    /// Where the others reach its peer port. Default: where it listens.
    pub advertised_peer: Option<SocketAddr>,
    /// What its command line begins with, such as `ip netns exec NAME`. The program must replace itself by what follows,
    /// so that signals reach the replica.
    pub wrapper: Vec<String>,
    /// Added to its environment.
    pub environment: BTreeMap<String, String>,
    /// `dotted.key=value`, over those that all replicas have.
    pub overrides: Vec<String>,
}

/// Where a replica listens and what belongs to it.
pub(super) struct Replica {
    /// Its `cluster.node_id`, from 1.
    pub(super) id: u64,
    pub(super) http: SocketAddr,
    pub(super) grpc: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) config: PathBuf,
    pub(super) log: PathBuf,
    pub(super) process: Option<Child>,
    /// Whether it has left for good.
    pub(super) retired: bool,
    pub(super) options: ReplicaOptions,
}

/// What all replicas have in common.
pub(super) struct Common {
    pub(super) data_dir: PathBuf,
    pub(super) database_url: String,
    pub(super) redis_url: String,
    pub(super) require_auth: bool,
    /// What tells callers and replicas from strangers, where that is asked for.
    pub(super) keys: Option<Keys>,
    /// `dotted.key=value`, later ones win.
    pub(super) overrides: Vec<String>,
}

impl Replica {
    /// The replica with this id (from 1) on the given ports.
    pub(super) fn new(
        id: u64,
        data_dir: &Path,
        http: u16,
        grpc: u16,
        peer: u16,
        options: ReplicaOptions,
    ) -> Self {
        let host = options.host.unwrap_or(Ipv4Addr::LOCALHOST.into());
        let local = |port| SocketAddr::from((host, port));
        let mut replica = Self {
            id,
            http: local(http),
            grpc: local(grpc),
            peer: local(peer),
            config: PathBuf::new(),
            log: PathBuf::new(),
            process: None,
            retired: false,
            options,
        };
        replica.be(id, data_dir);
        replica
    }

    /// Where the other replicas reach it.
    pub(super) fn advertised_peer(&self) -> SocketAddr {
        self.options.advertised_peer.unwrap_or(self.peer)
    }

    /// Makes it a replica with this id, which has files of its own.
    pub(super) fn be(&mut self, id: u64, data_dir: &Path) {
        self.id = id;
        self.config = data_dir.join(format!("replica-{id}.yaml"));
        self.log = data_dir.join(format!("replica-{id}.log"));
    }

    /// How the others are told of it.
    pub(super) fn seed(&self) -> String {
        format!("{}={}", self.id, self.advertised_peer())
    }

    /// Writes its configuration file, after checking it. Only the owner can read it: the URLs may hold passwords.
    pub(super) fn write_config(&self, common: &Common, seeds: &[String]) -> Result<(), DevError> {
        let yaml = self.config_yaml(common, seeds)?;
        Config::from_yaml(&yaml, &Environment::process())?;
        let failed = || DevError::io(format!("write {}", self.config.display()));
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).write(true).mode(0o600);
        let mut file = options.open(&self.config).map_err(failed())?;
        file.write_all(yaml.as_bytes()).map_err(failed())
    }

    /// Starts the process.
    pub(super) fn start(
        &mut self,
        binary: &Path,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), DevError> {
        let mut command = match self.options.wrapper.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(binary);
                command
            }
            None => Command::new(binary),
        };
        command.arg("serve").arg("--config").arg(&self.config);
        command.envs(environment).envs(&self.options.environment);
        let name = format!("replica {}", self.id);
        let log = self.log.clone();
        self.process = Some(Launch { name, command, log, account: None, abandon: Signal::SIGKILL }.start()?);
        Ok(())
    }

    /// Empties the log of an earlier run, so that what is quoted is of this one.
    pub(super) fn clear_log(&self) {
        let _ = fs::remove_file(&self.log);
    }

    fn config_yaml(&self, common: &Common, seeds: &[String]) -> Result<String, DevError> {
        let data_dir = raft_dir(&common.data_dir, self.id);
        let mut config = json!({
            "server": {"host": self.http.ip().to_string(), "http_port": self.http.port(), "grpc_port": self.grpc.port()},
            "database": {"url": literal(&common.database_url)},
            // Room to try things out with; the default is meant for production.
            "queue": {"redis_url": literal(&common.redis_url), "max_queue_size": 1_000_000},
            "security": {"require_auth": common.require_auth},
            "cluster": {
                "node_id": self.id,
                "data_dir": literal(&data_dir.to_string_lossy()),
                "peer_listen": self.peer.to_string(),
                "advertise": {
                    "peer": self.advertised_peer().to_string(),
                    "http": self.http.to_string(),
                    "grpc": self.grpc.to_string(),
                },
                "seeds": seeds,
            },
        });
        if let Some(keys) = &common.keys {
            config["security"]["jwt_public_key"] = json!(literal(&keys.public_key.to_string_lossy()));
            config["cluster"]["secret"] = json!(keys.secret);
        }
        for text in common.overrides.iter().chain(&self.options.overrides) {
            override_key(&mut config, text)?;
        }
        yaml_serde::to_string(&config)
            .map_err(|error| DevError::Failed(format!("cannot write a configuration: {error}")))
    }
}

/// Where the replica with this id keeps its Raft log, unless an override says otherwise.
pub(super) fn raft_dir(data_dir: &Path, id: u64) -> PathBuf {
    data_dir.join(format!("raft-{id}"))
}

/// A text that variable expansion leaves as it is.
fn literal(text: &str) -> String {
    text.replace("${", "$${")
}

/// Puts the value of `dotted.key=value` in its place. The value is YAML, and text where it is not.
fn override_key(config: &mut Value, text: &str) -> Result<(), DevError> {
    let usage = || DevError::Options(format!("--set takes key=value with a dotted key, not {text:?}"));
    let (path, value) = text.split_once('=').ok_or_else(usage)?;
    let value = yaml_serde::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    let mut place = config;
    for key in path.split('.') {
        if key.trim().is_empty() {
            return Err(usage());
        }
        place = match place {
            Value::Object(members) => members.entry(key.trim()).or_insert_with(|| json!({})),
            _ => return Err(usage()),
        };
    }
    *place = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(overrides: &[&str]) -> Result<Config, DevError> {
        config_of(overrides, ReplicaOptions::default())
    }

    fn config_of(overrides: &[&str], options: ReplicaOptions) -> Result<Config, DevError> {
        let overrides = overrides.iter().map(ToString::to_string).collect();
        let common = Common {
            data_dir: "/data".into(),
            database_url: "postgres://u:${odd}@db/x".to_owned(),
            redis_url: "redis://r:1".to_owned(),
            require_auth: false,
            keys: None,
            overrides,
        };
        let replica = Replica::new(2, &common.data_dir, 8081, 9091, 7071, options);
        let yaml = replica.config_yaml(&common, &["1=127.0.0.1:7070".into(), "2=127.0.0.1:7071".into()])?;
        Ok(Config::from_yaml(&yaml, &Environment::default())?)
    }

    #[test]
    fn the_file_is_a_configuration_with_the_replicas_ports_and_stores() {
        let config = config(&[]).unwrap();
        assert_eq!(config.http_listen().to_string(), "127.0.0.1:8081");
        assert_eq!(config.cluster.node_id, 2);
        assert_eq!(config.cluster.data_dir, Path::new("/data/raft-2"));
        assert_eq!(config.cluster.seeds.len(), 2);
        assert_eq!(config.database.url.expose(), "postgres://u:${odd}@db/x");
        assert!(!config.security.require_auth);
    }

    #[test]
    fn any_key_can_be_set_and_the_last_one_wins() {
        let config = config(&[
            "scheduler.batch_size=5",
            "scheduler.batch_size=6",
            "cluster.election_timeout_ms=[300, 600]",
            "security.require_auth=true",
            "observability.service_name=a=b: [",
        ])
        .unwrap();
        assert_eq!(config.scheduler.batch_size, 6);
        assert_eq!(config.cluster.election_timeout.1.as_millis(), 600);
        assert!(config.security.require_auth);
        assert_eq!(config.observability.service_name, "a=b: [");
    }

    #[test]
    fn a_replica_may_be_set_apart_from_the_others() {
        let options = ReplicaOptions {
            host: Some("127.0.0.2".parse().unwrap()),
            advertised_peer: Some("127.0.0.3:9".parse().unwrap()),
            overrides: vec!["scheduler.batch_size=6".to_owned()],
            ..ReplicaOptions::default()
        };
        let config = config_of(&["scheduler.batch_size=5"], options).unwrap();
        assert_eq!(config.http_listen().to_string(), "127.0.0.2:8081");
        assert_eq!(config.cluster.peer_listen.to_string(), "127.0.0.2:7071");
        assert_eq!(config.scheduler.batch_size, 6);
    }

    #[test]
    fn a_bad_override_is_refused_by_name() {
        for (text, part) in [
            ("scheduler.batch=5", "scheduler.batch: is not a known key"),
            ("scheduler.batch_size=no", "scheduler.batch_size: must be a whole number"),
            ("scheduler", "--set takes key=value"),
            ("server.http_port.x=1", "--set takes key=value"),
            ("a..b=1", "--set takes key=value"),
        ] {
            let error = config(&[text]).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
