//! The rank of a job as one number.

use chrono::{DateTime, Utc};

/// Bits for the time; the rank of the priority stands above them.
const TIME_BITS: u32 = 49;
const LATEST_MS: u64 = (1 << TIME_BITS) - 1;

/// A job's place in the order of dispatch: the lower, the sooner.
///
/// A sorted set's score is a double, which holds whole numbers exactly up to 2^53. The upper 4 bits of
/// these 53 are 10 - priority, 0 to 9; the lower 49 are the submission time in milliseconds since 1970,
/// enough until the year 19809. So a priority always outranks any waiting time, and nothing is rounded.
/// Jobs of the same millisecond are ordered by id, which for UUIDv7 is again the order of submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Score(u64);

impl Score {
    /// Packs a priority, 1 to 10 with 10 the most urgent, and a submission time.
    ///
    /// A value outside its range becomes the nearest one inside; of the time, what is below a
    /// millisecond is cut off.
    pub fn pack(priority: u8, submitted_at: DateTime<Utc>) -> Self {
        let rank = 10 - u64::from(priority.clamp(1, 10));
        let ms = u64::try_from(submitted_at.timestamp_millis()).unwrap_or(0).min(LATEST_MS);
        Self(rank << TIME_BITS | ms)
    }

    /// Priority and submission time, in milliseconds.
    pub fn unpack(self) -> (u8, DateTime<Utc>) {
        let ms = i64::try_from(self.0 & LATEST_MS).unwrap_or(0);
        (self.priority(), DateTime::from_timestamp_millis(ms).unwrap_or(DateTime::<Utc>::MIN_UTC))
    }

    /// The priority, 1 to 10.
    pub fn priority(self) -> u8 {
        10 - u8::try_from(self.0 >> TIME_BITS).unwrap_or(9).min(9)
    }

    /// The number as Redis takes it.
    pub(super) fn as_argument(self) -> String {
        self.0.to_string()
    }

    /// Reads a score as Redis prints it. A number that no [`Score::pack`] gives becomes the nearest one
    /// that it could give: a forged score must not stop the queue. `None` if it is no number.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        let highest = 9 << TIME_BITS | LATEST_MS;
        if let Ok(number) = text.parse::<u64>() {
            return Some(Self(number.min(highest)));
        }
        let number: f64 = text.parse().ok()?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
        let whole = number as u64;
        Some(Self(whole.min(highest)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(ms).unwrap()
    }

    #[test]
    fn a_priority_outranks_any_waiting_time() {
        let last_possible = at(i64::try_from(LATEST_MS).unwrap());
        for priority in 2..=10 {
            assert!(Score::pack(priority, last_possible) < Score::pack(priority - 1, at(0)));
        }
    }

    #[test]
    fn values_out_of_range_become_the_nearest_inside() {
        assert_eq!(Score::pack(0, at(-5)), Score::pack(1, at(0)));
        assert_eq!(Score::pack(11, at(7)), Score::pack(10, at(7)));
        assert_eq!(Score::pack(5, DateTime::<Utc>::MAX_UTC).priority(), 5);
        assert_eq!(Score::from_text("-inf").map(Score::priority), Some(10));
        assert_eq!(Score::from_text("inf").map(Score::priority), Some(1));
        assert_eq!(Score::from_text("1e300").map(Score::priority), Some(1));
        assert_eq!(Score::from_text("soon"), None);
    }

    proptest! {
        #[test]
        fn a_score_survives_the_double_and_the_text(priority in 1u8..=10, ms in 0..=LATEST_MS) {
            let submitted_at = at(i64::try_from(ms).unwrap());
            let score = Score::pack(priority, submitted_at);
            prop_assert_eq!(score.unpack(), (priority, submitted_at));
            let double: f64 = score.as_argument().parse().unwrap();
            prop_assert_eq!(Score::from_text(&format!("{double}")), Some(score));
            prop_assert_eq!(Score::from_text(&format!("{double:e}")), Some(score));
        }

        #[test]
        fn scores_sort_by_priority_then_time(a in (1u8..=10, 0i64..1 << 49), b in (1u8..=10, 0i64..1 << 49)) {
            let by_rule = b.0.cmp(&a.0).then(a.1.cmp(&b.1));
            prop_assert_eq!(Score::pack(a.0, at(a.1)).cmp(&Score::pack(b.0, at(b.1))), by_rule);
        }
    }
}
