//! The OpenTunnel operator: a `Tunnel` in Kubernetes becomes a tunnel of AWS IoT Secure Tunneling,
//! and its access tokens come into Secrets. docs/architecture.md has a picture.
//!
//! One Tunnel: [`watch`] shows it, [`controller`] is the loop. [`mod@read`] makes types of the object, [`observe`] looks at
//! what else there is ([`facts`]), [`decide`] says the one [`step`] to do next, [`act`] does it, and [`memory`]
//! changes by what the object shows and by what the step came to. [`record`] is what stands on the object, [`status`]
//! and [`event`] how people see it; [`secrets`] is what is in a token Secret, [`whose`] whose a tunnel is.
//!
//! All Tunnels: an [`account`] has the client ([`aws`], in the words of [`tunnels`]), the quotas ([`pacer`]), what AWS
//! has ([`poller`]) and what no Tunnel owns ([`orphans`], [`surplus`]). [`leader`] says which of several replicas works.
//!
//! The process: [`config`] has the flags, [`runtime`] wires, starts and stops. [`telemetry`] is what people and probes
//! see, [`metrics`] what Prometheus does, [`traces`] what a collector of traces does; [`kubernetes`] is the way to the API server, [`crd`] whether it knows Tunnels.

pub mod account;
pub mod act;
pub mod aws;
pub mod clock;
pub mod config;
pub mod context;
pub mod controller;
pub mod crd;
pub mod decide;
pub mod error;
pub mod event;
pub mod facts;
pub mod kubernetes;
pub mod leader;
pub mod memory;
pub mod metrics;
pub mod observe;
pub mod orphans;
pub mod pacer;
pub mod poller;
pub mod read;
pub mod record;
pub mod runtime;
pub mod secrets;
pub mod status;
pub mod step;
pub mod surplus;
pub mod telemetry;
pub mod traces;
pub mod tunnels;
pub mod watch;
pub mod whose;
