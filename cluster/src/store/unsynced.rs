//! A defect that is planted on purpose: a log file that says it is on disk as soon as it is written. A killed
//! process loses nothing by it, a power cut what was answered last. Only builds with the feature
//! `planted-defects`, which no release has, contain it, and only `CORTEX_PLANT=fsync_left_out` brings it out.

use std::fs::OpenOptions;
use std::io;
use std::ops::Bound;
use std::path::Path;

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};

/// The file, if the defect is in force.
pub(crate) fn planted(path: &Path) -> Option<Result<Unsynced<FileBackend>, DatabaseError>> {
    (std::env::var_os("CORTEX_PLANT")? == "fsync_left_out").then(|| {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        Ok(Unsynced(FileBackend::new(file.map_err(redb::StorageError::Io)?)?))
    })
}

/// A file that is not synced.
#[derive(Debug)]
pub(crate) struct Unsynced<B>(B);

impl<B: StorageBackend> StorageBackend for Unsynced<B> {
    fn len(&self) -> Result<u64, io::Error> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.0.set_len(len)
    }

    /// The defect.
    fn sync_data(&self) -> Result<(), io::Error> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.0.write(offset, data)
    }

    fn close(&self) -> Result<(), io::Error> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use redb::{Database, ReadableDatabase, TableDefinition};

    use super::*;

    const TABLE: TableDefinition<u64, u64> = TableDefinition::new("log");

    /// A disk: what was written, and what of it a power cut leaves.
    #[derive(Debug, Default, Clone)]
    struct Disk(Arc<Mutex<[Vec<u8>; 2]>>);

    impl Disk {
        /// What another process finds, after a power cut or without one.
        fn left(&self, power_cut: bool) -> Self {
            let [written, kept] = self.0.lock().unwrap().clone();
            let left = if power_cut { kept } else { written };
            Self(Arc::new(Mutex::new([left.clone(), left])))
        }
    }

    impl StorageBackend for Disk {
        fn len(&self) -> Result<u64, io::Error> {
            Ok(self.0.lock().unwrap()[0].len() as u64)
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
            let from = usize::try_from(offset).unwrap();
            out.copy_from_slice(&self.0.lock().unwrap()[0][from..][..out.len()]);
            Ok(())
        }

        fn set_len(&self, len: u64) -> Result<(), io::Error> {
            self.0.lock().unwrap()[0].resize(usize::try_from(len).unwrap(), 0);
            Ok(())
        }

        fn sync_data(&self) -> Result<(), io::Error> {
            let [written, kept] = &mut *self.0.lock().unwrap();
            kept.clone_from(written);
            Ok(())
        }

        fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
            let from = usize::try_from(offset).unwrap();
            self.0.lock().unwrap()[0][from..][..data.len()].copy_from_slice(data);
            Ok(())
        }
    }

    fn append(database: &Database, index: u64) {
        let transaction = database.begin_write().unwrap();
        transaction.open_table(TABLE).unwrap().insert(index, index).unwrap();
        transaction.commit().unwrap();
    }

    fn has(disk: Disk, index: u64) -> bool {
        let database = Database::builder().create_with_backend(disk).unwrap();
        let table = database.begin_read().unwrap().open_table(TABLE);
        table.is_ok_and(|table| table.get(index).unwrap().is_some())
    }

    #[test]
    fn a_power_cut_takes_what_was_answered_along_if_it_was_not_synced() {
        let disk = Disk::default();
        let sound = Database::builder().create_with_backend(disk.clone()).unwrap();
        append(&sound, 1);
        assert!(has(disk.left(true), 1));
        drop(sound);

        let planted = Database::builder().create_with_backend(Unsynced(disk.clone())).unwrap();
        append(&planted, 2);
        assert!(has(disk.left(false), 2), "a killed process has lost what was written");
        assert!(has(disk.left(true), 1) && !has(disk.left(true), 2), "the power cut has lost nothing");
    }
}
