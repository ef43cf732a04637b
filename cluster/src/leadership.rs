//! Who leads, as this replica may act on it.
//!
//! ```text
//!              elected, epoch committed
//!   Following ──────────────────────────► Leading(Fresh) ◄──┐
//!       ▲                                      │            │ quorum answers
//!       │                      half a lease    ▼            │
//!       ├──────────────────────────────── Leading(Stale) ───┘
//!       │   a whole lease without quorum (and then no heartbeats, so that
//!       │   those who hear them can elect another), or another leader
//!       ▼
//!    Stopped   (the Raft core ended: full disk, I/O error, removed, shut down)
//! ```
//!
//! Invariants: `Leading` is published only after the `LeaderEpoch` entry that
//! gives its epoch is committed, so each epoch is published by one replica; a
//! leader that was without a quorum for a whole lease gets a new epoch. It does
//! not fence: storage does, by the epoch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{Instant as _, ServerState};
use serde::Serialize;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::Addresses;
use crate::control::{ControlCommand, ControlOutcome};
use crate::raft::{Raft, Role};
use crate::transport::Contact;

/// Pause before a claim that failed is repeated: openraft refuses it until a quorum has answered the new leader.
const RETRY: Duration = Duration::from_millis(5);

/// Time between heartbeats while a claim is under way. What openraft has not heard of by then, it hears with the next one,
/// and everybody waits for the new epoch.
const PULSE: Duration = Duration::from_millis(3);

/// How soon the return of a quorum is noticed.
const RECOVER: Duration = Duration::from_millis(10);

/// For how many leases a leader without a quorum is silent, before it speaks up for one.
const SILENT_LEASES: u32 = 4;

/// What this replica is to the cluster right now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Leadership {
    /// Another replica leads, or nobody does as far as this one knows.
    Following { leader: Option<Leader> },
    /// This replica leads, with `epoch` as its fencing token.
    Leading { term: u64, epoch: u64, cluster_id: Uuid, quorum: Quorum },
    /// The Raft core has ended for good, and the process should end too, unless it stays to say that this replica
    /// was removed.
    Stopped { reason: String, removed: bool },
}

/// Whether the leader heard from a quorum lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Quorum {
    /// Within half an election timeout.
    Fresh,
    /// Not within half an election timeout: start nothing new.
    Stale,
}

/// The leader and where to reach it. `http` and `grpc` may be empty for a
/// moment, until a new member has announced them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leader {
    pub id: u64,
    pub addresses: Addresses,
}

impl Leadership {
    /// True while leading with a quorum.
    pub fn is_leading(&self) -> bool {
        matches!(self, Leadership::Leading { quorum: Quorum::Fresh, .. })
    }
}

/// A committed claim: this replica leads `term` with `epoch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    term: u64,
    epoch: u64,
    cluster_id: Uuid,
    /// Just before the entry was proposed; a quorum has answered since.
    proven: Instant,
}

/// What one look at the metrics shows.
#[derive(Debug, Clone)]
struct Seen {
    now: Instant,
    /// The term in which openraft holds this replica for the leader.
    leads: Option<u64>,
    /// That term, and when it was first seen.
    elected: Option<(u64, Instant)>,
    /// When the last message that a quorum answered was sent.
    acked: Option<Instant>,
    /// The leader heard within its lease, and until when.
    follows: Option<(Leader, Instant)>,
}

/// The decision that follows from it.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    publish: Leadership,
    /// The claim to go on with; none means it is void.
    claim: Option<Claim>,
    /// Whether an epoch must be claimed now.
    propose: bool,
    /// Whether the others may hear that this replica leads.
    speaks: bool,
    /// When time alone changes the verdict.
    until: Option<Instant>,
}

