//! The emulator as a program: flags and signals.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use secure_tunneling_emulator::{Config, DataTls, Emulator, Quotas};
use tokio::signal::unix::{SignalKind, signal};

/// A local AWS IoT Secure Tunneling: all 8 operations of its API, with its constraints,
/// quotas, expiry and retention, and its data plane. Point any AWS SDK or CLI at it by
/// AWS_ENDPOINT_URL_IOTSECURETUNNELING, a local proxy by its endpoint. Credentials are read, never checked; tunnels
/// live in memory. Tests control it under /_emulator.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(
        long,
        env = "SECURE_TUNNELING_EMULATOR_LISTEN",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:4570"
    )]
    listen: SocketAddr,

    /// Address and port of the data plane; port 0 takes a free one
    #[arg(
        long,
        env = "SECURE_TUNNELING_EMULATOR_DATA_LISTEN",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:4571"
    )]
    data_listen: SocketAddr,

    /// TLS of the data plane, which is ws:// without: `self-signed`, by an authority whose certificate is written to a
    /// file that is told at start, or the PEM files of a certificate chain and its key
    #[arg(
        long,
        env = "SECURE_TUNNELING_EMULATOR_DATA_TLS",
        value_name = "self-signed|CERT,KEY",
        value_parser = data_tls
    )]
    data_tls: Option<DataTls>,

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

fn data_tls(text: &str) -> Result<DataTls, String> {
    match text.split_once(',') {
        None if text == "self-signed" => Ok(DataTls::SelfSigned),
        Some((chain, key)) if !chain.is_empty() && !key.is_empty() => {
            Ok(DataTls::Certificate { chain: chain.into(), key: key.into() })
        }
        _ => Err("it is self-signed, or two files as cert.pem,key.pem".to_owned()),
    }
}

/// The file with the certificate that clients of the data plane must trust. It is removed with this value.
struct CaFile(PathBuf);

impl CaFile {
    /// Named by the port, which is this program's alone.
    fn write(port: u16, pem: &str) -> io::Result<Self> {
        let path = env::temp_dir().join(format!("secure-tunneling-emulator-{port}-ca.pem"));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Never through what somebody else has put there meanwhile.
        File::create_new(&path)?.write_all(pem.as_bytes())?;
        Ok(Self(path))
    }
}

impl Drop for CaFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
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
    let Args { listen, region, account_id, data_listen, data_tls, .. } = args;
    let data_tls = data_tls.unwrap_or_default();
    let config = Config { listen, quotas, region, account_id, data_listen, data_tls };
    let emulator = Emulator::start(config).await.map_err(|error| error.to_string())?;
    let ca_file = emulator.data_ca_pem().map(|pem| CaFile::write(emulator.data_addr().port(), pem));
    let ca_file = ca_file.transpose().map_err(|error| format!("cannot write the CA certificate: {error}"))?;
    let mut lines = format!("listening on {}\ndata plane on {}\n", emulator.endpoint(), emulator.data_endpoint());
    if let Some(CaFile(path)) = &ca_file {
        lines.push_str(&format!("data plane's CA certificate in {}\n", path.display()));
    }
    // Whether anybody reads it is not the emulator's business.
    let _ = io::stdout().write_all(lines.as_bytes());
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
