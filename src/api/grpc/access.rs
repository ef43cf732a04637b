//! What each RPC asks of its caller.

use crate::security::Access;

/// Every RPC of `proto/cortex.proto`, and what it asks for. One that is not listed is an administrator's.
pub const RPCS: [(&str, Access); 14] = [
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
];
/// Services of others that are served beside ours.
const SERVICES: [(&str, Access); 3] = [
    ("/grpc.health.v1.Health/", Access::Open),
    ("/grpc.reflection.v1.ServerReflection/", Access::Read),
    ("/grpc.reflection.v1alpha.ServerReflection/", Access::Read),
];

/// What a call of this path asks for.
pub(in crate::api) fn access_of(path: &str) -> Access {
    let rpc = RPCS.into_iter().find(|(rpc, _)| *rpc == path);
    let service = || SERVICES.into_iter().find(|(service, _)| path.starts_with(service));
    rpc.or_else(service).map_or(Access::Administer, |(_, access)| access)
}

/// The name of the RPC at this path, if it is one of ours.
pub(in crate::api) fn name_of(path: &str) -> Option<&'static str> {
    let (rpc, _) = RPCS.into_iter().find(|(rpc, _)| *rpc == path)?;
    rpc.rsplit('/').next()
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;
    use crate::api::grpc::DESCRIPTORS;

    #[test]
    fn every_rpc_that_is_served_is_in_the_table_and_no_other() {
        let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
        let mut served: Vec<String> = set
            .file
            .iter()
            .filter(|file| file.package() == "cortex")
            .flat_map(|file| &file.service)
            .flat_map(|service| {
                let path = |method: &str| format!("/cortex.{}/{method}", service.name());
                service.method.iter().map(move |method| path(method.name()))
            })
            .collect();
        let mut listed = RPCS.map(|(rpc, _)| rpc).to_vec();
        served.sort_unstable();
        listed.sort_unstable();
        assert_eq!(served, listed);
    }

    #[test]
    fn what_is_not_listed_is_an_administrators() {
        assert_eq!(access_of("/cortex.JobService/Heartbeat"), Access::Work);
        assert_eq!(access_of("/grpc.health.v1.Health/Check"), Access::Open);
        for path in
            ["/cortex.JobService/New", "/cortex.JobService/Heartbeat/", "/", "", "/grpc.health.v1.HealthX/"]
        {
            assert_eq!(access_of(path), Access::Administer, "{path}");
        }
    }
}
