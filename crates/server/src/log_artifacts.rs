//! Logs that become artifacts of their registries (runs.md section 6, `logTemplate`).
//!
//! The table of runs says which are still to be stored, so that a restart loses none.

use std::collections::BTreeMap;
use std::time::Duration;

use control::{ControlError, LogArtifact, LogKey, OutputImage, Run};
use engine::Destination;
use housekeeping::{MayUse as _, Use};
use oci::{Algorithm, Descriptor, RegistryName};
use store::{Cause, Expected, NewArtifact};
use task::{RunVariables, Secrets, Values, Variables};
use tokio_util::sync::CancellationToken;

use crate::error::ApiError;
use crate::state::{Shared, State};

/// What kind of artifact a log is.
const ARTIFACT_TYPE: &str = "application/vnd.refit.run.log";
const LOG_TYPE: &str = "text/plain";
const TITLE: &str = "org.opencontainers.image.title";
const CREATED: &str = "org.opencontainers.image.created";

/// Bytes of a template.
const TEMPLATE_LEN_MAX: usize = 1024;

/// Logs that are stored one after the other before somebody looks again.
const LOGS_AT_ONCE: usize = 100;

/// How often one is tried, how long it may take, and the time from try to try.
const ATTEMPTS_MAX: u32 = 3;
const STORE_TIMEOUT: Duration = Duration::from_secs(600);
const ATTEMPT_PAUSE: Duration = Duration::from_secs(2);

/// After an error of the database.
const RETRY: Duration = Duration::from_secs(30);

/// Stores logs until `shutdown`.
pub(crate) async fn store(state: Shared, shutdown: CancellationToken) {
    let mut ends = state.runs.ends();
    let storing = async {
        loop {
            ends.borrow_and_update();
            let wait = match store_waiting(&state).await {
                Ok(()) => Duration::MAX,
                Err(error) => {
                    tracing::error!(%error, "logs to be stored could not be found");
                    RETRY
                }
            };
            tokio::select! {
                // The sender lives as long as the state.
                _ = ends.changed() => (),
                () = tokio::time::sleep(wait) => (),
            }
        }
    };
    tokio::select! {
        () = storing => (),
        () = shutdown.cancelled() => (),
    }
}

async fn store_waiting(state: &State) -> Result<(), ControlError> {
    loop {
        let runs = state.runs.logs_to_store(LOGS_AT_ONCE).await?;
        if runs.is_empty() {
            return Ok(());
        }
        for run in runs {
            let artifact = match store_patiently(state, &run).await {
                Ok(image) => LogArtifact::Stored(image),
                Err(refused) => {
                    tracing::warn!(run = %run.id, %refused, "a log is no artifact");
                    LogArtifact::Refused(refused)
                }
            };
            state.runs.note_log_artifact(&run, &artifact).await?;
        }
    }
}

/// Tries a few times what may be different soon, such as a full disk, and no longer: other logs wait,
/// and whoever wants to leave does.
async fn store_patiently(state: &State, run: &Run) -> Result<OutputImage, String> {
    for attempt in 1.. {
        let stored = tokio::time::timeout(STORE_TIMEOUT, store_log(state, run)).await;
        match stored {
            Ok(Ok(stored)) => return stored,
            Ok(Err(error)) if attempt == ATTEMPTS_MAX => return Err(error.to_string()),
            Ok(Err(error)) => tracing::warn!(%error, run = %run.id, "a log is not stored yet"),
            Err(_) => return Err("it took too long to store it".to_owned()),
        }
        tokio::time::sleep(ATTEMPT_PAUSE).await;
    }
    unreachable!("the loop ends by returning")
}

