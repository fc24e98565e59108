//! Layers of values become [`Settings`]; everything wrong is told at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use builder::{ImageKey, ImagePattern, ImagePolicy};
use container::ExternalRuntime;
use control::{AccountName, BadAccountName};
use oci::{Compression, CompressionFormat, RegistryName, RepositoryName};
use remote::Network;
use task::{AliasImages, BUILT_IN_ACR};

use super::fields::{FOREIGN_VARIABLES, Field, Kind, SECTIONS, Section, nearest, section};

use super::{
    BuildSettings, KubernetesSettings, LimitSettings, NetworkSettings, RateSettings,
    RegistrySettings, Secret, ServerSettings, Settings, SignInSettings, StoreSettings,
    TaskSettings, TlsSettings, TriggerSettings, TrustedIssuerSettings, UpstreamSettings,
    VaultSettings, units,
};

/// A settings file larger than this is a mistake.
const FILE_SIZE_MAX: u64 = 1 << 20;

/// Where settings come from: file, environment and flags, the later wins.
#[derive(Debug, Clone)]
pub struct Sources {
    /// `--config`; it must exist then. Else `REFIT_CONFIG`, else `refit.toml` in the usual
    /// place if there is one.
    pub file: Option<PathBuf>,
    pub environment: Vec<(String, String)>,
    /// `section.key` and value, such as `("server.listen", "127.0.0.1:0")`.
    pub flags: Vec<(String, String)>,
    /// The last part of the data folder, if nothing says where it is.
    pub folder_name: &'static str,
}

impl Default for Sources {
    fn default() -> Self {
        let (environment, flags) = (Vec::new(), Vec::new());
        Self { file: None, environment, flags, folder_name: "refit" }
    }
}

impl Sources {
    /// The process's own environment; the one place that reads it.
    pub fn from_process(file: Option<PathBuf>, flags: Vec<(String, String)>) -> Self {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self { file, environment, flags, ..Self::default() }
    }

    fn variable(&self, name: &str) -> Option<&str> {
        let found = self.environment.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub message: String,
    pub hint: Option<String>,
}

/// All that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct SettingsError {
    pub problems: Vec<Problem>,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let line_end = if index == 0 { "" } else { "\n" };
            write!(f, "{line_end}{}", problem.message)?;
            if let Some(hint) = &problem.hint {
                write!(f, "\nhint: {hint}")?;
            }
        }
        Ok(())
    }
}

pub(super) fn resolve(sources: &Sources) -> Result<Settings, SettingsError> {
    let mut layers = Layers::default();
    if let Some(file) = layers.find_file(sources) {
        layers.read_file(&file);
    }
    layers.read_environment(sources);
    layers.read_flags(&sources.flags);
    let settings = layers.settings(sources);
    match layers.problems.is_empty() {
        true => Ok(settings),
        false => Err(SettingsError { problems: layers.problems }),
    }
}

/// Where a value is: section, name within the section (empty unless it is a named one), key.
type Place = (String, String, String);

#[derive(Debug, Clone)]
struct Value {
    items: Vec<String>,
    /// For messages: `refit.toml`, `REFIT_SERVER_LISTEN`, `--listen`.
    origin: String,
}

#[derive(Default)]
struct Layers {
    values: BTreeMap<Place, Value>,
    problems: Vec<Problem>,
}

impl Layers {
    fn refuse(&mut self, message: String, hint: Option<String>) {
        self.problems.push(Problem { message, hint });
    }

    /// A file that was asked for, or the usual one if it exists.
    fn find_file(&mut self, sources: &Sources) -> Option<PathBuf> {
        let named = sources.variable("REFIT_CONFIG").map(PathBuf::from);
        if let Some(file) = sources.file.clone().or(named) {
            return Some(file);
        }
        let usual = match is_root() {
            true => PathBuf::from("/etc/refit/refit.toml"),
            false => home_folder(sources, "XDG_CONFIG_HOME", ".config")?.join("refit/refit.toml"),
        };
        usual.exists().then_some(usual)
    }

    fn read_file(&mut self, file: &Path) {
        let shown = file.display();
        let text = match read_bounded(file) {
            Ok(text) => text,
            Err(error) => return self.refuse(format!("`{shown}` cannot be read: {error}"), None),
        };
        let table = match text.parse::<toml::Table>() {
            Ok(table) => table,
            Err(error) => {
                let message = format!("`{shown}` is not TOML: {}", error.to_string().trim_end());
                return self.refuse(message, None);
            }
        };
        for (name, value) in table {
            let Some(section) = section(&name) else {
                let near = nearest(&name, SECTIONS.iter().map(|section| section.name));
                let hint = near.map(|near| format!("did you mean `[{near}]`?"));
                self.refuse(format!("`{shown}`: there is no section `[{name}]`"), hint);
                continue;
            };
            self.read_section(&shown.to_string(), section, value);
        }
    }

    fn read_section(&mut self, origin: &str, section: &'static Section, value: toml::Value) {
        let toml::Value::Table(table) = value else {
            let message = format!("`{origin}`: `{}` is a section, not a value", section.name);
            return self.refuse(message, Some(format!("write `[{}]`", section.name)));
        };
        if section.named.is_none() {
            return self.read_fields(origin, section, "", table);
        }
        for (name, value) in table {
            match value {
                toml::Value::Table(fields) => self.read_fields(origin, section, &name, fields),
                _ => {
                    let hint = Some(format!("write `[{}.NAME]`", section.name));
                    let message = format!("`{origin}`: `{}.{name}` is not a section", section.name);
                    self.refuse(message, hint);
                }
            }
        }
    }

