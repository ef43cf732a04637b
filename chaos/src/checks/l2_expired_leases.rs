//! L2: an expired lease is seen to, unless a fault is under way.

use super::evidence::Evidence;
use super::{Judge, Promise, Verdict};
use crate::history::{FaultRun, Stage};

pub(super) const PROMISE: Promise = Promise {
    id: "L2",
    name: "expired leases",
    text: "no expired lease stays unhandled for two scan periods without a fault",
    judge: Judge::Alone(judge),
};

/// Two periods of `reap_leases`, in microseconds.
const TWO_PERIODS: i64 = 2_000_000;

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let Some(stores) = &evidence.stores else { return Verdict::not_dumped() };
    let expired = |lease: &super::evidence::Lease<'_>| {
        lease.expires.filter(|expires| lease.ended.is_none_or(|change| change.at > *expires))
    };
    let mut leases: Vec<_> =
        stores.leases.iter().filter_map(|(id, lease)| Some((*id, lease, expired(lease)?))).collect();
    if leases.is_empty() {
        return Verdict::NotTried;
    }
    let Some(clock) = evidence.clock else { return Verdict::no_clock() };
    let over = evidence.history.stage(Stage::Over).map_or(i64::MIN, u64::cast_signed);
    leases.sort_unstable_by_key(|(id, ..)| *id);
    let (mut cases, mut violations) = (0, Vec::new());
    for (id, lease, expires) in leases {
        let deadline = deadline(clock.latest(expires), &evidence.history.faults);
        let handled = lease.ended.map(|change| clock.earliest(change.at));
        if handled.is_none() && deadline > over {
            continue;
        }
        cases += 1;
        if handled.is_none_or(|handled| handled > deadline) {
            violations.push(format!(
                "lease {id} of job {:?} ran out at {} ({}) and was handled {}",
                lease.execution.map(|row| row.job_id),
                expires,
                clock.tell(expires),
                lease.ended.map_or("never".to_owned(), |change| format!("at {}", clock.tell(change.at)))
            ));
        }
    }
    Verdict::of(cases, violations)
}

/// The first moment by which two periods have passed without a fault.
fn deadline(expires: i64, faults: &[FaultRun]) -> i64 {
    let mut deadline = expires.saturating_add(TWO_PERIODS);
    // Faults are in the order of their beginning.
    for fault in faults {
        let over = fault.over.or(fault.healed).map_or(i64::MAX, u64::cast_signed);
        if fault.begun.cast_signed() <= deadline && over >= deadline.saturating_sub(TWO_PERIODS) {
            deadline = deadline.max(over.saturating_add(TWO_PERIODS));
        }
    }
    deadline
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, kept, refuted};
    use super::*;

    /// A lease that is good until 1,000 ms and ends then.
    fn expired(ended: Option<i64>) -> Story {
        let mut story = Story::submitted(1);
        story.row(1, 1, "timeout");
        story.change(1, 0, "", "assigned", Some(1));
        if let Some(at) = ended {
            story.change(1, at, "assigned", "timeout", None);
        }
        story.execution(1, 1, "timeout").expires(1000);
        story.stage(60_000, Stage::Over);
        story
    }

    #[test]
    fn within_two_periods_is_as_promised() {
        kept(&expired(Some(2900)).judge(&PROMISE), 1);
        assert_eq!(expired(Some(900)).judge(&PROMISE), Verdict::NotTried);
    }

    #[test]
    fn later_or_never_is_a_violation() {
        refuted(&expired(Some(3200)).judge(&PROMISE), "ran out at");
        refuted(&expired(None).judge(&PROMISE), "never");
    }

    #[test]
    fn faults_hold_it_up() {
        let mut story = expired(Some(8900));
        story.fault(2500, 7000, "kill-leader", true);
        kept(&story.judge(&PROMISE), 1);
        let mut story = expired(Some(9200));
        story.fault(2500, 7000, "kill-leader", true);
        refuted(&story.judge(&PROMISE), "ran out at");
        // One that had not begun by then does not.
        let mut story = expired(Some(8900));
        story.fault(3500, 7000, "kill-leader", true);
        refuted(&story.judge(&PROMISE), "ran out at");
    }
}
