//! The replicas of a simulated group above Raft, and what is checked of them in every millisecond.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use cortex_cluster::simulation::{Guest, Life, World, note, violated};
use cortex_cluster::{Node, RaftServer};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Router as Served;
use uuid::Uuid;

use super::client::{self, Kind};
use super::leader::MemoryOffice;
use super::store::Store;
use super::{Defect, below, random};
use crate::domain::ambient::Ambient;
use crate::forward::{self, ForwardConfig, ForwardServer, Route, Router};
use crate::leadership;
use crate::services::sessions::Sessions;
use crate::telemetry::Metrics;

/// How long a replica that stops waits for another one to lead.
const RETIRE_WITHIN: Duration = Duration::from_secs(3);

/// One process.
struct Replica {
    node: Node,
    route: forward::watch::Receiver<Route>,
    /// The route as it was noted last.
    shown: RefCell<String>,
    shutdown: CancellationToken,
    retire: CancellationToken,
}

/// All of them, and their store.
pub(super) struct Replicas {
    store: Store,
    metrics: Arc<Metrics>,
    running: RefCell<BTreeMap<u64, Replica>>,
    /// When the store is next silent to somebody.
    next: Cell<Duration>,
}

/// Randomness from the seed, and its clock. There is no date.
struct Seeded;

impl Ambient for Seeded {
    fn now(&self) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH
    }

    fn instant(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn uuid(&self) -> Uuid {
        Uuid::from_u64_pair(random(), random())
    }

    fn unit(&self) -> f64 {
        f64::from(u32::try_from(below(1 << 20)).unwrap_or_default()) / f64::from(1 << 20)
    }
}

impl Replicas {
    pub fn new(defect: Option<Defect>) -> Self {
        Self {
            store: Store::new(defect),
            metrics: Arc::new(Metrics::new()),
            running: RefCell::default(),
            next: Cell::new(Duration::from_millis(600)),
        }
    }

    /// How many commands were asked, and how many of them carried out.
    pub fn extent(&self) -> (usize, usize) {
        self.store.lock().ledger.extent()
    }

    /// Now and then the store is silent to one replica, or to all.
    fn trouble(&self) {
        let mut state = self.store.lock();
        if state.now < self.next.get() {
            return;
        }
        self.next.set(state.now + Duration::from_millis(200 + below(2000)));
        let running = self.running.borrow();
        let leads = |replica: &Replica| matches!(&*replica.route.borrow(), Route::Here(_));
        let leader = running.iter().find(|(_, replica)| leads(replica)).map(|(id, _)| *id);
        let lasts = Duration::from_millis(if below(3) == 0 { 3000 } else { 20 + below(600) });
        match below(10) {
            0 => running.keys().for_each(|id| state.silence(*id, lasts)),
            1..7 => leader.into_iter().for_each(|id| state.silence(id, lasts)),
            _ => {
                let some = running.keys().nth(usize::try_from(below(5)).unwrap_or_default());
                some.into_iter().for_each(|id| state.silence(*id, lasts));
            }
        }
    }

    /// Commands go to leaders that the store has accepted, of which one at the most may write.
    fn look(&self) {
        let state = self.store.lock();
        let mut writers = Vec::new();
        for (id, replica) in &*self.running.borrow() {
            let route = replica.route.borrow();
            let mut shown = format!("{:?}", *route);
            if let Route::Here(commands) = &*route {
                let leader = state.leaders.get(id).filter(|leader| leader.is(commands));
                match leader {
                    Some(leader) if !state.has_accepted(*id, leader.fence) => violated(format!(
                        "member {id} takes commands with epoch {}, which the store has not accepted",
                        leader.fence.epoch
                    )),
                    Some(leader) => {
                        shown = format!("Here({})", leader.fence.epoch);
                        writers.extend(state.is_current(leader.fence).then_some(*id));
                    }
                    None => violated(format!("member {id} takes commands and has not taken over")),
                }
            }
            if *replica.shown.borrow() != shown {
                note(format!("commands of member {id} go {shown}"));
                if let Some(leader) = state.leaders.get(id)
                    && shown.starts_with("Here")
                    && state.is_spent(leader.fence)
                {
                    violated(format!(
                        "member {id} leads with epoch {}, which was fenced off",
                        leader.fence.epoch
                    ));
                }
                *replica.shown.borrow_mut() = shown;
            }
        }
        if writers.len() > 1 {
            violated(format!("the commands of {writers:?} pass the fence at the same time"));
        }
    }
}

impl Guest for Replicas {
    fn begin(&self, node: Node, raft: RaftServer) -> (Served, Life) {
        let id = node.id();
        let (route, routes) = forward::watch::channel(Route::Nowhere);
        let (shutdown, retire) = (CancellationToken::new(), CancellationToken::new());
        let config = ForwardConfig::default();
        let server = ForwardServer::new(routes.clone(), &config, shutdown.clone()).into_service();
        let served = forward::tune(Server::builder()).add_service(raft).add_service(server);
        let router = Router::new(routes.clone(), config, Arc::new(Seeded), Arc::new(Sessions::default()));
        let router = Arc::new(router);
        for kind in Kind::ALL {
            tokio::spawn(client::run(id, kind, Arc::clone(&router), self.store.clone()));
        }
        let parts = leadership::Parts {
            node: node.clone(),
            route,
            office: MemoryOffice { store: self.store.clone(), host: id, route: routes.clone() },
            metrics: Arc::clone(&self.metrics),
            retire: retire.clone(),
            stop: CancellationToken::new(),
        };
        let replica = Replica { node, route: routes, shown: RefCell::default(), shutdown, retire };
        self.running.borrow_mut().insert(id, replica);
        let life = async move {
            if let Err(stopped) = leadership::run(parts).await {
                note(format!("member {id}: {stopped}"));
            }
        };
        (served, Box::pin(life))
    }

    fn retire(&self, id: u64) -> Life {
        let running = self.running.borrow();
        let Some(replica) = running.get(&id) else { return Box::pin(std::future::ready(())) };
        replica.shutdown.cancel();
        replica.retire.cancel();
        let mut leadership = replica.node.leadership();
        Box::pin(async move {
            let retired = leadership.wait_for(|now| !now.is_leading());
            drop(tokio::time::timeout(RETIRE_WITHIN, retired).await);
        })
    }

    fn ended(&self, id: u64) {
        self.running.borrow_mut().remove(&id);
        self.store.lock().leaders.remove(&id);
    }

    fn act(&self, world: &World, mended: bool) {
        {
            let mut state = self.store.lock();
            state.now = world.now();
            if mended && state.ledger.mended.is_none() {
                state.mend();
                state.ledger.mended = Some(world.now());
            }
        }
        if !mended {
            self.trouble();
        }
        self.store.lock().serve();
        self.look();
    }

    fn is_calm(&self, members: &[u64]) -> bool {
        self.store.lock().ledger.is_calm(members)
    }

    fn settle(&self) {
        self.store.lock().ledger.settle();
    }
}
