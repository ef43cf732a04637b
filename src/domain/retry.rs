//! When a failed attempt is tried again, and when not.
//!
//! The formulas are those of the original specification (`services/retry_handler.py`): exponential
//! `initial * multiplier ^ retry_count`, linear `initial + retry_count * multiplier`, fixed `initial`;
//! capped, then spread by up to ten per cent either way.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::validate::{FieldError, Validator};

/// How the delay grows with each retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RetryStrategy {
    /// `initial * multiplier ^ retry_count`
    Exponential,
    /// `initial + retry_count * multiplier`
    Linear,
    /// `initial`
    Fixed,
}

/// How, how often and after which errors a job is tried again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// How the delay grows.
    pub strategy: RetryStrategy,
    /// Retries after the first attempt, 0 to 10.
    pub max_retries: u32,
    /// First delay in seconds, at least 1.
    pub initial_delay_seconds: u32,
    /// Longest delay in seconds before jitter, at least 1.
    pub max_delay_seconds: u32,
    /// Growth, 1.0 to 10.0.
    pub backoff_multiplier: f64,
    /// Error codes that are tried again; `None` means all.
    pub retry_on_errors: Option<Vec<String>>,
    /// Whether the delay is spread by up to ten per cent either way.
    pub jitter: bool,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            strategy: RetryStrategy::Exponential,
            max_retries: 3,
            initial_delay_seconds: 1,
            max_delay_seconds: 300,
            backoff_multiplier: 2.0,
            retry_on_errors: None,
            jitter: true,
        }
    }
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryDecision {
    /// Try again after this delay, in whole milliseconds.
    RetryAfter(Duration),
    /// All retries are spent.
    Spent,
    /// The policy does not retry this error code.
    NotRetryable,
}

impl RetryPolicy {
    /// Reads `metadata.retry_policy`; members that are absent take the value of `defaults`.
    pub fn from_json(policy: &Map<String, Value>, defaults: &Self) -> Result<Self, Vec<FieldError>> {
        const PATH: &str = "metadata.retry_policy";
        let mut v = Validator::default();
        let field = |name: &str| format!("{PATH}.{name}");
        let whole = |v: &mut Validator, name: &str, min: u32, max: u32, default: u32| {
            v.integer(&field(name), policy.get(name), min.into(), max.into())
                .and_then(|number| u32::try_from(number).ok())
                .unwrap_or(default)
        };
        let max_retries = whole(&mut v, "max_retries", 0, 10, defaults.max_retries);
        let initial_delay_seconds =
            whole(&mut v, "initial_delay_seconds", 1, MAX_DELAY, defaults.initial_delay_seconds);
        let max_delay_seconds = whole(&mut v, "max_delay_seconds", 1, MAX_DELAY, defaults.max_delay_seconds);
        let backoff_multiplier: f64 = v
            .typed(&field("backoff_multiplier"), policy.get("backoff_multiplier"), "a number from 1 to 10")
            .unwrap_or(defaults.backoff_multiplier);
        if !(1.0..=10.0).contains(&backoff_multiplier) {
            v.reject(field("backoff_multiplier"), "must be a number from 1 to 10");
        }
        let strategy = v
            .typed(&field("strategy"), policy.get("strategy"), "exponential, linear or fixed")
            .unwrap_or(defaults.strategy);
        let jitter =
            v.typed(&field("jitter"), policy.get("jitter"), "true or false").unwrap_or(defaults.jitter);
        let retry_on_errors = v
            .typed(&field("retry_on_errors"), policy.get("retry_on_errors"), "an array of error codes")
            .or_else(|| defaults.retry_on_errors.clone());
        v.finish(Some(Self {
            strategy,
            max_retries,
            initial_delay_seconds,
            max_delay_seconds,
            backoff_multiplier,
            retry_on_errors,
            jitter,
        }))
    }

