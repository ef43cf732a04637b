//! Bodies as they look. Those of answers are made of the types that are answered.

use std::net::{IpAddr, Ipv4Addr};

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::api::rest::{heartbeat, jobs, members, queues, system};
use crate::domain::execution::{Execution, ExecutionStatus};
use crate::domain::explain::{Explanation, Obstacle, Outlook, Position, Verdict, Workers};
use crate::domain::ids::{JobId, LeaseId, WorkerId};
use crate::domain::job::{Job, JobList, JobStats, JobStatus};
use crate::domain::pause::Paused;
use crate::domain::payload::Payload;
use crate::domain::queue::{QueueMetrics, QueueView};
use crate::domain::worker::{Worker, WorkerList, WorkerStats, WorkerStatus};
use crate::services::inspect::{ClusterView, Component, Health, MemberView, Role};

const JOB: JobId = JobId(Uuid::from_u128(0x0190_a5c0_0000_7000_8000_0000_0000_0001));
const WORKER: WorkerId = WorkerId(Uuid::from_u128(0x0190_a5c0_0000_7000_8000_0000_0000_00a1));
const LEASE: LeaseId = LeaseId(Uuid::from_u128(0x0190_a5c0_0000_7000_8000_0000_0000_00e1));

/// An example of each body, by the name of its schema.
pub(super) fn examples() -> Map<String, Value> {
    let mut examples = requests();
    let mut add = |name: &str, example: Value| examples.insert(name.to_owned(), example);
    let list = JobList { jobs: vec![job()], total: 1, page: 1, page_size: 50, pages: 1 };
    add("Job", json!(job()));
    add("JobBatch", json!(jobs::Batch { jobs: vec![job()] }));
    add("JobList", json!(list));
    add("JobStats", json!(job_stats()));
    add("Execution", json!(execution()));
    add("Explanation", json!(explanation()));
    add("Worker", json!(worker()));
    add("WorkerList", json!(WorkerList { workers: vec![worker()], total: 1 }));
    add("WorkerStats", json!(worker_stats()));
    add("HeartbeatAnswer", json!(heartbeat::Answer::example(JOB)));
    add("QueueView", json!(queue()));
    add("Depth", json!(queues::Depth { depth: 12 }));
    add("Cleared", json!(queues::Cleared { cancelled: 12 }));
    add("Paused", json!(Paused { all: false, models: ["resnet".to_owned()].into() }));
    add("QueueMetrics", json!(metrics()));
    add("ClusterView", json!(cluster()));
    add("Member", json!(members::Member::example()));
    add("Leads", json!(members::Leads { leader: 2 }));
    add("Report", json!(system::Report::of(health())));
    add("Alive", json!(system::Alive::of(true)));
    examples
}

/// What clients send.
fn requests() -> Map<String, Value> {
    let job = json!({
        "name": "classify", "model_name": "resnet", "model_version": "1.0", "input_data": {"image": "s3://images/1.png"},
        "priority": 5, "max_retries": 3, "timeout_seconds": 3600, "tags": {"env": "prod"}, "created_by": "ann",
        "metadata": {
            "requires_gpu": false, "required_memory_gb": 4,
            "retry_policy": {
                "strategy": "exponential", "initial_delay_seconds": 1, "max_delay_seconds": 300, "backoff_multiplier": 2.0,
                "retry_on_errors": ["timeout", "worker_lost"], "jitter": true
            }
        },
        "run_at": "2026-01-31T12:00:00Z"
    });
    let requests = json!({
        "JobBatchCreate": {"jobs": [job]},
        "JobCreate": job,
        "JobUpdate": {"status": "running"},
        "WorkerCreate": {
            "name": "gpu-1", "hostname": "gpu-1", "ip_address": "10.0.0.7", "port": 8000, "max_concurrent_jobs": 4,
            "heartbeat_interval_seconds": 30, "version": "1.2.0", "metadata": {"zone": "a"},
            "capabilities": {"models": ["resnet"], "gpu": true, "memory_gb": 16}
        },
        "WorkerHeartbeat": {
            "status": "busy", "current_job_count": 1, "current_jobs": [JOB], "cpu_usage_percent": 80.5,
            "memory_usage_mb": 900, "gpu_usage_percent": 95, "loaded_models": ["resnet"], "metadata": {"zone": "a"}
        },
        "MemberCreate": {"id": 4, "peer": "cortex-4:7070", "http": "cortex-4:8080", "grpc": "cortex-4:9090"},
        "Transfer": {"to": 2}
    });
    match requests {
        Value::Object(requests) => requests,
        _ => Map::new(),
    }
}

/// Seconds after noon of a day.
fn time(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_769_860_800 + seconds, 0).unwrap_or_default()
}

