//! Work that nobody asks for: collecting garbage, reading content again, forgetting what is old.
//!
//! Each pass compares what is there with what settings keep, and takes no input, so that a
//! restart or a missed pass costs only time.

use std::time::Duration;

use control::{AuditEntry, Run, StoredTask};
use oci::{RepositoryName, Tag};
use store::{Cause, Deleted, Removal, Removed, ScrubPass};
use tokio_util::sync::CancellationToken;

use crate::routes;
use crate::state::Shared;

/// How often old logs, runs and upload addresses are looked for.
const SWEEP_PERIOD: Duration = Duration::from_secs(60);

/// Sweeps until `shutdown`.
pub(crate) async fn sweep(state: Shared, audit_keep: Duration, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        match state.runs.sweep().await {
            Ok(swept) if swept == control::Swept::default() => (),
            Ok(swept) => tracing::info!(?swept, "old runs swept"),
            Err(error) => tracing::error!(%error, "old runs could not be swept"),
        }
        if let Err(error) = state.triggers.sweep().await {
            tracing::error!(%error, "the ledger of triggers could not be shortened");
        }
        if let Err(error) = state.webhooks.sweep().await {
            tracing::error!(%error, "what webhooks were told could not be shortened");
        }
        if let Err(error) = state.sources.sweep().await {
            tracing::error!(%error, "old upload addresses could not be swept");
        }
        let before = state.clock.now().saturating_sub_unsigned(audit_keep.as_millis() as u64);
        if let Err(error) = state.auditor.log.remove_before(before).await {
            tracing::error!(%error, "the audit log could not be shortened");
        }
        if let Err(error) = state.issuer.renew().await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "the keys of identity tokens could not be renewed");
        }
        pause(SWEEP_PERIOD, &shutdown).await;
    }
}

/// How often images are looked for that their tasks keep no longer.
const RETENTION_PERIOD: Duration = Duration::from_secs(600);

/// Runs whose images are removed before somebody looks again.
const RUNS_AT_ONCE: usize = 100;

/// Removes images that their tasks keep no longer, until `shutdown`.
pub(crate) async fn retain_outputs(state: Shared, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = remove_outputs(&state) => (),
            () = shutdown.cancelled() => return,
        }
        pause(RETENTION_PERIOD, &shutdown).await;
    }
}

/// How often manifests are looked for whose time has come, if no tag moves.
const DUE_PERIOD: Duration = Duration::from_secs(60);

/// Between two looks, however many tags move.
const DUE_PAUSE: Duration = Duration::from_secs(1);

/// Removes manifests that lost their last tag when their registry wants it, until `shutdown`.
pub(crate) async fn remove_due(state: Shared, shutdown: CancellationToken) {
    let mut moved = state.catalog.tag_moved();
    while !shutdown.is_cancelled() {
        match state.catalog.remove_due(state.clock.now()).await {
            Ok(0) => (),
            Ok(manifests) => tracing::info!(manifests, "manifests without tags are gone"),
            Err(error) => tracing::error!(%error, "manifests without tags could not be removed"),
        }
        pause(DUE_PAUSE, &shutdown).await;
        // Where nothing is kept, it goes within seconds.
        let _ = tokio::time::timeout(DUE_PERIOD, async {
            tokio::select! {
                _ = moved.changed() => (),
                () = shutdown.cancelled() => (),
            }
        })
        .await;
    }
}

/// How often it is looked for what could be restored long enough.
const DELETED_PERIOD: Duration = Duration::from_secs(60 * 60);

/// Removes for good what cannot be restored any longer, until `shutdown`.
pub(crate) async fn remove_deleted(state: Shared, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        match state.catalog.remove_deleted(state.clock.now()).await {
            Ok(Deleted { manifests: 0, tags: 0 }) => (),
            Ok(Deleted { manifests, tags }) => {
                tracing::info!(manifests, tags, "what was deleted cannot be restored any longer");
            }
            Err(error) => tracing::error!(%error, "what was deleted could not be removed for good"),
        }
        pause(DELETED_PERIOD, &shutdown).await;
    }
}

/// Removals that are written to the audit log at once.
const REMOVALS_MAX: usize = 200;

