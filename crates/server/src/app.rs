//! From settings to a server that runs, and to its end.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use control::{
    Clock, Executor, Logs, Pools, RunSettings, Runs, SourceSettings, Sources, TaskRuns, Tasks,
    Triggers, WatchSettings, Worker, WorkerSettings,
};
use registry::{PullThrough, PullThroughSettings};
use remote::{Poster, PosterSettings, Remote};
use store::{Catalog, DataDir, DataDirError, DiskStore, GcOptions, socket_path};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::access::ServerAccess;
use crate::agents::Agents;
use crate::audit::Auditor;
use crate::from_api::BuildDefaults;
use crate::identity::TaskIdentities;
use crate::issuer::Issuer;
use crate::keys::{Keys, publish_token, secret_keys};
use crate::listen::{self, Clients, ConnectionSettings, Ends, Listener};
use crate::owner::{self, OtherOwner, OwnerKind};
use crate::presence::Presence;
use crate::rates::Rates;
use crate::registries::Registries;
use crate::run_rights::RunAccess;
use crate::secrets::Providers;
use crate::sign_in::{Provider, Sessions};
use crate::state::{Shared, State};
use crate::triggers::Repositories;
use crate::trusted::TrustedIssuers;
use crate::{
    Settings, background, commit_states, log_artifacts, machine, promote, routes, tls, triggers,
    watches, webhooks,
};

/// How often a server looks whether a short-lived owner has left.
const OWNER_PERIOD: Duration = Duration::from_millis(200);

/// How long a server waits for another that does not say that it leaves: one that was killed
/// keeps the folder for a moment, and one that was told to stop needs a moment to say so.
const SERVER_PATIENCE: Duration = Duration::from_secs(2);

/// An owner that leaves within this needs not say for whom it waits.
const UNNOTICED: Duration = Duration::from_millis(300);

/// How long a command waits for an owner that is just starting to open its socket.
const SOCKET_PATIENCE: Duration = Duration::from_secs(10);

/// How long answers may still take when runs have taken all of the grace.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// What `sockaddr_un` has room for, the closing zero included.
const SOCKET_PATH_LEN: usize = 108;

/// How long a cancelled run may take to end (runs.md section 7).
pub(crate) const CANCEL_GRACE: Duration = Duration::from_secs(10);

/// Files of an archive that an image is imported from.
const ARCHIVE_ENTRIES_MAX: usize = 100_000;

/// Connections over the socket of the data folder: this user's own commands.
const SOCKET_CONNECTIONS_MAX: usize = 256;

/// Why a server did not start or stopped early. `Display` is the user's sentence.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Somebody else has the data folder.
    #[error("the data folder `{}` belongs to {owner}", data.display())]
    Owned { data: PathBuf, owner: String },
    #[error("could not {doing}")]
    Start {
        doing: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ServeError {
    pub(crate) fn starting<E>(doing: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let doing = doing.into();
        move |source| Self::Start { doing, source: source.into() }
    }

    fn owned(data: &Path, owner: &OtherOwner) -> Self {
        Self::Owned { data: data.to_owned(), owner: owner.to_string() }
    }

    /// What the user can do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Owned { .. } => Some("wait for it, stop it, or give another `--data`".into()),
            Self::Start { doing, source } => {
                if let Some(error) = source.downcast_ref::<DataDirError>() {
                    return error.hint();
                }
                let kind = source.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
                let in_use = kind == Some(std::io::ErrorKind::AddrInUse);
                (in_use && doing.starts_with("listen"))
                    .then(|| "another program has this address: give another `--listen`".into())
            }
        }
    }
}

/// A server that is bound and ready, and does nothing until [`App::serve`].
pub struct App {
    state: Shared,
    router: Router,
    worker: Worker,
    listeners: Vec<(Listener, ConnectionSettings)>,
    address: Option<SocketAddr>,
    tls_address: Option<SocketAddr>,
    certificate: Option<Arc<tls::Certificate>>,
    notices: Vec<String>,
    settings: Settings,
    token_files: Vec<PathBuf>,
    clients: Clients,
    kind: OwnerKind,
    /// Last, so that all else is closed before another process may own it.
    folder: DataDir,
}

