//! The emulator through the real AWS SDK, and by raw HTTP where the SDK hides the wire.

mod client;
mod constraints;
mod control;
mod data;
mod faults;
mod lifecycle;
mod lifetime;
mod operations;
mod pagination;
mod program;
mod quotas;
mod rotation;
mod wire;
