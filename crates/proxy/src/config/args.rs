//! The flags: AWS's, with the same names and letters, and ours.

use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// A local proxy for AWS IoT Secure Tunneling: both ends of a tunnel. It takes the flags, environment variables
/// and config files of AWS's own local proxy.
///
/// Environment: AWSIOT_TUNNEL_ACCESS_TOKEN, AWSIOT_TUNNEL_CLIENT_TOKEN, AWSIOT_TUNNEL_REGION,
/// AWSIOT_TUNNEL_ENDPOINT, HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE, SSL_CERT_DIR. A flag wins over the config file,
/// and that over the environment.
///
/// Exit status: 0 asked to stop, 2 wrong usage, 3 the access token is refused and no other can come.
// No Debug: it holds tokens.
#[derive(Parser, Clone)]
#[command(name = "opentunnel-proxy", version, infer_long_args = true, max_term_width = 100)]
pub(super) struct Args {
    /// Access token. Every user of this machine sees it in the list of processes: use AWSIOT_TUNNEL_ACCESS_TOKEN or
    /// --token-dir
    #[arg(short = 't', long, value_name = "TOKEN")]
    pub access_token: Option<String>,
    /// Client token, 32 to 128 letters, digits and -: with it the access token may be used again
    #[arg(short = 'i', long, value_name = "TOKEN")]
    pub client_token: Option<String>,
    /// Directory with a mounted token Secret: tokens, region. A changed token is taken over
    #[arg(long, value_name = "DIR")]
    pub token_dir: Option<PathBuf>,
    /// Where AWS's service is, instead of --region: HOST[:PORT]; with ws:// in front of it without TLS (for tests)
    #[arg(short = 'e', long, value_name = "HOST[:PORT]")]
    pub proxy_endpoint: Option<String>,
    /// Region of the tunnel
    #[arg(short = 'r', long, value_name = "REGION")]
    pub region: Option<String>,
    /// Be the source, and listen: PORT, or SERVICE=PORT,... with the services that the tunnel was opened with. Port 0
    /// takes a free one
    #[arg(short = 's', long, value_name = "[SERVICE=]PORT,...")]
    pub source_listen_port: Option<String>,
    /// Be the destination, and connect to: PORT, HOST:PORT or the path of a Unix socket, or SERVICE=... with the
    /// services that the tunnel was opened with
    #[arg(short = 'd', long, value_name = "[SERVICE=]ADDRESS,...")]
    pub destination_app: Option<String>,
    /// src or dst: which side to be, where the services stand in --config-dir (source: or take free ports)
    #[arg(short = 'm', long, value_name = "SIDE")]
    pub mode: Option<String>,
    /// Source: the address to listen on [default: localhost]. Destination: the address to connect from
    #[arg(short = 'b', long, value_name = "ADDRESS")]
    pub local_bind_address: Option<String>,
    /// Directory of CA certificates (PEM) to trust besides the system's
    #[arg(short = 'c', long, value_name = "DIR")]
    pub capath: Option<PathBuf>,
    /// Take a certificate whatever host it is for. It must still come from a trusted CA
    #[arg(short = 'k', long)]
    pub no_ssl_host_verify: bool,
    /// What the destination speaks: V1 for AWS IoT Device Client, Greengrass before 2026, the AWS console; V2; else V3
    #[arg(short = 'y', long, value_name = "VERSION")]
    pub destination_client_type: Option<String>,
    /// File of flags: one a line, NAME = VALUE, with a flag's long name
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of files with lines SERVICE=PORT or SERVICE=ADDRESS [default: ./config, where it is]
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// JSON file of AWS's fine-grained settings, as far as they have a meaning here
    #[arg(long, value_name = "FILE")]
    pub settings_json: Option<PathBuf>,
    /// Write the settings that --settings-json takes to a file, and end
    #[arg(long, value_name = "FILE")]
    pub export_default_settings: Option<PathBuf>,
    /// How much to log: 0 nothing, 1-2 errors, 3 warnings, 4 information, 5 debug, 6 all [default: 4]
    #[arg(short = 'v', long, value_name = "0-6")]
    pub verbose: Option<u16>,
    /// What to log instead, by module, e.g. info,opentunnel_proxy::link=debug
    #[arg(long, value_name = "FILTER")]
    pub log_filter: Option<String>,
    /// Format of the log (standard error) and of the addresses that are listened on (standard output) [default: text]
    #[arg(long)]
    pub format: Option<Format>,
    /// Address of /healthz, /readyz and /metrics, e.g. 0.0.0.0:8080 [default: none]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub http_addr: Option<std::net::SocketAddr>,
    /// Reset a connection whose reader takes nothing for so long [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub stall_timeout: Option<Duration>,
    /// Time that open connections have to end when asked to stop [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub drain: Option<Duration>,
}

/// How programs or people are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: one object a line.
    Json,
}

/// A number with ms, s, m or h; without a unit: seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let of = |unit: u64| number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    let millis = match unit {
        "ms" => of(1),
        "" | "s" => of(1000),
        "m" => of(60_000),
        "h" => of(3_600_000),
        _ => None,
    };
    millis
        .filter(|millis| *millis <= 86_400_000)
        .map(Duration::from_millis)
        .ok_or_else(|| "a time such as 500ms, 20s or 5m, at most 24h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_are_consistent() {
        Args::command().debug_assert();
    }

    /// The table of docs/proxy.md.
    fn table() -> String {
        let mut rows = String::from("| flag | |\n|---|---|\n");
        let command = Args::command();
        for arg in command.get_arguments() {
            let letter = arg.get_short().map(|letter| format!("`-{letter}`, ")).unwrap_or_default();
            let value = arg.get_value_names().filter(|_| arg.get_action().takes_values());
            let value = value.and_then(|names| names.first()).map(|name| format!(" {name}")).unwrap_or_default();
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let long = arg.get_long().expect("each flag has a long name");
            rows += &format!("| {letter}`--{long}{value}` | {help} |\n");
        }
        rows
    }

    #[test]
    fn the_flags_in_docs_are_the_programs() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/proxy.md");
        let page = std::fs::read_to_string(&path).expect("docs/proxy.md");
        let begin = page.find("| flag | |\n").expect("a table of flags");
        let end = begin + page[begin..].find("\n\n").expect("its end") + 1;
        let new = [&page[..begin], &table(), &page[end..]].concat();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, &new).expect("docs/proxy.md can be written");
        }
        assert!(std::fs::read_to_string(&path).unwrap_or_default() == new, "docs/proxy.md is old: make docs");
    }

    #[test]
    fn a_time_has_a_unit_or_is_in_seconds() {
        for (text, millis) in
            [("0", 0), ("30", 30_000), ("30s", 30_000), ("500ms", 500), ("2m", 120_000), ("24h", 86_400_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "1d", "-1s", "1.5s", "25h", "99999999999999999999s", "1 s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