impl App {
    /// Opens the data folder and binds every address. `tcp: false` leaves only the Unix
    /// socket in the data folder.
    pub async fn build(settings: Settings, tcp: bool) -> Result<Self, ServeError> {
        let kind = if tcp { OwnerKind::Server } else { OwnerKind::Command };
        let folder = own_now(&settings.server.data, kind)?;
        Self::build_in(folder, settings, tcp, None).await
    }

    /// For tests: runs are executed by `executor`.
    pub async fn build_with(
        settings: Settings,
        executor: Arc<dyn Executor>,
    ) -> Result<Self, ServeError> {
        let folder = own_now(&settings.server.data, OwnerKind::Server)?;
        Self::build_in(folder, settings, true, Some(executor)).await
    }

    async fn build_in(
        folder: DataDir,
        settings: Settings,
        tcp: bool,
        executor: Option<Arc<dyn Executor>>,
    ) -> Result<Self, ServeError> {
        let data = settings.server.data.clone();
        let keys = Keys::open(&data, settings.server.admin)
            .map_err(ServeError::starting("open the server's keys"))?;
        let keys = Arc::new(keys);
        let (db, catalog) = open_store(&folder).await?;
        let clock = Clock::new(|| jiff::Timestamp::now().as_millisecond());
        let runs = open_runs(&settings, &db, &catalog, &clock).await?;
        let tasks = Tasks::open(runs.clone())
            .await
            .map_err(ServeError::starting("open the table of tasks"))?;
        let of_tasks = Triggers::open(
            tasks.clone(),
            settings.build.compression,
            settings.triggers.poll_period,
            WatchSettings {
                period: settings.triggers.base_poll_period,
                settle: settings.triggers.base_settle,
            },
        )
        .await
        .map_err(ServeError::starting("open the tables of triggers"))?;
        let task_runs = TaskRuns::open(runs.clone())
            .await
            .map_err(ServeError::starting("open the table of task runs"))?;
        let pools = Pools::new(runs.clone());
        let webhooks = control::Webhooks::open(runs.clone())
            .await
            .map_err(ServeError::starting("open the table of webhooks"))?;
        let posting =
            PosterSettings { reach: machine::reach(&settings), ..PosterSettings::default() };
        let poster =
            Poster::new(posting).map_err(ServeError::starting("prepare for telling webhooks"))?;
        let secrets = control::Secrets::open(runs.clone())
            .await
            .map_err(ServeError::starting("open the table of secrets"))?;
        let permissions = control::Access::open(db.clone(), clock.clone())
            .await
            .map_err(ServeError::starting("open the table of accounts"))?;
        let audit = control::Audit::open(db.clone(), clock.clone())
            .await
            .map_err(ServeError::starting("open the audit log"))?;
        let auditor = Auditor::new(audit, clock.clone());
        let address = settings.server.public_url.clone();
        let issuer = Issuer::new(&data, address, clock.clone());
        let providers = Providers::new(&settings, secrets.clone(), issuer.clone(), auditor.clone())
            .map_err(ServeError::starting("prepare for talking to vaults"))?;
        let by_identity = settings.registries.iter().filter(|(_, own)| own.runs_by_identity);
        let of_runs = RunAccess {
            by_identity: Arc::new(by_identity.map(|(registry, _)| registry.clone()).collect()),
            runs: runs.clone(),
            tasks: tasks.clone(),
            permissions: permissions.clone(),
            keys: Arc::clone(&keys),
        };
        let identities = TaskIdentities {
            runs: of_runs.clone(),
            accounts: permissions.clone(),
            issuer: issuer.clone(),
            auditor: auditor.clone(),
        };
        let sources = open_sources(&settings, db, &catalog, clock.clone()).await?;
        let mut bound = Bound::default();
        if tcp {
            bound = Bound::bind(&settings).await?;
        }
        let clients = Clients::default();
        let (socket, connections) = bind_socket(&data, &settings, clients.clone())?;
        bound.listeners.push((socket, connections));
        let registries = Registries::new(&settings.registries, bound.addresses(&settings));
        let mut notices = Vec::new();
        if let Some(file) = &keys.new_admin {
            notices.push(format!("the password of user `admin` is in `{}`", file.display()));
        }
        for run in runs.take_over().await.map_err(ServeError::starting("take runs over"))? {
            notices.push(format!("run `{}` was interrupted and is taken up again", run.id));
        }
        let token_files = publish(&settings, &bound, &keys);
        let remote = crate::executor::open_remote(&settings)?;
        let pull_through = open_pull_through(&settings, &remote, &catalog);
        let push_hosts = settings.upstreams.iter().filter(|(_, upstream)| upstream.push);
        let state = Arc::new(State {
            runs: runs.clone(),
            tasks,
            triggers: of_tasks,
            task_runs,
            pools,
            providers,
            issuer,
            identities,
            secrets,
            webhooks,
            poster,
            presence: Presence::default(),
            clock: clock.clone(),
            sources,
            layers: crate::executor::open_layers(&catalog, &folder).await?,
            agents: Agents::new(runs.clone()),
            catalog,
            remote,
            push_hosts: Arc::new(push_hosts.map(|(host, _)| host.clone()).collect()),
            pull_through,
            registries,
            access: ServerAccess {
                keys: Arc::clone(&keys),
                anonymous_loopback: settings.server.anonymous_loopback,
                of_runs,
                permissions,
                only_registry: settings.registries.len() == 1,
                auditor: auditor.clone(),
                rates: Rates::new(settings.limits.rates),
                trusted: TrustedIssuers::new(
                    &settings.trusted_issuers,
                    settings.server.public_url.as_deref(),
                    clock.clone(),
                )
                .map_err(ServeError::starting("prepare for asking other issuers"))?,
                sessions: Sessions::new(keys.sessions().as_bytes(), clock.clone()),
            },
            sign_in: settings
                .sign_in
                .clone()
                .map(|provider| Provider::new(provider, clock.clone()))
                .transpose()
                .map_err(ServeError::starting("prepare for asking the provider of sign-in"))?,
            auditor,
            keys,
            build_defaults: BuildDefaults {
                timeout: settings.build.timeout,
                allow_host_network: settings.build.allow_host_network,
                compression: settings.build.compression,
            },
            run_bounds: (settings.build.concurrency, settings.build.concurrency_total),
            garbage: GcOptions {
                dry_run: false,
                grace: settings.store.garbage_grace,
                cache_size_max: settings.store.cache_size_max,
            },
            scrub: tokio::sync::Notify::new(),
            archive_limits: engine::ContextLimits {
                bytes_max: settings.limits.blob_size_max,
                entries_max: ARCHIVE_ENTRIES_MAX,
            },
            public_url: settings.server.public_url.clone(),
            repositories: Repositories::open(&settings, &folder)
                .map_err(ServeError::starting("prepare for asking git hosts"))?,
            body_stall: settings.limits.body_stall,
            metrics: crate::state::Metrics::default(),
            leaving: CancellationToken::new(),
            stopping: CancellationToken::new(),
        });
        let executor = match executor {
            Some(executor) => executor,
            None => crate::executor::build(&settings, &state, &folder, &mut notices).await?,
        };
        let worker_settings = WorkerSettings {
            concurrency: settings.build.concurrency_total,
            shutdown_grace: settings.server.shutdown_grace,
            cancel_grace: CANCEL_GRACE,
        };
        let registry = open_registry(&settings, &state, clock);
        let router = routes::router(Arc::clone(&state), settings.limits.body_size_max as usize)
            .merge(registry);
        Ok(Self {
            router,
            worker: Worker::new(Arc::new(runs), executor, worker_settings),
            state,
            listeners: bound.listeners,
            address: bound.address,
            tls_address: bound.tls_address,
            certificate: bound.certificate,
            notices,
            settings,
            token_files,
            clients,
            kind: if tcp { OwnerKind::Server } else { OwnerKind::Command },
            folder,
        })
    }

