//! The worker's registration.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::net::UdpSocket;
use tracing::{info, warn};

use super::{
    Identity, WorkerError,
    builder::Settings,
    core::CALL_DEADLINE,
    link::{Failure, Link, Remedy},
};
use crate::{
    backoff::Backoff,
    proto::{WorkerRegistration, WorkerRegistrationResponse},
};

/// What the server is told to expect; see `WorkerBuilder::heartbeat_period`.
const DECLARED_HEARTBEAT_SECONDS: i32 = 5;

/// The id that the server knows this worker by.
pub(super) struct Session {
    registration: WorkerRegistration,
    current: Mutex<Registered>,
    renewing: tokio::sync::Mutex<()>,
}

/// One registration. The id may stay the same from one to the next, the number
/// does not.
#[derive(Debug, Clone)]
pub(super) struct Registered {
    pub(super) worker_id: Arc<str>,
    pub(super) number: u64,
}

impl Session {
    /// Registers, however long it takes to reach a replica.
    ///
    /// # Errors
    /// [`WorkerError::Refused`] if a replica says no.
    pub(super) async fn open(link: &Link, registration: WorkerRegistration) -> Result<Self, WorkerError> {
        let worker_id = register(link, &registration).await?;
        Ok(Self {
            registration,
            current: Mutex::new(Registered { worker_id, number: 1 }),
            renewing: tokio::sync::Mutex::new(()),
        })
    }

    /// The registration to use now.
    pub(super) fn current(&self) -> Registered {
        self.lock().clone()
    }

    /// Registers anew, unless somebody else has done so since `number`.
    ///
    /// # Errors
    /// [`WorkerError::Refused`].
    pub(super) async fn renew(&self, link: &Link, number: u64) -> Result<(), WorkerError> {
        let _only_one = self.renewing.lock().await;
        if self.current().number != number {
            return Ok(());
        }
        warn!("the server does not know this worker, registering anew");
        let worker_id = register(link, &self.registration).await?;
        *self.lock() = Registered { worker_id, number: number + 1 };
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Registered> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
        heartbeat_interval_seconds: DECLARED_HEARTBEAT_SECONDS,
    };
    Ok((registration, identity))
}

async fn register(link: &Link, registration: &WorkerRegistration) -> Result<Arc<str>, WorkerError> {
    let mut backoff = Backoff::default();
    loop {
        let connection = link.current();
        let answer = connection
            .call(CALL_DEADLINE, registration.clone(), |mut client, request| async move {
                client.register_worker(request).await
            })
            .await;
        match answer {
            Ok(answer) => return accepted(answer),
            Err(failure) => match failure.remedy() {
                Remedy::Elsewhere | Remedy::Later => {
                    link.leave(&connection, &failure);
                    if !matches!(failure, Failure::Left) {
                        backoff.pause().await;
                    }
                }
                Remedy::Unknown | Remedy::Stale | Remedy::Never => {
                    return Err(WorkerError::Refused(failure.to_string()));
                }
            },
        }
    }
}

fn accepted(answer: WorkerRegistrationResponse) -> Result<Arc<str>, WorkerError> {
    if !answer.success {
        return Err(WorkerError::Refused(answer.message));
    }
    info!(worker_id = %answer.worker_id, "registered");
    Ok(answer.worker_id.into())
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
