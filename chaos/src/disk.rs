//! File systems of their own for Raft logs: small ones that fill up, and ones whose power can be cut.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tokio::process::Command;

/// Size of a disk in a file, in bytes.
const IN_A_FILE: u64 = 64 << 20;
/// Size of a disk in memory.
const IN_MEMORY: &str = "32m";
/// Size of the block that is lost with the power, in bytes.
const BLOCK: usize = 4096;
/// What of it was synced, and what was not.
const SYNCED: u8 = b's';
const UNSYNCED: u8 = b'u';
/// Shuts down without flushing the journal: what was not synced is lost.
const WITHOUT_FLUSHING: u32 = 2;

/// A file system and where it is mounted.
pub(crate) struct Disk {
    /// The file that it lies in; `None` for one in memory.
    image: Option<PathBuf>,
    at: PathBuf,
}

impl Disk {
    /// A small one in memory, which is empty each time that it is mounted.
    pub(crate) fn in_memory(at: &Path) -> Self {
        Self { image: None, at: at.to_owned() }
    }

    /// Makes an empty one in a file, which must not exist.
    pub(crate) async fn in_file(image: &Path, at: &Path) -> Result<Self, String> {
        let made = File::create_new(image).and_then(|file| file.set_len(IN_A_FILE));
        made.map_err(|error| format!("{}: {error}", image.display()))?;
        let disk = Self { image: Some(image.to_owned()), at: at.to_owned() };
        let made = run("mkfs.ext4", &["-q", "-F", &path(image)]).await;
        if made.is_err() {
            disk.discard();
        }
        made.map(|()| disk)
    }

    /// Where it is mounted.
    pub(crate) fn at(&self) -> &Path {
        &self.at
    }

    /// Mounts it over a folder. The journal of one in a file is not written out in passing, so that only what was synced
    /// is there after a cut.
    pub(crate) async fn mount(&self) -> Result<(), String> {
        let at = path(&self.at);
        match &self.image {
            Some(image) => run("mount", &["-o", "loop,commit=600,noatime", &path(image), &at]).await,
            None => {
                let size = format!("size={IN_MEMORY}");
                run("mount", &["-t", "tmpfs", "-o", &size, "cortex-chaos", &at]).await
            }
        }
    }

    /// Takes it away; nothing may use it any more.
    pub(crate) async fn unmount(&self) -> Result<(), String> {
        run("umount", &[&path(&self.at)]).await
    }

    /// Takes it away however often it is mounted. Whoever still uses it goes on with it until it lets go.
    pub(crate) async fn detach(&self) {
        while run("umount", &["-l", &path(&self.at)]).await.is_ok() {}
    }

    /// Mounts one in a file anew, whether it is mounted or not. One in memory stays as it is.
    pub(crate) async fn remount(&self) -> Result<(), String> {
        if self.image.is_none() {
            return Ok(());
        }
        let _ = self.unmount().await;
        self.mount().await
    }

    /// Removes the file that it lies in.
    pub(crate) fn discard(&self) {
        if let Some(image) = &self.image {
            // What cannot be removed takes up space and does no other harm.
            let _ = std::fs::remove_file(image);
        }
    }

    /// Cuts the power of one in a file: from now on nothing reaches it.
    #[expect(unsafe_code, reason = "the only way to the kernel's shutdown of a file system is its ioctl")]
    pub(crate) fn cut(&self) -> Result<(), String> {
        let folder = File::open(&self.at).map_err(|error| format!("{}: {error}", self.at.display()))?;
        let mut how = WITHOUT_FLUSHING;
        // SAFETY: the descriptor is open, and the kernel reads one u32 from the pointer, which is valid meanwhile.
        let cut = unsafe { shutdown(folder.as_raw_fd(), &raw mut how) };
        cut.map(|_| ()).map_err(|error| format!("{} keeps its power: {error}", self.at.display()))
    }
}

/// A block on a disk, whose newest content was not synced.
pub(crate) struct Block {
    at: PathBuf,
}

impl Block {
    /// Writes one and syncs it.
    pub(crate) fn synced(folder: &Path) -> Result<Self, String> {
        let block = Self { at: folder.join("block") };
        let written =
            std::fs::write(&block.at, [SYNCED; BLOCK]).and_then(|()| File::open(&block.at)?.sync_all());
        written.map_err(|error| error.to_string())?;
        Ok(block)
    }

    /// Writes over it in its place, which no journal knows of, and syncs nothing.
    pub(crate) fn write_over(&self) -> Result<(), String> {
        let file = File::options().write(true).open(&self.at);
        let written = file.and_then(|file| file.write_all_at(&[UNSYNCED; BLOCK], 0));
        written.map_err(|error| error.to_string())
    }

    /// Takes it away again.
    pub(crate) fn remove(self) -> Result<(), String> {
        std::fs::remove_file(self.at).map_err(|error| error.to_string())
    }

    /// Whether what was written last is gone.
    pub(crate) fn is_lost(&self) -> bool {
        std::fs::read(&self.at).is_ok_and(|content| content.first() == Some(&SYNCED))
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

/// A path as an argument.
pub(crate) fn path(path: &Path) -> String {
    path.display().to_string()
}

/// Runs a program to its end.
pub(crate) async fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().await;
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
