//! Which Redis it is.

use super::connection::ReadyQueue;
use super::error::QueueError;
use super::scripts;

/// The oldest Redis that the scripts are made for.
const OLDEST: u32 = 7;

/// Refuses a Redis that is too old.
pub(super) async fn check(queue: &ReadyQueue) -> Result<(), QueueError> {
    let version: Option<String> = queue.script(&queue.reading(&scripts::VERSION)).await?;
    if is_new_enough(version.as_deref()) {
        return Ok(());
    }
    Err(QueueError::TooOld { found: version.unwrap_or_else(|| "an older one".to_owned()), needed: OLDEST })
}

/// One that knows no version is too old to tell.
fn is_new_enough(version: Option<&str>) -> bool {
    let major = version.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    major.is_some_and(|major| major >= OLDEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_from_7_on_are_new_enough() {
        for (version, enough) in
            [("7.0.0", true), ("8.2.1", true), ("10.0", true), ("6.2.14", false), ("x", false)]
        {
            assert_eq!(is_new_enough(Some(version)), enough, "{version}");
        }
        assert!(!is_new_enough(None));
    }
}
