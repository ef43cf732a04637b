//! What every route and every RPC asks of its caller: one table, which REST, gRPC, the API's description and the tests read.

use axum::http::Method;

use crate::security::Access;

/// A route as method and path, an RPC as its path, a service of others as its path. What is not listed is an
/// administrator's.
static TABLE: [(&str, Access); 58] = [
    ("GET /api/v1/jobs", Access::Read),
    ("POST /api/v1/jobs", Access::Submit),
    ("POST /api/v1/jobs/batch", Access::Submit),
    ("GET /api/v1/jobs/stats/summary", Access::Read),
    ("GET /api/v1/jobs/{id}", Access::Read),
    ("PATCH /api/v1/jobs/{id}", Access::Submit),
    ("DELETE /api/v1/jobs/{id}", Access::Submit),
    ("POST /api/v1/jobs/{id}/retry", Access::Submit),
    ("GET /api/v1/jobs/{id}/executions", Access::Read),
    ("GET /api/v1/jobs/{id}/explain", Access::Read),
    ("GET /api/v1/jobs/{id}/events", Access::Read),
    ("GET /api/v1/events", Access::Read),
    ("GET /api/v1/workers", Access::Read),
    ("POST /api/v1/workers", Access::Work),
    ("GET /api/v1/workers/stats/summary", Access::Read),
    ("GET /api/v1/workers/{id}", Access::Read),
    ("DELETE /api/v1/workers/{id}", Access::Administer),
    ("POST /api/v1/workers/{id}/heartbeat", Access::Work),
    ("POST /api/v1/workers/{id}/drain", Access::Administer),
    ("GET /api/v1/queues", Access::Read),
    ("DELETE /api/v1/queues", Access::Administer),
    ("GET /api/v1/queues/depth", Access::Read),
    ("GET /api/v1/queues/peek", Access::Read),
    ("POST /api/v1/queues/pause", Access::Administer),
    ("POST /api/v1/queues/resume", Access::Administer),
    ("GET /api/v1/queues/metrics", Access::Read),
    ("GET /api/v1/cluster", Access::Read),
    ("POST /api/v1/cluster/members", Access::Administer),
    ("DELETE /api/v1/cluster/members/{id}", Access::Administer),
    ("POST /api/v1/cluster/transfer", Access::Administer),
    ("GET /api/v1/health", Access::Open),
    ("GET /api/v1/health/live", Access::Open),
    ("GET /api/v1/health/ready", Access::Open),
    ("GET /health", Access::Open),
    ("GET /health/live", Access::Open),
    ("GET /health/ready", Access::Open),
    ("GET /metrics", Access::Open),
    ("GET /openapi.json", Access::Open),
    ("GET /docs", Access::Open),
    ("GET /docs/", Access::Open),
    ("GET /docs/{file}", Access::Open),
    ("/cortex.JobService/RegisterWorker", Access::Work),
    ("/cortex.JobService/Heartbeat", Access::Work),
    ("/cortex.JobService/PollJob", Access::Work),
    ("/cortex.JobService/UpdateJobStatus", Access::Work),
    ("/cortex.JobService/CompleteJob", Access::Work),
    ("/cortex.JobService/Session", Access::Work),
    ("/cortex.ClientService/SubmitJob", Access::Submit),
    ("/cortex.ClientService/SubmitJobs", Access::Submit),
    ("/cortex.ClientService/GetJob", Access::Read),
    ("/cortex.ClientService/ListJobs", Access::Read),
    ("/cortex.ClientService/CancelJob", Access::Submit),
    ("/cortex.ClientService/RetryJob", Access::Submit),
    ("/cortex.ClientService/WatchJob", Access::Read),
    ("/cortex.ClientService/GetStats", Access::Read),
    ("/grpc.health.v1.Health/", Access::Open),
    ("/grpc.reflection.v1.ServerReflection/", Access::Read),
    ("/grpc.reflection.v1alpha.ServerReflection/", Access::Read),
];
/// What the paths of our RPCs begin with.
const OURS: &str = "/cortex.";

/// What a route asks for.
pub(super) fn of_route(method: &Method, path: &str) -> Access {
    let row = TABLE.iter().find(|(call, _)| call.split_once(' ') == Some((method.as_str(), path)));
    row.map_or(Access::Administer, |(_, access)| *access)
}

/// What an RPC of this path asks for.
pub(super) fn of_rpc(path: &str) -> Access {
    let rpc = TABLE.iter().find(|(call, _)| call.starts_with('/') && *call == path);
    let is_of =
        |service: &str| service.starts_with('/') && service.ends_with('/') && path.starts_with(service);
    let service = || TABLE.iter().find(|(call, _)| is_of(call));
    rpc.or_else(service).map_or(Access::Administer, |(_, access)| *access)
}

/// The name of the RPC at this path, if it is one of ours.
pub(super) fn rpc_name(path: &str) -> Option<&'static str> {
    let (rpc, _) = rpcs().find(|(rpc, _)| *rpc == path)?;
    rpc.rsplit('/').next()
}

/// Every RPC of `proto/cortex.proto`, and what it asks for.
pub fn rpcs() -> impl Iterator<Item = (&'static str, Access)> {
    TABLE.iter().copied().filter(|(call, _)| call.starts_with(OURS))
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;
    use crate::api::{grpc, rest};

    #[test]
    fn every_route_and_every_rpc_that_is_served_is_in_the_table_and_no_other() {
        let set = FileDescriptorSet::decode(grpc::DESCRIPTORS).unwrap();
        let services =
            set.file.iter().filter(|file| file.package() == "cortex").flat_map(|file| &file.service);
        let rpcs = services.flat_map(|service| {
            let path = |method: &str| format!("/cortex.{}/{method}", service.name());
            service.method.iter().map(move |method| path(method.name()))
        });
        let routes = rest::routes().into_iter().map(|(method, path, _)| format!("{method} {path}"));
        let mut served: Vec<String> = rpcs.chain(routes).collect();
        let mut listed: Vec<&str> =
            TABLE.iter().map(|(call, _)| *call).filter(|call| !call.starts_with("/grpc.")).collect();
        served.sort_unstable();
        listed.sort_unstable();
        assert_eq!(served, listed);
    }

    #[test]
    fn what_is_not_listed_is_an_administrators() {
        assert_eq!(of_rpc("/cortex.JobService/Heartbeat"), Access::Work);
        assert_eq!(of_rpc("/grpc.health.v1.Health/Check"), Access::Open);
        for path in [
            "/cortex.JobService/New",
            "/cortex.JobService/Heartbeat/",
            "/",
            "",
            "/grpc.health.v1.HealthX/",
            "GET /metrics",
        ] {
            assert_eq!(of_rpc(path), Access::Administer, "{path}");
        }
        assert_eq!(of_route(&Method::GET, "/metrics"), Access::Open);
        for (method, path) in [(Method::POST, "/metrics"), (Method::GET, "/metrics/"), (Method::GET, "")] {
            assert_eq!(of_route(&method, path), Access::Administer, "{method} {path}");
        }
    }
}
