//! Tests of the operator's real program against a real API server, with AWS emulated.

mod aws_access;
mod costs;
mod crash;
mod crd;
mod deploy;
mod end_of_life;
mod leader;
mod life;
mod main_job;
mod matrix;
mod metrics;
mod neighbours;
mod orphans;
mod outage;
mod pacing;
mod recovery;
mod restore;
mod rights;
mod secrecy;
mod security;
mod shared_secrets;
mod soak;
mod stale;
mod startup;
mod support;
mod unreadable;
