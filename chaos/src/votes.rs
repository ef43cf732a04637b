//! Votes that a loss of power must not take: a replica that votes twice in a term may give it two leaders.
//!
//! Whoever leads has voted for itself, and most replicas for it, and each of them has made that durable before it said so.
//! A term that a replica merely shows proves less: it may be about to make its vote durable.

use std::panic::catch_unwind;
use std::path::Path;

use redb::{Database, ReadableDatabase, TableDefinition};

use crate::cluster::log_in;
use crate::history::View;

/// Where a Raft log keeps its vote.
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const VOTE: &str = "vote";
/// Bytes of a record before what it holds: a version and a checksum.
const HEADER: usize = 5;

/// In which terms a replica was seen leading, look by look.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Led {
    last: Option<u64>,
    highest: u64,
}

impl Led {
    /// One more look. A view may take the role from one term and the term from the next, so it counts when the next look
    /// shows the same.
    pub(crate) fn look(&mut self, view: &View) {
        let leads = (view.role == "leader").then_some(view.term);
        if leads == self.last {
            self.highest = self.highest.max(leads.unwrap_or(0));
        }
        self.last = leads;
    }

    /// The highest term in which it was seen leading; 0 if in none.
    pub(crate) fn highest(self) -> u64 {
        self.highest
    }
}

/// Votes that are gone from disks: of each replica the highest term in which it led before the power was cut, and of those
/// that it was cut of, by index, the term of the vote on disk before they are started again.
pub(crate) fn gone(led: &[u64], on_disks: &[(usize, u64)]) -> Vec<String> {
    let behind = on_disks.iter().filter(|(index, term)| *term < led[*index]);
    let tell = |(index, term): &(usize, u64)| {
        format!("replica {} led in term {}, and the vote on its disk is of {term}", index + 1, led[*index])
    };
    let mut gone: Vec<_> = behind.map(tell).collect();
    let highest = led.iter().copied().max().unwrap_or(0);
    let voted = on_disks.iter().filter(|(_, term)| *term >= highest).count();
    if on_disks.len() == led.len() && voted <= led.len() / 2 {
        let all = led.len();
        gone.push(format!("a replica led in term {highest}, for which {voted} of {all} disks have a vote"));
    }
    gone
}

/// What is wrong if, after the power of all replicas was cut, somebody leads in this term.
pub(crate) fn repeated(led: &[u64], now: u64) -> Option<String> {
    let highest = led.iter().copied().max().unwrap_or(0);
    let tell = || format!("a replica led in term {highest} before all were cut, and one leads in {now} now");
    (now <= highest).then(tell)
}

/// The term of the vote in the folder of a replica that does not run; 0 if it has not voted. A copy is read: what a crash has
/// left half done is the product's to mend.
pub(crate) fn on_disk(folder: &Path) -> Result<u64, String> {
    let log = log_in(folder);
    let copy = log.with_extension("copy");
    let failed = |error: &dyn std::fmt::Display| format!("the vote in {}: {error}", log.display());
    std::fs::copy(&log, &copy).map_err(|error| failed(&error))?;
    let record = catch_unwind(|| read_vote(&copy).map_err(|error| error.to_string()));
    // What cannot be removed takes up room and does no other harm.
    let _ = std::fs::remove_file(&copy);
    let record = record.unwrap_or_else(|_| Err("reading it panicked".to_owned()));
    match record.map_err(|error| failed(&error))? {
        Some(record) => term_of(&record).ok_or_else(|| failed(&"it is of another format")),
        None => Ok(0),
    }
}

fn read_vote(path: &Path) -> Result<Option<Vec<u8>>, redb::Error> {
    let database = Database::builder().set_check_integrity_on_open(true).open(path)?;
    let record = database.begin_read()?.open_table(META)?.get(VOTE)?;
    Ok(record.map(|record| record.value().to_vec()))
}

