//! What happens in a soak, and when: all of it drawn from one seed. (What the processes make of it depends on
//! the machine too: the same seed gives the same plan, not the same run.)

use fastrand::Rng;
use opentunnel_api::{ClientMode, ReopenPolicy};
use serde_json::{Value, json};
use std::time::Duration;

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Tunnels.
    pub tunnels: usize,
    /// How long things go wrong.
    pub faults: Duration,
    /// How long it may take until all is as it should be, then.
    pub settle: Duration,
    /// How long nothing is written after that.
    pub silence: Duration,
}

/// A soak.
pub struct Plan {
    /// What it was drawn from.
    pub seed: u64,
    /// How much.
    pub bounds: Bounds,
    /// What users and others do, in order.
    pub moves: Vec<(Duration, Move)>,
    /// What the replicas are at first.
    pub first: Release,
    /// What becomes of the processes of each replica, in order.
    pub blows: [Vec<(Duration, Blow)>; 2],
}

/// Something that is done from outside.
#[derive(Clone, Copy, Debug)]
pub enum Move {
    /// To the Tunnel of this number. One that is not there is created, as `Spec` says.
    Tunnel(usize, Act, Spec),
    /// AWS's clock is set ahead.
    Clock(Duration),
}

/// Something that is done to a Tunnel or what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    /// It is created.
    Create,
    /// It is deleted.
    Delete,
    /// spec.secrets is edited.
    EditSecrets(Secrets),
    /// spec.deletionPolicy is edited.
    EditPolicy { retain: bool },
    /// `kubectl replace` with its own manifest: what the operator put into the metadata is gone.
    Replace { anyhow: bool },
    /// An annotation and a label are set.
    Annotate(u32),
    /// A token Secret is deleted.
    LoseSecret,
    /// A token Secret is edited.
    EditSecret,
    /// A token Secret is made immutable.
    FreezeSecret,
    /// A token Secret is replaced by somebody else's. `forged`: it looks as if the operator had written it.
    TakeName { forged: bool },
    /// Somebody else's Secrets are deleted.
    FreeNames,
    /// Its tunnel is closed by somebody else. `delete`: and removed.
    CloseTunnel { delete: bool },
    /// spec.suspend is set, or taken off.
    Suspend(bool),
    /// The destination gets a thing, or loses it, with `updatePolicy: Recreate`.
    Recreate,
    /// spec.reopenPolicy is edited.
    EditReopen(ReopenPolicy),
    /// The value of a tag is edited.
    EditTag(u8),
    /// Somebody else takes this tag off.
    TakeTag,
    /// New tokens are asked for by the annotation, of these sides.
    Rotate(ClientMode),
    /// The source connects, or is gone.
    Connect(bool),
    /// Its tokens are looked at.
    Look,
}

/// Which of them there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Acts {
    /// All.
    All,
    /// Those about a Tunnel's first tunnel alone: in a short soak they come often enough to show a broken product.
    First,
}

/// The spec of a Tunnel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    /// spec.secrets.
    pub secrets: Secrets,
    /// deletionPolicy: Retain.
    pub retain: bool,
    /// timeout.maxLifetimeTimeoutMinutes.
    pub lifetime: Option<i32>,
    /// destination.thingName.
    pub thing: bool,
    /// updatePolicy: Recreate.
    pub recreate: bool,
    /// reopenPolicy.
    pub reopen: ReopenPolicy,
    /// suspend.
    pub suspend: bool,
    /// The value of its tag.
    pub tag: u8,
}

/// What spec.secrets may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Secrets {
    /// Left out.
    Default,
    /// One of the source.
    Source,
    /// One of the destination.
    Destination,
    /// One for each side.
    Each,
    /// One with both, and one of the source.
    Overlapping,
}

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Blow {
    /// SIGKILL, and another one is started after this time.
    Kill(Duration),
    /// SIGTERM, and another one is started after this time.
    Terminate(Duration),
    /// SIGSTOP, and SIGCONT after this time.
    Pause(Duration),
    /// SIGTERM, and one of this release is started, as by a rollout.
    Roll(Release),
}

/// A build of the operator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Release {
    /// The one of OPENTUNNEL_PREVIOUS_BIN.
    Previous,
    /// The one that is tested.
    This,
}

impl Bounds {
    /// These, with what follows from them.
    pub fn new(tunnels: usize, seconds: u64) -> Self {
        let long = seconds > 60;
        Self {
            tunnels,
            faults: Duration::from_secs(seconds),
            settle: Duration::from_secs(if long { 600 } else { 180 }),
            silence: Duration::from_secs(if long { 60 } else { 10 }),
        }
    }

