//! The program: flags, log, signals, exit status.

use opentunnel_proxy::config::{Config, ConfigError, Invocation};
use opentunnel_proxy::connect::{ConnectError, Connector};
use opentunnel_proxy::listening::{self, Listening};
use opentunnel_proxy::proxy::{Options, Proxy, ProxyError};
use opentunnel_proxy::stats::Stats;
use opentunnel_proxy::{http, log};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// musl's own allocator asks the kernel for each buffer, and gives it back: more than half of what the processor then does.
/// Without huge pages, which would be half of an idle proxy's memory.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Wrong usage; clap has the same.
const USAGE: u8 = 2;
/// The token is refused, and no other can come.
const REFUSED: u8 = 3;
/// More threads would find nothing to do for one connection to the service, and each has a stack.
const MAX_THREADS: usize = 4;

fn main() -> ExitCode {
    let environment = |name: &str| std::env::var_os(name);
    let current_directory = std::env::current_dir().unwrap_or_else(|_| Path::new(".").to_owned());
    let config = match Invocation::load(std::env::args_os(), &environment, &current_directory) {
        Ok(Invocation::Run(config)) => *config,
        Ok(Invocation::ExportDefaultSettings { path, json }) => {
            return match std::fs::write(&path, json) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(&format!("{} cannot be written: {error}", path.display()), 1),
            };
        }
        Err(ConfigError::Flags(error)) => {
            // Whether anybody reads it is not the program's business.
            let _ = error.print();
            return u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
        Err(ConfigError::Invalid(error)) => return failed(&format!("{error}\nSee --help"), USAGE),
    };
    if let Err(error) = log::start(config.format, &config.log_filter) {
        return failed(&error, USAGE);
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(serve(config)),
        Err(error) => Err(format!("the threads cannot be started: {error}")),
    };
    match outcome {
        Ok(End::Stopped) => ExitCode::SUCCESS,
        Ok(End::Refused(error)) => {
            tracing::error!("{error}: this token is of no use any more, and no other can come: give a new one");
            ExitCode::from(REFUSED)
        }
        Err(error) => failed(&error, 1),
    }
}

fn failed(error: &str, status: u8) -> ExitCode {
    eprintln!("opentunnel-proxy: {error}");
    ExitCode::from(status)
}

/// How it ends.
enum End {
    /// It was asked to stop.
    Stopped,
    /// The token is refused, and no other can come.
    Refused(ConnectError),
}

/// All but what is on the way out: an error is a text for people.
async fn serve(config: Config) -> Result<End, String> {
    // First: whoever sees a line of it may send a signal.
    let stop = stop_signal()?;
    let connector = Connector::new(config.endpoint.clone(), config.web_proxy.clone(), &config.trust, config.keepalive)?;
    let stats = Arc::new(Stats::new());
    let mut http_address = None;
    let mut probes = tokio::task::JoinSet::new();
    if let Some(address) = config.http_addr {
        let failed = |error: std::io::Error| format!("--http-addr: cannot listen on {address}: {error}");
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        tracing::info!(%address, "serving /healthz, /readyz and /metrics");
        http_address = Some(address);
        probes.spawn(http::serve(listener, Arc::clone(&stats)));
    }
    let options = Options::from(&config);
    let Config { ends, tokens, format, .. } = config;
    let proxy = Proxy::bind(ends, options, stats).await.map_err(|error| error.to_string())?;
    let announce = |addresses: &[Listening]| listening::announce(format, addresses, http_address);
    match proxy.run(&connector, tokens, stop, announce).await {
        Ok(()) => Ok(End::Stopped),
        Err(ProxyError::Refused(error)) => Ok(End::Refused(error)),
        Err(error) => Err(error.to_string()),
    }
}

/// Says true when asked to stop: SIGTERM, SIGINT, or what Windows has. Who asks twice does not want to wait.
fn stop_signal() -> Result<watch::Receiver<bool>, String> {
    let (sender, receiver) = watch::channel(false);
    #[cfg(unix)]
    let mut asked = {
        use tokio::signal::unix::{SignalKind, signal};
        let failed = |error: std::io::Error| format!("cannot handle signals: {error}");
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        async move || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
    };
    #[cfg(not(unix))]
    let asked = async || {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::spawn(async move {
        asked().await;
        tracing::info!("asked to stop; once more ends at once");
        let _ = sender.send(true);
        asked().await;
        std::process::exit(0);
    });
    Ok(receiver)
}
