//! Attacks through the operator, each tried for real: docs/security.md lists them.

mod forged_status;
mod manifests;
mod scene;
mod secrets;
mod share;
