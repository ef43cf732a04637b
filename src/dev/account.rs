//! The unprivileged account that PostgreSQL runs under when this process is root.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::{Uid, User};

use super::error::DevError;

/// In order of preference.
const CANDIDATES: [&str; 2] = ["postgres", "nobody"];

/// A user and its main group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Account {
    /// The account to use: `None` when this process is not root and needs none.
    pub(super) fn unprivileged() -> Result<Option<Self>, DevError> {
        if !Uid::effective().is_root() {
            return Ok(None);
        }
        let found = CANDIDATES.iter().find_map(|name| User::from_name(name).ok().flatten());
        match found {
            Some(user) => Ok(Some(Self { uid: user.uid.as_raw(), gid: user.gid.as_raw() })),
            None => Err(DevError::Failed(
                "PostgreSQL refuses to run as root, and there is neither an account `postgres` nor `nobody`"
                    .into(),
            )),
        }
    }

    /// Whether the account can reach a folder, given the permissions of all folders above it.
    pub(super) fn can_enter(self, folder: &Path) -> bool {
        Command::new("/bin/sh")
            .args(["-c", "cd -- \"$1\"", "sh"])
            .arg(folder)
            .uid(self.uid)
            .gid(self.gid)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    /// Makes the account the owner of a folder, and of what is in it if it was somebody else's.
    pub(super) fn own(self, folder: &Path) -> io::Result<()> {
        let metadata = fs::symlink_metadata(folder)?;
        if metadata.uid() == self.uid {
            return Ok(());
        }
        self.own_tree(folder)
    }

    fn own_tree(self, path: &Path) -> io::Result<()> {
        if fs::symlink_metadata(path)?.is_dir() {
            for entry in fs::read_dir(path)? {
                self.own_tree(&entry?.path())?;
            }
        }
        lchown(path, Some(self.uid), Some(self.gid))
    }
}
