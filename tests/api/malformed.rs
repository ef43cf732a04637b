//! Requests that nobody should send, from a seeded generator, to all replicas: each is refused as the
//! sender's mistake, and the replicas go on.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use futures::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;
use tonic::transport::Channel;
use tower::ServiceExt;

use crate::group::{Api, REPLICAS};
use crate::hand::{Hand, channel};
use crate::reply::Reply;

/// Requests under way at once.
const TOGETHER: usize = 16;
const RPCS: [&str; 7] = [
    "JobService/RegisterWorker",
    "JobService/Heartbeat",
    "JobService/PollJob",
    "JobService/UpdateJobStatus",
    "JobService/CompleteJob",
    "JobService/Session",
    "ClientService/SubmitJobs",
];

/// A text with everything that parsers trip over.
fn odd_text(random: &mut StdRng) -> String {
    const PARTS: [&str; 16] = [
        "",
        "a",
        "\0",
        "é",
        "\u{202e}",
        "%00",
        "'",
        "\"",
        "\\",
        "{",
        "]",
        "--",
        ";",
        "1e999",
        "0190a5c0-0000-7000-8000-000000000001",
        "../../etc",
    ];
    (0..random.random_range(0..6)).map(|_| PARTS[random.random_range(0..PARTS.len())]).collect()
}

/// A JSON value that fits no field in particular.
fn odd_value(random: &mut StdRng, depth: u32) -> Value {
    match random.random_range(0..if depth == 0 { 8 } else { 10 }) {
        0 => Value::Null,
        1 => json!(random.random::<bool>()),
        2 => json!(random.random::<i64>()),
        3 => json!(random.random::<f64>() * 1e300),
        4 => json!(-1),
        5 => json!("x".repeat(random.random_range(0..600))),
        6 => json!(u64::MAX),
        7 => json!(odd_text(random)),
        8 => (0..random.random_range(0..4)).map(|_| odd_value(random, depth - 1)).collect(),
        _ => {
            (0..random.random_range(0..4)).map(|_| (odd_text(random), odd_value(random, depth - 1))).collect()
        }
    }
}

/// A body that is no JSON, or JSON that cannot be accepted: at least one required field is wrong.
fn odd_body(random: &mut StdRng, name: &str) -> Vec<u8> {
    let valid = json!({"name": name, "model_name": name, "model_version": "1", "input_data": {"a": [1, {}]},
        "hostname": name, "ip_address": "127.0.0.1", "port": 1, "created_by": name});
    let text = valid.to_string().into_bytes();
    match random.random_range(0..6) {
        0 => (0..random.random_range(0..200)).map(|_| random.random()).collect(),
        1 => text[..random.random_range(0..text.len())].to_vec(),
        2 => {
            let depth = random.random_range(1..5_000);
            format!("{{\"name\": {}{}}}", "[".repeat(depth), "]".repeat(depth)).into_bytes()
        }
        3 => {
            // Broken in one place: the opening brace is gone.
            let mut broken = text;
            broken[0] = random.random_range(b'a'..=b'z');
            broken
        }
        4 => odd_value(random, 3).as_object().map_or(b"[1]".to_vec(), |_| b"{}".to_vec()),
        _ => {
            let mut body = valid;
            for field in
                ["name", "model_version", "input_data", "priority", "tags", "metadata", "port", "status"]
            {
                if random.random_range(0..3) > 0 {
                    body[field] = odd_value(random, 3);
                }
            }
            // Whatever the others came to: no name is that long, and no port or status like that.
            body["name"] = json!("n".repeat(256));
            body["status"] = json!("odd");
            body.to_string().into_bytes()
        }
    }
}

fn percent_encoded(random: &mut StdRng) -> String {
    let length = random.random_range(1..30);
    (0..length).map(|_| format!("%{:02x}", random.random::<u8>())).collect()
}

