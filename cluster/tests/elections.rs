//! Electing, losing and handing over the leadership.

mod common;

use std::time::Duration;

use common::{Ground, PATIENCE, leader_of, within};
use cortex_cluster::{ControlCommand, Leadership, Quorum, TransferError};
use tokio::time::Instant;

#[tokio::test]
async fn three_replicas_that_start_together_elect_one_leader_with_one_epoch() {
    let started = Instant::now();
    let mut ground = Ground::new(&[1, 2, 3]);
    let replicas = ground.start_all().await;
    let led = leader_of(&replicas).await;
    println!("the first leader led after {:?}", started.elapsed());
    for replica in replicas.iter().filter(|replica| replica.id != led.id) {
        replica.follows(led.id).await;
        let mut control = replica.node.control();
        let seen = within(control.wait_for(|control| control.epoch > 0)).await.unwrap();
        assert_eq!(
            (seen.epoch, seen.epoch_leader, seen.cluster_id),
            (led.epoch, led.id, Some(led.cluster_id))
        );
    }
}

#[tokio::test]
async fn a_single_replica_leads_itself() {
    let mut ground = Ground::new(&[7]);
    let replica = ground.start(7).await;
    let led = leader_of([&replica]).await;
    let index =
        replica.node.propose(ControlCommand::Set { key: "a".into(), value: "b".into() }).await.unwrap();
    assert!(index > led.epoch);
    assert_eq!(replica.node.control().borrow().settings["a"], "b");
}

#[tokio::test]
async fn killing_the_leader_gives_a_higher_epoch_elsewhere() {
    let mut ground = Ground::new(&[1, 2, 3]);
    let mut replicas = ground.start_all().await;
    let first = leader_of(&replicas).await;
    common::all_joined(&replicas, &[1, 2, 3]).await;
    let index = replicas.iter().position(|replica| replica.id == first.id).unwrap();
    let killed = Instant::now();
    replicas.swap_remove(index).kill();
    let second = leader_of(&replicas).await;
    println!("the second leader led {:?} after the first was killed", killed.elapsed());
    assert_ne!(first.id, second.id);
    assert!(second.epoch > first.epoch && second.term > first.term, "{first:?} then {second:?}");
    assert_eq!(first.cluster_id, second.cluster_id);
    let other = replicas.iter().find(|replica| replica.id != second.id).unwrap();
    other.follows(second.id).await;
}

#[tokio::test]
async fn a_follower_forgets_a_leader_that_is_gone() {
    let mut ground = Ground::new(&[1, 2, 3]);
    let mut replicas = ground.start_all().await;
    let led = leader_of(&replicas).await;
    for replica in replicas.iter().filter(|replica| replica.id != led.id) {
        replica.follows(led.id).await;
    }
    // Without a majority nobody can follow, so only time can tell.
    let follower = replicas.swap_remove(replicas.iter().position(|replica| replica.id != led.id).unwrap());
    replicas.into_iter().for_each(common::Replica::kill);
    follower.until("knowing no leader", |l| *l == Leadership::Following { leader: None }).await;
    assert_eq!(follower.node.status().leader, None);
}

#[tokio::test]
async fn a_leader_without_a_quorum_becomes_stale_and_then_leads_no_more() {
    let mut ground = Ground::new(&[1, 2, 3]);
    // It is stale for half of the longest; a busy machine must not hide that.
    ground.election_timeout = (Duration::from_secs(5), Duration::from_secs(10));
    let replicas = ground.start_all().await;
    let led = leader_of(&replicas).await;
    common::all_joined(&replicas, &[1, 2, 3]).await;
    let (mut leaders, followers): (Vec<_>, Vec<_>) =
        replicas.into_iter().partition(|replica| replica.id == led.id);
    let leader = leaders.remove(0);
    let mut leadership = leader.node.leadership();
    leadership.borrow_and_update();
    followers.into_iter().for_each(common::Replica::kill);
    within(leadership.changed()).await.unwrap();
    let stale = leadership.borrow_and_update().clone();
    let Leadership::Leading { epoch, quorum: Quorum::Stale, .. } = stale else {
        panic!("{stale:?} is not stale")
    };
    assert_eq!(epoch, led.epoch);
    within(leadership.changed()).await.unwrap();
    assert_eq!(*leadership.borrow_and_update(), Leadership::Following { leader: None });

    for id in [1, 2, 3].into_iter().filter(|id| *id != led.id).take(1) {
        let returned = ground.start(id).await;
        let again = leader_of([&leader, &returned]).await;
        assert!(
            again.epoch > led.epoch,
            "a leader that lost its quorum for a whole lease claims a new epoch"
        );
    }
}

#[tokio::test]
async fn a_transfer_gives_the_chosen_replica_the_lead_and_a_new_epoch() {
    let mut ground = Ground::new(&[1, 2, 3]);
    let replicas = ground.start_all().await;
    let mut led = leader_of(&replicas).await;
    common::all_joined(&replicas, &[1, 2, 3]).await;
    for _ in 0..3 {
        let from = replicas.iter().find(|replica| replica.id == led.id).unwrap();
        let others = || replicas.iter().filter(|replica| replica.id != led.id);
        let started = Instant::now();
        let to = from.node.transfer(None, PATIENCE).await.unwrap();
        let next = leader_of(others()).await;
        println!("the hand-over took {:?}", started.elapsed());
        assert_eq!(next.id, to);
        assert!(next.epoch > led.epoch);
        from.follows(next.id).await;
        led = next;
    }
}

#[tokio::test]
async fn a_transfer_is_refused_where_it_can_not_work() {
    let mut ground = Ground::new(&[1, 2, 3]);
    let replicas = ground.start_all().await;
    let led = leader_of(&replicas).await;
    let (leader, follower) = {
        let of = |leads: bool| replicas.iter().find(|replica| (replica.id == led.id) == leads).unwrap();
        (of(true), of(false))
    };
    let deadline = Duration::from_millis(200);
    assert!(matches!(follower.node.transfer(None, deadline).await, Err(TransferError::NotLeader)));
    assert!(matches!(leader.node.transfer(Some(9), deadline).await, Err(TransferError::NotAVoter(9))));
    assert!(matches!(leader.node.transfer(Some(led.id), deadline).await, Err(TransferError::NotAVoter(_))));
}

#[tokio::test]
async fn a_transfer_to_a_dead_voter_ends_at_its_deadline() {
    let mut ground = Ground::new(&[1, 2, 3]);
    let mut replicas = ground.start_all().await;
    let led = leader_of(&replicas).await;
    common::all_joined(&replicas, &[1, 2, 3]).await;
    let dead = replicas.swap_remove(replicas.iter().position(|replica| replica.id != led.id).unwrap());
    let dead_id = dead.id;
    dead.kill();
    let leader = replicas.iter().find(|replica| replica.id == led.id).unwrap();
    let outcome = leader.node.transfer(Some(dead_id), Duration::from_millis(100)).await;
    assert!(matches!(outcome, Err(TransferError::Timeout { to, .. }) if to == dead_id), "{outcome:?}");
    // Whoever leads then takes changes again.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let led = leader_of(&replicas).await;
        let leader = replicas.iter().find(|replica| replica.id == led.id).unwrap();
        let change = ControlCommand::Unset { key: "x".into() };
        match leader.node.propose(change).await {
            Ok(_) => break,
            Err(error) => assert!(Instant::now() < deadline, "no change is taken: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
