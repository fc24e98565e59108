//! How this server is configured: file, environment and flags, resolved once.
//!
//! [`Settings::resolve`] reports every error at once, before anything starts. Nothing below
//! this module reads the environment; each part receives its own small struct.

mod fields;
mod resolve;
mod units;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use builder::ImagePolicy;
use container::ExternalRuntime;
use oci::{Compression, RegistryName, RepositoryName};
use remote::Network;
use task::AliasImages;
use url::Url;

pub use resolve::{Problem, SettingsError, Sources};

pub use crate::rates::RateSettings;

/// All settings, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    pub server: ServerSettings,
    pub store: StoreSettings,
    pub build: BuildSettings,
    pub tasks: TaskSettings,
    pub triggers: TriggerSettings,
    pub network: NetworkSettings,
    pub limits: LimitSettings,
    /// Never empty.
    pub registries: BTreeMap<RegistryName, RegistrySettings>,
    pub upstreams: BTreeMap<String, UpstreamSettings>,
    /// By host.
    pub vaults: BTreeMap<String, VaultSettings>,
    /// By address, as tokens have it.
    /// None: nobody does.
    pub sign_in: Option<SignInSettings>,
    pub trusted_issuers: BTreeMap<String, TrustedIssuerSettings>,
    pub kubernetes: KubernetesSettings,
    /// What [`Settings::render`] shows.
    rendered: String,
}

#[derive(Debug, Clone)]
pub struct ServerSettings {
    pub data: PathBuf,
    /// Served in the clear.
    pub listen: Option<SocketAddr>,
    pub tls: Option<TlsSettings>,
    /// Without a `/` at its end.
    pub public_url: Option<String>,
    pub insecure_clear: bool,
    pub anonymous_loopback: bool,
    pub admin: bool,
    /// Never zero.
    pub worker_threads: usize,
    pub shutdown_grace: Duration,
    /// Where tokens for this user's clients are put; from the environment only.
    pub runtime_folder: PathBuf,
}

#[derive(Debug, Clone)]
pub struct TlsSettings {
    pub listen: SocketAddr,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, Clone)]
pub struct StoreSettings {
    pub cache_size_max: u64,
    pub garbage_period: Duration,
    pub garbage_grace: Duration,
    /// None: only when somebody asks.
    pub scrub_period: Option<Duration>,
    /// Bytes a second; 0: no bound.
    pub scrub_rate: u64,
    /// For copies of other registries' images.
    pub copy_keep: Duration,
    pub log_keep: Duration,
    pub run_keep: Duration,
    pub audit_keep: Duration,
}

#[derive(Debug, Clone)]
pub struct BuildSettings {
    pub concurrency: u32,
    pub concurrency_total: u32,
    pub attempts_max: u32,
    pub timeout: Duration,
    pub queue_keep: Duration,
    pub runtime: Option<ExternalRuntime>,
    pub memory: Option<u64>,
    pub pids: Option<u32>,
    pub cpus: Option<f64>,
    /// Bytes that a container may write to disk.
    pub disk: Option<u64>,
    /// Where containers may connect to, as it is written; empty: to all.
    pub egress: Vec<String>,
    /// Images that runs may use.
    pub images: ImagePolicy,
    /// Bytes that containers leave free.
    pub disk_reserve: u64,
    pub user_namespaces: bool,
    pub allow_host_network: bool,
    pub allow_insecure: bool,
    pub allow_addresses: Vec<Network>,
    /// Hosts of the proxies that the process uses; from the environment only.
    pub proxies: BTreeSet<String>,
    /// A file; empty: no host is known.
    pub git_known_hosts: PathBuf,
    /// `None`: the image that `bash` stands for.
    pub shell_image: Option<String>,
    pub cache_mounts_size_max: u64,
    /// Of new layers, in builds that ask for nothing else.
    pub compression: Compression,
}

#[derive(Debug, Clone)]
pub struct TaskSettings {
    /// What stands for the tools that task files name without a registry.
    pub alias_images: AliasImages,
}

