//! Lists of jobs: what is counted, and what is found of each state.

use std::collections::BTreeMap;
use std::time::Duration;

use cortex::domain::ambient::{Ambient, System};
use cortex::domain::ids::{ClusterId, JobId};
use cortex::domain::job::{Job, JobFilter, JobStatus, MAX_TAGS};
use cortex::domain::payload::Payload;
use serde_json::json;

use crate::support::Stores;
use crate::{Setting, job};

/// A row in a state, without a way there.
async fn plant(setting: &Setting, status: &str, count: i32) {
    sqlx::query(
        "INSERT INTO jobs (id, name, model_name, model_version, status, input_data, next_retry_at, queued_at,
             assigned_worker_id, lease_id, lease_expires_at, completed_at, submitted_at, tags)
         SELECT gen_random_uuid(), $1, 'planted', '1', $1, '{\"a\": 1}',
             CASE WHEN $1 = 'pending' THEN now() END, now(),
             CASE WHEN $1 IN ('assigned', 'running') THEN gen_random_uuid() END,
             CASE WHEN $1 IN ('assigned', 'running') THEN gen_random_uuid() END,
             CASE WHEN $1 IN ('assigned', 'running') THEN now() END,
             CASE WHEN $1 IN ('completed', 'failed', 'cancelled', 'timeout') THEN now() END,
             now() - n * interval '1 second', '{\"planted\": \"yes\"}'
         FROM generate_series(1, $2) n",
    )
    .bind(status)
    .bind(count)
    .execute(&setting.pool)
    .await
    .unwrap();
    let counted = format!("UPDATE job_counters SET {status} = {status} + {count} WHERE slot = 9");
    sqlx::query(sqlx::AssertSqlSafe(counted)).execute(&setting.pool).await.unwrap();
}

fn of_state(status: JobStatus) -> JobFilter {
    JobFilter { status: Some(status), ..JobFilter::default() }
}

#[tokio::test]
async fn a_page_that_is_too_large_is_refused_and_a_smaller_one_is_not() {
    let setting = Setting::fresh().await;
    plant(&setting, "failed", 70).await;
    let large = "UPDATE jobs SET input_data = jsonb_build_object('a', repeat('x', 1048576))";
    sqlx::query(large).execute(&setting.pool).await.unwrap();
    let page = async |size| setting.database.jobs(&JobFilter::default(), 1, size).await;
    let refused = page(70).await.unwrap_err().to_string();
    assert!(refused.contains("more than 64 MiB"), "{refused}");
    assert_eq!(page(60).await.unwrap().jobs.len(), 60);
}

#[tokio::test]
async fn jobs_of_every_state_are_found_and_counted() {
    let setting = Setting::fresh().await;
    for (count, status) in (1..).zip(JobStatus::ALL) {
        plant(&setting, status.as_str(), count).await;
    }
    sqlx::query("INSERT INTO leases (job_id, id) SELECT id, lease_id FROM jobs WHERE lease_id IS NOT NULL")
        .execute(&setting.pool)
        .await
        .unwrap();
    // One more that runs, driven from outside.
    sqlx::query(
        "UPDATE jobs SET status = 'running', lease_expires_at = now(), next_retry_at = NULL WHERE status = 'pending'",
    )
    .execute(&setting.pool)
    .await
    .unwrap();
    sqlx::query("UPDATE job_counters SET pending = 0, running = running + 1 WHERE slot = 9")
        .execute(&setting.pool)
        .await
        .unwrap();
    let running = JobStatus::ALL.iter().position(|status| *status == JobStatus::Running).unwrap();
    for (place, status) in JobStatus::ALL.into_iter().enumerate() {
        let count = if status == JobStatus::Pending { 0 } else { place + 1 + usize::from(place == running) };
        for filter in [of_state(status), JobFilter { model_name: Some("planted".into()), ..of_state(status) }]
        {
            let found = setting.database.jobs(&filter, 1, 100).await.unwrap();
            assert_eq!((found.jobs.len(), found.total), (count, i64::try_from(count).unwrap()), "{filter:?}");
            assert!(found.jobs.iter().all(|job| job.status == status));
            assert!(found.jobs.is_sorted_by_key(|job| std::cmp::Reverse(job.submitted_at)));
        }
    }
}

