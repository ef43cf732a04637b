//! PostgreSQL alone: migrations, the fence, and what the statements promise.

#[path = "storage/lists.rs"]
mod lists;
#[path = "storage/retries.rs"]
mod retries;
#[path = "storage/submissions.rs"]
mod submissions;
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use cortex::domain::ambient::{Ambient, System};
use cortex::domain::execution::Usage;
use cortex::domain::ids::{ClusterId, DeliveryId, Epoch, JobId, LeaseId, WorkerId};
use cortex::domain::job::{JobDefaults, JobDraft, JobFilter, JobStatus, NewJob};
use cortex::domain::retry::RetryPolicy;
use cortex::domain::worker::{NewWorker, WorkerDraft};
use cortex::storage::{Claim, Completion, Database, DatabaseOptions, Fence, Insertion, Origin, StorageError};
use serde_json::json;
use support::Stores;

struct Setting {
    database: Database,
    pool: sqlx::PgPool,
    cluster: ClusterId,
    url: String,
}

impl Setting {
    async fn fresh() -> Self {
        let stores = Stores::fresh().await;
        let database = open(&stores.database_url);
        database.migrate().await.unwrap();
        let pool = stores.pool(2).await;
        Self { database, pool, cluster: ClusterId(System.uuid()), url: stores.database_url }
    }

    fn fence(&self, epoch: i64) -> Fence {
        Fence { cluster_id: self.cluster, epoch: Epoch(epoch) }
    }

    /// Stretches the limits that the fence sets: a slow machine must not end what a test holds up.
    async fn stretch_limits(&self) {
        sqlx::query(STRETCHED).execute(&self.pool).await.unwrap();
    }

    async fn somebody_waits(&self, kind: &str) {
        support::eventually("somebody waits for a lock", async || {
            let waiting: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
                 WHERE locktype = $1 AND NOT granted AND datname = current_database()",
            )
            .bind(kind)
            .fetch_one(&self.pool)
            .await
            .unwrap();
            waiting == 1
        })
        .await;
    }

    async fn lead(&self, epoch: i64) -> Fence {
        let fence = self.fence(epoch);
        self.database.take_over(fence, 1, 1).await.unwrap();
        fence
    }
}

/// The product's own function with other numbers.
const STRETCHED: &str = "DO $$ BEGIN EXECUTE regexp_replace(
    pg_get_functiondef('cortex_fence'::regproc), '''[0-9]+m?s''', '''60s''', 'g'); END $$";

fn open(url: &str) -> Database {
    let seconds = Duration::from_secs(10);
    Database::connect_lazily(&DatabaseOptions {
        url: url.to_owned(),
        max_connections: 4,
        acquire_timeout: seconds,
        max_lifetime: seconds * 60,
        pooler: false,
    })
    .unwrap()
}

fn job(fields: serde_json::Value) -> NewJob {
    let mut body = json!({"name": "n", "model_name": "m", "model_version": "1", "input_data": {"a": 1}});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let draft: JobDraft = serde_json::from_str(&body.to_string()).unwrap();
    let defaults = JobDefaults { retry: RetryPolicy::default(), timeout_seconds: 60 };
    draft.check(JobId(System.uuid()), &defaults).unwrap()
}

fn worker() -> NewWorker {
    WorkerDraft {
        name: "w".into(),
        hostname: System.uuid().to_string(),
        ip_address: "127.0.0.1".into(),
        port: 1,
        capabilities: serde_json::Map::new(),
        max_concurrent_jobs: 1,
        heartbeat_interval_seconds: 30,
        version: None,
        metadata: serde_json::Map::new(),
    }
    .check(WorkerId(System.uuid()))
    .unwrap()
}

fn queued<'a>(jobs: &[&'a NewJob]) -> Vec<Insertion<'a>> {
    jobs.iter().map(|job| Insertion { job, claim: None, trace: None }).collect()
}

fn completion(claim: Claim, running: bool) -> Completion<'static> {
    Completion {
        job_id: claim.job_id,
        lease: claim.lease,
        worker_id: claim.worker_id,
        running,
        output: None,
        duration_ms: Some(5),
        usage: Usage::default(),
    }
}

async fn store(setting: &Setting, fence: Fence, jobs: &[&NewJob]) {
    let stored = setting.database.insert_jobs(fence, 0, &queued(jobs), 30).await.unwrap();
    assert_eq!(stored.len(), jobs.len());
}