    fn read_fields(
        &mut self,
        origin: &str,
        section: &'static Section,
        name: &str,
        fields: toml::Table,
    ) {
        // A named section counts even if it is empty.
        if section.named.is_some() {
            let value = Value { items: Vec::new(), origin: origin.to_owned() };
            self.values.insert((section.name.into(), name.into(), String::new()), value);
        }
        for (key, value) in fields {
            let shown = match name {
                "" => format!("{}.{key}", section.name),
                _ => format!("{}.{name}.{key}", section.name),
            };
            let Some(field) = section.field(&key) else {
                self.refuse_unknown(
                    format!("`{origin}`: there is no setting `{shown}`"),
                    section,
                    &key,
                );
                continue;
            };
            match items(value, field.kind) {
                Some(items) => {
                    let origin = format!("`{origin}`: `{shown}`");
                    self.set(section.name, name, field, Value { items, origin });
                }
                None => self
                    .refuse(format!("`{origin}`: `{shown}` has a value of the wrong type"), None),
            }
        }
    }

    fn refuse_unknown(&mut self, message: String, section: &'static Section, key: &str) {
        let near = nearest(key, section.fields.iter().map(|field| field.key));
        self.refuse(message, near.map(|near| format!("did you mean `{near}`?")));
    }

    fn set(&mut self, section: &str, name: &str, field: &Field, value: Value) {
        self.values.insert((section.into(), name.into(), field.key.into()), value);
    }

    fn read_environment(&mut self, sources: &Sources) {
        if let (Some(data), Some(field)) = (sources.variable("REFIT_DATA"), data_field()) {
            let value = Value { items: vec![data.into()], origin: "`REFIT_DATA`".into() };
            self.set("server", "", field, value);
        }
        for (variable, text) in &sources.environment {
            if FOREIGN_VARIABLES.contains(&variable.as_str()) {
                continue;
            }
            for section in SECTIONS.iter().filter(|section| section.named.is_none()) {
                let prefix = format!("REFIT_{}_", section.name.to_uppercase());
                let Some(key) = variable.strip_prefix(&prefix) else { continue };
                let key = key.to_lowercase();
                let Some(field) = section.field(&key) else {
                    let message = format!("there is no setting for the variable `{variable}`");
                    let near = nearest(&key, section.fields.iter().map(|field| field.key));
                    let hint =
                        near.map(|near| format!("did you mean `{prefix}{}`?", near.to_uppercase()));
                    self.refuse(message, hint);
                    continue;
                };
                let items = match field.kind {
                    Kind::List => text.split(',').map(|item| item.trim().to_owned()).collect(),
                    _ => vec![text.clone()],
                };
                let value = Value { items, origin: format!("`{variable}`") };
                self.set(section.name, "", field, value);
            }
        }
    }

    fn read_flags(&mut self, flags: &[(String, String)]) {
        for (name, text) in flags {
            let (section_name, key) = name.split_once('.').unwrap_or(("", name));
            let found = section(section_name).filter(|section| section.named.is_none());
            match found.and_then(|section| section.field(key)) {
                Some(field) => {
                    let origin = format!("`--{}`", key.replace('_', "-"));
                    self.set(section_name, "", field, Value { items: vec![text.clone()], origin });
                }
                None => self.refuse(format!("there is no setting `{name}`"), None),
            }
        }
    }

    fn settings(&mut self, sources: &Sources) -> Settings {
        let mut rendered = String::new();
        let server = self.server(sources);
        let store = self.store();
        let build = self.build(sources);
        let network = NetworkSettings {
            subnet: self.at("network", "").parsed("subnet", subnet, "10.213.0.0/16".into()),
        };
        let tasks = TaskSettings { alias_images: self.alias_images() };
        let mut at = self.at("triggers", "");
        let triggers = TriggerSettings {
            poll_period: at.duration("poll_period"),
            base_poll_period: at.duration("base_poll_period"),
            base_settle: at.duration("base_settle"),
        };
        let limits = self.limits(is_local(&server));
        let registries = self.registries(sources);
        let upstreams = self.upstreams();
        let vaults = self.vaults(&registries);
        let kubernetes = self.kubernetes();
        let trusted_issuers = self.trusted_issuers(server.public_url.is_some());
        let sign_in = self.sign_in();
        self.render(&server.data, &mut rendered);
        Settings {
            server,
            store,
            build,
            tasks,
            triggers,
            network,
            limits,
            registries,
            upstreams,
            vaults,
            kubernetes,
            trusted_issuers,
            sign_in,
            rendered,
        }
    }

    fn server(&mut self, sources: &Sources) -> ServerSettings {
        let mut at = self.at("server", "");
        let data = at.path("data");
        let listen = at.address("listen");
        let tls_listen = at.address("tls_listen");
        let certificate = at.path("tls_cert");
        let key = at.path("tls_key");
        let mut server = ServerSettings {
            data: PathBuf::new(),
            listen,
            tls: None,
            public_url: at.optional("public_url", public_url),
            insecure_clear: at.flag("insecure_clear"),
            anonymous_loopback: at.flag("anonymous_loopback"),
            admin: at.flag("admin"),
            worker_threads: at.number("worker_threads", 0, 1024) as usize,
            shutdown_grace: at.duration("shutdown_grace"),
            runtime_folder: runtime_folder(sources),
        };
        if server.worker_threads == 0 {
            server.worker_threads =
                std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        }
        match (tls_listen, certificate, key) {
            (None, ..) => (),
            (Some(listen), Some(certificate), Some(key)) => {
                server.tls = Some(TlsSettings { listen, certificate, key });
            }
            (Some(_), ..) => self.refuse(
                "`server.tls_listen` needs `server.tls_cert` and `server.tls_key`".into(),
                None,
            ),
        }
        match data.or_else(|| default_data(sources)) {
            // Containers are told of it, which have another working directory.
            Some(data) => server.data = std::path::absolute(&data).unwrap_or(data),
            None => self.refuse(
                "there is no data folder: neither `XDG_DATA_HOME` nor `HOME` is set".into(),
                Some("give `--data DIR` or set `REFIT_DATA`".into()),
            ),
        }
        self.check_exposure(&server);
        server
    }

