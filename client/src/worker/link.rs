//! The replicas, and the one that is used now.

use std::time::Duration;

use rand::seq::SliceRandom;
use tonic::{
    Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    transport::{ClientTlsConfig, Endpoint, Uri},
};

use super::{WorkerError, outbox::Outgoing};
use crate::random;
use crate::{
    endpoints::InvalidEndpoint,
    proto::{SessionResponse, job_service_client::JobServiceClient},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A replica that froze is noticed after the sum of the two at the latest. By then the others have elected a leader, which
/// gives nothing to a worker that is still with the one that froze.
const KEEPALIVE_INTERVAL: Duration = Duration::from_millis(500);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_millis(700);
/// Inputs may be larger than tonic's default of 4 MiB.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// The replicas, one of which is used.
pub(super) struct Link {
    endpoints: Vec<Endpoint>,
    authorization: Option<MetadataValue<Ascii>>,
    index: usize,
}

impl Link {
    /// A link to the endpoints, in an order of its own: so workers spread over the replicas, and those of a replica
    /// that fails over the others.
    pub(super) fn new(endpoints: &[String], token: Option<&str>) -> Result<Self, WorkerError> {
        let mut endpoints = endpoints.iter().map(|url| configure(url)).collect::<Result<Vec<_>, _>>()?;
        endpoints.shuffle(&mut random::generator());
        let authorization = token.map(authorization).transpose()?;
        Ok(Self { endpoints, authorization, index: 0 })
    }

    /// Opens a session over a connection of its own.
    pub(super) async fn open(&self, outgoing: Outgoing) -> Result<Streaming<SessionResponse>, Status> {
        let channel = self.endpoints[self.index].connect().await;
        let channel = channel.map_err(|error| Status::from_error(error.into()))?;
        let mut request = Request::new(outgoing);
        if let Some(value) = &self.authorization {
            request.metadata_mut().insert("authorization", value.clone());
        }
        let mut client = JobServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        Ok(client.session(request).await?.into_inner())
    }

    /// Uses the next replica from now on.
    pub(super) fn move_on(&mut self) {
        self.index = (self.index + 1) % self.endpoints.len();
    }

    /// The replica that is used now.
    pub(super) fn endpoint(&self) -> &Uri {
        self.endpoints[self.index].uri()
    }
}

fn configure(url: &str) -> Result<Endpoint, InvalidEndpoint> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|e| InvalidEndpoint { endpoint: url.to_owned(), reason: e.to_string() })?;
    let endpoint = if endpoint.uri().scheme_str() == Some("https") {
        // Those whom the machine trusts; `SSL_CERT_FILE` names others.
        let tls = ClientTlsConfig::new().with_native_roots();
        endpoint
            .tls_config(tls)
            .map_err(|e| InvalidEndpoint { endpoint: url.to_owned(), reason: e.to_string() })?
    } else {
        endpoint
    };
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

fn authorization(token: &str) -> Result<MetadataValue<Ascii>, WorkerError> {
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| {
        WorkerError::Config { setting: "token", reason: "it cannot be a header value".to_owned() }
    })?;
    value.set_sensitive(true);
    Ok(value)
}