    /// Decides about an attempt that failed with `error_code` after `retry_count` retries.
    /// `max_retries` is the job's own bound; `unit` is a random number in `[0, 1)`.
    pub fn decide(
        &self,
        retry_count: u32,
        max_retries: u32,
        error_code: Option<&str>,
        unit: f64,
    ) -> RetryDecision {
        if retry_count >= max_retries {
            return RetryDecision::Spent;
        }
        match (&self.retry_on_errors, error_code) {
            (Some(codes), Some(code)) if !codes.is_empty() && !codes.iter().any(|known| known == code) => {
                RetryDecision::NotRetryable
            }
            _ => RetryDecision::RetryAfter(self.delay(retry_count, unit)),
        }
    }

    /// The delay before retry number `retry_count + 1`, in whole milliseconds.
    pub fn delay(&self, retry_count: u32, unit: f64) -> Duration {
        let initial = f64::from(self.initial_delay_seconds);
        let exponent = i32::try_from(retry_count).unwrap_or(i32::MAX);
        let seconds = match self.strategy {
            RetryStrategy::Exponential => initial * self.backoff_multiplier.powi(exponent),
            RetryStrategy::Linear => initial + f64::from(retry_count) * self.backoff_multiplier,
            RetryStrategy::Fixed => initial,
        }
        .min(f64::from(self.max_delay_seconds));
        let spread = if self.jitter { 1.0 + 0.1 * (2.0 * unit - 1.0) } else { 1.0 };
        Duration::from_secs_f64((seconds * spread * 1000.0).round() / 1000.0)
    }
}

