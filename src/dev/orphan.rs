//! Stores that an earlier run left behind.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

/// Longest wait for an orphan to obey before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// Ends the process that `pid_file` names if it still is `program` at work in the folder `home`, and
/// removes the file. A process that merely got the same id by chance is left alone.
///
/// Only for the holder of the data directory's lock: nobody else may be using what is in there.
pub(super) async fn end(pid_file: &Path, program: &str, home: &Path, ask: Signal) {
    let Ok(text) = fs::read_to_string(pid_file) else { return };
    let pid = text.lines().next().and_then(|line| line.trim().parse().ok()).filter(|pid| *pid > 1);
    if let Some(pid) = pid.filter(|pid| is_at_work(*pid, program, home)) {
        let _ = kill(Pid::from_raw(pid), ask);
        let deadline = Instant::now() + GRACE;
        while is_at_work(pid, program, home) {
            if Instant::now() > deadline {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
    let _ = fs::remove_file(pid_file);
}

/// A zombie has no working directory, and so is not at work.
fn is_at_work(pid: i32, program: &str, home: &Path) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let at = fs::read_link(format!("/proc/{pid}/cwd")).ok();
    name.trim() == program && at.is_some() && at == home.canonicalize().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// Ends with the test, also when that fails.
    struct Sleeper(Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[tokio::test]
    async fn only_the_same_program_in_the_same_folder_is_ended() {
        let home = std::env::temp_dir().join(format!("cortex-orphan-{}", std::process::id()));
        fs::create_dir_all(&home).unwrap();
        let file = home.join("some.pid");
        let mut bystander = Sleeper(Command::new("sleep").arg("600").current_dir("/").spawn().unwrap());
        fs::write(&file, format!("{}\nmore\n", bystander.0.id())).unwrap();
        end(&file, "sleep", &home, Signal::SIGTERM).await;
        assert!(!file.exists());
        assert!(bystander.0.try_wait().unwrap().is_none(), "a process elsewhere was ended");

        let mut orphan = Sleeper(Command::new("sleep").arg("600").current_dir(&home).spawn().unwrap());
        // A new process gets its name a moment after the call that started it has returned.
        while !is_at_work(orphan.0.id().cast_signed(), "sleep", &home) {
            sleep(Duration::from_millis(1)).await;
        }
        fs::write(&file, orphan.0.id().to_string()).unwrap();
        end(&file, "sleep", &home, Signal::SIGTERM).await;
        assert!(!orphan.0.wait().unwrap().success());
        fs::remove_dir_all(&home).unwrap();
    }
}
