//! The head of redb's file, most of which no checksum covers: it is judged here before redb believes it.
//!
//! Its layout is that of file format 3, which redb describes in its `docs/design.md`: a magic number, a byte of flags, the
//! sizes by which the file is laid out, and two slots, of which each commit takes the one that does not count.

use std::io;
use std::ops::Range;
use std::panic::catch_unwind;
use std::path::Path;

use redb::StorageBackend;
use redb::backends::InMemoryBackend;

use super::database::{StoreError, builder};
use crate::ambient;

const LENGTH: usize = 320;
const FLAGS: usize = 9;
/// The second slot counts, not the first.
const SECOND_SLOT: u8 = 1;
/// The file is in use, or was when it was left.
const IN_USE: u8 = 2;
/// The commit that counts was synced before it was made to count.
const TWO_PHASES: u8 = 4;
/// The size of a page in bytes, and of a region's head and the rest of it in pages.
const GEOMETRY: Range<usize> = 12..24;
/// As redb has it for every new file.
const USUAL_GEOMETRY: [u8; 12] = [0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0];
/// Where the slots have the number of their commit, eight bytes each.
const COMMITS: [usize; 2] = [64 + 104, 192 + 104];

/// Checks what redb takes for granted.
///
/// # Errors
/// When the file is damaged, in use, or can't be read or written.
pub(super) fn check(path: &Path) -> Result<(), StoreError> {
    let damaged = |detail: &str| StoreError::Damaged { path: path.to_owned(), detail: detail.to_owned() };
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::UnexpectedEof => damaged("it ends within its head"),
        io::ErrorKind::WouldBlock => StoreError::InUse { path: path.to_owned() },
        _ => StoreError::Open { path: path.to_owned(), detail: source.to_string() },
    };
    let file = ambient::locked(path).map_err(failed)?;
    let mut head = [0; LENGTH];
    file.read(0, &mut head).map_err(failed)?;
    // redb takes as much memory as these say.
    if head[GEOMETRY] != USUAL_GEOMETRY {
        return Err(damaged("its head gives sizes that no log has"));
    }
    if head[FLAGS] & !(SECOND_SLOT | IN_USE | TWO_PHASES) != 0 {
        return Err(damaged("its head has flags that no log has"));
    }
    if head[FLAGS] & TWO_PHASES != 0 && other_is_newer(&head) {
        count_the_newer(file.as_ref(), head[FLAGS]).map_err(failed)?;
    }
    Ok(())
}

/// Whether the slot that does not count has the newer commit.
fn other_is_newer(head: &[u8; LENGTH]) -> bool {
    let number = |at: usize| head[at..at + 8].iter().rfold(0, |number, byte| number << 8 | u64::from(*byte));
    let [first, second] = COMMITS.map(number);
    if head[FLAGS] & SECOND_SLOT == 0 { second > first } else { first > second }
}

/// Makes the newer commit count, if all of it is there.
///
/// redb would take the flags at their word. They tell of a commit that was broken off before it was answered, of which all
/// may be there or not; or a bit in them has flipped, and the commit that would be dropped is one that others rely on. Raft
/// may keep what it has not answered, and must keep what it has. Either way the commit that counts is whole: where it is not,
/// its number may be what has changed, and the other one is older.
fn count_the_newer(file: &dyn StorageBackend, flags: u8) -> io::Result<()> {
    let newer = flags ^ SECOND_SLOT;
    let mut bytes = vec![0; usize::try_from(file.len()?).map_err(io::Error::other)?];
    file.read(0, &mut bytes)?;
    for flags in [flags, newer] {
        bytes[FLAGS] = flags;
        if !is_whole(&bytes)? {
            return Ok(());
        }
    }
    file.write(FLAGS as u64, &[newer])?;
    file.sync_data()
}

/// Whether a file with these bytes has all of the commit that counts.
fn is_whole(bytes: &[u8]) -> io::Result<bool> {
    let copy = InMemoryBackend::new();
    copy.set_len(bytes.len() as u64)?;
    copy.write(0, bytes)?;
    Ok(catch_unwind(|| builder().create_with_backend(copy).is_ok()).unwrap_or(false))
}
