//! A whole server over real sockets; only the builder is a fake.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as tests do")]

mod access;
mod agents;
mod content;
mod lifecycle;
mod openapi;
mod rates;
mod roles;
mod runs;
mod secrets;
mod sources;
mod support;
mod tasks;
mod tls;