#[tokio::test]
async fn replicas_that_start_together_migrate_once() {
    let stores = Stores::fresh().await;
    let databases: Vec<_> = (0..3).map(|_| open(&stores.database_url)).collect();
    let (a, b, c) = tokio::join!(databases[0].migrate(), databases[1].migrate(), databases[2].migrate());
    a.unwrap();
    b.unwrap();
    c.unwrap();
    let pool = stores.pool(1).await;
    let applied: i64 = sqlx::query_scalar("SELECT count(*) FROM _sqlx_migrations WHERE success")
        .fetch_one(&pool)
        .await
        .unwrap();
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")).unwrap().count();
    assert_eq!(usize::try_from(applied).unwrap(), files);
}

#[tokio::test]
async fn an_epoch_that_was_replaced_writes_nothing() {
    let setting = Setting::fresh().await;
    let old = setting.lead(5).await;
    setting.lead(9).await;
    assert!(matches!(setting.database.begin(old).await, Err(StorageError::Fenced)));
    let back = setting.database.take_over(setting.fence(8), 1, 1).await;
    assert!(matches!(back, Err(StorageError::Fenced)), "an epoch never goes back");
    let new_job = job(json!({}));
    let claim = Claim {
        job_id: new_job.id,
        worker_id: WorkerId(System.uuid()),
        lease: LeaseId(System.uuid()),
        delivery: None,
    };
    // The connections that met the fence are fit for the next transaction.
    for _ in 0..8 {
        assert!(matches!(setting.database.begin(old).await, Err(StorageError::Fenced)));
        let stored = setting.database.insert_jobs(old, 0, &queued(&[&new_job]), 30).await;
        assert!(matches!(stored, Err(StorageError::Fenced)), "{stored:?}");
        let assigned = setting.database.assign_jobs(old, 0, Origin::Queue, &[claim], 30).await;
        assert!(matches!(assigned, Err(StorageError::Fenced)));
        let completed = setting.database.complete_jobs(old, 0, &[completion(claim, false)]).await;
        assert!(matches!(completed, Err(StorageError::Fenced)));
    }
    assert!(setting.database.job(new_job.id).await.unwrap().is_none());
    store(&setting, setting.fence(9), &[&job(json!({}))]).await;
}

#[tokio::test]
async fn taking_over_waits_for_the_transactions_of_the_old_leader() {
    let setting = Setting::fresh().await;
    setting.stretch_limits().await;
    let old = setting.lead(1).await;
    let mut transaction = setting.database.begin(old).await.unwrap();
    let (written, _) = transaction.register_worker(&worker()).await.unwrap();
    let database = setting.database.clone();
    let next = setting.fence(2);
    let taking_over = tokio::spawn(async move { database.take_over(next, 2, 2).await });
    setting.somebody_waits("advisory").await;
    assert!(!taking_over.is_finished());
    transaction.commit().await.unwrap();
    taking_over.await.unwrap().unwrap();
    assert!(setting.database.worker(written.id).await.unwrap().is_some(), "the old leader's commit counts");
}

#[tokio::test]
async fn a_leader_that_freezes_in_a_transaction_does_not_hold_up_the_next_one() {
    let setting = Setting::fresh().await;
    let old = setting.lead(1).await;
    let mut frozen = setting.database.begin(old).await.unwrap();
    let (written, _) = frozen.register_worker(&worker()).await.unwrap();
    setting.database.take_over(setting.fence(2), 2, 2).await.unwrap();
    assert!(frozen.commit().await.is_err());
    assert!(setting.database.worker(written.id).await.unwrap().is_none(), "nothing of it is written");
}

#[tokio::test]
async fn another_cluster_s_database_is_left_alone() {
    let setting = Setting::fresh().await;
    setting.lead(1).await;
    let foreign = Fence { cluster_id: ClusterId(System.uuid()), epoch: Epoch(100) };
    let refused = setting.database.take_over(foreign, 1, 1).await;
    assert!(matches!(refused, Err(StorageError::ForeignCluster(_))), "{refused:?}");
}

