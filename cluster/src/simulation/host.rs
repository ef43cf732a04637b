//! One simulated host: the real replica, and a hand that gives it commands.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::context::{context, data_dir, note};
use super::guest::Guest;
use super::network;
use crate::config::{Addresses, ClusterConfig, Seed};
use crate::control::ControlCommand;
use crate::membership::ChangeError;
use crate::node::Node;

/// What a replica is asked to do.
#[derive(Debug, Clone)]
pub(super) enum Order {
    Propose(ControlCommand),
    Transfer,
    Add(u64),
    Remove(u64),
    Stop,
}

/// What the driver sees of a host.
#[derive(Default)]
pub(super) struct Slot {
    pub node: Option<Node>,
    orders: Option<mpsc::UnboundedSender<Order>>,
    /// Why the replica did not start.
    pub refused: Option<String>,
    /// It was asked to stop and did.
    pub stopped: bool,
}

impl Slot {
    /// Gives an order, if anybody is there to take it.
    pub fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // The process may be ending; then nobody answers.
            let _ = orders.send(order);
        }
    }
}

pub(super) fn name(id: u64) -> String {
    format!("member-{id}")
}

pub(super) fn addresses(id: u64) -> Addresses {
    let port = |port: u16| format!("{}:{port}", name(id));
    Addresses { peer: port(network::PORT), http: port(8000), grpc: port(50051) }
}

/// The configuration of a member: as shipped, but for snapshots, which are taken often here.
pub(super) fn config(id: u64, seeds: u64) -> ClusterConfig {
    let seeds = (1..=seeds).map(|id| Seed { id, peer: addresses(id).peer }).collect();
    ClusterConfig { snapshot_every: 20, ..ClusterConfig::new(id, data_dir(id), addresses(id), seeds) }
}

/// The life of one process.
pub(super) async fn run(
    id: u64,
    seeds: u64,
    slot: Rc<RefCell<Slot>>,
    guest: Rc<dyn Guest>,
) -> turmoil::Result {
    let connections = network::listen().await?;
    let (node, service) = match Node::start(config(id, seeds)).await {
        Ok(started) => started,
        Err(error) => {
            note(format!("member {id} did not start: {error}"));
            slot.borrow_mut().refused = Some(error.to_string());
            return Ok(());
        }
    };
    let (server, life) = guest.begin(node.clone(), service);
    tokio::spawn(server.serve_with_incoming(connections));
    tokio::task::spawn_local(life);
    let (orders, mut ordered) = mpsc::unbounded_channel();
    let status = node.status();
    if let Some(context) = context() {
        context.history.borrow_mut().started(id, status.term, status.applied_index);
    }
    {
        let mut slot = slot.borrow_mut();
        (slot.node, slot.orders) = (Some(node.clone()), Some(orders));
    }
    while let Some(order) = ordered.recv().await {
        if let Order::Stop = order {
            guest.retire(id).await;
            node.shutdown().await;
            slot.borrow_mut().stopped = true;
            continue;
        }
        tokio::spawn(obey(node.clone(), order));
    }
    Ok(())
}

async fn obey(node: Node, order: Order) {
    let id = node.id();
    match order.clone() {
        Order::Propose(command) => {
            let outcome = node.propose(command.clone()).await;
            note(format!("member {id} on {command}: {outcome:?}"));
            let Some(context) = context() else { return };
            match outcome {
                Ok(index) => context.history.borrow_mut().acknowledged(index, command),
                Err(ChangeError::NotLeader { .. } | ChangeError::Refused(_)) => {
                    context.history.borrow_mut().refused(command);
                }
                Err(_) => {}
            }
        }
        Order::Transfer => {
            let outcome = node.transfer(None, Duration::from_secs(1)).await;
            note(format!("member {id} on its transfer: {outcome:?}"));
        }
        Order::Add(member) => {
            let outcome = node.add_member(member, addresses(member)).await;
            note(format!("member {id} on adding {member}: {outcome:?}"));
        }
        Order::Remove(member) => {
            let outcome = node.remove_member(member).await;
            note(format!("member {id} on removing {member}: {outcome:?}"));
        }
        Order::Stop => {}
    }
}
