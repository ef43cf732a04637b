use super::super::story::{Story, id, kept, refuted};
use super::*;

/// The leader of epoch 1 is struck at 1,000 ms; job 2 is accepted by epoch 2 and its worker begins.
fn struck(name: &str, accepted: u64, began: u64) -> Story {
    let mut story = Story::submitted(1);
    story.row(1, 1, "completed");
    story.change(1, 0, "", "queued", None);
    story.fault(1000, 3000, name, true);
    after(&mut story, 2, accepted, began);
    story
}

/// A job that is accepted by epoch 2, sent at 1,010 ms.
fn after(story: &mut Story, number: u64, accepted: u64, began: u64) {
    story.submit_during(number, 1010, Some(accepted), Story::ok(&[id(number)]));
    story.row(number, number, "completed");
    let at = accepted.cast_signed();
    story.change(number, at, "", "queued", None).epoch = Some(2);
    story.change(number, at, "queued", "assigned", Some(number)).epoch = Some(2);
    story.act(began, "w", Story::began(number, number, 1));
}

#[test]
fn waits_are_counted_from_the_fault_to_the_next_leaders_first_success() {
    let mut story = struck("kill-leader", 1600, 1700);
    // The former leader may have accepted this one just before it died.
    story.submit_during(3, 1001, Some(1005), Story::ok(&[id(3)]));
    story.row(3, 3, "completed");
    story.change(3, 1003, "", "queued", None);
    let [sample] = failovers(&story).try_into().unwrap();
    assert_eq!((sample.kind, sample.alone, sample.tried), (Kind::Failover, true, true));
    assert!((sample.to_submission_ms.unwrap() - 600.0).abs() < 1.0, "{sample:?}");
    assert!((sample.to_dispatch_ms.unwrap() - 700.0).abs() < 1.0, "{sample:?}");
    kept(&story.judge(&PROMISE), 1);
}

#[test]
fn a_hand_over_is_counted_from_the_former_leaders_last_success() {
    let mut story = struck("transfer-leader", 1600, 1700);
    story.submit_during(3, 1001, Some(1500), Story::ok(&[id(3)]));
    story.row(3, 3, "completed");
    story.change(3, 1490, "", "queued", None);
    kept(&story.judge(&HAND_OVER), 1);
    assert_eq!(story.judge(&PROMISE), Verdict::NotTried, "nobody was lost");
    assert_eq!(struck("kill-leader", 1600, 1700).judge(&HAND_OVER), Verdict::NotTried, "nobody handed over");
    let [sample] = failovers(&story).try_into().unwrap();
    assert_eq!(sample.kind, Kind::HandOver);
    assert!((sample.to_submission_ms.unwrap() - 100.0).abs() < 1.0, "{sample:?}");
    // Whoever asked before the fault may be the first whom the next leader serves.
    story.submit_during(4, 990, Some(1560), Story::ok(&[id(4)]));
    story.row(4, 4, "completed");
    story.change(4, 1550, "", "queued", None).epoch = Some(2);
    let [sample] = failovers(&story).try_into().unwrap();
    assert!((sample.to_submission_ms.unwrap() - 60.0).abs() < 1.0, "{sample:?}");
}

#[test]
fn without_a_change_of_leaders_the_next_success_counts() {
    let mut story = struck("freeze-leader", 1600, 1700);
    for change in &mut story.last().audit {
        change.epoch = Some(1);
    }
    let [sample] = failovers(&story).try_into().unwrap();
    assert!((sample.to_submission_ms.unwrap() - 600.0).abs() < 1.0, "{sample:?}");
    assert!((sample.to_dispatch_ms.unwrap() - 700.0).abs() < 1.0, "{sample:?}");
}

#[test]
fn what_never_comes_or_takes_far_too_long_is_a_violation() {
    refuted(&struck("kill-leader", 6500, 6600).judge(&PROMISE), "submission came after 5500 ms");
    let mut story = struck("kill-leader", 1600, 1700);
    story.acts.clear();
    refuted(&story.judge(&PROMISE), "the next dispatch never came");
}

#[test]
fn a_wait_beside_another_fault_is_not_the_leaders_alone() {
    let mut story = struck("kill-leader", 6500, 6600);
    story.fault(2000, 6000, "postgres-kill", false);
    assert_eq!(story.judge(&PROMISE), Verdict::NotTried);
    let mut story = struck("kill-leader", 1600, 1700);
    story.fault(1650, 6000, "postgres-kill", false);
    assert!(!failovers(&story)[0].alone);
    let mut story = struck("kill-leader", 1600, 1700);
    story.fault(1750, 6000, "postgres-kill", false);
    assert!(failovers(&story)[0].alone);
}

#[test]
fn a_leader_that_has_accepted_nothing_yet_after_a_fault_is_not_lost_alone() {
    let mut story = struck("stop-leader", 1600, 1700);
    story.fault(100, 980, "postgres-kill", false);
    story.submit_during(3, 90, Some(490), Story::ok(&[id(3)]));
    assert!(!failovers(&story)[0].alone);
    story.submit_during(4, 90, Some(510), Story::ok(&[id(4)]));
    assert!(failovers(&story)[0].alone);
}

#[test]
fn many_samples_are_judged_by_their_percentile() {
    let mut story = struck("kill-leader", 2300, 2400);
    for number in 0..30 {
        story.fault(1000, 1001, "kill-leader", true);
        story.faults.last_mut().unwrap().fault = 100 + number;
    }
    // At the same moment, so none of them is alone.
    assert_eq!(story.judge(&PROMISE), Verdict::NotTried);
    let mut story = Story::submitted(1);
    for number in 0..30_u64 {
        let begun = 1000 + number * 10_000;
        story.fault(begun, begun + 2000, "kill-leader", true);
        let job = number + 10;
        story.submit_during(job, begun + 1, Some(begun + 1300), Story::ok(&[id(job)]));
        story.row(job, job, "completed");
        let at = (begun + 1290).cast_signed();
        story.change(job, at, "", "assigned", Some(job)).epoch = Some(number.cast_signed() + 2);
        story.act(begun + 1310, "w", Story::began(job, job, 1));
        // Once more, when all is well again.
        story.submit_during(job, begun + 9800, Some(begun + 9900), Story::ok(&[id(job)]));
    }
    refuted(&story.judge(&PROMISE), "submission after a failover: p99 of 30 is 1300 ms");
}

#[test]
fn a_leader_that_nobody_was_seen_to_succeed_is_a_failover_all_the_same() {
    let mut story = struck("kill-leader", 6500, 6600);
    story.faults[0].proof = None;
    assert_eq!(story.judge(&PROMISE), Verdict::NotTried, "it did not bite");
    story.faults[0].broke = Some("nobody leads".to_owned());
    refuted(&story.judge(&PROMISE), "submission came after 5500 ms");
}
