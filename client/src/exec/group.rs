//! The process group of a job.

use std::time::Duration;

use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// How often a group that was asked to end is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Kills what is left of a process group when it goes out of scope.
///
/// The group's number cannot be given to other processes while a member lives.
/// Once the last one is gone and reaped it could in theory be reused, so the
/// guard should not be kept beyond the job.
#[derive(Debug)]
pub(super) struct ProcessGroup(Pid);

impl ProcessGroup {
    /// The group that the process `leader` was started in as its leader.
    pub(super) fn led_by(leader: u32) -> Option<Self> {
        i32::try_from(leader).ok().filter(|&id| id > 1).map(|id| Self(Pid::from_raw(id)))
    }

    /// Asks all members to end and waits until they have, or `grace` has
    /// passed.
    pub(super) async fn terminate(&self, grace: Duration) {
        self.signal(Signal::SIGTERM);
        let _ = tokio::time::timeout(grace, async {
            while self.is_alive() {
                tokio::time::sleep(LOOK).await;
            }
        })
        .await;
    }

    /// Kills all members.
    pub(super) fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    fn is_alive(&self) -> bool {
        killpg(self.0, None) != Err(Errno::ESRCH)
    }

    fn signal(&self, signal: Signal) {
        // The only failure that occurs is that nobody is left.
        let _ = killpg(self.0, signal);
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        self.kill();
    }
}
