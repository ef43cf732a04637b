//! Replicas that come to a cluster which runs already, and those that are set up anew.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use super::cluster::DevCluster;
use super::error::DevError;
use super::ports::PortBlock;
use super::replica::{Replica, ReplicaOptions, raft_dir};

impl DevCluster {
    /// Id of replica `index` in the cluster.
    pub fn id(&self, index: usize) -> u64 {
        self.replicas[index].id
    }

    /// Where the others reach the peer port of replica `index`.
    pub fn advertised_peer(&self, index: usize) -> SocketAddr {
        self.replicas[index].advertised_peer()
    }

    /// The folder of replica `index` for its Raft log, unless an override says otherwise.
    pub fn raft_dir(&self, index: usize) -> PathBuf {
        raft_dir(&self.common.data_dir, self.id(index))
    }

    /// What sets replica `index` apart from the others.
    pub fn options(&self, index: usize) -> &ReplicaOptions {
        &self.replicas[index].options
    }

    /// Sets replica `index` apart from the others, from its next start on. Where it listens stays as it is.
    ///
    /// # Errors
    /// When its configuration is refused or cannot be written.
    pub fn set_options(&mut self, index: usize, options: ReplicaOptions) -> Result<(), DevError> {
        self.replicas[index].options = options;
        self.configure(index)
    }

    /// Starts one more replica, empty and under an id that none has had, and answers its index. It is no member until
    /// it is added to the cluster; it does not count as ready before.
    ///
    /// # Errors
    /// When no ports are free or it cannot be started.
    pub async fn add_replica(&mut self, options: ReplicaOptions) -> Result<usize, DevError> {
        let block = PortBlock::reserve(3)?;
        let first = block.first();
        let id = self.unused_id();
        let replica = Replica::new(id, &self.common.data_dir, first, first + 1, first + 2, options);
        self.replicas.push(replica);
        self.blocks.push(block);
        let index = self.replicas.len() - 1;
        self.configure(index)?;
        self.restart(index).await?;
        Ok(index)
    }

    /// Gives replica `index`, which must not run, a new id and an empty folder, as after the loss of its disk. It is no
    /// member under that id until it is added to the cluster. Its addresses stay as they are.
    ///
    /// # Errors
    /// When its folder cannot be removed or its configuration not be written.
    pub fn renew_replica(&mut self, index: usize) -> Result<u64, DevError> {
        if self.pid(index).is_some() {
            return Err(DevError::Failed(format!("replica {} runs", self.id(index))));
        }
        let folder = self.raft_dir(index);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(DevError::io(format!("remove {}", folder.display()))(error));
            }
            _ => {}
        }
        let id = self.unused_id();
        self.replicas[index].be(id, &self.common.data_dir);
        self.configure(index)?;
        Ok(id)
    }

    /// Ends replica `index`, which has been removed from the cluster, for good. Its index is not used again.
    pub async fn retire_replica(&mut self, index: usize) {
        self.replicas[index].retired = true;
        self.kill(index, Signal::SIGKILL);
        self.wait_for_exit(index).await;
    }

    /// Ids are never used twice: those of members that were removed neither.
    fn unused_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn configure(&self, index: usize) -> Result<(), DevError> {
        let present = self.replicas.iter().filter(|replica| !replica.retired);
        let seeds: Vec<String> = present.map(Replica::seed).collect();
        self.replicas[index].write_config(&self.common, &seeds)
    }
}