#[tokio::test]
async fn a_total_is_exact_by_state_and_reaches_ten_thousand_beyond_the_page_otherwise() {
    let setting = Setting::fresh().await;
    plant(&setting, "completed", 12_500).await;
    let total = async |filter: &JobFilter, page| {
        let list = setting.database.jobs(filter, page, 100).await.unwrap();
        (list.jobs.len(), list.total, list.pages)
    };
    let by_model = JobFilter { model_name: Some("planted".into()), ..JobFilter::default() };
    for exact in [JobFilter::default(), of_state(JobStatus::Completed)] {
        assert_eq!(total(&exact, 1).await, (100, 12_500, 125));
        assert_eq!(total(&exact, 125).await, (100, 12_500, 125));
        assert_eq!(total(&exact, 126).await, (0, 12_500, 125));
    }
    assert_eq!(total(&by_model, 1).await, (100, 10_100, 101));
    assert_eq!(total(&by_model, 11).await, (100, 11_100, 111));
    assert_eq!(total(&by_model, 125).await, (100, 12_500, 125));
    assert_eq!(total(&by_model, 126).await, (0, 12_500, 125));
    assert_eq!(total(&by_model, 1_000_000_000).await.0, 0);
}

#[tokio::test]
async fn completed_jobs_are_told_apart_from_few_and_from_many_that_are_under_way() {
    let setting = Setting::fresh().await;
    plant(&setting, "completed", 30).await;
    plant(&setting, "failed", 10).await;
    let by_model = JobFilter { model_name: Some("planted".into()), ..of_state(JobStatus::Completed) };
    let by_tag = JobFilter { tags: tags([("planted", "yes")]), ..of_state(JobStatus::Completed) };
    // At last more have ended otherwise than are told apart.
    for (under_way, failed) in [(0, 0), (20, 0), (5_100, 50_000)] {
        plant(&setting, "queued", under_way).await;
        plant(&setting, "failed", failed).await;
        for filter in [of_state(JobStatus::Completed), by_model.clone(), by_tag.clone()] {
            for (page, shown) in [(1, 20), (2, 10), (3, 0)] {
                let found = setting.database.jobs(&filter, page, 20).await.unwrap();
                assert!(found.jobs.iter().all(|job| job.status == JobStatus::Completed));
                assert_eq!((found.jobs.len(), found.total), (shown, 30), "{under_way}, page {page}");
            }
        }
    }
}

/// Tags like these.
fn tags<const N: usize>(tags: [(&str, &str); N]) -> BTreeMap<String, String> {
    tags.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

#[tokio::test]
async fn a_total_reaches_a_thousand_beyond_the_page_where_more_than_one_thing_is_asked_for() {
    let setting = Setting::fresh().await;
    plant(&setting, "completed", 1_400).await;
    let tagged = "WITH gone AS (DELETE FROM jobs RETURNING *) INSERT INTO jobs (id, name, model_name, model_version,
        status, input_data, queued_at, completed_at, submitted_at, tags) SELECT id, name, model_name, model_version,
        status, input_data, queued_at, completed_at, submitted_at, '{\"k\": \"v\", \"l\": \"w\"}' FROM gone";
    sqlx::query(tagged).execute(&setting.pool).await.unwrap();
    let model_name = Some("planted".to_owned());
    let one = JobFilter { tags: tags([("k", "v")]), ..JobFilter::default() };
    let two = JobFilter { tags: tags([("k", "v"), ("l", "w")]), ..JobFilter::default() };
    for (filter, most) in [
        (one.clone(), 10_000),
        (JobFilter { model_name: model_name.clone(), ..JobFilter::default() }, 10_000),
        (two, 1_000),
        (JobFilter { model_name, ..one }, 1_000),
    ] {
        for (page, shown) in [(1, 50), (6, 50), (28, 50), (29, 0), (4_000, 0), (i64::MAX / 100, 0)] {
            let found = setting.database.jobs(&filter, page, 50).await.unwrap();
            let total = if shown == 0 { 1_400 } else { 1_400.min(page * 50 + most) };
            let pages = total / 50;
            assert_eq!((found.jobs.len(), found.total, found.pages), (shown, total, pages), "page {page}");
        }
    }
}