    /// Serves until `shutdown`, and then, for at most the grace that settings give, until no
    /// run is under way any more: clients see the end of theirs. What is still under way then
    /// is taken up by the next start.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), ServeError> {
        let ends = Ends { close: self.state.stopping.clone(), cut: CancellationToken::new() };
        let mut parts = JoinSet::new();
        for (listener, settings) in self.listeners {
            parts.spawn(listen::serve(listener, self.router.clone(), settings, ends.clone()));
        }
        if let Some(certificate) = self.certificate {
            parts.spawn(certificate.follow(shutdown.clone()));
        }
        let period = self.settings.store.garbage_period;
        let audit_keep = self.settings.store.audit_keep;
        parts.spawn(background::sweep(Arc::clone(&self.state), audit_keep, shutdown.clone()));
        if self.kind == OwnerKind::Server {
            parts.spawn(triggers::fire_timers(Arc::clone(&self.state), shutdown.clone()));
            parts.spawn(triggers::fire_bases(Arc::clone(&self.state), shutdown.clone()));
            parts.spawn(triggers::carry_out_plans(Arc::clone(&self.state), shutdown.clone()));
            parts.spawn(promote::carry_out(Arc::clone(&self.state), shutdown.clone()));
            parts.spawn(triggers::fire_sources(Arc::clone(&self.state), shutdown.clone()));
            parts.spawn(triggers::poll_sources(Arc::clone(&self.state), shutdown.clone()));
            parts.spawn(watches::ask(Arc::clone(&self.state), shutdown.clone()));
            parts.spawn(commit_states::tell(Arc::clone(&self.state), shutdown.clone()));
            parts.spawn(webhooks::deliver(Arc::clone(&self.state), shutdown.clone()));
            parts.spawn(webhooks::watch_tasks(Arc::clone(&self.state), shutdown.clone()));
        }
        parts.spawn(log_artifacts::store(Arc::clone(&self.state), shutdown.clone()));
        parts.spawn(background::retain_outputs(Arc::clone(&self.state), shutdown.clone()));
        parts.spawn(background::remove_due(Arc::clone(&self.state), shutdown.clone()));
        parts.spawn(background::remove_deleted(Arc::clone(&self.state), shutdown.clone()));
        // Until the last run has ended.
        let stopping = self.state.stopping.clone();
        parts.spawn(background::note_removals(Arc::clone(&self.state), stopping));
        parts.spawn(background::collect_garbage(
            Arc::clone(&self.state),
            period,
            self.settings.store.copy_keep,
            shutdown.clone(),
        ));
        let scrub = background::ScrubSettings {
            period: self.settings.store.scrub_period,
            rate: self.settings.store.scrub_rate,
            only_when_asked: self.kind == OwnerKind::Command,
        };
        parts.spawn(background::scrub(Arc::clone(&self.state), scrub, shutdown.clone()));
        let working = tokio::spawn(self.worker.run(shutdown.clone()));
        let stopping = async {
            shutdown.cancelled().await;
            self.state.leaving.cancel();
            owner::leave(&self.folder, self.kind);
            let grace = self.settings.server.shutdown_grace;
            let deadline = tokio::time::Instant::now() + grace;
            if let Err(error) = working.await {
                tracing::error!(%error, "the worker failed");
            }
            ends.close.cancel();
            let answered = tokio::time::Instant::now() + grace.min(LAST_ANSWERS);
            tokio::time::sleep_until(deadline.max(answered)).await;
            ends.cut.cancel();
        };
        let ended = async {
            while let Some(part) = parts.join_next().await {
                if let Err(error) = part {
                    tracing::error!(%error, "a part of the server failed");
                }
            }
        };
        tokio::pin!(stopping, ended);
        tokio::select! {
            () = &mut ended => (),
            () = &mut stopping => ended.await,
        }
        remove_tokens(&self.token_files, self.state.keys.token());
        let _ = std::fs::remove_file(socket_path(&self.settings.server.data));
        Ok(())
    }

    /// `http://127.0.0.1:5000`: where it is reached in the clear.
    pub fn url(&self) -> Option<String> {
        self.address.map(|address| format!("http://{address}"))
    }

    /// `https://0.0.0.0:5001`: where it is reached with TLS.
    pub fn tls_url(&self) -> Option<String> {
        self.tls_address.map(|address| format!("https://{address}"))
    }

    /// What the user should know: where the admin credential is, runs taken up again.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Runs of this server; [`Runs::idle`] tells when an owner may leave.
    pub fn runs(&self) -> &Runs {
        &self.state.runs
    }
}

