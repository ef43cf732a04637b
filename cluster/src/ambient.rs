//! What this crate takes from the world around it: a runtime with its randomness, threads for blocking work,
//! connections, the file of the log, ids.
//!
//! All in one place, because the simulation puts its own here (`src/simulation`). The simulation exists in tests
//! alone: the feature that shows it to the root crate's is asked for by dev-dependencies only.

use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError, StorageBackend};
use tokio::task::JoinError;
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

/// What openraft runs on.
#[cfg(not(any(test, feature = "simulation")))]
pub(crate) type Runtime = openraft::impls::TokioRuntime;
/// What openraft runs on; its randomness comes from the simulation, if there is one.
#[cfg(any(test, feature = "simulation"))]
pub(crate) type Runtime = crate::simulation::SeededRuntime;

/// Runs `work`, which may wait for a disk, where it holds up no async thread.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    #[cfg(any(test, feature = "simulation"))]
    if crate::simulation::is_running() {
        return crate::simulation::blocking(work).await;
    }
    tokio::task::spawn_blocking(work).await
}

/// A channel that connects when it is first used.
pub(crate) fn connect_lazily(endpoint: &Endpoint) -> Channel {
    #[cfg(any(test, feature = "simulation"))]
    if crate::simulation::is_running() {
        return crate::simulation::connect_lazily(endpoint);
    }
    endpoint.connect_lazy()
}

/// Waits for the answer to a call, which is dropped after `limit`.
pub(crate) async fn within<T: Send + 'static>(
    limit: Duration,
    call: impl Future<Output = T> + Send + 'static,
) -> Result<T, Elapsed> {
    #[cfg(any(test, feature = "simulation"))]
    if crate::simulation::is_running() {
        return crate::simulation::within(limit, call).await;
    }
    timeout(limit, call).await
}

/// Creates a directory and those above it.
pub(crate) fn create_directory(path: &Path) -> io::Result<()> {
    #[cfg(any(test, feature = "simulation"))]
    if crate::simulation::is_running() {
        return Ok(());
    }
    std::fs::create_dir_all(path)
}

/// How long a file is, in bytes; `None` if there is none.
pub(crate) fn length(path: &Path) -> io::Result<Option<u64>> {
    #[cfg(any(test, feature = "simulation"))]
    if let Some(disk) = crate::simulation::disk(path) {
        return disk.length();
    }
    match std::fs::metadata(path) {
        Ok(file) => Ok(Some(file.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A file that is there, to be read and written in place while nobody else has it open: else it would block.
pub(crate) fn locked(path: &Path) -> io::Result<Box<dyn StorageBackend>> {
    #[cfg(any(test, feature = "simulation"))]
    if let Some(disk) = crate::simulation::disk(path) {
        return Ok(Box::new(disk));
    }
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    // The lock that redb takes as well, where there are any; given back with the file.
    match file.try_lock().map_err(io::Error::from) {
        Err(error) if error.kind() != io::ErrorKind::Unsupported => return Err(error),
        _ => {}
    }
    Ok(Box::new(FileBackend::new(file).map_err(io::Error::other)?))
}

/// Removes a file, if there is one.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    #[cfg(any(test, feature = "simulation"))]
    if let Some(disk) = crate::simulation::disk(path) {
        return disk.remove();
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Opens the file of the log, or creates it.
pub(crate) fn open_database(builder: &Builder, path: &Path) -> Result<Database, DatabaseError> {
    #[cfg(any(test, feature = "simulation"))]
    if let Some(disk) = crate::simulation::disk(path) {
        return builder.create_with_backend(disk);
    }
    #[cfg(feature = "planted-defects")]
    if let Some(planted) = crate::store::unsynced::planted(path) {
        return builder.create_with_backend(planted?);
    }
    builder.create(path)
}

/// Gives a file another name in its directory, which a power cut doesn't take from it.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(any(test, feature = "simulation"))]
    if let Some(disk) = crate::simulation::disk(from) {
        return disk.rename();
    }
    std::fs::rename(from, to)?;
    match to.parent() {
        Some(directory) => std::fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// An id for a cluster that is being founded.
#[expect(
    clippy::disallowed_methods,
    reason = "no decision depends on which id it is, only on its being unlike any other"
)]
pub(crate) fn new_cluster_id() -> Uuid {
    #[cfg(any(test, feature = "simulation"))]
    if let Some(id) = crate::simulation::new_cluster_id() {
        return id;
    }
    Uuid::new_v4()
}