/// Jobs in all states, of few models, creators, priorities, tags and times.
const RANDOM_JOBS: &str = "INSERT INTO jobs (id, name, model_name, model_version, status, priority, input_data,
        next_retry_at, queued_at, assigned_worker_id, lease_id, lease_expires_at, completed_at, submitted_at, created_by, tags)
    SELECT gen_random_uuid(), 'random', 'model-' || (3 * random() ^ 2)::int, '1', status,
        CASE WHEN random() < 0.5 THEN 5 ELSE 4 + (2 * random())::int END, '{}',
        CASE WHEN status = 'pending' THEN now() END, now(),
        CASE WHEN status IN ('assigned', 'running') THEN gen_random_uuid() END,
        CASE WHEN status IN ('assigned', 'running') THEN gen_random_uuid() END,
        CASE WHEN status IN ('assigned', 'running') THEN now() END,
        CASE WHEN status IN ('completed', 'failed', 'cancelled', 'timeout') THEN now() END,
        now() - (n / 3) * interval '1 second', CASE WHEN random() < 0.9 THEN 'creator-' || (2 * random())::int END,
        (SELECT coalesce(jsonb_object_agg('k' || k, 'v' || (1.2 * random())::int), '{}')
         FROM generate_series(1, 5) k WHERE n > 0 AND random() < 0.6)
    FROM (SELECT n, (ARRAY['pending', 'queued', 'assigned', 'running', 'completed', 'failed', 'cancelled', 'timeout',
              'completed', 'completed', 'completed'])[1 + floor(11 * random())::int] AS status
          FROM generate_series(1, 2000) n) states";

/// Older ones that make some of the same tags frequent.
const MANY_JOBS: &str = "INSERT INTO jobs (id, name, model_name, model_version, status, priority, input_data, queued_at,
        completed_at, submitted_at, created_by, tags)
    SELECT gen_random_uuid(), 'many', 'model-' || n % 3, '1', CASE WHEN n % 4 = 0 THEN 'failed' ELSE 'completed' END,
        4 + n % 2, '{}', now(), now(), now() - interval '1 day' - n * interval '1 second', 'creator-' || n % 5,
        '{\"k1\": \"v0\", \"k3\": \"v0\"}'
    FROM generate_series(1, 10500) n";

/// Whether a filter asks for a job, by the letter.
fn asks_for(filter: &JobFilter, job: &Job) -> bool {
    let tags: BTreeMap<String, String> = serde_json::from_str(job.tags.as_str()).unwrap();
    filter.status.is_none_or(|status| job.status == status)
        && filter.priority.is_none_or(|priority| job.priority == priority)
        && filter.model_name.as_ref().is_none_or(|model| job.model_name == *model)
        && filter.created_by.as_ref().is_none_or(|creator| job.created_by.as_ref() == Some(creator))
        && filter.tags.iter().all(|(key, value)| tags.get(key) == Some(value))
}