#[derive(Debug, Clone)]
pub struct TriggerSettings {
    /// How often repositories are asked for the commits of their branches, none if zero.
    pub poll_period: Duration,
    /// How often other registries are asked for the tags that tasks are built on, none if zero.
    pub base_poll_period: Duration,
    /// How long such a tag has to stay another image until that counts.
    pub base_settle: Duration,
}

#[derive(Debug, Clone)]
pub struct NetworkSettings {
    pub subnet: String,
}

#[derive(Debug, Clone)]
pub struct LimitSettings {
    pub connections_max: usize,
    pub header_timeout: Duration,
    pub body_size_max: u64,
    pub body_stall: Duration,
    pub blob_size_max: u64,
    pub source_size_max: u64,
    pub source_keep: Duration,
    pub source_reuse_keep: Duration,
    pub source_reuse_size_max: u64,
    pub context_size_max: u64,
    pub context_entries_max: usize,
    pub download_size_max: u64,
    pub queue_length_max: u32,
    pub log_size_max: u64,
    pub rates: RateSettings,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistrySettings {
    pub login_server: Option<String>,
    pub aliases: Vec<String>,
    /// Those of `secret_variables` that are set.
    pub secret_variables: BTreeMap<String, Secret>,
    pub secret_folder: Option<PathBuf>,
    pub secret_namespaces: Vec<String>,
    /// Whether its runs may do no more in it than the identity that they name.
    pub runs_by_identity: bool,
}

/// A vault with secrets of runs.
#[derive(Debug, Clone, Default)]
pub struct VaultSettings {
    /// None: those of all registries.
    pub registries: Vec<RegistryName>,
    pub role: Option<String>,
    pub auth_path: String,
    pub namespace: Option<String>,
    pub token_url: Option<Url>,
    pub client_id: Option<String>,
    pub audience: Option<String>,
    pub token_file: Option<PathBuf>,
    /// PEM.
    pub ca: Option<Vec<u8>>,
    pub plain_http: bool,
}

/// An issuer whose identity tokens prove to be accounts.
#[derive(Debug, Clone, Default)]
pub struct TrustedIssuerSettings {
    /// By subject.
    pub accounts: BTreeMap<String, control::AccountName>,
    /// None: this server's address.
    pub audience: Option<String>,
    /// PEM.
    pub ca: Option<Vec<u8>>,
}

/// Where people sign in.
#[derive(Debug, Clone)]
pub struct SignInSettings {
    /// The OpenID Connect provider, as its tokens have it.
    pub issuer: String,
    pub client_id: String,
    /// What of a token is the name of an account.
    pub claim: String,
    pub scopes: Vec<String>,
    /// How long somebody is signed in.
    pub session: Duration,
    /// What accounts are in all registries that are made for whoever signs in; none: none are made.
    pub role: Option<control::Role>,
    /// PEM.
    pub ca: Option<Vec<u8>>,
}

/// The cluster that the server is in.
#[derive(Debug, Clone, Default)]
pub struct KubernetesSettings {
    pub api: Option<String>,
    pub token_file: PathBuf,
    /// PEM.
    pub ca: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Default)]
pub struct UpstreamSettings {
    pub plain_http: bool,
    pub username: Option<String>,
    pub password: Option<Secret>,
    /// Its images are kept below this name, and served from there.
    pub pull_through: Option<RepositoryName>,
    /// Runs may push to it.
    pub push: bool,
    pub tag_keep: Duration,
}

/// Text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

impl Settings {
    /// Defaults, then the file, then the environment, then flags; the later wins.
    pub fn resolve(sources: &Sources) -> Result<Self, SettingsError> {
        resolve::resolve(sources)
    }

    /// The result as a settings file, secrets hidden: what `refit serve --check` prints.
    pub fn render(&self) -> &str {
        &self.rendered
    }

    /// The same for programs.
    pub fn to_json(&self) -> serde_json::Value {
        // What was rendered can be read.
        toml::from_str(&self.rendered).unwrap_or_default()
    }

    /// `refit.example.toml`: every setting with its default and meaning.
    pub fn example() -> String {
        resolve::example()
    }
}
