//! Everything that can happen between candidates, gone through breadth first: requests that are carried out, or
//! not, or long after they were given up; answers that are lost; processes that stand still, crash, start anew,
//! or give the lease back; a Lease that is deleted by hand. A process that stands still is one whose turn does
//! not come; time goes on for all.
//!
//! What is left out: a Lease that is deleted by hand while somebody starts who has never seen it. That one cannot
//! know of a holder (docs/protocol.md says so).

mod search;

use super::*;
use std::collections::HashMap;

/// In ticks, which are seconds: as few as show the order of things.
const TIMING: Timing =
    Timing { lease: TICK.saturating_mul(3), deadline: TICK.saturating_mul(2), renew: TICK, look: TICK };
const TICK: Duration = Duration::from_secs(1);
/// What is longer ago makes no difference: a lease is over by then.
const LONG_AGO: u64 = 4;
/// The moment that every state is told from: it leaves room for what was before.
const NOW: u64 = 10;

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Without {
    Nothing,
    /// The API server compares no versions.
    Versions,
    /// The right counts from the end of a renewal.
    Start,
    /// The right does not end by the clock, but when the process gets to know it.
    Clock,
    /// Another's lease is judged by the time that stands in it, and clocks differ by two ticks.
    OwnClock,
    /// What was read counts as seen when the read began.
    SeenAtTheEnd,
    /// The right lasts as long as the lease, and one tick.
    ShorterDeadline,
    /// A Lease that was deleted is made anew at once.
    WaitAfterDeletion,
    /// Whoever held the Lease is taken for dead.
    Death,
}