fn own(data: &Path, kind: OwnerKind) -> Result<Result<DataDir, OtherOwner>, ServeError> {
    owner::acquire(data, kind).map_err(ServeError::starting("own the data folder"))
}

pub(crate) fn own_now(data: &Path, kind: OwnerKind) -> Result<DataDir, ServeError> {
    own(data, kind)?.map_err(|owner| ServeError::owned(data, &owner))
}

pub(crate) async fn open_store(folder: &DataDir) -> Result<(db::Db, Catalog), ServeError> {
    let failed = format!("open the store in `{}`", folder.path().display());
    let starting = || ServeError::starting(failed.clone());
    let db =
        db::Db::open(&folder.database()).await.map_err(ServeError::starting(failed.clone()))?;
    let blobs = DiskStore::open(folder.path(), db.clone()).await.map_err(starting())?;
    let catalog = Catalog::open(db.clone(), Arc::new(blobs)).await.map_err(starting())?;
    Ok((db, catalog))
}

async fn open_runs(
    settings: &Settings,
    db: &db::Db,
    catalog: &Catalog,
    clock: &Clock,
) -> Result<Runs, ServeError> {
    let folder = settings.server.data.join("logs");
    let logs = Logs::new(folder, settings.limits.log_size_max, clock.clone());
    let run_settings = RunSettings {
        concurrency: settings.build.concurrency,
        workers: settings.build.concurrency_total,
        attempts_max: settings.build.attempts_max,
        queue_length_max: settings.limits.queue_length_max,
        queue_keep: settings.build.queue_keep,
        log_keep: settings.store.log_keep,
        run_keep: settings.store.run_keep,
    };
    let keys = secret_keys(&settings.server.data)
        .map_err(ServeError::starting("open the keys of secrets"))?;
    Runs::open(db.clone(), Some(catalog.clone()), logs, clock.clone(), keys, run_settings)
        .await
        .map_err(ServeError::starting("open the queue of runs"))
}