#[tokio::test]
async fn every_list_is_what_a_look_at_every_job_finds() {
    let setting = Setting::fresh().await;
    for jobs in [RANDOM_JOBS, MANY_JOBS] {
        sqlx::query(jobs).execute(&setting.pool).await.unwrap();
    }
    for upkeep in [
        "INSERT INTO leases (job_id, id) SELECT id, lease_id FROM jobs WHERE lease_id IS NOT NULL",
        "UPDATE job_counters SET (pending, queued, assigned, running, completed, failed, cancelled, timeout) =
             (SELECT count(*) FILTER (WHERE status = 'pending'), count(*) FILTER (WHERE status = 'queued'),
                  count(*) FILTER (WHERE status = 'assigned'), count(*) FILTER (WHERE status = 'running'),
                  count(*) FILTER (WHERE status = 'completed'), count(*) FILTER (WHERE status = 'failed'),
                  count(*) FILTER (WHERE status = 'cancelled'), count(*) FILTER (WHERE status = 'timeout') FROM jobs)
         WHERE slot = 9",
        "ANALYZE",
    ] {
        sqlx::query(upkeep).execute(&setting.pool).await.unwrap();
    }
    let ids: Vec<JobId> = sqlx::query_scalar("SELECT id FROM jobs ORDER BY submitted_at DESC, id DESC")
        .fetch_all(&setting.pool)
        .await
        .unwrap()
        .into_iter()
        .map(JobId)
        .collect();
    let jobs = setting.database.jobs_of(&ids).await.unwrap();
    assert_eq!(jobs.len(), 12_500);
    let mut found_any = 0;
    for number in 0..240_u32 {
        let one_of = |most: f64| System.unit() * most;
        let some = |what: u32| number & (1 << what) != 0;
        let asked = [("k1", "v0"), ("k2", "v1"), ("k3", "v0"), ("k4", "v0"), ("k5", "v1")];
        // The last ask for every state with every number of tags, and for nothing else.
        let filter = if let Some(last) = number.checked_sub(192) {
            let few = asked.into_iter().take(last as usize / 8);
            let tags = few.map(|(key, value)| (key.into(), value.into())).collect();
            JobFilter { tags, ..of_state(JobStatus::ALL[last as usize % 8]) }
        } else {
            JobFilter {
                status: some(0).then(|| jobs[usize::try_from(number).unwrap()].status),
                priority: some(1).then(|| if one_of(1.0) < 0.5 { 5 } else { 4 }),
                model_name: some(2).then(|| format!("model-{}", u8::from(one_of(1.0) < 0.5))),
                created_by: some(3).then(|| format!("creator-{}", u8::from(one_of(1.0) < 0.5))),
                tags: asked
                    .into_iter()
                    .take(number as usize / 16 % 6)
                    .map(|(k, v)| (k.into(), v.into()))
                    .collect(),
            }
        };
        let expected: Vec<JobId> =
            jobs.iter().filter(|job| asks_for(&filter, job)).map(|job| job.id).collect();
        found_any += usize::from(!expected.is_empty());
        for (page, size) in [(1, 100), (2, 7), (3, 10), (500, 20)] {
            let found = setting.database.jobs(&filter, page, size).await.unwrap();
            let before = usize::try_from((page - 1) * size).unwrap();
            let shown = expected.iter().skip(before).take(usize::try_from(size).unwrap());
            let ids: Vec<JobId> = found.jobs.iter().map(|job| job.id).collect();
            assert_eq!(ids, shown.copied().collect::<Vec<_>>(), "page {page} of {size} of {filter:?}");
            let total = i64::try_from(expected.len()).unwrap();
            let counted = filter == JobFilter { status: filter.status, ..JobFilter::default() };
            let bound = if counted || ids.is_empty() { total } else { total.min(page * size + 1_000) };
            assert!((bound..=total).contains(&found.total), "{} of {total}: {filter:?}", found.total);
        }
    }
    assert!(found_any > 80, "{found_any}");
}

