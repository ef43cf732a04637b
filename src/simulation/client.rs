//! Clients of a simulated replica: they send commands and keep what they are answered.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::store::Store;
use super::{below, random};
use crate::domain::idempotency::IdempotencyKey;
use crate::domain::ids::{DeliveryId, JobId, WorkerId};
use crate::domain::transition::JobEvent;
use crate::forward::Router;
use crate::security::Caller;
use crate::services::command::{Command, Commands, PollJob, SubmitOnce};

/// What a client sends: one of each lane's, and one that must not be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Remove,
    Retry,
    Poll,
    Submit,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Remove, Self::Retry, Self::Poll, Self::Submit];

    /// As [`Command::repeatable`] has it.
    pub fn repeatable(self) -> bool {
        self.command(Uuid::nil(), Duration::ZERO).repeatable()
    }

    /// The command with that name.
    fn command(self, id: Uuid, wait: Duration) -> Command {
        match self {
            Self::Remove => Command::RemoveWorker(WorkerId(id)),
            Self::Retry => Command::ApplyEvent(JobId(id), JobEvent::Retry),
            Self::Poll => {
                Command::PollJob(PollJob { worker_id: WorkerId(Uuid::nil()), delivery: DeliveryId(id), wait })
            }
            Self::Submit => Command::SubmitOnce(Box::new(SubmitOnce {
                key: IdempotencyKey { scope: String::new(), key: id.to_string() },
                fingerprint: Vec::new(),
                jobs: Vec::new(),
            })),
        }
    }
}

/// Sends commands of one kind until its process ends.
pub(super) async fn run(host: u64, kind: Kind, router: Arc<Router>, store: Store) {
    loop {
        tokio::time::sleep(Duration::from_millis(5 + below(60))).await;
        let id = Uuid::from_u64_pair(random(), random());
        let since = {
            let mut state = store.lock();
            state.ledger.asked(id, host, kind);
            state.now
        };
        let wait = Duration::from_millis(below(600));
        let answer = router.execute(Caller::Anybody, kind.command(id, wait)).await;
        store.lock().ledger.answered(id, since, answer.map(drop));
    }
}
