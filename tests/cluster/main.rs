//! Tests of the operator's real program against a real API server, with AWS emulated.

mod main_job;
mod support;
