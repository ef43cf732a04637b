//! What clients asked, what they were answered, and what was written: whether the answers are true.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cortex_cluster::simulation::{note, violated};
use uuid::Uuid;

use super::client::Kind;
use crate::services::error::ServiceError;

/// One command and what came of it.
struct Asked {
    host: u64,
    kind: Kind,
    answer: Option<Result<(), ServiceError>>,
}

/// All commands.
#[derive(Default)]
pub(super) struct Ledger {
    asked: BTreeMap<Uuid, Asked>,
    /// The epochs with which each was carried out.
    written: BTreeMap<Uuid, Vec<i64>>,
    /// Since when nothing goes wrong any more.
    pub mended: Option<Duration>,
    /// What was carried out for whom, of what was asked since.
    calm: BTreeSet<(u64, Kind)>,
}

impl Ledger {
    /// A client sends a command.
    pub fn asked(&mut self, id: Uuid, host: u64, kind: Kind) {
        self.asked.insert(id, Asked { host, kind, answer: None });
    }

    /// A command was carried out.
    pub fn wrote(&mut self, id: Uuid, host: u64, epoch: i64) {
        let written = self.written.entry(id).or_default();
        written.push(epoch);
        if let Some(asked) = self.asked.get(&id) {
            note(format!("{:?} of member {} is written by member {host} in {epoch}", asked.kind, asked.host));
        }
    }

    /// A client has its answer to what it sent at `since`.
    pub fn answered(&mut self, id: Uuid, since: Duration, answer: Result<(), ServiceError>) {
        let Some(asked) = self.asked.get_mut(&id) else { return };
        note(format!("{:?} of member {} is answered {answer:?}", asked.kind, asked.host));
        if answer.is_ok() && self.mended.is_some_and(|mended| mended <= since) {
            self.calm.insert((asked.host, asked.kind));
        }
        asked.answer = Some(answer);
        self.check(id);
    }

    /// Whether each kind of command was carried out for each of them, since all was mended.
    pub fn is_calm(&self, members: &[u64]) -> bool {
        members.iter().all(|host| Kind::ALL.iter().all(|kind| self.calm.contains(&(*host, *kind))))
    }

    /// Checks all answers once more: what was written later counts, too.
    pub fn settle(&self) {
        self.asked.keys().for_each(|id| self.check(*id));
    }

    /// How many commands were asked, and how many of them carried out.
    pub fn extent(&self) -> (usize, usize) {
        (self.asked.len(), self.written.len())
    }

    fn check(&self, id: Uuid) {
        let Some(asked) = self.asked.get(&id) else { return };
        let times = self.written.get(&id).map_or(0, Vec::len);
        let most = if asked.kind.repeatable() { usize::MAX } else { 1 };
        let true_to_it = match &asked.answer {
            Some(Ok(())) => (1..=most).contains(&times),
            Some(Err(ServiceError::OutcomeUnknown)) | None => times <= most,
            Some(Err(
                ServiceError::NoLeader | ServiceError::Unavailable { .. } | ServiceError::Overloaded,
            )) => times == 0,
            Some(Err(_)) => false,
        };
        if !true_to_it {
            let Asked { host, kind, answer } = asked;
            violated(format!(
                "{kind:?} of member {host} was answered {answer:?} and carried out {times} times"
            ));
        }
    }
}
