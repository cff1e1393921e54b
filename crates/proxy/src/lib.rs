//! The data plane of AWS IoT Secure Tunneling. [`codec`], [`message`] and [`session`] are its protocol as plain
//! values: no I/O, no clock, no task. The other modules, which the feature `client` brings, are what `opentunnel-proxy` is
//! made of.
//!
//! Source: AWS's [protocol guides](https://github.com/aws-samples/aws-iot-securetunneling-localproxy), V1, V2 and V3.

use std::fmt;

pub mod codec;
#[cfg(feature = "client")]
pub mod config;
#[cfg(feature = "client")]
pub mod connect;
#[cfg(feature = "client")]
pub mod http;
#[cfg(feature = "client")]
pub mod link;
#[cfg(feature = "client")]
pub mod listening;
#[cfg(feature = "client")]
pub mod log;
pub mod message;
#[cfg(feature = "client")]
pub mod proxy;
#[cfg(feature = "client")]
pub mod reconnect;
pub mod session;
#[cfg(feature = "client")]
pub mod stats;
#[cfg(feature = "client")]
pub mod tokens;

/// The ends of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where clients connect to.
    Source,
    /// Where the services are: the device.
    Destination,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }

    /// As AWS writes it: the value of `local-proxy-mode`, and how a token Secret's keys begin.
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
