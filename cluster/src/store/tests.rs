//! The store against openraft's own suite, and against damage.

use std::path::Path;
use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::{LogStore, StateMachine, Store, StoreError, StoredSnapshot};
use crate::raft::{SnapshotMeta, Types};

struct Builder;

impl StoreBuilder<Types, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<Types>> {
        let dir = TempDir::new().unwrap();
        let store = Arc::new(Store::open(dir.path(), 1).unwrap());
        let log = LogStore::new(Arc::clone(&store));
        Ok((dir, log, StateMachine::new(store)))
    }
}

#[tokio::test]
async fn the_store_passes_the_suite_of_openraft() {
    Suite::test_all(Builder).await.unwrap();
}

/// A store with a vote and a log, closed.
fn written(dir: &Path) {
    let store = Store::open(dir, 1).unwrap();
    fill(&store);
    store.close();
}

/// Many commits; the last one is a vote, which must not be lost.
fn fill(store: &Store) {
    use openraft::entry::RaftEntry;
    use openraft::vote::RaftLeaderIdExt;
    let leader = openraft::impls::leader_id_std::LeaderId::<u64, u64>::new_committed(3, 1);
    let id = |index| openraft::LogId::new(leader, index);
    for index in 0..50 {
        store.append(&[openraft::Entry::new_blank(id(index))]).unwrap();
    }
    store.save_vote(openraft::Vote::new(2, 1)).unwrap();
    store.save_committed(Some(id(40))).unwrap();
    store.save_vote(openraft::Vote::new(3, 1)).unwrap();
}

fn refusal(dir: &Path) -> StoreError {
    match Store::open(dir, 1) {
        Err(error) => {
            assert!(error.to_string().contains("raft.redb"), "the file is not named: {error}");
            error
        }
        Ok(_) => panic!("the store was opened"),
    }
}

#[test]
fn what_was_written_is_there_after_reopening() {
    let dir = TempDir::new().unwrap();
    written(dir.path());
    let store = Store::open(dir.path(), 1).unwrap();
    assert_eq!(store.vote(), Some(openraft::Vote::new(3, 1)));
    assert_eq!(store.log_ends().unwrap().last.map(|last| last.index), Some(49));
    assert!(!store.is_pristine().unwrap());
}

#[test]
fn a_second_user_of_the_directory_is_refused() {
    let dir = TempDir::new().unwrap();
    let _first = Store::open(dir.path(), 1).unwrap();
    assert!(matches!(refusal(dir.path()), StoreError::InUse { .. }));
}

#[test]
fn the_directory_of_another_member_is_refused() {
    let dir = TempDir::new().unwrap();
    Store::open(dir.path(), 2).unwrap().close();
    assert!(matches!(refusal(dir.path()), StoreError::WrongNode { found: 2, expected: 1, .. }));
}

#[test]
fn a_torn_file_is_refused() {
    let dir = TempDir::new().unwrap();
    written(dir.path());
    let path = dir.path().join("raft.redb");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(std::fs::metadata(&path).unwrap().len() / 2).unwrap();
    assert!(matches!(refusal(dir.path()), StoreError::Damaged { .. }));
}

#[test]
fn a_file_that_is_no_database_is_refused() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("raft.redb"), vec![7; 100_000]).unwrap();
    assert!(matches!(refusal(dir.path()), StoreError::Damaged { .. }));
}

#[test]
fn a_file_that_was_emptied_is_refused() {
    let dir = TempDir::new().unwrap();
    written(dir.path());
    std::fs::write(dir.path().join("raft.redb"), []).unwrap();
    assert!(matches!(refusal(dir.path()), StoreError::Damaged { .. }));
}

/// A power cut can leave any part of a file that was being created; nobody has relied on it.
#[test]
fn a_creation_that_was_broken_off_begins_anew() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("raft.redb.new"), vec![0; 100_000]).unwrap();
    Store::open(dir.path(), 1).unwrap().close();
    assert!(!dir.path().join("raft.redb.new").exists());
    written(dir.path());
    assert_eq!(Store::open(dir.path(), 1).unwrap().vote(), Some(openraft::Vote::new(3, 1)));
}

/// A flipped bit is either refused or was in a page that holds nothing; never
/// does the store come up with other content than was written.
#[test]
fn a_flipped_bit_never_changes_what_is_read() {
    let dir = TempDir::new().unwrap();
    written(dir.path());
    let path = dir.path().join("raft.redb");
    let whole = std::fs::read(&path).unwrap();
    let mut refused = 0;
    for position in written_bytes(&whole) {
        let mut damaged = whole.clone();
        damaged[position] ^= 0x10;
        std::fs::write(&path, damaged).unwrap();
        match Store::open(dir.path(), 1) {
            Err(error) => {
                assert!(error.to_string().contains("raft.redb"), "the file is not named: {error}");
                refused += 1;
            }
            Ok(store) => {
                assert_intact(&store, &format!("the flipped bit at byte {position}"));
            }
        }
    }
    assert!(refused > 0, "no damage was noticed");
}

