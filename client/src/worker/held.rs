//! The jobs that this worker holds: from the moment that they were fetched
//! until their end is acknowledged or refused.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// All held jobs. The key counts fetches, so that two attempts at one job are
/// never taken for each other.
#[derive(Debug, Default)]
pub(super) struct HeldJobs {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    fetches: u64,
    jobs: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    job_id: String,
    lost: CancellationToken,
}

/// One held job; dropping it lets go of the job.
#[derive(Debug)]
pub(super) struct HeldJob {
    all: Arc<HeldJobs>,
    key: u64,
    /// Fires when the server has taken the job away.
    pub(super) lost: CancellationToken,
}

/// What was held at one moment.
#[derive(Debug)]
pub(super) struct Snapshot(Vec<(u64, String)>);

impl HeldJobs {
    /// Holds a job that was just fetched.
    pub(super) fn hold(self: &Arc<Self>, job_id: &str) -> HeldJob {
        let lost = CancellationToken::new();
        let mut table = self.lock();
        table.fetches += 1;
        let key = table.fetches;
        let entry = Entry { job_id: job_id.to_owned(), lost: lost.clone() };
        table.jobs.insert(key, entry);
        HeldJob { all: Arc::clone(self), key, lost }
    }

    /// What is held now.
    pub(super) fn snapshot(&self) -> Snapshot {
        let table = self.lock();
        let jobs = table.jobs.iter();
        Snapshot(jobs.map(|(&key, entry)| (key, entry.job_id.clone())).collect())
    }

    /// Tells the jobs that the server has taken away. Only those of the snapshot
    /// that the server was asked about are meant: the same job may have been
    /// fetched again since.
    pub(super) fn lose(&self, asked: &Snapshot, taken: &[String]) {
        let table = self.lock();
        for (key, job_id) in &asked.0 {
            if taken.contains(job_id)
                && let Some(entry) = table.jobs.get(key)
            {
                entry.lost.cancel();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Snapshot {
    /// The ids of the jobs.
    pub(super) fn job_ids(&self) -> Vec<String> {
        self.0.iter().map(|(_, job_id)| job_id.clone()).collect()
    }
}

impl Drop for HeldJob {
    fn drop(&mut self) {
        self.all.lock().jobs.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_attempt_is_not_lost_with_the_one_before_it() {
        let all = Arc::new(HeldJobs::default());
        let first = all.hold("job");
        let asked = all.snapshot();
        drop(first);
        let second = all.hold("job");
        all.lose(&asked, &["job".to_owned()]);
        assert!(!second.lost.is_cancelled());
        all.lose(&all.snapshot(), &["job".to_owned()]);
        assert!(second.lost.is_cancelled());
    }

    #[test]
    fn a_dropped_job_is_not_held_any_more() {
        let all = Arc::new(HeldJobs::default());
        let held = all.hold("job");
        assert_eq!(all.snapshot().job_ids(), ["job"]);
        drop(held);
        assert!(all.snapshot().job_ids().is_empty());
    }
}
