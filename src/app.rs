//! One replica, put together from its parts and taken apart in order.

mod listeners;
mod send_on;
mod stores;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use cortex_cluster::{ClusterConfig, Leadership, Node, StartError};
use futures::future::BoxFuture;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use self::listeners::{grpc_tls, listen, serve};
use self::stores::{open_database, open_queue};
pub(crate) use self::stores::{options as database_options, queue};
use crate::api::{self, Answers, Api, Gate, Observe};
use crate::config::Config;
use crate::domain::ambient::{Ambient, System};
use crate::domain::ids::{ClusterId, Epoch};
use crate::domain::job::JobDefaults;
use crate::forward::{self, ForwardConfig, ForwardServer, Route, Router};
use crate::genome::{self, Genome};
use crate::group::Group;
use crate::leadership::{self, RaftStopped, Stores};
use crate::ready_queue::{QueueError, ReadyQueue};
use crate::security::{self, Authenticator, BadKey, Limiter, PeerTls, Rate, SetupError, TlsError, Vault};
use crate::services::Services;
use crate::services::control::Control;
use crate::services::inspect::{ClusterView, Component, Health, Inspect, MemberView, Role};
use crate::services::leader::{LeaderParts, Patience};
use crate::services::queries::Queries;
use crate::services::sessions::Sessions;
use crate::services::watching::Watching;
use crate::storage::{Database, Fence, StorageError};
use crate::telemetry::traces::{ExportError, ExportOptions};
use crate::telemetry::whole_story;
use crate::telemetry::{Metrics, Tracer};

/// How long a store may take to answer a health check.
const CHECK_WITHIN: Duration = Duration::from_secs(1);
/// How long open requests may take after the signal to stop.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
/// How long the others may take to elect the next leader. If they all stop, they never do.
const ELECT_WITHIN: Duration = Duration::from_millis(500);
/// How long spans that wait may take to be sent at the end.
const SPANS_WITHIN: Duration = Duration::from_secs(3);
/// Threads that serve other replicas, so that Raft is heard however busy the API is.
const PEER_THREADS: usize = 2;

