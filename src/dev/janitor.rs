//! Removes a folder after the process that used it has ended, however it ended.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::error::DevError;

/// Waits for the pipe to close, then up to about ten seconds for the processes to end, then removes the
/// folder. It signals nobody: the processes are children that the kernel ends together with their parent.
const SCRIPT: &str = r#"
trap '' INT TERM HUP QUIT
cat
folder=$1; shift
for pid in "$@"; do
  tries=0
  while [ "$tries" -lt 200 ] && kill -0 "$pid" 2>/dev/null; do
    tries=$((tries + 1))
    sleep 0.05
  done
done
rm -rf -- "$folder"
"#;

/// A small shell process that watches a pipe whose other end this value holds. When this process dies,
/// even by SIGKILL, or this value is dropped, the pipe closes and the shell cleans up.
#[derive(Debug)]
pub struct Janitor {
    _shell: Child,
}

impl Janitor {
    /// Watches over `folder`, which processes `pids` use until they end.
    ///
    /// # Errors
    /// When no shell can be started.
    pub fn watch(folder: &Path, pids: &[u32]) -> Result<Self, DevError> {
        let shell = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "sh"])
            .arg(folder)
            .args(pids.iter().map(ToString::to_string))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(DevError::io("start a shell"))?;
        Ok(Self { _shell: shell })
    }
}