#[test]
fn a_transaction_that_is_open_when_its_runtime_ends_ends_with_it() {
    let begins = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let runtime = begins();
    let url = runtime.block_on(async {
        let setting = Setting::fresh().await;
        let fence = setting.lead(1).await;
        let transaction = setting.database.begin(fence).await.unwrap();
        tokio::spawn(async move {
            let _held = transaction;
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        setting.url
    });
    // Tasks that are spawned from now on are dropped at once.
    drop(runtime);
    begins().block_on(async {
        let pool = sqlx::PgPool::connect(&url).await.unwrap();
        let open = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
        support::eventually("no transaction is open", async || {
            sqlx::query_scalar::<_, i64>(open).fetch_one(&pool).await.unwrap() == 0
        })
        .await;
    });
}

#[tokio::test]
async fn a_job_is_assigned_once_and_only_while_it_is_queued() {
    let setting = Setting::fresh().await;
    let fence = setting.lead(1).await;
    let new_job = job(json!({}));
    store(&setting, fence, &[&new_job]).await;
    let mut taken = Vec::new();
    for _ in 0..2 {
        let mut transaction = setting.database.begin(fence).await.unwrap();
        let (worker, _) = transaction.register_worker(&worker()).await.unwrap();
        let claim =
            Claim { job_id: new_job.id, worker_id: worker.id, lease: LeaseId(System.uuid()), delivery: None };
        transaction.commit().await.unwrap();
        taken.push(setting.database.assign_jobs(fence, 0, Origin::Queue, &[claim], 30).await.unwrap().len());
    }
    assert_eq!(taken, [1, 0]);
    let stats = setting.database.stats().await.unwrap();
    assert_eq!((stats.queued, stats.assigned), (0, 1));
    assert_eq!(setting.database.take_over_leases(fence).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_new_leader_sets_right_what_a_replica_without_the_table_of_leases_has_left() {
    let setting = Setting::fresh().await;
    let fence = setting.lead(1).await;
    let mut transaction = setting.database.begin(fence).await.unwrap();
    let (worker, _) = transaction.register_worker(&worker()).await.unwrap();
    transaction.commit().await.unwrap();
    let (granted, ended) = (job(json!({})), job(json!({})));
    let claim = |job: &NewJob| Claim {
        job_id: job.id,
        worker_id: worker.id,
        lease: LeaseId(System.uuid()),
        delivery: None,
    };
    let claims = [claim(&granted), claim(&ended)];
    let rows = [&granted, &ended].into_iter().zip(claims);
    let rows: Vec<_> = rows.map(|(job, claim)| Insertion { job, claim: Some(claim), trace: None }).collect();
    setting.database.insert_jobs(fence, 0, &rows, 30).await.unwrap();
    let done = setting.database.complete_jobs(fence, 0, &[completion(claims[1], false)]).await.unwrap();
    assert_eq!(done.len(), 1);
    let kept = async || -> Vec<(uuid::Uuid, uuid::Uuid)> {
        sqlx::query_as("SELECT job_id, id FROM leases ORDER BY id").fetch_all(&setting.pool).await.unwrap()
    };
    let right = [(granted.id.0, claims[0].lease.0)];
    assert_eq!(kept().await, right);

    // One lease was granted and one ended without a word to the table; as many rows as before.
    sqlx::query("UPDATE leases SET job_id = $1, id = $2")
        .bind(ended.id.0)
        .bind(claims[1].lease.0)
        .execute(&setting.pool)
        .await
        .unwrap();
    let fence = setting.lead(2).await;
    let live = setting.database.take_over_leases(fence).await.unwrap();
    assert_eq!(live.iter().map(|live| live.lease).collect::<Vec<_>>(), [claims[0].lease]);
    assert_eq!(kept().await, right);
}

/// As it was before the migration with this number.
async fn migrate_until(pool: &sqlx::PgPool, version: i64) {
    let mut before = sqlx::migrate!("./migrations");
    before.migrations = before.iter().filter(|migration| migration.version < version).cloned().collect();
    before.run(pool).await.unwrap();
}

#[tokio::test]
async fn leases_that_are_in_force_outlast_the_migration_that_gives_them_a_table() {
    let stores = Stores::fresh().await;
    let pool = stores.pool(1).await;
    migrate_until(&pool, 8).await;
    sqlx::query(
        "INSERT INTO jobs (name, model_name, model_version, input_data, status, assigned_worker_id, lease_id,
             lease_expires_at)
         VALUES ('n', 'm', '1', '{}', 'assigned', gen_random_uuid(), gen_random_uuid(), now())",
    )
    .execute(&pool)
    .await
    .unwrap();
    open(&stores.database_url).migrate().await.unwrap();
    let kept: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM leases l JOIN jobs j ON j.id = l.job_id AND j.lease_id = l.id",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(kept, 1);
}

#[tokio::test]
async fn jobs_that_ended_long_ago_go_with_their_executions_and_leave_the_counters() {
    let setting = Setting::fresh().await;
    setting.stretch_limits().await;
    let fence = setting.lead(1).await;
    let (day, jobs) = (Duration::from_secs(24 * 3600), (0..5).map(|_| job(json!({}))).collect::<Vec<_>>());
    store(&setting, fence, &jobs.iter().collect::<Vec<_>>()).await;
    let ends =
        [("completed", "3 days"), ("failed", "2 hours"), ("timeout", "3 days"), ("cancelled", "3 days")];
    for (job, (status, ago)) in jobs.iter().zip(ends) {
        sqlx::query(
            "WITH ended AS (UPDATE jobs SET status = $2, completed_at = now() - $3::text::interval WHERE id = $1
                 RETURNING id, completed_at)
             INSERT INTO executions (job_id, worker_id, attempt_number, status, started_at, completed_at)
             SELECT id, id, 1, 'failed', completed_at, completed_at FROM ended",
        )
        .bind(job.id.0)
        .bind(status)
        .bind(ago)
        .execute(&setting.pool)
        .await
        .unwrap();
    }
    sqlx::query("UPDATE jobs SET submitted_at = submitted_at - interval '4 days'")
        .execute(&setting.pool)
        .await
        .unwrap();

    let first = setting.database.old_jobs(day, None, 3).await.unwrap();
    let rest = setting.database.old_jobs(day, first.last(), 3).await.unwrap();
    let seen: Vec<_> = first.iter().chain(&rest).map(|job| (job.id, job.ended)).collect();
    let ended = [true, false, true, true, false];
    assert_eq!(seen, jobs.iter().map(|job| job.id).zip(ended).collect::<Vec<_>>());
    assert!(setting.database.old_jobs(5 * day, None, 3).await.unwrap().is_empty(), "nothing is so old");

    // Between the look and the deletion it is tried again; whoever does that has the row locked.
    let mut retry = setting.pool.begin().await.unwrap();
    sqlx::query("UPDATE jobs SET status = 'queued', completed_at = NULL WHERE id = $1")
        .bind(jobs[2].id.0)
        .execute(&mut *retry)
        .await
        .unwrap();
    let before = setting.database.stats().await.unwrap();
    let mut transaction = setting.database.begin(fence).await.unwrap();
    let all: Vec<_> = jobs.iter().map(|job| job.id).collect();
    let (deleted, ()) = tokio::join!(transaction.delete_ended(6, &all, day), async {
        setting.somebody_waits("transactionid").await;
        retry.commit().await.unwrap();
    });
    assert_eq!(deleted.unwrap(), 2);
    transaction.commit().await.unwrap();
    let left: Vec<uuid::Uuid> = sqlx::query_scalar("SELECT id FROM jobs ORDER BY submitted_at")
        .fetch_all(&setting.pool)
        .await
        .unwrap();
    assert_eq!(left, [jobs[1].id.0, jobs[2].id.0, jobs[4].id.0]);
    let executions: Vec<uuid::Uuid> = sqlx::query_scalar("SELECT job_id FROM executions ORDER BY job_id")
        .fetch_all(&setting.pool)
        .await
        .unwrap();
    assert_eq!(executions, [jobs[1].id.0, jobs[2].id.0]);
    let after = setting.database.stats().await.unwrap();
    assert_eq!((after.completed, after.cancelled), (before.completed - 1, before.cancelled - 1));
    assert_eq!(after.total_jobs, before.total_jobs - 2);
}

#[tokio::test]
async fn a_job_whose_call_went_away_before_the_commit_can_be_fetched_by_another_call() {
    let setting = Setting::fresh().await;
    let fence = setting.lead(1).await;
    let new_job = job(json!({}));
    store(&setting, fence, &[&new_job]).await;
    let (gone, next) = (DeliveryId(System.uuid()), DeliveryId(System.uuid()));
    let lease = LeaseId(System.uuid());
    let mut transaction = setting.database.begin(fence).await.unwrap();
    let (worker, _) = transaction.register_worker(&worker()).await.unwrap();
    let claim = Claim { job_id: new_job.id, worker_id: worker.id, lease, delivery: Some(gone) };
    transaction.commit().await.unwrap();
    assert_eq!(setting.database.assign_jobs(fence, 0, Origin::Queue, &[claim], 30).await.unwrap().len(), 1);
    let mut transaction = setting.database.begin(fence).await.unwrap();
    let live = transaction.mark_delivered(&[(lease, next)]).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(live, [lease], "what is left out counts as ended, and the leader forgets it");
    assert_eq!(setting.database.take_over_leases(fence).await.unwrap()[0].delivery, Some(next));
}

#[tokio::test]
async fn the_database_refuses_what_the_state_machine_forbids() {
    let setting = Setting::fresh().await;
    let fence = setting.lead(1).await;
    let new_job = job(json!({}));
    store(&setting, fence, &[&new_job]).await;
    for change in [
        "status = 'lost'",
        "status = 'pending'",
        "status = 'assigned'",
        "status = 'running'",
        "status = 'completed'",
        "completed_at = now()",
        "lease_id = gen_random_uuid()",
        "priority = 11",
        "retry_count = -1",
        "timeout_seconds = 0",
    ] {
        let statement = format!("UPDATE jobs SET {change} WHERE id = '{}'", new_job.id);
        let refused = sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&setting.pool).await;
        assert!(refused.is_err(), "accepted {change}");
    }
}

#[tokio::test]
async fn every_combination_of_filters_finds_its_jobs() {
    let setting = Setting::fresh().await;
    let fence = setting.lead(1).await;
    let wanted = job(json!({"priority": 7, "created_by": "me", "tags": {"k": "v", "l": "w"}}));
    let other = job(json!({"model_name": "other", "tags": {"k": "x"}}));
    store(&setting, fence, &[&wanted, &other]).await;
    for mask in 0..32 {
        let on = |bit: i32| mask & (1 << bit) != 0;
        let tags: BTreeMap<_, _> = [("k".to_owned(), "v".to_owned())].into();
        let filter = JobFilter {
            status: on(0).then_some(JobStatus::Queued),
            priority: on(1).then_some(7),
            model_name: on(2).then(|| "m".to_owned()),
            created_by: on(3).then(|| "me".to_owned()),
            tags: if on(4) { tags } else { BTreeMap::new() },
        };
        let found = setting.database.jobs(&filter, 1, 10).await.unwrap();
        let expected = if mask & !1 == 0 { vec![other.id, wanted.id] } else { vec![wanted.id] };
        let ids: Vec<_> = found.jobs.iter().map(|job| job.id).collect();
        assert_eq!(ids, expected, "{filter:?}");
        assert_eq!(found.total, i64::try_from(expected.len()).unwrap(), "{filter:?}");
    }
    let second = setting.database.jobs(&JobFilter::default(), 2, 1).await.unwrap();
    assert_eq!((second.jobs[0].id, second.pages, second.total), (wanted.id, 2, 2));
    let nothing = JobFilter { status: Some(JobStatus::Failed), ..JobFilter::default() };
    assert!(setting.database.jobs(&nothing, 1, 10).await.unwrap().jobs.is_empty());
}

/// Makes the database's transactions see what was there when they began, unless they ask for something else.
const STRICT: &str = "DO $$ BEGIN EXECUTE format(
    'ALTER DATABASE %I SET default_transaction_isolation = ''repeatable read''', current_database()); END $$";

#[tokio::test]
async fn the_fence_holds_whatever_the_database_s_isolation_is() {
    let setting = Setting::fresh().await;
    setting.stretch_limits().await;
    let old = setting.lead(1).await;
    sqlx::query(STRICT).execute(&setting.pool).await.unwrap();
    let strict = open(&setting.url);
    // A leader that begins to write at the moment when another one takes over.
    let mut lock = setting.pool.acquire().await.unwrap();
    sqlx::query("SELECT pg_advisory_lock(cortex_fence_key())").execute(&mut *lock).await.unwrap();
    let writing = tokio::spawn(async move { strict.begin(old).await.map(drop) });
    setting.somebody_waits("advisory").await;
    sqlx::query("UPDATE leadership SET epoch = 2").execute(&mut *lock).await.unwrap();
    sqlx::query("SELECT pg_advisory_unlock(cortex_fence_key())").execute(&mut *lock).await.unwrap();
    assert!(matches!(writing.await.unwrap(), Err(StorageError::Fenced)));
}
