//! Which commands travel together.

use super::wire::Lane;
use crate::services::command::Command;

impl Lane {
    /// All lanes, the most urgent first.
    pub(super) const ALL: [Self; 3] = [Self::Prompt, Self::Wait, Self::Bulk];

    /// The lane of a command.
    pub(super) fn of(command: &Command) -> Self {
        match command {
            Command::ApplyEvent(..)
            | Command::Outlook(_)
            | Command::RegisterWorker(_)
            | Command::Heartbeat(_)
            | Command::Attach(_)
            | Command::Hear(_)
            | Command::Detach(..)
            | Command::Control(_)
            | Command::ClearQueue(_)
            | Command::DrainWorker(_)
            | Command::RemoveWorker(_) => Self::Prompt,
            Command::PollJob(_) | Command::ReadChanges(_) => Self::Wait,
            Command::SubmitJobs(_) | Command::SubmitOnce(_) => Self::Bulk,
        }
    }

    /// Its place in arrays that have one element per lane.
    pub(super) fn index(self) -> usize {
        match self {
            Self::Prompt => 0,
            Self::Wait => 1,
            Self::Bulk => 2,
        }
    }
}
