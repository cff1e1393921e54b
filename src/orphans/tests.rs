//! What becomes of a tunnel, for all that can be known of it; and who is described when.

use super::sightings::{Answer, Answers, Sightings};
use super::*;
use crate::clock::Mono;
use crate::read::Key;
use crate::tunnels::{Attempt, Description, Life, Summary, TunnelId};
use crate::whose::Named;
use opentunnel_api::TunnelState;

const GRACE: Duration = Duration::from_secs(30);

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn mono(second: u64) -> Mono {
    Mono(Duration::from_secs(second))
}

fn tunnel(id: &str) -> TunnelRef {
    TunnelRef { id: TunnelId(id.into()), arn: String::new() }
}

fn owner(cluster: &str, namespace: &str, uid: &str) -> Owner {
    Owner { cluster: cluster.into(), namespace: namespace.into(), uid: uid.into(), attempt: Attempt("a".into()) }
}

/// Tunnel `mine` of Tunnel `u` in namespace `edge`, so many seconds old by AWS, seen for so many.
fn candidate(age: i64, seen: u64) -> Candidate {
    Candidate {
        tunnel: tunnel("mine"),
        owner: owner("cluster", "edge", "u"),
        created_at: time(1000),
        aws_time: time(1000 + age),
        seen: Duration::from_secs(seen),
    }
}

fn scope(namespaces: &[&str]) -> Scope {
    let namespaces = namespaces.iter().map(|n| (*n).to_owned()).collect();
    Scope { cluster: "cluster".into(), namespaces, grace: GRACE }
}

fn named(id: &str) -> Named {
    Named { id: TunnelId(id.into()), attempt: Some(Attempt("first".into())) }
}

fn known(uid: &str, has: Option<&str>, down: bool) -> Claimant {
    let key = Key { namespace: "edge".into(), name: format!("of-{uid}"), uid: uid.into() };
    Claimant { key, down, claim: None, tunnel: has.map(named), reopens: false }
}

/// Its tunnel has ended, which was opened under this attempt. `reopens`: another is wanted.
fn ended(has: &str, attempt: &str, reopens: bool) -> Claimant {
    let tunnel = Some(Named { attempt: Some(Attempt(attempt.into())), ..named(has) });
    Claimant { claim: Some(Attempt("a".into())), tunnel, reopens, ..known("u", None, false) }
}

#[test]
fn what_becomes_of_a_tunnel_by_its_age_its_tunnel_and_who_says_so() {
    use Verdict::{Close, Keep, Look, Search, Wait};
    let other = known("u", Some("other"), false);
    let shown: [(&str, Vec<Claimant>, Shown); 14] = [
        ("there are no Tunnels", vec![], Shown::Gone),
        ("others are there", vec![known("v", None, false), known("w", Some("x"), true)], Shown::Gone),
        ("it has this one", vec![known("u", Some("mine"), false)], Shown::Owned),
        ("it has this one, and is being deleted", vec![known("u", Some("mine"), true)], Shown::Owned),
        ("it has none", vec![known("u", None, false)], Shown::Opening(known("u", None, false))),
        ("it has none, and is being deleted", vec![known("u", None, true)], Shown::Deleting),
        ("it has another", vec![other.clone()], Shown::HasAnother(other.clone())),
        ("it has another, and is being deleted", vec![known("u", Some("other"), true)], Shown::Deleting),
        ("a copy of it has this one", vec![known("v", Some("mine"), false)], Shown::Owned),
        ("it has another, a copy has this", vec![other, known("v", Some("mine"), false)], Shown::Owned),
        (
            "it has one that ended, and wants no other; both under one attempt",
            vec![ended("ended", "a", false)],
            Shown::HasAnother(ended("ended", "a", false)),
        ),
        (
            "it has one that ended, and wants no other",
            vec![ended("ended", "b", false)],
            Shown::HasAnother(ended("ended", "b", false)),
        ),
        (
            "it has one that ended, and wants another",
            vec![ended("ended", "b", true)],
            Shown::Opening(ended("ended", "b", true)),
        ),
        (
            "it has one that ended, and wants another; both under one attempt",
            vec![ended("ended", "a", true)],
            Shown::HasAnother(ended("ended", "a", true)),
        ),
    ];
    // Age by AWS, seen for: young, old by AWS but new to this process, old by both, old by its own clock alone.
    let ages = [(0, 0), (299, 299), (3600, 29), (300, 30), (0, 300), (-3600, 300)];
    let mut cases = 0;
    for (words, tunnels, expected) in shown {
        for (index, (age, seen)) in ages.into_iter().enumerate() {
            for by in [By::Watch, By::ApiServer] {
                let candidate = candidate(age, seen);
                let shown = Shown::of(&candidate, tunnels.clone());
                assert_eq!(shown, expected, "{words}");
                let wanted = match (&shown, by) {
                    (Shown::Gone | Shown::HasAnother(_), _) if index < 3 => Wait,
                    (Shown::Gone | Shown::HasAnother(_), By::Watch) => Look,
                    (Shown::Gone | Shown::HasAnother(_), By::ApiServer) => Close,
                    (Shown::Opening(_), _) if index >= 3 => Search,
                    _ => Keep,
                };
                let told = judge(&candidate, &scope(&[]), &shown, by);
                assert_eq!(told, wanted, "{words}, {age} s old, seen for {seen} s, by {by:?}");
                cases += 1;
            }
        }
    }
    println!("figure: orphans, judged | {cases} cases");
}

