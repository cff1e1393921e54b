//! Many connections in any order of steps: each byte arrives once, in order, where it belongs.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// The byte that stands at a place of what a connection sends one way.
fn byte(connection: usize, way: Side, place: usize) -> u8 {
    let way = if way == SOURCE { 1 } else { 2 };
    (connection.wrapping_mul(131) ^ place.wrapping_mul(31) ^ (place >> 8) ^ (way * 77)) as u8
}

fn bytes(connection: usize, way: Side, places: std::ops::Range<usize>) -> Bytes {
    places.map(|place| byte(connection, way, place)).collect()
}

/// One way of a connection.
#[derive(Default)]
struct Way {
    sent: usize,
    received: usize,
    over: Option<End>,
}

#[derive(Default)]
struct Pair {
    there: Option<ConnectionKey>,
    here: Option<ConnectionKey>,
    up: Way,
    down: Way,
    source_closed: bool,
    source_finished: bool,
    destination_finished: bool,
}

struct Tunnel {
    source: Session,
    destination: Session,
    up: BytesMut,
    down: BytesMut,
    pairs: Vec<Pair>,
    /// Those that have not said which one they are.
    unknown: BTreeSet<ConnectionKey>,
    /// Counts what was carried and taken.
    moved: usize,
}

#[derive(Clone, Debug)]
enum Step {
    Open,
    Say(Side, usize, usize),
    Carry(Side, usize),
    Take(Side, usize),
    SourceFinish(usize),
    SourceClose(usize),
    DestinationFinish(usize),
    Tick,
}

fn step() -> impl Strategy<Value = Step> {
    let side = || prop::sample::select(&[SOURCE, DESTINATION][..]);
    let length = || prop_oneof![3 => 1usize..200, 1 => 1usize..MAX_PAYLOAD, 1 => Just(MAX_PAYLOAD)];
    let cut = prop_oneof![1usize..20, 1usize..5000, Just(MAX_FRAME)];
    prop_oneof![
        2 => Just(Step::Open),
        8 => (side(), any::<usize>(), length()).prop_map(|(side, nth, length)| Step::Say(side, nth, length)),
        12 => (side(), cut).prop_map(|(side, cut)| Step::Carry(side, cut)),
        8 => (side(), any::<usize>()).prop_map(|(side, nth)| Step::Take(side, nth)),
        1 => any::<usize>().prop_map(Step::SourceFinish),
        1 => any::<usize>().prop_map(Step::SourceClose),
        1 => any::<usize>().prop_map(Step::DestinationFinish),
        1 => Just(Step::Tick),
    ]
}

impl Tunnel {
    fn new(peer: Option<Version>) -> Self {
        let bounds = Bounds {
            send_connection: MAX_PAYLOAD,
            send_total: 4 * MAX_PAYLOAD,
            receive_connection: 70_000,
            receive_total: 200_000,
            connections: 1000,
            control: 8,
        };
        let stall = Duration::MAX;
        let config = || Config { bounds, peer, stall, ..config(&["SSH"]) };
        Self {
            source: session_with(SOURCE, config(), &["SSH"]),
            destination: session_with(DESTINATION, config(), &["SSH"]),
            up: BytesMut::new(),
            down: BytesMut::new(),
            pairs: Vec::new(),
            unknown: BTreeSet::new(),
            moved: 0,
        }
    }

    fn pair(&self, nth: usize) -> Option<usize> {
        (!self.pairs.is_empty()).then(|| nth % self.pairs.len())
    }

    fn step(&mut self, step: &Step, now: Instant) {
        match *step {
            Step::Open => {
                if let Ok(key) = self.source.open(FIRST) {
                    self.pairs.push(Pair { here: Some(key), ..Pair::default() });
                    // Its first byte says which one it is.
                    let number = self.pairs.len() as u8 - 1;
                    if self.source.request(key) == RequestAnswer::Granted {
                        self.source.send(key, Bytes::from(vec![number]));
                    } else {
                        self.source.abort(key);
                        self.pairs.pop();
                    }
                }
            }
            Step::Say(SOURCE, nth, length) => {
                let Some(number) = self.pair(nth) else { return };
                let pair = &mut self.pairs[number];
                let Some(key) = pair.here else { return };
                if self.source.request(key) == RequestAnswer::Granted {
                    self.source.send(key, bytes(number, SOURCE, pair.up.sent..pair.up.sent + length));
                    pair.up.sent += length;
                }
            }
            Step::Say(DESTINATION, nth, length) => {
                let Some(number) = self.pair(nth) else { return };
                let pair = &mut self.pairs[number];
                let Some(key) = pair.there else { return };
                if self.destination.request(key) == RequestAnswer::Granted {
                    self.destination.send(key, bytes(number, DESTINATION, pair.down.sent..pair.down.sent + length));
                    pair.down.sent += length;
                }
            }
            Step::Carry(SOURCE, cut) => self.moved += carry(&mut self.source, &mut self.up, &mut self.destination, cut),
            Step::Carry(DESTINATION, cut) => {
                self.moved += carry(&mut self.destination, &mut self.down, &mut self.source, cut)
            }
            Step::Take(SOURCE, nth) => {
                let Some(number) = self.pair(nth) else { return };
                let pair = &mut self.pairs[number];
                let Some(key) = pair.here else { return };
                let taken = self.source.take(key);
                self.moved += usize::from(taken != Taken::Nothing);
                match taken {
                    Taken::Data(more) => {
                        let places = pair.down.received..pair.down.received + more.len();
                        assert_eq!(more, bytes(number, DESTINATION, places));
                        pair.down.received += more.len();
                    }
                    Taken::Nothing => {}
                    Taken::End(end) => {
                        pair.down.over = Some(end);
                        pair.here = None;
                    }
                }
            }
            Step::Take(DESTINATION, nth) => {
                let keys: Vec<_> =
                    self.unknown.iter().copied().chain(self.pairs.iter().filter_map(|pair| pair.there)).collect();
                if !keys.is_empty() {
                    self.take_there(keys[nth % keys.len()]);
                }
            }
            Step::SourceFinish(nth) => {
                let Some(number) = self.pair(nth) else { return };
                let pair = &mut self.pairs[number];
                if let Some(key) = pair.here {
                    pair.source_finished = true;
                    self.source.finish(key);
                }
            }
            Step::SourceClose(nth) => {
                let Some(number) = self.pair(nth) else { return };
                let pair = &mut self.pairs[number];
                if let Some(key) = pair.here.take() {
                    pair.source_closed = true;
                    self.source.close(key);
                }
            }
            Step::DestinationFinish(nth) => {
                let Some(number) = self.pair(nth) else { return };
                let pair = &mut self.pairs[number];
                if let Some(key) = pair.there {
                    pair.destination_finished = true;
                    self.destination.finish(key);
                }
            }
            Step::Tick => self.source.tick(now),
        }
        self.events();
    }