    /// Beyond this machine: never without credentials, and in the clear only when told so.
    fn check_exposure(&mut self, server: &ServerSettings) {
        let foreign = |address: &SocketAddr| !address.ip().is_loopback();
        if let Some(listen) = server.listen.filter(foreign)
            && !server.insecure_clear
        {
            self.refuse(
                format!("`server.listen` `{listen}` is no loopback address, and passwords would cross the network in the clear"),
                Some("use `server.tls_listen` with a certificate, or set `server.insecure_clear = true` behind a proxy that adds TLS".into()),
            );
        }
        let exposed = server.listen.is_some_and(|listen| foreign(&listen))
            || server.tls.as_ref().is_some_and(|tls| foreign(&tls.listen));
        if exposed && !server.admin {
            self.refuse(
                "the server would be reachable from other machines, and no credentials are configured".into(),
                Some("set `server.admin = true`".into()),
            );
        }
    }

    fn store(&mut self) -> StoreSettings {
        let mut at = self.at("store", "");
        StoreSettings {
            cache_size_max: at.size("cache_size_max"),
            garbage_period: at.duration("garbage_period"),
            garbage_grace: at.duration("garbage_grace"),
            scrub_period: Some(at.duration("scrub_period")).filter(|period| !period.is_zero()),
            scrub_rate: at.size("scrub_rate"),
            copy_keep: at.duration("copy_keep"),
            log_keep: at.duration("log_keep"),
            run_keep: at.duration("run_keep"),
            audit_keep: at.duration("audit_keep"),
        }
    }

    fn alias_images(&mut self) -> AliasImages {
        let mut at = self.at("tasks", "");
        let mut image =
            |key: &str, otherwise: &str| at.parsed(key, image_name, otherwise.to_owned());
        AliasImages {
            acr: image("acr_image", BUILT_IN_ACR),
            az: image("az_image", ""),
            bash: image("bash_image", ""),
            curl: image("curl_image", ""),
            cssc: image("cssc_image", ""),
        }
    }

    fn build(&mut self, sources: &Sources) -> BuildSettings {
        let images = self.image_policy();
        let mut at = self.at("build", "");
        BuildSettings {
            concurrency: at.number("concurrency", 1, 1000),
            concurrency_total: at.number("concurrency_total", 1, 1000),
            attempts_max: at.number("attempts_max", 1, 100),
            timeout: at.parsed("timeout", run_timeout, Duration::from_secs(3600)),
            queue_keep: at.duration("queue_keep"),
            runtime: at.runtime(),
            memory: at.optional("memory", units::size),
            pids: Some(at.number("pids", 0, u32::MAX)).filter(|pids| *pids > 0),
            cpus: at.optional("cpus", cpus),
            egress: at.egress(),
            images,
            disk: at.optional("disk", units::size),
            disk_reserve: at.size("disk_reserve"),
            user_namespaces: at.flag("user_namespaces"),
            allow_host_network: at.flag("allow_host_network"),
            allow_insecure: at.flag("allow_insecure"),
            allow_addresses: at.list("allow_addresses", network),
            proxies: proxies(sources),
            git_known_hosts: at.parsed("git_known_hosts", known_hosts, PathBuf::new()),
            shell_image: at.optional("shell_image", image_name),
            cache_mounts_size_max: at.size("cache_mounts_size_max"),
            compression: at.compression(),
        }
    }

    fn image_policy(&mut self) -> ImagePolicy {
        let names = self.names("image_key");
        let mut keys = BTreeMap::new();
        for name in &names {
            let mut at = self.at("image_key", name);
            let problems = at.layers.problems.len();
            match at.optional("file", image_key) {
                Some(key) => drop(keys.insert(name.clone(), key)),
                // A file that is wrong has been told.
                None if self.problems.len() > problems => (),
                None => self.refuse(format!("`image_key.{name}.file` is empty"), None),
            }
            let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            if name.is_empty() || !name.bytes().all(is_fine) {
                let message = format!("`{name}` cannot name an `image_key`");
                self.refuse(message, Some("names have letters, digits, `-` and `_`".into()));
            }
        }
        let pattern = |text: &str| {
            let pattern: ImagePattern = text.parse()?;
            match pattern.signer() {
                Some(signer) if !names.iter().any(|name| name == signer) => {
                    Err(format!("`{text}` names a key, and there is no `[image_key.{signer}]`"))
                }
                _ => Ok(pattern),
            }
        };
        ImagePolicy::new(self.at("build", "").list("images", pattern), keys)
    }

    /// A server that only this machine reaches does not keep its builds from asking.
    fn limits(&mut self, is_local: bool) -> LimitSettings {
        let mut at = self.at("limits", "");
        LimitSettings {
            connections_max: at.number("connections_max", 1, 1_000_000) as usize,
            header_timeout: at.duration("header_timeout"),
            body_size_max: at.size("body_size_max"),
            body_stall: at.duration("body_stall"),
            blob_size_max: at.size("blob_size_max"),
            source_size_max: at.size("source_size_max"),
            source_keep: at.duration("source_keep"),
            source_reuse_keep: at.duration("source_reuse_keep"),
            source_reuse_size_max: at.size("source_reuse_size_max"),
            context_size_max: at.size("context_size_max"),
            context_entries_max: at.number("context_entries_max", 1, 100_000_000) as usize,
            download_size_max: at.size("download_size_max"),
            queue_length_max: at.number("queue_length_max", 1, 1_000_000),
            log_size_max: at.size("log_size_max"),
            rates: RateSettings {
                read: at.rate("read_rate", 10_000, is_local),
                write: at.rate("write_rate", 2_000, is_local),
                delete: at.rate("delete_rate", 2_000, is_local),
                referrers: at.rate("referrers_rate", 1_000, is_local),
                login: at.rate("login_rate", 10_000, is_local),
                guess: Some(at.number("guess_rate", 0, RATE_MAX)).filter(|rate| *rate > 0),
            },
        }
    }

