//! `metadata.retry_policy`, and the delays that come of it.

use cortex::domain::retry::{RetryDecision, RetryPolicy};
use serde_json::{Map, Value};

/// Longest delay that a policy may ask for, in seconds: thirty days.
const MAX_DELAY: u32 = 30 * 24 * 3600;

/// The first byte is the number of retries so far, the others are a policy in JSON.
pub fn run(data: &[u8]) {
    let Some((retries, policy)) = data.split_first() else { return };
    let Ok(policy) = serde_json::from_slice::<Map<String, Value>>(policy) else { return };
    let defaults = RetryPolicy::default();
    let policy = match RetryPolicy::from_json(&policy, &defaults) {
        Ok(policy) => policy,
        Err(errors) => {
            assert!(!errors.is_empty(), "refused, and nobody knows why");
            assert!(
                errors.iter().all(|error| error.field.starts_with("metadata.retry_policy")),
                "{errors:?}"
            );
            return;
        }
    };
    assert!(policy.max_retries <= 10, "{policy:?}");
    assert!((1..=MAX_DELAY).contains(&policy.initial_delay_seconds), "{policy:?}");
    assert!((1..=MAX_DELAY).contains(&policy.max_delay_seconds), "{policy:?}");
    assert!((1.0..=10.0).contains(&policy.backoff_multiplier), "{policy:?}");

    let retries = u32::from(*retries);
    for unit in [0.0, 0.5, 1.0 - f64::EPSILON] {
        let delay = policy.delay(retries, unit).as_secs_f64();
        let cap = f64::from(policy.max_delay_seconds);
        let floor = f64::from(policy.initial_delay_seconds).min(cap);
        assert!(delay <= cap * 1.1 + 0.001 && delay >= floor * 0.9 - 0.001, "{delay} s of {policy:?}");
        for code in
            [None, Some("timeout"), policy.retry_on_errors.iter().flatten().next().map(String::as_str)]
        {
            let decision = policy.decide(retries, policy.max_retries, code, unit);
            assert_eq!(decision == RetryDecision::Spent, retries >= policy.max_retries, "{policy:?}");
        }
    }

    // What is stored is read back as it was meant.
    let stored = serde_json::to_value(&policy).unwrap();
    assert_eq!(RetryPolicy::from_json(stored.as_object().unwrap(), &defaults), Ok(policy));
}
