use std::task::{Context, Poll, Waker};

use super::*;

fn limits() -> Limits {
    Limits { queued: 4, queued_bytes: 1_000, in_flight: 3, batch: 2, batch_bytes: 100 }
}

fn open() -> Arc<Outbox> {
    let outbox = Outbox::new(limits());
    outbox.open();
    outbox
}

fn command(bytes: usize) -> Bytes {
    Bytes::from(vec![0; bytes])
}

fn batch(outbox: &Outbox) -> Option<Requests> {
    match outbox.poll_batch(&Context::from_waker(Waker::noop())) {
        Poll::Ready(batch) => Some(batch.expect("the stream has not ended")),
        Poll::Pending => None,
    }
}

fn ids(batch: &Requests) -> Vec<u64> {
    batch.requests.iter().map(|request| request.id).collect()
}

fn answer(outbox: &Outbox, id: u64) {
    outbox.settle(vec![wire::Answer { id, result: Bytes::from_static(b"done") }]);
}

#[test]
fn what_queued_up_goes_out_together_and_reports_go_first() {
    let outbox = open();
    let tickets: Vec<_> = [Lane::Bulk, Lane::Wait, Lane::Prompt, Lane::Prompt, Lane::Prompt]
        .map(|lane| outbox.enqueue(lane, command(1)).ok().unwrap())
        .into();
    let first = batch(&outbox).unwrap();
    assert_eq!(ids(&first), [3, 4, 2, 1], "two per lane at the most");
    assert_eq!(ids(&batch(&outbox).unwrap()), [5]);
    assert!(batch(&outbox).is_none());
    drop(tickets);
}

#[test]
fn a_large_command_ends_its_lanes_share_and_no_other() {
    let outbox = open();
    let _tickets = [(Lane::Bulk, 500), (Lane::Bulk, 1), (Lane::Prompt, 1)]
        .map(|(lane, bytes)| outbox.enqueue(lane, command(bytes)).ok().unwrap());
    assert_eq!(ids(&batch(&outbox).unwrap()), [3, 1]);
    assert_eq!(ids(&batch(&outbox).unwrap()), [2]);
}

#[test]
fn nothing_is_written_before_the_leader_accepts_the_stream() {
    let outbox = Outbox::new(limits());
    let mut ticket = outbox.enqueue(Lane::Bulk, command(1)).ok().unwrap();
    assert!(batch(&outbox).is_none());
    outbox.close();
    assert_eq!(ticket.reply.try_recv().unwrap(), Reply::NotSent);
    assert_eq!(outbox.enqueue(Lane::Bulk, command(1)).err(), Some(Refused::Closed));
}

#[test]
fn the_end_of_the_stream_tells_the_written_from_the_queued() {
    let outbox = open();
    let mut tickets: Vec<_> = (0..3).map(|_| outbox.enqueue(Lane::Bulk, command(1)).ok().unwrap()).collect();
    assert_eq!(ids(&batch(&outbox).unwrap()), [1, 2]);
    outbox.close();
    let replies: Vec<_> = tickets.iter_mut().map(|ticket| ticket.reply.try_recv().unwrap()).collect();
    assert_eq!(replies, [Reply::Unknown, Reply::Unknown, Reply::NotSent]);
    assert_eq!(outbox.len(), 0);
}

#[test]
fn no_more_is_written_than_may_be_in_flight() {
    let outbox = open();
    let _tickets: Vec<_> = (0..4).map(|_| outbox.enqueue(Lane::Bulk, command(1)).ok().unwrap()).collect();
    assert_eq!(ids(&batch(&outbox).unwrap()), [1, 2]);
    assert_eq!(ids(&batch(&outbox).unwrap()), [3]);
    assert!(batch(&outbox).is_none());
    answer(&outbox, 2);
    assert_eq!(ids(&batch(&outbox).unwrap()), [4]);
}

#[test]
fn a_full_lane_refuses_and_the_others_do_not() {
    let outbox = open();
    let mut tickets: Vec<_> = (0..4).map(|_| outbox.enqueue(Lane::Bulk, command(1)).ok().unwrap()).collect();
    assert_eq!(outbox.enqueue(Lane::Bulk, command(1)).err(), Some(Refused::Full));
    assert!(outbox.enqueue(Lane::Prompt, command(1)).is_ok());
    tickets.pop();
    assert!(outbox.enqueue(Lane::Bulk, command(2_000)).is_ok(), "a dropped call frees its place");
    tickets.push(outbox.enqueue(Lane::Wait, command(2_000)).ok().unwrap());
    assert_eq!(outbox.enqueue(Lane::Wait, command(1)).err(), Some(Refused::Full), "bytes count too");
}

#[test]
fn calls_that_come_and_go_leave_nothing_behind() {
    let outbox = Outbox::new(limits());
    for _ in 0..1_000 {
        let _ = outbox.enqueue(Lane::Bulk, command(1));
    }
    assert_eq!(outbox.len(), 0);
    assert!(outbox.lock().lanes[Lane::Bulk.index()].ids.len() <= 8);
    outbox.open();
    assert!(batch(&outbox).is_none());
}

#[test]
fn only_a_long_poll_that_was_sent_is_called_back() {
    let outbox = open();
    let sent = [Lane::Wait, Lane::Bulk].map(|lane| outbox.enqueue(lane, command(1)).ok().unwrap());
    assert_eq!(ids(&batch(&outbox).unwrap()), [1, 2]);
    drop(outbox.enqueue(Lane::Wait, command(1)));
    drop(sent);
    assert_eq!(batch(&outbox).unwrap(), Requests { requests: vec![], abandoned: vec![1] });
    assert!(batch(&outbox).is_none());
}

#[test]
fn a_call_can_be_taken_back_until_it_is_written() {
    let outbox = open();
    let mut ticket = outbox.enqueue(Lane::Bulk, command(1)).ok().unwrap();
    assert!(ticket.withdraw());
    assert!(batch(&outbox).is_none());
    let mut ticket = outbox.enqueue(Lane::Bulk, command(1)).ok().unwrap();
    assert!(batch(&outbox).is_some());
    assert!(!ticket.withdraw());
    answer(&outbox, 2);
    assert_eq!(ticket.reply.try_recv().unwrap(), Reply::Answered(Bytes::from_static(b"done")));
}

#[test]
fn a_leader_that_concludes_gets_nothing_more_and_still_answers_what_it_has() {
    let outbox = open();
    let mut tickets: Vec<_> = (0..3).map(|_| outbox.enqueue(Lane::Bulk, command(1)).ok().unwrap()).collect();
    assert_eq!(ids(&batch(&outbox).unwrap()), [1, 2]);
    outbox.conclude();
    assert_eq!(tickets[2].reply.try_recv().unwrap(), Reply::NotSent);
    assert!(matches!(outbox.poll_batch(&Context::from_waker(Waker::noop())), Poll::Ready(None)));
    assert_eq!(outbox.enqueue(Lane::Bulk, command(1)).err(), Some(Refused::Closed));
    answer(&outbox, 1);
    assert_eq!(tickets[0].reply.try_recv().unwrap(), Reply::Answered(Bytes::from_static(b"done")));
    outbox.close();
    assert_eq!(tickets[1].reply.try_recv().unwrap(), Reply::Unknown);
}
