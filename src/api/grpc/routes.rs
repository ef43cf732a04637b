//! Puts the gRPC services together.

use axum::middleware::from_fn_with_state;
use cortex_client::proto::client_service_server::ClientServiceServer;
use cortex_client::proto::job_service_server::JobServiceServer;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus as Health;
use tonic_health::server::{HealthReporter, health_reporter};

use super::client::Clients;
use super::jobs::Jobs;
use crate::api::state::Api;
use crate::api::{gate, guard};

/// The descriptors of `proto/cortex.proto`, for reflection.
pub(in crate::api) const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cortex.descriptors"));

/// What `grpc.health.v1` answers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServingStatus(HealthReporter);

impl ServingStatus {
    /// Says whether this replica takes calls, for the whole server and for each service.
    pub async fn set(&self, serving: bool) {
        let status = if serving { Health::Serving } else { Health::NotServing };
        let jobs = <JobServiceServer<Jobs> as NamedService>::NAME;
        let clients = <ClientServiceServer<Clients> as NamedService>::NAME;
        for service in ["", jobs, clients] {
            self.0.set_service_status(service, status).await;
        }
    }
}

/// The gRPC services and the switch of their health, which starts as not serving.
///
/// # Errors
/// If the descriptors that were built in cannot be read.
pub async fn routes(api: Api) -> Result<(Routes, ServingStatus), tonic_reflection::server::Error> {
    let (reporter, health) = health_reporter();
    let serving = ServingStatus(reporter);
    serving.set(false).await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let jobs = JobServiceServer::new(Jobs::new(api.services.clone()))
        .max_decoding_message_size(api.limits.max_body_bytes);
    let clients = ClientServiceServer::new(Clients::new(api.services.clone()))
        .max_decoding_message_size(api.limits.max_body_bytes);
    let mut routes = Routes::new(jobs).add_service(clients).add_service(health);
    if api.grpc_reflection {
        routes = routes.add_service(reflection().build_v1()?).add_service(reflection().build_v1alpha()?);
    }
    let router = routes
        .into_axum_router()
        .layer(from_fn_with_state(api.clone(), gate::grpc))
        .layer(from_fn_with_state(api, guard::grpc));
    Ok((Routes::from(router).prepare(), serving))
}
