//! What happened in a simulation, and whether it may have: the invariants that hold at every moment.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::time::Duration;

use openraft::entry::RaftPayload;
use openraft::{EntryPayload, ServerState};

use crate::codec;
use crate::control::{ControlCommand, ControlState};
use crate::leadership::Leadership;
use crate::raft::{Entry, LogId, Role};

/// What one committed entry was, and what it made of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Applied {
    term: u64,
    command: Option<ControlCommand>,
    membership: bool,
    state: u64,
}

/// What is known of one member, across its restarts.
#[derive(Debug, Default)]
struct Member {
    term: u64,
    /// The greatest index that it ever applied.
    applied: u64,
    /// What its present process applied last.
    applied_now: Option<u64>,
    epoch: u64,
    shown: Option<Leadership>,
}

/// All of it.
#[derive(Default)]
pub(super) struct History {
    pub now: Duration,
    /// One line for each thing that happened.
    pub lines: Vec<String>,
    pub violation: Option<String>,
    /// Whether each message is a line too.
    pub shows_wire: bool,
    /// One number for all messages.
    wire: u64,
    log: BTreeMap<u64, Applied>,
    members: BTreeMap<u64, Member>,
    /// Who led each term, by Raft's own word.
    terms: BTreeMap<u64, u64>,
    /// Members that any other has known as removed.
    pub removed: BTreeSet<u64>,
    /// Who published each epoch.
    epochs: BTreeMap<u64, u64>,
    /// Since when two replicas lead together.
    contested: BTreeMap<(u64, u64), Duration>,
    /// When a quorum could answer a replica for the last time.
    pub reached: BTreeMap<u64, Duration>,
    /// Values whose setting was acknowledged, by the index that was answered.
    acknowledged: BTreeMap<u64, ControlCommand>,
    /// Values whose setting was refused.
    refused: Vec<ControlCommand>,
}

/// How late a timer may be: a tick of the network and one of the clock.
const SLACK: Duration = Duration::from_millis(20);

impl History {
    /// Takes down what happened.
    pub fn note(&mut self, line: String) {
        self.lines.push(format!("{:>6} ms  {line}", self.now.as_millis()));
    }

    /// Takes down what may not be.
    pub fn violated(&mut self, what: String) {
        self.note(format!("VIOLATED: {what}"));
        self.violation.get_or_insert(what);
    }

    /// A host sent something to another. What it was does not count: HTTP tells the real date.
    pub fn wrote(&mut self, from: Option<SocketAddr>, to: Option<SocketAddr>) {
        self.wire = digest(&(self.wire, self.now, from, to));
        if self.shows_wire {
            self.note(format!("{from:?} sends to {to:?}"));
        }
    }

    /// One number for all that happened, to the last message.
    pub fn digest(&self) -> u64 {
        digest(&(&self.lines, self.wire))
    }

    /// A replica applied an entry or took a snapshot over.
    pub fn applied(&mut self, id: u64, log_id: LogId, entry: Option<&Entry>, control: &ControlState) {
        let index = log_id.index;
        let leader = log_id.committed_leader_id();
        let state = codec::encode(control).map(|bytes| digest(&bytes)).unwrap_or_default();
        let member = self.members.entry(id).or_default();
        let before = member.applied_now.replace(index);
        member.applied = member.applied.max(index);
        let in_order = match entry {
            Some(_) => before.is_none_or(|before| before + 1 == index),
            None => before.is_none_or(|before| before < index),
        };
        let Some(entry) = entry else {
            self.note(format!("member {id} took a snapshot over, up to {log_id}"));
            if !in_order {
                self.violated(format!("member {id} went back from {before:?} to a snapshot of {index}"));
            }
            match self.log.get(&index) {
                Some(known) if known.state != state => {
                    self.violated(format!("member {id} took over a state of {index} that nobody else has"))
                }
                Some(_) => {}
                None => self
                    .violated(format!("member {id} took over a snapshot of {index}, which nobody applied")),
            }
            return;
        };
        let command = match &entry.payload {
            EntryPayload::Normal(command) => Some(command.clone()),
            _ => None,
        };
        let membership = entry.payload.get_membership().is_some();
        let applied = Applied { term: leader.term, command, membership, state };
        self.note(format!("member {id} applied {log_id}: {} -> {state:016x}", entry.payload));
        if !in_order {
            self.violated(format!("member {id} applied {index} after {before:?}"));
        }
        match self.log.get(&index) {
            Some(known) if *known != applied => {
                self.violated(format!("member {id} applied at {index} {applied:?}, another {known:?}"));
            }
            Some(_) => {}
            None => {
                self.log.insert(index, applied);
            }
        }
    }

    /// A process of a member began to run, which has applied `applied` when it answers for the first time.
    pub fn started(&mut self, id: u64, term: u64, applied: Option<u64>) {
        let member = self.members.entry(id).or_default();
        let (known_term, known) = (member.term, member.applied);
        self.note(format!("member {id} runs, in term {term}, applied {applied:?}"));
        if term < known_term {
            self.violated(format!("member {id} went back from term {known_term} to {term} by a restart"));
        }
        if applied.unwrap_or_default() < known {
            self.violated(format!("member {id} went back from {known} to {applied:?} by a restart"));
        }
    }

