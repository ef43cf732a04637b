use futures::StreamExt;
use futures::future::poll_immediate;

use super::*;

/// An outbox with so many slots whose stream has said all that it had to say.
async fn opened(slots: u32) -> (Arc<Outbox>, Outgoing) {
    let outbox = Arc::new(Outbox::default());
    let mut stream = outbox.begin(&WorkerRegistration::default(), slots, SessionHeartbeat::default());
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

/// Jobs that run.
fn run_all<const N: usize>(outbox: &Outbox) -> [Arc<str>; N] {
    std::array::from_fn(|index| run(outbox, &format!("job-{index}")))
}

async fn at_once(stream: &mut Outgoing) -> Option<SessionRequest> {
    poll_immediate(stream.next()).await.flatten()
}

#[tokio::test(start_paused = true)]
async fn what_comes_alone_leaves_at_once_and_after_several_reports_the_next_ones_gather() {
    let (outbox, mut stream) = opened(20).await;
    let leases: [_; SEVERAL + 3] = run_all(&outbox);
    finish(&outbox, &leases[0]);
    assert_eq!(at_once(&mut stream).await.unwrap().reports.len(), 1);
    leases[1..=SEVERAL].iter().for_each(|lease| finish(&outbox, lease));
    assert_eq!(at_once(&mut stream).await.unwrap().reports.len(), SEVERAL);

    finish(&outbox, &leases[SEVERAL + 1]);
    assert!(at_once(&mut stream).await.is_none(), "it gathers");
    finish(&outbox, &leases[SEVERAL + 2]);
    assert!(at_once(&mut stream).await.is_none(), "it gathers");
    // The clock goes on by itself when all wait for it.
    let message = stream.next().await.unwrap();
    assert_eq!((message.reports.len(), message.credits), (2, 2));
}

/// An outbox with twice [`SEVERAL`] slots that has just told the end of half of its jobs, and the leases of the
/// others.
async fn gathering() -> (Arc<Outbox>, Outgoing, [Arc<str>; SEVERAL]) {
    let (outbox, mut stream) = opened(2 * u32::try_from(SEVERAL).unwrap()).await;
    let leases: [_; 2 * SEVERAL] = run_all(&outbox);
    leases[..SEVERAL].iter().for_each(|lease| finish(&outbox, lease));
    assert_eq!(at_once(&mut stream).await.unwrap().reports.len(), SEVERAL);
    (outbox, stream, std::array::from_fn(|index| Arc::clone(&leases[SEVERAL + index])))
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_gathers_is_woken_once_half_of_the_slots_are_empty() {
    let (outbox, mut stream, leases) = gathering().await;
    finish(&outbox, &leases[0]);
    assert!(at_once(&mut stream).await.is_none(), "it gathers");
    let began = Instant::now();
    let (message, ()) = tokio::join!(stream.next(), async {
        tokio::task::yield_now().await;
        leases[1..].iter().for_each(|lease| finish(&outbox, lease));
    });
    assert_eq!(message.unwrap().reports.len(), SEVERAL);
    assert_eq!(began.elapsed(), Duration::ZERO, "nothing waited for the clock");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_leaves_and_a_stream_that_ends_do_not_wait() {
    let (outbox, mut stream, leases) = gathering().await;
    finish(&outbox, &leases[0]);
    assert!(at_once(&mut stream).await.is_none(), "it gathers");
    outbox.drain();
    assert_eq!(at_once(&mut stream).await.unwrap().reports.len(), 1);

    let (outbox, mut stream, leases) = gathering().await;
    let began = Instant::now();
    let (message, ()) = tokio::join!(stream.next(), async {
        finish(&outbox, &leases[0]);
        tokio::task::yield_now().await;
        outbox.end();
    });
    assert!(message.is_none());
    assert_eq!(began.elapsed(), Duration::ZERO, "nothing waited for the clock");
}

#[tokio::test(start_paused = true)]
async fn more_than_one_message_holds_does_not_gather() {
    let (outbox, mut stream) = opened(20).await;
    let leases: [_; 2 * SEVERAL] = run_all(&outbox);
    let output = bytes::Bytes::from(vec![b' '; BATCH_BYTES / SEVERAL - 1024]);
    for lease in &leases {
        let completion = JobCompletion {
            execution_id: lease.to_string(),
            success: true,
            output_data: output.clone(),
            ..Default::default()
        };
        outbox.finished(lease, Some(completion));
    }
    assert_eq!(at_once(&mut stream).await.unwrap().reports.len(), SEVERAL);
    assert_eq!(at_once(&mut stream).await.unwrap().reports.len(), SEVERAL);
}

#[tokio::test(start_paused = true)]
async fn an_end_settles_once_and_what_is_said_before_it_never() {
    let (outbox, mut stream) = opened(2).await;
    let lease = run(&outbox, "job");
    outbox.started(&lease);
    outbox.report_starts(Instant::now() + RUNNING_DELAY);
    finish(&outbox, &lease);
    let message = at_once(&mut stream).await.unwrap();
    let ids: Vec<u64> = message.reports.iter().map(|report| report.id).collect();
    assert_eq!(ids.len(), 2);
    let settled = outbox.acknowledged(&ids);
    assert_eq!(settled.len(), 1);
    assert!(settled[0].is_completed());
    assert_eq!(settled[0].execution_id, "job");
    assert!(outbox.acknowledged(&ids).is_empty());
}
