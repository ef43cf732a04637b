//! Keeps this replica's sessions attached to whoever leads.
//!
//! Deliveries of a leader elsewhere come over the stream that carries commands. So whenever the leader
//! changes, or that stream breaks, every session is attached anew: it shows what it holds, and the leader
//! pushes what got lost on the way. The workers notice nothing. So is a session whose worker the leader had given up.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::router::Router;
use crate::services::sessions::{Session, Sessions};

/// Sessions that are attached at a time.
const SIDE_BY_SIDE: usize = 64;
/// Pause before those are tried again that could not be attached.
const TRY_AGAIN: Duration = Duration::from_millis(50);

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
            () = sessions.came_off() => {}
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
    let behind = sessions.all().into_iter().filter(|session| session.attached_by() != generation);
    futures::stream::iter(behind)
        .map(async |session: Arc<Session>| match session.attach(router).await {
            Ok(()) => true,
            Err(error) if session.close_if_unwelcome(&error) => true,
            Err(error) => {
                tracing::debug!(worker_id = %session.worker_id, %error, "A session could not be attached yet.");
                session.is_closed()
            }
        })
        .buffer_unordered(SIDE_BY_SIDE)
        .fold(true, async |all, attached| all && attached)
        .await
}
