//! The REST surface: what every route answers, in success and in error.

use cortex::domain::job::MAX_TAGS;
use reqwest::Method;
use serde_json::{Value, json};

use crate::group::{Api, REPLICAS};

/// An id that nothing has.
const NOBODY: &str = "0190a5c0-0000-7000-8000-000000000001";

#[tokio::test]
async fn a_submission_is_answered_with_the_job_and_where_it_is() {
    let api = Api::of("submission").await;
    let full = api.draft(&json!({"name": "名前", "priority": 10, "max_retries": 0, "timeout_seconds": 86400,
        "input_data": {"deep": [{"n": 1.5, "t": "é", "none": null}]}, "tags": {"env": "prod", "a b": "c:d"},
        "metadata": {"user_id": "u", "retry_policy": {"strategy": "fixed"}, "requires_gpu": true}}));
    let reply = api.post(0, "/api/v1/jobs", &full).await;
    let place = reply.header("location").to_owned();
    let job = reply.expect(201);
    assert_eq!(place, format!("/api/v1/jobs/{}", job["id"].as_str().unwrap()));
    for (field, value) in full.as_object().unwrap() {
        assert_eq!(&job[field], value, "{field}");
    }
    assert_eq!((&job["status"], &job["retry_count"]), (&json!("pending"), &json!(0)));
    let seen = api.get(1, &place).await.expect(200);
    for field in full.as_object().unwrap().keys().chain([&"id".to_owned(), &"submitted_at".to_owned()]) {
        assert_eq!(seen[field], job[field], "{field}");
    }

    let minimal = json!({"name": "n", "model_name": api.name, "model_version": "1", "input_data": {"a": 1},
        "priority": null, "tags": null, "metadata": null, "created_by": api.name, "unknown": 1});
    let job = api.post(2, "/api/v1/jobs", &minimal).await.expect(201);
    for (field, default) in [("priority", json!(5)), ("max_retries", json!(3)), ("tags", json!({}))] {
        assert_eq!(job[field], default);
    }
    assert_eq!((&job["timeout_seconds"], &job["metadata"]), (&json!(3600), &json!({})));
    assert_eq!(job.as_object().unwrap().len(), 28, "all columns of the specification: {job}");
    api.leave().await;
}

#[tokio::test]
async fn every_bad_field_of_a_submission_is_named_at_once_and_nothing_is_stored() {
    let api = Api::of("bad-submission").await;
    let bad = json!({"name": "", "model_name": "m".repeat(256), "input_data": {}, "priority": 11,
        "max_retries": 10.5, "timeout_seconds": 0, "tags": {"a": 1}, "created_by": api.name,
        "metadata": {"retry_policy": {"strategy": "hope", "backoff_multiplier": 11, "max_retries": -1,
            "initial_delay_seconds": 0, "max_delay_seconds": "1", "retry_on_errors": "all", "jitter": 1},
            "requires_gpu": "yes", "required_memory_gb": -1}});
    for replica in 0..REPLICAS {
        let reply = api.post(replica, "/api/v1/jobs", &bad).await;
        let policy = |member: &str| format!("metadata.retry_policy.{member}");
        let mut expected: Vec<String> = [
            "name",
            "model_name",
            "model_version",
            "input_data",
            "priority",
            "max_retries",
            "timeout_seconds",
            "tags",
            "metadata.requires_gpu",
            "metadata.required_memory_gb",
        ]
        .map(str::to_owned)
        .to_vec();
        expected.extend(
            [
                "strategy",
                "backoff_multiplier",
                "max_retries",
                "initial_delay_seconds",
                "max_delay_seconds",
                "retry_on_errors",
                "jitter",
            ]
            .map(policy),
        );
        expected.sort_unstable();
        assert_eq!(reply.fields(), expected);
        assert_eq!(reply.body["type"], "urn:cortex:problem:invalid-fields");
        reply.expect(422);
    }
    for (field, value) in [
        ("metadata", json!([])),
        ("metadata", json!({"retry_policy": 1})),
        ("created_by", json!("")),
        ("input_data", json!({"a": "\u{0}"})),
        ("name", json!("a\u{0}")),
        ("tags", json!([])),
        ("tags", json!({"": "v"})),
        ("tags", Value::Object((0..=MAX_TAGS).map(|n| (n.to_string(), json!("v"))).collect())),
        ("priority", json!("5")),
        ("priority", json!(0)),
        ("timeout_seconds", json!(86401)),
        ("input_data", json!("text")),
    ] {
        let mut draft = api.draft(&json!({"name": "refused"}));
        draft[field] = value;
        let reply = api.post(0, "/api/v1/jobs", &draft).await;
        assert!(reply.fields().iter().all(|named| named.starts_with(field)), "{draft}: {reply:?}");
        reply.expect(422);
    }
    let stored: i64 =
        sqlx::query_scalar("SELECT count(*) FROM jobs WHERE created_by = $1 OR name = 'refused'")
            .bind(&api.name)
            .fetch_one(&api.database)
            .await
            .unwrap();
    assert_eq!(stored, 0);
    api.leave().await;
}