    fn registries(&mut self, sources: &Sources) -> BTreeMap<RegistryName, RegistrySettings> {
        let mut registries = BTreeMap::new();
        for name in self.names("registry") {
            let parsed = name.parse::<RegistryName>();
            let mut at = self.at("registry", &name);
            let settings = RegistrySettings {
                login_server: at.optional("login_server", host),
                aliases: at.list("aliases", host),
                secret_variables: at
                    .list("secret_variables", variable_name)
                    .into_iter()
                    .filter_map(|name| Some((name.clone(), Secret::new(sources.variable(&name)?))))
                    .collect(),
                secret_folder: at.optional("secret_folder", absolute_path),
                secret_namespaces: at.list("secret_namespaces", cluster_name),
                runs_by_identity: at.flag("runs_by_identity"),
            };
            match parsed {
                Ok(name) => drop(registries.insert(name, settings)),
                Err(error) => self.refuse(error.to_string(), error.hint()),
            }
        }
        if registries.is_empty() {
            registries.insert(RegistryName::default(), RegistrySettings::default());
        }
        self.check_own_names(&registries);
        registries
    }

    /// A host name selects one registry.
    fn check_own_names(&mut self, registries: &BTreeMap<RegistryName, RegistrySettings>) {
        let mut owners: BTreeMap<&str, &RegistryName> = BTreeMap::new();
        for (name, settings) in registries {
            for host in settings.login_server.iter().chain(&settings.aliases) {
                if let Some(other) = owners.insert(host, name).filter(|other| *other != name) {
                    let message =
                        format!("`{host}` is a name of the registries `{other}` and `{name}`");
                    self.refuse(message, None);
                }
            }
        }
    }

    fn upstreams(&mut self) -> BTreeMap<String, UpstreamSettings> {
        let mut upstreams = BTreeMap::new();
        for name in self.names("upstream") {
            let mut at = self.at("upstream", &name);
            let plain_http = at.flag("plain_http");
            let username = at.optional("username", |text| Ok(text.to_owned()));
            let inline = at.optional("password", |text| Ok(Secret::new(text)));
            let from_file = at.optional("password_file", password_file);
            let password = inline.or(from_file);
            let repository =
                |text: &str| text.parse::<RepositoryName>().map_err(|error| error.to_string());
            let pull_through = at.optional("pull_through", repository);
            let settings = UpstreamSettings {
                plain_http,
                username,
                password,
                pull_through,
                push: at.flag("push"),
                tag_keep: at.duration("tag_keep"),
            };
            match host(&name) {
                Ok(host) => drop(upstreams.insert(host, settings)),
                Err(message) => self.refuse(format!("`[upstream]`: {message}"), None),
            }
        }
        self.check_pull_through(&upstreams);
        upstreams
    }

    fn vaults(
        &mut self,
        registries: &BTreeMap<RegistryName, RegistrySettings>,
    ) -> BTreeMap<String, VaultSettings> {
        let mut vaults = BTreeMap::new();
        let own_text = |text: &str| Ok(text.to_owned());
        for name in self.names("vault") {
            let mut at = self.at("vault", &name);
            let known = |text: &str| {
                let name: RegistryName = text.parse().map_err(|_| unknown_registry(text))?;
                registries.contains_key(&name).then_some(name).ok_or_else(|| unknown_registry(text))
            };
            let settings = VaultSettings {
                registries: at.list("registries", known),
                role: at.optional("role", own_text),
                auth_path: at.optional("auth_path", vault_path).unwrap_or_default(),
                namespace: at.optional("namespace", own_text),
                token_url: at.optional("token_url", token_url),
                client_id: at.optional("client_id", own_text),
                audience: at.optional("audience", own_text),
                token_file: at.optional("token_file", absolute_path),
                ca: at.optional("ca_file", certificates),
                plain_http: at.flag("plain_http"),
            };
            if settings.registries.is_empty() && registries.len() > 1 {
                let message = format!("`vault.\"{name}\".registries` is empty");
                let hint = "this server has several registries: say whose runs may use the vault";
                self.refuse(message, Some(hint.into()));
            }
            match host(&name) {
                Ok(host) if vaults.contains_key(&host) => {
                    self.refuse(format!("there are two vaults `{host}`"), None);
                }
                Ok(host) => drop(vaults.insert(host, settings)),
                Err(error) => self.refuse(error, None),
            }
        }
        vaults
    }

    fn trusted_issuers(&mut self, has_address: bool) -> BTreeMap<String, TrustedIssuerSettings> {
        let mut issuers = BTreeMap::new();
        for name in self.names("trusted_issuer") {
            let mut at = self.at("trusted_issuer", &name);
            let listed = at.list("accounts", subject_of_account);
            let count = listed.len();
            let settings = TrustedIssuerSettings {
                accounts: listed.into_iter().collect(),
                audience: at.optional("audience", |text| Ok(text.to_owned())),
                ca: at.optional("ca_file", certificates),
            };
            if settings.accounts.len() < count {
                let message = format!("`trusted_issuer.\"{name}\".accounts` has a subject twice");
                self.refuse(message, None);
            }
            if settings.audience.is_none() && !has_address {
                let message = format!("`trusted_issuer.\"{name}\".audience` is empty");
                let hint = "say whom its tokens are for, or set `server.public_url`";
                self.refuse(message, Some(hint.into()));
            }
            // As tokens have it, to the letter.
            match public_url(&name) {
                Ok(_) => drop(issuers.insert(name, settings)),
                Err(error) => self.refuse(error, None),
            }
        }
        issuers
    }

    fn sign_in(&mut self) -> Option<SignInSettings> {
        let mut at = self.at("sign_in", "");
        let issuer = at.optional("issuer", public_url);
        let client_id = at.optional("client_id", |text| Ok(text.to_owned()));
        let settings = SignInSettings {
            issuer: issuer.clone().unwrap_or_default(),
            client_id: client_id.clone().unwrap_or_default(),
            claim: at.parsed("claim", |text| Ok(text.to_owned()), String::new()),
            scopes: at.parsed(
                "scopes",
                |text| Ok(text.split_whitespace().map(str::to_owned).collect()),
                Vec::new(),
            ),
            session: at.duration("session"),
            role: at.optional("role", |text| {
                text.parse().map_err(|error: control::BadRole| error.to_string())
            }),
            ca: at.optional("ca_file", certificates),
        };
        if issuer.is_some() && client_id.is_none() {
            let message = "`sign_in.client_id` is empty".to_owned();
            self.refuse(message, Some("the provider gives one to each program".into()));
        }
        issuer.map(|_| settings)
    }

