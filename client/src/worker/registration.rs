//! The worker's registration.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use tokio::net::UdpSocket;

use super::{Identity, WorkerError, builder::Settings};
use crate::proto::WorkerRegistration;

/// The shortest interval that the server is told to expect, in seconds; see `WorkerBuilder::heartbeat_period`.
const SHORTEST_INTERVAL: i32 = 5;

/// What to register, and the identity that must be held as long as the worker
/// runs.
pub(super) async fn describe(
    settings: &mut Settings,
) -> Result<(WorkerRegistration, Option<Identity>), WorkerError> {
    let given = settings.hostname.is_some() && settings.port.is_some();
    let identity = match settings.identity.take() {
        Some(identity) => Some(identity),
        None if given => None,
        None => Some(Identity::reserve(&settings.name)?),
    };
    let (host, port) = match &identity {
        Some(identity) => (identity.hostname.clone(), identity.port),
        None => (String::new(), 0),
    };
    let ip_address = match settings.ip_address {
        Some(address) => address,
        None => facing_address(&settings.endpoints[0]).await,
    };
    let registration = WorkerRegistration {
        name: settings.name.clone(),
        hostname: settings.hostname.clone().unwrap_or(host),
        ip_address: ip_address.to_string(),
        port: settings.port.unwrap_or(port).into(),
        capabilities: capabilities(settings),
        // At most 100, as the builder has checked.
        max_concurrent_jobs: i32::try_from(settings.slots).unwrap_or(1),
        version: settings.version.clone(),
        heartbeat_interval_seconds: declared(settings.heartbeat_period),
    };
    Ok((registration, identity))
}

/// What the server is told to expect. After three such intervals of silence the worker counts as lost.
fn declared(period: Duration) -> i32 {
    let seconds = period.as_secs() + u64::from(period.subsec_nanos() > 0);
    i32::try_from(seconds).unwrap_or(i32::MAX).max(SHORTEST_INTERVAL)
}

fn capabilities(settings: &Settings) -> HashMap<String, String> {
    let mut capabilities = HashMap::from([("gpu".to_owned(), settings.gpu.to_string())]);
    if let Some(models) = &settings.models {
        let list = serde_json::Value::from(models.clone()).to_string();
        capabilities.insert("models".to_owned(), list);
    }
    if let Some(memory_gb) = settings.memory_gb {
        capabilities.insert("memory_gb".to_owned(), memory_gb.to_string());
    }
    capabilities
}

/// The local address that packets to this endpoint would leave from. Nothing is
/// sent; without an answer the loopback address has to do.
async fn facing_address(endpoint: &str) -> IpAddr {
    let fallback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let Ok(url) = reqwest::Url::parse(endpoint) else {
        return fallback;
    };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or(80);
    let lookup = async {
        let target = tokio::net::lookup_host((host, port)).await?.next();
        let target = target.ok_or(std::io::ErrorKind::NotFound)?;
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(target).await?;
        Ok::<_, std::io::Error>(socket.local_addr()?.ip())
    };
    lookup.await.unwrap_or(fallback)
}