#[tokio::test]
async fn bodies_that_cannot_be_read_are_told_apart() {
    let api = Api::of("unreadable-bodies").await;
    let http = reqwest::Client::new();
    let job = api.submit(0, &json!({})).await;
    let one = format!("/api/v1/jobs/{job}");
    let routes = [(Method::POST, "/api/v1/jobs"), (Method::POST, "/api/v1/workers"), (Method::PATCH, &one)];
    let large = vec![b' '; (1 << 20) + 1];
    let cases: [(&str, &[u8], u16, &str); 8] = [
        ("application/json", b"{\"name\": ", 400, "malformed-request"),
        ("application/json", b"[1, 2]", 400, "malformed-request"),
        ("application/json", b"", 400, "malformed-request"),
        ("application/json", b"\"text\"", 400, "malformed-request"),
        ("text/plain", b"{}", 415, "unsupported-media-type"),
        ("", b"{}", 415, "unsupported-media-type"),
        ("application/json", &large, 413, "body-too-large"),
        ("application/json; charset=utf-8", b"{}", 422, "invalid-fields"),
    ];
    for (at, (method, path)) in routes.iter().enumerate() {
        for (kind, body, status, problem) in cases {
            let mut request = http.request(method.clone(), api.url(at, path)).body(body.to_vec());
            if !kind.is_empty() {
                request = request.header("content-type", kind);
            }
            let reply = crate::reply::Reply::read(request.send().await.unwrap()).await;
            assert_eq!(reply.body["type"], format!("urn:cortex:problem:{problem}"), "{method} {path} {kind}");
            reply.expect(status);
        }
    }
    api.leave().await;
}

#[tokio::test]
async fn what_is_not_there_is_not_found_and_what_is_no_id_is_malformed() {
    let api = Api::of("not-found").await;
    let body = json!({"status": "running"});
    let routes = [
        (Method::GET, "/api/v1/jobs/{}"),
        (Method::PATCH, "/api/v1/jobs/{}"),
        (Method::DELETE, "/api/v1/jobs/{}"),
        (Method::POST, "/api/v1/jobs/{}/retry"),
        (Method::GET, "/api/v1/jobs/{}/executions"),
        (Method::GET, "/api/v1/workers/{}"),
    ];
    for (replica, (method, route)) in (0..REPLICAS).cycle().zip(routes) {
        let body = (method == Method::PATCH).then_some(&body);
        let reply = api.send(replica, method.clone(), &route.replace("{}", NOBODY), body).await;
        assert_eq!(reply.body["type"], "urn:cortex:problem:not-found", "{method} {route}");
        reply.expect(404);
        for id in ["1", "nobody", "0190a5c0-0000-7000-8000-00000000000g", "%00", "%ff", "a%2fb"] {
            let reply = api.send(replica, method.clone(), &route.replace("{}", id), body).await;
            assert_eq!(reply.body["type"], "urn:cortex:problem:malformed-request", "{method} {route} {id}");
            assert_eq!(reply.fields(), [if route.contains("jobs") { "job_id" } else { "worker_id" }]);
            reply.expect(400);
        }
    }
    for path in ["/", "/api/v1", "/api/v1/nothing", "/api/v2/jobs", "/api/v1/jobs/", "/jobs"] {
        let reply = api.get(0, path).await;
        assert_eq!(reply.body["type"], "urn:cortex:problem:no-such-route", "{path}");
        reply.expect(404);
    }
    for (method, path, allowed) in [
        (Method::PUT, "/api/v1/jobs", vec!["GET", "HEAD", "POST"]),
        (Method::POST, "/api/v1/jobs/stats/summary", vec!["GET", "HEAD"]),
        (Method::PUT, &format!("/api/v1/jobs/{NOBODY}"), vec!["DELETE", "GET", "HEAD", "PATCH"]),
        (Method::GET, &format!("/api/v1/jobs/{NOBODY}/retry"), vec!["POST"]),
        (Method::POST, "/health", vec!["GET", "HEAD"]),
    ] {
        let reply = api.send(1, method, path, None).await;
        let mut allow: Vec<_> = reply.header("allow").split(',').map(str::trim).collect();
        allow.sort_unstable();
        assert_eq!(allow, allowed, "{path}");
        reply.expect(405);
    }
    api.leave().await;
}

