//! `refit agent`: executes the runs of a pool for a server on another machine.
//!
//! It has a data folder of its own, which is a cache: layers, snapshots, build caches. What it makes
//! it sends to the server, which publishes it under the lease of the run; so an agent that dies, or
//! is cut off, has published nothing that another one could not publish again.

mod client;
mod places;
mod queue;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use builder::{BaseImages, OwnNames, RemoteImages};
use control::{Attempt, Clock, End, Executor, Logs, Outcome, Worker, WorkerSettings};
use engine::PushPolicy;
use oci::Platform;
use remote::{Credentials, Remote, Upstream};
use store::{Catalog, GcOptions};
use task::Seed;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::app::{CANCEL_GRACE, open_store, own_now};
use crate::egress;
use crate::executor::{Secrets, attempt_name};
use crate::identity::Endpoint;
use crate::machine::{Machine, Place};
use crate::owner::OwnerKind;
use crate::{Secret, ServeError, Settings};

use client::{Client, Join};
use places::{
    PoolHousekeeper, PoolPublisher, PoolSecrets, PoolTokens, fetch_context, release_context,
};
use queue::{AgentQueue, Leased};

/// What an agent is told.
pub struct AgentSettings {
    pub server: Url,
    /// Certificates to trust besides the system's, PEM.
    pub ca_pem: Option<Vec<u8>>,
    /// Names the pool, and proves that this agent may join it.
    pub token: Secret,
    /// What the server knows it by.
    pub name: String,
    /// Runs executed at once.
    pub concurrency: u32,
    /// Of this machine: data folder, builds, limits, other registries.
    pub settings: Settings,
}

/// How long the log of a run may take to get to the server once the run has ended here.
const LAST_WORDS: Duration = Duration::from_secs(60);

/// How often garbage is collected in the agent's own folder.
const GARBAGE_PERIOD: Duration = Duration::from_secs(3600);

/// Executes runs until `shutdown`, and then, for at most the grace that settings give, until those
/// under way have ended; the others are given back. `notice` is told what an operator should know.
pub async fn agent(
    agent: AgentSettings,
    shutdown: CancellationToken,
    notice: impl Fn(&str) + Send + Sync,
) -> Result<(), ServeError> {
    let AgentSettings { server, ca_pem, token, name, concurrency, settings } = agent;
    let folder = own_now(&settings.server.data, OwnerKind::Agent)?;
    let (_, catalog) = open_store(&folder).await?;
    let layers = crate::executor::open_layers(&catalog, &folder).await?;
    let mut notices = Vec::new();
    let machine = Machine::open(&settings, catalog.clone(), layers, &folder, &mut notices).await?;
    let join = Join::read(&server, token.reveal(), &name).map_err(ServeError::starting(
        "read the token of the agent pool, which `refit agentpool token` prints",
    ))?;
    let client = Client::new(join, ca_pem.as_deref())
        .map_err(ServeError::starting("prepare for talking to the server"))?;
    let remote = open_remote(&settings, &server, ca_pem)?;
    let clock = Clock::new(|| jiff::Timestamp::now().as_millisecond());
    let logs = folder.path().join("logs");
    // Of attempts that another agent has by now.
    container::remove_tree(&logs).map_err(ServeError::starting("remove old logs"))?;
    let logs = Logs::new(logs, settings.limits.log_size_max, clock.clone());
    notices.iter().for_each(|text| notice(text));
    notice(&format!("joining agent pool `{}` of {server} as `{name}`", client.pool()));
    let queue = AgentQueue::new(client, logs, clock.clone());
    let pushes = settings.upstreams.iter().filter(|(_, upstream)| upstream.push);
    let executor = AgentExecutor {
        machine,
        remote,
        server,
        catalog: catalog.clone(),
        leases: queue.clone(),
        pushes: PushPolicy {
            hosts: Arc::new(pushes.map(|(host, _)| host.clone()).collect()),
            refused: Arc::new(|_| None),
        },
        clock,
    };
    let worker_settings = WorkerSettings {
        concurrency,
        shutdown_grace: settings.server.shutdown_grace,
        cancel_grace: CANCEL_GRACE,
    };
    let worker = Worker::new(Arc::new(queue), Arc::new(executor), worker_settings);
    let garbage = GcOptions {
        dry_run: false,
        grace: settings.store.garbage_grace,
        cache_size_max: settings.store.cache_size_max,
    };
    tokio::select! {
        () = worker.run(shutdown) => (),
        () = collect_garbage(&catalog, &garbage) => (),
    }
    Ok(())
}

