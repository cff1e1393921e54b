//! A local AWS IoT Secure Tunneling.
//!
//! [`Emulator::start`] runs one in this process; the program of the same name runs one
//! by itself. Both speak AWS JSON 1.1 (`server`, `api`) with the constraints, errors,
//! quotas, pagination, expiry and retention of the service (`requests`, `constraints`,
//! `service`, `tunnel`), carry what passes through a tunnel (`data`), and do wrong what
//! they are told to (`faults`, `data::faults`). The control API
//! (`control` over HTTP, [`Emulator`] in Rust) sets and tells what no AWS does.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! use secure_tunneling_emulator::{Config, Emulator, Fault, FaultKind, Operation};
//!
//! let emulator = Emulator::start(Config::default()).await?;
//! emulator.set_faults([Fault::new(Operation::OpenTunnel, FaultKind::DropAfter).times(1)]);
//! // Point an SDK at `emulator.endpoint()`, call OpenTunnel, and see that the tunnel is
//! // there although the answer was lost:
//! // emulator.wait_tunnels(|tunnels| tunnels.len() == 1).await;
//! # Ok(())
//! # }
//! ```

mod api;
mod calls;
mod clock;
mod constraints;
mod control;
mod data;
mod emulator;
mod error;
mod faults;
mod members;
mod notifications;
mod operation;
mod quotas;
mod requests;
mod server;
mod service;
mod shared;
mod store;
mod tasks;
mod tunnel;

pub use calls::Call;
pub use control::{Connections, ControlError};
pub use data::{DataFault, DataFaultKind, Side};
pub use emulator::Emulator;
pub use faults::{Fault, FaultKind};
pub use notifications::Notification;
pub use operation::Operation;
pub use quotas::Quotas;
pub use shared::{Config, DataTls};
pub use tunnel::{ConnectionStatus, LiveTokens, TunnelInfo, TunnelStatus};
