//! Which program is at which end, and what AWS's own cannot do.
//!
//! LOCALPROXY=/path/to/localproxy and LOCALPROXY_SIDE=source or destination put AWS's program at one end. The suite is
//! the same: a case that needs what AWS's does not have is expected to fail, or cannot be tried at all, and says so.

use futures_util::FutureExt;
use opentunnel_proxy::Side;
use std::panic::AssertUnwindSafe;

/// The program at an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Ours,
    /// Its path.
    Theirs(&'static str),
}

impl Program {
    pub fn at(side: Side) -> Self {
        match theirs() {
            Some((path, theirs)) if theirs == side => Self::Theirs(path),
            _ => Self::Ours,
        }
    }

    /// Whether both ends are.
    pub fn all_ours() -> bool {
        theirs().is_none()
    }

    pub fn path(self) -> &'static str {
        match self {
            Self::Ours => env!("CARGO_BIN_EXE_opentunnel-proxy"),
            Self::Theirs(path) => path,
        }
    }
}

/// AWS's program, and the end where it is.
fn theirs() -> Option<(&'static str, Side)> {
    static THEIRS: std::sync::LazyLock<Option<(String, Side)>> = std::sync::LazyLock::new(|| {
        let path = std::env::var("LOCALPROXY").ok().filter(|path| !path.is_empty())?;
        let side = match std::env::var("LOCALPROXY_SIDE").as_deref() {
            Ok("source") => Side::Source,
            Ok("destination") => Side::Destination,
            _ => panic!("LOCALPROXY_SIDE must say which end LOCALPROXY is: source or destination"),
        };
        Some((path, side))
    });
    THEIRS.as_ref().map(|(path, side)| (path.as_str(), *side))
}

/// What AWS's program may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ability {
    /// `--token-dir`
    TokenDir,
    /// `--http-addr`
    Probes,
    /// `--drain`
    Drain,
    /// `--stall-timeout`
    StallTimeout,
    /// `ws://`
    PlainWebSocket,
    /// Exit status 3, and the reason on standard error, where the token is refused and no other can come.
    ExitStatus,
    /// No token is printed at any level.
    Secrecy,
    /// A connection that was cut is reset, not closed.
    Resets,
    /// A reply is not lost when the client has closed its side.
    HalfClose,
    /// A client of a service that cannot be reached is told so.
    UnreachableIsTold,
    /// Clients of a service of V1 or V2 wait for each other.
    Queues,
    /// Two services of V2 at the same time.
    TwoOfV2,
    /// A destination understands V1, whatever it speaks itself.
    FollowsV1,
    /// Hundreds of clients at once.
    ManyClients,
    /// A client that reads slowly gets all bytes.
    SlowClients,
    /// A link that is cut within a message is followed by one that works.
    CutWithinMessage,
    /// SESSION_RESET ends what is open, and nothing else.
    SessionReset,
}

impl Ability {
    /// Of one end.
    pub fn at(self, side: Side) -> Need {
        Need { ability: self, side: Some(side) }
    }

    /// Of both ends.
    pub fn of_both(self) -> Need {
        Need { ability: self, side: None }
    }
}

/// What a case needs of one end, or of both.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    ability: Ability,
    side: Option<Side>,
}

/// What becomes of a case for which AWS's program lacks something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// There is no such flag.
    Untried,
    /// It fails. Where it does not, the table is out of date.
    Fails,
    /// It fails now and then.
    MayFail,
}
use Expected::{Fails, MayFail, Untried};

/// What AWS's local proxy 3.3.1 lacks at which ends, and what it does instead, as it was seen here.
#[rustfmt::skip]
const DIFFERENCES: &[(Ability, &[Side], Expected, &str)] = &[
    (Ability::TokenDir, BOTH, Untried, "no such flag: it is started again for another token"),
    (Ability::Probes, BOTH, Untried, "no such flag: nothing tells whether it is connected"),
    (Ability::Drain, BOTH, Untried, "no such flag: connections end with it"),
    (Ability::StallTimeout, BOTH, Untried, "no such flag; it holds hundreds of MiB for a reader that stands still"),
    (Ability::PlainWebSocket, BOTH, Untried, "TLS always"),
    (Ability::ExitStatus, BOTH, Fails, "exit status 0"),
    (Ability::Secrecy, BOTH, Fails, "the client token stands in the log of -v 6"),
    (Ability::Resets, BOTH, Fails, "closes what was cut as if all had been sent"),
    (Ability::HalfClose, &[Side::Source], Fails, "drops the reply when the client has closed its side"),
    (Ability::UnreachableIsTold, &[Side::Destination], Fails, "tries for 12 s before it says so"),
    (Ability::Queues, &[Side::Source], MayFail, "cuts clients that wait"),
    (Ability::TwoOfV2, &[Side::Source], MayFail, "reads no more of the tunnel when one of the two has ended"),
    (Ability::FollowsV1, &[Side::Destination], Fails, "V1 only where the tunnel's service has no name"),
    (Ability::ManyClients, &[Side::Source], Fails, "accepts one at a time, with a backlog of 0, and cuts others"),
    (Ability::SlowClients, &[Side::Source], Fails, "ends when some MiB wait for a client"),
    (Ability::CutWithinMessage, &[Side::Source], Fails, "takes the next link's first message for the rest of the cut one, and hangs"),
    // Seen once in three runs: it goes well.
    (Ability::CutWithinMessage, &[Side::Destination], MayFail, "takes the next link's first message for the rest of the cut one, and hangs"),
    (Ability::SessionReset, BOTH, Fails, "connections hang"),
];

const BOTH: &[Side] = &[Side::Source, Side::Destination];

/// Runs a case with what it needs: it fails where it fails, unless that is one of the differences.
pub async fn case(needs: &[Need], case: impl Future<Output = ()>) {
    let lacking = theirs().and_then(|(_, side)| {
        let needed =
            |ability| needs.iter().any(|need| need.ability == ability && need.side.is_none_or(|of| of == side));
        let row = DIFFERENCES.iter().find(|(ability, sides, ..)| sides.contains(&side) && needed(*ability))?;
        Some((side, row))
    });
    let Some((side, (ability, _, expected, instead))) = lacking else { return case.await };
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let report = |outcome: &str| println!("interop: {side} | {ability:?} | {instead} | {name} | {outcome}");
    if *expected == Untried {
        return report("not tried");
    }
    match (AssertUnwindSafe(case).catch_unwind().await, expected) {
        (Err(_), _) => report("fails"),
        (Ok(()), MayFail) => report("passes this time"),
        (Ok(()), _) => panic!("AWS's can do it: strike {ability:?} from the table of what it cannot"),
    }
}
