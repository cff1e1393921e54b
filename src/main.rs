//! Flags.

use clap::Parser;
use opentunnel_operator::config::Command;
use opentunnel_operator::runtime;
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Command::parse() {
        Command::Crd => serde_saphyr::to_string(&opentunnel_api::definition())
            .map(|yaml| print!("{yaml}"))
            .map_err(|e| e.to_string()),
        Command::Run(flags) => runtime::run(*flags).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("opentunnel-operator: {error}");
            ExitCode::FAILURE
        }
    }
}