fn odd_query(random: &mut StdRng) -> String {
    const NAMES: [&str; 6] = ["status", "priority", "page", "page_size", "status_filter", "tag"];
    let name = NAMES[random.random_range(0..NAMES.len())];
    // No value of these makes sense: an odd byte, a number out of range, a tag without a colon.
    let value = match random.random_range(0..4) {
        0 => "%ff".to_owned(),
        1 => format!("%{}", random.random_range(b'g'..=b'z') as char),
        2 if name != "tag" => format!("-{}", random.random::<u32>()),
        _ => format!("no{}", random.random::<u16>()),
    };
    format!("/api/v1/jobs?page=1&{name}={value}&model_name={}", percent_encoded(random))
}

/// One odd request to the REST surface.
async fn odd_rest(http: &reqwest::Client, api: &Api, seed: u64) -> u16 {
    let random = &mut StdRng::seed_from_u64(seed);
    let replica = random.random_range(0..REPLICAS);
    let url = |path: &str| api.url(replica, path);
    let json = |method, path: &str, body: Vec<u8>| {
        http.request(method, url(path)).header("content-type", "application/json").body(body)
    };
    let request = match random.random_range(0..10) {
        0..4 => json(Method::POST, "/api/v1/jobs", odd_body(random, &api.name)),
        4 => json(Method::POST, "/api/v1/workers", odd_body(random, &api.name)),
        5 => json(
            Method::PATCH,
            "/api/v1/jobs/0190a5c0-0000-7000-8000-000000000001",
            odd_body(random, &api.name),
        ),
        6 => http.get(url(&format!("/api/v1/jobs/{}", percent_encoded(random)))),
        7 => http.delete(url(&format!("/api/v1/jobs/{}", percent_encoded(random)))),
        8 => http.post(url(&format!("/api/v1/jobs/{}/retry", percent_encoded(random)))),
        _ => http.get(url(&odd_query(random))),
    };
    let reply = Reply::read(request.send().await.unwrap()).await;
    assert!((400..500).contains(&reply.status), "seed {seed}: {reply:?}");
    reply.status
}

#[tokio::test]
async fn malformed_requests_to_the_rest_surface_are_refused_as_such() {
    let api = Api::of("odd-rest").await;
    let http = reqwest::Client::new();
    let statuses: Vec<u16> = stream::iter(0..800)
        .map(|seed| odd_rest(&http, &api, seed))
        .buffer_unordered(TOGETHER)
        .collect()
        .await;
    let mut counts = BTreeMap::new();
    for status in statuses {
        *counts.entry(status).or_insert(0) += 1;
    }
    for wanted in [400, 422] {
        assert!(counts.get(&wanted).is_some_and(|count| *count > 50), "the generator reaches it: {counts:?}");
    }
    let stored: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs WHERE created_by = $1 OR name = $1")
        .bind(&api.name)
        .fetch_one(&api.database)
        .await
        .unwrap();
    assert_eq!(stored, 0);
    still_serves(&api).await;
    api.leave().await;
}

/// A gRPC call with these bytes as its body; the code of the answer.
async fn call(channel: &Channel, path: &str, kind: &str, body: Bytes) -> Result<Code, String> {
    let request = http::Request::post(path)
        .header("content-type", kind)
        .header("te", "trailers")
        .body(tonic::body::Body::new(axum::body::Body::from(body)))
        .unwrap();
    let response = channel.clone().oneshot(request).await.map_err(|error| error.to_string())?;
    let http = response.status();
    let (parts, body) = response.into_parts();
    let trailers = http_body_util::BodyExt::collect(body).await.map_err(|error| error.to_string())?;
    let code =
        parts.headers.get("grpc-status").or(trailers.trailers().and_then(|all| all.get("grpc-status")));
    code.map(|code| Code::from_bytes(code.as_bytes())).ok_or_else(|| format!("{http}"))
}

fn framed(compressed: u8, length: u32, message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(compressed);
    frame.put_u32(length);
    frame.put_slice(message);
    frame.freeze()
}

