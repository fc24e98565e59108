//! One process of Refit: settings, the REST routes, and the wiring of all parts.
//!
//! Start with [`Settings`] and [`App`]: settings become an app that is bound but does
//! nothing, and the app serves until its shutdown signal. [`embedded`] is the same for a
//! command that has no server: it becomes the owner of its data folder, or the client of
//! the owner there is.
//!
//! Invariants:
//! - No rules of its own: handlers translate, `control`, `store` and `registry` decide.
//! - Nothing below [`Settings`] reads the environment.
//! - Only here and in `registry` is HTTP served.

mod settings;

mod access;
mod agent;
mod agent_wire;
mod agents;
mod app;
mod audit;
mod background;
mod commit_states;
mod egress;
mod error;
mod executor;
mod from_api;
mod hooks;
mod http_client;
mod identity;
mod issuer;
mod keys;
mod line_filter;
mod listen;
mod log_artifacts;
mod machine;
mod openapi;
mod owner;
mod presence;
mod promote;
mod rates;
mod registries;
mod routes;
mod run_rights;
mod secrets;
mod sign_in;
mod state;
mod tls;
mod to_api;
mod triggers;
mod trusted;
mod watches;
mod webhooks;

pub use agent::{AgentSettings, agent};
pub use app::{App, Embedded, ServeError, embedded, serve};
pub use remote::ssh_program;
pub use settings::{
    BuildSettings, LimitSettings, NetworkSettings, Problem, RateSettings, RegistrySettings, Secret,
    ServerSettings, Settings, SettingsError, Sources, StoreSettings, TaskSettings, TlsSettings,
    TriggerSettings, UpstreamSettings,
};
pub use store::socket_path;