/// What one build context may hold.
pub(crate) fn context_limits(settings: &Settings) -> engine::ContextLimits {
    engine::ContextLimits {
        bytes_max: settings.limits.context_size_max,
        entries_max: settings.limits.context_entries_max,
    }
}

async fn open_sources(
    settings: &Settings,
    db: db::Db,
    catalog: &Catalog,
    clock: Clock,
) -> Result<Sources, ServeError> {
    let source_settings = SourceSettings {
        size_max: settings.limits.source_size_max,
        keep: settings.limits.source_keep,
        reuse_keep: settings.limits.source_reuse_keep,
        reuse_size_max: settings.limits.source_reuse_size_max,
        context: context_limits(settings),
    };
    Sources::open(db, catalog.clone(), clock, source_settings)
        .await
        .map_err(ServeError::starting("open the uploaded sources"))
}

/// The registries whose images are kept, if there are any.
fn open_pull_through(
    settings: &Settings,
    remote: &Remote,
    catalog: &Catalog,
) -> Option<Arc<PullThrough>> {
    let kept = settings.upstreams.iter().filter_map(|(host, upstream)| {
        let (host, prefix) = (host.clone(), upstream.pull_through.clone()?);
        Some(registry::Upstream { host, prefix, tag_keep: upstream.tag_keep })
    });
    let upstreams: Vec<_> = kept.collect();
    if upstreams.is_empty() {
        return None;
    }
    let blob_size_max = settings.limits.blob_size_max;
    let settings = PullThroughSettings { upstreams, blob_size_max };
    Some(Arc::new(PullThrough::new(remote.clone(), catalog.clone(), settings)))
}