/// Other registries as the settings say, and the server.
fn open_remote(
    settings: &Settings,
    server: &Url,
    ca_pem: Option<Vec<u8>>,
) -> Result<Remote, ServeError> {
    let mut upstreams: BTreeMap<_, _> = crate::executor::upstreams(settings);
    let host = server.host_str().unwrap_or_default();
    upstreams.entry(host.to_owned()).or_default().ca_pem = ca_pem;
    crate::executor::remote_of(settings, upstreams)
}

/// Does so for ever.
async fn collect_garbage(catalog: &Catalog, options: &GcOptions) {
    loop {
        tokio::time::sleep(GARBAGE_PERIOD).await;
        match catalog.collect_garbage(options).await {
            Ok(report) if report.blobs.is_empty() => (),
            Ok(report) => tracing::info!(
                blobs = report.blobs.len(),
                bytes = report.bytes,
                "garbage collected"
            ),
            Err(error) => tracing::error!(%error, "garbage could not be collected"),
        }
    }
}

/// The platform of this machine, for people.
fn platform() -> String {
    Platform::host().to_string()
}

/// Executes runs with an engine of their own each: names, images and bounds are the run's.
struct AgentExecutor {
    machine: Machine,
    /// Knows nothing of any run.
    remote: Remote,
    server: Url,
    catalog: Catalog,
    leases: AgentQueue,
    pushes: PushPolicy,
    clock: Clock,
}

#[async_trait]
impl Executor for AgentExecutor {
    async fn execute(&self, attempt: &Attempt) -> Outcome {
        let Some(lease) = self.leases.lease(attempt) else {
            return Outcome::of(End::Error("the lease of the run is not known here".to_owned()));
        };
        let place = self.leases.client(attempt);
        let mut engine = self.engine(&lease, attempt);
        egress::bound_run(&mut engine, attempt.run.request.egress());
        let (cpus, memory) = lease.limits;
        engine.bound(&attempt_name(attempt), cpus, Some(memory));
        if let Err(error) = fetch_context(&place, attempt, &self.catalog).await {
            return Outcome::of(End::Error(error.to_string()));
        }
        let (username, password) = (lease.user.clone(), lease.password.clone());
        let secrets = Secrets {
            seed: Seed(lease.seed),
            own: Credentials { username, password },
            ssh_agents: None,
            source: Arc::new(PoolSecrets::new(place.clone())),
            tokens: lease.has_identity.then(|| {
                let log = attempt.log.clone();
                let tokens = PoolTokens { client: place.clone(), log };
                Endpoint::new(Arc::new(tokens), self.clock.clone())
            }),
        };
        let outcome = crate::executor::execute(&engine, attempt, secrets).await;
        release_context(attempt, &self.catalog).await;
        outcome
    }

    async fn idle(&self) {
        self.machine.idle().await;
    }
}

impl AgentExecutor {
    fn engine(&self, lease: &Leased, attempt: &Attempt) -> engine::Engine {
        let credentials =
            Credentials { username: lease.user.clone(), password: lease.password.clone() };
        let upstream = Upstream {
            credentials: Some(credentials),
            address: Some(self.server.to_string()),
            anywhere: true,
            ..Upstream::default()
        };
        let hosts = lease.hosts.iter().map(|(host, _)| (host.clone(), upstream.clone()));
        let remote = self.remote.with_upstreams(hosts);
        let (place, catalog) = (self.leases.client(attempt), self.catalog.clone());
        let images = move |remote: &Remote| {
            Arc::new(RemoteImages::new(remote.clone(), catalog.clone())) as Arc<dyn BaseImages>
        };
        self.machine.engine(Place {
            registry: attempt.run.registry.clone(),
            own: OwnNames::new(lease.hosts.iter().cloned()),
            images: Arc::new(images),
            remote,
            pushes: self.pushes.clone(),
            publisher: Arc::new(PoolPublisher::new(place.clone())),
            housekeeper: Arc::new(PoolHousekeeper::new(place)),
        })
    }
}
