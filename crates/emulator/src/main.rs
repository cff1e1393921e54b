//! The emulator as a program: flags and signals.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use secure_tunneling_emulator::{Config, Emulator, Quotas};
use tokio::signal::unix::{SignalKind, signal};

/// A local AWS IoT Secure Tunneling: all 8 operations of its API, with its constraints,
/// quotas, expiry and retention. Point any AWS SDK or CLI at it by
/// AWS_ENDPOINT_URL_IOTSECURETUNNELING. Credentials are read, never checked; tunnels
/// live in memory. Tests control it under /_emulator.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(
        long,
        env = "SECURE_TUNNELING_EMULATOR_LISTEN",
        value_name = "ADDRESS:PORT",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:4570"
    )]
    listen: SocketAddr,

    /// Quotas at start and after a reset
    #[arg(long, env = "SECURE_TUNNELING_EMULATOR_QUOTAS", default_value = "aws")]
    quotas: StartQuotas,

    /// Region of calls that are not signed for one
    #[arg(long, env = "SECURE_TUNNELING_EMULATOR_REGION", default_value = "us-east-1", value_parser = region)]
    region: String,

    /// Account that owns the tunnels: 12 digits
    #[arg(long, env = "SECURE_TUNNELING_EMULATOR_ACCOUNT_ID", default_value = "123456789012", value_parser = account_id)]
    account_id: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum StartQuotas {
    /// OpenTunnel and CloseTunnel 1 call a second, the other six 10
    Aws,
    /// Unlimited
    None,
}

fn region(text: &str) -> Result<String, String> {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty() || !text.chars().all(valid) {
        return Err("a region is written as us-east-1".to_owned());
    }
    Ok(text.to_owned())
}

fn account_id(text: &str) -> Result<String, String> {
    if text.len() != 12 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("an account ID has 12 digits".to_owned());
    }
    Ok(text.to_owned())
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("secure-tunneling-emulator: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), String> {
    // Before the line that says it is ready: whoever reads that may send a signal.
    let handler = |error: io::Error| format!("cannot handle signals: {error}");
    let mut interrupt = signal(SignalKind::interrupt()).map_err(handler)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(handler)?;
    let quotas = match args.quotas {
        StartQuotas::Aws => Quotas::aws(),
        StartQuotas::None => Quotas::none(),
    };
    let Args { listen, region, account_id, .. } = args;
    let emulator = Emulator::start(Config { listen, quotas, region, account_id })
        .await
        .map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    // Whether anybody reads it is not the emulator's business.
    let _ = writeln!(io::stdout(), "listening on {}", emulator.endpoint());
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