/// The `/v2/` protocol over the same store.
fn open_registry(settings: &Settings, state: &Shared, clock: Clock) -> Router {
    registry::router(registry::RegistryState {
        catalog: state.catalog.clone(),
        pull_through: state.pull_through.clone(),
        hosts: state.registries.hosts(),
        access: Arc::new(state.access.clone()),
        signer: registry::TokenSigner::hmac(state.keys.signing()),
        limits: registry::Limits {
            blob_size_max: settings.limits.blob_size_max,
            stall: settings.limits.body_stall,
            ..registry::Limits::default()
        },
        clock: Arc::new(move || clock.now()),
    })
}

/// What is listened on.
#[derive(Default)]
struct Bound {
    listeners: Vec<(Listener, ConnectionSettings)>,
    address: Option<SocketAddr>,
    tls_address: Option<SocketAddr>,
    certificate: Option<Arc<tls::Certificate>>,
}

impl Bound {
    async fn bind(settings: &Settings) -> Result<Self, ServeError> {
        let mut bound = Self::default();
        let connections = ConnectionSettings {
            connections_max: settings.limits.connections_max,
            header_timeout: settings.limits.header_timeout,
        };
        if let Some(address) = settings.server.listen {
            let (listener, address) = bind(address).await?;
            bound.address = Some(address);
            bound.listeners.push((Listener::Clear(listener), connections.clone()));
        }
        if let Some(tls) = &settings.server.tls {
            let certificate = Arc::new(tls::Certificate::open(tls)?);
            let acceptor = certificate.acceptor()?;
            bound.certificate = Some(certificate);
            let (listener, address) = bind(tls.listen).await?;
            bound.tls_address = Some(address);
            bound.listeners.push((Listener::Tls(listener, acceptor), connections));
        }
        Ok(bound)
    }

    /// What is listened on, the clear one first; without any, what a server here would.
    fn addresses(&self, settings: &Settings) -> Vec<SocketAddr> {
        let clear = self.address.or(settings.server.listen);
        let tls = settings.server.tls.as_ref().map(|tls| tls.listen);
        clear.into_iter().chain(self.tls_address.or(tls)).collect()
    }

    /// How clients may write the addresses.
    fn hosts(&self) -> Vec<String> {
        let mut hosts = Vec::new();
        for address in [self.address, self.tls_address].into_iter().flatten() {
            hosts.push(address.to_string());
            if address.ip().is_loopback() || address.ip().is_unspecified() {
                let port = address.port();
                hosts.extend([format!("localhost:{port}"), format!("127.0.0.1:{port}")]);
            }
        }
        hosts.sort();
        hosts.dedup();
        hosts
    }
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let doing = format!("listen on `{address}`");
    let listener = TcpListener::bind(address).await.map_err(ServeError::starting(doing.clone()))?;
    let bound = listener.local_addr().map_err(ServeError::starting(doing))?;
    Ok((listener, bound))
}

