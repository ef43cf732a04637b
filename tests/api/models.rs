//! The tables and models of the specification, as docs/SPEC.md lists them, beside what PostgreSQL has and what is
//! served.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::group::{Api, REPLICAS};
use crate::hand::Hand;

const ROWS: &str = include_str!("../../docs/SPEC.md");

/// First and second cell of the rows whose first one is `what.name` for one of these.
fn rows(of: &[&str]) -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    for line in ROWS.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = line.split('`').skip(1).step_by(2);
        let (Some(name), Some(value)) = (cells.next(), cells.next()) else { continue };
        if let Some((what, name)) = name.split_once('.').filter(|(what, _)| of.contains(what)) {
            found.insert((what.to_owned(), name.to_owned()), value.to_owned());
        }
    }
    found
}

#[tokio::test]
async fn every_column_of_the_specification_is_there_with_its_type() {
    let api = Api::of("columns").await;
    let tables = ["jobs", "workers", "executions", "queue_metrics"];
    let columns: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod)
             || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
             || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '')
         FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid AND c.relkind = 'r'
             JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
             LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
         WHERE c.relname = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped",
    )
    .bind(tables)
    .fetch_all(&api.database)
    .await
    .unwrap();
    let columns: BTreeMap<(String, String), String> =
        columns.into_iter().map(|(table, column, kind)| ((table, column), kind)).collect();
    let expected = rows(&tables);
    assert_eq!(expected.len(), 88, "the columns of the specification");
    for (column, kind) in expected {
        assert_eq!(columns.get(&column), Some(&kind), "{column:?}");
    }
    api.leave().await;
}

#[tokio::test]
async fn the_indexes_of_the_specification_are_there_or_what_replaces_them() {
    let api = Api::of("indexes").await;
    let there: BTreeSet<String> =
        sqlx::query_scalar("SELECT indexname::text FROM pg_indexes WHERE schemaname = 'public'")
            .fetch_all(&api.database)
            .await
            .unwrap()
            .into_iter()
            .collect();
    let chapter = ROWS.split("\n## ").find(|chapter| chapter.starts_with("Indexes")).unwrap();
    let rows: Vec<&str> = chapter.lines().filter(|line| line.starts_with("| `idx_")).collect();
    assert_eq!(rows.len(), 17, "the indexes of the specification");
    for row in rows {
        let mut named = row.split('`').skip(1).step_by(2).filter(|name| name.starts_with("idx_"));
        // The first is the specification's own.
        let own = named.next().unwrap();
        assert_eq!(there.contains(own), row.contains("| kept |"), "{own}");
        named.for_each(|other| assert!(there.contains(other), "{other}"));
    }
    api.leave().await;
}

#[tokio::test]
async fn every_model_shows_the_fields_of_the_specification() {
    let api = Api::of("models").await;
    let hand = Hand::new(&api, 0, 1).await;
    let id = api.submit(1, &json!({})).await;
    let given = hand.job().await;
    hand.report(&hand.success(&given, &json!({"b": 1}))).await;
    for replica in 0..REPLICAS {
        let list = api.get(replica, &format!("/api/v1/jobs?created_by={}", api.name)).await.expect(200);
        let workers = api.get(replica, "/api/v1/workers").await.expect(200);
        let shown = [
            ("Job", api.job(replica, &id).await),
            ("JobList", list),
            ("JobStats", api.get(replica, "/api/v1/jobs/stats/summary").await.expect(200)),
            ("Worker", api.get(replica, &format!("/api/v1/workers/{}", hand.id)).await.expect(200)),
            ("WorkerList", workers),
            ("WorkerStats", api.get(replica, "/api/v1/workers/stats/summary").await.expect(200)),
            ("Execution", api.executions(replica, &id).await.remove(0)),
        ];
        for (model, shown) in shown {
            assert_eq!(fields(&shown), named(model), "{model} at replica {replica}");
        }
    }
    api.leave().await;
}

fn fields(shown: &Value) -> BTreeSet<String> {
    shown.as_object().unwrap().keys().cloned().collect()
}

fn named(model: &str) -> BTreeSet<String> {
    rows(&[model]).into_keys().map(|(_, field)| field).collect()
}
