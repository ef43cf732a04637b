use chrono::TimeDelta;
use uuid::Uuid;

use super::*;

const START: Cursor = Cursor { epoch: Epoch(7), number: 0 };

fn change(number: u128, status: JobStatus) -> JobChange {
    JobChange { job_id: JobId(Uuid::from_u128(number)), status, worker_id: None, at: DateTime::UNIX_EPOCH }
}

fn at(number: u64) -> Cursor {
    Cursor { number, ..START }
}

fn filled(count: u128) -> ChangeLog {
    let mut log = ChangeLog::after(START);
    log.extend((1..=count).map(|number| change(number, JobStatus::Queued)));
    log
}

#[test]
fn who_reads_on_where_it_stopped_misses_nothing() {
    let log = filled(5);
    let (mut after, mut seen) = (START, Vec::new());
    loop {
        let read = log.read(after, 2).unwrap();
        let Some((last, _)) = read.last() else { break };
        after = *last;
        seen.extend(read.into_iter().map(|(cursor, change)| (cursor.number, change.job_id.0.as_u128())));
    }
    assert_eq!(seen, [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]);
    assert_eq!((after, log.start()), (log.head(), START));
}

#[test]
fn who_comes_from_too_far_back_or_from_another_leader_is_told_so() {
    let full = filled(KEPT as u128 + 10);
    assert_eq!(full.read(at(9), 1), None);
    assert_eq!(full.read(at(10), 1).unwrap()[0].0, at(11));
    assert_eq!(full.read(full.head(), 1), Some(Vec::new()));
    assert_eq!(full.read(at(full.head().number + 1), 1), None, "nothing that has not been");
    assert_eq!(full.read(Cursor { epoch: Epoch(8), ..full.head() }, 1), None);
}

#[test]
fn a_restart_leaves_nobody_in_the_belief_that_nothing_happened() {
    let mut log = filled(3);
    let before = log.head();
    log.restart();
    assert!(!log.reaches(before) && log.reaches(log.head()));
    log.extend([change(9, JobStatus::Failed)]);
    assert_eq!(log.read(before, 1), None);
}

#[test]
fn a_cursor_survives_its_text() {
    assert_eq!(at(12).to_string(), "7-12");
    assert_eq!("7-12".parse(), Ok(at(12)));
    for bad in ["", "7", "-", "7-", "a-1", "7--1", "7-1-1", "99999999999999999999-1"] {
        assert!(bad.parse::<Cursor>().is_err(), "{bad}");
    }
}

#[test]
fn what_a_look_at_the_job_has_shown_is_no_news() {
    use JobStatus::{Assigned, Completed, Pending, Queued, Running};
    let later = |status| JobChange { at: DateTime::UNIX_EPOCH + TimeDelta::seconds(1), ..change(1, status) };
    assert!(later(Running).is_news_after(&change(1, Assigned)));
    assert!(!later(Assigned).is_news_after(&change(1, Running)), "no job goes back to that");
    assert!(!change(1, Pending).is_news_after(&later(Queued)), "older than what is known");
    assert!(!change(1, Assigned).is_news_after(&later(Pending)), "an attempt that has failed");
    assert!(!later(Queued).is_news_after(&change(1, Queued)));
    assert!(!later(Queued).is_news_after(&change(1, Completed)));
}
