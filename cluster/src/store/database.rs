//! The redb file: opening, checking, reading and writing it. Blocking.

use std::io;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};

use redb::{
    Builder, Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition,
    WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::head;
use crate::ambient;
use crate::codec::{self, CodecError};
use crate::raft::{Entry, LogId, SnapshotMeta, Vote};

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");

const NODE_ID: &str = "node_id";
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const SNAPSHOT: &str = "snapshot";

/// In the data directory.
const FILE: &str = "raft.redb";
/// Its name until it is whole: what a power cut leaves of its creation is no log yet.
const UNFINISHED: &str = "raft.redb.new";
/// The log is small; this bounds the page cache of redb, in bytes.
const CACHE: usize = 8 * 1024 * 1024;

/// Why the store can't be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the data directory {path} can't be created: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("the Raft log {path} is in use by another process")]
    InUse { path: PathBuf },
    #[error("the Raft log {path} belongs to member {found}, this is member {expected}")]
    WrongNode { path: PathBuf, found: u64, expected: u64 },
    #[error(
        "the Raft log {path} is damaged and can't be trusted ({detail}); remove this member and add it under a new id"
    )]
    Damaged { path: PathBuf, detail: String },
    #[error("the Raft log {path} can't be opened: {detail}")]
    Open { path: PathBuf, detail: String },
    #[error("the Raft log {path} can't be read or written: {source}")]
    Io { path: PathBuf, source: redb::Error },
    #[error("the Raft log {path} has an unreadable record: {source}")]
    Record { path: PathBuf, source: CodecError },
    #[error("the Raft log {path} is closed")]
    Closed { path: PathBuf },
    #[error("a task that used the Raft log was cancelled")]
    Cancelled,
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        io::Error::other(error)
    }
}

/// A snapshot as it lies on disk.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct StoredSnapshot {
    pub meta: SnapshotMeta,
    pub data: Vec<u8>,
}

/// Ids at the ends of the log.
#[derive(Debug, Default)]
pub(crate) struct LogEnds {
    pub purged: Option<LogId>,
    pub last: Option<LogId>,
}

/// The open file. All methods block; [`LogStore`](super::LogStore) and
/// [`StateMachine`](super::StateMachine) call them off the async threads.
pub(crate) struct Store {
    path: PathBuf,
    /// None once closed, so that the file is free for the next process even
    /// while openraft still holds references to the store.
    database: RwLock<Option<Database>>,
    /// The vote on disk; replication asks for it all the time.
    vote: Mutex<Option<Vote>>,
    /// Held while a snapshot is compared and replaced.
    snapshots: Mutex<()>,
}

impl Store {
    /// Opens or creates the store of `node_id` and reads all of it once.
    ///
    /// # Errors
    /// Each names the file.
    pub fn open(data_dir: &Path, node_id: u64) -> Result<Self, StoreError> {
        ambient::create_directory(data_dir)
            .map_err(|source| StoreError::Directory { path: data_dir.to_owned(), source })?;
        let path = data_dir.join(FILE);
        let failed = |source: io::Error| StoreError::Open { path: path.clone(), detail: source.to_string() };
        match ambient::length(&path).map_err(failed)? {
            None => {
                let unfinished = data_dir.join(UNFINISHED);
                ambient::remove(&unfinished).map_err(failed)?;
                Store::of(&unfinished)?.claim(node_id)?;
                ambient::rename(&unfinished, &path).map_err(failed)?;
            }
            Some(0) => return Err(StoreError::Damaged { path, detail: "it is empty".into() }),
            Some(_) => head::check(&path)?,
        }
        // A database that another program scribbled over can make redb panic.
        let store = catch_unwind(|| Store::of(&path)).unwrap_or_else(|_| {
            Err(StoreError::Damaged {
                path: path.clone(),
                detail: "the check of its structure failed".into(),
            })
        })?;
        store.claim(node_id)?;
        let scan = catch_unwind(AssertUnwindSafe(|| store.scan()));
        match scan.unwrap_or_else(|_| Err(store.damaged("reading it failed"))) {
            Ok(()) => {}
            // The disk may read it the next time; what it has read is damaged for good.
            Err(StoreError::Io { source: redb::Error::Io(error), .. }) if !is_damage(&error) => {
                return Err(failed(error));
            }
            Err(error @ StoreError::Damaged { .. }) => return Err(error),
            Err(error) => return Err(store.damaged(error)),
        }
        *lock(&store.vote) = store.read_meta(VOTE)?;
        Ok(store)
    }