#[tokio::test]
async fn a_listing_is_filtered_and_paged_newest_first() {
    let api = Api::of("listing").await;
    let mut ids = Vec::new();
    for number in 0..7 {
        let fields = json!({"priority": number % 2 + 1, "tags": {"even": (number % 2 == 0).to_string(), "all": "a:b"}});
        ids.push(api.submit(number % REPLICAS, &fields).await);
    }
    ids.reverse();
    api.patch(0, &ids[0], &json!({"status": "cancelled"})).await.expect(200);
    let mine = format!("/api/v1/jobs?model_name={0}&created_by={0}", api.name);
    let listed = async |replica: usize, more: &str| {
        let page = api.get(replica, &format!("{mine}{more}")).await.expect(200);
        let ids: Vec<String> = page["jobs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|job| job["id"].as_str().unwrap().to_owned())
            .collect();
        (ids, page)
    };
    let every = |from: usize| ids.iter().skip(from).step_by(2).cloned().collect::<Vec<_>>();
    for replica in 0..REPLICAS {
        let (all, page) = listed(replica, "").await;
        assert_eq!(all, ids);
        assert_eq!(
            (&page["total"], &page["page"], &page["page_size"], &page["pages"]),
            (&json!(7), &json!(1), &json!(50), &json!(1))
        );
        assert_eq!(listed(replica, "&priority=1").await.0, every(0));
        assert_eq!(listed(replica, "&tag=even:false").await.0, every(1));
        assert_eq!(listed(replica, "&tag=all:a%3Ab&tag=even:true").await.0, every(0));
        assert_eq!(listed(replica, "&tag=even:maybe").await.0, Vec::<String>::new());
        assert_eq!(listed(replica, "&status=cancelled").await.0, ids[..1]);
        assert_eq!(listed(replica, "&status_filter=cancelled").await.0, ids[..1]);
        let (third, page) = listed(replica, "&page=3&page_size=3").await;
        assert_eq!(third, ids[6..]);
        assert_eq!((&page["total"], &page["pages"]), (&json!(7), &json!(3)));
        assert_eq!(listed(replica, "&page=2&page_size=3").await.0, ids[3..6]);
        assert_eq!(listed(replica, "&page=4&page_size=3").await.0, Vec::<String>::new());
    }
    let bad = "/api/v1/jobs?status=done&priority=0&model_name=&created_by=%ff&tag=x&page=0&page_size=101";
    let reply = api.get(0, bad).await;
    assert_eq!(
        reply.fields(),
        ["created_by", "model_name", "page", "page_size", "priority", "status", "tag"]
    );
    reply.expect(422);
    api.leave().await;
}

#[tokio::test]
async fn the_statistics_are_not_taken_for_a_job_and_count_what_happens() {
    let api = Api::of("statistics").await;
    let stats = api.get(1, "/api/v1/jobs/stats/summary").await.expect(200);
    let states = ["pending", "queued", "assigned", "running", "completed", "failed", "cancelled", "timeout"];
    let sum: i64 = states.iter().map(|state| stats[state].as_i64().unwrap()).sum();
    assert_eq!(stats["total_jobs"], sum);
    let id = api.submit(0, &json!({})).await;
    api.cancel(0, &id).await.expect(204);
    let later = api.get(2, "/api/v1/jobs/stats/summary").await.expect(200);
    // Other tests revive cancelled jobs meanwhile; that every counter is right at the end is shown elsewhere.
    assert!(later["total_jobs"].as_i64() > stats["total_jobs"].as_i64(), "{stats} {later}");
    for member in ["average_execution_time_ms", "average_queue_time_ms", "success_rate"] {
        assert!(later[member].is_null() || later[member].is_f64(), "{later}");
    }
    api.leave().await;
}

#[tokio::test]
async fn a_write_at_one_replica_is_seen_at_once_at_the_others() {
    let api = Api::of("read-your-writes").await;
    for round in 0..30 {
        let [here, there, beyond] = [0, 1, 2].map(|step| (round + step) % REPLICAS);
        let id = api.submit(here, &json!({})).await;
        api.job(there, &id).await;
        let listed = api.get(beyond, &format!("/api/v1/jobs?created_by={}&page_size=1", api.name)).await;
        assert_eq!(listed.expect(200)["jobs"][0]["id"], id);
        let job = api.patch(there, &id, &json!({"status": "running"})).await.expect(200);
        assert_eq!(api.job(beyond, &id).await, job);
        api.cancel(beyond, &id).await.expect(204);
        assert_eq!(api.job(here, &id).await["status"], "cancelled");
        let job = api.retry(here, &id).await.expect(200);
        assert_eq!(
            (&job["status"], &api.job(there, &id).await["retry_count"]),
            (&json!("pending"), &json!(1))
        );
    }
    api.leave().await;
}

#[tokio::test]
async fn workers_are_registered_listed_and_shown() {
    let api = Api::of("rest-workers").await;
    let worker = json!({"name": api.name, "hostname": api.name, "ip_address": "10.0.2.10", "port": 8000,
        "capabilities": {"gpu": true, "gpu_count": 2, "models": [api.name]}, "max_concurrent_jobs": 2,
        "heartbeat_interval_seconds": 60, "version": "1.0.0"});
    let reply = api.post(0, "/api/v1/workers", &worker).await;
    let place = reply.header("location").to_owned();
    let shown = reply.expect(201);
    for (field, value) in worker.as_object().unwrap() {
        assert_eq!(&shown[field], value, "{field}");
    }
    assert_eq!((&shown["status"], &shown["current_job_count"]), (&json!("idle"), &json!(0)));
    let mut changed = worker.clone();
    changed["max_concurrent_jobs"] = json!(3);
    let again = api.post(1, "/api/v1/workers", &changed).await.expect(200);
    assert_eq!((&again["id"], &again["max_concurrent_jobs"]), (&shown["id"], &json!(3)));
    let seen = api.get(2, &place).await.expect(200);
    assert_eq!((&seen["id"], &seen["registered_at"]), (&again["id"], &again["registered_at"]));

    let named = |list: &Value| {
        assert_eq!(list["total"], list["workers"].as_array().unwrap().len());
        list["workers"].as_array().unwrap().iter().any(|worker| worker["id"] == shown["id"])
    };
    assert!(named(&api.get(0, "/api/v1/workers").await.expect(200)));
    assert!(named(&api.get(1, "/api/v1/workers?status=idle").await.expect(200)));
    assert!(!named(&api.get(2, "/api/v1/workers?status=offline").await.expect(200)));
    let reply = api.get(0, "/api/v1/workers?status=asleep").await;
    assert_eq!(reply.fields(), ["status"]);
    reply.expect(422);

    let bad = json!({"name": "", "hostname": 1, "ip_address": "here", "port": 65536, "max_concurrent_jobs": 101,
        "heartbeat_interval_seconds": 4, "version": "v".repeat(51),
        "capabilities": {"models": "a", "gpu": "yes", "memory_gb": "much"}});
    let reply = api.post(0, "/api/v1/workers", &bad).await;
    assert_eq!(
        reply.fields(),
        [
            "capabilities.gpu",
            "capabilities.memory_gb",
            "capabilities.models",
            "heartbeat_interval_seconds",
            "hostname",
            "ip_address",
            "max_concurrent_jobs",
            "name",
            "port",
            "version"
        ]
    );
    reply.expect(422);
    api.leave().await;
}
