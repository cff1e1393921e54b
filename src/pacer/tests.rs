//! The queue, the gate and its probes, on a clock that is turned by hand.

use super::*;
use crate::metrics::Metrics;
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

fn created(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
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
        pacer.begin(&key);
        pacer.end(&key, &Ok(()));
        order.push(key.name);
    }
    assert_eq!(order, ["a1", "b1", "c1", "a2", "a3"]);
    let spaced = start.elapsed();
    assert!(spaced >= Duration::from_millis(4 * 1020) && spaced < Duration::from_millis(4 * 1020 + 50), "{spaced:?}");
}

#[tokio::test(start_paused = true)]
async fn who_is_of_no_namespace_waits_until_nobody_else_does() {
    let (pacer, mut woken) = pacer(1.0);
    pacer.take(&key("", "last"), created(0));
    for (namespace, name) in [("a", "a1"), ("b", "b1"), ("a", "a2")] {
        pacer.take(&key(namespace, name), created(9));
    }
    let mut order = Vec::new();
    for _ in 0..5 {
        let key = woken.recv().await.unwrap();
        pacer.begin(&key);
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
    pacer.begin(&first);
    pacer.end(&first, &limit());
    let gate = pacer.gate().unwrap();
    assert_eq!((gate.cause, gate.message.as_str()), (CallErrorKind::LimitExceeded, "limit"));
    // All three are told that the gate is shut; then one gets the probe.
    let told: Vec<_> = [woken.recv().await, woken.recv().await, woken.recv().await].into_iter().flatten().collect();
    assert_eq!(told.len(), 3);
    let probe = woken.recv().await.unwrap();
    assert_eq!(probe, first, "keeps its place");
    pacer.begin(&probe);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(woken.try_recv().is_err(), "a second probe beside the first");
    pacer.end(&probe, &Ok(()));
    assert_eq!(pacer.gate(), None);
    assert_eq!(woken.recv().await.unwrap().name, "2");
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
        pacer.begin(&key);
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
    let (pacer, mut woken) = pacer(1.0);
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

#[tokio::test(start_paused = true)]
async fn the_next_turn_does_not_wait_for_an_answer() {
    let (pacer, mut woken) = pacer(1.0);
    pacer.take(&key("a", "1"), created(1));
    pacer.take(&key("a", "2"), created(2));
    let first = woken.recv().await.unwrap();
    let start = Instant::now();
    tokio::time::sleep(Duration::from_millis(10)).await; // the claim is written meanwhile
    pacer.begin(&first);
    assert_eq!(woken.recv().await.unwrap().name, "2");
    let spaced = start.elapsed();
    assert!(spaced >= Duration::from_millis(1020) && spaced < Duration::from_millis(1100), "{spaced:?}");
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
    pacer.begin(&first);
    assert_eq!(pacer.depth(), 2, "a call that has left does not wait");
    pacer.end(&first, &limit());
    assert_eq!(pacer.depth(), 3, "refused by a limit it waits again");
    let shut = tokio::time::Instant::now();
    let probe = woken_granted(&pacer, &mut woken).await;
    pacer.begin(&probe);
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
    pacer.begin(&first);
    pacer.end(&first, &limit());
    pacer.give_back(&first);
    assert!(pacer.gate().is_some());
    pacer.open_gate();
    assert!(pacer.gate().is_none());
    while woken.try_recv().is_ok() {}
    for name in ["2", "3"] {
        pacer.take(&key("a", name), created(1));
        assert_eq!(woken.recv().await.unwrap().name, name, "no probe has to be waited for");
    }
}
