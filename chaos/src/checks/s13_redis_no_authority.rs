//! S13: whatever becomes of Redis, nothing of the above breaks.

use super::evidence::Evidence;
use super::{Judge, Judgement, Promise, Verdict};

pub(super) const PROMISE: Promise = Promise {
    id: "S13",
    name: "redis is no authority",
    text: "lost, duplicated or forged queue entries break none of S1 to S12",
    judge: Judge::After(judge),
};

fn judge(evidence: &Evidence<'_>, above: &[Judgement]) -> Verdict {
    let struck =
        evidence.history.faults.iter().filter(|fault| fault.name.contains("redis") && fault.proof.is_some());
    let cases = struck.count() as u64;
    if cases == 0 {
        return Verdict::NotTried;
    }
    let mut violations = Vec::new();
    let mut open = None;
    for judgement in above {
        match &judgement.verdict {
            Verdict::Fail { count, .. } => {
                violations.push(format!(
                    "{} was broken {count} times in a run that struck Redis",
                    judgement.promise
                ));
            }
            Verdict::Unknown { .. } => open = Some(&judgement.promise),
            Verdict::Pass { .. } | Verdict::NotTried => {}
        }
    }
    match open {
        Some(promise) if violations.is_empty() => Verdict::Unknown { why: format!("{promise} is unknown") },
        _ => Verdict::of(cases, violations),
    }
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, kept, refuted, undecided};
    use super::*;

    fn said(verdict: Verdict) -> Verdict {
        let mut story = Story::new();
        story.fault(100, 200, "redis-flush", false);
        let above = [Judgement { promise: "S4".to_owned(), verdict }];
        judge(&Evidence::of(&story), &above)
    }

    #[test]
    fn it_stands_and_falls_with_the_promises_above() {
        kept(&said(Verdict::Pass { cases: 9 }), 1);
        kept(&said(Verdict::NotTried), 1);
        undecided(&said(Verdict::not_dumped()));
        refuted(&said(Verdict::Fail { count: 2, violations: Vec::new() }), "S4 was broken 2 times");
    }

    #[test]
    fn without_a_strike_that_bit_it_is_not_tried() {
        let mut story = Story::new();
        story.fault(100, 200, "redis-kill", false);
        story.faults[0].proof = None;
        story.fault(300, 400, "kill-leader", true);
        assert_eq!(judge(&Evidence::of(&story), &[]), Verdict::NotTried);
    }
}
