//! Defects that are planted on purpose, so that a harness that is to find such defects can show that it does.
//! Only builds with the feature `planted-defects`, which no release has, contain them; in such a build
//! `CORTEX_PLANT` names the one that is in force. Each is the slip of a programmer in the one place where the
//! promise is kept:
//!
//! | name | what is wrong |
//! | --- | --- |
//! | `fence_off` | neither PostgreSQL nor Redis looks at the epoch of a writer; stays in the database |
//! | `lease_token_ignored` | a report counts for the job's current lease, whichever it names and whoever sends it |
//! | `fsync_left_out` | the Raft log answers before its bytes are on disk (`cluster/src/store/unsynced.rs`) |
//! | `retries_early` | half the delay of a retry is waited, the whole one is shown |
//! | `redis_trusted` | what Redis hands out is assigned, whatever PostgreSQL says of the job |
//! | `completion_before_commit` | a completion is answered before anything of it is written |
//! | `claims_not_recovered` | claims that nobody settled stay claimed, at a take-over and afterwards |
//! | `deposed_reports_accepted` | a report that the fence holds off is answered as accepted |

/// A defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the table above")]
pub enum Plant {
    FenceOff,
    LeaseTokenIgnored,
    FsyncLeftOut,
    RetriesEarly,
    RedisTrusted,
    CompletionBeforeCommit,
    ClaimsNotRecovered,
    DeposedReportsAccepted,
}

/// Whether this defect is in force.
#[cfg(not(feature = "planted-defects"))]
#[inline]
pub const fn planted(_: Plant) -> bool {
    false
}

// Shown by the compiler in every build without the feature.
#[cfg(not(feature = "planted-defects"))]
const _: () = assert!(!planted(Plant::FenceOff));

#[cfg(feature = "planted-defects")]
pub use with_the_feature::{check, planted};

#[cfg(feature = "planted-defects")]
mod with_the_feature {
    use std::ffi::OsStr;
    use std::sync::OnceLock;

    use super::Plant;

    const NAMES: [(&str, Plant); 8] = [
        ("fence_off", Plant::FenceOff),
        ("lease_token_ignored", Plant::LeaseTokenIgnored),
        ("fsync_left_out", Plant::FsyncLeftOut),
        ("retries_early", Plant::RetriesEarly),
        ("redis_trusted", Plant::RedisTrusted),
        ("completion_before_commit", Plant::CompletionBeforeCommit),
        ("claims_not_recovered", Plant::ClaimsNotRecovered),
        ("deposed_reports_accepted", Plant::DeposedReportsAccepted),
    ];

    /// Whether this defect is in force.
    pub fn planted(plant: Plant) -> bool {
        static IN_FORCE: OnceLock<Option<Plant>> = OnceLock::new();
        *IN_FORCE.get_or_init(|| chosen().ok().flatten()) == Some(plant)
    }

    /// Says which defect is in force, if one is.
    ///
    /// # Errors
    /// `CORTEX_PLANT` names none that there is.
    pub fn check() -> Result<Option<&'static str>, String> {
        let name = |plant| NAMES.iter().find(|(_, known)| *known == plant).map(|(name, _)| *name);
        Ok(chosen()?.and_then(name))
    }

    fn chosen() -> Result<Option<Plant>, String> {
        named(std::env::var_os("CORTEX_PLANT").as_deref().unwrap_or_default())
    }

    fn named(name: &OsStr) -> Result<Option<Plant>, String> {
        if name.is_empty() {
            return Ok(None);
        }
        let found = NAMES.iter().find(|(known, _)| name == *known);
        found.map(|(_, plant)| Some(*plant)).ok_or_else(|| {
            let names = NAMES.map(|(name, _)| name).join(", ");
            format!("CORTEX_PLANT is {name:?}, and must be one of {names}")
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_defect_is_known_by_its_name_alone() {
            for (name, plant) in NAMES {
                assert_eq!(named(OsStr::new(name)), Ok(Some(plant)));
                assert!(include_str!("planted.rs").contains(&format!("//! | `{name}` |")), "{name}");
            }
            assert_eq!(named(OsStr::new("")), Ok(None));
            let error = named(OsStr::new("fence_of")).unwrap_err();
            assert!(
                error.contains("fence_of") && NAMES.iter().all(|(name, _)| error.contains(name)),
                "{error}"
            );
        }
    }
}