    /// Releases the file. Later calls fail.
    pub fn close(&self) {
        self.database.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// True while there is neither a log nor a vote nor a snapshot.
    pub fn is_pristine(&self) -> Result<bool, StoreError> {
        let ends = self.log_ends()?;
        Ok(ends.last.is_none() && self.vote().is_none() && self.read_snapshot()?.is_none())
    }

    /// The file, for those who check what happens to it.
    #[cfg(any(test, feature = "simulation"))]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn vote(&self) -> Option<Vote> {
        *lock(&self.vote)
    }

    pub fn save_vote(&self, vote: Vote) -> Result<(), StoreError> {
        self.put_meta(VOTE, &vote)?;
        *lock(&self.vote) = Some(vote);
        Ok(())
    }

    pub fn committed(&self) -> Result<Option<LogId>, StoreError> {
        Ok(self.read_meta::<Option<LogId>>(COMMITTED)?.flatten())
    }

    pub fn save_committed(&self, committed: Option<LogId>) -> Result<(), StoreError> {
        // One phase costs one fsync less on the way to a new epoch. Damage to
        // this very commit after a crash would only bring back the commit before
        // it, and with it an older committed index, which Raft allows.
        let bytes = self.encode(&committed)?;
        self.commit(false, |transaction| put(transaction, COMMITTED, &bytes))
    }

    pub fn read_snapshot(&self) -> Result<Option<StoredSnapshot>, StoreError> {
        self.read_meta(SNAPSHOT)
    }

    /// Keeps a snapshot, unless there is a newer one: openraft builds them while it receives others, and entries that only the
    /// newer one holds may have been purged.
    pub fn save_snapshot(&self, snapshot: &StoredSnapshot) -> Result<(), StoreError> {
        let _turn = lock(&self.snapshots);
        let kept = self.read_snapshot()?.and_then(|kept| kept.meta.last_log_id);
        if kept > snapshot.meta.last_log_id { Ok(()) } else { self.put_meta(SNAPSHOT, snapshot) }
    }

    pub fn log_ends(&self) -> Result<LogEnds, StoreError> {
        let purged: Option<LogId> = self.read_meta(PURGED)?;
        let last = self.read(|database| {
            let table = database.begin_read()?.open_table(LOG)?;
            Ok(table.last()?.map(|(_, value)| value.value().to_vec()))
        })?;
        let last = match last {
            Some(bytes) => Some(self.decode::<Entry>(&bytes)?.log_id),
            None => purged,
        };
        Ok(LogEnds { purged, last })
    }

    pub fn entries(&self, range: RangeInclusive<u64>) -> Result<Vec<Entry>, StoreError> {
        let records = self.read(|database| {
            let table = database.begin_read()?.open_table(LOG)?;
            let mut records = Vec::new();
            for record in table.range(range)? {
                records.push(record?.1.value().to_vec());
            }
            Ok(records)
        })?;
        records.iter().map(|bytes| self.decode(bytes)).collect()
    }

    pub fn append(&self, entries: &[Entry]) -> Result<(), StoreError> {
        let mut records = Vec::with_capacity(entries.len());
        for entry in entries {
            records.push((entry.log_id.index, self.encode(entry)?));
        }
        self.write(|transaction| {
            let mut table = transaction.open_table(LOG)?;
            for (index, bytes) in &records {
                table.insert(*index, bytes.as_slice())?;
            }
            Ok(())
        })
    }

    /// Forgets the entries from `first` on.
    pub fn truncate(&self, first: u64) -> Result<(), StoreError> {
        self.write(|transaction| Ok(transaction.open_table(LOG)?.retain_in(first.., |_, _| false)?))
    }

    /// Forgets the entries up to `last`, which a snapshot holds.
    pub fn purge(&self, last: LogId) -> Result<(), StoreError> {
        let bytes = self.encode(&last)?;
        self.write(|transaction| {
            transaction.open_table(META)?.insert(PURGED, bytes.as_slice())?;
            Ok(transaction.open_table(LOG)?.retain_in(..=last.index, |_, _| false)?)
        })
    }

