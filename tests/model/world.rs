//! One Tunnel, its Secrets, AWS's tunnels and two operators without a leader: all that the promise is about,
//! as plain values. A world is put into one form whatever its numbers are called, so that two that differ in
//! names alone are one.

use opentunnel_api::{ClientMode, Reason};
use opentunnel_operator::clock::Mono;
use opentunnel_operator::facts::Standing;
use opentunnel_operator::memory::redone::Damage;
use std::time::Duration;

/// What the user wants, one version of the spec after the other.
pub type Specs = &'static [Spec];

/// A version of the spec.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// A name of a Secret and its mode, for each.
    pub secrets: &'static [(u8, ClientMode)],
    /// Which arguments OpenTunnel gets.
    pub request: u8,
    /// The value of its tag; 0: it has none.
    pub tag: u8,
    pub suspend: bool,
}

impl Spec {
    pub const fn of(secrets: &'static [(u8, ClientMode)]) -> Self {
        Self { secrets, request: 0, tag: 0, suspend: false }
    }
}

/// Ticks of 6 s: longer than a claim may be acted on (5 s) and than what is reported only after 5 s.
pub type Age = u8;
/// Longer than every limit: what is older is as old as this.
pub const OLD: Age = 6;
/// So old a call is at the most when AWS carries it out: 24 s, longer than the limit of one call (20 s), shorter
/// than the recovery grace (30 s).
pub const CALL_LIVES: Age = 4;
/// The recovery grace: 30 s.
pub const GRACE: Age = 5;
/// The tag that somebody else gives to a tunnel.
pub const OTHERS_TAG: u8 = 9;
/// Not a token: somebody edited it in.
pub const GARBAGE: u8 = u8::MAX;

/// Everything.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct World {
    pub object: Option<Object>,
    /// By name.
    pub secrets: [Option<Secret>; 3],
    pub tunnels: Vec<Tunnel>,
    pub calls: Vec<Call>,
    pub operators: [Operator; 2],
    /// The next number of a kind is above these.
    pub last: Last,
    pub left: Budget,
    /// With leader election: who leads, if anybody does.
    pub leader: Option<Option<u8>>,
    /// For how long it has led, until its memory shows it.
    pub leads_for: Age,
    /// The lifetime of all that was open is over.
    pub lifetime_over: bool,
    /// AWS's reads fail.
    pub away: bool,
    /// A third party closed a tunnel, or its lifetime ran out: the Tunnel may end.
    pub may_end: bool,
    /// Somebody has written another's tunnel into the status.
    pub forged: bool,
    /// A claim was wiped, or a call was carried out after the grace: two tunnels may be opened.
    pub may_double: bool,
    /// The open tunnel and its tokens when a rotation was asked for last.
    pub asked: Option<Data>,
    /// Whether something changes Secrets as they are written.
    pub policy: Policy,
}

/// Something that changes what is written into Secrets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Policy {
    /// In this scenario there is none.
    Never,
    Off,
    On,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Last {
    pub uid: u8,
    pub version: u8,
    pub attempt: u8,
    pub token: u8,
    pub tunnel: u8,
}

/// How often each thing may yet go wrong, and all of them together.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Budget {
    pub all: u8,
    pub crashes: u8,
    pub leads: u8,
    pub api: u8,
    pub aws: u8,
    pub late: u8,
    pub watch: u8,
    pub user: u8,
    pub secrets: u8,
    pub third_party: u8,
    /// Somebody writes another's tunnel into the status.
    pub forge: u8,
    /// AWS does not know yet a tunnel that was opened a moment ago.
    pub lag: u8,
    /// By the local clocks the lifetime is over, while AWS cannot be asked: it has not closed anything.
    pub clock: u8,
    /// The user edits the spec, beside all that goes wrong.
    pub edits: u8,
    /// The user asks for new tokens, beside all that goes wrong.
    pub rotations: u8,
    /// Somebody changes the tag of a tunnel in AWS.
    pub drift: u8,
    /// A backup brings a Secret back, or the Tunnel is deleted without its Secrets.
    pub leftovers: u8,
    /// A policy that changes what is written into Secrets begins or ends, beside all that goes wrong.
    pub policies: u8,
    /// Pauses between rotations that are over while that policy is there.
    pub pauses: u8,
}

