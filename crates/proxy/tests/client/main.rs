//! The outer half of the proxy, as its users see it: configuration, tokens, connections, the program.

mod config;
mod connect;
mod directory;
mod link;
mod program;
mod server;
mod tls;
mod tokens;
mod web_proxy;
