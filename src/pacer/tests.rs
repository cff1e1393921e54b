//! The queue, the gate and its probes, on a clock that is turned by hand.

use super::*;
use crate::metrics::Metrics;
use crate::tunnels::CallErrorKind;
use crate::tunnels::Operation;
use std::sync::Arc;

fn key(namespace: &str, name: &str) -> Key {
    Key { namespace: namespace.into(), name: name.into(), uid: name.into() }
}

fn pacer(rate: f64) -> (Arc<Pacer>, mpsc::UnboundedReceiver<Key>) {
    counted_pacer(rate, &Metrics::new())
}

fn counted_pacer(rate: f64, metrics: &Metrics) -> (Arc<Pacer>, mpsc::UnboundedReceiver<Key>) {
    let (wake, woken) = mpsc::unbounded_channel();
    let pacer = Arc::new(Pacer::new(rate, metrics.waits(Operation::OpenTunnel), wake));
    let running = pacer.clone();
    tokio::spawn(async move { running.run().await });
    (pacer, woken)
}

fn limit() -> Result<(), CallError> {
    Err(CallError { kind: CallErrorKind::LimitExceeded, message: "limit".into() })
}

/// Calls per second: so few that no turn is given before the call before it has left.
const SLOW: f64 = 0.1;

fn created(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Waits for the departure of a call that may leave.
async fn departs(pacer: &Pacer, key: &Key, latest: Option<Instant>) -> bool {
    pacer.depart(key, latest, || true).await
}

/// Who is granted the next turn: others are woken too, when the gate shuts.
async fn woken_granted(pacer: &Pacer, woken: &mut mpsc::UnboundedReceiver<Key>) -> Key {
    loop {
        let key = woken.recv().await.unwrap();
        if pacer.turn(&key) == Turn::Granted {
            return key;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn namespaces_take_turns_and_the_oldest_of_each_is_first() {
    let (pacer, mut woken) = pacer(1.0);
    for (namespace, name, at) in [("a", "a2", 2), ("a", "a1", 1), ("a", "a3", 3), ("b", "b1", 9), ("c", "c1", 9)] {
        pacer.take(&key(namespace, name), created(at));
    }
    let start = Instant::now();
    let mut order = Vec::new();
    for _ in 0..5 {
        let key = woken.recv().await.unwrap();
        assert_eq!(pacer.turn(&key), Turn::Granted);
        assert!(departs(&pacer, &key, None).await);
        pacer.end(&key, &Ok(()));
        order.push(key.name);
    }
    assert_eq!(order, ["a1", "b1", "c1", "a2", "a3"]);
    let spaced = start.elapsed();
    assert!(spaced >= Duration::from_millis(4 * 1020) && spaced < Duration::from_millis(4 * 1020 + 50), "{spaced:?}");
}

#[tokio::test(start_paused = true)]
async fn who_is_of_no_namespace_waits_until_nobody_else_does() {
    let (pacer, mut woken) = pacer(SLOW);
    pacer.take(&key("", "last"), created(0));
    for (namespace, name) in [("a", "a1"), ("b", "b1"), ("a", "a2")] {
        pacer.take(&key(namespace, name), created(9));
    }
    let mut order = Vec::new();
    for _ in 0..5 {
        let key = woken.recv().await.unwrap();
        assert!(departs(&pacer, &key, None).await);
        pacer.end(&key, &Ok(()));
        if key.name == "b1" {
            pacer.take(&self::key("c", "c1"), created(9));
        }
        order.push(key.name);
    }
    assert_eq!(order, ["a1", "b1", "c1", "a2", "last"]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_keeps_its_place_and_the_gate_lets_one_probe_through_at_a_time() {
    let (pacer, mut woken) = pacer(1000.0);
    for name in ["1", "2", "3"] {
        pacer.take(&key("a", name), created(0));
    }
    let first = woken.recv().await.unwrap();
    assert!(departs(&pacer, &first, None).await);
    pacer.end(&first, &limit());
    let gate = pacer.gate().unwrap();
    assert_eq!((gate.cause, gate.message.as_str()), (CallErrorKind::LimitExceeded, "limit"));
    while woken.try_recv().is_ok() {} // The turns that were given before.
    let probe = woken.recv().await.unwrap();
    assert_eq!(probe, first, "keeps its place");
    assert!(departs(&pacer, &probe, None).await);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(woken.try_recv().is_err(), "a second probe beside the first");
    pacer.end(&probe, &limit());
    // Refused again: all three are told that the gate is shut. Then one gets the probe.
    for _ in 0..3 {
        woken.recv().await.unwrap();
    }
    let probe = woken_granted(&pacer, &mut woken).await;
    assert_eq!(probe, first, "keeps its place");
    assert!(departs(&pacer, &probe, None).await);
    pacer.end(&probe, &Ok(()));
    assert_eq!(pacer.gate(), None);
    assert_eq!(woken.recv().await.unwrap().name, "2");
}

#[tokio::test(start_paused = true)]
async fn a_ticket_is_withdrawn_unless_its_call_is_in_flight() {
    let (pacer, mut woken) = pacer(10.0);
    for name in ["1", "2"] {
        pacer.take(&key("a", name), created(name.parse().unwrap()));
    }
    let (first, second) = (woken.recv().await.unwrap(), woken.recv().await.unwrap());
    assert!(departs(&pacer, &first, None).await);
    pacer.withdraw(&first);
    pacer.withdraw(&second);
    assert_eq!((pacer.turn(&first), pacer.turn(&second)), (Turn::Granted, Turn::None));
    assert!(!departs(&pacer, &second, None).await);
    pacer.end(&first, &limit());
    assert!(pacer.gate().is_some(), "what its answer tells is heard");
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_closes_wakes_the_gate_at_once() {
    let (pacer, mut woken) = pacer(1000.0);
    let key = key("a", "1");
    pacer.take(&key, created(0));
    for _ in 0..10 {
        while pacer.turn(&key) != Turn::Granted {
            woken.recv().await.unwrap();
        }
        assert!(departs(&pacer, &key, None).await);
        pacer.end(&key, &limit());
    }
    tokio::time::sleep(Duration::from_millis(2)).await; // the spacing of 1000 a second
    pacer.probe_now();
    let before = Instant::now();
    while pacer.turn(&key) != Turn::Granted {
        woken.recv().await.unwrap();
    }
    assert!(before.elapsed() < Duration::from_millis(5), "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_nobody_uses_goes_to_the_next() {
    let (pacer, mut woken) = pacer(SLOW);
    pacer.take(&key("a", "1"), created(1));
    pacer.take(&key("a", "2"), created(2));
    assert_eq!(woken.recv().await.unwrap().name, "1");
    assert_eq!(woken.recv().await.unwrap().name, "2");
    assert_eq!(pacer.turn(&key("a", "1")), Turn::None);
}

#[tokio::test(start_paused = true)]
async fn a_ticket_that_is_given_back_frees_the_turn() {
    let (pacer, mut woken) = pacer(1.0);
    pacer.take(&key("a", "1"), created(1));
    pacer.take(&key("a", "2"), created(2));
    let start = Instant::now();
    pacer.give_back(&woken.recv().await.unwrap());
    assert_eq!(woken.recv().await.unwrap().name, "2");
    assert!(start.elapsed() < Duration::from_millis(10));
}

/// Opens for all of them as the operator does: so long between turn and call, so long until AWS answers. When each call
/// left, since the first of those after which it is known how long it takes to get ready.
async fn departures(rate: f64, n: i64, prepares: u64, answers: u64) -> Vec<Duration> {
    let (pacer, mut woken) = pacer(rate);
    for i in 0..n {
        pacer.take(&key("a", &i.to_string()), created(i));
    }
    let mut calls = Vec::new();
    for _ in 0..n {
        let (pacer, key) = (pacer.clone(), woken.recv().await.unwrap());
        calls.push(tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(prepares)).await;
            let fresh = Instant::now() + Duration::from_secs(5);
            assert!(departs(&pacer, &key, Some(fresh)).await);
            let left = Instant::now();
            tokio::time::sleep(Duration::from_millis(answers)).await;
            pacer.end(&key, &Ok(()));
            left
        }));
    }
    let left: Vec<Instant> = futures::future::join_all(calls).await.into_iter().map(Result::unwrap).collect();
    left[20..].iter().map(|at| *at - left[20]).collect()
}

#[tokio::test(start_paused = true)]
async fn the_quota_is_used_in_full_however_late_the_api_server_and_aws_answer() {
    for (rate, prepares, answers) in
        [(1.0, 15, 0), (1.0, 15, 2000), (1.0, 300, 400), (1.0, 1500, 2000), (50.0, 15, 400), (50.0, 300, 2000)]
    {
        let left = departures(rate, 120, prepares, answers).await;
        let used = 99.0 / left[99].as_secs_f64() / rate;
        assert!((0.97..=0.985).contains(&used), "{rate}, {prepares}, {answers}: {used}");
        assert!(left.is_sorted(), "{rate}, {prepares}, {answers}: first come, first served");
        let least = if rate < 2.0 { Duration::from_secs_f64(1.02 / rate) } else { Duration::ZERO };
        assert!(left.windows(2).all(|two| two[1] - two[0] >= least), "{rate}, {prepares}, {answers}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_not_ready_holds_nobody_up_and_who_was_first_goes_first() {
    let (pacer, mut woken) = pacer(10.0);
    for name in ["1", "2", "3"] {
        pacer.take(&key("a", name), created(name.parse().unwrap()));
    }
    let (first, second) = (woken.recv().await.unwrap(), woken.recv().await.unwrap());
    assert!(departs(&pacer, &second, None).await, "the first is not ready");
    let third = woken.recv().await.unwrap();
    let start = Instant::now();
    let (then, last) = tokio::join!(async { (departs(&pacer, &third, None).await, start.elapsed()) }, async {
        (departs(&pacer, &first, None).await, start.elapsed())
    },);
    assert!(then.0 && last.0 && last.1 < then.1, "{then:?}, {last:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_claimed_too_long_ago_does_not_leave() {
    let (pacer, mut woken) = pacer(10.0);
    for name in ["1", "2"] {
        pacer.take(&key("a", name), created(name.parse().unwrap()));
    }
    let (first, second) = (woken.recv().await.unwrap(), woken.recv().await.unwrap());
    assert!(!departs(&pacer, &first, Some(Instant::now())).await);
    assert!(departs(&pacer, &first, Some(Instant::now() + Duration::from_millis(1))).await, "it may try again");
    let soon = Instant::now() + Duration::from_millis(90);
    assert!(!departs(&pacer, &second, Some(soon)).await, "its call could leave in 102 ms");
    assert_eq!(pacer.turn(&second), Turn::Granted);
    assert!(!pacer.depart(&second, None, || false).await, "who leads no more calls no more");
    assert!(departs(&pacer, &second, Some(soon + Duration::from_millis(20))).await);
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_shuts_takes_the_turns_back_whose_calls_have_not_left() {
    let (pacer, mut woken) = pacer(10.0);
    for name in ["1", "2", "3"] {
        pacer.take(&key("a", name), created(name.parse().unwrap()));
    }
    let (first, second) = (woken.recv().await.unwrap(), woken.recv().await.unwrap());
    assert!(departs(&pacer, &first, None).await);
    let waits = pacer.clone();
    let waiting = tokio::spawn(async move { departs(&waits, &second, None).await });
    tokio::time::sleep(Duration::from_millis(10)).await;
    pacer.end(&first, &limit());
    assert!(!waiting.await.unwrap());
    let probe = woken_granted(&pacer, &mut woken).await;
    assert_eq!(probe.name, "1", "it keeps its place, as all do");
    let turns = ["2", "3"].map(|name| pacer.turn(&key("a", name)));
    assert_eq!(turns, [Turn::Waiting; 2], "one probe at a time");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_left_before_the_gate_shut_does_not_open_it() {
    let (pacer, mut woken) = pacer(10.0);
    for name in ["1", "2"] {
        pacer.take(&key("a", name), created(name.parse().unwrap()));
    }
    let (first, second) = (woken.recv().await.unwrap(), woken.recv().await.unwrap());
    assert!(departs(&pacer, &first, None).await && departs(&pacer, &second, None).await, "two are in flight");
    pacer.end(&second, &limit());
    pacer.end(&first, &Ok(()));
    assert!(pacer.gate().is_some());
    let probe = woken_granted(&pacer, &mut woken).await;
    assert!(departs(&pacer, &probe, None).await);
    pacer.end(&probe, &Ok(()));
    assert!(pacer.gate().is_none());
}

#[tokio::test(start_paused = true)]
async fn the_queue_tells_its_depth_and_how_long_each_call_waited() {
    let metrics = Metrics::new();
    let (pacer, mut woken) = counted_pacer(1.0, &metrics);
    for second in 0..3 {
        pacer.take(&key("a", &second.to_string()), created(second));
    }
    assert_eq!(pacer.depth(), 3);
    let first = woken.recv().await.unwrap();
    assert_eq!(pacer.depth(), 3, "its turn has come, its call has not");
    assert!(departs(&pacer, &first, None).await);
    assert_eq!(pacer.depth(), 2, "a call that has left does not wait");
    pacer.end(&first, &limit());
    assert_eq!(pacer.depth(), 3, "refused by a limit it waits again");
    let shut = tokio::time::Instant::now();
    let probe = woken_granted(&pacer, &mut woken).await;
    assert!(departs(&pacer, &probe, None).await);
    let waited = shut.elapsed().as_secs_f64();
    pacer.end(&probe, &Ok(()));
    assert_eq!(pacer.depth(), 2);
    let text = metrics.render().unwrap();
    let value = |suffix: &str| -> f64 {
        let name = format!("opentunnel_queue_wait_seconds_{suffix}{{operation=\"OpenTunnel\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    };
    assert_eq!(value("count"), 2.0);
    // The first did not wait; its second try waited since the gate shut.
    assert!((value("sum") - waited).abs() < 0.01, "{} and {waited}", value("sum"));
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_is_opened_by_hand_lets_all_through() {
    let (pacer, mut woken) = pacer(1000.0);
    pacer.take(&key("a", "1"), created(0));
    let first = woken.recv().await.unwrap();
    assert!(departs(&pacer, &first, None).await);
    pacer.end(&first, &limit());
    pacer.give_back(&first);
    assert!(pacer.gate().is_some());
    pacer.open_gate();
    assert!(pacer.gate().is_none());
    while woken.try_recv().is_ok() {}
    for name in ["2", "3"] {
        pacer.take(&key("a", name), created(1));
        assert_eq!(pacer.turn(&key("a", name)), Turn::Granted, "no probe has to be waited for, nor to be woken");
    }
}

/// Lets each call leave when its turn has come, and be answered so, for so long; whose they were, in order.
async fn serve(
    pacer: &Pacer,
    woken: &mut mpsc::UnboundedReceiver<Key>,
    time: Duration,
    answer: impl Fn() -> Result<(), CallError>,
) -> Vec<Key> {
    let (until, mut left) = (Instant::now() + time, Vec::new());
    while let Ok(Some(key)) = tokio::time::timeout_at(until, woken.recv()).await {
        if pacer.turn(&key) == Turn::Granted && departs(pacer, &key, None).await {
            pacer.end(&key, &answer());
            left.push(key);
        }
    }
    left
}

#[tokio::test(start_paused = true)]
async fn ten_of_another_namespace_take_turns_with_nine_thousand_that_wait() {
    let (pacer, mut woken) = pacer(1.0);
    for n in 0..9000 {
        pacer.take(&key("crowd", &format!("c{n}")), created(n));
    }
    let opened = serve(&pacer, &mut woken, Duration::from_secs(60), || Ok(())).await;
    assert!(opened.len() > 55, "{}", opened.len());
    for n in 0..10 {
        pacer.take(&key("late", &format!("l{n}")), created(10_000 + n));
    }
    let opened = serve(&pacer, &mut woken, Duration::from_secs(30), || Ok(())).await;
    let late: Vec<usize> = (0..opened.len()).filter(|n| opened[*n].namespace == "late").collect();
    assert_eq!(late.len(), 10);
    // Two turns were given before: what is ahead of the slot.
    assert!(late.iter().enumerate().all(|(n, at)| *at <= 2 + 2 * n), "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_limit_exceeded_wakes_each_that_waits_once_and_one_for_each_probe() {
    let (pacer, mut woken) = pacer(1.0);
    for n in 0..10_000 {
        pacer.take(&key("crowd", &format!("c{n}")), created(n));
    }
    let (until, mut wakes, mut probes) = (Instant::now() + Duration::from_secs(3600), 0, 0);
    while let Ok(Some(key)) = tokio::time::timeout_at(until, woken.recv()).await {
        wakes += 1;
        if pacer.turn(&key) == Turn::Granted && departs(&pacer, &key, None).await {
            pacer.end(&key, &limit());
            probes += 1;
        }
    }
    // The pauses grow to 60 s at most, of which the jitter leaves a half on average.
    assert!((60..250).contains(&probes), "{probes} probes");
    assert!(wakes <= 10_000 + 2 * probes, "{wakes} wakes, {probes} probes");
    assert_eq!(pacer.depth(), 10_000);
    // There is room again: it is used in full.
    pacer.probe_now();
    let opened = serve(&pacer, &mut woken, Duration::from_secs(60), || Ok(())).await;
    assert!(opened.len() > 55, "{}", opened.len());
}
