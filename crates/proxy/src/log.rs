//! The log, on standard error.

use crate::config::Format;
use std::any::Any;
use std::io::IsTerminal;
use std::panic::Location;
use tracing_subscriber::filter::{LevelFilter, Targets, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// The levels of AWS's `-v`, as filters. It has one that ends the program, which here is an error.
pub fn filter_of_level(level: u16) -> &'static str {
    match level {
        0 => "off",
        1 | 2 => "error",
        3 => "warn",
        4 => "info",
        5 => "debug",
        _ => "trace",
    }
}

/// Reads a filter: a level, or `module=level`, with commas between them.
///
/// # Errors
/// It cannot be read: a text for people.
pub fn parse(filter: &str) -> Result<Targets, String> {
    filter.parse().map_err(|_| {
        format!("--log-filter: {filter:?} is no filter: write a level such as info, or opentunnel_proxy::link=debug")
    })
}

/// Starts the log. Other crates' TRACE is never logged, whatever the filter says: tokens could be in it.
///
/// # Errors
/// The filter cannot be read, or there is a log already: a text for people.
pub fn start(format: Format, filter: &str) -> Result<(), String> {
    let filter = parse(filter)?;
    let stderr = std::io::stderr;
    let lines = match format {
        Format::Text => {
            let ansi = stderr().is_terminal();
            tracing_subscriber::fmt::layer().with_writer(stderr).with_ansi(ansi).with_target(false).boxed()
        }
        Format::Json => tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(stderr).boxed(),
    };
    let ours = filter_fn(|metadata| {
        metadata.target().starts_with("opentunnel_proxy") || *metadata.level() <= LevelFilter::DEBUG
    });
    tracing_subscriber::registry()
        .with(lines.with_filter(filter).with_filter(ours))
        .try_init()
        .map_err(|error| error.to_string())?;
    std::panic::set_hook(Box::new(|panic| log_panic(panic.payload(), panic.location())));
    Ok(())
}

/// Says where a panic was. What it says is logged only where it stands in the code as it is: a text that is made when it
/// happens may hold anything, a token too.
fn log_panic(payload: &(dyn Any + Send), location: Option<&Location<'_>>) {
    let place = location.map(ToString::to_string).unwrap_or_default();
    let words = payload.downcast_ref::<&'static str>().copied().unwrap_or("(not shown: it may hold a secret)");
    tracing::error!(place, "this is a bug, please report it: panicked: {words}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_a_filter() {
        for level in [0, 1, 2, 3, 4, 5, 6, 255] {
            assert!(parse(filter_of_level(level)).is_ok(), "{level}");
        }
        assert!(parse("info,opentunnel_proxy::link=debug").is_ok());
        assert!(parse("info=loud").expect_err("no level").contains("--log-filter"));
    }
}
