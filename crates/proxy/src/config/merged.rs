//! One configuration out of flags, the config file and the environment.

use super::args::{Args, Format};
use super::endpoint::{self, Endpoint, Scheme};
use super::files::{self, Settings};
use super::services::{self, Services};
use super::{Config, ConfigError, DestinationClientType, Ends, Environment, SourceDefaults};
use crate::Side;
use crate::connect::{HostVerification, Trust, WebProxy};
use crate::link::Keepalive;
use crate::tokens::{AccessToken, ClientToken, TokenDirectory, TokenSource, Tokens};
use clap::Parser;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a source listens, unless told otherwise.
pub(super) const BIND_ADDRESS: &str = "localhost";
/// Where a destination's services are, unless told otherwise.
const TARGET_HOST: &str = "127.0.0.1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Flags,
    File,
    Environment,
}

/// Flags from one place.
pub(super) struct Layer {
    pub origin: Origin,
    pub args: Args,
}

fn variable(environment: Environment<'_>, name: &str) -> Result<Option<String>, String> {
    match environment(name).map(OsString::into_string) {
        None => Ok(None),
        // An empty variable is how a Pod's manifest says that there is none.
        Some(Ok(value)) if value.is_empty() => Ok(None),
        Some(Ok(value)) => Ok(Some(value)),
        Some(Err(_)) => Err(format!("{name} is not UTF-8")),
    }
}

pub(super) fn from_environment(environment: Environment<'_>) -> Result<Args, ConfigError> {
    let mut args = Args::try_parse_from(["opentunnel-proxy"])?;
    args.access_token = variable(environment, "AWSIOT_TUNNEL_ACCESS_TOKEN")?;
    args.client_token = variable(environment, "AWSIOT_TUNNEL_CLIENT_TOKEN")?;
    args.proxy_endpoint = variable(environment, "AWSIOT_TUNNEL_ENDPOINT")?;
    args.region = variable(environment, "AWSIOT_TUNNEL_REGION")?;
    if args.proxy_endpoint.is_some() {
        // A Pod with the token Secret's data in its environment has the region anyway.
        args.region = None;
    }
    Ok(args)
}

/// The flags of all places, from the first that counts to the last.
pub(super) struct Merged<'a> {
    pub layers: Vec<Layer>,
    pub environment: Environment<'a>,
    pub current_directory: &'a Path,
}

/// What two flags say that exclude each other.
enum Either<A, B> {
    First(A),
    Second(B),
}

