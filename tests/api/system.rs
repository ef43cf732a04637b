//! Health, cluster and metrics, over HTTP and gRPC.

use prost_types::FileDescriptorProto;
use prost_types::FileDescriptorSet;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use crate::group::{Api, REPLICAS};
use crate::hand::channel;
use crate::support::eventually;

/// Series that every replica shows, with their values where these are known.
const OF_EVERY_REPLICA: [&str; 21] = [
    "cortex_jobs_scheduled_total{priority=\"1\"}",
    "cortex_jobs_assigned_total",
    "cortex_scheduling_duration_seconds_count",
    "cortex_queue_depth{priority=\"10\"}",
    "cortex_jobs_enqueued_total{priority=\"5\"}",
    "cortex_jobs_dequeued_total{priority=\"5\"}",
    "cortex_jobs_queued_total",
    "cortex_jobs_finished_total{status=\"completed\"}",
    "cortex_jobs_finished_total{status=\"timeout\"}",
    "cortex_job_wait_seconds_count",
    "cortex_job_run_seconds_count",
    "cortex_dispatch_seconds_count",
    "cortex_workers{status=\"idle\"}",
    "cortex_event_streams",
    "cortex_raft_applied_index",
    "cortex_raft_term",
    "cortex_failovers_total",
    "cortex_fenced_writes_total 0",
    "cortex_trace_spans_total{result=\"dropped\"} 0",
    "cortex_http_requests_total{method=\"PATCH\",route=\"/api/v1/jobs/{id}\",status=\"200\"}",
    "cortex_http_request_seconds_count{method=\"PATCH\",route=\"/api/v1/jobs/{id}\"}",
];
/// Series of the leader.
const OF_THE_LEADER: [&str; 5] = [
    "cortex_leader 1",
    "cortex_jobs_retried_total{attempt=\"1\"}",
    "cortex_takeover_seconds_count{phase=\"fence\"}",
    "cortex_batch_size_count{batcher=\"submission\"}",
    "cortex_transaction_seconds_count{name=\"submit_jobs\"}",
];
/// A series of the leader, once a loop has done what a retry asks for.
const OF_A_LOOP: &str = "cortex_loop_runs_total{loop=\"promote_retries\",result=\"ok\"} ";
/// Series of who does not lead.
const OF_OTHERS: [&str; 1] = ["cortex_leader 0"];
/// Series of a replica whose health was asked for over gRPC.
const OF_GRPC: [&str; 2] = [
    "cortex_grpc_requests_total{code=\"OK\",method=\"other\"}",
    "cortex_grpc_request_seconds_count{method=\"other\"}",
];

#[tokio::test]
async fn every_replica_is_healthy_and_names_the_same_leader() {
    let api = Api::of("health").await;
    let leader = api.get(0, "/api/v1/cluster").await.expect(200)["leader"].clone();
    let mut leaders = 0;
    for replica in 0..REPLICAS {
        for prefix in ["", "/api/v1"] {
            for path in ["/health", "/health/ready"] {
                let health = api.healthy(replica, &format!("{prefix}{path}")).await;
                assert_eq!(health["status"], "ok");
                assert!(
                    ["postgres", "redis", "raft"].iter().all(|part| health[part]["ok"] == true),
                    "{health}"
                );
                assert_eq!(health["leader"], leader);
            }
            assert_eq!(api.get(replica, &format!("{prefix}/health/live")).await.expect(200)["status"], "ok");
        }
        let cluster = api.get(replica, "/api/v1/cluster").await.expect(200);
        assert_eq!((&cluster["id"], &cluster["leader"]), (&serde_json::json!(replica + 1), &leader));
        let members = cluster["members"].as_array().unwrap();
        assert_eq!(members.len(), REPLICAS);
        assert!(members.iter().all(|member| member["http"].is_string() && member["grpc"].is_string()));
        assert!(cluster["term"].as_u64() >= Some(1) && cluster["epoch"].as_u64() >= Some(1), "{cluster}");
        leaders += usize::from(cluster["role"] == "leader");
    }
    assert_eq!(leaders, 1);
    api.leave().await;
}

