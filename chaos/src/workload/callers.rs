//! Clients that look, cancel, and try again.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::submitters::outcome_of;
use super::{Shared, pause};
use crate::history::Request;

/// Longest wait of a client for its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(6);
/// Pause of a reader between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(40);
/// Looks at one job before the reader turns to another.
const LOOKS: usize = 12;
/// Pause of a canceller between two jobs.
const CANCEL_EVERY: Duration = Duration::from_millis(250);

/// Looks at one job at all replicas in turn, then at another.
pub(super) async fn read(shared: Arc<Shared>, number: usize, slower: u32, stop: CancellationToken) {
    let client = format!("reader-{number}");
    let mut draw = shared.draw(&client);
    while pause(LOOK_EVERY * slower, &stop).await {
        let Some(job) = shared.recent(&mut draw) else { continue };
        for _ in 0..LOOKS {
            let replica = draw.index(shared.cluster.size());
            let url = format!("http://{}/api/v1/jobs/{job}", shared.cluster.rest(replica));
            let get = shared.cluster.http.get(url).bearer_auth(&shared.cluster.tokens().viewer);
            let look = outcome_of(get.timeout(ANSWER_WITHIN));
            shared.recorder.call(&client, replica, Request::Get { job }, look).await;
            if !pause(LOOK_EVERY * slower, &stop).await {
                return;
            }
        }
    }
}

/// Cancels jobs, and tries some again that may have failed.
pub(super) async fn cancel(shared: Arc<Shared>, number: usize, slower: u32, stop: CancellationToken) {
    let client = format!("canceller-{number}");
    let mut draw = shared.draw(&client);
    while pause(CANCEL_EVERY * slower, &stop).await {
        let Some(job) = shared.recent(&mut draw) else { continue };
        let replica = draw.index(shared.cluster.size());
        let url = format!("http://{}/api/v1/jobs/{job}", shared.cluster.rest(replica));
        let (request, send) = if draw.percent(75) {
            (Request::Cancel { job }, shared.cluster.http.delete(url))
        } else {
            (Request::Retry { job }, shared.cluster.http.post(format!("{url}/retry")))
        };
        let send = send.bearer_auth(&shared.cluster.tokens().submitter).timeout(ANSWER_WITHIN);
        shared.recorder.call(&client, replica, request, outcome_of(send)).await;
    }
}
