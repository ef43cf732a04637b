//! Commands on their way to the leader, over real connections that break, freeze and change.

mod sessions;
mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cortex::domain::ids::JobId;
use cortex::domain::job::JobStatus;
use cortex::domain::transition::{JobEvent, JobPatch};
use cortex::forward::{ForwardConfig, Limits, Route, wire};
use cortex::security::Caller;
use cortex::services::command::{Answer, Command, Commands, HeartbeatAnswer};
use cortex::services::error::{Conflict, ServiceError};
use futures::future::join_all;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_answers_come_back_to_those_who_asked() {
    let leader = Replica::leading(Arc::new(Echo)).await;
    let follower = Follower::new(leader.route(), patient());
    let calls = (1..=1_000).map(|n| {
        let worker = Uuid::from_u128(n);
        let call = follower.send(heartbeat(worker));
        async move {
            let Answer::Heartbeat(answer) = outcome(call).await.unwrap() else { panic!("another's answer") };
            assert_eq!(answer.pending_jobs, [JobId(worker)]);
        }
    });
    join_all(calls).await;
    assert_eq!(follower.router.calls(), 0);
}

#[tokio::test]
async fn an_answer_too_large_for_a_message_fails_its_own_command_and_no_other() {
    let (leader, mut script) = Replica::scripted().await;
    let follower = Follower::new(leader.route(), patient());
    let (large, small) =
        (follower.send(heartbeat(Uuid::from_u128(1))), follower.send(heartbeat(Uuid::from_u128(2))));
    let (first, second) = (script.next().await, script.next().await);
    let pending_jobs = vec![JobId(Uuid::from_u128(3)); 1 << 20];
    let answer = HeartbeatAnswer { pending_jobs, ..HeartbeatAnswer::default() };
    first.answer.send(Ok(Answer::Heartbeat(answer))).unwrap();
    second.answer.send(Ok(Answer::Heartbeat(HeartbeatAnswer::default()))).unwrap();
    let mut outcomes = [outcome(large).await, outcome(small).await];
    outcomes.sort_by_key(Result::is_ok);
    assert_eq!(outcomes[0].as_ref().unwrap_err(), &ServiceError::Internal);
    assert!(outcomes[1].is_ok());
}

#[tokio::test]
async fn commands_that_come_together_travel_together() {
    let leader = Counting::default();
    let peer = serve(wire::forward_server::ForwardServer::new(leader.clone())).await;
    let follower = Follower::new(Route::There { id: 1, peer }, patient());
    join_all((0..64).map(|n| {
        let router = &follower.router;
        async move {
            for _ in 0..20 {
                router.execute(Caller::Anybody, heartbeat(Uuid::from_u128(n))).await.unwrap();
            }
        }
    }))
    .await;
    let mut sizes = leader.0.lock().unwrap().clone();
    sizes.sort_unstable();
    assert_eq!(sizes.iter().sum::<usize>(), 64 * 20);
    assert!(sizes[sizes.len() / 2] > 1, "{sizes:?}");
}

#[tokio::test]
async fn a_repeatable_command_whose_answer_was_lost_is_sent_again_to_the_new_leader() {
    let (old, mut old_script) = Replica::scripted().await;
    let (new, mut new_script) = Replica::scripted().await;
    let follower = Follower::new(old.route(), patient());
    let call = follower.send(heartbeat(Uuid::from_u128(5)));
    let executed = old_script.next().await;
    old.cut.cancel();
    follower.route.send_replace(new.route());
    let repeated = new_script.next().await;
    assert_eq!(format!("{:?}", repeated.command), format!("{:?}", executed.command));
    repeated.answer.send(Ok(Answer::Heartbeat(HeartbeatAnswer::default()))).unwrap();
    outcome(call).await.unwrap();
}

#[tokio::test]
async fn a_patch_or_a_retry_whose_answer_was_lost_has_an_unknown_outcome() {
    for lost in [JobEvent::Retry, JobEvent::Patch(JobPatch::default())] {
        let (leader, mut script) = Replica::scripted().await;
        let follower = Follower::new(leader.route(), patient());
        let call = follower.send(event(lost));
        let _executed = script.next().await;
        leader.cut.cancel();
        assert_eq!(outcome(call).await.unwrap_err(), ServiceError::OutcomeUnknown);
    }
}

