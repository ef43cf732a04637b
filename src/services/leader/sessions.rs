//! What the leader does for workers' sessions.

use std::sync::Arc;

use tokio::sync::{oneshot, watch};

use super::apply::reporter;
use super::dispatch::assignment;
use super::{End, Leader};
use crate::domain::ids::{JobId, LeaseId, SessionId, WorkerId};
use crate::domain::transition::JobEvent;
use crate::security::Caller;
use crate::services::command::{Attach, Deliver, Delivery, Hear, Heard, Outlet};
use crate::services::error::ServiceError;

impl Leader {
    /// Lets a session take its worker's jobs. Live leases that it does not hold are pushed to it again; those
    /// that it holds and that are not live are answered.
    pub(super) async fn attach(
        &self,
        by: &Caller,
        attach: Attach,
    ) -> Result<Vec<(JobId, LeaseId)>, ServiceError> {
        let (core, worker) = (&self.core, attach.worker_id);
        self.admit_known(by, worker).await?;
        let now = core.now();
        let attach = Attach { outlet: while_leading(attach.outlet, &core.end), ..attach };
        let found = core.fleet().attach(attach, now).ok_or_else(|| ServiceError::no_worker(worker))?;
        for lease in found.unsent {
            if let Some(job) = core.parts.database.assignment(lease).await? {
                core.fleet().push(Box::new(assignment(job, &core.parts.tracer)));
            } else {
                core.fleet().release(lease, true);
            }
        }
        for (job, lease) in found.lost {
            // Noticed again with the next session if there is no room now.
            drop(self.push_event(job, JobEvent::WorkerLost { lease }, None));
        }
        core.nudges.schedule.notify_one();
        Ok(found.ended)
    }

    /// Takes what a worker said on its session.
    pub(super) async fn hear(&self, by: &Caller, hear: Hear) -> Result<Heard, ServiceError> {
        let Hear { worker_id, session, granted, events, pulse } = hear;
        self.admit_known(by, worker_id).await?;
        let core = &self.core;
        let said = core.fleet().hear(worker_id, session, granted, pulse, core.now());
        self.give_back(said.left_behind);
        core.nudges.schedule.notify_one();
        let mut answers = Vec::with_capacity(events.len());
        for (job, event) in events {
            let stranger = reporter(&event).is_none_or(|by| by.worker_id != worker_id);
            if stranger {
                answers.push(Err(ServiceError::Internal));
                continue;
            }
            let (reply, answer) = oneshot::channel();
            answers.push(self.push_event(job, event, Some(reply)).map(|()| answer));
        }
        let mut outcomes = Vec::with_capacity(answers.len());
        for answer in answers {
            outcomes.push(match answer {
                Ok(answer) => answer.await.unwrap_or(Err(ServiceError::OutcomeUnknown)),
                Err(error) => Err(error),
            });
        }
        Ok(Heard { outcomes, is_attached: said.is_attached })
    }

    pub(super) fn detach(&self, worker: WorkerId, session: SessionId, held: Vec<LeaseId>) {
        let given_back = self.core.fleet().detach(worker, session, &held.into_iter().collect());
        self.give_back(given_back);
    }

    /// Ends leases whose job has not reached its worker. If that cannot be done now, `reap_leases` does it.
    fn give_back(&self, leases: Vec<(JobId, LeaseId)>) {
        for (job, lease) in leases {
            drop(self.push_event(job, JobEvent::NotFetched { lease }, None));
        }
    }
}

/// The way to a session, as long as the leadership lasts. An assignment whose commit becomes known only afterwards is the
/// next leader's to push, and may have been run by then.
struct WhileLeading {
    end: watch::Receiver<Option<End>>,
    target: Arc<dyn Deliver>,
}

impl Deliver for WhileLeading {
    fn deliver(&self, delivery: Delivery) -> bool {
        self.end.borrow().is_none() && self.target.deliver(delivery)
    }
}

fn while_leading(outlet: Outlet, end: &watch::Sender<Option<End>>) -> Outlet {
    let guarded = |target| Arc::new(WhileLeading { end: end.subscribe(), target }) as Arc<dyn Deliver>;
    match outlet {
        Outlet::Nowhere => Outlet::Nowhere,
        Outlet::Here(target) => Outlet::Here(guarded(target)),
        Outlet::Elsewhere(target) => Outlet::Elsewhere(guarded(target)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use uuid::Uuid;

    use super::*;
    use crate::services::command::News;

    #[derive(Default)]
    struct Line(AtomicUsize);

    impl Deliver for Line {
        fn deliver(&self, _: Delivery) -> bool {
            self.0.fetch_add(1, Ordering::Relaxed);
            true
        }
    }

    #[test]
    fn nothing_reaches_a_session_from_a_leadership_that_is_over() {
        let (line, end) = (Arc::new(Line::default()), watch::Sender::new(None));
        for outlet in [Outlet::Here, Outlet::Elsewhere] {
            end.send_replace(None);
            let outlet = while_leading(outlet(Arc::<Line>::clone(&line)), &end);
            let deliver = || {
                let news = News::Ended(JobId(Uuid::nil()), LeaseId(Uuid::nil()));
                let (worker_id, session) = (WorkerId(Uuid::nil()), SessionId(Uuid::nil()));
                outlet.deliver(Delivery { worker_id, session, news })
            };
            let before = line.0.load(Ordering::Relaxed);
            assert!(deliver());
            end.send_replace(Some(End::Over));
            assert!(!deliver());
            assert_eq!(line.0.load(Ordering::Relaxed), before + 1);
        }
    }
}
