//! The whole program, as its users meet it: the real binary, one file per command.
//!
//! Tests that need root say so by name.

mod access;
mod add;
mod agents;
mod annotate;
mod arguments;
mod artifacts;
mod bases;
mod build;
mod cache_exchange;
mod cancel;
mod cases;
mod completions;
mod config;
mod contexts;
mod crash;
mod damage;
mod determinism;
mod docs;
mod doctor;
mod explain;
mod gc;
mod git;
mod hooks;
mod identity;
mod import;
mod login;
mod logins;
mod malformed;
mod memory;
mod moved;
mod observe;
mod output;
mod outputs;
mod plans;
mod platforms;
mod promotions;
mod pull_through;
mod purge;
mod records;
mod render;
mod repository;
mod rootless;
mod run;
mod run_rights;
mod scrub;
mod secrets;
mod serve;
mod shell;
mod sign_in;
mod signatures;
mod soft_delete;
mod ssh;
mod step_secrets;
mod step_ssh;
mod steps;
mod stored;
mod task;
mod triggers;
mod upload;
mod version;
mod walls;
mod watches;
mod webhooks;

use testkit::Sandbox;

fn sandbox() -> Sandbox {
    Sandbox::new()
}