#[test]
fn a_grace_that_is_longer_than_five_minutes_is_waited_for() {
    let scope = Scope { grace: Duration::from_secs(600), ..scope(&[]) };
    let judge = |seen| judge(&candidate(3600, seen), &scope, &Shown::Gone, By::ApiServer);
    assert_eq!([599, 600].map(judge), [Verdict::Wait, Verdict::Close]);
}

#[test]
fn only_this_clusters_tunnels_in_watched_namespaces_are_judged() {
    let long = "a".repeat(64);
    for (owner, namespaces, is_ours) in [
        (owner("cluster", "edge", "u"), &[][..], true),
        (owner("cluster", "edge", "u"), &["edge", "more"], true),
        (owner("cluster", "edge", "u"), &["more"], false),
        (owner("another", "edge", "u"), &[], false),
        (owner("", "edge", "u"), &[], false),
        // Whatever else a tag may hold: the namespace becomes a part of a URL.
        (owner("cluster", "", "u"), &[], false),
        (owner("cluster", "..", "u"), &[], false),
        (owner("cluster", "edge?a=b", "u"), &[], false),
        (owner("cluster", "Edge", "u"), &[], false),
        (owner("cluster", &long, "u"), &[], false),
        (owner("cluster", "edge", ""), &[], false),
        (owner("cluster", "edge", "u v"), &[], false),
    ] {
        let candidate = Candidate { owner, ..candidate(3600, 3600) };
        let told = judge(&candidate, &scope(namespaces), &Shown::Gone, By::ApiServer);
        let wanted = if is_ours { Verdict::Close } else { Verdict::Keep };
        assert_eq!(told, wanted, "{} where {namespaces:?} is watched", candidate.owner);
    }
}

fn listed(id: &str, state: TunnelState, created: i64) -> Summary {
    Summary { tunnel: tunnel(id), state, created_at: time(created), last_updated_at: time(created + 1) }
}

fn described(owner: Option<Owner>, at: u64) -> Answer {
    told(Life::Open { created_at: time(0) }, owner, at)
}

fn told(life: Life, owner: Option<Owner>, at: u64) -> Answer {
    Answer { description: Description { life, owner, ..Description::unknown() }, asked: mono(at) }
}

#[test]
fn each_unknown_tunnel_is_described_once_when_it_was_seen_for_the_grace() {
    let open = |id, created| listed(id, TunnelState::Open, created);
    let list = [open("had", 40), open("new", 30), open("old", 20), listed("closed", TunnelState::Closed, 10)];
    let had = [TunnelId("had".into())];
    let (mut sightings, mut answers) = (Sightings::default(), Answers::new());
    let due = |sightings: &mut Sightings, answers: &Answers, list: &[Summary], at| {
        sightings.update(list, &had, answers, GRACE, mono(at));
        std::iter::from_fn(|| sightings.next_due()).map(|id| id.0).collect::<Vec<_>>()
    };
    assert_eq!(due(&mut sightings, &answers, &list, 100), [""; 0]);
    assert_eq!(due(&mut sightings, &answers, &list, 129), [""; 0]);
    assert_eq!(due(&mut sightings, &answers, &list, 130), ["new", "old"]);
    // What a search was told when it was new says nothing for ever.
    answers.insert(TunnelId("old".into()), described(None, 129));
    answers.insert(TunnelId("new".into()), described(None, 130));
    assert_eq!(due(&mut sightings, &answers, &list, 190), ["old"]);
    answers.insert(TunnelId("old".into()), described(Some(owner("cluster", "edge", "u")), 190));
    assert_eq!(due(&mut sightings, &answers, &list, 250), [""; 0]);
    // Nor is it remembered beyond the listing that lacks it.
    assert_eq!(due(&mut sightings, &answers, &list[..2], 310), [""; 0]);
    assert_eq!(due(&mut sightings, &answers, &list, 370), [""; 0]);
    assert_eq!(due(&mut sightings, &answers, &list, 400), ["old"]);
}

#[test]
fn a_candidate_has_this_clusters_tag_and_its_age_is_by_what_aws_has_told() {
    let list = [listed("foreign", TunnelState::Open, 900), listed("mine", TunnelState::Open, 500)];
    let (mut sightings, mut answers) = (Sightings::default(), Answers::new());
    sightings.update(&list, [], &answers, GRACE, mono(0));
    answers.insert(TunnelId("mine".into()), described(Some(owner("cluster", "edge", "u")), 29));
    assert_eq!(sightings.candidates("cluster", &answers, GRACE, mono(60)), [], "it was described too early");
    answers.insert(TunnelId("mine".into()), described(Some(owner("cluster", "edge", "u")), 30));
    answers.insert(TunnelId("foreign".into()), described(None, 30));
    let [only] = &sightings.candidates("cluster", &answers, GRACE, mono(60))[..] else { panic!("one candidate") };
    assert_eq!((&only.tunnel.id.0[..], only.created_at, only.aws_time), ("mine", time(500), time(901)));
    assert_eq!(only.seen, Duration::from_secs(60));
    assert_eq!(sightings.candidates("another", &answers, GRACE, mono(60)), []);
    let closed = Life::Closed { created_at: time(0), closed_at: time(1) };
    answers.insert(TunnelId("mine".into()), told(closed, Some(owner("cluster", "edge", "u")), 31));
    assert_eq!(sightings.candidates("cluster", &answers, GRACE, mono(60)), [], "it was closed since it was listed");
}