/// One odd call of the worker protocol.
async fn odd_grpc(channels: &[Channel], seed: u64) -> Code {
    let random = &mut StdRng::seed_from_u64(seed);
    let channel = &channels[random.random_range(0..REPLICAS)];
    let path = format!("/cortex.{}", RPCS[random.random_range(0..RPCS.len())]);
    let mut message: Vec<u8> = (0..random.random_range(0..60)).map(|_| random.random()).collect();
    let length = u32::try_from(message.len()).unwrap();
    let body = match random.random_range(0..7) {
        // A frame as it should be, around bytes that are no message.
        0..3 => framed(0, length, &message),
        // A message whose first field, an id or a name, is an odd text.
        3 => {
            let text = odd_text(random);
            message = vec![0x0a, u8::try_from(text.len()).unwrap()];
            message.extend(text.as_bytes());
            framed(0, u32::try_from(message.len()).unwrap(), &message)
        }
        4 => framed(random.random_range(1..=255), length, &message),
        // Longer than what follows, or longer than anything may be.
        5 => framed(0, length + random.random_range(1..1_000), &message),
        _ => framed(0, random.random_range(1 << 21..u32::MAX), &message),
    };
    let code = call(channel, &path, "application/grpc", body).await.unwrap();
    assert_eq!(code, Code::InvalidArgument, "seed {seed}");
    code
}

#[tokio::test]
async fn malformed_calls_of_the_worker_protocol_are_invalid() {
    let api = Api::of("odd-grpc").await;
    let mut channels = Vec::new();
    for replica in 0..REPLICAS {
        channels.push(channel(&api, replica).await);
    }
    let codes: Vec<Code> =
        stream::iter(0..400).map(|seed| odd_grpc(&channels, seed)).buffer_unordered(TOGETHER).collect().await;
    assert_eq!(codes.len(), 400);
    for channel in &channels {
        let unknown =
            call(channel, "/cortex.JobService/Nothing", "application/grpc", framed(0, 0, b"")).await;
        assert_eq!(unknown, Ok(Code::Unimplemented));
        let unknown = call(channel, "/cortex.Nothing/Nothing", "application/grpc", framed(0, 0, b"")).await;
        assert_eq!(unknown, Ok(Code::Unimplemented));
        let nothing = call(channel, "/cortex.JobService/PollJob", "application/grpc", Bytes::new()).await;
        assert_eq!(nothing, Ok(Code::InvalidArgument));
        let large = framed(0, 1 << 21, &vec![0; 1 << 21]);
        assert_eq!(
            call(channel, "/cortex.JobService/CompleteJob", "application/grpc", large).await,
            Ok(Code::InvalidArgument)
        );
    }
    still_serves(&api).await;
    api.leave().await;
}

#[tokio::test]
async fn what_is_no_http_at_all_ends_its_own_connection_and_no_other() {
    let api = Api::of("odd-bytes").await;
    for seed in 0..60_u64 {
        let random = &mut StdRng::seed_from_u64(seed);
        let replica = random.random_range(0..REPLICAS);
        let base = if seed % 2 == 0 { api.url(replica, "") } else { api.grpc(replica) };
        let address = base.strip_prefix("http://").unwrap().to_owned();
        let bytes: Vec<u8> = match random.random_range(0..6) {
            0 => (0..random.random_range(1..2_000)).map(|_| random.random()).collect(),
            1 => b"POST /api/v1/jobs HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n".to_vec(),
            2 => {
                b"POST /api/v1/jobs HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_vec()
            }
            3 => format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(200_000)).into_bytes(),
            4 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
            _ => format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(5_000)).into_bytes(),
        };
        let mut connection = tokio::net::TcpStream::connect(&address).await.unwrap();
        // The other side may be done with it before all is written or read.
        drop(connection.write_all(&bytes).await);
        drop(connection.shutdown().await);
        let mut answer = Vec::new();
        drop(connection.read_to_end(&mut answer).await);
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            !answer.starts_with("HTTP/1.1 2") && !answer.starts_with("HTTP/1.1 5"),
            "seed {seed}: {answer}"
        );
    }
    still_serves(&api).await;
    api.leave().await;
}