/// Decides what to publish. Pure.
fn judge(seen: &Seen, claim: Option<Claim>, lease: Duration) -> Verdict {
    let Some(term) = seen.leads else {
        let (leader, until) = seen.follows.clone().unzip();
        let publish = Leadership::Following { leader };
        return Verdict { publish, claim: None, propose: false, speaks: true, until };
    };
    let claim = claim.filter(|claim| claim.term == term);
    // A quorum has voted for it, which is an answer too.
    let elected = seen.elected.map(|(_, at)| at);
    let proven = seen.acked.max(claim.map(|claim| claim.proven)).max(elected);
    let stale_at = proven.map(|proven| proven + lease / 2);
    let lost_at = proven.map(|proven| proven + lease);
    let lost = lost_at.is_some_and(|at| at <= seen.now);
    match claim.filter(|_| !lost) {
        Some(claim) => {
            let stale = stale_at.is_some_and(|at| at <= seen.now);
            let quorum = if stale { Quorum::Stale } else { Quorum::Fresh };
            let Claim { term, epoch, cluster_id, .. } = claim;
            Verdict {
                publish: Leadership::Leading { term, epoch, cluster_id, quorum },
                claim: Some(claim),
                propose: false,
                speaks: true,
                until: if stale { lost_at.min(Some(seen.now + RECOVER)) } else { stale_at },
            }
        }
        None => Verdict {
            publish: Leadership::Following { leader: None },
            claim: None,
            // Right after the election no quorum has answered yet; the claim
            // itself asks it.
            propose: !lost,
            speaks: !lost || lost_at.is_some_and(|at| speaks(seen.now.saturating_duration_since(at), lease)),
            until: if lost { Some(seen.now + RECOVER) } else { lost_at },
        },
    }
}

/// Whether a leader that has been without a quorum for `lost` sends heartbeats. One that is heard and hears nobody would
/// keep the others from electing another; but where they are too few to do so, they need it to speak up now and then.
fn speaks(lost: Duration, lease: Duration) -> bool {
    let cycle = lease * (SILENT_LEASES + 1);
    lost.as_nanos() % cycle.as_nanos().max(1) >= (lease * SILENT_LEASES).as_nanos()
}

/// Watches openraft and publishes [`Leadership`] until the core ends.
pub(crate) struct Watcher {
    pub node_id: u64,
    pub raft: Raft,
    pub contact: Arc<Contact>,
    pub lease: Duration,
    /// The id of the cluster, should this replica be its first leader ever.
    pub new_cluster_id: Uuid,
    /// The term whose leadership this replica has handed on.
    pub given_up: Arc<AtomicU64>,
    pub publish: watch::Sender<Leadership>,
    pub stop: CancellationToken,
}

impl Watcher {
    /// Runs until shutdown or the end of the Raft core.
    pub async fn run(self) {
        // These change with role, term and members alone. The full metrics are
        // sent anew with every tick and would wake this task 100 times a second.
        let mut roles = self.raft.server_metrics();
        let mut claim: Option<Claim> = None;
        let mut proposal: Option<oneshot::Receiver<Option<Claim>>> = None;
        let mut speaks = true;
        let mut elected = None;
        loop {
            let role = roles.borrow_watched().clone();
            let seen = self.look(&role, elected);
            elected = seen.elected;
            let verdict = judge(&seen, claim, self.lease);
            claim = verdict.claim;
            self.show(verdict.publish);
            if std::mem::replace(&mut speaks, verdict.speaks) != verdict.speaks {
                self.raft.runtime_config().heartbeat(verdict.speaks);
            }
            if verdict.propose && proposal.is_none() {
                proposal = Some(self.propose(role.vote.leader_id.term));
            }
            // In order of writing, so that a run can be repeated; each looks at everything anew.
            tokio::select! {
                biased;
                changed = roles.changed() => if changed.is_err() {
                    return self.stopped();
                },
                () = wait_until(verdict.until) => {}
                () = self.contact.changed() => {}
                outcome = answer(&mut proposal) => {
                    proposal = None;
                    claim = outcome.or(claim);
                }
                () = self.stop.cancelled() => {
                    return self.show(Leadership::Stopped { reason: "it was shut down".to_owned(), removed: false });
                }
            }
        }
    }