#[tokio::test]
async fn every_promised_metric_is_there_under_its_name_and_labels() {
    let api = Api::of("metrics").await;
    // Whatever is counted by route or by method has been counted once.
    let client = &mut HealthClient::new(channel(&api, 0).await);
    client.check(HealthCheckRequest::default()).await.unwrap();
    let job = api.submit(0, &serde_json::json!({})).await;
    let failed = serde_json::json!({"status": "failed"});
    for replica in 0..REPLICAS {
        api.patch(replica, &job, &failed).await.expect(200);
        api.retry(replica, &job).await.expect(200);
    }
    let leader = api.get(0, "/api/v1/cluster").await.expect(200)["leader"].as_u64().unwrap();
    let leader = usize::try_from(leader).unwrap() - 1;
    eventually("a loop of the leader is counted", async || {
        api.get(leader, "/metrics").await.expect(200).as_str().unwrap().contains(OF_A_LOOP)
    })
    .await;
    for replica in 0..REPLICAS {
        let reply = api.get(replica, "/metrics").await;
        assert_eq!(reply.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
        let text = reply.expect(200);
        let text = text.as_str().unwrap();
        let there = |series: &str| {
            text.lines()
                .filter_map(|line| line.strip_prefix(series))
                .any(|rest| rest.is_empty() || rest.starts_with(' '))
        };
        let of_its_role = if replica == leader { &OF_THE_LEADER[..] } else { &OF_OTHERS[..] };
        let of_grpc = if replica == 0 { &OF_GRPC[..] } else { &[] };
        for series in OF_EVERY_REPLICA.iter().chain(of_its_role).chain(of_grpc) {
            assert!(there(series), "{series} is missing at replica {replica}");
        }
    }
    api.leave().await;
}

#[tokio::test]
async fn grpc_health_says_serving_for_the_server_and_the_service_and_knows_no_other() {
    let api = Api::of("grpc-health").await;
    for replica in 0..REPLICAS {
        let mut health = HealthClient::new(channel(&api, replica).await);
        let mut check =
            async |service: &str| health.check(HealthCheckRequest { service: service.to_owned() }).await;
        for service in ["", "cortex.JobService"] {
            assert_eq!(check(service).await.unwrap().into_inner().status, ServingStatus::Serving as i32);
        }
        assert_eq!(check("cortex.Nothing").await.unwrap_err().code(), Code::NotFound);
    }
    api.leave().await;
}

#[tokio::test]
async fn reflection_shows_the_specifications_protocol_with_every_number_as_it_was() {
    let api = Api::of("reflection").await;
    for replica in 0..REPLICAS {
        let services = reflect(&api, replica, MessageRequest::ListServices(String::new())).await;
        let MessageResponse::ListServicesResponse(list) = services else { panic!("{services:?}") };
        let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
        assert!(
            ["cortex.JobService", "cortex.ClientService", "grpc.health.v1.Health"]
                .iter()
                .all(|name| names.contains(name)),
            "{names:?}"
        );
    }
    let served = served_protocol(&api).await;
    let printed = protox::compile(["spec.proto"], ["tests/api"]).unwrap();
    let FileDescriptorSet { file } = printed;
    for wanted in &file[0].message_type {
        let message = served.message_type.iter().find(|message| message.name == wanted.name).unwrap();
        for field in &wanted.field {
            let same = message.field.iter().find(|candidate| candidate.number == field.number).unwrap();
            assert_eq!((&same.name, same.r#type, same.label), (&field.name, field.r#type, field.label));
        }
    }
    let methods = |file: &FileDescriptorProto| file.service[0].method.clone();
    assert_eq!(methods(&served)[..5], methods(&file[0])[..]);
    api.leave().await;
}

/// The description of `cortex.JobService` as a replica gives it.
pub async fn served_protocol(api: &Api) -> FileDescriptorProto {
    let symbol = MessageRequest::FileContainingSymbol("cortex.JobService".to_owned());
    let answer = reflect(api, 0, symbol).await;
    let MessageResponse::FileDescriptorResponse(files) = answer else { panic!("{answer:?}") };
    prost::Message::decode(&*files.file_descriptor_proto[0]).unwrap()
}

async fn reflect(api: &Api, replica: usize, question: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let mut client = ServerReflectionClient::new(channel(api, replica).await);
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer: ServerReflectionResponse = answers.message().await.unwrap().unwrap();
    answer.message_response.unwrap()
}
