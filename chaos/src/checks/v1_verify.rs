//! V1: the product's own look at its stores after quiet.

use serde_json::Value;

use super::evidence::Evidence;
use super::{Judge, Promise, Verdict};

pub(super) const PROMISE: Promise = Promise {
    id: "V1",
    name: "verify",
    text: "after quiet `cortex verify` finds nothing off",
    judge: Judge::Alone(judge),
};

fn judge(evidence: &Evidence<'_>) -> Verdict {
    match &evidence.history.verify {
        None => Verdict::Unknown { why: "`cortex verify` was not asked".to_owned() },
        Some(said) => read(said),
    }
}

/// What the report says: a verdict, and checks each of which is clean, off with what it found, or unknown.
fn read(said: &Value) -> Verdict {
    let checks = said["checks"].as_array().map_or(&[][..], Vec::as_slice);
    let named = |outcome: &'static str| checks.iter().filter(move |check| check["outcome"] == outcome);
    match said["verdict"].as_str() {
        Some("clean") => Verdict::of(checks.len().max(1) as u64, Vec::new()),
        Some("off") => {
            let told = |check: &Value| format!("{}: {check}", check["name"].as_str().unwrap_or("a check"));
            let counts = |check: &&Value| check["severity"] != "notice";
            let mut found: Vec<_> = named("off").filter(counts).map(told).collect();
            if named("off").next().is_none() {
                found.push(said.to_string());
            }
            Verdict::of(checks.len() as u64, found)
        }
        _ => {
            let open: Vec<_> = named("unknown").filter_map(|check| check["name"].as_str()).collect();
            Verdict::Unknown {
                why: format!("`cortex verify` does not say; not looked at: {open:?}; {}", said["error"]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::story::{Story, kept, refuted, undecided};
    use super::*;

    fn said(report: Value) -> Verdict {
        let mut story = Story::new();
        story.verify = Some(report);
        story.judge(&PROMISE)
    }

    #[test]
    fn a_clean_report_is_as_promised() {
        kept(&said(json!({"verdict": "clean", "checks": [{"name": "a", "outcome": "clean"}]})), 1);
    }

    #[test]
    fn what_is_off_is_a_violation_and_named() {
        let report = json!({"verdict": "off", "checks": [
            {"name": "counters", "severity": "drift", "outcome": "off", "count": 3},
            {"name": "only noticed", "severity": "notice", "outcome": "off", "count": 1}]});
        refuted(&said(report), "counters");
        refuted(&said(json!({"verdict": "off"})), "off");
    }

    #[test]
    fn anything_else_is_unknown() {
        undecided(&said(json!({"verdict": "unknown", "checks": [{"name": "a", "outcome": "unknown"}]})));
        undecided(&said(json!({"error": "no such command"})));
        undecided(&Story::new().judge(&PROMISE));
    }
}