    fn take_there(&mut self, key: ConnectionKey) {
        let taken = self.destination.take(key);
        self.moved += usize::from(taken != Taken::Nothing);
        if self.unknown.contains(&key) {
            let Taken::Data(first) = taken else {
                if matches!(taken, Taken::End(_)) {
                    self.unknown.remove(&key);
                }
                return;
            };
            self.unknown.remove(&key);
            let number = usize::from(first[0]);
            let pair = &mut self.pairs[number];
            assert!(pair.there.replace(key).is_none(), "it was connected once");
            assert_eq!(first.slice(1..), bytes(number, SOURCE, 0..first.len() - 1));
            pair.up.received = first.len() - 1;
            return;
        }
        let Some(number) = self.pairs.iter().position(|pair| pair.there == Some(key)) else { return };
        let pair = &mut self.pairs[number];
        match taken {
            Taken::Data(more) => {
                assert_eq!(more, bytes(number, SOURCE, pair.up.received..pair.up.received + more.len()));
                pair.up.received += more.len();
            }
            Taken::Nothing => {}
            Taken::End(end) => {
                pair.up.over = Some(end);
                pair.there = None;
            }
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.source.poll_event().expect("no error") {
            if let Event::MaySend(key) = event {
                self.source.decline(key);
            }
        }
        while let Some(event) = self.destination.poll_event().expect("no error") {
            match event {
                Event::Connect(key, _) => drop(self.unknown.insert(key)),
                Event::MaySend(key) => self.destination.decline(key),
                _ => {}
            }
        }
    }

    /// All that is under way arrives.
    fn settle(&mut self, now: Instant) {
        loop {
            let before = self.moved;
            self.step(&Step::Carry(SOURCE, MAX_FRAME), now);
            self.step(&Step::Carry(DESTINATION, MAX_FRAME), now);
            for side in [SOURCE, DESTINATION] {
                for nth in 0..self.pairs.len() + self.unknown.len() {
                    self.step(&Step::Take(side, nth), now);
                }
            }
            let idle = self.up.is_empty() && self.down.is_empty();
            let sent = !self.source.has_to_send() && !self.destination.has_to_send();
            if idle && sent && self.moved == before {
                return;
            }
        }
    }
}

fn carry(from: &mut Session, pipe: &mut BytesMut, to: &mut Session, cut: usize) -> usize {
    if pipe.len() < cut {
        // One frame after another, as long as the other side reads.
        let mut frame = BytesMut::new();
        from.poll_transmit(&mut frame);
        pipe.unsplit(frame);
    }
    if to.is_paused() {
        return 0;
    }
    let piece = pipe.split_to(cut.min(pipe.len()));
    let length = piece.len();
    to.receive(piece.freeze());
    length
}

proptest! {
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn no_byte_is_lost_doubled_or_misdirected(
        peer in prop::sample::select(&[None, Some(Version::V1), Some(Version::V2), Some(Version::V3)][..]),
        ticks in any::<bool>(),
        mut steps in prop::collection::vec(step(), 1..400),
    ) {
        steps.retain(|step| ticks || !matches!(step, Step::Tick));
        let begin = Instant::now();
        let mut tunnel = Tunnel::new(peer);
        let at = |count: usize| begin + Duration::from_millis(300 * count as u64);
        for (count, step) in steps.iter().enumerate() {
            tunnel.step(step, at(count));
        }
        tunnel.settle(at(steps.len()));
        let ticked = steps.iter().any(|step| matches!(step, Step::Tick));
        for (number, pair) in tunnel.pairs.iter().enumerate() {
            let ended_there = pair.destination_finished;
            let ended_here = pair.source_closed || pair.source_finished && pair.down.over.is_some();
            // What was sent before an end arrives before it, unless the other side ended it earlier.
            if !ended_there {
                prop_assert_eq!(pair.up.received, pair.up.sent, "{} up", number);
            }
            // A client that has closed its side waits for the reply, but not for ever.
            if !ended_here || !pair.source_closed && !ticked {
                prop_assert_eq!(pair.down.received, pair.down.sent, "{} down", number);
            }
            prop_assert!(!pair.up.over.is_some_and(|end| end != End::Closed));
            prop_assert!(!pair.down.over.is_some_and(|end| end != End::Closed));
            prop_assert_eq!(pair.there.is_none(), ended_there || ended_here, "{}", number);
        }
        prop_assert_eq!(tunnel.source.held(), (0, 0));
        prop_assert_eq!(tunnel.destination.held(), (0, 0));
    }
}
