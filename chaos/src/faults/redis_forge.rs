//! Entries that the product did not write come into the ready queue: nothing that Redis says may be believed.

use futures::FutureExt;
use redis::aio::MultiplexedConnection;
use sqlx::PgPool;

use super::redis_asked::{ask, connect, key};
use super::{Fault, Miss, Needs, Strike, Struck, Subject};
use crate::draw::Draw;

/// Scores that no job has, and one that goes before all others.
const SCORES: [&str; 6] = ["0", "-1", "-inf", "+inf", "1e300", "3"];
/// Shapes of jobs that are submitted.
const SHAPES: [&str; 4] = ["0:0:m0", "0:0:m1", "0:0:m2", "0:0:m3"];
/// Jobs of each kind that are looked up.
const LOOKED_UP: i64 = 30;

pub(super) const FAULT: Fault = Fault {
    name: "redis-forge",
    about: "20 to 120 entries of the ready queue forged: jobs that never were, have ended, run, or wait elsewhere",
    subject: Subject::Redis,
    needs: Needs::Nothing,
    strike: |strike| strike_redis(strike).boxed(),
};

/// Jobs by what they are good for: to be handed out again, though they are not ready, or once too often.
struct Jobs {
    ended: Vec<(String, String)>,
    active: Vec<(String, String)>,
    waiting: Vec<(String, String)>,
}

/// What was put in: entries by the name of their shape, and claims.
#[derive(Default)]
struct Forged {
    entries: Vec<(String, String)>,
    claims: Vec<String>,
    waiting: usize,
}

async fn strike_redis(mut strike: Strike) -> Struck {
    let cluster = std::sync::Arc::clone(&strike.cluster);
    let mut connection = connect(&cluster).await?;
    let jobs = Jobs::find(&cluster.pool).await.map_err(|error| error.to_string())?;
    let count = strike.draw.between(20, 121);
    strike.begins(&[], false, format!("{count} forged entries"));
    let mut forged = Forged::default();
    let mut put = Ok(());
    for _ in 0..count {
        put = forged.put_one(&mut connection, &mut strike.draw, &jobs).await;
        if put.is_err() {
            break;
        }
    }
    let gone = || async { forged.left(&mut connect(&cluster).await?).await };
    let is_clean = cluster.until("forged entries are gone", || async { gone().await == Ok(0) }).await;
    // The queue's keepers clean up; what they have left must not spoil the rest of the run.
    let left = gone().await;
    if left != Ok(0) {
        forged.take_out(&mut connection).await?;
    }
    strike.heals();
    put?;
    is_clean.map_err(|error| Miss::Broke(format!("{error}; left: {left:?}")))?;
    let (entries, claims) = (forged.entries.len(), forged.claims.len());
    Ok(format!(
        "{entries} entries that must not be followed, {} of waiting jobs and {claims} claims were taken and thrown away",
        forged.waiting
    ))
}

impl Jobs {
    async fn find(pool: &PgPool) -> sqlx::Result<Self> {
        let of = async |states: &[&str]| {
            let states: Vec<_> = states.iter().map(ToString::to_string).collect();
            let newest = "SELECT id::text, '0:0:' || model_name FROM jobs WHERE status = ANY($1)
                ORDER BY submitted_at DESC LIMIT $2";
            sqlx::query_as(newest).bind(states).bind(LOOKED_UP).fetch_all(pool).await
        };
        Ok(Self {
            ended: of(&["completed", "cancelled", "failed", "timeout"]).await?,
            active: of(&["assigned", "running"]).await?,
            waiting: of(&["queued", "pending"]).await?,
        })
    }
}

impl Forged {
    async fn put_one(
        &mut self,
        connection: &mut MultiplexedConnection,
        draw: &mut Draw,
        jobs: &Jobs,
    ) -> Result<(), String> {
        let (score, shape) = (*draw.choose(&SCORES), (*draw.choose(&SHAPES)).to_owned());
        let none = (draw.uuid().to_string(), shape.clone());
        let one_of = |draw: &mut Draw, jobs: &[(String, String)]| {
            if jobs.is_empty() { none.clone() } else { draw.choose(jobs).clone() }
        };
        let (id, own) = match draw.index(7) {
            0 | 1 => none.clone(),
            2 => one_of(draw, &jobs.ended),
            3 => one_of(draw, &jobs.active),
            4 => (format!("no-{}", none.0), shape.clone()),
            5 => return self.put_claim(connection, none.0, score, &shape, draw.percent(50)).await,
            _ => {
                // In a shape of its own and in another: it may go to a worker once.
                self.waiting += 1;
                one_of(draw, &jobs.waiting)
            }
        };
        // A job that waits is let alone where it belongs: its place in the order is checked, too.
        let is_waiting = jobs.waiting.iter().any(|(waiting, _)| *waiting == id);
        let shapes = if draw.percent(30) && !is_waiting { vec![own, shape] } else { vec![shape] };
        for shape in shapes {
            if is_waiting && jobs.waiting.contains(&(id.clone(), shape.clone())) {
                continue;
            }
            ask::<()>(connection, &format!("ZADD {} {score} {id}", key(&format!("shape:{shape}")))).await?;
            ask::<()>(connection, &format!("ZADD {} LT {score} {shape}", key("shapes"))).await?;
            if draw.percent(50) {
                let priority = draw.between(1, 11);
                ask::<()>(connection, &format!("HINCRBY {} {priority} 1", key("depth"))).await?;
            }
            self.entries.push((shape, id.clone()));
        }
        Ok(())
    }

    /// A claim that nobody made, with a record that can be read or not.
    async fn put_claim(
        &mut self,
        connection: &mut MultiplexedConnection,
        id: String,
        score: &str,
        shape: &str,
        readable: bool,
    ) -> Result<(), String> {
        let record = if readable { format!("1 {score} {shape}") } else { "nonsense".to_owned() };
        let mut command = redis::cmd("HSET");
        command.arg(key("claims")).arg(&id).arg(record);
        command.exec_async(connection).await.map_err(|error| error.to_string())?;
        self.claims.push(id);
        Ok(())
    }

    /// How much of it is still there.
    async fn left(&self, connection: &mut MultiplexedConnection) -> Result<usize, String> {
        let mut left = 0;
        for (shape, id) in &self.entries {
            let score: Option<String> =
                ask(connection, &format!("ZSCORE {} {id}", key(&format!("shape:{shape}")))).await?;
            left += usize::from(score.is_some());
        }
        for id in &self.claims {
            let there: bool = ask(connection, &format!("HEXISTS {} {id}", key("claims"))).await?;
            left += usize::from(there);
        }
        Ok(left)
    }

    async fn take_out(&self, connection: &mut MultiplexedConnection) -> Result<(), String> {
        for (shape, id) in &self.entries {
            ask::<()>(connection, &format!("ZREM {} {id}", key(&format!("shape:{shape}")))).await?;
        }
        for id in &self.claims {
            ask::<()>(connection, &format!("HDEL {} {id}", key("claims"))).await?;
        }
        Ok(())
    }
}