fn job() -> Job {
    Job {
        id: JOB,
        name: "classify".to_owned(),
        model_name: "resnet".to_owned(),
        model_version: "1.0".to_owned(),
        status: JobStatus::Completed,
        priority: 5,
        max_retries: 3,
        retry_count: 0,
        timeout_seconds: 3600,
        input_data: Payload::trusted(r#"{"image":"s3://images/1.png"}"#),
        output_data: Some(Payload::trusted(r#"{"label":"cat"}"#)),
        error_message: None,
        error_stack: None,
        assigned_worker_id: Some(WORKER),
        assigned_at: Some(time(1)),
        submitted_at: time(0),
        queued_at: Some(time(0)),
        started_at: Some(time(1)),
        completed_at: Some(time(3)),
        execution_duration_ms: Some(2000),
        queue_wait_time_ms: Some(1000),
        tags: Payload::trusted(r#"{"env":"prod"}"#),
        metadata: Payload::trusted(r#"{"required_memory_gb":4}"#),
        created_by: Some("ann".to_owned()),
        next_retry_at: None,
        retry_backoff_seconds: None,
        created_at: time(0),
        updated_at: time(3),
    }
}

fn job_stats() -> JobStats {
    JobStats {
        total_jobs: 103,
        queued: 2,
        running: 1,
        completed: 98,
        failed: 2,
        average_execution_time_ms: Some(2000.0),
        average_queue_time_ms: Some(150.0),
        success_rate: Some(0.98),
        ..JobStats::default()
    }
}

fn execution() -> Execution {
    Execution {
        id: LEASE,
        job_id: JOB,
        worker_id: WORKER,
        attempt_number: 1,
        status: ExecutionStatus::Completed,
        started_at: time(1),
        completed_at: Some(time(3)),
        duration_ms: Some(2000),
        output_data: Some(Payload::trusted(r#"{"label":"cat"}"#)),
        error_message: None,
        error_stack: None,
        error_code: None,
        cpu_usage_percent: Some(80.0),
        memory_usage_mb: Some(900),
        gpu_usage_percent: None,
        log_file_path: None,
        metadata: Payload::empty(),
        created_at: time(1),
    }
}

/// Of a job that waits for the one worker that could take it.
fn explanation() -> Explanation {
    let waiting = Job { status: JobStatus::Queued, assigned_worker_id: None, ..job() };
    let workers = Workers::of(vec![Verdict { obstacle: Some(Obstacle::Full), worker_id: WORKER }], 10);
    let outlook = Outlook { scheduling: true, paused: false, workers };
    let position = Position { ahead: 3, at_least: false };
    Explanation::of(&waiting, Vec::new(), Some(position), Some(outlook), time(2))
}

fn worker() -> Worker {
    Worker {
        id: WORKER,
        name: "gpu-1".to_owned(),
        hostname: "gpu-1".to_owned(),
        ip_address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7)).to_string(),
        port: 8000,
        status: WorkerStatus::Idle,
        draining: false,
        removed_at: None,
        capabilities: Payload::trusted(r#"{"gpu":true,"memory_gb":16,"models":["resnet"]}"#),
        max_concurrent_jobs: 4,
        current_job_count: 0,
        total_jobs_completed: 98,
        total_jobs_failed: 2,
        average_execution_time_ms: Some(2000),
        last_heartbeat: time(3),
        heartbeat_interval_seconds: 30,
        consecutive_failures: 0,
        version: Some("1.2.0".to_owned()),
        owner: Some("fleet-a".to_owned()),
        metadata: Payload::empty(),
        registered_at: time(0),
        last_active_at: time(3),
        created_at: time(0),
        updated_at: time(3),
    }
}

fn worker_stats() -> WorkerStats {
    WorkerStats {
        total_workers: 3,
        idle_workers: 1,
        busy_workers: 1,
        offline_workers: 1,
        unhealthy_workers: 0,
        total_capacity: 8,
        current_utilization: 4,
        utilization_percent: 50.0,
    }
}

fn queue() -> QueueView {
    let (mut depth, mut waits) = ([0; 10], [None; 10]);
    (depth[4], waits[4]) = (12, Some(1500));
    QueueView::new(depth, waits, Paused::default())
}

fn metrics() -> QueueMetrics {
    QueueMetrics {
        id: 17,
        queue_depth: 12,
        pending_jobs: 3,
        running_jobs: 4,
        priority_1_count: 0,
        priority_2_count: 0,
        priority_3_count: 0,
        priority_4_count: 0,
        priority_5_count: 12,
        priority_6_count: 0,
        priority_7_count: 0,
        priority_8_count: 0,
        priority_9_count: 0,
        priority_10_count: 0,
        total_workers: 2,
        idle_workers: 1,
        busy_workers: 1,
        average_wait_time_ms: Some(150),
        average_execution_time_ms: Some(2000),
        jobs_per_minute: Some(30.0),
        recorded_at: time(60),
    }
}

fn health() -> Health {
    Health {
        postgres: Component::up(),
        redis: Component::up(),
        raft: Component::up(),
        role: Role::Follower,
        leader: Some(1),
    }
}

fn cluster() -> ClusterView {
    let member = |id: u64, role| MemberView {
        id,
        role,
        peer: format!("cortex-{id}:7070"),
        http: format!("cortex-{id}:8080"),
        grpc: format!("cortex-{id}:9090"),
        last_contact_ms: (id != 1).then_some(20),
        log_lag: Some(0),
    };
    ClusterView {
        id: 1,
        cluster_id: Some("0190a5c0-0000-7000-8000-0000000000c1".to_owned()),
        leader: Some(1),
        term: 3,
        epoch: 42,
        role: Role::Leader,
        members: vec![member(1, Role::Leader), member(2, Role::Follower), member(3, Role::Follower)],
    }
}
