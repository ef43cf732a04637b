//! `cluster.json`: what runs where, for scripts.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::DevError;

/// Written once every replica is ready, removed on stop.
#[derive(Debug, Serialize)]
pub(super) struct Manifest {
    pub(super) postgres: Store,
    pub(super) redis: Store,
    pub(super) replicas: Vec<ReplicaEntry>,
    pub(super) workers: Vec<WorkerEntry>,
}

/// A store; without a process id when it is somebody else's.
#[derive(Debug, Serialize)]
pub(super) struct Store {
    pub(super) url: String,
    pub(super) pid: Option<u32>,
}

#[derive(Debug, Serialize)]
pub(super) struct ReplicaEntry {
    pub(super) id: u64,
    pub(super) pid: u32,
    pub(super) http: String,
    pub(super) grpc: String,
    pub(super) peer: String,
    pub(super) config: PathBuf,
}

#[derive(Debug, Serialize)]
pub(super) struct WorkerEntry {
    pub(super) name: String,
    pub(super) pid: u32,
}

impl Manifest {
    /// Writes the file whole or not at all.
    pub(super) fn write(&self, data_dir: &Path) -> Result<(), DevError> {
        let (path, unfinished) = (path(data_dir), data_dir.join("cluster.json.new"));
        let failed = || DevError::io(format!("write {}", path.display()));
        let text = serde_json::to_vec_pretty(self).map_err(|error| failed()(error.into()))?;
        let mut options = fs::OpenOptions::new();
        // The URLs may hold passwords.
        let mut file =
            options.create(true).truncate(true).write(true).mode(0o600).open(&unfinished).map_err(failed())?;
        file.write_all(&text).and_then(|()| file.write_all(b"\n")).map_err(failed())?;
        fs::rename(&unfinished, &path).map_err(failed())
    }

    /// Removes the file, if there is one.
    pub(super) fn remove(data_dir: &Path) {
        let _ = fs::remove_file(path(data_dir));
    }
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("cluster.json")
}
