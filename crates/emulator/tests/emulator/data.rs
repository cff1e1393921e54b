//! The data plane, by a plain WebSocket client.

mod client;
mod end;
mod faults;
mod handshake;
mod hostile;
mod notifications;
mod relay;
mod replaced;
mod tls;