/// No checksum of redb covers these, and a wrong one would have it take memory for terabytes. Where a new version of redb
/// lays its files out otherwise, this fails, and the store has to know both.
#[test]
fn every_bit_by_which_the_file_is_laid_out_counts() {
    let dir = TempDir::new().unwrap();
    written(dir.path());
    let path = dir.path().join("raft.redb");
    let whole = std::fs::read(&path).unwrap();
    for (position, bit) in (12..24).flat_map(|position| (0..8).map(move |bit| (position, bit))) {
        let mut damaged = whole.clone();
        damaged[position] ^= 1 << bit;
        std::fs::write(&path, damaged).unwrap();
        assert!(
            refusal(dir.path()).to_string().contains("sizes that no log has"),
            "byte {position}, bit {bit}"
        );
    }
    std::fs::write(&path, &whole[..20]).unwrap();
    assert!(refusal(dir.path()).to_string().contains("ends within its head"));
    std::fs::write(&path, whole).unwrap();
    assert_intact(&Store::open(dir.path(), 1).unwrap(), "nothing");
}

/// What a power cut leaves: the file as it is while in use, never closed.
#[test]
fn a_crash_loses_nothing_and_a_flipped_bit_after_it_goes_unnoticed_nowhere() {
    let (dir, crashed) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = Store::open(dir.path(), 1).unwrap();
    fill(&store);
    let image = std::fs::read(dir.path().join("raft.redb")).unwrap();
    let path = crashed.path().join("raft.redb");
    std::fs::write(&path, &image).unwrap();
    assert_intact(&Store::open(crashed.path(), 1).unwrap(), "the crash");
    let mut refused = 0;
    for position in written_bytes(&image) {
        let mut damaged = image.clone();
        damaged[position] ^= 0x10;
        std::fs::write(&path, damaged).unwrap();
        match Store::open(crashed.path(), 1) {
            Err(_) => refused += 1,
            Ok(store) => assert_intact(&store, &format!("the flipped bit at byte {position}")),
        }
    }
    assert!(refused > 0, "no damage was noticed");
}

/// No checksum covers the flags either. One of them says which of the last two commits counts: with it flipped, the vote that
/// was answered last would be forgotten, and one before it be true again. Nor must a commit that is damaged give way to the one
/// before it.
#[test]
fn no_flipped_bit_of_the_head_brings_a_former_vote_back() {
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = Store::open(dir.path(), 1).unwrap();
    fill(&store);
    let crashed = std::fs::read(dir.path().join("raft.redb")).unwrap();
    store.close();
    let closed = std::fs::read(dir.path().join("raft.redb")).unwrap();
    // The flags, and the numbers of both commits.
    let places = (9..10).chain(168..176).chain(296..304);
    let bits = places.flat_map(|place| (0..8).map(move |bit| (place, bit)));
    let mut opened = 0;
    for (image, (place, bit)) in
        [crashed, closed].iter().flat_map(|image| bits.clone().map(move |bit| (image, bit)))
    {
        let mut damaged = image.clone();
        damaged[place] ^= 1 << bit;
        std::fs::write(other.path().join("raft.redb"), damaged).unwrap();
        if let Ok(store) = Store::open(other.path(), 1) {
            assert_intact(&store, &format!("flipped bit {bit} of byte {place}"));
            opened += 1;
        }
    }
    assert!(opened > 0, "every bit was refused, so that none was read");
}

/// A crash between the two phases of a commit: what is new may be there or not.
#[test]
fn a_commit_that_was_broken_off_counts_only_if_all_of_it_is_there() {
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (path, image) = (dir.path().join("raft.redb"), other.path().join("raft.redb"));
    let store = Store::open(dir.path(), 1).unwrap();
    fill(&store);
    let before = std::fs::read(&path).unwrap();
    store.save_vote(openraft::Vote::new(4, 1)).unwrap();
    let after = std::fs::read(&path).unwrap();
    let vote_with = |file: &[u8]| {
        std::fs::write(&image, file).unwrap();
        Store::open(other.path(), 1).unwrap().vote()
    };
    let mut broken_off = after.clone();
    broken_off[9] = before[9];
    assert_eq!(vote_with(&broken_off), Some(openraft::Vote::new(4, 1)));
    // Its head is there, and its pages are not.
    let mut torn = before.clone();
    torn[..320].copy_from_slice(&broken_off[..320]);
    assert_eq!(vote_with(&torn), Some(openraft::Vote::new(3, 1)));
}

#[test]
fn an_older_snapshot_replaces_no_newer_one() {
    use openraft::vote::RaftLeaderIdExt;
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), 1).unwrap();
    let leader = openraft::impls::leader_id_std::LeaderId::<u64, u64>::new_committed(3, 1);
    for (index, kept) in [(10, 10), (20, 20), (15, 20), (20, 20), (21, 21)] {
        let mut snapshot = StoredSnapshot { meta: SnapshotMeta::default(), data: Vec::new() };
        snapshot.meta.last_log_id = Some(openraft::LogId::new(leader, index));
        store.save_snapshot(&snapshot).unwrap();
        let meta = store.read_snapshot().unwrap().unwrap().meta;
        assert_eq!(meta.last_log_id.map(|id| id.index), Some(kept));
    }
}

fn assert_intact(store: &Store, after: &str) {
    let entries = store.entries(0..=u64::MAX).unwrap().len();
    assert_eq!((store.vote(), entries), (Some(openraft::Vote::new(3, 1)), 50), "changed by {after}");
}

/// Positions all over a file that hold something.
fn written_bytes(file: &[u8]) -> Vec<usize> {
    let used: Vec<usize> = (0..file.len()).filter(|position| file[*position] != 0).collect();
    used.iter().copied().step_by((used.len() / 150).max(1)).collect()
}