/// The term comes first in a vote, as a number of variable length.
fn term_of(record: &[u8]) -> Option<u64> {
    let (first, rest) = record.get(HEADER..)?.split_first()?;
    match first {
        0..=250 => Some(u64::from(*first)),
        251 => rest.first_chunk().map(|bytes| u16::from_le_bytes(*bytes).into()),
        252 => rest.first_chunk().map(|bytes| u32::from_le_bytes(*bytes).into()),
        253 => rest.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(looks: &[(&str, u64)]) -> u64 {
        let mut led = Led::default();
        for (role, term) in looks {
            led.look(&View { role: (*role).to_owned(), term: *term, ..View::default() });
        }
        led.highest()
    }

    #[test]
    fn who_leads_in_two_looks_in_a_row_has_led() {
        assert_eq!(seen(&[("leader", 7), ("leader", 7), ("follower", 8)]), 7);
        assert_eq!(seen(&[("leader", 7), ("leader", 7), ("leader", 8)]), 7);
        assert_eq!(seen(&[("leader", 7), ("follower", 7), ("leader", 7)]), 0);
        assert_eq!(seen(&[("leader", 9), ("leader", 9), ("leader", 4), ("leader", 4)]), 9);
        assert_eq!(seen(&[("follower", 7), ("follower", 7)]), 0);
    }

    #[test]
    fn a_leader_whose_own_vote_is_not_on_disk_has_lost_it() {
        assert!(gone(&[0, 7, 0], &[(1, 7)]).is_empty());
        assert_eq!(
            gone(&[0, 7, 0], &[(1, 6)]),
            ["replica 2 led in term 7, and the vote on its disk is of 6"]
        );
        assert!(gone(&[0, 7, 0], &[(0, 6)]).is_empty());
    }

    #[test]
    fn a_vote_that_most_disks_lack_is_lost() {
        assert!(gone(&[6, 7, 0], &[(0, 7), (1, 7), (2, 6)]).is_empty());
        assert_eq!(
            gone(&[6, 7, 0], &[(0, 6), (1, 7), (2, 6)]),
            ["a replica led in term 7, for which 1 of 3 disks have a vote"]
        );
    }

    #[test]
    fn after_a_cut_of_all_nobody_leads_in_a_term_in_which_somebody_led() {
        assert_eq!(repeated(&[6, 7, 0], 8), None);
        for now in [6, 7] {
            assert!(repeated(&[6, 7, 0], now).is_some_and(|told| told.contains("led in term 7")));
        }
    }

    #[test]
    fn the_term_is_read_as_it_is_written() {
        let written = |term: &[u8]| term_of(&[&[1, 0, 0, 0, 0], term, &[1, 2, 1]].concat());
        assert_eq!(written(&[250]), Some(250));
        assert_eq!(written(&[251, 251, 0]), Some(251));
        assert_eq!(written(&[252, 0, 0, 1, 0]), Some(1 << 16));
        assert_eq!(written(&[253, 0, 0, 0, 0, 1, 0, 0, 0]), Some(1 << 32));
        assert_eq!((written(&[254]), term_of(&[1, 0, 0, 0, 0])), (None, None));
    }

    #[test]
    fn the_vote_of_a_log_is_found_and_the_log_left_alone() {
        let folder = std::env::temp_dir().join(format!("cortex-votes-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let log = log_in(&folder);
        let database = Database::create(&log).unwrap();
        let write = |record: Option<&[u8]>| {
            let transaction = database.begin_write().unwrap();
            {
                let mut table = transaction.open_table(META).unwrap();
                if let Some(record) = record {
                    table.insert(VOTE, record).unwrap();
                }
            }
            transaction.commit().unwrap();
        };
        write(None);
        assert_eq!(on_disk(&folder), Ok(0));
        write(Some(&[1, 0, 0, 0, 0, 251, 44, 1, 1, 3, 1]));
        assert_eq!(on_disk(&folder), Ok(300));
        write(Some(&[1]));
        assert!(on_disk(&folder).is_err_and(|why| why.ends_with("it is of another format")));
        drop(database);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
