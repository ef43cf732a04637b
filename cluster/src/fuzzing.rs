//! The log and its records for a fuzz target: what this crate stores and sends is nobody else's business, so
//! only tests and builds with the feature `fuzzing` have this.

use std::path::PathBuf;
use std::sync::LazyLock;

use openraft::entry::RaftEntry;
use openraft::vote::RaftLeaderIdExt;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec;
use crate::control::{ControlCommand, ControlState};
use crate::raft::{Entry, LogId, SnapshotMeta, Types, Vote};
use crate::store::{Store, StoredSnapshot};

/// Entries of the log that is damaged.
const ENTRIES: u64 = 20;
/// The vote that was answered last.
const LAST_VOTE: (u64, u64) = (3, 1);

/// What the bytes after the first one are: `l` and `c` damage to a log, closed or left by a crash, any other one a
/// record.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind {
        b'l' => reopen(&IMAGES.0, rest),
        b'c' => reopen(&IMAGES.1, rest),
        b'e' => record::<Entry>(rest),
        b'v' => record::<Vote>(rest),
        b'i' => record::<Option<LogId>>(rest),
        b's' => record::<StoredSnapshot>(rest),
        b'm' => record::<SnapshotMeta>(rest),
        b'a' => record::<openraft::raft::AppendEntriesRequest<Types>>(rest),
        b'r' => record::<openraft::raft::VoteRequest<Types>>(rest),
        _ => record::<ControlState>(rest),
    }
}

/// A record with the right checksum over these bytes is refused, or is a value that survives writing; without it
/// it is refused.
fn record<T: Serialize + DeserializeOwned>(body: &[u8]) {
    if let Ok(value) = codec::decode::<T>(body) {
        drop(codec::encode(&value));
    }
    let Ok(value) = codec::decode::<T>(&codec::framed(body)) else { return };
    let Ok(written) = codec::encode(&value) else { panic!("what was read cannot be written") };
    let Ok(again) = codec::decode::<T>(&written) else { panic!("what was written cannot be read") };
    assert!(codec::encode(&again).is_ok_and(|again| again == written), "a value has changed on its way");
}

/// Two numbers of two bytes: how much of the file is cut off, in parts of 65,536, and a length; then, as often as
/// there is more, a place of three bytes and what is done to that byte.
fn reopen(image: &[u8], damage: &[u8]) {
    let mut file = image.to_vec();
    let (cut, rest) = damage.split_at_checked(2).unwrap_or((&[0, 0], &[]));
    let cut = usize::from(u16::from_le_bytes([cut[0], cut[1]]));
    for change in rest.chunks_exact(4) {
        let place = u32::from_le_bytes([change[0], change[1], change[2], 0]) as usize;
        let place = place % file.len();
        file[place] ^= change[3];
    }
    file.truncate(file.len() - file.len() * cut / 65_536);
    let folder = folder("damaged");
    write(&folder, &file);
    if let Ok(store) = Store::open(&folder, 1) {
        let Ok(found) = store.entries(0..=u64::MAX) else { panic!("the log was opened and cannot be read") };
        let count = found.len() as u64;
        assert!(count <= ENTRIES, "entries have come from nowhere");
        assert!(found == (0..count).map(entry).collect::<Vec<_>>(), "entries have changed");
        let last = Some(Vote::new(LAST_VOTE.0, LAST_VOTE.1));
        // Two damages may fit together: one to what was written last, one to what tells that there was any.
        let former = [None, Some(Vote::new(2, 1))].contains(&store.vote()) && damage.len() > 6;
        assert!(store.vote() == last || former, "a vote is lost or has come from nowhere");
        assert!(count == ENTRIES, "{count} entries are left, and nobody was told");
        store.close();
    }
    drop(std::fs::remove_dir_all(&folder));
}

/// A log as it was closed, and as a crash leaves it.
static IMAGES: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(|| {
    let folder = folder("whole");
    let path = folder.join("raft.redb");
    let written = || -> Result<(Vec<u8>, Vec<u8>), Box<dyn std::error::Error>> {
        let store = Store::open(&folder, 1)?;
        for index in 0..ENTRIES {
            store.append(&[entry(index)])?;
        }
        store.save_vote(Vote::new(2, 1))?;
        store.save_committed(Some(log_id(ENTRIES / 2)))?;
        store.save_vote(Vote::new(LAST_VOTE.0, LAST_VOTE.1))?;
        let crashed = std::fs::read(&path)?;
        store.close();
        Ok((std::fs::read(&path)?, crashed))
    };
    let images = written();
    drop(std::fs::remove_dir_all(&folder));
    images.unwrap_or_else(|error| panic!("no log could be made: {error}"))
});

fn log_id(index: u64) -> LogId {
    openraft::LogId::new(openraft::impls::leader_id_std::LeaderId::new_committed(3, 1), index)
}

fn entry(index: u64) -> Entry {
    if index.is_multiple_of(3) {
        return Entry::new_blank(log_id(index));
    }
    let command = ControlCommand::Set {
        key: format!("key-{index}"),
        value: "x".repeat(usize::try_from(index).unwrap_or(0) * 10),
    };
    Entry::new_normal(log_id(index), command)
}

/// A folder that no other process has.
fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("cortex-fuzz-{}-{name}", std::process::id()))
}

fn write(folder: &std::path::Path, file: &[u8]) {
    let written =
        std::fs::create_dir_all(folder).and_then(|()| std::fs::write(folder.join("raft.redb"), file));
    assert!(written.is_ok(), "{written:?}");
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_the_fuzzer_has_found_stays_found() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/raft_log");
        let mut count = 0;
        for file in std::fs::read_dir(corpus).unwrap() {
            let path = file.unwrap().path();
            println!("{}", path.display());
            super::run(&std::fs::read(path).unwrap());
            count += 1;
        }
        assert!(count > 0, "there is no corpus");
    }
}
