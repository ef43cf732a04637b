use futures::StreamExt;
use futures::future::poll_immediate;

use super::*;

/// An outbox with so many slots whose stream has said all that it had to say.
async fn opened(slots: u32) -> (Arc<Outbox>, Outgoing) {
    let outbox = Arc::new(Outbox::default());
    let mut stream =
        outbox.begin(&WorkerRegistration::default(), slots, SessionHeartbeat { ..Default::default() });
    assert_eq!(stream.next().await.unwrap().credits, slots);
    (outbox, stream)
}

fn run(outbox: &Outbox, job: &str) -> Arc<str> {
    let lease: Arc<str> = job.into();
    assert!(matches!(outbox.take(&lease, job, 1), Taken::Run(_)));
    lease
}

fn finish(outbox: &Outbox, lease: &Arc<str>) {
    let completion = JobCompletion { execution_id: lease.to_string(), success: true, ..Default::default() };
    outbox.finished(lease, Some(completion));
}

#[tokio::test(start_paused = true)]
async fn after_a_pause_a_report_leaves_at_once_and_the_next_ones_gather() {
    let (outbox, mut stream) = opened(10).await;
    let leases = ["a", "b", "c"].map(|job| run(&outbox, job));
    tokio::time::advance(GATHERING).await;
    finish(&outbox, &leases[0]);
    let message = poll_immediate(stream.next()).await.flatten().unwrap();
    assert_eq!((message.reports.len(), message.credits), (1, 1));

    finish(&outbox, &leases[1]);
    assert!(poll_immediate(stream.next()).await.is_none(), "it gathers");
    finish(&outbox, &leases[2]);
    assert!(poll_immediate(stream.next()).await.is_none(), "it gathers");
    // The clock goes on by itself when all wait for it.
    let message = stream.next().await.unwrap();
    assert_eq!((message.reports.len(), message.credits), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_slots_are_half_empty_asks_for_jobs_at_once() {
    let (outbox, mut stream) = opened(4).await;
    let leases = ["a", "b", "c", "d"].map(|job| run(&outbox, job));
    finish(&outbox, &leases[0]);
    assert!(poll_immediate(stream.next()).await.is_none(), "three jobs still run");
    finish(&outbox, &leases[1]);
    let message = poll_immediate(stream.next()).await.flatten().unwrap();
    assert_eq!((message.reports.len(), message.credits), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_gathers_is_woken_when_jobs_are_needed() {
    let (outbox, mut stream) = opened(2).await;
    let leases = ["a", "b"].map(|job| run(&outbox, job));
    finish(&outbox, &leases[0]);
    let message = poll_immediate(stream.next()).await.flatten().unwrap();
    assert_eq!(message.credits, 1);
    outbox.beat(SessionHeartbeat { ..Default::default() });
    let began = Instant::now();
    let (message, ()) = tokio::join!(stream.next(), async {
        tokio::task::yield_now().await;
        finish(&outbox, &leases[1]);
    });
    let message = message.unwrap();
    assert_eq!((message.reports.len(), message.credits), (1, 1));
    assert!(message.heartbeat.is_some());
    assert_eq!(began.elapsed(), Duration::ZERO, "nothing waited for the clock");
}