    /// The process of a member ended.
    pub fn ended(&mut self, id: u64) {
        let member = self.members.entry(id).or_default();
        member.applied_now = None;
        if member.shown.take().is_some() {
            self.note(format!("member {id} is gone"));
        }
    }

    /// Whether the member has ever applied an entry.
    pub fn has_applied(&self, id: u64) -> bool {
        self.members.get(&id).is_some_and(|member| member.applied > 0)
    }

    /// A member lost its disk, and with it its past.
    pub fn wiped(&mut self, id: u64) {
        self.members.remove(&id);
    }

    /// Looks at one member that runs.
    pub fn look(
        &mut self,
        id: u64,
        role: &Role,
        applied: Option<u64>,
        control: &ControlState,
        shown: Leadership,
    ) {
        let term = role.vote.leader_id.term;
        let member = self.members.entry(id).or_default();
        let (known_term, known_epoch) = (member.term, member.epoch);
        member.term = member.term.max(term);
        member.epoch = member.epoch.max(control.epoch);
        member.applied = member.applied.max(applied.unwrap_or_default());
        if term < known_term {
            self.violated(format!("member {id} went back from term {known_term} to {term}"));
        }
        if control.epoch < known_epoch {
            self.violated(format!("member {id} went back from epoch {known_epoch} to {}", control.epoch));
        }
        self.removed.extend(&control.removed);
        if role.state == ServerState::Leader {
            let leader = *self.terms.entry(term).or_insert(id);
            if leader != id {
                self.violated(format!("members {leader} and {id} both led term {term}"));
            }
        }
        if self.members.get(&id).is_some_and(|member| member.shown.as_ref() != Some(&shown)) {
            self.note(format!("member {id} is {shown:?}"));
            if let Leadership::Leading { epoch, term, .. } = shown {
                self.published(id, term, epoch);
            }
            self.members.entry(id).or_default().shown = Some(shown);
        }
    }

    /// A member published that it leads with `epoch`.
    fn published(&mut self, id: u64, term: u64, epoch: u64) {
        if let Some(other) = self.epochs.get(&epoch).copied() {
            if other != id {
                self.violated(format!("members {other} and {id} both led with epoch {epoch}"));
            }
            return;
        }
        let newest = self.epochs.last_key_value().map(|(newest, _)| *newest);
        if newest > Some(epoch) {
            self.violated(format!("member {id} first led with epoch {epoch} after {newest:?}"));
        }
        self.epochs.insert(epoch, id);
        let claim = self.log.get(&epoch);
        let committed = claim.is_some_and(|claim| {
            claim.term == term
                && matches!(claim.command, Some(ControlCommand::LeaderEpoch { leader_id, .. }) if leader_id == id)
        });
        if !committed {
            self.violated(format!("member {id} led with epoch {epoch}, where the log has {claim:?}"));
        }
    }

    /// Checks what concerns several members, once all were looked at.
    pub fn look_at_all(&mut self, lease: Duration) {
        let leads = |member: &Member| matches!(member.shown, Some(Leadership::Leading { .. }));
        let leading: Vec<u64> =
            self.members.iter().filter(|(_, member)| leads(member)).map(|(id, _)| *id).collect();
        // Pair by pair: two hand-overs in a row make three leaders, of which no two lead together for long.
        let pairs: BTreeSet<(u64, u64)> = leading
            .iter()
            .flat_map(|a| leading.iter().map(move |b| (*a, *b)).filter(|(a, b)| a < b))
            .collect();
        self.contested.retain(|pair, _| pairs.contains(pair));
        for (a, b) in pairs {
            let since = *self.contested.entry((a, b)).or_insert(self.now);
            if since.saturating_add(lease + SLACK) < self.now {
                self.violated(format!("members {a} and {b} lead at the same time, for longer than a lease"));
            }
        }
        for id in leading {
            if self.reached.get(&id).is_some_and(|at| *at + lease + SLACK < self.now) {
                self.violated(format!("member {id} leads, though it was cut off for longer than a lease"));
            }
        }
    }

    /// A change was answered as committed at `index`.
    pub fn acknowledged(&mut self, index: u64, command: ControlCommand) {
        if self.log.get(&index).is_none_or(|applied| applied.command.as_ref() != Some(&command)) {
            self.violated(format!(
                "{command:?} was answered as committed at {index}, where something else is"
            ));
        }
        self.acknowledged.insert(index, command);
    }

    /// A change was answered as not made.
    pub fn refused(&mut self, command: ControlCommand) {
        self.refused.push(command);
    }

    /// Checks the answers against the log, once all is quiet.
    pub fn settle(&mut self, applied: u64) {
        let lost = self.acknowledged.keys().find(|index| **index > applied).copied();
        if let Some(index) = lost {
            self.violated(format!("the change at {index} was acknowledged; {applied} is the end"));
        }
        let made = |command: &ControlCommand| {
            self.log.values().any(|applied| applied.command.as_ref() == Some(command))
        };
        if let Some(command) = self.refused.iter().find(|command| made(command)).cloned() {
            self.violated(format!("{command:?} was refused and made all the same"));
        }
    }

    /// How many epochs, entries and answers there were.
    pub fn extent(&self) -> (usize, usize, usize) {
        (self.epochs.len(), self.log.len(), self.acknowledged.len())
    }
}

fn digest(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}
