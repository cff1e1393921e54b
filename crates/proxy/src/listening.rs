//! What a source tells on standard output: where it listens.

use crate::config::Format;
use serde_json::json;
use std::io::{self, Write};
use std::net::SocketAddr;

/// One listening address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// The service; empty where the tunnel has none with a name.
    pub service: String,
    /// The address, with the port that was taken.
    pub address: SocketAddr,
}

/// Tells it. `http`: where probes and metrics are.
pub fn announce(format: Format, addresses: &[Listening], http: Option<SocketAddr>) {
    // Whether anybody reads it is not the proxy's business.
    let _ = io::stdout().write_all(text(format, addresses, http).as_bytes());
    let _ = io::stdout().flush();
}

fn text(format: Format, addresses: &[Listening], http: Option<SocketAddr>) -> String {
    match format {
        Format::Json => {
            let addresses: Vec<_> = addresses
                .iter()
                .map(|Listening { service, address }| json!({ "service": service, "address": address.to_string() }))
                .collect();
            let http = http.map(|address| address.to_string());
            format!("{}\n", json!({ "listening": addresses, "http": http }))
        }
        Format::Text => addresses
            .iter()
            .map(|Listening { service, address }| match &**service {
                "" => format!("listening on {address}\n"),
                service => format!("listening on {address} for {service}\n"),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_and_programs_are_told_the_same() {
        let address = |text: &str| text.parse().expect("an address");
        let addresses = [("", "127.0.0.1:5555"), ("SSH", "[::1]:22")]
            .map(|(service, text)| Listening { service: service.to_owned(), address: address(text) });
        assert_eq!(
            text(Format::Text, &addresses, None),
            "listening on 127.0.0.1:5555\nlistening on [::1]:22 for SSH\n"
        );
        let line = text(Format::Json, &addresses, Some(address("127.0.0.1:8080")));
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let expected = json!({
            "listening": [
                { "service": "", "address": "127.0.0.1:5555" },
                { "service": "SSH", "address": "[::1]:22" },
            ],
            "http": "127.0.0.1:8080",
        });
        assert_eq!(value, expected);
    }
}
