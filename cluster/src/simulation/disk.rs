//! A disk that tells apart what was synced from what was only written, so that a power cut can take the latter.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::RngExt;
use rand::rngs::SmallRng;
use redb::StorageBackend;

/// What a disk writes as a whole or not at all, in bytes.
const SECTOR: usize = 512;

/// The disk of one host; outlives its processes.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    platter: Arc<Mutex<Platter>>,
}

#[derive(Debug, Default)]
struct Platter {
    /// What a power cut leaves.
    synced: Image,
    /// What the processes see.
    written: Image,
    /// What leads from the one to the other.
    pending: Vec<Change>,
    /// Counts the processes; the handle of an earlier one is dead.
    process: u64,
    /// After so many further operations the power goes.
    power_for: Option<u32>,
    sync_fails: bool,
    /// The power went by itself; everything fails until the host is started anew.
    dead: bool,
    /// Plants a defect: what is called synced is not.
    lies: bool,
}

/// The one file of a disk.
#[derive(Debug, Clone, Default)]
struct Image {
    bytes: Vec<u8>,
    /// It has its final name.
    finished: bool,
}

#[derive(Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Length(usize),
    Rename,
}

/// What remains of the unsynced when a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// `kill -9`: all of it, the kernel writes it out.
    Killed,
    /// A power cut: any part of it, in any order, torn between sectors.
    PowerCut,
}

impl Disk {
    /// The handle of a new process.
    pub fn open(&self) -> Backend {
        let process = self.lock().process;
        Backend { disk: self.clone(), process }
    }

    /// Ends the process that uses the disk: nothing that it still does reaches the disk.
    pub fn end(&self, end: End, rng: &mut SmallRng) -> usize {
        let mut platter = self.lock();
        let end = if platter.dead { End::PowerCut } else { end };
        let pending = std::mem::take(&mut platter.pending);
        let lost = match end {
            End::Killed => {
                platter.synced = platter.written.clone();
                0
            }
            End::PowerCut => platter.keep_some(&pending, rng),
        };
        platter.written = platter.synced.clone();
        platter.process += 1;
        (platter.power_for, platter.sync_fails, platter.dead) = (None, false, false);
        lost
    }

    /// Loses everything.
    pub fn wipe(&self) {
        let mut platter = self.lock();
        let process = platter.process + 1;
        *platter = Platter { process, lies: platter.lies, ..Platter::default() };
    }

    /// Has the power go in the middle of what will be done.
    pub fn cut_power_after(&self, operations: u32) {
        self.lock().power_for = Some(operations);
    }

    /// Has the next sync fail, and all after it.
    pub fn fail_syncs(&self) {
        self.lock().sync_fails = true;
    }

    /// Nothing more is in store for it.
    pub fn mend(&self) {
        let mut platter = self.lock();
        (platter.power_for, platter.sync_fails) = (None, false);
    }

    /// Whether the power went.
    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Plants a defect.
    pub fn lie(&self) {
        self.lock().lies = true;
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Platter {
    /// Makes a part of what was not synced durable; returns how many changes were lost or torn.
    fn keep_some(&mut self, pending: &[Change], rng: &mut SmallRng) -> usize {
        let mode = rng.random_range(0..3);
        let prefix = rng.random_range(0..=pending.len());
        let mut lost = 0;
        for (index, change) in pending.iter().enumerate() {
            let keep = match mode {
                0 => false,
                1 => index < prefix,
                _ => rng.random_bool(0.5),
            };
            lost += usize::from(!keep);
            match change {
                change if keep => self.synced.apply(change),
                Change::Write { offset, bytes } if mode != 0 && rng.random_bool(0.3) => {
                    for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                        if rng.random_bool(0.5) {
                            let offset = offset + number * SECTOR;
                            self.synced.apply(&Change::Write { offset, bytes: sector.to_vec() });
                        }
                    }
                }
                _ => {}
            }
        }
        lost
    }
}

impl Image {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { offset, bytes } => {
                let end = offset + bytes.len();
                if self.bytes.len() < end {
                    self.bytes.resize(end, 0);
                }
                self.bytes[*offset..end].copy_from_slice(bytes);
            }
            Change::Length(length) => self.bytes.resize(*length, 0),
            Change::Rename => self.finished = true,
        }
    }
}

/// One process' view of its disk.
#[derive(Debug)]
pub(crate) struct Backend {
    disk: Disk,
    process: u64,
}

impl Backend {
    /// The disk, if this process still has it.
    fn platter(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let platter = self.disk.lock();
        if platter.process != self.process || platter.dead {
            return Err(io::Error::other("the power is off"));
        }
        Ok(platter)
    }

    fn changed(&self, change: Change) -> io::Result<()> {
        let mut platter = self.platter()?;
        platter.count_down()?;
        platter.written.apply(&change);
        platter.pending.push(change);
        Ok(())
    }

    /// How long the file is once it has its final name.
    pub fn length(&self) -> io::Result<Option<u64>> {
        let platter = self.platter()?;
        Ok(platter.written.finished.then_some(platter.written.bytes.len() as u64))
    }

    /// Removes a file that has not got its final name.
    pub fn remove(&self) -> io::Result<()> {
        self.changed(Change::Length(0))
    }

    /// Gives the file its final name.
    pub fn rename(&self) -> io::Result<()> {
        self.changed(Change::Rename)?;
        self.sync_data()
    }
}

impl Platter {
    fn count_down(&mut self) -> io::Result<()> {
        match self.power_for {
            Some(0) => {
                self.dead = true;
                Err(io::Error::other("the power went"))
            }
            Some(left) => {
                self.power_for = Some(left - 1);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter()?.written.bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.platter()?;
        let start = position(offset)?;
        let bytes = platter.written.bytes.get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.changed(Change::Length(position(len)?))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.platter()?;
        platter.count_down()?;
        if platter.sync_fails {
            return Err(io::Error::other("the disk can't write"));
        }
        if platter.lies {
            return Ok(());
        }
        let platter = &mut *platter;
        for change in platter.pending.drain(..) {
            platter.synced.apply(&change);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.changed(Change::Write { offset: position(offset)?, bytes: data.to_vec() })
    }
}

fn position(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn read(disk: &Disk, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        disk.open().read(0, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_power_cut_takes_nothing_that_was_synced_and_a_kill_takes_nothing_at_all() {
        for seed in 0..50 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let disk = Disk::default();
            let process = disk.open();
            process.write(0, &[1; 2048]).unwrap();
            process.sync_data().unwrap();
            process.write(0, &[2; 1024]).unwrap();
            disk.end(End::PowerCut, &mut rng);
            assert!(process.write(0, &[3]).is_err(), "a dead process wrote");
            let left = read(&disk, 2048);
            assert!(left[..1024].iter().all(|byte| [1, 2].contains(byte)));
            assert!(left[1024..].iter().all(|byte| *byte == 1));
            let process = disk.open();
            process.write(0, &[4; 2048]).unwrap();
            disk.end(End::Killed, &mut rng);
            assert_eq!(read(&disk, 2048), vec![4; 2048]);
        }
    }
}
