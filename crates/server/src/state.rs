//! What handlers share.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use builder::{ContextLimits, Layers, OwnNames};
use control::{Clock, Logins, Pools, Runs, Secrets, Sources, TaskRuns, Tasks, Triggers, Webhooks};

use engine::Destination;
use oci::{Reference, RegistryName, RepositoryName};
use registry::PullThrough;
use remote::{Poster, Remote};
use store::{Catalog, GcOptions};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::access::ServerAccess;
use crate::agents::Agents;
use crate::audit::Auditor;
use crate::error::ApiError;
use crate::from_api::{BuildDefaults, cut};
use crate::identity::TaskIdentities;
use crate::issuer::Issuer;
use crate::keys::Keys;
use crate::presence::Presence;
use crate::registries::{self, Registries};
use crate::secrets::Providers;
use crate::sign_in::Provider;
use crate::triggers::Repositories;

/// One per server.
pub(crate) struct State {
    pub(crate) runs: Runs,
    pub(crate) tasks: Tasks,
    pub(crate) triggers: Triggers,
    pub(crate) task_runs: TaskRuns,
    pub(crate) pools: Pools,
    pub(crate) secrets: Secrets,
    pub(crate) webhooks: Webhooks,
    /// To wherever users say.
    pub(crate) poster: Poster,
    /// Of those, and of others.
    pub(crate) providers: Providers,
    pub(crate) issuer: Issuer,
    pub(crate) identities: TaskIdentities,
    pub(crate) presence: Presence,
    pub(crate) clock: Clock,
    pub(crate) sources: Sources,
    pub(crate) catalog: Catalog,
    pub(crate) layers: Arc<Layers>,
    pub(crate) remote: Remote,
    /// Registries that settings let the server push to.
    pub(crate) push_hosts: Arc<BTreeSet<String>>,
    /// Images of other registries, if any are kept.
    pub(crate) pull_through: Option<Arc<PullThrough>>,
    pub(crate) agents: Agents,
    pub(crate) registries: Registries,
    pub(crate) keys: Arc<Keys>,
    /// Where people sign in, if anywhere.
    pub(crate) sign_in: Option<Provider>,
    pub(crate) access: ServerAccess,
    pub(crate) auditor: Auditor,
    pub(crate) build_defaults: BuildDefaults,
    /// Runs that may be under way at once, of one registry and in all.
    pub(crate) run_bounds: (u32, u32),
    pub(crate) garbage: GcOptions,
    /// A pass over stored content was begun.
    pub(crate) scrub: Notify,
    /// How much an archive of an image may hold.
    pub(crate) archive_limits: ContextLimits,
    /// How clients reach this server, if it is known.
    pub(crate) public_url: Option<String>,
    pub(crate) repositories: Repositories,
    /// A body that brings nothing for this long is given up.
    pub(crate) body_stall: Duration,
    pub(crate) metrics: Metrics,
    /// The server was told to stop: runs under way go on, new ones are refused.
    pub(crate) leaving: CancellationToken,
    /// No run is under way any more, or time is up: what follows something waits no longer.
    pub(crate) stopping: CancellationToken,
}

pub(crate) type Shared = Arc<State>;

/// Counters since the start.
#[derive(Default)]
pub(crate) struct Metrics {
    pub(crate) requests: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) runs_submitted: AtomicU64,
    pub(crate) source_uploads: AtomicU64,
}

impl State {
    /// The registry that a path names, if this server hosts it.
    pub(crate) fn registry(
        &self,
        name: &str,
    ) -> Result<(RegistryName, &registries::OwnNames), ApiError> {
        let found = name.parse::<RegistryName>().ok().and_then(|name| {
            let own = self.registries.get(&name)?;
            Some((name, own))
        });
        found.ok_or_else(|| {
            let names: Vec<&str> = self.registries.iter().map(|(name, _)| name.as_str()).collect();
            ApiError::not_found(format!("registry `{}`", cut(name)))
                .hint(format!("this server has `{}`", names.join("`, `")))
        })
    }

    /// Every name of this server's registries.
    pub(crate) fn own_names(&self) -> OwnNames {
        OwnNames::new(self.registries.own_names())
    }

    /// Where an image is: one that is named by its copy here, on the registry that it is a copy of.
    pub(crate) fn origin(&self, own: &OwnNames, reference: &Reference) -> Reference {
        let pull_through = self.pull_through.as_ref().filter(|_| own.registry(reference).is_some());
        let origin = pull_through.and_then(|pull_through| pull_through.origin(reference));
        origin.unwrap_or_else(|| reference.clone())
    }

    /// A run has its own right in its registry, and none in the others of this server.
    pub(crate) fn refuse_own_logins(&self, logins: &Logins) -> Result<(), ApiError> {
        let own = self.own_names();
        let is_own = |host: &&String| {
            let reference = format!("{host}/any").parse::<Reference>();
            reference.is_ok_and(|reference| own.registry(&reference).is_some())
        };
        match logins.others.keys().find(is_own) {
            None => Ok(()),
            Some(host) => {
                let message = format!("`{host}` is a registry of this server");
                Err(ApiError::invalid(message)
                    .at("credentials.customRegistries")
                    .hint("runs are logged in to their own registry without it"))
            }
        }
    }

    /// Copies of another registry's images are what that registry says.
    pub(crate) fn refuse_copy(&self, repository: &RepositoryName) -> Result<(), ApiError> {
        match self.pull_through.as_ref().is_some_and(|kept| kept.holds(repository)) {
            false => Ok(()),
            true => {
                let message = copies_message(repository);
                Err(ApiError::invalid(message).hint("choose another name"))
            }
        }
    }

    /// The same for the names that an image is to have; those that cannot be read are refused
    /// elsewhere.
    pub(crate) fn refuse_copies(
        &self,
        registry: &RegistryName,
        names: &[String],
    ) -> Result<(), ApiError> {
        let own = self.own_names();
        let read = names.iter().filter_map(|name| Destination::parse(name, registry, &own).ok());
        read.map(|destination| destination.repository).try_for_each(|name| self.refuse_copy(&name))
    }
}

/// Why a repository takes no images of ours.
pub(crate) fn copies_message(repository: &RepositoryName) -> String {
    format!("repository `{repository}` holds copies of another registry's images")
}