    /// The store in that file, whose pages match their checksums.
    fn of(path: &Path) -> Result<Self, StoreError> {
        let database = open_checked(path)?;
        Ok(Store {
            path: path.to_owned(),
            database: RwLock::new(Some(database)),
            vote: Mutex::new(None),
            snapshots: Mutex::new(()),
        })
    }

    /// Makes an empty file this member's, or checks that it is.
    fn claim(&self, node_id: u64) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction.open_table(META)?;
            transaction.open_table(LOG)?;
            Ok(())
        })?;
        match self.read_meta::<u64>(NODE_ID)? {
            None => self.put_meta(NODE_ID, &node_id),
            Some(found) if found == node_id => Ok(()),
            Some(found) => Err(StoreError::WrongNode { path: self.path.clone(), found, expected: node_id }),
        }
    }

    /// Reads every record once, so that damage shows before this member speaks.
    fn scan(&self) -> Result<(), StoreError> {
        self.read_meta::<Vote>(VOTE)?;
        self.committed()?;
        let snapshot = self.read_snapshot()?;
        let purged: Option<LogId> = self.read_meta(PURGED)?;
        let mut next = purged.map(|purged| purged.index + 1);
        for entry in self.entries(0..=u64::MAX)? {
            let index = entry.log_id.index;
            if next.unwrap_or(0) != index {
                return Err(self.damaged(format!("entry {} is missing", next.unwrap_or(0))));
            }
            next = Some(index + 1);
        }
        let covered = snapshot.and_then(|snapshot| snapshot.meta.last_log_id);
        if purged.map(|purged| purged.index) > covered.map(|covered| covered.index) {
            return Err(self.damaged("the snapshot of the purged entries is missing"));
        }
        Ok(())
    }

    fn read_meta<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let bytes = self.read(|database| {
            let table = database.begin_read()?.open_table(META)?;
            Ok(table.get(key)?.map(|value| value.value().to_vec()))
        })?;
        bytes.map(|bytes| self.decode(&bytes)).transpose()
    }

    fn put_meta<T: Serialize>(&self, key: &str, value: &T) -> Result<(), StoreError> {
        let bytes = self.encode(value)?;
        self.write(|transaction| put(transaction, key, &bytes))
    }

    fn read<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = guard.as_ref().ok_or_else(|| StoreError::Closed { path: self.path.clone() })?;
        work(database).map_err(|source| StoreError::Io { path: self.path.clone(), source })
    }

    /// Writes what others may rely on once it was answered.
    fn write(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        self.commit(true, work)
    }

    fn commit(
        &self,
        two_phases: bool,
        work: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), StoreError> {
        self.read(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            transaction.set_two_phase_commit(two_phases);
            work(&transaction)?;
            Ok(transaction.commit()?)
        })
    }

    fn encode<T: Serialize>(&self, value: &T) -> Result<Vec<u8>, StoreError> {
        codec::encode(value).map_err(|source| StoreError::Record { path: self.path.clone(), source })
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, StoreError> {
        codec::decode(bytes).map_err(|source| StoreError::Record { path: self.path.clone(), source })
    }

    fn damaged(&self, detail: impl ToString) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), detail: detail.to_string() }
    }
}

fn put(transaction: &WriteTransaction, key: &str, bytes: &[u8]) -> Result<(), redb::Error> {
    transaction.open_table(META)?.insert(key, bytes)?;
    Ok(())
}

/// Opens the file and verifies the checksum of each of its pages.
fn open_checked(path: &Path) -> Result<Database, StoreError> {
    let refused = |error: DatabaseError| match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.to_owned() },
        DatabaseError::Storage(redb::StorageError::Io(error)) if !is_damage(&error) => {
            StoreError::Open { path: path.to_owned(), detail: error.to_string() }
        }
        error => StoreError::Damaged { path: path.to_owned(), detail: error.to_string() },
    };
    ambient::open_database(&builder(), path).map_err(refused)
}

/// How files are opened: checked before anything in them is believed, such as how much there is.
pub(super) fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    builder
}

/// How redb reports a file that is too short or is no database at all.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing panics while holding one of these locks; a poisoned one is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
