//! Keeps this replica's sessions attached to whoever leads.
//!
//! Deliveries of a leader elsewhere come over the stream that carries commands. So whenever the leader
//! changes, or that stream breaks, every session is attached anew: it shows what it holds, and the leader
//! pushes what got lost on the way. The workers notice nothing, unless no leader is known here for so long that others
//! may well know one: then they are sent on.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::route::Route;
use super::router::Router;
use crate::services::error::{Conflict, ServiceError};
use crate::services::sessions::{Closing, Session, Sessions};

/// Sessions that are attached at a time.
const SIDE_BY_SIDE: usize = 64;
/// Pause before those are tried again that could not be attached.
const TRY_AGAIN: Duration = Duration::from_millis(50);
/// How long sessions stay where no leader is known. An election is over sooner.
const ELECTED_WITHIN: Duration = Duration::from_secs(1);
/// The same where it was this replica that led: it has been without the others for a lease by then, and they have elected
/// one of them.
const REPLACED_WITHIN: Duration = Duration::from_millis(500);

/// Attaches all sessions anew after every change, until `stop`.
pub async fn keep_attached(router: Arc<Router>, sessions: Arc<Sessions>, stop: CancellationToken) {
    let (mut route, way) = router.ways();
    let mut ways = way.subscribe();
    loop {
        let generation = *ways.borrow_and_update();
        let all_attached = attach_all(&router, &sessions, generation).await;
        let again = async {
            if all_attached {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(TRY_AGAIN).await;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ways.changed() => {}
            changed = route.changed() => match changed {
                Ok(()) if route.borrow_and_update().is_known() => way.send_modify(|ways| *ways += 1),
                Ok(()) => {}
                Err(_) => return,
            },
            () = again => {}
        }
    }
}

/// Answers whether all are attached now.
async fn attach_all(router: &Router, sessions: &Sessions, generation: u64) -> bool {
    let behind = sessions.all().into_iter().filter(|session| !session.is_attached(generation));
    futures::stream::iter(behind)
        .map(async |session: Arc<Session>| match session.attach(router).await {
            Ok(()) => true,
            Err(ServiceError::NotFound { .. } | ServiceError::Forbidden(_)) => {
                session.close(Closing::Unknown);
                true
            }
            Err(ServiceError::Conflict(Conflict::Removed(_))) => {
                session.close(Closing::Removed);
                true
            }
            Err(error) => {
                tracing::debug!(worker_id = %session.worker_id, %error, "A session could not be attached yet.");
                session.is_closed()
            }
        })
        .buffer_unordered(SIDE_BY_SIDE)
        .fold(true, async |all, attached| all && attached)
        .await
}

/// Sends workers on to other replicas whenever this one has known no leader for a while, until `stop`.
pub async fn let_go(mut route: watch::Receiver<Route>, sessions: Arc<Sessions>, stop: CancellationToken) {
    let (mut led, mut lost) = (false, None);
    loop {
        match &*route.borrow_and_update() {
            Route::Here(_) => (led, lost) = (true, None),
            Route::There { .. } => (led, lost) = (false, None),
            Route::Nowhere => lost = lost.or_else(|| Some(Instant::now())),
        }
        let patience = if led { REPLACED_WITHIN } else { ELECTED_WITHIN };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = route.changed() => if changed.is_err() { return },
            () = sleep_until(lost.unwrap_or_else(Instant::now) + patience), if lost.is_some() => {
                let workers = sessions.send_on(Closing::NoLeader);
                if workers > 0 {
                    tracing::warn!(workers, ?patience, "No leader is known here; workers are sent on to other replicas.");
                }
                (led, lost) = (false, Some(Instant::now()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::ids::{SessionId, WorkerId};
    use crate::security::Caller;
    use crate::services::command::{Answer, Command, Commands};

    struct Leads;

    impl Commands for Leads {
        fn execute(
            &self,
            _: Caller,
            _: Command,
        ) -> futures::future::BoxFuture<'_, Result<Answer, ServiceError>> {
            Box::pin(async { Err(ServiceError::NoLeader) })
        }
    }

    fn there() -> Route {
        Route::There { id: 2, peer: "127.0.0.1:1".to_owned() }
    }

    /// How long a session stays after the way to a leader is lost, if it ends within ten seconds. In between it may be
    /// unknown for as long as `gap`.
    async fn stays(before: Route, gap: Option<Duration>) -> Option<Duration> {
        let sessions = Arc::new(Sessions::default());
        let (worker, id) = (WorkerId(Uuid::nil()), SessionId(Uuid::nil()));
        let session = sessions.open(Caller::Anybody, worker, id, [], 1).unwrap();
        let route = watch::Sender::new(before);
        let (stop, closed) = (CancellationToken::new(), session.closed());
        let letting_go = tokio::spawn(let_go(route.subscribe(), Arc::clone(&sessions), stop.clone()));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!session.is_closed());
        let began = Instant::now();
        route.send_replace(Route::Nowhere);
        if let Some(gap) = gap {
            tokio::time::sleep(gap).await;
            route.send_replace(there());
        }
        let stayed =
            tokio::time::timeout(Duration::from_secs(10), closed).await.ok().map(|()| began.elapsed());
        stop.cancel();
        letting_go.await.unwrap();
        stayed
    }

    #[tokio::test(start_paused = true)]
    async fn workers_are_sent_on_when_no_leader_is_known_for_longer_than_an_election_takes() {
        let rounded = |stayed: Option<Duration>| stayed.map(|stayed| stayed.as_millis() / 10 * 10);
        assert_eq!(rounded(stays(there(), None).await), Some(ELECTED_WITHIN.as_millis()));
        assert_eq!(
            rounded(stays(Route::Here(Arc::new(Leads)), None).await),
            Some(REPLACED_WITHIN.as_millis())
        );
        let soon = Some(Duration::from_millis(400));
        assert_eq!(stays(there(), soon).await, None);
        assert_eq!(stays(Route::Here(Arc::new(Leads)), soon).await, None);
    }
}
