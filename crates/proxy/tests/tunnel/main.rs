//! Both ends of a tunnel as processes, through the emulator: what their users rely on. With LOCALPROXY, one of the ends
//! is AWS's own program (`support::interop`). A test that fails prints what both ends have printed.

#![cfg(unix)]

mod closed;
mod drain;
mod ends;
mod faults;
mod integrity;
mod many;
mod probes;
mod replaced;
mod restart;
mod secrecy;
mod soak;
mod stall;
mod support;
mod tls;
mod tokens;
mod versions;