#[tokio::test]
async fn a_tag_is_written_once_with_its_job_by_whatever_way_and_goes_with_it() {
    let setting = Setting::fresh().await;
    let fence = setting.lead(1).await;
    let odd = job(json!({"tags": {"a": "b:c", "a:b": "c", "ä\\": "\\x41", "k": "v".repeat(4096)}}));
    let plain = job(json!({}));
    // The second time nothing is new.
    for _ in 0..2 {
        crate::store(&setting, fence, &[&plain, &odd]).await;
    }
    let rows = async || -> Vec<(uuid::Uuid, bool)> {
        let rows = "SELECT tag, (submitted_at, job_id) IN (SELECT submitted_at, id FROM jobs) FROM job_tags ORDER BY tag";
        sqlx::query_as(rows).fetch_all(&setting.pool).await.unwrap()
    };
    let short = async || -> Vec<Option<Vec<i64>>> {
        let sorted = "SELECT (SELECT array_agg(name ORDER BY name) FROM unnest(short_tags) name) AS names FROM jobs ORDER BY id";
        sqlx::query_scalar(sorted).fetch_all(&setting.pool).await.unwrap()
    };
    let (written, names) = (rows().await, short().await);
    assert_eq!((written.len(), names.len()), (4, 2));
    assert!(names.iter().flatten().all(|names| names.len() == 4), "{names:?}");
    assert!(written.iter().all(|(_, of_a_job)| *of_a_job), "{written:?}");
    // As by a leader that knows nothing of the table and of short names.
    let again = "WITH gone AS (DELETE FROM jobs RETURNING *) INSERT INTO jobs (id, name, model_name, model_version,
        status, input_data, queued_at, completed_at, submitted_at, tags) SELECT id, name, model_name, model_version,
        'completed', input_data, queued_at, now() - interval '1 hour', submitted_at, tags FROM gone";
    sqlx::query(again).execute(&setting.pool).await.unwrap();
    assert_eq!((rows().await, short().await), (written, names));
    for (key, value) in [("a", "b:c"), ("a:b", "c"), ("ä\\", "\\x41")] {
        let filter = JobFilter { tags: tags([(key, value)]), ..JobFilter::default() };
        assert_eq!(setting.database.jobs(&filter, 1, 10).await.unwrap().jobs.len(), 1, "{key}");
    }
    let mut transaction = setting.database.begin(fence).await.unwrap();
    let gone = transaction.delete_ended(0, &[plain.id, odd.id], Duration::from_secs(60)).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!((gone, rows().await.len()), (2, 0));
}

#[tokio::test]
async fn the_longest_names_and_the_most_tags_have_room_in_every_index() {
    let setting = Setting::fresh().await;
    let fence = setting.lead(1).await;
    // Of four bytes each, in no order that could be written shorter.
    let long = || -> String {
        let char = || char::from_u32(0x10000 + u32::from(System.uuid().as_fields().1)).unwrap();
        (0..255).map(|_| char()).collect()
    };
    let all: BTreeMap<String, String> = (0..MAX_TAGS).map(|n| (format!("k{n}"), "v".to_owned())).collect();
    let (model, creator) = (long(), long());
    let largest = job(json!({"model_name": model, "created_by": creator, "priority": 9, "tags": all}));
    crate::store(&setting, fence, &[&largest]).await;
    // As by a follower that knows of no bound.
    let mut beyond = job(json!({"model_name": long(), "created_by": long()}));
    let many: BTreeMap<String, String> = (0..400).map(|n| (format!("k{n}"), "v".to_owned())).collect();
    beyond.tags = Payload::trusted(serde_json::to_string(&many).unwrap());
    crate::store(&setting, fence, &[&beyond]).await;
    let failed = "UPDATE jobs SET status = 'failed', completed_at = now()";
    sqlx::query(failed).execute(&setting.pool).await.unwrap();
    let filter = JobFilter {
        model_name: Some(model),
        created_by: Some(creator),
        tags: all,
        ..of_state(JobStatus::Failed)
    };
    assert_eq!(setting.database.jobs(&filter, 1, 10).await.unwrap().jobs.len(), 1);
}

