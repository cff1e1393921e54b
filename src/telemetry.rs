//! What people and probes see: the log, and the HTTP server of probes and metrics.

use crate::config::LogFormat;
use crate::metrics::{self, Metrics};
use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use socket2::{Domain, Socket, Type};
use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{ErrorKind, IsTerminal};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::Location;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Starts the log, on standard error. Other crates' TRACE is never logged, whatever the filter says:
/// some of them print what they send and receive, and tokens are in it.
///
/// # Errors
/// A text for people: the filter cannot be read.
pub fn start_log(format: LogFormat, filter: &str) -> Result<(), String> {
    let filter = EnvFilter::builder()
        .parse(filter)
        .map_err(|e| format!("--log-filter {filter:?} cannot be read ({e}): try info, or opentunnel_operator=debug"))?;
    let stderr = std::io::stderr;
    let lines = match format {
        LogFormat::Text => {
            let ansi = stderr().is_terminal();
            tracing_subscriber::fmt::layer().with_writer(stderr).with_ansi(ansi).with_target(false).boxed()
        }
        LogFormat::Json => tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(stderr).boxed(),
    };
    // For all, and not for the lines alone: a span that nobody writes is not made. kube polls each reconcile under way
    // whenever one of them wakes, and would enter its span each time.
    let ours = tracing_subscriber::filter::filter_fn(may_be_logged);
    tracing_subscriber::registry().with(lines).with(filter).with(ours).init();
    std::panic::set_hook(Box::new(|panic| log_panic(panic.payload(), panic.location())));
    Ok(())
}

/// What is never logged: kube-client logs the whole body of an answer that it cannot read, of a Secret too; the
/// error says it. kube's own spans name the Tunnel once more; the operator's span names it already.
pub(crate) fn may_be_logged(meta: &tracing::Metadata<'_>) -> bool {
    meta.target().starts_with("opentunnel_operator")
        || (!meta.is_span() && *meta.level() <= LevelFilter::DEBUG && !meta.target().starts_with("kube_client"))
}

/// Says where a panic was. What it says is logged only where it stands in the code as it is: a text that is made
/// when it happens may hold anything, a token too.
fn log_panic(payload: &(dyn Any + Send), location: Option<&Location>) {
    let place = location.map(ToString::to_string).unwrap_or_default();
    let words = payload.downcast_ref::<&'static str>().copied().unwrap_or("(not shown: it may hold a secret)");
    // As RUST_BACKTRACE asks for; names of functions, no values.
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(place, words, backtrace, "a panic, which is a bug: please report it");
}

/// Listens on an address. `[::]` stands for both address families; where the node has no IPv6, for `0.0.0.0`.
///
/// # Errors
/// The address is taken, or is none of this machine.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listen = |address: SocketAddr| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        if address.ip() == Ipv6Addr::UNSPECIFIED {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(128)?;
        TcpListener::from_std(socket.into())
    };
    listen(address).or_else(|error| match without_ipv6(address, &error) {
        Some(address) => listen(address),
        None => Err(error),
    })
}

/// What to listen on instead, where a node without IPv6 refused `address`.
fn without_ipv6(address: SocketAddr, error: &std::io::Error) -> Option<SocketAddr> {
    let refused = error.kind() == ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT);
    (refused && address.ip() == Ipv6Addr::UNSPECIFIED).then(|| (Ipv4Addr::UNSPECIFIED, address.port()).into())
}

/// "Address family not supported by protocol" (Linux, errno-base and errno.h): Rust has no stable name for it.
const EAFNOSUPPORT: i32 = 97;

/// What `/readyz` says. Without the watches, and without the CRD, there is nothing that this process could do: it is not
/// ready. Without AWS it is: it releases what has ended, and says on the Tunnels what they wait for, which no other
/// replica would do better. A replica that is not ready would only hold up rollouts, also the one that brings the
/// credentials.
#[derive(Default)]
pub struct Readiness(Mutex<Lacking>);

#[derive(Default)]
struct Lacking {
    synced: bool,
    crd: Option<String>,
    aws: Option<String>,
}

impl Readiness {
    /// The watches are synced.
    pub fn synced(&self) {
        self.lock().synced = true;
    }

    /// Why the API server knows no Tunnels; `None`: it does.
    pub fn crd(&self, lacks: Option<String>) {
        self.lock().crd = lacks;
    }

    /// Why AWS cannot be called; `None`: it can, as far as that is known here.
    pub fn aws(&self, lacks: Option<String>) {
        self.lock().aws = lacks;
    }

