//! Whether a replica may take part, and who founds the cluster.
//!
//! A replica without log and vote is either new or has lost its disk. The
//! latter may have voted and acknowledged entries that it knows no more; taking
//! part under its old id could undo what the cluster holds for committed. So an
//! empty replica keeps its [`Gate`] closed until others have told it that it is
//! new. They know by the `Joined` mark that the leader commits once a member's
//! log is durable.
//!
//! It is new for certain when a leader with a quorum has no mark of it; when no
//! leader ever existed; or when so many voters answered that a mark, which lies
//! on a majority, can't have escaped all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::config::{Addresses, ClusterConfig};
use crate::control::ControlState;
use crate::leadership::Leadership;
use crate::raft::Raft;
use crate::transport::proto::GreetReply;
use crate::transport::{Gate, PeerError, Peers};

/// Longest wait for the answer to a greeting.
const GREETING: Duration = Duration::from_millis(300);
/// Pause between rounds of greetings while waiting to be admitted.
const ROUND: Duration = Duration::from_millis(50);
/// The same, once the wait is no longer brief; and while announcing addresses.
const SLOW_ROUND: Duration = Duration::from_millis(250);
/// How long the founder waits for the last of its peers once most have answered.
const STRAGGLERS: Duration = Duration::from_millis(500);
/// How often a member looks around once it is known to all.
const LOOK: Duration = Duration::from_secs(2);
/// How often a wait is mentioned in the log.
const REMIND: Duration = Duration::from_secs(5);

/// What an empty replica does next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Decision {
    /// It is new: open the gate and wait for the leader.
    Admit,
    /// Found the cluster with these members.
    Found,
    /// Ask again.
    Wait(&'static str),
    /// It must not take part.
    Refuse(String),
}

/// What a round of greetings taught.
struct Round<'a> {
    node_id: u64,
    /// Number of first members, this one included.
    seeds: usize,
    may_found: bool,
    /// True once the founder has waited long enough for the last of its peers.
    patient: bool,
    answers: &'a [GreetReply],
}

/// Decides about an empty replica. Pure.
fn decide(round: &Round<'_>) -> Decision {
    let Round { node_id, answers, .. } = *round;
    if let Some(refusal) = removed(node_id, answers) {
        return Decision::Refuse(refusal);
    }
    if let Some(by) = answers.iter().find(|answer| answer.joined) {
        return Decision::Refuse(format!(
            "member {} knows member {node_id} as one that had joined, but its log is empty now; \
             remove member {node_id} from the cluster and start with a new id",
            by.node_id
        ));
    }
    let initialised: Vec<&GreetReply> = answers.iter().filter(|answer| answer.initialised).collect();
    if initialised.is_empty() {
        return decide_founding(round);
    }
    if initialised.iter().any(|answer| answer.leading) {
        return Decision::Admit;
    }
    // Those who have voted for the founder, and no more, know of no leader either.
    let unled = initialised.iter().all(|answer| answer.virgin || answer.empty);
    if unled && initialised.iter().any(|answer| answer.virgin) {
        return Decision::Admit;
    }
    let voters: BTreeSet<u64> = initialised.iter().flat_map(|answer| answer.voters.iter().copied()).collect();
    let majority = voters.len() / 2 + 1;
    let informed = initialised.iter().filter(|answer| voters.contains(&answer.node_id)).count();
    if informed > voters.len().saturating_sub(majority) {
        return Decision::Admit;
    }
    Decision::Wait("the cluster has no leader and too few members answer to tell whether this replica is new")
}

fn decide_founding(round: &Round<'_>) -> Decision {
    if !round.may_found {
        return Decision::Wait("no reachable member has a cluster yet");
    }
    let present = round.answers.len() + 1;
    // Without a majority the new cluster could do nothing, and a peer that is
    // silent may belong to one that exists.
    if present == round.seeds || (round.patient && present > round.seeds / 2) {
        return Decision::Found;
    }
    Decision::Wait("too few of cluster.seeds answer to found the cluster")
}

fn removed(node_id: u64, answers: &[GreetReply]) -> Option<String> {
    let by = answers.iter().find(|answer| answer.removed)?;
    Some(format!(
        "member {node_id} was removed from the cluster, says member {}; ids are never used twice",
        by.node_id
    ))
}

/// Brings this replica into its cluster and makes its addresses known there.
pub(crate) struct Joiner {
    pub config: ClusterConfig,
    pub raft: Raft,
    pub peers: Arc<Peers>,
    pub gate: Arc<Gate>,
    pub control: watch::Receiver<Arc<ControlState>>,
    pub leadership: watch::Sender<Leadership>,
}