/// Where the log of a run is now, or why it cannot be there.
async fn store_log(state: &State, run: &Run) -> Result<Result<OutputImage, String>, ControlError> {
    let variables = variables(state, run);
    let template = run.log_template.as_deref().unwrap_or_default();
    let destination = match destination(state, &run.registry, template, variables) {
        Ok(destination) => destination,
        Err(error) => return Ok(Err(error.message)),
    };
    if let Some(own) = state.access.of_runs.of(run).await? {
        let refused = own.refused(&destination.repository, Use::Push);
        if let Some(reason) = refused {
            return Ok(Err(reason.lines().next().unwrap_or_default().to_owned()));
        }
    }
    let key = LogKey { registry: run.registry.clone(), run: run.id };
    let mut text = match state.runs.logs().read_text(&key, 0, true).await {
        Ok(text) => text,
        Err(ControlError::NotFound { what }) => return Ok(Err(format!("{what} is not there"))),
        Err(error) => return Err(error),
    };
    let mut upload = state.catalog.blobs().begin_upload(Algorithm::Sha256).await?;
    while let Some(chunk) = text.next().await? {
        upload.write(chunk).await?;
    }
    let log = upload.commit(None).await?;
    let Destination { repository, tag, .. } = destination;
    let mut layer = Descriptor::new(LOG_TYPE.to_owned(), log.digest, log.size);
    layer.annotations.insert(TITLE.to_owned(), format!("{}.log", run.id));
    let finished = run.finished_at.unwrap_or(run.updated_at);
    let finished = jiff::Timestamp::from_millisecond(finished).unwrap_or_default();
    let new = NewArtifact {
        artifact_type: ARTIFACT_TYPE.to_owned(),
        layers: vec![layer],
        subject: None,
        annotations: BTreeMap::from([(CREATED.to_owned(), finished.to_string())]),
    };
    let cause = Cause::Build { run: run.id.to_string() };
    let tags = [(tag.clone(), Expected::Any)];
    let digest = state.catalog.put_artifact(&run.registry, &repository, new, &tags, &cause).await?;
    Ok(Ok(OutputImage {
        registry: login_server(state, &run.registry).to_owned(),
        repository: repository.to_string(),
        tag: Some(tag.to_string()),
        digest,
        elsewhere: false,
    }))
}

/// Refuses a template that cannot be the name of a log; what it comes to is known at the end.
pub(crate) fn check(
    state: &Shared,
    registry: &RegistryName,
    template: Option<&str>,
) -> Result<(), ApiError> {
    let Some(template) = template.filter(|template| !template.is_empty()) else { return Ok(()) };
    if template.len() > TEMPLATE_LEN_MAX {
        let message = format!("it has more than {TEMPLATE_LEN_MAX} bytes");
        return Err(ApiError::invalid(message).at("logTemplate"));
    }
    let example = RunVariables {
        id: "c01".to_owned(),
        registry: login_server(state, registry).to_owned(),
        commit: "0123456789abcdef0123456789abcdef01234567".to_owned(),
        branch: "main".to_owned(),
        task_name: "example".to_owned(),
        os: "linux".to_owned(),
        architecture: "amd64".to_owned(),
        ..RunVariables::default()
    };
    destination(state, registry, template, example)?;
    Ok(())
}

fn destination(
    state: &State,
    registry: &RegistryName,
    template: &str,
    run: RunVariables,
) -> Result<Destination, ApiError> {
    let refuse = |message: String| ApiError::invalid(message).at("logTemplate");
    let variables =
        Variables { now: run.started, run, values: Values::default(), ..Variables::default() };
    let name = task::render(template, &variables, &Secrets::new()).map_err(|error| {
        let rendered = error.render("the log template", template);
        refuse(rendered.strip_prefix("error: ").unwrap_or(&rendered).to_owned())
    })?;
    let destination = Destination::parse(&name, registry, &state.own_names())
        .map_err(|error| refuse(error.to_string()).hint("it looks like `logs:{{.Run.ID}}`"))?;
    state.refuse_copy(&destination.repository).map_err(|error| error.at("logTemplate"))?;
    Ok(destination)
}

fn variables(state: &State, run: &Run) -> RunVariables {
    let started = run.started_at.unwrap_or(run.created_at);
    let platform = run.request.platform();
    let commit = run.commit.as_ref();
    RunVariables {
        id: run.id.to_string(),
        registry: login_server(state, &run.registry).to_owned(),
        // To the second, as the run itself has it.
        started: jiff::Timestamp::from_second(started.div_euclid(1000)).unwrap_or_default(),
        commit: commit.map(|commit| commit.id.clone()).unwrap_or_default(),
        // As the run itself has it: a commit without a branch is a detached head.
        branch: commit.map_or_else(String::new, |commit| {
            commit.branch.clone().unwrap_or_else(|| "HEAD".to_owned())
        }),
        task_name: run.task.as_ref().map(ToString::to_string).unwrap_or_default(),
        shared_volume: format!("workspace_{}", run.id),
        os: platform.os.clone(),
        architecture: platform.architecture.clone(),
        ..RunVariables::default()
    }
}

fn login_server<'a>(state: &'a State, registry: &'a RegistryName) -> &'a str {
    let own = state.registries.get(registry);
    own.map_or(registry.as_str(), |own| own.login_server.as_str())
}