#[tokio::test]
async fn a_leader_that_does_not_know_what_it_did_is_asked_again_only_if_that_is_harmless() {
    let (leader, mut script) = Replica::scripted().await;
    let (local, mut local_script) = scripted();
    let follower = Follower::new(leader.route(), patient());
    for script in [&mut script, &mut local_script] {
        let call = follower.send(event(JobEvent::Retry));
        script.answer(Err(ServiceError::OutcomeUnknown)).await;
        assert_eq!(outcome(call).await.unwrap_err(), ServiceError::OutcomeUnknown);
        let call = follower.send(event(JobEvent::Due));
        script.answer(Err(ServiceError::OutcomeUnknown)).await;
        script.answer(applied()).await;
        is_applied(&outcome(call).await, false);
        follower.route.send_replace(Route::Here(Arc::clone(&local) as Arc<dyn Commands>));
    }
}

#[tokio::test]
async fn one_that_does_not_lead_makes_the_command_wait_for_the_new_route() {
    let (first, mut script) = Replica::scripted().await;
    let (new, mut new_script) = Replica::scripted().await;
    first.leads.send_replace(Route::Nowhere);
    let follower = Follower::new(first.route(), patient());
    let call = follower.send(event(JobEvent::Patch(JobPatch::default())));
    follower.calls(1).await;
    follower.calls(0).await;
    follower.route.send_replace(new.route());
    new_script.answer(applied()).await;
    is_applied(&outcome(call).await, false);
    assert!(script.0.try_recv().is_err(), "one that does not lead executes nothing");
}

#[tokio::test]
async fn a_leader_here_that_steps_down_in_mid_command_hands_it_to_the_next() {
    let (local, mut local_script) = scripted();
    let (new, mut new_script) = Replica::scripted().await;
    let follower = Follower::new(Route::Here(local), patient());
    let call = follower.send(event(JobEvent::Retry));
    let taken = local_script.next().await;
    follower.route.send_replace(new.route());
    taken.answer.send(Err(ServiceError::NoLeader)).unwrap();
    new_script.answer(applied()).await;
    is_applied(&outcome(call).await, false);
}

#[tokio::test]
async fn without_a_leader_a_command_gives_up_after_the_timeout() {
    let follower = Follower::new(Route::Nowhere, hasty());
    let begun = Instant::now();
    assert_eq!(outcome(follower.send(event(JobEvent::Due))).await.unwrap_err(), ServiceError::NoLeader);
    assert!(begun.elapsed() >= hasty().timeout);
    let (listener, nobody) = frozen().await;
    drop(listener);
    follower.route.send_replace(nobody);
    assert_eq!(outcome(follower.send(event(JobEvent::Due))).await.unwrap_err(), ServiceError::NoLeader);
}

#[tokio::test]
async fn a_command_waits_for_the_first_leader() {
    let (leader, mut script) = Replica::scripted().await;
    let follower = Follower::new(Route::Nowhere, patient());
    let call = follower.send(event(JobEvent::Retry));
    tokio::task::yield_now().await;
    follower.route.send_replace(leader.route());
    script.answer(applied()).await;
    is_applied(&outcome(call).await, false);
}

#[tokio::test]
async fn a_leader_that_never_answers_is_left_as_soon_as_the_route_changes() {
    let (old, mut old_script) = Replica::scripted().await;
    let (new, mut new_script) = Replica::scripted().await;
    let follower = Follower::new(old.route(), patient());
    let repeatable = follower.send(event(JobEvent::Due));
    let _held = old_script.next().await;
    let once = follower.send(event(JobEvent::Retry));
    let _held_too = old_script.next().await;
    follower.route.send_replace(Route::Nowhere);
    follower.route.send_replace(new.route());
    assert_eq!(outcome(once).await.unwrap_err(), ServiceError::OutcomeUnknown);
    new_script.answer(applied()).await;
    is_applied(&outcome(repeatable).await, false);
}

#[tokio::test]
async fn what_a_frozen_leader_never_accepted_was_not_done() {
    let (_listener, stopped) = frozen().await;
    let (new, mut script) = Replica::scripted().await;
    let follower = Follower::new(stopped, patient());
    let call = follower.send(event(JobEvent::Retry));
    follower.calls(1).await;
    follower.route.send_replace(new.route());
    script.answer(applied()).await;
    is_applied(&outcome(call).await, false);
}