/// Why a replica could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Payloads cannot be encrypted as configured.
    #[error(transparent)]
    PayloadKeys(#[from] BadKey),
    /// Nobody could be authenticated.
    #[error(transparent)]
    Security(#[from] SetupError),
    /// A certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Traces cannot be sent as configured.
    #[error("observability.otlp_endpoint: {0}")]
    Traces(#[from] ExportError),
    /// A listener could not be opened.
    #[error("cannot listen on {address} for {purpose}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// For whom.
        purpose: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// PostgreSQL cannot be used as configured.
    #[error("database.url cannot be used: {}", whole_story(.0))]
    Database(#[source] StorageError),
    /// The schema could not be brought up to date.
    #[error("the database schema could not be migrated: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// Redis cannot be used as configured.
    #[error("queue.redis_url cannot be used: {}", whole_story(.0))]
    Queue(#[from] QueueError),
    /// The registry of models cannot be asked as configured.
    #[error(transparent)]
    Genome(#[from] genome::SetupError),
    /// Raft could not start.
    #[error(transparent)]
    Cluster(#[from] StartError),
    /// Raft ended.
    #[error(transparent)]
    Stopped(#[from] RaftStopped),
    /// The machine did not let us.
    #[error("the replica could not be started: {0}")]
    Io(#[from] std::io::Error),
    /// The API could not be built.
    #[error("the gRPC services could not be built: {0}")]
    Grpc(String),
}

/// Runs one replica until `shutdown`, then hands the leadership over and stops.
#[expect(clippy::too_many_lines, reason = "the parts, in the order in which they start and stop")]
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), AppError> {
    let ambient: Arc<dyn Ambient> = Arc::new(System);
    let metrics = Arc::new(Metrics::new());
    let gate = gate(&config, &ambient)?;
    let genome = config.genome.as_ref();
    let genome =
        genome.map(|genome| Genome::new(genome, Arc::clone(&ambient), Arc::clone(&metrics))).transpose()?;
    let vault = Vault::new(&config.security.payload_keys)?;
    let tls = config.server.tls.as_ref().map(security::server_identity).transpose()?;
    let peer_tls = config.cluster.tls.as_ref().map(security::peer_tls).transpose()?;
    if config.security.require_auth && config.cluster.is_open() {
        tracing::warn!(
            "The peer port lets anybody in, as an administrator: set cluster.tls or cluster.secret, or keep it private."
        );
    }
    let tracer = tracer(&config, &ambient, &metrics)?;
    let listeners = listen(&config).await?;
    let database = open_database(&config, &shutdown).await?.with_vault(vault);
    let queue = open_queue(&config.queue).await?;
    let peer_runtime = PeerRuntime::start()?;
    let peers = &peer_runtime.handle;
    let started = peers.spawn(Node::start(cluster_config(&config, peer_tls.as_ref()))).await;
    let (node, raft) = started.map_err(std::io::Error::other)??;

    let (route, routes) = forward::watch::channel(Route::Nowhere);
    let forwarding = ForwardConfig {
        timeout: config.cluster.forward_timeout,
        secret: config.cluster.secret.as_ref().map(|secret| secret.expose().to_owned()),
        tls: peer_tls.as_ref().map(peer_client),
        ..ForwardConfig::default()
    };
    let forward_service =
        ForwardServer::new(routes.clone(), &forwarding, shutdown.child_token()).into_service();
    let stop_peers = CancellationToken::new();
    let mut peer_server = forward::tune(tonic::transport::Server::builder());
    if let Some(tls) = &peer_tls {
        let tls = grpc_tls(&tls.identity).client_ca_root(Certificate::from_pem(&tls.ca));
        peer_server = peer_server.tls_config(tls).map_err(|error| AppError::Grpc(error.to_string()))?;
    }
    let peer_server =
        peer_server.add_service(raft).add_service(forward_service).serve_with_incoming_shutdown(
            TcpIncoming::from(listeners.peer).with_nodelay(Some(true)),
            stop_peers.clone().cancelled_owned(),
        );
    let peer_server = peers.spawn(peer_server);

    let defaults = job_defaults(&config);
    let inspector = Inspector {
        node: node.clone(),
        database: database.clone(),
        queue: queue.clone(),
        routes: routes.clone(),
        leadership: node.leadership(),
    };
    let control: Arc<dyn Control> = Arc::new(Group::of(node.clone()));
    let sessions = Arc::new(Sessions::default());
    let router = Router::new(routes, forwarding, Arc::clone(&ambient), Arc::clone(&sessions));
    let router = Arc::new(router.with_tracer(tracer.clone()));
    let close = CancellationToken::new();
    tokio::spawn(forward::keep_attached(Arc::clone(&router), Arc::clone(&sessions), close.clone()));
    let services = Services::new(
        router,
        Arc::clone(&control),
        Arc::clone(&ambient),
        defaults.clone(),
        Queries::new(database.clone(), queue.clone()),
        Arc::clone(&sessions),
    )
    .with_genome(genome);
    let watching = Arc::clone(&services.watching);
    let api = Api::new(api::Parts {
        services,
        inspect: Arc::new(inspector),
        metrics: config.observability.metrics_enabled.then(|| renderer(&metrics, &node, &watching)),
        observer: Arc::new(Observer(Arc::clone(&metrics))),
        ambient: Arc::clone(&ambient),
        gate,
        tracer: tracer.clone(),
        grpc_reflection: config.server.grpc_reflection,
        limits: api::Limits { max_body_bytes: config.limits.max_body_bytes, ..api::Limits::default() },
    });
    let (retire, stop) = (CancellationToken::new(), CancellationToken::new());
    let parts = leadership::Parts {
        node: node.clone(),
        route,
        office: Stores {
            leader: LeaderParts {
                database: database.clone(),
                queue,
                // Filled in with every leadership.
                fence: Fence { cluster_id: ClusterId(uuid::Uuid::nil()), epoch: Epoch(0) },
                control,
                ambient,
                metrics: Arc::clone(&metrics),
                tracer: tracer.clone(),
                defaults,
                worker_timeout: config.scheduler.worker_timeout,
                patience: Patience {
                    failures: config.scheduler.unhealthy_after,
                    pause: config.scheduler.unhealthy_pause,
                },
                batch_size: config.scheduler.batch_size as usize,
                max_queue_size: config.queue.max_queue_size,
                scheduling: config.scheduler.enabled,
            },
            poll_interval: config.scheduler.poll_interval,
            retention: config.retention.finished_jobs,
            metrics_interval: config.queue.metrics_interval,
            metrics_retention: config.retention.queue_metrics,
        },
        metrics,
        retire: retire.clone(),
        stop: stop.clone(),
    };
    let mut leading = tokio::spawn(leadership::run(parts));
    let (servers, serving) = serve(api, listeners.http, listeners.grpc, tls.as_ref(), &close).await?;
    tokio::spawn(send_on::when_removed(node.clone(), Arc::clone(&sessions), serving));
    let group = node.clone();
    tokio::spawn(send_on::without_leader(
        node.leadership(),
        move || group.status().members.len() > 1,
        Arc::clone(&sessions),
        config.cluster.election_timeout.1,
        close.clone(),
    ));
    tracing::info!(node_id = config.cluster.node_id, http = %config.http_listen(), grpc = %config.grpc_listen(),
        "The replica is up.");

    let outcome = tokio::select! {
        () = shutdown.cancelled() => None,
        ended = &mut leading => Some(ended),
    };
    if outcome.is_none() {
        tracing::info!("The replica is stopping.");
        retire.cancel();
        if node.status().members.len() > 1 {
            wait_until_retired(&node).await;
        }
    }
    sessions.stop();
    watching.stop();
    close.cancel();
    for server in servers {
        finish(server).await;
    }
    stop.cancel();
    node.shutdown().await;
    stop_peers.cancel();
    finish(peer_server).await;
    drop(peer_runtime);
    drop(tokio::time::timeout(CLOSE_WITHIN, database.close()).await);
    tracer.stop(SPANS_WITHIN).await;
    match outcome {
        Some(Ok(Err(stopped))) => Err(stopped.into()),
        Some(Err(panic)) => Err(RaftStopped(format!("leadership ended unexpectedly: {panic}")).into()),
        Some(Ok(Ok(()))) | None => Ok(()),
    }
}

/// Who may call, and how often.
fn gate(config: &Config, ambient: &Arc<dyn Ambient>) -> Result<Gate, SetupError> {
    let limits = &config.limits;
    let rate = NonZeroU32::new(limits.requests_per_second).map(|per_second| Rate {
        per_second,
        burst: NonZeroU32::new(limits.request_burst).unwrap_or(per_second),
    });
    Ok(Gate {
        authenticator: Authenticator::new(&config.security, Arc::clone(ambient))?,
        limiter: rate.map(|rate| Limiter::new(rate, Arc::clone(ambient))),
        max_header_bytes: limits.max_header_bytes,
        cors: api::rest::cors::layer(&config.cors),
        answers: Answers::default(),
    })
}

/// Sends traces, if that is configured.
fn tracer(config: &Config, ambient: &Arc<dyn Ambient>, metrics: &Metrics) -> Result<Tracer, ExportError> {
    let observability = &config.observability;
    let Some(endpoint) = observability.otlp_endpoint.clone().filter(|_| observability.tracing_enabled) else {
        return Ok(Tracer::off());
    };
    let origin = vec![
        ("service.name", observability.service_name.clone()),
        ("service.version", observability.service_version.clone()),
        ("service.instance.id", config.cluster.node_id.to_string()),
        ("deployment.environment.name", observability.environment.clone()),
    ];
    let options = ExportOptions { endpoint, origin };
    Tracer::start(&options, observability.trace_sample_ratio, Arc::clone(ambient), &metrics.trace_spans)
}

/// The runtime of the peer port. A runtime that is dropped waits for its threads, which no async function may, so
/// this one lets them go, whichever way the replica ends.
struct PeerRuntime {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl PeerRuntime {
    fn start() -> std::io::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(PEER_THREADS).thread_name("cortex-peer").enable_all().build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }
}

impl Drop for PeerRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What a replica shows another one, and whom it believes.
fn peer_client(tls: &PeerTls) -> ClientTlsConfig {
    ClientTlsConfig::new()
        .identity(Identity::from_pem(&tls.identity.cert, &tls.identity.key))
        .ca_certificate(Certificate::from_pem(&tls.ca))
}

fn cluster_config(config: &Config, tls: Option<&PeerTls>) -> ClusterConfig {
    let cluster = &config.cluster;
    let advertise = cortex_cluster::Addresses {
        peer: cluster.advertise.peer.clone(),
        http: cluster.advertise.http.clone(),
        grpc: cluster.advertise.grpc.clone(),
    };
    let seeds = cluster
        .seeds
        .iter()
        .map(|seed| cortex_cluster::Seed { id: seed.id, peer: seed.address.clone() })
        .collect();
    ClusterConfig {
        heartbeat: cluster.heartbeat,
        election_timeout: cluster.election_timeout,
        secret: cluster.secret.as_ref().map(|secret| secret.expose().to_owned()),
        tls: tls.map(peer_client),
        ..ClusterConfig::new(cluster.node_id, &cluster.data_dir, advertise, seeds)
    }
}

fn job_defaults(config: &Config) -> JobDefaults {
    let timeout = u32::try_from(config.scheduler.job_timeout_default.as_secs()).unwrap_or(u32::MAX);
    JobDefaults { retry: config.retry.into(), timeout_seconds: timeout }
}

/// Waits until this replica leads no more and another one has claimed the leadership, for which it may need this one's
/// disk and vote; requests that are still open are carried to it.
async fn wait_until_retired(node: &Node) {
    let (mut leadership, mut control) = (node.leadership(), node.control());
    let leads = |now: &Leadership| matches!(now, Leadership::Leading { .. });
    if !leads(&leadership.borrow()) {
        return;
    }
    let own = control.borrow().epoch;
    let retired = leadership.wait_for(|now| !leads(now));
    drop(tokio::time::timeout(CLOSE_WITHIN, retired).await);
    let claimed = control.wait_for(|control| control.epoch > own);
    drop(tokio::time::timeout(ELECT_WITHIN, claimed).await);
}

async fn finish<T>(task: JoinHandle<T>) {
    let abort = task.abort_handle();
    if tokio::time::timeout(CLOSE_WITHIN, task).await.is_err() {
        abort.abort();
    }
}

/// Looks at the parts of a running replica.
struct Inspector {
    node: Node,
    database: Database,
    queue: ReadyQueue,
    routes: forward::watch::Receiver<Route>,
    leadership: watch::Receiver<Leadership>,
}

impl Inspect for Inspector {
    fn health(&self) -> BoxFuture<'_, Health> {
        Box::pin(async move {
            let (postgres, redis) = tokio::join!(check(self.database.ping()), check(self.queue.ping()));
            let status = self.node.status();
            let raft = match (status.running, status.leader) {
                (false, _) if self.removed() => Component::down("this replica was removed from the cluster"),
                (false, _) => Component::down("the Raft core has stopped"),
                (true, None) => Component::down("no leader is known"),
                // Elected, and not (yet) let by the stores.
                (true, Some(_)) if matches!(*self.routes.borrow(), Route::Nowhere) => {
                    Component::down("the leader does not take writes")
                }
                (true, Some(_)) => Component::up(),
            };
            Health { postgres, redis, raft, role: role(status.role), leader: status.leader }
        })
    }

    fn alive(&self) -> bool {
        self.node.status().running
    }

    fn removed(&self) -> bool {
        matches!(*self.leadership.borrow(), Leadership::Stopped { removed: true, .. })
    }

    fn cluster(&self) -> ClusterView {
        let status = self.node.status();
        ClusterView {
            id: status.node_id,
            cluster_id: status.cluster_id.map(|id| id.to_string()),
            leader: status.leader,
            term: status.term,
            epoch: status.epoch,
            role: role(status.role),
            members: status
                .members
                .into_iter()
                .map(|member| MemberView {
                    id: member.id,
                    role: role(member.role),
                    peer: member.addresses.peer,
                    http: member.addresses.http,
                    grpc: member.addresses.grpc,
                    last_contact_ms: member.last_contact_ms,
                    log_lag: member.log_lag,
                })
                .collect(),
        }
    }
}

async fn check<E: std::fmt::Display>(answer: impl Future<Output = Result<(), E>>) -> Component {
    match tokio::time::timeout(CHECK_WITHIN, answer).await {
        Ok(Ok(())) => Component::up(),
        Ok(Err(error)) => Component::down(error.to_string()),
        Err(_) => Component::down("no answer within a second"),
    }
}

fn role(role: cortex_cluster::Role) -> Role {
    match role {
        cortex_cluster::Role::Leader => Role::Leader,
        cortex_cluster::Role::Candidate => Role::Candidate,
        cortex_cluster::Role::Voter => Role::Follower,
        cortex_cluster::Role::Learner => Role::Learner,
    }
}

fn renderer(
    metrics: &Arc<Metrics>,
    node: &Node,
    watching: &Arc<Watching>,
) -> Arc<dyn Fn() -> String + Send + Sync> {
    let (metrics, node, watching) = (Arc::clone(metrics), node.clone(), Arc::clone(watching));
    Arc::new(move || {
        let raft = node.status();
        metrics.raft_term.set(raft.term.cast_signed());
        metrics.raft_applied.set(raft.applied_index.unwrap_or(0).cast_signed());
        metrics.event_streams.set(i64::try_from(watching.followers()).unwrap_or(i64::MAX));
        metrics.render()
    })
}

/// Counts requests.
struct Observer(Arc<Metrics>);

impl Observe for Observer {
    fn http(&self, method: &str, route: &str, status: u16, took: Duration) {
        let status = status.to_string();
        self.0.http_requests.with_label_values(&[method, route, &status]).inc();
        self.0.http_request.with_label_values(&[method, route]).observe(took.as_secs_f64());
    }

    fn grpc(&self, method: &str, code: &str, took: Duration) {
        self.0.grpc_requests.with_label_values(&[method, code]).inc();
        self.0.grpc_request.with_label_values(&[method]).observe(took.as_secs_f64());
    }
}