    fn kubernetes(&mut self) -> KubernetesSettings {
        let mut at = self.at("kubernetes", "");
        KubernetesSettings {
            api: at.optional("api", public_url),
            token_file: at.optional("token_file", absolute_path).unwrap_or_default(),
            ca: at.optional("ca_file", certificates),
        }
    }

    /// A repository is a copy of one other.
    fn check_pull_through(&mut self, upstreams: &BTreeMap<String, UpstreamSettings>) {
        let mut names: BTreeMap<&str, &str> = BTreeMap::new();
        let own =
            upstreams.iter().filter_map(|(host, own)| Some((host, own.pull_through.as_ref()?)));
        for (host, prefix) in own {
            let below = |name: &str, other: &str| {
                name == other || name.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'))
            };
            let prefix = prefix.as_str();
            let other = names.iter().find(|(name, _)| below(name, prefix) || below(prefix, name));
            if let Some((name, other)) = other {
                let message = format!(
                    "`upstream.{host}.pull_through`: `{prefix}` and `{name}` of `{other}` overlap"
                );
                self.refuse(message, None);
            }
            names.insert(prefix, host);
        }
    }

    fn names(&self, section: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .values
            .keys()
            .filter(|(of, ..)| of == section)
            .map(|(_, name, _)| name.clone())
            .collect();
        names.dedup();
        names
    }

    fn at<'a>(&'a mut self, section: &'static str, name: &str) -> At<'a> {
        At { layers: self, section, name: name.to_owned() }
    }

    fn render(&self, data: &Path, out: &mut String) {
        for section in SECTIONS {
            let names = match section.named {
                None => vec![String::new()],
                Some(_) => self.names(section.name),
            };
            for name in names {
                let title = match (name.as_str(), name.contains('.') || name.contains(':')) {
                    ("", _) => section.name.to_owned(),
                    (name, true) => format!("{}.\"{name}\"", section.name),
                    (name, false) => format!("{}.{name}", section.name),
                };
                let line_end = if out.is_empty() { "" } else { "\n" };
                let _ = writeln!(out, "{line_end}[{title}]");
                for field in section.fields {
                    let place = (section.name.into(), name.clone(), field.key.into());
                    let value = self.values.get(&place);
                    let shown = match (section.name, field.key) {
                        ("server", "data") => quoted(&data.display().to_string()),
                        _ => shown(field, value),
                    };
                    let _ = writeln!(out, "{} = {shown}", field.key);
                }
            }
        }
    }
}

/// Typed reads from one section. A wrong value is noted and replaced by the default, so
/// that all mistakes are found in one go.
struct At<'a> {
    layers: &'a mut Layers,
    section: &'static str,
    name: String,
}

impl At<'_> {
    fn field(&self, key: &str) -> &'static Field {
        section(self.section)
            .and_then(|section| section.field(key))
            .expect("every setting that is read is in the list")
    }

    fn value(&self, key: &str) -> Option<Value> {
        let place = (self.section.to_owned(), self.name.clone(), key.to_owned());
        self.layers.values.get(&place).cloned()
    }

    /// The value if it is set, not empty and right.
    /// Requests a minute; the figures are those of the managed service (registry.md section 8).
    fn rate(&mut self, key: &str, default: u32, is_local: bool) -> Option<u32> {
        match self.optional(key, rate) {
            Some(rate) => Some(rate).filter(|rate| *rate > 0),
            None => Some(default).filter(|_| !is_local),
        }
    }

    fn optional<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let given = self.value(key);
        let text = match &given {
            Some(value) => value.items.first().cloned().unwrap_or_default(),
            None => self.field(key).default.to_owned(),
        };
        if text.trim().is_empty() {
            return None;
        }
        match parse(text.trim()) {
            Ok(value) => Some(value),
            Err(message) => {
                let origin = given.map_or_else(|| format!("`{key}`"), |value| value.origin);
                self.layers.refuse(format!("{origin}: {message}"), None);
                None
            }
        }
    }

    fn parsed<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
        otherwise: T,
    ) -> T {
        self.optional(key, parse).unwrap_or(otherwise)
    }

    fn size(&mut self, key: &str) -> u64 {
        self.parsed(key, units::size, 0)
    }

    fn duration(&mut self, key: &str) -> Duration {
        self.parsed(key, units::duration, Duration::ZERO)
    }

    fn flag(&mut self, key: &str) -> bool {
        self.parsed(key, boolean, false)
    }

    fn number(&mut self, key: &str, min: u32, max: u32) -> u32 {
        let parse = |text: &str| match text.parse::<u32>() {
            Ok(number) if (min..=max).contains(&number) => Ok(number),
            _ => Err(format!("`{text}` is not a number from {min} to {max}")),
        };
        self.parsed(key, parse, min)
    }

    fn runtime(&mut self) -> Option<ExternalRuntime> {
        let arguments = self.list("runtime_arguments", |text| Ok(text.to_owned()));
        self.path("runtime").map(|program| ExternalRuntime { program, arguments })
    }

    /// Checked as a whole: some words stand alone.
    fn egress(&mut self) -> Vec<String> {
        let list = self.list("egress", |text| Ok(text.to_owned()));
        let Err(message) = crate::egress::parse(&list, None) else { return list };
        let origin = self.value("egress").map(|value| value.origin.to_string());
        self.layers.refuse(format!("{}: {message}", origin.unwrap_or_default()), None);
        Vec::new()
    }

    fn compression(&mut self) -> Compression {
        let format = self.optional("compression", |text| {
            text.parse::<CompressionFormat>().map_err(|error| error.to_string())
        });
        let new = |level| Compression::new(format, level, Compression::default());
        let level = self.optional("compression_level", |text| {
            let level = text.parse().map_err(|_| format!("`{text}` is not a level"))?;
            new(Some(level)).map_err(|error| error.to_string())?;
            Ok(level)
        });
        new(level).unwrap_or_default()
    }

    fn path(&mut self, key: &str) -> Option<PathBuf> {
        self.optional(key, |text| Ok(PathBuf::from(text)))
    }

    fn address(&mut self, key: &str) -> Option<SocketAddr> {
        self.optional(key, |text| {
            // `localhost:5000` is no address to bind, but everybody writes it.
            let text = text.replace("localhost:", "127.0.0.1:");
            SocketAddr::from_str(&text)
                .map_err(|_| format!("`{text}` is not an address such as `127.0.0.1:5000`"))
        })
    }

    fn list<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let mut list = Vec::new();
        for item in &value.items {
            match parse(item) {
                Ok(item) => list.push(item),
                Err(message) => self.layers.refuse(format!("{}: {message}", value.origin), None),
            }
        }
        list
    }
}

