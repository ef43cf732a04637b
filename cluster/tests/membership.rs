//! Starting, restarting, joining and leaving.

mod common;

use common::{Ground, all_joined, eventually, leader_of, within};
use cortex_cluster::{Addresses, ChangeError, ControlCommand, Leadership, Role, StartError};

#[tokio::test]
async fn a_restart_from_disk_keeps_term_epoch_and_cluster_and_rejoins() {
    let mut ground = Ground::new(&[1, 2, 3]);
    let mut replicas = ground.start_all().await;
    let led = leader_of(&replicas).await;
    all_joined(&replicas, &[1, 2, 3]).await;
    let follower = replicas.swap_remove(replicas.iter().position(|replica| replica.id != led.id).unwrap());
    let (id, before) = (follower.id, follower.node.status());
    follower.kill();
    let follower = ground.start(id).await;
    let control = follower.node.control().borrow().clone();
    assert_eq!((control.epoch, control.cluster_id), (led.epoch, Some(led.cluster_id)));
    let after = follower.node.status();
    assert!(
        after.term >= before.term && after.applied_index >= before.applied_index,
        "{before:?} then {after:?}"
    );
    follower.follows(led.id).await;
}

#[tokio::test]
async fn a_cluster_that_was_killed_as_a_whole_comes_back_as_itself() {
    let mut ground = Ground::new(&[1, 2, 3]);
    let replicas = ground.start_all().await;
    let first = leader_of(&replicas).await;
    let leader = replicas.iter().find(|replica| replica.id == first.id).unwrap();
    let command = ControlCommand::Set { key: "kept".into(), value: "yes".into() };
    leader.node.propose(command).await.unwrap();
    replicas.into_iter().for_each(common::Replica::kill);
    let mut replicas = Vec::new();
    for id in [3, 2, 1] {
        replicas.push(ground.start(id).await);
    }
    let second = leader_of(&replicas).await;
    assert!(second.epoch > first.epoch && second.term > first.term);
    assert_eq!(second.cluster_id, first.cluster_id);
    for replica in &replicas {
        let mut control = replica.node.control();
        within(control.wait_for(|control| control.settings.get("kept").is_some_and(|value| value == "yes")))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_stop_in_good_order_releases_the_directory() {
    let mut ground = Ground::new(&[1]);
    let replica = ground.start(1).await;
    let led = leader_of([&replica]).await;
    let mut leadership = replica.node.leadership();
    replica.stop().await;
    assert!(matches!(*leadership.borrow_and_update(), Leadership::Stopped { .. }));
    let replica = ground.start(1).await;
    assert!(leader_of([&replica]).await.epoch > led.epoch);
}

#[tokio::test]
async fn a_seed_that_starts_late_joins() {
    let mut ground = Ground::new(&[1, 2, 3]);
    let (one, two) = (ground.start(1).await, ground.start(2).await);
    let led = leader_of([&one, &two]).await;
    let three = ground.start(3).await;
    three.follows(led.id).await;
    all_joined([&one, &two, &three], &[1, 2, 3]).await;
    // Its addresses were unknown when the cluster was founded.
    eventually("the addresses of the late member are known to all", async || {
        [&one, &two, &three].iter().all(|replica| {
            let members = replica.node.status().members;
            members.iter().any(|member| member.id == 3 && member.addresses.http == "http-3:1")
        })
    })
    .await;
}

#[tokio::test]
async fn the_founder_may_start_last() {
    let mut ground = Ground::new(&[1, 2, 3]);
    let (three, two) = (ground.start(3).await, ground.start(2).await);
    let one = ground.start(1).await;
    leader_of([&one, &two, &three]).await;
}

#[tokio::test]
async fn a_wiped_member_is_refused_under_its_old_id() {
    let mut ground = Ground::new(&[1, 2, 3]);
    let mut replicas = ground.start_all().await;
    let led = leader_of(&replicas).await;
    all_joined(&replicas, &[1, 2, 3]).await;
    let wiped = replicas.swap_remove(replicas.iter().position(|replica| replica.id != led.id).unwrap());
    let id = wiped.id;
    wiped.kill();
    ground.wipe(id);
    let refused = ground.start_with(ground.config(id)).await.err().expect("it is refused");
    assert!(matches!(&refused, StartError::Refused(reason) if reason.contains("had joined")), "{refused}");
}

#[tokio::test]
async fn a_wiped_member_that_starts_alone_stops_when_others_tell_it() {
    let mut ground = Ground::new(&[1, 2, 3]);
    let replicas = ground.start_all().await;
    leader_of(&replicas).await;
    all_joined(&replicas, &[1, 2, 3]).await;
    replicas.into_iter().for_each(common::Replica::kill);
    ground.wipe(1);
    let wiped = ground.start(1).await;
    let (two, three) = (ground.start(2).await, ground.start(3).await);
    let stopped = wiped.until("stopping", |l| matches!(l, Leadership::Stopped { .. })).await;
    assert!(
        matches!(&stopped, Leadership::Stopped { reason, removed: false } if reason.contains("had joined")),
        "{stopped:?}"
    );
    assert!(!wiped.node.status().running);
    leader_of([&two, &three]).await;
}

#[tokio::test]
async fn a_wiped_founder_founds_no_second_cluster() {
    let mut ground = Ground::new(&[1, 2, 3]);
    let mut replicas = ground.start_all().await;
    leader_of(&replicas).await;
    all_joined(&replicas, &[1, 2, 3]).await;
    replicas.remove(0).kill();
    ground.wipe(1);
    let refused = ground.start_with(ground.config(1)).await.err().expect("it is refused");
    assert!(matches!(refused, StartError::Refused(_)), "{refused}");
    leader_of(&replicas).await;
}

#[tokio::test]
async fn a_wiped_member_gives_no_vote_to_those_who_lack_its_entries() {
    let mut ground = Ground::new(&[1, 2, 3]);
    let mut replicas = ground.start_all().await;
    let led = leader_of(&replicas).await;
    all_joined(&replicas, &[1, 2, 3]).await;
    let leader = replicas.swap_remove(replicas.iter().position(|replica| replica.id == led.id).unwrap());
    let (alive, wiped) = (replicas.remove(0), replicas.remove(0));
    leader.kill();
    let id = wiped.id;
    wiped.kill();
    ground.wipe(id);
    let refused =
        ground.start_with(ground.config(id)).await.err().expect("it is refused without any leader too");
    assert!(matches!(refused, StartError::Refused(_)), "{refused}");
    assert!(!alive.node.leadership().borrow().is_leading());
}

#[tokio::test]
async fn a_member_is_added_and_removed_and_its_id_never_comes_back() {
    let mut ground = Ground::new(&[1, 2, 3]);
    let replicas = ground.start_all().await;
    let led = leader_of(&replicas).await;
    let leader = &replicas.iter().find(|replica| replica.id == led.id).unwrap().node;
    let config = {
        let address = ground.reserve(4);
        ground.config_at(4, address)
    };
    let four = ground.start_with(config.clone()).await.unwrap();
    leader.add_member(4, config.advertise.clone()).await.unwrap();
    four.follows(led.id).await;
    all_joined(&replicas, &[4]).await;
    let role = |node: &cortex_cluster::Node| node.status().members.iter().find(|m| m.id == 4).map(|m| m.role);
    assert_eq!(role(leader), Some(Role::Voter));

    leader.remove_member(4).await.unwrap();
    assert_eq!(role(leader), None);
    four.until("noticing its removal", |l| matches!(l, Leadership::Stopped { removed: true, .. })).await;
    four.kill();
    let readded = leader.add_member(4, config.advertise.clone()).await;
    assert!(matches!(readded, Err(ChangeError::RemovedId(4))), "{readded:?}");
    let refused = ground.start_with(config.clone()).await.err().expect("it can't come back with its data");
    assert!(matches!(&refused, StartError::Refused(reason) if reason.contains("removed")), "{refused}");
    ground.wipe(4);
    let refused = ground.start_with(config).await.err().expect("nor without");
    assert!(matches!(&refused, StartError::Refused(reason) if reason.contains("removed")), "{refused}");
}

#[tokio::test]
async fn of_two_members_one_can_be_removed_and_the_other_goes_on_alone() {
    let mut ground = Ground::new(&[1, 2]);
    let replicas = ground.start_all().await;
    let led = leader_of(&replicas).await;
    all_joined(&replicas, &[1, 2]).await;
    let (leader, other) = match &replicas[..] {
        [one, two] if one.id == led.id => (one, two),
        [one, two] => (two, one),
        _ => unreachable!("there are two"),
    };
    leader.node.remove_member(other.id).await.unwrap();
    other.until("noticing its removal", |l| matches!(l, Leadership::Stopped { removed: true, .. })).await;
    let command = ControlCommand::Set { key: "alone".into(), value: "yes".into() };
    leader.node.propose(command).await.unwrap();
}

#[tokio::test]
async fn changes_are_refused_where_they_can_not_work() {
    let mut ground = Ground::new(&[1, 2, 3]);
    let replicas = ground.start_all().await;
    let led = leader_of(&replicas).await;
    let of = |leads: bool| &replicas.iter().find(|replica| (replica.id == led.id) == leads).unwrap().node;
    let (leader, follower) = (of(true), of(false));
    eventually("the follower knows the leader", async || follower.status().leader == Some(led.id)).await;
    let command = ControlCommand::Unset { key: "x".into() };
    assert!(
        matches!(follower.propose(command).await, Err(ChangeError::NotLeader { leader: Some(id) }) if id == led.id)
    );
    assert!(matches!(leader.remove_member(led.id).await, Err(ChangeError::IsLeader(_))));
    assert!(matches!(leader.remove_member(9).await, Err(ChangeError::UnknownMember(9))));
    assert!(matches!(leader.add_member(0, Addresses::default()).await, Err(ChangeError::InvalidId)));
    let large = ControlCommand::Set { key: String::new(), value: String::new() };
    assert!(matches!(leader.propose(large).await, Err(ChangeError::Refused(_))));
}

#[tokio::test]
async fn a_member_that_moved_to_another_port_is_found_there() {
    let mut ground = Ground::new(&[1, 2, 3]);
    let mut replicas = ground.start_all().await;
    let led = leader_of(&replicas).await;
    all_joined(&replicas, &[1, 2, 3]).await;
    let moved = replicas.swap_remove(replicas.iter().position(|replica| replica.id != led.id).unwrap());
    let id = moved.id;
    moved.kill();
    let address = ground.reserve(id);
    let moved = ground.start_with(ground.config_at(id, address.clone())).await.unwrap();
    moved.follows(led.id).await;
    let leader = &replicas.iter().find(|replica| replica.id == led.id).unwrap().node;
    eventually("the leader has recorded the new address", async || {
        leader.status().members.iter().any(|member| member.id == id && member.addresses.peer == address)
    })
    .await;
}

#[tokio::test]
async fn a_member_far_behind_catches_up_by_a_snapshot() {
    let mut ground = Ground::new(&[1, 2, 3]);
    let seeds = ground.seeds.clone();
    let mut replicas = Vec::new();
    for seed in seeds {
        let mut config = ground.config(seed.id);
        config.snapshot_every = 10;
        replicas.push(ground.start_with(config).await.unwrap());
    }
    let led = leader_of(&replicas).await;
    all_joined(&replicas, &[1, 2, 3]).await;
    let behind = replicas.swap_remove(replicas.iter().position(|replica| replica.id != led.id).unwrap());
    let id = behind.id;
    behind.kill();
    let leader = &replicas.iter().find(|replica| replica.id == led.id).unwrap().node;
    for number in 0..40 {
        let command = ControlCommand::Set { key: format!("key {number}"), value: number.to_string() };
        leader.propose(command).await.unwrap();
    }
    let mut config = ground.config(id);
    config.snapshot_every = 10;
    let behind = ground.start_with(config.clone()).await.unwrap();
    let mut control = behind.node.control();
    within(control.wait_for(|control| control.settings.len() == 40)).await.unwrap();
    let applied = behind.node.status().applied_index;
    behind.kill();
    let behind = ground.start_with(config).await.unwrap();
    assert_eq!(behind.node.control().borrow().settings.len(), 40);
    assert!(behind.node.status().applied_index >= applied);
}

#[tokio::test]
async fn a_corrupt_store_refuses_to_start() {
    let mut ground = Ground::new(&[1]);
    let replica = ground.start(1).await;
    leader_of([&replica]).await;
    replica.stop().await;
    let path = ground.data_dir(1).join("raft.redb");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes.truncate(middle);
    std::fs::write(&path, bytes).unwrap();
    let refused = ground.start_with(ground.config(1)).await.err().expect("it is refused");
    assert!(refused.to_string().contains("raft.redb"), "{refused}");
}
