use proptest::prelude::*;

use super::*;

const LEASE: Duration = Duration::from_millis(300);

fn millis(base: Instant, millis: u64) -> Instant {
    base + Duration::from_millis(millis)
}

fn seen(now: Instant, leads: Option<u64>, acked: Option<Instant>) -> Seen {
    Seen { now, leads, elected: None, acked, follows: None }
}

fn claim(term: u64, proven: Instant) -> Claim {
    Claim { term, epoch: 9, cluster_id: Uuid::nil(), proven }
}

fn leading(quorum: Quorum) -> Leadership {
    Leadership::Leading { term: 5, epoch: 9, cluster_id: Uuid::nil(), quorum }
}

#[test]
fn an_elected_replica_claims_before_it_leads() {
    let now = Instant::now();
    let verdict = judge(&seen(now, Some(5), None), None, LEASE);
    assert_eq!((verdict.publish, verdict.propose), (Leadership::Following { leader: None }, true));
    let verdict = judge(&seen(now, Some(5), None), Some(claim(5, now)), LEASE);
    assert_eq!((verdict.publish, verdict.propose), (leading(Quorum::Fresh), false));
}

#[test]
fn a_claim_of_another_term_is_void() {
    let now = Instant::now();
    let verdict = judge(&seen(now, Some(6), Some(now)), Some(claim(5, now)), LEASE);
    assert_eq!(
        (verdict.publish, verdict.claim, verdict.propose),
        (Leadership::Following { leader: None }, None, true)
    );
}

#[test]
fn a_silent_quorum_makes_stale_then_ends_the_lead_and_a_late_answer_restores_it() {
    let start = Instant::now();
    let at = |now, acked| {
        judge(&seen(millis(start, now), Some(5), Some(millis(start, acked))), Some(claim(5, start)), LEASE)
    };
    assert_eq!(at(149, 0).publish, leading(Quorum::Fresh));
    assert_eq!(at(149, 0).until, Some(millis(start, 150)), "time alone makes it stale");
    assert_eq!(at(150, 0).publish, leading(Quorum::Stale));
    assert_eq!(at(150, 0).until, Some(millis(start, 160)), "an answer is looked for often");
    assert_eq!(at(295, 0).until, Some(millis(start, 300)), "time alone ends the lead");
    assert_eq!(at(299, 200).publish, leading(Quorum::Fresh), "the same epoch goes on");
    let lost = at(300, 0);
    assert_eq!(
        (lost.publish, lost.claim, lost.propose),
        (Leadership::Following { leader: None }, None, false)
    );
}

#[test]
fn a_leader_without_a_quorum_is_silent_for_longer_than_an_election_takes_and_then_speaks_up() {
    let start = Instant::now();
    let speaks = |now| judge(&seen(millis(start, now), Some(5), Some(start)), None, LEASE).speaks;
    assert!(speaks(299), "not lost yet");
    assert!(!speaks(300) && !speaks(1499));
    assert!(speaks(1500) && speaks(1799), "for one lease");
    assert!(!speaks(1800));
    assert!(
        judge(&seen(millis(start, 900), None, None), None, LEASE).speaks,
        "a follower's business is its own"
    );
}

#[test]
fn a_leader_that_no_quorum_ever_answers_is_silent_too() {
    let start = Instant::now();
    let at = |now| Seen { elected: Some((5, start)), ..seen(millis(start, now), Some(5), None) };
    let first = judge(&at(299), None, LEASE);
    assert!(first.speaks && first.propose);
    let lost = judge(&at(300), None, LEASE);
    assert!(!lost.speaks && !lost.propose);
    let answered = Seen { acked: Some(millis(start, 400)), ..at(401) };
    assert!(judge(&answered, None, LEASE).propose);
}

#[test]
fn a_leader_whose_quorum_returns_after_its_lease_claims_again() {
    let start = Instant::now();
    let verdict = judge(&seen(millis(start, 900), Some(5), Some(millis(start, 880))), None, LEASE);
    assert!(verdict.propose);
}

#[test]
fn a_follower_knows_its_leader_only_while_it_hears_from_it() {
    let now = Instant::now();
    let leader = Leader { id: 2, addresses: Addresses::default() };
    let hears = Seen { follows: Some((leader.clone(), millis(now, 300))), ..seen(now, None, None) };
    let verdict = judge(&hears, Some(claim(5, now)), LEASE);
    assert_eq!(verdict.publish, Leadership::Following { leader: Some(leader) });
    assert_eq!((verdict.claim, verdict.until), (None, Some(millis(now, 300))));
    assert_eq!(judge(&seen(now, None, None), None, LEASE).publish, Leadership::Following { leader: None });
}

/// What a replica sees after some milliseconds: whether it leads, which term, and how long ago a quorum
/// answered; and whether a claim was committed meanwhile.
fn looks() -> impl Strategy<Value = (u64, Option<u64>, Option<u64>, bool)> {
    let term = prop_oneof![1 => Just(None), 4 => (1_u64..4).prop_map(Some)];
    let acked = prop_oneof![1 => Just(None), 4 => (0_u64..500).prop_map(Some)];
    (0_u64..200, term, acked, any::<bool>())
}

proptest! {
    /// However terms, answers and time go: no lead without a committed claim of the term, none beyond a
    /// lease, none again with a claim that was void once; and the verdict holds until the time it names.
    #[test]
    fn no_sequence_of_looks_makes_a_lead_that_may_not_be(steps in proptest::collection::vec(looks(), 1..40)) {
        let start = Instant::now() + LEASE * 2;
        let (mut at, mut held, mut epoch, mut void) = (0, None::<Claim>, 0, 0);
        for (later, leads, acked, committed) in steps {
            at += later;
            let now = millis(start, at);
            if let (Some(term), true, None) = (leads, committed, held) {
                epoch += 1;
                held = Some(Claim { epoch, ..claim(term, now) });
            }
            let looked = seen(now, leads, acked.map(|ago| now - Duration::from_millis(ago)));
            let verdict = judge(&looked, held, LEASE);
            if let Leadership::Leading { term, epoch, quorum, .. } = verdict.publish {
                let claim = held.expect("a lead has a claim");
                prop_assert_eq!((Some(term), epoch), (leads, claim.epoch));
                prop_assert!(epoch > void, "a void claim leads again");
                let proven = looked.acked.max(Some(claim.proven)).expect("it was proven");
                prop_assert!(now < proven + LEASE);
                prop_assert_eq!(quorum == Quorum::Fresh, now < proven + LEASE / 2);
                prop_assert!(!verdict.propose && verdict.until.is_some());
            } else {
                prop_assert!(!verdict.propose || leads.is_some());
                prop_assert_eq!(verdict.claim, None);
                void = epoch;
            }
            if let Some(until) = verdict.until {
                prop_assert!(until > now);
                let just_before = Seen { now: until - Duration::from_nanos(1), ..looked };
                prop_assert_eq!(judge(&just_before, held, LEASE).publish, verdict.publish);
            }
            held = verdict.claim;
        }
    }
}
