//! Points at which a test may end the process as a crash would. Only builds with the feature
//! `crash-points`, which no release has, contain them.

/// Ends the process at `point` if `CORTEX_CRASH_POINT` is `point:FILE` and FILE can be created, so that
/// of all processes that share the variable exactly one crashes, once.
#[cfg(feature = "crash-points")]
pub fn point(point: &str) {
    let Ok(setting) = std::env::var("CORTEX_CRASH_POINT") else { return };
    let Some((name, file)) = setting.split_once(':') else { return };
    if name == point && std::fs::File::create_new(file).is_ok() {
        std::process::abort();
    }
}

/// Nothing.
#[cfg(not(feature = "crash-points"))]
#[inline]
pub fn point(_: &str) {}
