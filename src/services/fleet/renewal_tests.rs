//! Sessions that are attached again, some of which are over without their replica knowing.

use super::*;

fn renewed(attach: Attach) -> Attach {
    Attach { renewal: true, ..attach }
}

#[test]
fn a_session_that_is_attached_again_puts_no_other_one_out() {
    let now = start();
    let (mut fleet, old, new) = (fleet(3, now), Arc::<Line>::default(), Arc::<Line>::default());
    fleet.attach(old.attach(FIRST, 3, &[]), now).unwrap();
    fleet.attach(new.attach(SECOND, 3, &[]), now).unwrap();
    old.take();
    assign(&mut fleet, 1, now);
    fleet.mark_running(lease(1), now);
    let found = fleet.attach(renewed(old.attach(FIRST, 3, &[])), now).unwrap();
    assert_eq!(found, AttachedTo::default(), "what runs is not lost");
    assert_eq!(old.take(), ["first: replaced"]);
    assign(&mut fleet, 2, now);
    assert_eq!(new.take(), ["second: run 1", "second: run 2"]);
}

#[test]
fn what_runs_is_not_lost_when_a_session_that_is_attached_to_the_next_leader_does_not_name_it() {
    let now = start();
    let (mut fleet, old, new) = (fleet(3, now), Arc::<Line>::default(), Arc::<Line>::default());
    fleet.adopt(&LiveLease { running: true, ..live(1) }, now);
    let found = fleet.attach(renewed(old.attach(FIRST, 3, &[])), now).unwrap();
    assert_eq!(found, AttachedTo::default());
    assert!(old.take().is_empty(), "it is not pushed again");
    let found = fleet.attach(new.attach(SECOND, 3, &[1]), now).unwrap();
    assert_eq!(found, AttachedTo::default());
    assert_eq!(old.take(), ["first: replaced"]);
}
