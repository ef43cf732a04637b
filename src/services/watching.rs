//! Following the changes of jobs, at any replica.
//!
//! While somebody follows, this replica reads the leader's log of changes and keeps a copy of it; each follower
//! reads from the copy at its own pace. So a slow follower costs no memory: when it has fallen behind what is kept,
//! it is told to look anew ([`Update::Reset`]). The same is told after a change of leaders, of which nobody knows
//! what the former one committed last.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::command::{Answer, Changes, Command, Commands, ReadChanges};
use super::error::ServiceError;
use super::facade::Services;
use crate::domain::changes::{ChangeLog, Cursor, JobChange};
use crate::domain::ids::{Epoch, JobId};
use crate::security::Caller;

/// Most followers of one replica.
pub const MAX_FOLLOWERS: usize = 1_000;
/// How long one question to the leader waits for news.
const WAIT: Duration = Duration::from_secs(5);
/// Pause after a question that came to nothing.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How long a new follower waits for the leader.
const OPEN_WITHIN: Duration = Duration::from_secs(3);
/// How long the end of a job that PostgreSQL shows may take until it is told here.
const ON_THE_WAY: Duration = Duration::from_secs(1);
/// Most changes that a follower takes at a time.
const BATCH: usize = 256;

/// The changes as this replica knows them.
pub struct Watching {
    commands: Arc<dyn Commands>,
    state: Mutex<State>,
    /// Says that there is something new, or that it is over.
    moved: watch::Sender<Moved>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Moved {
    On(u64),
    Over,
}

#[derive(Default)]
struct State {
    followers: usize,
    /// Somebody reads from the leader.
    reading: bool,
    copy: Option<ChangeLog>,
    /// The copy has come up to the leader's log once.
    whole: bool,
}

/// Somebody who follows all changes.
pub struct Follower {
    watching: Arc<Watching>,
    moved: watch::Receiver<Moved>,
    at: Cursor,
}

/// What a follower is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// Something has changed.
    Change(Cursor, JobChange),
    /// Changes may be missing here; what is known must be read anew.
    Reset(Cursor),
}

impl Update {
    /// How far one has come with it.
    pub fn cursor(&self) -> Cursor {
        match self {
            Self::Change(cursor, _) | Self::Reset(cursor) => *cursor,
        }
    }
}

impl Watching {
    pub(super) fn new(commands: Arc<dyn Commands>) -> Arc<Self> {
        let moved = watch::Sender::new(Moved::On(0));
        Arc::new(Self { commands, state: Mutex::default(), moved })
    }

    /// How many follow here.
    pub fn followers(&self) -> usize {
        self.lock().followers
    }

    /// Ends all followers: the replica is about to stop.
    pub fn stop(&self) {
        self.moved.send_replace(Moved::Over);
    }

    /// Follows all changes from now on.
    ///
    /// # Errors
    /// `TooManyStreams` beyond [`MAX_FOLLOWERS`]; `NoLeader` if nobody could be asked in time.
    pub async fn follow(self: &Arc<Self>) -> Result<Follower, ServiceError> {
        let mut moved = self.moved.subscribe();
        {
            let mut state = self.lock();
            if state.followers >= MAX_FOLLOWERS {
                return Err(ServiceError::TooManyStreams { limit: MAX_FOLLOWERS as u64 });
            }
            state.followers += 1;
            if !std::mem::replace(&mut state.reading, true) {
                tokio::spawn(Arc::clone(self).read());
            }
        }
        let nowhere = Cursor { epoch: Epoch(0), number: 0 };
        let mut follower = Follower { watching: Arc::clone(self), moved: moved.clone(), at: nowhere };
        let ready = async {
            loop {
                if let Some(head) = self.lock().head() {
                    return Ok(head);
                }
                if moved.changed().await.is_err() || *moved.borrow() == Moved::Over {
                    return Err(ServiceError::NoLeader);
                }
            }
        };
        follower.at = timeout(OPEN_WITHIN, ready).await.unwrap_or(Err(ServiceError::NoLeader))?;
        Ok(follower)
    }

    /// Reads from the leader as long as anybody follows.
    async fn read(self: Arc<Self>) {
        let mut moved = self.moved.subscribe();
        loop {
            let after = {
                let mut state = self.lock();
                if state.followers == 0 || *moved.borrow_and_update() == Moved::Over {
                    *state = State { followers: state.followers, ..State::default() };
                    return;
                }
                state.copy.as_ref().map(ChangeLog::head)
            };
            let question = self
                .commands
                .execute(Caller::Anybody, Command::ReadChanges(ReadChanges { after, wait: WAIT }));
            let answer = tokio::select! {
                answer = question => answer,
                _ = moved.wait_for(|moved| *moved == Moved::Over) => continue,
            };
            match answer {
                Ok(Answer::Changes(changes)) => self.take(changes),
                Ok(_) => sleep(ASK_AGAIN).await,
                Err(error) => {
                    tracing::debug!(%error, "The leader cannot be asked for changes; it is asked again.");
                    sleep(ASK_AGAIN).await;
                }
            }
        }
    }