/// Writes what goes from the registries to the audit log, until `stopping`: much of it nobody asks for
/// by name, but a rule or a run.
pub(crate) async fn note_removals(state: Shared, stopping: CancellationToken) {
    let mut removals = state.catalog.removals();
    let mut listed = Vec::new();
    loop {
        tokio::select! {
            _ = removals.recv_many(&mut listed, REMOVALS_MAX) => (),
            () = stopping.cancelled() => {
                removals.close();
                removals.recv_many(&mut listed, REMOVALS_MAX).await;
            }
        }
        if listed.is_empty() {
            return;
        }
        let entries = listed.drain(..).map(removed).collect();
        if let Err(error) = state.auditor.log.append_all(entries).await {
            tracing::error!(%error, "what was removed is not written to the audit log");
        }
    }
}

fn removed(removal: Removal) -> AuditEntry {
    let Removal { registry, repository, what, tags, cause } = removal;
    let principal = match cause {
        Cause::Push { principal }
        | Cause::Delete { principal }
        | Cause::Restore { principal }
        | Cause::Purge { run: None, principal: Some(principal) } => principal,
        Cause::Build { run } | Cause::Purge { run: Some(run), .. } => {
            format!("run/{registry}/{run}")
        }
        Cause::Import { source } => format!("copy of {source}"),
        Cause::Purge { run: None, principal: None } => "purge".to_owned(),
    };
    let tags: Vec<&str> = tags.iter().map(Tag::as_str).collect();
    let target = match what {
        Removed::Tag => format!("{repository}:{}", tags.join(", ")),
        Removed::Manifest(digest) if tags.is_empty() => format!("{repository}@{digest}"),
        Removed::Manifest(digest) => format!("{repository}@{digest} with {}", tags.join(", ")),
        Removed::Repository => format!("{repository} with {} tags", tags.len()),
    };
    let (action, outcome) = ("removed".to_owned(), "removed".to_owned());
    AuditEntry { registry: Some(registry), principal, action, target, outcome }
}

/// Of two crates, and only told.
type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// What cannot be removed is tried again next time, and keeps nothing else from being removed.
async fn remove_outputs(state: &Shared) {
    let tasks = match state.tasks.with_output_retention().await {
        Ok(tasks) => tasks,
        Err(error) => {
            tracing::error!(%error, "tasks whose images go could not be found");
            return;
        }
    };
    for task in tasks {
        if let Err(error) = remove_outputs_of_task(state, &task).await {
            tracing::error!(
                %error, registry = %task.registry, task = %task.name,
                "images that are kept no longer could not be removed"
            );
        }
    }
}

async fn remove_outputs_of_task(state: &Shared, task: &StoredTask) -> Result<(), AnyError> {
    let Some(own) = state.registries.get(&task.registry) else { return Ok(()) };
    let text = format!("output retention of task `{}`", task.name);
    let cause = Cause::Purge { run: None, principal: Some(text) };
    loop {
        let runs = state.runs.expired_outputs(task, RUNS_AT_ONCE).await?;
        if runs.is_empty() {
            return Ok(());
        }
        for run in runs {
            let name = task.registry.clone();
            let registry = routes::housekept(state, name, &own.login_server, cause.clone());
            remove_outputs_of(state, &registry, &run).await?;
            state.runs.note_outputs_gone(&run).await?;
        }
    }
}

async fn remove_outputs_of(
    state: &Shared,
    registry: &housekeeping::Registry,
    run: &Run,
) -> Result<(), AnyError> {
    let until = run.finished_at.unwrap_or(run.updated_at);
    for image in run.images.iter().filter(|image| !image.elsewhere) {
        let Ok(repository) = image.repository.parse::<RepositoryName>() else { continue };
        let digest = &image.digest;
        let kept = state.runs.kept_by_others(run, &repository, digest).await?;
        let tag = image.tag.as_ref().and_then(|tag| tag.parse::<Tag>().ok());
        if let Some(tag) = tag
            && !kept.as_ref().is_some_and(|tags| tags.contains(tag.as_str()))
        {
            housekeeping::untag_output(registry, &repository, &tag, digest, until).await?;
        }
        if kept.is_none() {
            let gone = housekeeping::remove_output(registry, &repository, digest).await?;
            tracing::info!(run = %run.id, %repository, %digest, gone, "an old image goes");
        }
    }
    Ok(())
}

