//! Completions on the short way: what most reports are, written by one statement without a look before.

use std::collections::{HashMap, HashSet};

use super::Core;
use super::apply::{EventItem, reporter};
use crate::domain::changes::JobChange;
use crate::domain::ids::{JobId, LeaseId};
use crate::domain::job::JobStatus;
use crate::domain::transition::JobEvent;
use crate::services::command::Applied;
use crate::services::crash;
use crate::storage::{Completed, Completion, StorageError};

impl Core {
    /// Completes what can be completed at once. Answers which events of the batch that were, by their place;
    /// all others go the long way.
    pub(super) async fn complete(
        &self,
        slot: i16,
        batch: &[EventItem],
    ) -> Result<HashMap<usize, Completed>, StorageError> {
        let completions = self.completions(batch);
        let began = self.parts.tracer.now();
        if completions.is_empty() {
            return Ok(HashMap::new());
        }
        let rows: Vec<Completion<'_>> = completions.iter().map(|(_, completion)| *completion).collect();
        let done = self
            .transaction("complete_jobs", || self.parts.database.complete_jobs(self.parts.fence, slot, &rows))
            .await?;
        let mut done: HashMap<LeaseId, Completed> = done.into_iter().map(|done| (done.lease, done)).collect();
        let places = completions.into_iter();
        let written = |(place, row): (usize, Completion<'_>)| {
            let done = done.remove(&row.lease)?;
            if let Some(began) = began {
                self.trace_completion(&row, &done, began);
            }
            Some((place, done))
        };
        Ok(places.filter_map(written).collect())
    }

    /// The reports of success that name their lease, about jobs of which nothing else is said.
    fn completions<'a>(&self, batch: &'a [EventItem]) -> Vec<(usize, Completion<'a>)> {
        let mut seen: HashSet<JobId> = HashSet::with_capacity(batch.len());
        let named_twice: HashSet<JobId> =
            batch.iter().map(|item| item.job).filter(|job| !seen.insert(*job)).collect();
        let fleet = self.fleet();
        let completion = |(place, item): (usize, &'a EventItem)| {
            let JobEvent::Completed { by, output, duration_ms, usage } = &item.event else { return None };
            let lease = by.lease.filter(|_| !named_twice.contains(&item.job))?;
            let completion = Completion {
                job_id: item.job,
                lease,
                worker_id: by.worker_id,
                running: fleet.is_running(lease),
                output: output.as_ref(),
                duration_ms: duration_ms.filter(|ms| *ms > 0),
                usage: *usage,
            };
            Some((place, completion))
        };
        batch.iter().enumerate().filter_map(completion).collect()
    }

    /// After the commit: slots are free, callers are answered. Hands back what is still to be done.
    pub(super) fn settle_completed(
        &self,
        batch: Vec<EventItem>,
        mut completed: HashMap<usize, Completed>,
    ) -> Vec<EventItem> {
        if completed.is_empty() {
            return batch;
        }
        crash::point("applied");
        self.announce(|| {
            completed.iter().filter_map(|(place, done)| {
                let item = batch.get(*place)?;
                let worker_id = reporter(&item.event).map(|by| by.worker_id);
                Some(JobChange {
                    job_id: item.job,
                    status: JobStatus::Completed,
                    worker_id,
                    at: done.completed_at,
                })
            })
        });
        {
            let mut fleet = self.fleet();
            completed.values().for_each(|done| fleet.complete(done.lease));
        }
        self.nudges.schedule.notify_one();
        let metrics = &self.parts.metrics;
        metrics.jobs_finished.with_label_values(&["completed"]).inc_by(completed.len() as u64);
        let mut rest = Vec::new();
        for (place, item) in batch.into_iter().enumerate() {
            let Some(done) = completed.remove(&place) else {
                rest.push(item);
                continue;
            };
            #[expect(clippy::cast_precision_loss, reason = "a duration for a histogram")]
            metrics.job_run.observe(done.duration_ms as f64 / 1000.0);
            if let Some(reply) = item.reply {
                drop(reply.send(Ok(Applied { repeated: false, job: None })));
            }
        }
        rest
    }
}
