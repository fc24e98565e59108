//! Looks after triggers for as long as a server runs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use control::{Fired, Head, Poll};
use dockerfile::ContextAddress;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use oci::RegistryName;
use remote::{DownloadSettings, Downloads, GitSource, RemoteError};
use store::{DataDir, Millis};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::machine;
use crate::settings::Settings;
use crate::state::Shared;

/// How long nothing is looked at, though nothing is due: clocks are set.
pub(crate) const PERIOD: Duration = Duration::from_secs(30);
/// Until what waits is tried again.
pub(crate) const RETRY: Duration = Duration::from_secs(5);

/// Fires timers until `shutdown`. Commands that serve themselves do not: what is due then is the
/// next server's to do.
pub(crate) async fn fire_timers(state: Shared, shutdown: CancellationToken) {
    let mut changes = state.triggers.changes();
    while !shutdown.is_cancelled() {
        changes.mark_unchanged();
        let wait = match look(&state).await {
            Ok(wait) => wait,
            Err(error) => {
                tracing::error!(%error, "timers could not be looked at");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => (),
            _ = changes.changed() => (),
            () = shutdown.cancelled() => return,
        }
    }
}

/// Which registry of this server a host is.
pub(crate) fn own_names(
    state: &Shared,
) -> impl Fn(&str) -> Option<RegistryName> + Send + Sync + use<> {
    let names = state.registries.own_names();
    let names = names.into_iter().map(|(host, registry)| (host.to_ascii_lowercase(), registry));
    let names: BTreeMap<String, RegistryName> = names.collect();
    move |host: &str| names.get(&host.to_ascii_lowercase()).cloned()
}

/// Starts what has to follow from bases that move, until `shutdown`.
pub(crate) async fn fire_bases(state: Shared, shutdown: CancellationToken) {
    let own = own_names(&state);
    let (mut moved, mut ended) = (state.catalog.tag_moved(), state.runs.ends());
    let mut resumed = state.triggers.resumed();
    while !shutdown.is_cancelled() {
        moved.mark_unchanged();
        ended.mark_unchanged();
        resumed.mark_unchanged();
        let wait = match state.triggers.fire_bases(&own).await {
            Ok(fired) => {
                if fired.runs > 0 {
                    tracing::info!(runs = fired.runs, "bases that moved have started runs");
                }
                if fired.waits { RETRY } else { PERIOD }
            }
            Err(error) => {
                tracing::error!(%error, "the journal of tags could not be followed");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => (),
            _ = moved.changed() => (),
            // It may have told what its task is built on.
            _ = ended.changed() => (),
            _ = resumed.changed() => (),
            () = shutdown.cancelled() => return,
        }
    }
}

/// Goes on with plans, until `shutdown`.
pub(crate) async fn carry_out_plans(state: Shared, shutdown: CancellationToken) {
    let look =
        |state: Shared| async move { Ok(state.triggers.advance_plans().await?.waits) }.boxed();
    follow(&state, &shutdown, "plans could not go on", look).await;
}

/// Decides on commits that had to wait, until `shutdown`.
pub(crate) async fn fire_sources(state: Shared, shutdown: CancellationToken) {
    let look =
        |state: Shared| async move { Ok(state.triggers.fire_sources().await?.waits) }.boxed();
    follow(&state, &shutdown, "commits that wait could not be looked at", look).await;
}

/// Looks again whenever a run has ended or something goes on that was held, until `shutdown`. A look says whether
/// something has to wait.
async fn follow(
    state: &Shared,
    shutdown: &CancellationToken,
    failed: &'static str,
    look: impl Fn(Shared) -> BoxFuture<'static, control::Result<bool>>,
) {
    let (mut ended, mut resumed) = (state.runs.ends(), state.triggers.resumed());
    while !shutdown.is_cancelled() {
        ended.mark_unchanged();
        resumed.mark_unchanged();
        let wait = match look(Arc::clone(state)).await {
            Ok(true) => RETRY,
            Ok(false) => PERIOD,
            Err(error) => {
                tracing::error!(%error, "{failed}");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => (),
            // There may be room.
            _ = ended.changed() => (),
            _ = resumed.changed() => (),
            () = shutdown.cancelled() => return,
        }
    }
}

/// Repositories that are asked at once.
const POLLS_AT_ONCE: usize = 32;

/// How long a repository may take to say where its branch is.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Asks repositories for the commits of their branches, until `shutdown`.
pub(crate) async fn poll_sources(state: Shared, shutdown: CancellationToken) {
    let mut changes = state.triggers.changes();
    while !shutdown.is_cancelled() {
        changes.mark_unchanged();
        let wait = tokio::select! {
            polled = poll(&state) => match polled {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::error!(%error, "repositories could not be asked for their branches");
                    RETRY
                }
            },
            () = shutdown.cancelled() => return,
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => (),
            _ = changes.changed() => (),
            () = shutdown.cancelled() => return,
        }
    }
}

/// Asks for the branches that are due, each repository once, and says when to look again.
async fn poll(state: &Shared) -> control::Result<Duration> {
    let mut places: BTreeMap<String, Vec<Poll>> = BTreeMap::new();
    for poll in state.triggers.due_polls().await? {
        places.entry(poll.source.address.clone()).or_default().push(poll);
    }
    let asking = places.into_iter().map(|(address, polls)| async move {
        let secrets = polls.first().map(|poll| poll.source.secrets.clone()).unwrap_or_default();
        let answer = state.repositories.head(&address).await.map_err(|reason| {
            secrets.iter().fold(reason, |reason, secret| reason.replace(&**secret, "***"))
        });
        for poll in polls {
            match state.triggers.polled(&poll, answer.clone()).await {
                Ok(Fired { runs: 0, .. }) => (),
                Ok(_) => tracing::info!(task = %poll.task, "a commit was found, and has a run"),
                Err(error) => {
                    tracing::error!(%error, task = %poll.task, "a branch is not compared")
                }
            }
        }
    });
    futures_util::stream::iter(asking).for_each_concurrent(POLLS_AT_ONCE, |asked| asked).await;
    let next = state.triggers.next_poll().await?;
    let wait = next.map_or(PERIOD, |next| until(next, state.clock.now()));
    Ok(wait.clamp(POLL_PAUSE, PERIOD))
}

/// Between two looks at what is due.
const POLL_PAUSE: Duration = Duration::from_secs(1);

/// Repositories of git hosts, as far as it is asked where their branches are.
pub(crate) struct Repositories {
    downloads: Downloads,
    scratch: PathBuf,
}

impl Repositories {
    pub(crate) fn open(settings: &Settings, folder: &DataDir) -> Result<Self, RemoteError> {
        let downloads = Downloads::new(DownloadSettings {
            reach: machine::reach(settings),
            known_hosts: settings.build.git_known_hosts.clone(),
            timeout: HEAD_TIMEOUT,
            // It is asked again anyhow.
            attempts: 1,
            ..DownloadSettings::default()
        })?;
        Ok(Self { downloads, scratch: folder.path().join("workspaces") })
    }

    /// The commit of a branch, or in words for people why it is not known. The address may have secrets.
    async fn head(&self, address: &str) -> Result<Head, String> {
        let ContextAddress::Git(Ok(address)) = ContextAddress::of(address) else {
            return Err("it is no git repository".to_owned());
        };
        let source = GitSource {
            url: address.reveal().to_owned(),
            reference: address.reference.clone(),
            folder: None,
            commit: None,
            keep_git_dir: false,
            submodules: false,
            agent: None,
        };
        let failed = |error: &dyn std::error::Error| {
            let causes = std::iter::successors(Some(error), |error| error.source());
            causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
        };
        let made = tokio::fs::create_dir_all(&self.scratch).await;
        made.map_err(|error| failed(&error))?;
        let scratch = self.scratch.join(format!("branch-{}", Uuid::new_v4()));
        let head = self.downloads.resolve_git(&source, &scratch).await;
        let head = head.map_err(|error| failed(&error))?;
        Ok(Head { branch: head.branch().map(str::to_owned), commit: head.commit })
    }
}

/// Fires what is due, and says when to look again.
async fn look(state: &Shared) -> control::Result<Duration> {
    let fired = state.triggers.fire_timers().await?;
    if fired.runs > 0 {
        tracing::info!(runs = fired.runs, "timers have started runs");
    }
    let next = state.triggers.next_timer().await?;
    let wait = next.map_or(PERIOD, |next| until(next, state.clock.now()));
    Ok(if fired.waits { RETRY } else { wait.min(PERIOD) })
}

pub(crate) fn until(time: Millis, now: Millis) -> Duration {
    Duration::from_millis(u64::try_from(time - now).unwrap_or_default())
}