    /// Namespaces that the Tunnels are in.
    pub fn namespaces(&self) -> usize {
        (self.tunnels / 25).clamp(2, 8)
    }

    /// Whether it lasts long enough for the sweep, which leaves a tunnel alone for five minutes.
    pub fn is_swept(&self) -> bool {
        self.settle > Duration::from_secs(400)
    }

    /// Calls a second that AWS grants of OpenTunnel and CloseTunnel.
    pub fn rate(&self) -> f64 {
        5.0
    }
}

impl Plan {
    /// The one of this seed.
    pub fn new(seed: u64, bounds: Bounds, acts: Acts) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut moves = Vec::new();
        for tunnel in 0..bounds.tunnels {
            let at = within(&mut rng, bounds.faults / 4);
            moves.push((at, Move::Tunnel(tunnel, Act::Create, Spec::random(&mut rng, acts))));
        }
        // Each Tunnel meets something every 6 s, where there are few, to 50 s, where there are many.
        let pace = Duration::from_millis(6000 / bounds.tunnels as u64).max(Duration::from_millis(250));
        let mut at = Duration::from_secs(2);
        while at < bounds.faults {
            let (tunnel, act) = (rng.usize(..bounds.tunnels), Act::random(&mut rng, acts));
            moves.push((at, Move::Tunnel(tunnel, act, Spec::random(&mut rng, acts))));
            if act == Act::Delete && rng.bool() {
                let again = at + within(&mut rng, Duration::from_secs(3));
                moves.push((again, Move::Tunnel(tunnel, Act::Create, Spec::random(&mut rng, acts))));
            }
            at += within(&mut rng, pace * 2);
        }
        for _ in 0..=bounds.faults.as_secs() / 600 {
            let half = bounds.faults / 2;
            moves.push((half + within(&mut rng, half), Move::Clock(Duration::from_secs(61))));
        }
        moves.sort_by_key(|(at, _)| *at);
        moves.retain(|(at, _)| *at < bounds.faults);
        let blows = [(); 2].map(|()| blows(&mut rng, bounds.faults));
        Self { seed, bounds, moves, first: Release::This, blows }
    }

    /// The same, begun by the last release: it is rolled to each of `releases`, in equal times. The second replica follows
    /// a tenth of all the time after the first, and for so long both releases are at work.
    pub fn rolled_to(mut self, releases: &[Release]) -> Self {
        let (end, count) = (self.bounds.faults, releases.len() as u32);
        self.first = Release::Previous;
        for (blows, late) in self.blows.iter_mut().zip([0, 1]) {
            let at = |n: usize| end * (n as u32 + 1) / (count + 1) + end / 10 * late;
            blows.extend(releases.iter().enumerate().map(|(n, release)| (at(n), Blow::Roll(*release))));
            blows.sort_by_key(|(at, _)| *at);
        }
        self
    }
}

fn blows(rng: &mut Rng, end: Duration) -> Vec<(Duration, Blow)> {
    let mut blows = Vec::new();
    let mut at = Duration::from_secs(3) + within(rng, Duration::from_secs(5));
    while at < end {
        let pause = within(rng, Duration::from_secs(3));
        let blow = match rng.u32(..10) {
            0..5 => Blow::Kill(pause),
            5..7 => Blow::Terminate(pause),
            7..9 => Blow::Pause(pause * 2),
            // Longer than a lease, the recovery grace and what a claim is acted on for.
            _ => Blow::Pause(Duration::from_secs(8) + pause * 4),
        };
        blows.push((at, blow));
        at += Duration::from_secs(3) + within(rng, Duration::from_secs(if end.as_secs() > 60 { 20 } else { 8 }));
    }
    blows
}

/// A time from 0 to `end`.
pub fn within(rng: &mut Rng, end: Duration) -> Duration {
    end.mul_f64(rng.f64())
}

