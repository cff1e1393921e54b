//! How the program is told what to do: flags, environment and files, checked and merged.
//!
//! Each option comes from the command line, else from the file of `--config`, else from the environment: the order that
//! AWS's local proxy has.

mod args;
mod endpoint;
mod files;
mod merged;
mod services;

pub use args::Format;
pub(crate) use endpoint::bracketed;
pub use endpoint::{Endpoint, Scheme};
pub use services::{ListenAddress, Services, Target};

use crate::Side;
use crate::connect::{Trust, WebProxy};
use crate::link::Keepalive;
use crate::tokens::TokenSource;
use args::Args;
use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use files::Settings;
use merged::{Layer, Merged, Origin};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// All that the program is told.
#[derive(Debug)]
pub struct Config {
    /// Which side it is, and what belongs where.
    pub ends: Ends,
    /// Where AWS's service is.
    pub endpoint: Endpoint,
    /// What it connects there with.
    pub tokens: TokenSource,
    /// The HTTP proxy on the way there, if it is to be used for this endpoint.
    pub web_proxy: Option<WebProxy>,
    /// Which certificates are trusted.
    pub trust: Trust,
    /// When a silent connection to the service is taken for dead.
    pub keepalive: Keepalive,
    /// What the other side speaks.
    pub destination_client_type: DestinationClientType,
    /// Where probes and metrics are served.
    pub http_addr: Option<SocketAddr>,
    /// How long a reader may take nothing.
    pub stall_timeout: Duration,
    /// How long open connections have to end.
    pub drain: Duration,
    /// Of the log and of what is listened on.
    pub format: Format,
    /// What is logged, for [`crate::log::start`].
    pub log_filter: String,
    /// What is to be logged once there is a log.
    pub warnings: Vec<String>,
}

/// What a side does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ends {
    /// It listens.
    Source(Services<ListenAddress>, SourceDefaults),
    /// It connects.
    Destination {
        /// Where to.
        targets: Services<Target>,
        /// The local address to connect from: a name or an IP address.
        bind: Option<String>,
    },
}

/// Where a source listens for services that have no port of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceDefaults {
    /// A name or an IP address.
    pub bind: String,
}

impl Ends {
    /// Which side it is.
    pub fn side(&self) -> Side {
        match self {
            Self::Source(..) => Side::Source,
            Self::Destination { .. } => Side::Destination,
        }
    }
}

/// What the destination speaks; the source must know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DestinationClientType {
    /// One service, one connection.
    V1,
    /// One connection a service.
    V2,
    /// Many connections a service.
    #[default]
    V3,
}

/// What the program is asked for.
#[derive(Debug)]
pub enum Invocation {
    /// To be one side of a tunnel.
    Run(Box<Config>),
    /// To write the default settings to a file.
    ExportDefaultSettings {
        /// Which.
        path: PathBuf,
        /// What to write.
        json: String,
    },
}

/// Why the program cannot be run so.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// `--help`, `--version`, or flags that cannot be read. It has its own exit status.
    #[error(transparent)]
    Flags(#[from] clap::Error),
    /// In words, for people.
    #[error("{0}")]
    Invalid(String),
}

impl From<String> for ConfigError {
    fn from(reason: String) -> Self {
        Self::Invalid(reason)
    }
}

/// The environment: what a variable holds.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

impl Invocation {
    /// Reads the command line (the program's name first), the environment, and the files that they name.
    ///
    /// # Errors
    /// Something is missing, wrong or contradictory. No error holds a token.
    pub fn load(
        arguments: impl IntoIterator<Item = OsString>,
        environment: Environment<'_>,
        current_directory: &Path,
    ) -> Result<Self, ConfigError> {
        let flags = Args::try_parse_from(arguments).map_err(without_token)?;
        if let Some(path) = flags.export_default_settings {
            return Ok(Self::ExportDefaultSettings { path, json: Settings::defaults() });
        }
        let mut layers = vec![Layer { origin: Origin::Flags, args: flags }];
        if let Some(path) = &layers[0].args.config {
            let args = files::flags(path)?;
            layers.push(Layer { origin: Origin::File, args });
        }
        layers.push(Layer { origin: Origin::Environment, args: merged::from_environment(environment)? });
        let merged = Merged { layers, environment, current_directory };
        Ok(Self::Run(Box::new(merged.config()?)))
    }
}

/// clap names an argument that it does not know: where the flag before it was forgotten, that may be a token.
fn without_token(error: clap::Error) -> ConfigError {
    match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(text))) if text.len() > 30 => ConfigError::Invalid(
            "an argument that is not shown here, for it may be a token, belongs to no flag: see --help".to_owned(),
        ),
        _ => ConfigError::Flags(error),
    }
}