/// Collects garbage until `shutdown`. First when nothing counts any more that clients were told
/// by an earlier process to be there, since who was told is not remembered.
pub(crate) async fn collect_garbage(
    state: Shared,
    period: Duration,
    copy_keep: Duration,
    shutdown: CancellationToken,
) {
    let mut wait = period.max(state.garbage.grace);
    loop {
        pause(wait, &shutdown).await;
        wait = period;
        if shutdown.is_cancelled() {
            return;
        }
        match state.catalog.expire_copies(copy_keep).await {
            Ok(0) => (),
            Ok(copies) => tracing::info!(copies, "copies that nobody pulled are gone"),
            Err(error) => tracing::error!(%error, "old copies could not be removed"),
        }
        match state.catalog.collect_garbage(&state.garbage).await {
            Ok(report) if report.blobs.is_empty() => (),
            Ok(report) => {
                tracing::info!(
                    blobs = report.blobs.len(),
                    bytes = report.bytes,
                    "garbage collected"
                );
            }
            Err(error) => tracing::error!(%error, "garbage could not be collected"),
        }
    }
}

/// Reads stored content again and again until `shutdown`, to find what is damaged. Without a
/// `period`, when somebody asks for it.
pub(crate) async fn scrub(state: Shared, settings: ScrubSettings, shutdown: CancellationToken) {
    if settings.only_when_asked {
        tokio::select! {
            () = state.scrub.notified() => (),
            () = shutdown.cancelled() => return,
        }
    }
    loop {
        tokio::select! {
            result = scrub_once(&state, &settings) => if let Err(error) = result {
                tracing::error!(%error, "stored content could not be read again");
                pause(SCRUB_RETRY, &shutdown).await;
            },
            // Another pass was begun in the place of this one.
            () = state.scrub.notified() => (),
            () = shutdown.cancelled() => return,
        }
    }
}

/// How content is read again.
#[derive(Debug, Clone)]
pub(crate) struct ScrubSettings {
    pub(crate) period: Option<Duration>,
    /// Bytes a second at most, 0 for no bound.
    pub(crate) rate: u64,
    /// Not before somebody asks: a command is there for something else.
    pub(crate) only_when_asked: bool,
}

/// After an error the pass goes on at the same place, for which there must be some hope.
const SCRUB_RETRY: Duration = Duration::from_secs(60);

/// From pass to pass, however short the period is.
const SCRUB_PAUSE: Duration = Duration::from_secs(1);

/// Waits until a pass is due, and carries it on to its end.
async fn scrub_once(state: &Shared, settings: &ScrubSettings) -> store::Result<()> {
    let pass = state.catalog.scrub_pass().await?;
    let now = jiff::Timestamp::now().as_millisecond();
    let Some(wait) = ScrubPass::wait(pass.as_ref(), settings.period, now) else {
        return std::future::pending().await;
    };
    if pass.is_none_or(|pass| pass.finished_at.is_some()) {
        tokio::time::sleep(wait.max(SCRUB_PAUSE)).await;
        state.catalog.begin_scrub(None).await?;
    }
    state.catalog.scrub(settings.rate).await?;
    let Some(pass) = state.catalog.scrub_pass().await? else { return Ok(()) };
    tracing::info!(
        blobs = pass.blobs,
        bytes = pass.bytes,
        damaged = pass.damaged,
        "stored content was read again"
    );
    fetch_again(state).await
}

/// Brings what was lost of copies of other registries' images.
async fn fetch_again(state: &Shared) -> store::Result<()> {
    let Some(pull_through) = &state.pull_through else { return Ok(()) };
    for lost in state.catalog.lost_blobs().await? {
        for (registry, repository) in &lost.repositories {
            pull_through.restore(registry, repository, &lost.digest).await;
        }
    }
    Ok(())
}

async fn pause(period: Duration, shutdown: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(period) => (),
        () = shutdown.cancelled() => (),
    }
}