/// The Tunnel.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Object {
    pub version: u8,
    pub uid: u8,
    /// `metadata.generation`, and which of the scenario's specs it is.
    pub spec: u8,
    pub deleted: bool,
    pub finalizer: bool,
    /// UID and attempt.
    pub claim: Option<(u8, u8)>,
    pub tunnel: Option<u8>,
    /// The tunnel was opened after the first lifetime was over.
    pub opened_late: bool,
    pub closed: bool,
    /// Why it is closed, or is being closed.
    pub end: Option<Reason>,
    /// The attempt that opened it.
    pub attempt: Option<u8>,
    /// The arguments that it was opened with.
    pub opened_with: Option<u8>,
    /// Another is to be opened, but not yet.
    pub pause: bool,
    pub generation: u8,
    /// Names and data of the Secrets when it last was Ready.
    pub kept: Option<Vec<(u8, Data)>>,
    pub reported: Option<Reason>,
    pub observed: Option<u8>,
    /// The operator's tag is among `status.tagKeys`.
    pub tag_key: bool,
    /// The rotation that was asked for last, and the last that was handled; 0: none.
    pub rotate: u8,
    pub handled: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Secret {
    pub version: u8,
    /// The UID that controls it; `None`: somebody else's.
    pub owner: Option<u8>,
    /// A token Secret that nobody controls.
    pub leftover: bool,
    pub generation: u8,
    pub data: Data,
    pub sound: bool,
}

/// A Secret's data: 0 where it has no token of that side.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Data {
    pub tunnel: u8,
    pub source: u8,
    pub destination: u8,
}

impl Data {
    pub fn mode(self) -> Option<ClientMode> {
        match (self.source, self.destination) {
            (0, 0) => None,
            (_, 0) => Some(ClientMode::Source),
            (0, _) => Some(ClientMode::Destination),
            _ => Some(ClientMode::All),
        }
    }

    pub fn of(self, mode: ClientMode) -> Self {
        Self {
            source: if mode.has_source() { self.source } else { 0 },
            destination: if mode.has_destination() { self.destination } else { 0 },
            ..self
        }
    }
}

/// A tunnel in AWS.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Tunnel {
    pub id: u8,
    pub uid: u8,
    pub attempt: u8,
    pub open: bool,
    /// The owner tag was taken off.
    pub untagged: bool,
    pub late: bool,
    /// The arguments that it was opened with.
    pub request: u8,
    /// The value of its tag; 0: it has none.
    pub tag: u8,
    /// How long ago it was opened; `OLD` where that does not matter.
    pub age: Age,
    pub source: u8,
    pub destination: u8,
}

/// A call to AWS.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Call {
    /// Who waits for it; `None`: nobody any more.
    pub by: Option<u8>,
    pub of: CallOf,
    /// Since it was sent, and, once AWS has carried it out, since then.
    pub age: Age,
    /// Since it was sent, as long as somebody waits for it.
    pub called: Age,
    pub result: Option<CallResult>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CallOf {
    Open {
        uid: u8,
        attempt: u8,
        request: u8,
        tag: u8,
    },
    Rotate {
        tunnel: u8,
        mode: ClientMode,
        generation: u8,
        others: Option<Data>,
    },
    Close {
        tunnel: u8,
    },
    Untag {
        tunnel: u8,
    },
    /// In the background: no reconcile waits for it.
    CloseSurplus {
        tunnel: u8,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CallResult {
    Done(Data),
    /// Nothing was done.
    Refused(Refused),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refused {
    LimitExceeded,
    AccessDenied,
    InvalidRequest,
    NotFound,
}

/// One process.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Operator {
    /// The Tunnel as its watch has it.
    pub watched: Option<Object>,
    /// Its watch has something to show yet that was wiped.
    pub wiped: bool,
    /// Its watch was interrupted: it will list.
    pub relists: bool,
    /// Its watch shows nothing for a while. (Of a standby: else it shows all at once.)
    pub lags: bool,
    /// Its watch showed the creation of what it has.
    pub live: bool,
    pub memory: Option<Mem>,
    pub reconcile: Option<Reconcile>,
    pub searching: bool,
    pub search: Option<(Age, Vec<u8>)>,
    /// An ended tunnel that AWS is asked about.
    pub describing: Option<u8>,
    /// A tunnel, what AWS told of it, and when.
    pub described: Option<(u8, Life, Age)>,
    /// An open tunnel, the tag that AWS told of it, and when.
    pub told_tag: Option<(u8, u8, Age)>,
    /// Surplus tunnels: UID, attempt and tunnel.
    pub surplus: Vec<(u8, u8, u8)>,
}

/// What AWS tells of a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Life {
    Open,
    Closed,
    NotFound,
}

/// A reconcile between two of its steps.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Reconcile {
    pub view: Object,
    pub read: Option<Age>,
    pub gone: bool,
    pub secrets: Option<[Option<Secret>; 3]>,
}