#[tokio::test]
async fn an_answer_that_comes_while_nobody_is_known_to_lead_still_counts() {
    let (leader, mut script) = Replica::scripted().await;
    let follower = Follower::new(leader.route(), patient());
    let call = follower.send(event(JobEvent::Retry));
    let taken = script.next().await;
    follower.route.send_replace(Route::Nowhere);
    taken.answer.send(applied()).unwrap();
    is_applied(&outcome(call).await, false);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let (_listener, stopped) = frozen().await;
    let limits = Limits { queued: 2, ..Limits::default() };
    let follower = Follower::new(stopped, ForwardConfig { limits, ..patient() });
    let waiting = [(); 2].map(|()| follower.send(event(JobEvent::Due)));
    follower.calls(2).await;
    assert_eq!(outcome(follower.send(event(JobEvent::Due))).await.unwrap_err(), ServiceError::Overloaded);
    waiting.iter().for_each(JoinHandle::abort);
    follower.calls(0).await;
}

#[tokio::test]
async fn a_leader_refuses_more_than_it_may_have_under_way() {
    let (commands, mut script) = scripted();
    let limits = Limits { in_flight: 1, ..Limits::default() };
    let leader = Replica::start(Route::Here(commands), &ForwardConfig { limits, ..patient() }).await;
    let follower = Follower::new(leader.route(), patient());
    let first = follower.send(event(JobEvent::Due));
    let taken = script.next().await;
    assert_eq!(outcome(follower.send(event(JobEvent::Due))).await.unwrap_err(), ServiceError::Overloaded);
    taken.answer.send(applied()).unwrap();
    is_applied(&outcome(first).await, false);
}

#[tokio::test]
async fn submissions_do_not_hold_up_reports() {
    let (leader, mut script) = Replica::scripted().await;
    let limits = Limits { in_flight: 2, ..Limits::default() };
    let follower = Follower::new(leader.route(), ForwardConfig { limits, ..patient() });
    let submissions = [(); 5].map(|()| follower.send(Command::SubmitJobs(vec![])));
    let _held = [script.next().await, script.next().await];
    follower.calls(5).await;
    let report = follower.send(event(JobEvent::Due));
    assert!(matches!(script.answer(applied()).await, Command::ApplyEvent(..)));
    is_applied(&outcome(report).await, false);
    assert!(submissions.iter().all(|call| !call.is_finished()));
}

#[tokio::test]
async fn a_long_poll_may_wait_longer_than_other_commands() {
    let leader = Replica::leading(Arc::new(Idle)).await;
    let answer_timeout = Duration::from_secs(3);
    let follower = Follower::new(leader.route(), ForwardConfig { answer_timeout, ..hasty() });
    let begun = Instant::now();
    let wait = Duration::from_secs(6);
    assert!(matches!(outcome(follower.send(poll(wait))).await, Ok(Answer::PollJob(None))));
    assert!(begun.elapsed() >= wait - Duration::from_millis(50));
}

#[tokio::test]
async fn a_long_poll_that_is_sent_again_asks_only_for_the_rest_of_its_wait() {
    let (old, mut old_script) = Replica::scripted().await;
    let (new, mut new_script) = Replica::scripted().await;
    let follower = Follower::new(old.route(), patient());
    let call = follower.send(poll(SOON));
    let first = old_script.next().await;
    let begun = Instant::now();
    assert!(wait_of(&first.command) <= SOON);
    while begun.elapsed() < Duration::from_millis(20) {
        tokio::task::yield_now().await;
    }
    old.cut.cancel();
    follower.route.send_replace(new.route());
    let second = new_script.answer(Ok(Answer::PollJob(None))).await;
    assert!(wait_of(&second) <= wait_of(&first.command) - Duration::from_millis(20));
    outcome(call).await.unwrap();
}

#[tokio::test]
async fn a_caller_that_goes_away_frees_its_place_and_ends_its_long_poll() {
    let (leader, mut script) = Replica::scripted().await;
    let follower = Follower::new(leader.route(), patient());
    let call = follower.send(poll(SOON));
    let mut taken = script.next().await;
    assert_eq!(follower.router.calls(), 1);
    call.abort();
    follower.calls(0).await;
    timeout(SOON, taken.answer.closed()).await.expect("the leader stops waiting");
}