impl Merged<'_> {
    fn get<T>(&self, value: impl Fn(&Args) -> Option<T>) -> Option<T> {
        self.layers.iter().find_map(|layer| value(&layer.args))
    }

    fn either<A, B>(
        &self,
        first: impl Fn(&Args) -> Option<A>,
        second: impl Fn(&Args) -> Option<B>,
        both: &str,
    ) -> Result<Option<Either<A, B>>, String> {
        for Layer { args, .. } in &self.layers {
            match (first(args), second(args)) {
                (None, None) => {}
                (Some(first), None) => return Ok(Some(Either::First(first))),
                (None, Some(second)) => return Ok(Some(Either::Second(second))),
                (Some(_), Some(_)) => return Err(both.to_owned()),
            }
        }
        Ok(None)
    }

    pub fn config(&self) -> Result<Config, String> {
        let mut warnings = Vec::new();
        let settings = match self.get(|args| args.settings_json.clone()) {
            Some(path) => Settings::read(&path, &mut warnings)?,
            None => Settings::default(),
        };
        let ends = self.ends(&settings, &mut warnings)?;
        let tokens = self.tokens(ends.side(), &mut warnings)?;
        let endpoint = self.endpoint(&settings, &tokens)?;
        if endpoint.scheme == Scheme::Ws {
            warnings
                .push(format!("{endpoint} is without TLS: whoever is on the way reads the tokens and all the rest"));
        }
        let trust = Trust {
            file: variable(self.environment, "SSL_CERT_FILE")?.map(PathBuf::from),
            directories: variable(self.environment, "SSL_CERT_DIR")?
                .map(|paths| std::env::split_paths(&paths).filter(|path| !path.as_os_str().is_empty()).collect())
                .unwrap_or_default(),
            additional: self.get(|args| args.capath.clone()),
            host_verification: match self.layers.iter().any(|layer| layer.args.no_ssl_host_verify) {
                true => HostVerification::Off,
                false => HostVerification::On,
            },
        };
        if trust.host_verification == HostVerification::Off {
            warnings.push("-k: the service's certificate may be for any host; use it for tests alone".to_owned());
        }
        let log_filter = match self.get(|args| args.log_filter.clone()) {
            Some(filter) => filter,
            None => crate::log::filter_of_level(self.get(|args| args.verbose).unwrap_or(4)).to_owned(),
        };
        crate::log::parse(&log_filter)?;
        Ok(Config {
            web_proxy: self.web_proxy(&endpoint)?,
            keepalive: Keepalive {
                interval: settings.ping_interval.unwrap_or(files::PING_INTERVAL),
                ..Keepalive::default()
            },
            destination_client_type: self.destination_client_type(&mut warnings),
            http_addr: self.get(|args| args.http_addr),
            stall_timeout: self.get(|args| args.stall_timeout).unwrap_or(Duration::from_secs(30)),
            drain: self.get(|args| args.drain).unwrap_or(Duration::from_secs(10)),
            format: self.get(|args| args.format).unwrap_or(Format::Text),
            ends,
            endpoint,
            tokens,
            trust,
            log_filter,
            warnings,
        })
    }

    fn ends(&self, settings: &Settings, warnings: &mut Vec<String>) -> Result<Ends, String> {
        let mode = match self.get(|args| args.mode.clone()).as_deref() {
            None => None,
            Some("src" | "source") => Some(Side::Source),
            Some("dst" | "destination") => Some(Side::Destination),
            Some(_) => return Err("--mode: write src or dst (or source, destination)".to_owned()),
        };
        let given = self.either(
            |args| args.source_listen_port.clone(),
            |args| args.destination_app.clone(),
            "-s (--source-listen-port) and -d (--destination-app) exclude each other: a proxy is one side of a tunnel",
        )?;
        let side = match (&given, mode) {
            (Some(Either::First(_)), Some(Side::Destination)) => {
                return Err("-s (--source-listen-port) is for the source, and --mode says destination".to_owned());
            }
            (Some(Either::Second(_)), Some(Side::Source)) => {
                return Err("-d (--destination-app) is for the destination, and --mode says source".to_owned());
            }
            (Some(Either::First(_)), _) => Side::Source,
            (Some(Either::Second(_)), _) => Side::Destination,
            (None, Some(mode)) => mode,
            (None, None) => {
                return Err("say which side of the tunnel this is: -s PORT listens for clients, -d ADDRESS connects \
                            to a service, --mode takes either from --config-dir"
                    .to_owned());
            }
        };
        let bind = self.get(|args| args.local_bind_address.clone()).filter(|address| !address.is_empty());
        let bind = bind.map(|address| endpoint::host(&address).map_err(|error| format!("-b: {error}"))).transpose()?;
        let flag = match side {
            Side::Source => "-s",
            Side::Destination => "-d",
        };
        let in_flag = |error: String| format!("{flag}: {error}");
        match side {
            Side::Source => {
                let bind = match bind.or_else(|| settings.bind_address.clone()) {
                    Some(bind) => endpoint::host(&bind).map_err(|error| format!("default_bind_address: {error}"))?,
                    None => BIND_ADDRESS.to_owned(),
                };
                let address = |text: &str| services::listen_address(text, &bind);
                let services = match given {
                    Some(Either::First(text)) => services::parse(&text, address, warnings).map_err(in_flag)?,
                    _ => Services::Among(self.config_directory(address, warnings)?.unwrap_or_default()),
                };
                Ok(Ends::Source(services, SourceDefaults { bind }))
            }
            Side::Destination => {
                // As AWS's: with -b a port alone is one of that address.
                let host = bind.as_deref().unwrap_or(TARGET_HOST);
                let address = |text: &str| services::target(text, host);
                let targets = match given {
                    Some(Either::Second(text)) => services::parse(&text, address, warnings).map_err(in_flag)?,
                    _ => Services::Among(
                        self.config_directory(address, warnings)?
                            .filter(|services| !services.is_empty())
                            .ok_or("a destination must know where its services are: -d ADDRESS, or --config-dir")?,
                    ),
                };
                Ok(Ends::Destination { targets, bind })
            }
        }
    }

    fn config_directory<A>(
        &self,
        address: impl Fn(&str) -> Result<A, String>,
        warnings: &mut Vec<String>,
    ) -> Result<Option<BTreeMap<String, A>>, String> {
        if let Some(directory) = self.get(|args| args.config_dir.clone()) {
            return files::services(&directory, address, warnings)
                .map(Some)
                .map_err(|error| format!("--config-dir: {error}"));
        }
        let default = self.current_directory.join("config");
        if !default.is_dir() {
            return Ok(None);
        }
        files::services(&default, address, warnings).map(Some)
    }

    fn tokens(&self, side: Side, warnings: &mut Vec<String>) -> Result<TokenSource, String> {
        let given = self.either(
            |args| args.access_token.clone(),
            |args| args.token_dir.clone(),
            "-t (--access-token) and --token-dir exclude each other",
        )?;
        match given {
            Some(Either::First(access)) => {
                if self.layers.iter().any(|layer| layer.origin == Origin::Flags && layer.args.access_token.is_some()) {
                    warnings.push(
                        "every user of this machine sees the access token in the list of processes: give it by \
                         AWSIOT_TUNNEL_ACCESS_TOKEN or --token-dir instead of -t"
                            .to_owned(),
                    );
                }
                let client = self.get(|args| args.client_token.clone()).filter(|token| !token.is_empty());
                Ok(TokenSource::Fixed(Tokens {
                    access: AccessToken::new(access).map_err(|error| error.to_string())?,
                    client: client.map(ClientToken::new).transpose().map_err(|error| error.to_string())?,
                }))
            }
            Some(Either::Second(directory)) => {
                if !directory.is_dir() {
                    return Err(format!("--token-dir: {} is no directory", directory.display()));
                }
                Ok(TokenSource::Directory(TokenDirectory::open(directory, side)))
            }
            None => {
                Err("there is no access token: set AWSIOT_TUNNEL_ACCESS_TOKEN, or mount the token Secret and name \
                         its directory with --token-dir"
                    .to_owned())
            }
        }
    }

    fn endpoint(&self, settings: &Settings, tokens: &TokenSource) -> Result<Endpoint, String> {
        let given = self.either(
            |args| args.proxy_endpoint.clone(),
            |args| args.region.clone(),
            "-r (--region) and -e (--proxy-endpoint) exclude each other",
        )?;
        let region = match given {
            Some(Either::First(endpoint)) => {
                return Endpoint::parse(&endpoint).map_err(|error| format!("-e (--proxy-endpoint): {error}"));
            }
            Some(Either::Second(region)) => region,
            None => match tokens {
                TokenSource::Directory(directory) => directory.region().map(str::to_owned),
                TokenSource::Fixed(_) => None,
            }
            .ok_or("say where the tunnel is: -r REGION, AWSIOT_TUNNEL_REGION, or -e HOST[:PORT]")?,
        };
        let region = endpoint::region(&region).map_err(|error| format!("-r (--region): {error}"))?;
        let host = match settings.region_endpoints.get(region) {
            Some(host) => host.clone(),
            None => {
                let format = settings.endpoint_format.as_deref().unwrap_or(files::ENDPOINT_FORMAT);
                let china = region.starts_with("cn-") && settings.endpoint_format.is_none();
                format.replace("%s", region) + if china { ".cn" } else { "" }
            }
        };
        Endpoint::parse(&host).map_err(|error| format!("--settings-json: {host:?} is no endpoint: {error}"))
    }

    fn web_proxy(&self, endpoint: &Endpoint) -> Result<Option<WebProxy>, String> {
        // In this order, as AWS's: curl has it so, too.
        let first = |names: [&'static str; 2]| -> Result<Option<(&'static str, String)>, String> {
            for name in names {
                if let Some(value) = variable(self.environment, name)? {
                    return Ok(Some((name, value)));
                }
            }
            Ok(None)
        };
        let Some((name, url)) = first(["https_proxy", "HTTPS_PROXY"])? else { return Ok(None) };
        let excluded = first(["no_proxy", "NO_PROXY"])?.map(|(_, list)| list).unwrap_or_default();
        WebProxy::for_endpoint(&url, &excluded, endpoint).map_err(|error| format!("{name}: {error}"))
    }

    fn destination_client_type(&self, warnings: &mut Vec<String>) -> DestinationClientType {
        match self.get(|args| args.destination_client_type.clone()).map(|text| text.to_ascii_uppercase()).as_deref() {
            Some("V1") => DestinationClientType::V1,
            Some("V2") => DestinationClientType::V2,
            Some("V3") | None => DestinationClientType::V3,
            Some(_) => {
                warnings.push("-y (--destination-client-type) is neither V1, V2 nor V3: V3 is taken".to_owned());
                DestinationClientType::V3
            }
        }
    }
}
