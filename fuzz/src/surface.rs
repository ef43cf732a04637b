//! The REST surface of a replica that knows no leader and has no store: requests are parsed and checked as
//! ever, and what passes all checks is answered with 503.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use cortex::api::{Api, Gate, Limits, Observe, Parts, rest};
use cortex::domain::ambient::System;
use cortex::domain::job::JobDefaults;
use cortex::domain::pause::Paused;
use cortex::domain::retry::RetryPolicy;
use cortex::ready_queue::ReadyQueue;
use cortex::security::Caller;
use cortex::services::command::{Answer, Command, Commands};
use cortex::services::control::{Change, Changed, Control};
use cortex::services::error::ServiceError;
use cortex::services::facade::Services;
use cortex::services::inspect::{ClusterView, Component, Health, Inspect, Role};
use cortex::services::queries::Queries;
use cortex::storage::{Database, DatabaseOptions};
use cortex::telemetry::Tracer;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use tokio::runtime::Runtime;
use tower::ServiceExt;

/// Calls the surface on a runtime of its own.
pub struct Surface {
    runtime: Runtime,
    router: RefCell<Router>,
}

impl Surface {
    pub fn new(gate: impl FnOnce() -> Gate) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let router = {
            let _here = runtime.enter();
            rest::router(api(gate()))
        };
        Self { runtime, router: RefCell::new(router) }
    }

    /// Status and body of the answer.
    pub fn call(&self, request: Request<Body>) -> (StatusCode, Vec<u8>) {
        self.runtime.block_on(async {
            let router = self.router.borrow().clone();
            let answer = router.oneshot(request).await.unwrap();
            let status = answer.status();
            let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
            (status, body.to_vec())
        })
    }
}

fn api(gate: Gate) -> Api {
    // Nothing is asked of either: no request that is made here comes so far.
    let database = Database::connect_lazily(&DatabaseOptions {
        url: "postgres://nobody@localhost:1/none".to_owned(),
        max_connections: 1,
        acquire_timeout: Duration::from_millis(10),
        max_lifetime: Duration::from_secs(600),
        pooler: false,
    });
    let queue = ReadyQueue::connect("redis://localhost:1", "none");
    let services = Services::new(
        Arc::new(Nobody),
        Arc::new(Nobody),
        Arc::new(System),
        JobDefaults { retry: RetryPolicy::default(), timeout_seconds: 3600 },
        Queries::new(database.unwrap(), queue.unwrap()),
        Arc::default(),
    );
    Api::new(Parts {
        services,
        inspect: Arc::new(Nobody),
        metrics: None,
        observer: Arc::new(Nobody),
        ambient: Arc::new(System),
        gate,
        tracer: Tracer::off(),
        limits: Limits::default(),
        grpc_reflection: false,
    })
}

/// A replica that is alone.
struct Nobody;

impl Commands for Nobody {
    fn execute(&self, _: Caller, _: Command) -> BoxFuture<'_, Result<Answer, ServiceError>> {
        ready(Err(ServiceError::NoLeader)).boxed()
    }
}

impl Control for Nobody {
    fn paused(&self) -> Arc<Paused> {
        Arc::default()
    }

    fn change(&self, _: Change) -> BoxFuture<'_, Result<Changed, ServiceError>> {
        ready(Err(ServiceError::NoLeader)).boxed()
    }

    fn leader(&self) -> Option<u64> {
        None
    }

    fn leader_after(&self, _: Option<u64>) -> BoxFuture<'_, Option<u64>> {
        ready(None).boxed()
    }
}

impl Inspect for Nobody {
    fn health(&self) -> BoxFuture<'_, Health> {
        let down = || Component::down("there is none");
        let health =
            Health { postgres: down(), redis: down(), raft: down(), role: Role::Follower, leader: None };
        ready(health).boxed()
    }

    fn alive(&self) -> bool {
        true
    }

    fn removed(&self) -> bool {
        false
    }

    fn cluster(&self) -> ClusterView {
        ClusterView {
            id: 1,
            cluster_id: None,
            leader: None,
            term: 0,
            epoch: 0,
            role: Role::Follower,
            members: Vec::new(),
        }
    }
}

impl Observe for Nobody {
    fn http(&self, _: &'static str, _: &str, _: u16, _: Duration) {}

    fn grpc(&self, _: &'static str, _: &'static str, _: Duration) {}
}