#[tokio::test]
async fn oversized_bodies_are_refused_and_bodies_at_the_limit_are_read() {
    let api = Api::of("oversized").await;
    let padded = |size: usize| {
        let mut draft = api.draft(&json!({"input_data": {"text": ""}}));
        let rest = size - draft.to_string().len();
        draft["input_data"]["text"] = json!("x".repeat(rest));
        draft
    };
    for replica in 0..REPLICAS {
        for size in [(1 << 20) + 1, 2 << 20, 5 << 20] {
            let reply = api.post(replica, "/api/v1/jobs", &padded(size)).await;
            assert_eq!(reply.body["type"], "urn:cortex:problem:body-too-large");
            reply.expect(413);
        }
        let id = api.post(replica, "/api/v1/jobs", &padded(1 << 20)).await.expect(201)["id"].clone();
        let stored = api.job((replica + 1) % REPLICAS, id.as_str().unwrap()).await;
        assert_eq!(stored["input_data"], padded(1 << 20)["input_data"]);
    }
    // What was accepted also reaches a worker, and what it answers of that size is accepted, too.
    let hand = Hand::new(&api, api.follower().await, 3).await;
    for _ in 0..REPLICAS {
        let job = hand.job().await;
        let input: Value = serde_json::from_slice(&job.input_data).unwrap();
        assert_eq!(input, padded(1 << 20)["input_data"]);
        // A report has a limit of the same size for the whole of it.
        let output = json!({"text": "y".repeat((1 << 20) - 400)});
        assert!(hand.report(&hand.success(&job, &output)).await.acknowledged);
        assert_eq!(api.job(0, &job.job_id).await["output_data"], output);
    }
    api.leave().await;
}

#[tokio::test]
async fn a_small_body_never_becomes_a_job_too_large_for_a_worker() {
    let api = Api::of("inflated").await;
    let hand = Hand::new(&api, api.follower().await, 5).await;
    // PostgreSQL writes numbers out, and a space after each comma and colon.
    let numbers = |number: &str, count: usize| format!("{{\"n\":[{}]}}", vec![number; count].join(","));
    for input in
        [numbers("1e300", 170_000), numbers("1", 500_000), numbers("1e-300", 2_000), numbers("1e15", 200_000)]
    {
        let draft = api.draft(&json!({"input_data": {"here": "it goes"}})).to_string();
        let draft = draft.replace("{\"here\":\"it goes\"}", &input);
        let request = reqwest::Client::new()
            .post(api.url(0, "/api/v1/jobs"))
            .header("content-type", "application/json");
        let reply = Reply::read(request.body(draft).send().await.unwrap()).await;
        if reply.status == 422 {
            assert_eq!(reply.fields(), ["input_data"]);
            continue;
        }
        let id = reply.expect(201)["id"].clone();
        let job = hand.job().await;
        assert_eq!(id, job.job_id);
        assert!(hand.report(&hand.success(&job, &json!({}))).await.acknowledged);
    }
    api.leave().await;
}

/// Every replica still does its work, from a submission to its end.
async fn still_serves(api: &Api) {
    for replica in 0..REPLICAS {
        let id = api.submit(replica, &json!({})).await;
        let hand = Hand::new(api, replica, 1).await;
        let job = hand.job().await;
        assert_eq!(job.job_id, id);
        assert!(hand.report(&hand.success(&job, &json!({"a": 1}))).await.acknowledged);
        // It takes no more, so that the next one gets the next job.
        let mut gone = hand.clone();
        gone.registration.capabilities.insert("models".to_owned(), "[]".to_owned());
        gone.register().await;
    }
    assert!(api.logs().iter().all(|log| !log.contains("panicked")));
}