    fn answer(&self) -> (StatusCode, String) {
        let lacking = self.lock();
        let unsynced = (!lacking.synced).then_some("the watches are not synced yet");
        match (lacking.crd.as_deref().or(unsynced), &lacking.aws) {
            (Some(lacks), None) => (StatusCode::SERVICE_UNAVAILABLE, lacks.to_owned()),
            (Some(lacks), Some(aws)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{lacks}\n{aws}")),
            (None, Some(aws)) => (StatusCode::OK, format!("ok, but AWS cannot be called: {aws}")),
            (None, None) => (StatusCode::OK, "ok".to_owned()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lacking> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves the probes, `/healthz` (the process answers) and `/readyz` (see [`Readiness`]), and `/metrics` for Prometheus.
///
/// # Errors
/// The server ended.
pub async fn serve(listener: TcpListener, readiness: Arc<Readiness>, metrics: Arc<Metrics>) -> std::io::Result<()> {
    let readyz = move || async move { readiness.answer() };
    let scrape = move || async move {
        let text = metrics.render().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
        Ok::<_, StatusCode>(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text))
    };
    let app = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape));
    axum::serve(listener, app).await
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io;
    use std::net::IpAddr;
    use std::sync::LazyLock;
    use tracing::dispatcher::{self, Dispatch};

    /// What was logged.
    #[derive(Clone, Default)]
    pub(crate) struct Written(Arc<Mutex<Vec<u8>>>);

    impl Written {
        pub(crate) fn text(&self) -> String {
            String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
        }
    }

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Runs it with that subscriber. tracing asks once for each place that logs who listens, and while there is one
    /// subscriber it asks that of the present thread: another test's thread, which has none, would turn the place off for
    /// all. So there are always more.
    pub(crate) fn with_subscriber<T>(subscriber: impl Into<Dispatch>, run: impl FnOnce() -> T) -> T {
        static OTHERS: LazyLock<[Dispatch; 2]> =
            LazyLock::new(|| std::array::from_fn(|_| Dispatch::new(tracing_subscriber::registry())));
        LazyLock::force(&OTHERS);
        dispatcher::with_default(&subscriber.into(), run)
    }

    #[tokio::test]
    async fn the_default_address_takes_both_families_and_does_without_ipv6() {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let port = bind(any).unwrap().local_addr().unwrap().port();
        let listener = bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).unwrap();
        // A kubelet's probe comes by the Pod's address, which is IPv6 alone in some clusters.
        let mut addresses = vec![IpAddr::from(Ipv4Addr::LOCALHOST)];
        if listener.local_addr().unwrap().is_ipv6() {
            addresses.push(Ipv6Addr::LOCALHOST.into());
        }
        for address in addresses {
            let (there, taken) = tokio::join!(tokio::net::TcpStream::connect((address, port)), listener.accept());
            assert!(there.is_ok() && taken.is_ok(), "{address}: {there:?} {taken:?}");
        }

        let missing = |errno| without_ipv6(any, &io::Error::from_raw_os_error(errno));
        assert_eq!(missing(EAFNOSUPPORT), Some("0.0.0.0:0".parse().unwrap()));
        assert_eq!(without_ipv6(any, &ErrorKind::AddrInUse.into()), None, "a taken port is told");
        let one = "[::1]:80".parse().unwrap();
        assert_eq!(without_ipv6(one, &ErrorKind::AddrNotAvailable.into()), None, "the user named it");
    }

    #[test]
    fn it_is_ready_without_aws_and_not_without_the_crd_or_the_watches() {
        let readiness = Readiness::default();
        let mut told = Vec::new();
        let mut tell = |change: &dyn Fn(&Readiness)| {
            change(&readiness);
            let (status, words) = readiness.answer();
            told.push((status.as_u16(), words));
        };
        tell(&|_| {});
        tell(&|readiness| readiness.aws(Some("no key".into())));
        tell(&Readiness::synced);
        tell(&|readiness| readiness.crd(Some("no CRD".into())));
        tell(&|readiness| readiness.aws(None));
        tell(&|readiness| readiness.crd(None));
        let expected = [
            (503, "the watches are not synced yet"),
            (503, "the watches are not synced yet\nno key"),
            (200, "ok, but AWS cannot be called: no key"),
            (503, "no CRD\nno key"),
            (503, "no CRD"),
            (200, "ok"),
        ];
        assert_eq!(told, expected.map(|(status, words)| (status, words.to_owned())));
    }

    #[test]
    fn of_a_panic_its_place_is_logged_and_only_words_that_stand_in_the_code() {
        let log = |payload: &(dyn Any + Send)| {
            let written = Written::default();
            let writer = written.clone();
            let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
            with_subscriber(subscriber, || log_panic(payload, Some(Location::caller())));
            written.text()
        };
        let (made, literal) = (log(&"the token is s3cret".to_owned()), log(&"no such lane"));
        assert!(made.contains("src/telemetry.rs:") && !made.contains("s3cret"), "{made}");
        assert!(literal.contains("no such lane"), "{literal}");
    }
}