fn network(text: &str) -> Result<Network, String> {
    text.parse().map_err(|error| format!("`{text}` is {error}"))
}

/// The hosts of the variables that name proxies.
fn proxies(sources: &Sources) -> BTreeSet<String> {
    let variables = ["http_proxy", "https_proxy", "all_proxy"];
    let all = variables.iter().flat_map(|name| [(*name).to_owned(), name.to_uppercase()]);
    let host = |name: String| {
        let text = sources.variable(&name)?;
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        Some(url::Url::parse(&url).ok()?.host_str()?.to_ascii_lowercase())
    };
    all.filter_map(host).collect()
}

/// Others compare it as a text, so it has one form.
fn public_url(text: &str) -> Result<String, String> {
    let bad = || format!("`{text}` is not an address such as `https://refit.example.com`");
    let url = url::Url::parse(text).map_err(|_| bad())?;
    let has_more = url.query().is_some()
        || url.fragment().is_some()
        || !url.username().is_empty()
        || url.password().is_some();
    let is_loopback = url.host_str().is_some_and(remote::is_loopback);
    match url.scheme() == "https" || (url.scheme() == "http" && is_loopback) {
        true if !has_more => Ok(text.trim_end_matches('/').to_owned()),
        _ => Err(bad()),
    }
}

fn unknown_registry(text: &str) -> String {
    format!("this server has no registry `{text}`")
}

/// Where secrets are sent: never in the clear, unless to this machine.
fn token_url(text: &str) -> Result<url::Url, String> {
    let bad = || format!("`{text}` is not an address such as `https://login.example.com/token`");
    let url: url::Url = text.parse().map_err(|_| bad())?;
    let is_loopback = url.host_str().is_some_and(remote::is_loopback);
    let is_safe = url.scheme() == "https" || (url.scheme() == "http" && is_loopback);
    let has_user = !url.username().is_empty() || url.password().is_some();
    if is_safe && !has_user { Ok(url) } else { Err(bad()) }
}

fn certificates(text: &str) -> Result<Vec<u8>, String> {
    let read = read_bounded(Path::new(text));
    read.map(String::into_bytes).map_err(|error| format!("`{text}` cannot be read: {error}"))
}

fn image_key(text: &str) -> Result<ImageKey, String> {
    let file = read_bounded(Path::new(text));
    let file = file.map_err(|error| format!("`{text}` cannot be read: {error}"))?;
    file.parse().map_err(|reason| format!("`{text}` {reason}"))
}

fn subject_of_account(text: &str) -> Result<(String, AccountName), String> {
    let bad = || format!("`{text}` is not of the form `SUBJECT=ACCOUNT`");
    let (subject, account) = text.rsplit_once('=').ok_or_else(bad)?;
    let account = account.trim().parse().map_err(|error: BadAccountName| error.to_string())?;
    match subject.trim() {
        "" => Err(bad()),
        subject => Ok((subject.to_owned(), account)),
    }
}

fn cluster_name(text: &str) -> Result<String, String> {
    let is_fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match (1..=63).contains(&text.len()) && text.bytes().all(is_fine) {
        true => Ok(text.to_owned()),
        false => Err(format!("`{text}` is not the name of a namespace")),
    }
}

fn vault_path(text: &str) -> Result<String, String> {
    let path = text.trim_matches('/');
    let is_fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_name = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(is_fine);
    match path.split('/').all(is_name) {
        true => Ok(path.to_owned()),
        false => Err(format!("`{text}` is not a path of names")),
    }
}

fn variable_name(text: &str) -> Result<String, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    match !text.is_empty() && text.chars().all(is_name) {
        true => Ok(text.to_owned()),
        false => Err(format!("`{text}` is not the name of a variable")),
    }
}

fn absolute_path(text: &str) -> Result<PathBuf, String> {
    match text.starts_with('/') {
        true => Ok(PathBuf::from(text)),
        false => Err(format!("`{text}` is not a path from `/` on")),
    }
}

/// It becomes an option of `ssh`, in quotes.
fn known_hosts(text: &str) -> Result<PathBuf, String> {
    match text.starts_with('/') && !text.contains(|c: char| c.is_control() || "\"\\".contains(c)) {
        true => Ok(PathBuf::from(text)),
        false => Err(format!("`{text}` is not the path of a file, from `/` on")),
    }
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err(format!("`{text}` is neither `true` nor `false`")),
    }
}

fn cpus(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(cpus) if cpus.is_finite() && cpus >= 0.01 => Ok(cpus),
        _ => Err(format!("`{text}` is not a number of processors such as `1.5`")),
    }
}