#[tokio::test]
async fn a_job_that_is_submitted_while_its_tags_are_migrated_is_found_by_them_whatever_the_isolation_is() {
    let stores = Stores::fresh().await;
    let pool = stores.pool(2).await;
    crate::migrate_until(&pool, 14).await;
    sqlx::query(crate::STRICT).execute(&pool).await.unwrap();
    let database = crate::open(&stores.database_url);
    let setting = Setting { database, pool, cluster: ClusterId(System.uuid()), url: stores.database_url };
    let insert = "INSERT INTO jobs (id, name, model_name, model_version, status, input_data, queued_at, tags)
        VALUES (gen_random_uuid(), 'n', 'm', '1', 'queued', '{}', now(), '{\"k\": \"v\"}')";
    let mut before = setting.pool.begin().await.unwrap();
    sqlx::query(insert).execute(&mut *before).await.unwrap();
    let commit = async {
        setting.somebody_waits("relation").await;
        before.commit().await.unwrap();
    };
    tokio::join!(setting.database.migrate(), commit).0.unwrap();
    sqlx::query(insert).execute(&setting.pool).await.unwrap();
    let tags: i64 =
        sqlx::query_scalar("SELECT count(*) FROM job_tags").fetch_one(&setting.pool).await.unwrap();
    assert_eq!(tags, 2);
    let short: Vec<Option<Vec<i64>>> =
        sqlx::query_scalar("SELECT short_tags FROM jobs").fetch_all(&setting.pool).await.unwrap();
    assert!(short.len() == 2 && short[0] == short[1] && short[0].is_some(), "{short:?}");
    let vacuumed = "SELECT reltuples >= 0 FROM pg_class WHERE relname = 'jobs'";
    let vacuumed: bool = sqlx::query_scalar(vacuumed).fetch_one(&setting.pool).await.unwrap();
    assert!(vacuumed, "a table that was written anew is vacuumed");
}

#[tokio::test]
async fn the_end_of_a_job_that_is_completed_is_written_in_place() {
    let setting = Setting::fresh().await;
    plant(&setting, "running", 20).await;
    plant(&setting, "assigned", 1).await;
    let mut transaction = setting.pool.begin().await.unwrap();
    let mut in_place = async |update: &'static str| -> i64 {
        sqlx::query(update).execute(&mut *transaction).await.unwrap();
        let count = "SELECT n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = 'jobs'";
        sqlx::query_scalar(count).fetch_one(&mut *transaction).await.unwrap()
    };
    let runs = "UPDATE jobs SET status = 'running', started_at = now() WHERE status = 'assigned'";
    assert_eq!(in_place(runs).await, 1);
    // Four, for which a page has room, as it has when jobs end one after the other.
    let completed =
        "UPDATE jobs SET status = 'completed', completed_at = now(), output_data = '{}', lease_id = NULL,
        lease_expires_at = NULL WHERE id IN (SELECT id FROM jobs WHERE status = 'running' LIMIT 4)";
    assert_eq!(in_place(completed).await, 5);
}

#[tokio::test]
async fn how_many_go_before_a_job_is_counted_in_the_order_of_dispatch() {
    let setting = Setting::fresh().await;
    let fence = setting.lead(1).await;
    let [urgent, first, second] = [json!({"priority": 9}), json!({}), json!({})].map(job);
    crate::store(&setting, fence, &[&first, &second, &urgent]).await;
    for (job, ahead) in [(&urgent, 0), (&first, 1), (&second, 2)] {
        let job = setting.database.job(job.id).await.unwrap().unwrap();
        assert_eq!(setting.database.ahead_of(&job, 10).await.unwrap(), ahead);
        assert_eq!(setting.database.ahead_of(&job, 1).await.unwrap(), ahead.min(1), "no more are counted");
    }
}
