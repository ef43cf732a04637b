//! What is well is called clean, also while much goes on.

use std::process::Stdio;
use std::time::Duration;

use cortex::verify::{CHECKS, Verdict};
use reqwest::Method;
use serde_json::json;
use tokio::process::Command;

use crate::scene::{CORTEX, Scene, off, unknown, verify};
use crate::support::eventually;

/// Nothing listens there.
const NOWHERE: &str = "127.0.0.1:1";

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_clean_while_it_works_and_when_all_is_done() {
    let scene = Scene::start().await;
    for port in 1..=3 {
        scene.start_worker(port, &["quick"], 10);
    }
    let retries = json!({"retry_policy": {"initial_delay_seconds": 1}});
    let mut submitted = 0;
    for round in 0..6 {
        scene.submit("quick", 150 + round, json!({"priority": 1 + round})).await;
        let failing = json!({"input_data": {"fails": 1}, "max_retries": 1, "metadata": retries, "tags": {"r": round.to_string()}});
        scene.submit("quick", 30 + round, failing).await;
        let ids = scene.submit("nobody", 10 + round, json!({"priority": 2})).await;
        for id in &ids[..3] {
            scene.ask(Method::DELETE, &format!("/api/v1/jobs/{id}"), json!({})).await;
        }
        scene.ask(Method::POST, &format!("/api/v1/jobs/{}/retry", ids[0]), json!({})).await;
        scene.ask(Method::PATCH, &format!("/api/v1/jobs/{}", ids[4]), json!({"status": "running"})).await;
        submitted += i64::try_from(180 + 2 * round).unwrap();
        let (report, status) = scene.verify(15).await;
        let wrong: Vec<_> =
            report.findings().filter(|(check, _)| check.name != "attempts_without_gaps").collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert_eq!((report.verdict, status), (Verdict::Clean, 0), "{report:#?}");
    }
    eventually("all is done", async || scene.count("quick", "completed").await == submitted).await;
    let (report, status) = scene.verify(15).await;
    assert_eq!((report.verdict, status), (Verdict::Clean, 0), "{report:#?}");
    assert_eq!(report.checks.len(), CHECKS.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_leader_repairs_meanwhile_is_not_reported() {
    let scene = Scene::start().await;
    scene.submit("nobody", 50, json!({})).await;
    eventually("the queue is clean", async || scene.verify(0).await.1 == 0).await;
    // Nothing is repaired before the first look.
    let here = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()";
    let others: Vec<i32> = sqlx::query_scalar(here).fetch_all(&scene.pool).await.unwrap();
    assert!(scene.cluster().pause(0));
    let client = redis::Client::open(scene.stores.redis_url.as_str()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let keys = format!("{}:*", scene.stores.queue_prefix);
    let keys: Vec<String> = redis::cmd("KEYS").arg(keys).query_async(&mut redis).await.unwrap();
    let _: i64 = redis::cmd("DEL").arg(keys).query_async(&mut redis).await.unwrap();
    let looked = eventually("the first look has come to its last step", async || {
        let last = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> ALL($1)
            AND query NOT LIKE '%pg_stat_activity%' AND state = 'idle' AND query LIKE '%ORDER BY -priority, submitted_at, id LIMIT%'";
        sqlx::query_scalar::<_, i64>(last).bind(&others).fetch_one(&scene.pool).await.unwrap() > 0
    });
    let repaired = async {
        looked.await;
        assert!(scene.cluster().resume(0));
    };
    let ((report, status), ()) = tokio::join!(scene.verify(20), repaired);
    assert_eq!((report.verdict, status), (Verdict::Clean, 0), "{report:#?}");
    assert!(report.elapsed_ms >= 20_000, "the first look found nothing: {report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_looked_at_is_unknown_and_never_clean() {
    let scene = Scene::start().await;
    eventually("it is clean", async || scene.verify(0).await.1 == 0).await;

    let redis = format!("redis://{NOWHERE}");
    let (report, status) = verify(&scene.config, 0, &[("CORTEX__QUEUE__REDIS_URL", &redis)]).await;
    assert_eq!((report.verdict, status), (Verdict::Unknown, 3), "{report:#?}");
    let missed = unknown(&report);
    assert_eq!(missed.len(), 10, "{missed:?}");
    assert!(missed.iter().all(|name| name.starts_with("queue") || *name == "claims_settled"), "{missed:?}");

    let postgres = format!("postgres://cortex@{NOWHERE}/cortex");
    let (report, status) = verify(&scene.config, 0, &[("CORTEX__DATABASE__URL", &postgres)]).await;
    assert_eq!((report.verdict, status), (Verdict::Unknown, 3), "{report:#?}");
    assert_eq!(unknown(&report).len(), CHECKS.len());

    // A database that was never migrated.
    let empty = crate::support::Stores::fresh().await.database_url;
    let (report, status) = verify(&scene.config, 0, &[("CORTEX__DATABASE__URL", &empty)]).await;
    assert_eq!((off(&report), status), (vec!["schema_current"], 1));
    assert_eq!(unknown(&report).len(), CHECKS.len() - 1);
}

#[tokio::test]
async fn a_configuration_that_cannot_be_read_is_an_error_as_everywhere() {
    let mut command = Command::new(CORTEX);
    command.args(["verify", "--config", "/no/such/file.yaml"]).stdin(Stdio::null());
    let output = tokio::time::timeout(Duration::from_secs(30), command.output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("error: "), "{said}");
}
