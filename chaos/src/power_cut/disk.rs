//! A file system in a file, whose power can be cut.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::cluster::Error;

/// Size of a disk, in bytes.
const SIZE: u64 = 64 << 20;
/// Shuts down without flushing the journal: what was not synced is lost.
const WITHOUT_FLUSHING: u32 = 2;

/// A file system in a file.
pub(super) struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// Makes an empty file system in a file and mounts it.
    pub(super) async fn make(image: &Path, at: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(at)?;
        File::create_new(image)?.set_len(SIZE)?;
        run("mkfs.ext4", &["-q", "-F", &image.display().to_string()]).await?;
        let disk = Self { image: image.to_owned(), at: at.to_owned() };
        disk.mount().await?;
        Ok(disk)
    }

    /// Mounts it. The journal is not written out in passing, so that only what was synced is there after a cut.
    pub(super) async fn mount(&self) -> Result<(), Error> {
        let (image, at) = (self.image.display().to_string(), self.at.display().to_string());
        run("mount", &["-o", "loop,commit=600,noatime", &image, &at]).await
    }

    /// Takes it away; nothing may use it any more.
    pub(super) async fn unmount(&self) -> Result<(), Error> {
        run("umount", &[&self.at.display().to_string()]).await
    }

    /// Cuts its power: from now on nothing reaches it.
    #[expect(unsafe_code, reason = "the only way to the kernel's shutdown of a file system is its ioctl")]
    pub(super) fn cut(&self) -> Result<(), Error> {
        let folder = File::open(&self.at)?;
        let mut how = WITHOUT_FLUSHING;
        // SAFETY: the descriptor is open, and the kernel reads one u32 from the pointer, which is valid meanwhile.
        unsafe { shutdown(folder.as_raw_fd(), &raw mut how) }?;
        Ok(())
    }
}

// EXT4_IOC_SHUTDOWN.
nix::ioctl_read!(
    /// Shuts a file system down, in the way that the pointer says.
    shutdown,
    b'X',
    125,
    u32
);

async fn run(program: &str, arguments: &[&str]) -> Result<(), Error> {
    let output = Command::new(program).args(arguments).output().await;
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
}