    fn look(&self, role: &Role, elected: Option<(u64, Instant)>) -> Seen {
        let now = Instant::now();
        let membership = role.membership_config.membership();
        let leads = (role.state == ServerState::Leader).then_some(role.vote.leader_id.term);
        let elected = leads.map(|term| elected.filter(|(of, _)| *of == term).unwrap_or((term, now)));
        let alone = membership.voter_ids().all(|id| id == self.node_id);
        let acked = match leads {
            Some(_) if alone => Some(now),
            Some(_) => self.last_acked(now),
            None => None,
        };
        let heard = self.contact.current();
        let follows = heard.filter(|(id, _)| role.current_leader == Some(*id));
        let follows = follows.map(|(id, until)| {
            let addresses = membership.get_node(&id).cloned().unwrap_or_default();
            (Leader { id, addresses }, until)
        });
        Seen { now, leads, elected, acked, follows }
    }

    fn last_acked(&self, now: Instant) -> Option<Instant> {
        let metrics = self.raft.data_metrics();
        let acked = metrics.borrow_watched().last_quorum_acked;
        acked.and_then(|at| now.checked_sub(at.elapsed()))
    }

    /// Commits a `LeaderEpoch` in its own task, which outlives a slow quorum.
    fn propose(&self, term: u64) -> oneshot::Receiver<Option<Claim>> {
        let (done, outcome) = oneshot::channel();
        let (raft, leader_id, lease) = (self.raft.clone(), self.node_id, self.lease);
        let (cluster_id, given_up) = (self.new_cluster_id, Arc::clone(&self.given_up));
        tokio::spawn(async move {
            let proven = Instant::now();
            let command = ControlCommand::LeaderEpoch { cluster_id, leader_id };
            let pulse = async {
                loop {
                    sleep(PULSE).await;
                    // Fails when the core has ended, which the write will tell.
                    let _ = raft.trigger().heartbeat().await;
                }
            };
            let written = tokio::select! {
                biased;
                written = timeout(lease * 2, raft.client_write(command)) => written,
                never = pulse => never,
            };
            let claim = match written {
                Ok(Ok(written)) => match written.data {
                    ControlOutcome::Applied { cluster_id: Some(cluster_id) } => {
                        let epoch = written.log_id.index;
                        let committed_in = written.log_id.committed_leader_id().term;
                        let in_force = committed_in == term && given_up.load(Ordering::Acquire) != term;
                        in_force.then_some(Claim { term, epoch, cluster_id, proven })
                    }
                    _ => None,
                },
                Ok(Err(error)) => {
                    tracing::debug!(%error, term, "The claim of leadership was not committed.");
                    None
                }
                Err(_) => None,
            };
            if claim.is_none() {
                sleep(RETRY).await;
            }
            // The watcher may have ended meanwhile; then nobody asks.
            let _ = done.send(claim);
        });
        outcome
    }

    fn show(&self, leadership: Leadership) {
        self.publish.send_if_modified(|shown| {
            // What has stopped stays so, whatever this task still sees.
            if *shown == leadership || matches!(shown, Leadership::Stopped { .. }) {
                return false;
            }
            match &leadership {
                Leadership::Leading { term, epoch, quorum, .. } => {
                    tracing::info!(
                        node_id = self.node_id,
                        term,
                        epoch,
                        ?quorum,
                        "This replica leads the cluster."
                    );
                }
                Leadership::Following { leader } => {
                    let leader = leader.as_ref().map(|leader| leader.id);
                    tracing::info!(node_id = self.node_id, ?leader, "This replica follows.");
                }
                Leadership::Stopped { reason, .. } if self.stop.is_cancelled() => {
                    tracing::info!(node_id = self.node_id, reason, "This replica takes part no more.");
                }
                Leadership::Stopped { reason, .. } => {
                    tracing::error!(node_id = self.node_id, reason, "This replica takes part no more.");
                }
            }
            *shown = leadership;
            true
        });
    }

    fn stopped(&self) {
        let running = self.raft.metrics().borrow_watched().running_state.clone();
        let why = running.err().map_or_else(|| "its task ended".to_owned(), |error| error.to_string());
        self.show(Leadership::Stopped { reason: format!("Raft stopped: {why}"), removed: false });
    }
}

async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn answer(proposal: &mut Option<oneshot::Receiver<Option<Claim>>>) -> Option<Claim> {
    match proposal {
        Some(proposal) => proposal.await.ok().flatten(),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "leadership_tests.rs"]
mod tests;