/// The product's memory, in this model's numbers.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Mem {
    pub uid: u8,
    pub wiped: bool,
    pub saw_creation: bool,
    pub first_seen: Age,
    pub claim: Option<(u8, Age)>,
    pub attempt: Option<u8>,
    pub open_doubt: Option<Age>,
    /// Since when a tunnel is to be opened.
    pub opens: Option<Age>,
    pub unfinished: Option<(u8, Age)>,
    pub rotation: Option<Rotation>,
    pub answer: Option<Answer>,
    pub trial: Option<Age>,
    pub late_rotation: Option<u8>,
    /// Rotations in a row for the same damage, so many at the most, and whether the pause after them is over.
    pub redone: Option<(Option<Damage>, u8, bool)>,
    /// The value of the tag that this process has set (0: taken off), and when.
    pub tag: Option<(u8, Age)>,
    /// A call that sets or takes off the tag failed.
    pub tag_failed: bool,
    pub deleting: Option<Age>,
    pub expired: Option<Age>,
    pub closed: Vec<u8>,
    pub foreign: Vec<u8>,
    pub owned: Vec<u8>,
    pub failure: Option<(Reason, Age, bool)>,
    pub trouble: bool,
    pub written: Option<Object>,
}

/// A rotation of this process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Rotation {
    pub generation: u8,
    pub mode: ClientMode,
    pub others_live: bool,
    pub stage: Stage,
    /// The one that was asked for and comes with it; 0: none.
    pub handles: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    Claimed,
    Doubt(Age),
    Lost,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Answer {
    pub of: AnswerOf,
    pub data: Data,
    /// The arguments of OpenTunnel.
    pub request: u8,
    pub tag: u8,
    pub late: bool,
    pub age: Age,
    /// The Secrets that were written with it, where that is known to matter: a bit for each.
    pub written: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AnswerOf {
    Open(u8),
    Rotate(u8),
    Secrets(u8),
}

impl World {
    /// A Tunnel that was just created, before the eyes of both operators.
    pub fn new(left: Budget, elects: bool) -> Self {
        let mut world = Self {
            object: None,
            secrets: [const { None }; 3],
            tunnels: Vec::new(),
            calls: Vec::new(),
            operators: [const { None }; 2].map(|_: Option<()>| Operator::default()),
            last: Last::default(),
            left,
            leader: elects.then_some(Some(0)),
            leads_for: OLD,
            lifetime_over: false,
            away: false,
            may_end: false,
            forged: false,
            may_double: false,
            asked: None,
            policy: if left.policies > 0 { Policy::Off } else { Policy::Never },
        };
        world.create(None);
        world
    }

    /// The user creates the Tunnel; a backup has what stood in its annotations and finalizers.
    pub fn create(&mut self, backup: Option<(u8, u8)>) {
        self.last.uid += 1;
        let version = self.next_version();
        self.object = Some(Object {
            version,
            uid: self.last.uid,
            spec: 0,
            deleted: false,
            finalizer: backup.is_some(),
            claim: backup,
            tunnel: None,
            opened_late: false,
            closed: false,
            end: None,
            attempt: None,
            opened_with: None,
            pause: false,
            generation: 0,
            kept: None,
            reported: None,
            observed: None,
            tag_key: false,
            rotate: 0,
            handled: 0,
        });
        self.asked = None;
    }

    pub fn next_version(&mut self) -> u8 {
        self.last.version += 1;
        self.last.version
    }

    pub fn next_token(&mut self) -> u8 {
        self.last.token += 1;
        self.last.token
    }

    pub fn tunnel(&mut self, id: u8) -> Option<&mut Tunnel> {
        self.tunnels.iter_mut().find(|t| t.id == id)
    }

    /// The Tunnel of that UID, as it is.
    pub fn current(&self, uid: u8) -> Option<&Object> {
        self.object.as_ref().filter(|o| o.uid == uid)
    }

    /// The Tunnel, as it is and as each has it.
    pub fn objects(&mut self) -> impl Iterator<Item = &mut Object> {
        let seen = self.operators.iter_mut().flat_map(|operator| {
            let written = operator.memory.as_mut().and_then(|m| m.written.as_mut());
            let view = operator.reconcile.as_mut().map(|r| &mut r.view);
            operator.watched.iter_mut().chain(written).chain(view)
        });
        self.object.iter_mut().chain(seen)
    }

    /// Whether an operator leads.
    pub fn leads(&self, i: usize) -> bool {
        self.leader.is_none_or(|leader| leader == Some(i as u8))
    }

    /// What an operator may do.
    pub fn standing(&self, i: usize) -> Standing {
        match self.leader {
            None => Standing::Leads { since: Mono(Duration::ZERO) },
            Some(_) if !self.leads(i) => Standing::Finishes,
            Some(_) if self.leads_for == OLD => Standing::Leads { since: Mono(Duration::ZERO) },
            Some(_) => Standing::Leads { since: crate::operator::at(self.leads_for) },
        }
    }

    /// Ages everything by one tick.
    pub fn tick(&mut self) {
        let old = |age: &mut Age| *age = (*age + 1).min(OLD);
        self.calls.iter_mut().for_each(|call| [&mut call.age, &mut call.called].into_iter().for_each(old));
        // How old a tunnel was when AWS did not know it stays as it was, however much later it is.
        let unknown =
            |id: u8| self.operators.iter().any(|o| matches!(o.described, Some((of, Life::NotFound, _)) if of == id));
        let stays: Vec<u8> =
            self.tunnels.iter().filter(|t| t.age >= GRACE && unknown(t.id)).map(|tunnel| tunnel.id).collect();
        self.tunnels.iter_mut().filter(|t| !stays.contains(&t.id)).for_each(|tunnel| old(&mut tunnel.age));
        // Older than every limit, and still to be seen.
        if self.leads_for < OLD - 1 {
            self.leads_for += 1;
        }
        for operator in &mut self.operators {
            operator.search.iter_mut().for_each(|(age, _)| old(age));
            operator.described.iter_mut().filter(|(id, ..)| !stays.contains(id)).for_each(|(.., age)| old(age));
            operator.told_tag.iter_mut().for_each(|(.., age)| old(age));
            operator.reconcile.iter_mut().filter_map(|r| r.read.as_mut()).for_each(old);
            let Some(m) = &mut operator.memory else { continue };
            old(&mut m.first_seen);
            m.claim.iter_mut().for_each(|(_, age)| old(age));
            m.unfinished.iter_mut().for_each(|(_, age)| old(age));
            m.failure.iter_mut().for_each(|(_, age, _)| old(age));
            m.answer.iter_mut().for_each(|a| old(&mut a.age));
            m.tag.iter_mut().for_each(|(_, age)| old(age));
            let others = [&mut m.open_doubt, &mut m.opens, &mut m.trial, &mut m.deleting, &mut m.expired];
            others.into_iter().flatten().for_each(old);
            if let Some(Rotation { stage: Stage::Doubt(age), .. }) = &mut m.rotation {
                old(age);
            }
        }
    }
}