    fn take(&self, news: Changes) {
        let mut state = self.lock();
        let goes_on = state.copy.as_ref().is_some_and(|copy| copy.head() == news.from);
        if !goes_on {
            (state.copy, state.whole) = (Some(ChangeLog::after(news.from)), false);
        }
        if let Some(copy) = &mut state.copy {
            copy.extend(news.changes);
            state.whole |= copy.head() == news.head;
        }
        drop(state);
        self.moved.send_if_modified(|moved| match moved {
            Moved::On(turns) => {
                *turns += 1;
                true
            }
            Moved::Over => false,
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The copy, once it has come up to the leader's log.
    fn whole(&self) -> Option<&ChangeLog> {
        self.copy.as_ref().filter(|_| self.whole)
    }

    fn head(&self) -> Option<Cursor> {
        self.whole().map(ChangeLog::head)
    }
}

impl Follower {
    /// How far it has come.
    pub fn at(&self) -> Cursor {
        self.at
    }

    /// Goes back to where a former follower has stopped; `false` if that is not known here any more.
    pub fn resume(&mut self, after: Cursor) -> bool {
        let known = self.watching.lock().whole().is_some_and(|copy| copy.reaches(after));
        if known {
            self.at = after;
        }
        known
    }

    /// What has happened since, without waiting; nothing also while the leader's log is being read anew.
    fn look(&mut self) -> Vec<Update> {
        let state = self.watching.lock();
        let Some(copy) = state.whole() else { return Vec::new() };
        let updates = match copy.read(self.at, BATCH) {
            Some(changes) => {
                changes.into_iter().map(|(cursor, change)| Update::Change(cursor, change)).collect()
            }
            None => vec![Update::Reset(copy.head())],
        };
        drop(state);
        if let Some(last) = updates.last() {
            self.at = last.cursor();
        }
        updates
    }

    /// What has happened since; waits until something has. `None` when the replica is about to stop. Cancel safe.
    pub async fn next(&mut self) -> Option<Vec<Update>> {
        loop {
            if *self.moved.borrow_and_update() == Moved::Over {
                return None;
            }
            let updates = self.look();
            if !updates.is_empty() {
                return Some(updates);
            }
            self.moved.changed().await.ok()?;
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.watching.lock().followers -= 1;
    }
}

/// Somebody who follows one job to its end.
pub struct JobWatch {
    services: Services,
    follower: Follower,
    job: JobId,
    /// What was told last; nothing yet of a job that is followed on.
    known: Option<JobChange>,
    /// What is to be told first.
    first: Vec<Update>,
}

impl Services {
    /// Follows a job: its present state, then its changes, until it has ended. With `after` only what came since; if
    /// that is not known, a reset and the present state. `None` if it had ended by then.
    pub async fn watch_job(
        &self,
        job: JobId,
        after: Option<Cursor>,
    ) -> Result<Option<JobWatch>, ServiceError> {
        // Followed before it is looked at: what changes in between is told.
        let mut follower = self.watching.follow().await?;
        let now = JobChange::from(&self.queries.job(job).await?);
        let services = self.clone();
        if after.is_some_and(|after| follower.resume(after)) {
            let mut watch = JobWatch { services, follower, job, known: None, first: Vec::new() };
            if !now.status.is_terminal() {
                return Ok(Some(watch));
            }
            // Its end is among what came since, is on its way here, or was told before.
            let Ok(Some(news)) = timeout(ON_THE_WAY, watch.next()).await else { return Ok(None) };
            (watch.first, watch.known) = (news?, None);
            return Ok(Some(watch));
        }
        let at = follower.at();
        let mut first = vec![Update::Change(at, now)];
        if after.is_some() {
            first.insert(0, Update::Reset(at));
        }
        Ok(Some(JobWatch { services, follower, job, known: None, first }))
    }
}

impl JobWatch {
    /// What has happened to the job; `None` after its end, or when the replica is about to stop. After a reset its
    /// present state follows.
    pub async fn next(&mut self) -> Option<Result<Vec<Update>, ServiceError>> {
        while !self.has_ended() {
            let updates = match std::mem::take(&mut self.first) {
                first if first.is_empty() => self.follower.next().await?,
                first => first,
            };
            match self.sift(updates).await {
                Ok(news) if news.is_empty() => {}
                outcome => return Some(outcome),
            }
        }
        None
    }

    /// Whether it has told the end of the job.
    pub fn has_ended(&self) -> bool {
        self.known.is_some_and(|known| known.status.is_terminal())
    }

    /// Keeps what is news about the job.
    async fn sift(&mut self, updates: Vec<Update>) -> Result<Vec<Update>, ServiceError> {
        let mut news = Vec::new();
        let (mut looks, mut reset_at) = (false, None);
        for update in updates {
            match update {
                Update::Reset(at) => {
                    news.push(update);
                    (looks, reset_at) = (true, Some(at));
                }
                Update::Change(_, change) if change.job_id == self.job => {
                    looks = false;
                    if self.known.is_none_or(|known| change.is_news_after(&known)) || reset_at.is_some() {
                        self.known = Some(change);
                        news.push(update);
                    }
                }
                Update::Change(..) => {}
            }
        }
        if let (true, Some(at)) = (looks, reset_at) {
            let now = JobChange::from(&self.services.queries.job(self.job).await?);
            self.known = Some(now);
            news.push(Update::Change(at, now));
        }
        Ok(news)
    }
}
