//! What the tests stand on. A test makes a [`World`], starts an [`operator::Operator`] in it, applies
//! manifests and waits for what a user would see.

pub mod api_proxy;
pub mod audit;
pub mod aws_proxy;
pub mod connect_proxy;
pub mod control_plane;
pub mod credentials;
pub mod etcd;
pub mod faults;
pub mod log;
pub mod manifests;
pub mod namespace;
pub mod operator;
pub mod outage;
pub mod policy;
pub mod promise;
pub mod sight;
pub mod tap;
pub mod weather;
pub mod world;

pub use world::World;

use std::time::Duration;

/// How long a test waits for what should be there in a moment: a limit for machines under load.
pub const LIMIT: Duration = Duration::from_secs(120);
