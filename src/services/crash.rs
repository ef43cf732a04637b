//! Points at which a test may end the process as a crash would. Only builds with the feature
//! `crash-points`, which no release has, contain them.
//!
//! | point | where |
//! | --- | --- |
//! | `claimed` | jobs are claimed in Redis, their assignment is not begun |
//! | `assigned` | an assignment is committed, nobody was told |
//! | `fetched` | a fetch is committed, the worker has no answer |
//! | `applied` | reports, cancellations and the like are committed, nobody was told |
//! | `submitted` | submissions are committed, neither Redis nor the callers were told |
//! | `before_queue` | Redis is about to be told what was committed |

/// Ends the process at `point` if the folder that `CORTEX_CRASH_POINTS` names has a file of that name and
/// this process is the one that removes it: of all processes that share the folder exactly one crashes,
/// once for each file that a test puts there.
#[cfg(feature = "crash-points")]
pub fn point(point: &str) {
    let Some(folder) = std::env::var_os("CORTEX_CRASH_POINTS") else { return };
    if std::fs::remove_file(std::path::Path::new(&folder).join(point)).is_ok() {
        std::process::abort();
    }
}

/// Nothing.
#[cfg(not(feature = "crash-points"))]
#[inline]
pub fn point(_: &str) {}