impl Act {
    fn random(rng: &mut Rng, acts: Acts) -> Self {
        match rng.u32(..if acts == Acts::All { 140 } else { 100 }) {
            0..14 => Self::Delete,
            14..28 => Self::EditSecrets(Secrets::random(rng)),
            28..32 => Self::EditPolicy { retain: rng.bool() },
            32..42 => Self::Replace { anyhow: rng.bool() },
            42..48 => Self::Annotate(rng.u32(..)),
            48..56 => Self::LoseSecret,
            56..62 => Self::EditSecret,
            62..66 => Self::FreezeSecret,
            66..72 => Self::TakeName { forged: rng.bool() },
            72..80 => Self::FreeNames,
            80..88 => Self::CloseTunnel { delete: rng.u32(..3) == 0 },
            88..100 => Self::Look,
            100..106 => Self::Suspend(true),
            106..114 => Self::Suspend(false),
            114..120 => Self::Recreate,
            120..124 => Self::EditReopen(reopen(rng)),
            124..128 => Self::EditTag(rng.u8(..)),
            128..130 => Self::TakeTag,
            130..136 => Self::Rotate([ClientMode::Source, ClientMode::Destination, ClientMode::All][rng.usize(..3)]),
            _ => Self::Connect(rng.bool()),
        }
    }
}

fn reopen(rng: &mut Rng) -> ReopenPolicy {
    [ReopenPolicy::Never, ReopenPolicy::OnExpiry, ReopenPolicy::Always][rng.usize(..3)]
}

impl Spec {
    fn random(rng: &mut Rng, acts: Acts) -> Self {
        let all = acts == Acts::All;
        let lifetime = match rng.u32(..6) {
            0 => Some(1),
            1 => Some(120),
            _ => None,
        };
        Self {
            secrets: Secrets::random(rng),
            retain: rng.u32(..5) == 0,
            lifetime,
            thing: rng.bool(),
            recreate: rng.bool(),
            reopen: if all { reopen(rng) } else { ReopenPolicy::Never },
            suspend: all && rng.u32(..20) == 0,
            tag: rng.u8(..),
        }
    }

    /// As in a manifest.
    pub fn json(&self, tunnel: &str, description: &str) -> Value {
        let mut spec = json!({
            "description": description,
            "deletionPolicy": if self.retain { "Retain" } else { "Close" },
            "updatePolicy": if self.recreate { "Recreate" } else { "Immutable" },
            "reopenPolicy": self.reopen,
            "suspend": self.suspend,
            "tags": tags(self.tag),
        });
        if let Some(secrets) = self.secrets.json(tunnel) {
            spec["secrets"] = secrets;
        }
        if let Some(minutes) = self.lifetime {
            spec["timeout"] = json!({"maxLifetimeTimeoutMinutes": minutes});
        }
        if self.thing {
            spec["destination"] = destination(tunnel);
        }
        spec
    }

    /// Its tunnel is not to be open in the end.
    pub fn is_short(&self) -> bool {
        self.lifetime == Some(1)
    }
}

/// spec.destination of one that has a thing.
pub fn destination(tunnel: &str) -> Value {
    json!({"thingName": tunnel, "services": ["SSH"]})
}

/// The tag whose value is edited.
pub const TAG: &str = "team";

/// spec.tags.
pub fn tags(value: u8) -> Value {
    json!([{"key": TAG, "value": value.to_string()}])
}

impl Secrets {
    fn random(rng: &mut Rng) -> Self {
        [Self::Default, Self::Source, Self::Destination, Self::Each, Self::Overlapping][rng.usize(..5)]
    }

    /// The Secrets of a Tunnel of this name, and what is in each.
    pub fn of(self, tunnel: &str) -> Vec<(String, ClientMode)> {
        let (source, destination) = (("source", ClientMode::Source), ("destination", ClientMode::Destination));
        let names = match self {
            Self::Default => vec![("tokens", ClientMode::All)],
            Self::Source => vec![source],
            Self::Destination => vec![destination],
            Self::Each => vec![source, destination],
            Self::Overlapping => vec![("both", ClientMode::All), source],
        };
        names.into_iter().map(|(name, mode)| (format!("{tunnel}-{name}"), mode)).collect()
    }

    /// As in a manifest; `None`: left out.
    pub fn json(self, tunnel: &str) -> Option<Value> {
        let named = |(name, mode): &(String, ClientMode)| json!({"name": name, "clientMode": mode});
        (self != Self::Default).then(|| self.of(tunnel).iter().map(named).collect())
    }
}

#[test]
fn the_same_seed_gives_the_same_plan() {
    let plan = |seed| {
        let plan = Plan::new(seed, Bounds::new(20, 40), Acts::All);
        format!("{:?} {:?}", plan.moves, plan.blows)
    };
    assert_eq!(plan(7), plan(7));
    assert_ne!(plan(7), plan(8));
}
