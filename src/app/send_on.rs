//! Workers that are better off at another replica are sent there: the next session that they open is elsewhere.

use std::sync::Arc;
use std::time::Duration;

use cortex_cluster::{Leadership, Node};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::api::grpc::ServingStatus;
use crate::services::sessions::{Closing, Sessions};

/// For how many of the longest election timeouts workers stay where no leader is known. The others elect one within two
/// from then on, unless their votes are split.
const ELECTION: u32 = 3;
/// The same where it was this replica that led: as a rule nobody has answered it for one already.
const REPLACEMENT: u32 = 1;
/// For how many election timeouts a leader must be known until its loss is one like the first. If leaders come and go faster,
/// workers stay for twice as long each time: hundreds that move at once cost replicas what they need to elect one that lasts.
const STEADY: u32 = 20;
/// How often the time is doubled at the most.
const MOST_DOUBLINGS: u32 = 3;

/// Sends workers on once this replica is no member any more.
pub(super) async fn when_removed(node: Node, sessions: Arc<Sessions>, serving: ServingStatus) {
    let mut leadership = node.leadership();
    let removed = |now: &Leadership| matches!(now, Leadership::Stopped { removed: true, .. });
    if leadership.wait_for(removed).await.is_ok() {
        tracing::error!(
            "This replica was removed from the cluster; it serves nobody any more and can be stopped."
        );
        sessions.stop();
        serving.set(false).await;
    }
}

/// Sends workers on whenever this replica has known no leader for longer than an election takes, until `stop`: it may be
/// cut off from others that know one. Those who come later wait for a leader with their opening. `election_timeout` is the
/// longest one.
pub(super) async fn without_leader(
    mut leadership: watch::Receiver<Leadership>,
    has_peers: impl Fn() -> bool,
    sessions: Arc<Sessions>,
    election_timeout: Duration,
    stop: CancellationToken,
) {
    let (mut led, mut known, mut lost) = (false, None, None);
    let (mut sent_on, mut doublings) = (false, 0);
    loop {
        let leads = match &*leadership.borrow_and_update() {
            Leadership::Leading { .. } => Some(true),
            Leadership::Following { leader: Some(_) } => Some(false),
            Leadership::Following { leader: None } | Leadership::Stopped { .. } => None,
        };
        if let Some(leads) = leads {
            known = known.or_else(|| Some(Instant::now()));
            (led, lost, sent_on) = (leads, None, false);
        } else if lost.is_none() {
            lost = Some(Instant::now());
            if known.take().is_none_or(|since| since.elapsed() >= election_timeout * STEADY) {
                doublings = 0;
            }
        }
        let elections = if led { REPLACEMENT } else { ELECTION };
        let patience = election_timeout * elections * 2_u32.pow(doublings);
        tokio::select! {
            () = stop.cancelled() => return,
            changed = leadership.changed() => if changed.is_err() { return },
            () = sleep_until(lost.unwrap_or_else(Instant::now) + patience), if lost.is_some() && !sent_on => {
                let workers = if has_peers() { sessions.send_on(Closing::NoLeader) } else { 0 };
                if workers > 0 {
                    doublings = (doublings + 1).min(MOST_DOUBLINGS);
                    tracing::warn!(workers, ?patience, "No leader is known here; workers are sent on to other replicas.");
                }
                sent_on = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use cortex_cluster::{Addresses, Leader, Quorum};
    use uuid::Uuid;

    use super::*;
    use crate::domain::ids::{SessionId, WorkerId};
    use crate::security::Caller;

    const ELECTION_TIMEOUT: Duration = Duration::from_millis(300);
    const NOBODY: Leadership = Leadership::Following { leader: None };

    fn elsewhere() -> Leadership {
        Leadership::Following { leader: Some(Leader { id: 2, addresses: Addresses::default() }) }
    }

    fn here() -> Leadership {
        Leadership::Leading { term: 1, epoch: 1, cluster_id: Uuid::nil(), quorum: Quorum::Fresh }
    }

    /// For how many election timeouts a session stays after the leader is lost, if it ends within a hundred. In between there
    /// may be no leader for as long as `gap`.
    async fn stays(before: Leadership, gap: Option<Duration>, has_peers: bool) -> Option<u128> {
        let sessions = Arc::new(Sessions::default());
        let (worker, id) = (WorkerId(Uuid::nil()), SessionId(Uuid::nil()));
        let session = sessions.open(Caller::Anybody, worker, id, [], 1).unwrap();
        let leadership = watch::Sender::new(before);
        let stop = CancellationToken::new();
        let watching = without_leader(
            leadership.subscribe(),
            move || has_peers,
            Arc::clone(&sessions),
            ELECTION_TIMEOUT,
            stop.clone(),
        );
        let watching = tokio::spawn(watching);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!session.is_closed(), "there is a leader");
        let began = Instant::now();
        leadership.send_replace(NOBODY);
        if let Some(gap) = gap {
            tokio::time::sleep(gap).await;
            leadership.send_replace(elsewhere());
        }
        let closed = tokio::time::timeout(100 * ELECTION_TIMEOUT, session.closed()).await;
        stop.cancel();
        watching.await.unwrap();
        closed.ok().map(|()| began.elapsed().as_millis() / ELECTION_TIMEOUT.as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn workers_stay_for_an_election_and_are_sent_on_when_nobody_is_elected() {
        assert_eq!(stays(elsewhere(), None, true).await, Some(3));
        assert_eq!(stays(here(), None, true).await, Some(1));
        for (before, gap) in [(elsewhere(), 2 * ELECTION_TIMEOUT), (here(), ELECTION_TIMEOUT / 2)] {
            assert_eq!(stays(before, Some(gap), true).await, None, "somebody was elected");
        }
        assert_eq!(stays(here(), None, false).await, None, "there is no other replica");
    }

    #[tokio::test(start_paused = true)]
    async fn the_faster_leaders_come_and_go_the_longer_workers_stay() {
        let sessions = Arc::new(Sessions::default());
        let leadership = watch::Sender::new(here());
        let stop = CancellationToken::new();
        let watching = without_leader(
            leadership.subscribe(),
            || true,
            Arc::clone(&sessions),
            ELECTION_TIMEOUT,
            stop.clone(),
        );
        let watching = tokio::spawn(watching);
        let mut stayed = Vec::new();
        for steady in [20, 19, 1, 1, 1, 1, 20] {
            let (worker, id) = (WorkerId(Uuid::nil()), SessionId(Uuid::nil()));
            let session = sessions.open(Caller::Anybody, worker, id, [], 1).unwrap();
            leadership.send_replace(here());
            tokio::time::sleep(ELECTION_TIMEOUT * steady).await;
            let began = Instant::now();
            leadership.send_replace(NOBODY);
            session.closed().await;
            stayed.push(began.elapsed().as_millis() / ELECTION_TIMEOUT.as_millis());
        }
        assert_eq!(stayed, [1, 2, 4, 8, 8, 8, 1]);
        stop.cancel();
        watching.await.unwrap();
    }
}