/// Whoever owns the folder owns its socket: one that is there belongs to nobody any more.
fn bind_socket(
    data: &Path,
    settings: &Settings,
    clients: Clients,
) -> Result<(Listener, ConnectionSettings), ServeError> {
    let path = socket_path(data);
    let doing = || format!("listen on `{}`", path.display());
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(ServeError::starting(doing())(error));
        }
        _ => (),
    }
    let short = SocketPath::of(data).map_err(ServeError::starting(doing()))?;
    let listener = UnixListener::bind(&short.path).map_err(ServeError::starting(doing()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .map_err(ServeError::starting(doing()))?;
    let connections = ConnectionSettings {
        connections_max: SOCKET_CONNECTIONS_MAX,
        header_timeout: settings.limits.header_timeout,
    };
    Ok((Listener::Socket(listener, clients), connections))
}

/// A name of the socket that is short enough for the kernel, and holds while this is kept.
struct SocketPath {
    path: PathBuf,
    _folder: Option<OwnedFd>,
}

impl SocketPath {
    fn of(data: &Path) -> std::io::Result<Self> {
        use rustix::fs::{Mode, OFlags};
        let path = socket_path(data);
        if path.as_os_str().len() < SOCKET_PATH_LEN {
            return Ok(Self { path, _folder: None });
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(data, flags, Mode::empty())?;
        let path = socket_path(Path::new(&format!("/proc/self/fd/{}", folder.as_raw_fd())));
        Ok(Self { path, _folder: Some(folder) })
    }
}

fn connectable(data: &Path) -> Result<SocketPath, ServeError> {
    SocketPath::of(data).map_err(ServeError::starting("find the socket of the data folder"))
}

/// A client that cannot find the token there can be given it otherwise, so this may fail.
fn publish(settings: &Settings, bound: &Bound, keys: &Keys) -> Vec<PathBuf> {
    let hosts = bound.hosts();
    if hosts.is_empty() {
        return Vec::new();
    }
    match publish_token(&settings.server.runtime_folder, hosts, keys.token()) {
        Ok(files) => files,
        Err(error) => {
            tracing::warn!(%error, "the API token could not be put into the runtime folder");
            Vec::new()
        }
    }
}

/// Removes what was published, unless another server has put its own there.
fn remove_tokens(files: &[PathBuf], token: &str) {
    for file in files {
        if std::fs::read_to_string(file).is_ok_and(|found| found.trim() == token) {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// `refit serve`: waits for a short-lived owner of the data folder, builds the app, tells
/// `notice` its sentences (where it listens, where credentials are), serves.
pub async fn serve(
    settings: Settings,
    shutdown: CancellationToken,
    notice: impl Fn(&str) + Send + Sync,
) -> Result<(), ServeError> {
    let folder = tokio::select! {
        folder = wait_to_own(&settings.server.data, &notice) => folder?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let app = App::build_in(folder, settings, true, None).await?;
    for text in &app.notices {
        notice(text);
    }
    for url in app.url().into_iter().chain(app.tls_url()) {
        notice(&format!("listening on {url}"));
    }
    app.serve(shutdown).await
}

async fn wait_to_own(data: &Path, notice: &(impl Fn(&str) + Sync)) -> Result<DataDir, ServeError> {
    let deadline = tokio::time::Instant::now() + SERVER_PATIENCE;
    let mut told = None;
    loop {
        let owner = match own(data, OwnerKind::Server)? {
            Ok(folder) => return Ok(folder),
            Err(owner) => owner,
        };
        // Another server will not leave by itself.
        let will_leave = owner.kind == OwnerKind::Command || owner.is_leaving;
        if will_leave {
            tell_once(&mut told, owner, notice);
        } else if tokio::time::Instant::now() > deadline {
            return Err(ServeError::owned(data, &owner));
        }
        tokio::time::sleep(OWNER_PERIOD).await;
    }
}

fn tell_once(told: &mut Option<OtherOwner>, owner: OtherOwner, notice: &impl Fn(&str)) {
    if told.as_ref() != Some(&owner) {
        notice(&format!("waiting for the data folder, which belongs to {owner}"));
        *told = Some(owner);
    }
}

/// How a command without a server reaches the API of its data folder: always over
/// [`Embedded::socket`], which needs no token.
pub struct Embedded {
    socket: SocketPath,
    own: Option<OwnServer>,
    notices: Vec<String>,
}

/// The server inside the command's own process.
struct OwnServer {
    runs: Runs,
    clients: Clients,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<Result<(), ServeError>>,
}

/// Becomes the owner of the data folder that settings name, serving only its socket; or, if
/// somebody owns it, a client of that owner. One that is stopping is waited for, and `notice`
/// told so.
pub async fn embedded(
    mut settings: Settings,
    notice: impl Fn(&str),
) -> Result<Embedded, ServeError> {
    let data = settings.server.data.clone();
    let mut deadline = tokio::time::Instant::now() + SOCKET_PATIENCE;
    let mut told = None;
    let folder = loop {
        match own(&data, OwnerKind::Command)? {
            Ok(folder) => break folder,
            // It takes no more work, and ends within its grace.
            Err(owner) if owner.is_leaving => {
                tell_once(&mut told, owner, &notice);
                deadline = tokio::time::Instant::now() + SOCKET_PATIENCE;
                tokio::time::sleep(OWNER_PERIOD).await;
            }
            // An owner that starts has no socket yet.
            Err(owner) => {
                let socket = connectable(&data)?;
                if tokio::net::UnixStream::connect(&socket.path).await.is_ok() {
                    return Ok(Embedded { socket, own: None, notices: Vec::new() });
                }
                if tokio::time::Instant::now() > deadline {
                    return Err(ServeError::owned(&data, &owner));
                }
                tokio::time::sleep(OWNER_PERIOD).await;
            }
        }
    };
    // Whoever leaves at once waits for nobody; `leave` waits before.
    settings.server.shutdown_grace = Duration::ZERO;
    let app = App::build_in(folder, settings, false, None).await?;
    let socket = connectable(&data)?;
    let notices = app.notices.clone();
    let (runs, clients) = (app.runs().clone(), app.clients.clone());
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(app.serve(shutdown.clone()));
    Ok(Embedded { socket, own: Some(OwnServer { runs, clients, shutdown, serving }), notices })
}

impl Embedded {
    /// The Unix socket that serves the API.
    pub fn socket(&self) -> &Path {
        &self.socket.path
    }

    /// Whether this process owns the data folder.
    pub fn is_owner(&self) -> bool {
        self.own.is_some()
    }

    /// Runs that somebody else left behind and that are now finished, for stderr.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Leaves: an owner first lets other commands that use it end, and finishes what they
    /// have started, and tells `notice` for whom it waits. `now`: it does not; what is under
    /// way is taken up by the next owner.
    pub async fn leave(self, now: bool, notice: impl Fn(&str)) -> Result<(), ServeError> {
        let Some(own) = self.own else { return Ok(()) };
        if !now {
            own.finish(notice).await?;
        }
        own.shutdown.cancel();
        own.serving.await.unwrap_or_else(|panic| Err(ServeError::starting("end the server")(panic)))
    }
}

impl OwnServer {
    /// Returns once nobody else uses this owner, and no run is under way.
    async fn finish(&self, notice: impl Fn(&str)) -> Result<(), ServeError> {
        let failed = || ServeError::starting("wait for the runs under way");
        loop {
            let others = "waiting for other commands that use the data folder; \
                interrupt to leave at once";
            tell_if_slow(self.clients.gone(), || notice(others)).await;
            let runs = self.runs.unfinished().await.map_err(failed())?;
            if runs.is_empty() && self.clients.count() == 0 {
                let told = "waiting for logs that become artifacts of the registry";
                return tell_if_slow(self.runs.idle(), || notice(told)).await.map_err(failed());
            }
            let ids: Vec<String> = runs.iter().map(|run| format!("`{}`", run.id)).collect();
            let told = format!(
                "waiting for the end of run {}; interrupt to leave at once, and the next command \
                 goes on with it",
                ids.join(", ")
            );
            tell_if_slow(self.runs.idle(), || notice(&told)).await.map_err(failed())?;
        }
    }
}

/// Waits, and says so if it takes longer than anybody would notice.
async fn tell_if_slow<T>(waiting: impl Future<Output = T>, tell: impl FnOnce()) -> T {
    tokio::pin!(waiting);
    tokio::select! {
        done = &mut waiting => return done,
        () = tokio::time::sleep(UNNOTICED) => tell(),
    }
    waiting.await
}
