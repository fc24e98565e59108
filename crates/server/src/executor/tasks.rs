//! Runs of task files meet the engine.

use std::sync::Arc;

use control::{Attempt, Commit, End, Outcome, OutputImage, TaskRequest};
use engine::{
    Engine, Identities, KnownSecrets, RunLogins, SecretSource, SetValue, TaskEnd, TaskOutput,
    TaskText, execute_task,
};
use task::Seed;

use super::events::LogEvents;
use super::{AttemptLease, context_source, outcome_of};
use crate::identity::Endpoint;

/// What an attempt has besides its request.
pub(super) struct With {
    pub(super) seed: Seed,
    pub(super) logins: RunLogins,
    pub(super) known_secrets: KnownSecrets,
    pub(super) source: Arc<dyn SecretSource>,
    pub(super) tokens: Option<Endpoint>,
}

/// Executes the task of a run.
pub(super) async fn execute(
    engine: &Engine,
    attempt: &Attempt,
    task: &TaskRequest,
    with: With,
) -> Outcome {
    let request = match request(attempt, task, with) {
        Ok(request) => request,
        Err(message) => return Outcome::of(End::Error(message)),
    };
    let (events, lease) = (LogEvents::new(attempt.log.clone()), AttemptLease(attempt));
    let TaskEnd { outcome, output } =
        execute_task(engine, &request, &events, &lease, &attempt.cancel).await;
    let outcome = outcome_of(outcome, |()| Outcome::of(End::Succeeded));
    with_output(outcome, engine, &output)
}

/// All of it was checked when the run was queued.
fn request(
    attempt: &Attempt,
    task: &TaskRequest,
    With { seed, logins, known_secrets, source, tokens }: With,
) -> Result<engine::TaskRequest, String> {
    let values = task.values.iter().map(|value| SetValue {
        name: value.name.clone(),
        value: value.value.clone(),
        secret: value.secret,
    });
    Ok(engine::TaskRequest {
        run: attempt.run.id.to_string(),
        task_name: attempt.run.task.as_ref().map(ToString::to_string).unwrap_or_default(),
        file: text(&task.file),
        values_file: task.values_file.as_ref().map(text),
        values: values.collect(),
        context: task.context.as_ref().map(context_source).transpose()?,
        platform: task.platform.clone(),
        timeout: task.timeout + super::TIMEOUT_SLACK,
        now: super::begun_at(attempt),
        seed,
        logins,
        known_secrets,
        secrets: source,
        identities: tokens.map(|tokens| Arc::new(tokens) as Arc<dyn Identities>),
    })
}

fn text(text: &control::TaskText) -> TaskText {
    match text {
        control::TaskText::Inline(text) => TaskText::Inline(text.clone()),
        control::TaskText::InContext(path) => TaskText::InContext(path.clone()),
    }
}

/// What was made by then, however the run ended.
fn with_output(outcome: Outcome, engine: &Engine, output: &TaskOutput) -> Outcome {
    let login_server = engine.own.host(&engine.registry).unwrap_or(engine.registry.as_str());
    let images = output.pushed.iter().map(|image| OutputImage {
        registry: image.host.clone().unwrap_or_else(|| login_server.to_owned()),
        repository: image.repository.to_string(),
        tag: image.tag.as_ref().map(ToString::to_string),
        digest: image.digest.clone(),
        elsewhere: image.host.is_some(),
    });
    let dependencies = &output.dependencies;
    Outcome {
        images: images.collect(),
        commit: output.repository.as_ref().map(|repository| Commit {
            id: repository.commit.clone(),
            branch: repository.branch.clone(),
        }),
        dependencies: (!dependencies.is_empty())
            .then(|| serde_json::to_value(dependencies).ok())
            .flatten(),
        cost: Some(serde_json::json!({ "steps": output.steps })),
        plan: output.plan.as_ref().and_then(|plan| serde_json::to_value(plan).ok()),
        ..outcome
    }
}
