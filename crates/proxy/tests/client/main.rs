//! The outer half of the proxy, as its users see it: configuration, tokens, connections, the program.

mod config;
mod directory;
mod tokens;