/// Upper bound of both delays, in seconds: thirty days.
const MAX_DELAY: u32 = 30 * 24 * 3600;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn policies() -> impl Strategy<Value = RetryPolicy> {
        (0_usize..3, 1_u32..500, 1_u32..500, 1.0..10.0_f64, any::<bool>()).prop_map(
            |(strategy, initial_delay_seconds, max_delay_seconds, backoff_multiplier, jitter)| RetryPolicy {
                strategy: [RetryStrategy::Exponential, RetryStrategy::Linear, RetryStrategy::Fixed][strategy],
                initial_delay_seconds,
                max_delay_seconds,
                backoff_multiplier,
                jitter,
                ..RetryPolicy::default()
            },
        )
    }

    proptest! {
        #[test]
        fn the_delay_stays_within_ten_per_cent_of_the_cap(
            policy in policies(), count in 0_u32..1000, unit in 0.0..1.0_f64,
        ) {
            let seconds = policy.delay(count, unit).as_secs_f64();
            let cap = f64::from(policy.max_delay_seconds);
            let floor = f64::from(policy.initial_delay_seconds).min(cap);
            prop_assert!(seconds <= cap * 1.1 + 0.001);
            prop_assert!(seconds >= floor * 0.9 - 0.001);
        }

        #[test]
        fn the_delay_is_the_formula_s_up_to_the_cap_and_whole_milliseconds(
            policy in policies(), count in 0_u32..11,
        ) {
            let policy = RetryPolicy { jitter: false, ..policy };
            let (initial, growth) = (f64::from(policy.initial_delay_seconds), policy.backoff_multiplier);
            let formula = match policy.strategy {
                // By hand, so that nothing is compared with itself.
                RetryStrategy::Exponential => (0..count).fold(initial, |delay, _| delay * growth),
                RetryStrategy::Linear => (0..count).fold(initial, |delay, _| delay + growth),
                RetryStrategy::Fixed => initial,
            };
            let expected = formula.min(f64::from(policy.max_delay_seconds));
            let delay = policy.delay(count, 0.3);
            prop_assert!((delay.as_secs_f64() - expected).abs() <= 0.000_6, "{delay:?} for {expected}");
            prop_assert_eq!(delay.subsec_nanos() % 1_000_000, 0);
        }

        #[test]
        fn jitter_moves_the_delay_by_no_more_than_a_tenth_and_as_far_as_chance_says(
            policy in policies(), count in 0_u32..11, unit in 0.0..1.0_f64,
        ) {
            let plain = RetryPolicy { jitter: false, ..policy.clone() }.delay(count, unit).as_secs_f64();
            let jittered = RetryPolicy { jitter: true, ..policy };
            let seconds = jittered.delay(count, unit).as_secs_f64();
            prop_assert!(seconds >= plain * 0.9 - 0.002 && seconds <= plain * 1.1 + 0.002);
            prop_assert!((seconds - plain * (0.9 + 0.2 * unit)).abs() <= 0.002);
            prop_assert!(jittered.delay(count, 0.0) <= jittered.delay(count, unit));
        }

        #[test]
        fn an_attempt_is_retried_exactly_if_retries_are_left_and_its_error_is_named(
            policy in policies(), count in 0_u32..12, bound in 0_u32..=10, unit in 0.0..1.0_f64,
            named in prop::option::of(prop::collection::vec("[a-d]", 0..3)), code in prop::option::of("[a-d]"),
        ) {
            let policy = RetryPolicy { retry_on_errors: named.clone(), ..policy };
            let decision = policy.decide(count, bound, code.as_deref(), unit);
            // No list, and an empty one, names every error; an attempt without a code has none to be refused.
            let is_named = match (named.as_deref(), &code) {
                (None | Some([]), _) | (_, None) => true,
                (Some(named), Some(code)) => named.contains(code),
            };
            let expected = match (count < bound, is_named) {
                (false, _) => RetryDecision::Spent,
                (true, false) => RetryDecision::NotRetryable,
                (true, true) => RetryDecision::RetryAfter(policy.delay(count, unit)),
            };
            prop_assert_eq!(decision, expected);
        }

        #[test]
        fn without_jitter_the_delay_never_shrinks(policy in policies(), count in 0_u32..50) {
            let policy = RetryPolicy { jitter: false, ..policy };
            prop_assert!(policy.delay(count + 1, 0.5) >= policy.delay(count, 0.5));
        }
    }

    #[test]
    fn follows_the_three_formulas() {
        let policy = |strategy| RetryPolicy { strategy, jitter: false, ..RetryPolicy::default() };
        let seconds = |strategy, count| policy(strategy).delay(count, 0.0).as_secs_f64();
        assert_eq!([0, 1, 2, 20].map(|n| seconds(RetryStrategy::Exponential, n)), [1.0, 2.0, 4.0, 300.0]);
        assert_eq!([0, 1, 2].map(|n| seconds(RetryStrategy::Linear, n)), [1.0, 3.0, 5.0]);
        assert_eq!([0, 9].map(|n| seconds(RetryStrategy::Fixed, n)), [1.0, 1.0]);
    }

    #[test]
    fn stops_when_spent_or_forbidden() {
        let picky = RetryPolicy { retry_on_errors: Some(vec!["timeout".into()]), ..RetryPolicy::default() };
        assert_eq!(picky.decide(3, 3, None, 0.5), RetryDecision::Spent);
        assert_eq!(picky.decide(0, 3, Some("bad_input"), 0.5), RetryDecision::NotRetryable);
        assert!(matches!(picky.decide(0, 3, Some("timeout"), 0.5), RetryDecision::RetryAfter(_)));
        assert!(matches!(picky.decide(0, 3, None, 0.5), RetryDecision::RetryAfter(_)));
    }

    #[test]
    fn names_every_bad_member() {
        let bad = json!({"strategy": "random", "max_retries": 11, "initial_delay_seconds": 0,
            "max_delay_seconds": "x", "backoff_multiplier": 0.5, "retry_on_errors": 1, "jitter": "y"});
        let errors = RetryPolicy::from_json(bad.as_object().unwrap(), &RetryPolicy::default()).unwrap_err();
        assert_eq!(errors.len(), 7, "{errors:?}");
        assert!(errors.iter().all(|error| error.field.starts_with("metadata.retry_policy.")));
    }
}