impl Joiner {
    /// One round before anything else, so that a replica that must not take
    /// part fails to start instead of failing later.
    ///
    /// # Errors
    /// Why it must not take part.
    pub async fn first_round(&self, pristine: bool) -> Result<(), String> {
        let answers = self.greet_all().await;
        let refusal = match pristine {
            true => match decide(&self.round(&answers, false)) {
                Decision::Refuse(reason) => Some(reason),
                _ => None,
            },
            false => removed(self.config.node_id, &answers),
        };
        refusal.map_or(Ok(()), Err)
    }

    /// Runs as long as this replica does, or until it may not take part any more.
    pub async fn run(self, pristine: bool) {
        let outcome = match pristine {
            true => self.be_admitted().await,
            false => Ok(()),
        };
        let outcome = match outcome {
            Ok(()) => {
                self.gate.open();
                self.stay().await.map_err(|reason| (reason, true))
            }
            Err(reason) => Err((reason, false)),
        };
        if let Err((reason, removed)) = outcome {
            tracing::error!(node_id = self.config.node_id, reason, "This replica may not take part.");
            self.leadership.send_replace(Leadership::Stopped { reason, removed });
            if let Err(error) = self.raft.shutdown().await {
                tracing::warn!(%error, "The Raft core did not end cleanly.");
            }
        }
    }

    async fn be_admitted(&self) -> Result<(), String> {
        let started = Instant::now();
        let mut mostly_present: Option<Instant> = None;
        let mut reminded = started;
        loop {
            let answers = self.greet_all().await;
            if (answers.len() + 1) > self.config.seeds.len() / 2 {
                mostly_present.get_or_insert_with(Instant::now);
            }
            let patient = mostly_present.is_some_and(|since| since.elapsed() > STRAGGLERS);
            match decide(&self.round(&answers, patient)) {
                Decision::Admit => return Ok(()),
                Decision::Refuse(reason) => return Err(reason),
                Decision::Found => return self.found(&answers).await,
                Decision::Wait(reason) if reminded.elapsed() > REMIND => {
                    reminded = Instant::now();
                    tracing::warn!(
                        node_id = self.config.node_id,
                        reason,
                        "This replica waits to join its cluster."
                    );
                }
                Decision::Wait(_) => {}
            }
            sleep(if started.elapsed() < REMIND { ROUND } else { SLOW_ROUND }).await;
        }
    }

    async fn found(&self, answers: &[GreetReply]) -> Result<(), String> {
        let mut members: BTreeMap<u64, Addresses> = BTreeMap::new();
        for seed in &self.config.seeds {
            let announced = answers.iter().find(|answer| answer.node_id == seed.id);
            let announced = announced.and_then(|answer| answer.addresses.clone()).map(Addresses::from);
            let unknown = || Addresses { peer: seed.peer.clone(), ..Addresses::default() };
            members.insert(seed.id, announced.unwrap_or_else(unknown));
        }
        members.insert(self.config.node_id, self.config.advertise.clone());
        tracing::info!(members = members.len(), "This replica founds the cluster.");
        self.raft
            .initialize(members)
            .await
            .map_err(|error| format!("the cluster could not be founded: {error}"))
    }

    /// Announces this member until the cluster knows its addresses, follows the
    /// addresses of the others, and notices its own removal.
    async fn stay(&self) -> Result<(), String> {
        let own_id = self.config.node_id;
        let mut control = self.control.clone();
        let mut announced = false;
        loop {
            if control.borrow_and_update().removed.contains(&own_id) {
                return Err(format!("member {own_id} was removed from the cluster"));
            }
            let known = self.learn_members();
            let recorded = known.as_ref() == Some(&self.config.advertise);
            // Nobody tells a removed member that it was removed unless it asks.
            let lost = *self.leadership.borrow() == Leadership::Following { leader: None };
            if !recorded || (announced && lost) {
                let answers = self.greet_all().await;
                if let Some(reason) = removed(own_id, &answers) {
                    return Err(reason);
                }
            }
            announced |= recorded;
            let pause = sleep(if announced { LOOK } else { SLOW_ROUND });
            tokio::select! {
                biased;
                changed = control.changed() => if changed.is_err() { return Ok(()) },
                () = pause => {}
            }
        }
    }

    /// Takes the addresses of the members over; returns this member's.
    fn learn_members(&self) -> Option<Addresses> {
        let config = self.raft.metrics().borrow_watched().membership_config.clone();
        for (id, node) in config.membership().nodes() {
            self.peers.learn(*id, &node.peer);
        }
        config.membership().get_node(&self.config.node_id).cloned()
    }

