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
            Some((path, theirs)) if theirs == side || std::env::var("BOTHX").is_ok() => Self::Theirs(path),
            _ => Self::Ours,
        }
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

/// What a case needs of the programs at both ends, beyond carrying bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ability {
    /// A reply is not lost when the client has closed its side.
    HalfClose,
    /// A client that closes its side and gets no reply ends the service's connection, too.
    HalfCloseEnds,
    /// A service that is reset, or cannot be reached, ends the client's connection and no other.
    ServiceFails,
    /// More than some dozens of connections at once.
    ManyConnections,
    /// A reader that stands still does not end the proxy.
    BackPressure,
    /// `--stall-timeout`
    StallTimeout,
    /// `--token-dir`
    TokenDir,
    /// `--http-addr`
    Probes,
    /// `--drain`, and exit status 0 on SIGTERM.
    Drain,
    /// Exit status 3 where the token is refused, and the reason on standard error.
    ExitStatus,
    /// `ws://`
    PlainWebSocket,
    /// Local connections are told when the link is lost.
    CutIsTold,
    /// It connects again after 5xx.
    TriesAgain,
    /// One tunnel carries connections of V1 or V2, one after the other, however many come.
    Queues,
    /// Tokens stand in no output at any level.
    Secrecy,
    /// It survives SESSION_RESET.
    SessionReset,
}

/// What becomes of a case for which AWS's program lacks something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// It is not tried: there is no such flag, or it takes minutes.
    Untried,
    /// It fails. Where it does not, the table is out of date.
    Fails,
    /// It fails now and then.
    MayFail,
}

struct Difference {
    ability: Ability,
    /// The ends where AWS's program lacks it.
    sides: &'static [Side],
    expected: Expected,
    /// What it does instead.
    instead: &'static str,
}

const BOTH: &[Side] = &[Side::Source, Side::Destination];

/// AWS's local proxy 3.3.1, as it was seen here.
const DIFFERENCES: &[Difference] = &[];

/// Runs a case, with what it needs: fails where it fails, unless that is one of the differences.
pub async fn case(needs: &[Ability], case: impl Future<Output = ()>) {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let lacks = |side| DIFFERENCES.iter().find(|row| needs.contains(&row.ability) && row.sides.contains(&side));
    let Some((side, difference)) = theirs().and_then(|(_, side)| Some((side, lacks(side)?))) else {
        return case.await;
    };
    let Difference { ability, expected, instead, .. } = difference;
    let report = |outcome: &str| println!("interop: {name} | {ability:?} | AWS's as the {side}: {instead} | {outcome}");
    if *expected == Expected::Untried {
        return report("not tried");
    }
    match (AssertUnwindSafe(case).catch_unwind().await, expected) {
        (Err(_), _) => report("fails"),
        (Ok(()), Expected::MayFail) => report("passes this time"),
        (Ok(()), _) => panic!("{name} passes: strike {ability:?} from the table of what AWS's cannot do"),
    }
}