/// A process in one of the places where a process runs; one that has ended is followed by another in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Id {
    place: usize,
    dead: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Lease {
    holder: Option<Id>,
    version: u8,
    renewed: Mono,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Request {
    Read,
    Write(Option<u8>),
    Release(u8),
}

impl Request {
    /// The version of the Lease that it is for.
    fn expects(self) -> Option<u8> {
        match self {
            Self::Read | Self::Write(None) => None,
            Self::Write(Some(version)) | Self::Release(version) => Some(version),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Answer {
    Read(Option<Lease>),
    Written(Lease),
    Refused,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Process {
    candidate: Candidate<u8>,
    call: Option<(Request, Mono, Option<Answer>)>,
}

impl Process {
    /// The version of the Lease that it knows for its own.
    fn holds(&self) -> Option<u8> {
        let record = self.candidate.seen.as_ref()?.record.as_ref();
        record.filter(|record| record.holder == Holder::Me).map(|record| record.version)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    now: Mono,
    lease: Option<Lease>,
    processes: Vec<Process>,
    /// A request that its sender has given up, and that may be carried out yet.
    late: Option<(Id, Request)>,
    /// The Lease was deleted by hand.
    deleted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    Tick,
    Step(usize),
    CarryOut(usize),
    Answer(usize),
    Lose(usize),
    CarryOutLate,
    Crash(usize),
    Release(usize),
    Delete,
}

impl World {
    fn new(processes: usize, without: Without) -> Self {
        let deadline = if without == Without::ShorterDeadline { TIMING.lease + TICK } else { TIMING.deadline };
        let process = Process { candidate: Candidate::new(Timing { deadline, ..TIMING }), call: None };
        let now = Mono(TICK * NOW as u32);
        Self { now, lease: None, processes: vec![process; processes], late: None, deleted: false }
    }

    fn moves(&self) -> Vec<Move> {
        let mut moves = vec![Move::Tick];
        for (i, process) in self.processes.iter().enumerate() {
            match &process.call {
                None => {
                    if !matches!(process.candidate.next(self.now), Next::Wait(until) if until > self.now) {
                        moves.push(Move::Step(i));
                    }
                    if process.candidate.leads(self.now) && process.holds().is_some() {
                        moves.push(Move::Release(i));
                    }
                }
                Some((_, _, None)) => moves.extend([Move::CarryOut(i), Move::Lose(i)]),
                Some((_, _, Some(_))) => moves.extend([Move::Answer(i), Move::Lose(i)]),
            }
            if !self.deleted && process.candidate.known {
                moves.push(Move::Crash(i));
            }
        }
        if self.late.is_some() {
            moves.push(Move::CarryOutLate);
        }
        let requests = self.processes.iter().filter_map(|process| process.call.map(|(request, ..)| request));
        let (mut requests, known) = (requests, |process: &Process| process.candidate.known);
        let ends = requests.any(|request| matches!(request, Request::Release(_)));
        if self.lease.is_some() && !ends && self.processes.iter().all(known) {
            moves.push(Move::Delete);
        }
        moves
    }

    fn after(&self, what: Move, without: Without) -> Self {
        let mut world = self.clone();
        match what {
            Move::Tick => world.now = world.now + TICK,
            Move::Step(i) => world.step(i),
            Move::CarryOut(i) => {
                let request = self.processes[i].call.map(|(request, ..)| request).expect("there is one");
                let answer = world.carry_out(Id { place: i, dead: false }, request, without);
                world.processes[i].call.as_mut().expect("there is one").2 = Some(answer);
            }
            Move::Answer(i) => world.answer(i, without),
            Move::Lose(i) => {
                let (request, _, answer) = world.processes[i].call.take().expect("there is one");
                world.give_up(i, request, answer);
                match request {
                    Request::Release(_) => world.restart(i, without),
                    _ => world.processes[i].candidate.failed(),
                }
            }
            Move::CarryOutLate => {
                let (sender, request) = world.late.take().expect("there is one");
                world.carry_out(sender, request, without);
            }
            Move::Crash(i) => {
                if let Some((request, _, answer)) = world.processes[i].call {
                    world.give_up(i, request, answer);
                }
                world.restart(i, without);
            }
            Move::Release(i) => {
                let version =
                    world.processes[i].candidate.seen.as_ref().and_then(|s| s.record.as_ref()).map(|r| r.version);
                world.processes[i].candidate.resigns();
                world.processes[i].call = Some((Request::Release(version.expect("it holds it")), world.now, None));
            }
            Move::Delete => (world.lease, world.deleted) = (None, true),
        }
        world
    }

    /// The process has ended, and another begins in its place.
    fn restart(&mut self, i: usize, without: Without) {
        self.processes[i] = Self::new(1, without).processes[0].clone();
        let holder = self.lease.iter_mut().filter_map(|lease| lease.holder.as_mut());
        let sender = self.late.iter_mut().map(|(sender, _)| sender);
        holder.chain(sender).filter(|id| id.place == i).for_each(|id| id.dead = true);
    }

    fn step(&mut self, i: usize) {
        let (now, process) = (self.now, &mut self.processes[i]);
        match process.candidate.next(now) {
            Next::Read => process.call = Some((Request::Read, now, None)),
            Next::Write(version) => process.call = Some((Request::Write(version), now, None)),
            Next::Wait(_) => process.candidate.waited(now),
        }
    }

    fn give_up(&mut self, i: usize, request: Request, answer: Option<Answer>) {
        if answer.is_none() && request != Request::Read {
            self.late = Some((Id { place: i, dead: false }, request));
        }
    }

    /// The API server.
    fn carry_out(&mut self, sender: Id, request: Request, without: Without) -> Answer {
        let (expected, holder) = match request {
            Request::Read => return Answer::Read(self.lease),
            Request::Write(version) => (version, Some(sender)),
            Request::Release(version) => (Some(version), None),
        };
        let unconditioned = without == Without::Versions && expected.is_some() && self.lease.is_some();
        if self.lease.map(|lease| lease.version) != expected && !unconditioned {
            return Answer::Refused;
        }
        let version = 1 + self.versions().into_iter().max().unwrap_or_default();
        let lease = Lease { holder, version, renewed: self.now };
        (self.lease, self.deleted) = (Some(lease), false);
        Answer::Written(lease)
    }

    fn answer(&mut self, i: usize, without: Without) {
        let (request, begun, answer) = self.processes[i].call.take().expect("there is one");
        if matches!(request, Request::Release(_)) {
            self.restart(i, without);
            return;
        }
        let (now, candidate) = (self.now, &mut self.processes[i].candidate);
        let record = |lease: Lease| Record {
            holder: match lease.holder {
                None => Holder::Nobody,
                Some(holder) if holder == (Id { place: i, dead: false }) => Holder::Me,
                Some(holder) if holder.place == i || without == Without::Death => Holder::Predecessor,
                Some(_) => Holder::Other,
            },
            version: lease.version,
            lasts: Duration::ZERO,
        };
        match answer.expect("it was carried out") {
            Answer::Refused => candidate.failed(),
            Answer::Written(lease) => {
                candidate.written(record(lease), if without == Without::Start { now } else { begun }, now);
            }
            Answer::Read(lease) => {
                candidate.read(lease.map(record), if without == Without::SeenAtTheEnd { begun } else { now });
                match (without, lease, &mut candidate.seen) {
                    (Without::OwnClock, Some(lease), Some(seen)) => {
                        seen.since = Mono(lease.renewed.0.saturating_sub(TICK * 2));
                    }
                    (Without::WaitAfterDeletion, None, _) => candidate.known = false,
                    _ => {}
                }
            }
        }
    }

    /// How many think that they lead.
    fn leaders(&self, without: Without) -> usize {
        let leads = |process: &&Process| match without {
            Without::Clock => process.candidate.right.is_some(),
            _ => process.candidate.leads(self.now),
        };
        self.processes.iter().filter(leads).count()
    }

    fn versions(&self) -> Vec<u8> {
        let mut versions: Vec<u8> = self.lease.iter().map(|lease| lease.version).collect();
        for process in &self.processes {
            versions.extend(process.candidate.seen.iter().filter_map(|s| s.record.as_ref()).map(|r| r.version));
            if let Some((request, _, answer)) = process.call {
                versions.extend(request.expects());
                versions.extend(match answer {
                    Some(Answer::Read(lease)) => lease.map(|lease| lease.version),
                    Some(Answer::Written(lease)) => Some(lease.version),
                    _ => None,
                });
            }
        }
        versions.extend(self.late.and_then(|(_, request)| request.expects()));
        versions
    }

    /// The same world, with the names that make no difference taken away: what time it is, how long ago that is which
    /// is long ago, and which number a version has.
    fn canonical(mut self, without: Without) -> Self {
        if without != Without::Versions {
            let present = self.lease.map(|lease| lease.version);
            // It will be refused.
            self.late = self.late.filter(|(_, request)| request.expects().is_none_or(|v| Some(v) == present));
        }
        let mut names = HashMap::new();
        for version in self.versions() {
            let next = names.len() as u8;
            names.entry(version).or_insert(next);
        }
        let now = self.now.0.as_secs();
        let at = |time: &mut Mono| {
            let told = (time.0.as_secs() + NOW).saturating_sub(now).max(NOW - LONG_AGO);
            *time = Mono(TICK * told as u32);
        };
        let version = |version: &mut u8| *version = names[version];
        let of_lease = |lease: &mut Lease| {
            version(&mut lease.version);
            match without {
                Without::OwnClock => at(&mut lease.renewed),
                _ => lease.renewed = Mono::default(), // Nobody looks at it.
            }
        };
        let of_request = |request: &mut Request| match request {
            Request::Read | Request::Write(None) => {}
            Request::Write(Some(v)) | Request::Release(v) => version(v),
        };
        self.lease.iter_mut().for_each(of_lease);
        for process in &mut self.processes {
            if let Some(seen) = &mut process.candidate.seen {
                at(&mut seen.since);
                seen.record.iter_mut().for_each(|record| version(&mut record.version));
            }
            if without != Without::Clock && !process.candidate.leads(self.now) {
                process.candidate.right = None;
            }
            if let Some(right) = &mut process.candidate.right {
                at(&mut right.until);
                right.since = Mono::default(); // It is for others to know.
            }
            if let Some((request, begun, answer)) = &mut process.call {
                of_request(request);
                at(begun);
                match answer {
                    Some(Answer::Read(lease)) => lease.iter_mut().for_each(of_lease),
                    Some(Answer::Written(lease)) => of_lease(lease),
                    _ => {}
                }
            }
        }
        self.late.iter_mut().for_each(|(_, request)| of_request(request));
        self.now = Mono(TICK * NOW as u32);
        self
    }

    /// From now on nothing fails: every request is carried out and answered at once.
    fn goes_on_well(mut self) -> Self {
        if self.late.is_some() {
            self = self.after(Move::CarryOutLate, Without::Nothing);
        }
        for i in 0..self.processes.len() {
            loop {
                let what = match &self.processes[i].call {
                    Some((_, _, None)) => Move::CarryOut(i),
                    Some((_, _, Some(_))) => Move::Answer(i),
                    None if self.moves().contains(&Move::Step(i)) => Move::Step(i),
                    None => break,
                };
                self = self.after(what, Without::Nothing);
            }
        }
        self.after(Move::Tick, Without::Nothing)
    }
}