    fn round<'a>(&self, answers: &'a [GreetReply], patient: bool) -> Round<'a> {
        Round {
            node_id: self.config.node_id,
            seeds: self.config.seeds.len(),
            may_found: self.config.may_initialise(),
            patient,
            answers,
        }
    }

    async fn greet_all(&self) -> Vec<GreetReply> {
        let greetings: FuturesUnordered<_> = self
            .peers
            .known()
            .into_iter()
            .map(|id| async move { (id, self.peers.greet(id, GREETING).await) })
            .collect();
        let answers = greetings.filter_map(|(id, answer)| async move {
            match answer {
                Ok(answer) => Some(answer),
                Err(error @ PeerError::Refused { .. }) => {
                    tracing::warn!(member = id, %error, "A member refuses to speak to this replica.");
                    None
                }
                Err(_) => None,
            }
        });
        answers.collect().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer of a member that has neither log nor vote.
    fn empty(node_id: u64) -> GreetReply {
        GreetReply { node_id, ..GreetReply::default() }
    }

    /// An answer of a member of a running cluster of three.
    fn member(node_id: u64) -> GreetReply {
        GreetReply { initialised: true, voters: vec![1, 2, 3], ..empty(node_id) }
    }

    fn asked_by(node_id: u64, patient: bool, answers: &[GreetReply]) -> Decision {
        decide(&Round { node_id, seeds: 3, may_found: node_id == 1, patient, answers })
    }

    #[test]
    fn only_the_lowest_seed_founds_and_only_with_a_majority() {
        assert_eq!(asked_by(1, false, &[empty(2), empty(3)]), Decision::Found);
        assert!(matches!(asked_by(1, false, &[empty(2)]), Decision::Wait(_)));
        assert_eq!(asked_by(1, true, &[empty(2)]), Decision::Found);
        assert!(matches!(asked_by(1, true, &[]), Decision::Wait(_)));
        assert!(matches!(asked_by(2, true, &[empty(1), empty(3)]), Decision::Wait(_)));
    }

    #[test]
    fn nobody_founds_where_a_cluster_exists() {
        assert!(!matches!(asked_by(1, true, &[member(2)]), Decision::Found));
        assert!(!matches!(asked_by(1, true, &[member(2), empty(3)]), Decision::Found));
    }

    #[test]
    fn a_replica_that_anyone_knows_as_joined_or_removed_is_refused() {
        let marked = GreetReply { joined: true, ..member(2) };
        let leader = GreetReply { leading: true, ..member(1) };
        assert!(matches!(asked_by(3, false, &[leader.clone(), marked]), Decision::Refuse(_)));
        let removed = GreetReply { removed: true, ..member(2) };
        assert!(matches!(asked_by(3, false, &[leader, removed]), Decision::Refuse(_)));
    }

    #[test]
    fn a_new_replica_is_admitted_by_the_leader_or_by_a_cluster_that_never_had_one() {
        let leader = GreetReply { leading: true, ..member(1) };
        assert_eq!(asked_by(3, false, &[leader]), Decision::Admit);
        let founder = GreetReply { virgin: true, ..member(1) };
        assert_eq!(asked_by(3, false, &[founder.clone(), empty(2)]), Decision::Admit);
        assert!(
            matches!(asked_by(3, false, &[founder, member(2)]), Decision::Admit),
            "both others know of no mark"
        );
    }

    #[test]
    fn who_has_only_voted_does_not_keep_others_from_a_cluster_that_never_had_a_leader() {
        let asked = |answers: &[GreetReply]| {
            decide(&Round { node_id: 5, seeds: 5, may_found: false, patient: true, answers })
        };
        let voters = vec![1, 2, 3, 4, 5];
        let founder = GreetReply { virgin: true, voters: voters.clone(), ..member(1) };
        let has_voted = GreetReply { empty: true, voters: vec![], ..member(4) };
        assert_eq!(asked(&[founder.clone(), has_voted.clone()]), Decision::Admit);
        assert!(matches!(asked(&[has_voted]), Decision::Wait(_)), "nobody says that there was no leader");
        assert!(matches!(asked(&[founder, GreetReply { voters, ..member(4) }]), Decision::Wait(_)));
    }

    #[test]
    fn one_member_without_a_leader_can_not_vouch_for_an_empty_replica() {
        assert!(matches!(asked_by(3, true, &[member(2)]), Decision::Wait(_)));
        assert!(matches!(asked_by(3, true, &[member(2), empty(1)]), Decision::Wait(_)));
        assert_eq!(asked_by(3, true, &[member(2), member(1)]), Decision::Admit);
    }
}