#[tokio::test]
async fn a_cancellation_sent_twice_that_finds_the_job_cancelled_is_a_success() {
    let (leader, mut script) = Replica::scripted().await;
    let follower = Follower::new(leader.route(), patient());
    let conflict = ServiceError::Conflict(Conflict::State {
        from: JobStatus::Cancelled,
        action: "cancelled".to_owned(),
    });
    let call = follower.send(event(JobEvent::Cancel));
    script.answer(Err(conflict.clone())).await;
    assert_eq!(outcome(call).await.unwrap_err(), conflict, "it was cancelled before");
    let call = follower.send(event(JobEvent::Cancel));
    script.answer(Err(ServiceError::OutcomeUnknown)).await;
    script.answer(Err(conflict)).await;
    is_applied(&outcome(call).await, true);
}

#[tokio::test]
async fn a_refused_second_copy_says_nothing_about_the_first() {
    let (leader, mut script) = Replica::scripted().await;
    // Long enough for a first copy to arrive in any case.
    let config = ForwardConfig { timeout: Duration::from_secs(2), ..hasty() };
    let follower = Follower::new(leader.route(), config);
    let call = follower.send(event(JobEvent::Due));
    script.answer(Err(ServiceError::OutcomeUnknown)).await;
    let refuse = async {
        loop {
            script.answer(Err(ServiceError::Overloaded)).await;
        }
    };
    tokio::select! {
        outcome = outcome(call) => assert_eq!(outcome.unwrap_err(), ServiceError::OutcomeUnknown),
        () = refuse => {}
    }
}

#[tokio::test]
async fn a_follower_with_another_secret_is_refused() {
    let (commands, mut script) = scripted();
    let secret = |secret: &str| ForwardConfig { secret: Some(secret.to_owned()), ..hasty() };
    let leader = Replica::start(Route::Here(commands), &secret("right")).await;
    for config in [secret("wrong"), hasty()] {
        let follower = Follower::new(leader.route(), config);
        assert_eq!(outcome(follower.send(event(JobEvent::Due))).await.unwrap_err(), ServiceError::NoLeader);
    }
    assert!(script.0.try_recv().is_err());
    let follower = Follower::new(leader.route(), ForwardConfig { timeout: SOON, ..secret("right") });
    let call = follower.send(event(JobEvent::Due));
    script.answer(applied()).await;
    is_applied(&outcome(call).await, false);
}

#[tokio::test]
async fn a_leader_that_shuts_down_answers_what_it_began_and_sends_long_polls_away() {
    let (old, mut old_script) = Replica::scripted().await;
    let (new, mut new_script) = Replica::scripted().await;
    let follower = Follower::new(old.route(), patient());
    let poll = follower.send(poll(SOON));
    let mut waiting = old_script.next().await;
    let write = follower.send(event(JobEvent::Retry));
    let begun = old_script.next().await;
    old.shutdown.cancel();
    timeout(SOON, waiting.answer.closed()).await.expect("the long poll is sent away");
    begun.answer.send(applied()).unwrap();
    is_applied(&outcome(write).await, false);
    follower.route.send_replace(new.route());
    new_script.answer(Ok(Answer::PollJob(None))).await;
    outcome(poll).await.unwrap();
}

#[tokio::test]
async fn a_planned_shutdown_leaves_nobody_in_doubt() {
    let counters = [Arc::new(Counter::default()), Arc::new(Counter::default())];
    let [old, new] = counters.clone().map(|counter| Replica::leading(counter));
    let (old, new) = (old.await, new.await);
    let follower = Follower::new(old.route(), patient());
    let mut calls = Vec::new();
    for n in 0..500 {
        calls.push(follower.send(event(JobEvent::Retry)));
        tokio::task::yield_now().await;
        if n == 250 {
            old.shutdown.cancel();
        }
    }
    follower.route.send_replace(new.route());
    for call in calls {
        is_applied(&outcome(call).await, false);
    }
    let [old, new] = counters.map(|counter| counter.0.load(Ordering::Relaxed));
    assert!(old > 0 && new > 0, "{old} and {new}");
    assert_eq!(old + new, 500);
}

#[tokio::test]
async fn a_command_that_panics_harms_no_other() {
    let (leader, mut script) = Replica::scripted().await;
    let follower = Follower::new(leader.route(), patient());
    let bad = follower.send(event(JobEvent::Retry));
    let panics = script.next().await;
    let good = follower.send(event(JobEvent::Due));
    let succeeds = script.next().await;
    drop(panics.answer);
    assert_eq!(outcome(bad).await.unwrap_err(), ServiceError::Internal);
    succeeds.answer.send(applied()).unwrap();
    is_applied(&outcome(good).await, false);
}
