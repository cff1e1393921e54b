//! The OpenTunnel operator: a `Tunnel` in Kubernetes becomes a tunnel of AWS IoT Secure Tunneling,
//! and its access tokens come into Secrets.
//!
//! `main` reads [`config`] and wires the parts. [`controller`] watches Tunnels ([`crd`]) and reconciles
//! each in five steps; what is hard is in its pure step `decide`. What all Tunnels share stands beside
//! it: [`aws`] (the gateway, in the words of [`tunnels`]), [`pacer`] (AWS's quotas), [`poller`] (what AWS
//! has), on whose rounds [`orphans`] lives (what no Tunnel owns), and [`leader`] (which of several replicas
//! works). [`telemetry`] is what people and probes see, [`metrics`] what Prometheus does;
//! [`kubernetes`] is the way to the API server.

pub mod aws;
pub mod clock;
pub mod config;
pub mod controller;
pub mod crd;
pub mod kubernetes;
pub mod leader;
pub mod metrics;
pub mod orphans;
pub mod pacer;
pub mod poller;
pub mod telemetry;
pub mod tunnels;