fn image_name(text: &str) -> Result<String, String> {
    match text.parse::<oci::Reference>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Bounds of runs.md section 1.2.
fn run_timeout(text: &str) -> Result<Duration, String> {
    let timeout = units::duration(text)?;
    match (300..=28_800).contains(&timeout.as_secs()) {
        true => Ok(timeout),
        false => Err(format!("`{text}` is not between `5m` and `8h`")),
    }
}

fn subnet(text: &str) -> Result<String, String> {
    let refuse = || format!("`{text}` is not an IPv4 range such as `10.213.0.0/16`");
    let (address, bits) = text.split_once('/').ok_or_else(refuse)?;
    let valid = address.parse::<std::net::Ipv4Addr>().is_ok()
        && bits.parse::<u8>().is_ok_and(|bits| (8..=30).contains(&bits));
    if valid { Ok(text.to_owned()) } else { Err(refuse()) }
}

/// `HOST[:PORT]`, in lower case.
fn host(text: &str) -> Result<String, String> {
    let refuse = || format!("`{text}` is not a host name with an optional port");
    let name = match text.rsplit_once(':') {
        Some((name, port)) => {
            port.parse::<u16>().map_err(|_| refuse())?;
            name
        }
        None => text,
    };
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    match !name.is_empty() && text.len() <= 255 && name.bytes().all(legal) {
        true => Ok(text.to_lowercase()),
        false => Err(refuse()),
    }
}

fn password_file(text: &str) -> Result<Secret, String> {
    match read_bounded(Path::new(text)) {
        Ok(password) => Ok(Secret::new(password.trim_end_matches(['\r', '\n']))),
        Err(error) => Err(format!("`{text}` cannot be read: {error}")),
    }
}

fn read_bounded(file: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(file)?.take(FILE_SIZE_MAX + 1).read_to_string(&mut text)?;
    match text.len() as u64 > FILE_SIZE_MAX {
        true => Err(std::io::Error::other("it is larger than 1 MiB")),
        false => Ok(text),
    }
}

/// A TOML value as text, if its type fits.
fn items(value: toml::Value, kind: Kind) -> Option<Vec<String>> {
    let scalar = |value: toml::Value| match value {
        toml::Value::String(text) => Some(text),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        _ => None,
    };
    match (value, kind) {
        (toml::Value::Array(values), Kind::List) => values.into_iter().map(scalar).collect(),
        (toml::Value::Array(_), _) | (_, Kind::List) => None,
        (value, _) => Some(vec![scalar(value)?]),
    }
}

fn data_field() -> Option<&'static Field> {
    section("server")?.field("data")
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn default_data(sources: &Sources) -> Option<PathBuf> {
    match is_root() {
        true => Some(Path::new("/var/lib").join(sources.folder_name)),
        false => {
            Some(home_folder(sources, "XDG_DATA_HOME", ".local/share")?.join(sources.folder_name))
        }
    }
}

fn home_folder(sources: &Sources, variable: &str, below_home: &str) -> Option<PathBuf> {
    let own = sources.variable(variable).map(PathBuf::from);
    own.or_else(|| Some(PathBuf::from(sources.variable("HOME")?).join(below_home)))
}

/// Where this user's clients look for tokens: `$XDG_RUNTIME_DIR/refit`, else `/run/refit`
/// as root, else a folder of the user's own below `/tmp`.
fn runtime_folder(sources: &Sources) -> PathBuf {
    match sources.variable("XDG_RUNTIME_DIR") {
        Some(folder) => PathBuf::from(folder).join("refit"),
        None if is_root() => PathBuf::from("/run/refit"),
        None => PathBuf::from(format!("/tmp/refit-{}", rustix::process::geteuid().as_raw())),
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn shown(field: &Field, value: Option<&Value>) -> String {
    let items = match value {
        Some(value) => value.items.clone(),
        None if field.default.is_empty() => Vec::new(),
        None => vec![field.default.to_owned()],
    };
    let text = items.first().cloned().unwrap_or_default();
    match field.kind {
        Kind::Text => quoted(&text),
        Kind::Secret if text.is_empty() => quoted(""),
        Kind::Secret => quoted("(hidden)"),
        Kind::Bare => text,
        Kind::List => {
            let items: Vec<String> = items.iter().map(|item| quoted(item)).collect();
            format!("[{}]", items.join(", "))
        }
    }
}

pub(super) fn example() -> String {
    let mut out = String::from(
        "# Every setting of `refit serve`, with its default. Variables are named after them:\n\
         # `REFIT_SERVER_LISTEN` is `listen` in `[server]`. Sizes have units such as `25MiB`,\n\
         # durations such as `30s`, `10m` or `30d`.\n",
    );
    for section in SECTIONS {
        let comment = if section.named.is_some() { "# " } else { "" };
        let title = match section.named {
            Some(name) => format!("{}.{name}", section.name),
            None => section.name.to_owned(),
        };
        let _ = writeln!(out, "\n# {}\n{comment}[{title}]", section.about);
        for field in section.fields {
            let _ =
                writeln!(out, "# {}\n{comment}{} = {}", field.about, field.key, shown(field, None));
        }
    }
    out
}

const RATE_MAX: u32 = 1_000_000;

fn rate(text: &str) -> Result<u32, String> {
    let rate = text.parse().ok().filter(|rate| *rate <= RATE_MAX);
    rate.ok_or_else(|| format!("`{text}` is no number of requests, of at most {RATE_MAX}"))
}

/// Whether only this machine reaches a server.
fn is_local(server: &ServerSettings) -> bool {
    let tls = server.tls.as_ref().map(|tls| tls.listen);
    server.listen.into_iter().chain(tls).all(|address| address.ip().is_loopback())
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect, expect_file};

    use super::*;

    fn sources(environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Sources {
        let owned = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<Vec<_>>()
        };
        let mut environment = owned(environment);
        environment.push(("HOME".into(), "/home/someone".into()));
        Sources { environment, flags: owned(flags), ..Sources::default() }
    }

    /// Resolves a file's text and shows what is wrong with it.
    #[track_caller]
    fn check_refused(file: &str, mut sources: Sources, expected: Expect) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("refit.toml");
        std::fs::write(&path, file).unwrap();
        sources.file = Some(path.clone());
        let error = Settings::resolve(&sources).unwrap_err().to_string();
        expected.assert_eq(&error.replace(&path.display().to_string(), "refit.toml"));
    }

    fn resolved(file: &str, mut sources: Sources) -> Settings {
        let folder = tempfile::tempdir().unwrap();
        sources.file = Some(folder.path().join("refit.toml"));
        std::fs::write(folder.path().join("refit.toml"), file).unwrap();
        Settings::resolve(&sources).unwrap()
    }

    #[test]
    fn proxies_are_those_of_the_environment() {
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let environment = vec![
            variable("https_proxy", "http://me:secret@Proxy.example:3128/"),
            variable("ALL_PROXY", "10.0.0.1:3128"),
            variable("HTTP_PROXY", ""),
            variable("no_proxy", "other.example"),
        ];
        let sources = Sources { environment, ..Sources::default() };
        let found: Vec<_> = proxies(&sources).into_iter().collect();
        assert_eq!(found, ["10.0.0.1", "proxy.example"]);
        let refused = network("localhost").unwrap_err();
        assert!(refused.starts_with("`localhost` is neither an IP address"), "{refused}");
    }

    #[test]
    fn the_example_file_holds_every_default() {
        expect_file!["../../../../refit.example.toml"].assert_eq(&Settings::example());
        let data = [("server.data", "/data")];
        let from_example = resolved(&Settings::example(), sources(&[], &data));
        let from_nothing = resolved("", sources(&[], &data));
        assert_eq!(from_example.render(), from_nothing.render());
        assert_eq!(format!("{:?}", from_example.limits), format!("{:?}", from_nothing.limits));
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let file = "[build]\nconcurrency = 3\nattempts_max = 4\ntimeout = \"10m\"";
        let settings = resolved(
            file,
            sources(
                &[("REFIT_BUILD_CONCURRENCY", "5"), ("REFIT_BUILD_ATTEMPTS_MAX", "6")],
                &[("build.concurrency", "7")],
            ),
        );
        assert_eq!(settings.build.concurrency, 7);
        assert_eq!(settings.build.attempts_max, 6);
        assert_eq!(settings.build.timeout, Duration::from_secs(600));
        assert_eq!(settings.limits.source_size_max, 8 << 30);
    }

    #[test]
    fn the_variables_of_the_client_are_not_settings() {
        let environment = [
            ("REFIT_SERVER", "http://localhost:5000"),
            ("REFIT_DATA", "/data"),
            ("REFIT_TOKEN", "t"),
        ];
        let settings = Settings::resolve(&sources(&environment, &[])).unwrap();
        assert_eq!(settings.server.data, PathBuf::from("/data"));
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        check_refused(
            r#"
                [sever]
                [server]
                lisen = "127.0.0.1:1"
                listen = "5000"
                insecure_clear = "maybe"
                tls_listen = "127.0.0.1:5001"
                [limits]
                source_size_max = "8 gigs"
                connections_max = 0
                [build]
                timeout = "1m"
                compression = "zstd"
                compression_level = 23
                [registry.no]
                [registry.first]
                aliases = ["same.example.com"]
                [registry.second]
                login_server = "same.example.com"
            "#,
            sources(&[("REFIT_BUILD_CONCURENCY", "1")], &[]),
            expect![[r#"
                `refit.toml`: there is no setting `server.lisen`
                hint: did you mean `listen`?
                `refit.toml`: there is no section `[sever]`
                hint: did you mean `[server]`?
                there is no setting for the variable `REFIT_BUILD_CONCURENCY`
                hint: did you mean `REFIT_BUILD_CONCURRENCY`?
                `refit.toml`: `server.listen`: `5000` is not an address such as `127.0.0.1:5000`
                `refit.toml`: `server.insecure_clear`: `maybe` is neither `true` nor `false`
                `server.tls_listen` needs `server.tls_cert` and `server.tls_key`
                `refit.toml`: `build.timeout`: `1m` is not between `5m` and `8h`
                `refit.toml`: `build.compression_level`: `23` is not a level of zstd, which are 1 to 22
                `refit.toml`: `limits.connections_max`: `0` is not a number from 1 to 1000000
                `refit.toml`: `limits.source_size_max`: `8 gigs` is not a size such as `512KiB`, `25MiB` or `8GiB`
                registry name `no` must be 5 to 50 lower-case letters and digits
                `same.example.com` is a name of the registries `first` and `second`"#]],
        );
    }

    #[test]
    fn a_server_is_not_exposed_by_accident() {
        check_refused(
            "[server]\nlisten = \"0.0.0.0:5000\"\nadmin = false",
            sources(&[], &[]),
            expect![[r#"
                `server.listen` `0.0.0.0:5000` is no loopback address, and passwords would cross the network in the clear
                hint: use `server.tls_listen` with a certificate, or set `server.insecure_clear = true` behind a proxy that adds TLS
                the server would be reachable from other machines, and no credentials are configured
                hint: set `server.admin = true`"#]],
        );
    }

    #[test]
    fn secrets_are_not_shown() {
        let settings = resolved(
            "[upstream.\"registry.example.com\"]\nusername = \"me\"\npassword = \"hunter2\"",
            sources(&[], &[]),
        );
        assert!(!settings.render().contains("hunter2"));
        assert!(!format!("{settings:?}").contains("hunter2"));
        let shown = settings.render().split("[upstream").nth(1).unwrap();
        expect![[r#"
            ."registry.example.com"]
            plain_http = false
            username = "me"
            password = "(hidden)"
            password_file = ""
            pull_through = ""
            push = false
            tag_keep = "1m"
        "#]]
        .assert_eq(shown);
        let upstream = &settings.upstreams["registry.example.com"];
        assert_eq!(upstream.password.as_ref().unwrap().reveal(), "hunter2");
    }
}
