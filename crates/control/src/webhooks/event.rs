//! What webhooks tell of, and how they put it.

use std::fmt;
use std::str::FromStr;

use oci::Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{Cause, ContentChange, ContentDeed, Millis};
use uuid::Uuid;

use super::WebhookScope;
use crate::{NewRun, Run, RunCause, RunId, RunStatus, TaskName};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WebhookAction {
    Push,
    Delete,
    /// These three come from the managed service, and never happen here.
    Quarantine,
    ChartPush,
    ChartDelete,
    /// However it ended.
    RunFinished,
    RunFailed,
    /// A trigger has queued a run.
    RunFired,
    /// A task with triggers has not succeeded for some days.
    TaskOverdue,
    /// Somebody has asked for it.
    Ping,
}

impl WebhookAction {
    const ALL: [Self; 10] = [
        Self::Push,
        Self::Delete,
        Self::Quarantine,
        Self::ChartPush,
        Self::ChartDelete,
        Self::RunFinished,
        Self::RunFailed,
        Self::RunFired,
        Self::TaskOverdue,
        Self::Ping,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Delete => "delete",
            Self::Quarantine => "quarantine",
            Self::ChartPush => "chart_push",
            Self::ChartDelete => "chart_delete",
            Self::RunFinished => "run_finished",
            Self::RunFailed => "run_failed",
            Self::RunFired => "run_fired",
            Self::TaskOverdue => "task_overdue",
            Self::Ping => "ping",
        }
    }
}

impl fmt::Display for WebhookAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no action of a webhook.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no action of a webhook")]
pub struct BadWebhookAction(String);

impl FromStr for WebhookAction {
    type Err = BadWebhookAction;

    fn from_str(text: &str) -> Result<Self, BadWebhookAction> {
        let found = Self::ALL.into_iter().find(|action| action.as_str() == text);
        found.ok_or_else(|| {
            BadWebhookAction(text.chars().filter(|c| !c.is_control()).take(60).collect())
        })
    }
}

/// How a body is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WebhookFormat {
    /// As the managed service does.
    #[default]
    Acr,
    /// CloudEvents 1.0, structured; the other one is its data.
    CloudEvents,
}

impl WebhookFormat {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Acr => "application/json",
            Self::CloudEvents => "application/cloudevents+json",
        }
    }
}

/// One thing to tell.
pub(super) struct Event {
    pub(super) action: WebhookAction,
    at: Millis,
    what: What,
}

enum What {
    Nothing,
    Manifest {
        media_type: String,
        digest: Digest,
        size: u64,
        repository: String,
        /// What it is called; of one that is deleted, what it was.
        tags: Vec<String>,
        actor: String,
    },
    Run(Box<ToldRun>),
    Overdue {
        task: TaskName,
        last_success: Option<Millis>,
        days: u32,
    },
}

/// A run as it was when there was something to tell of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ToldRun {
    run_id: RunId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    task: Option<TaskName>,
    run_type: String,
    status: String,
    /// The kind of trigger that started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trigger: Option<String>,
    create_time: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start_time: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    finish_time: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run_error_message: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    output_images: Vec<ToldImage>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct ToldImage {
    registry: String,
    repository: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
    digest: Digest,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    elsewhere: bool,
}

impl ToldRun {
    /// One that has ended.
    pub(super) fn ended(run: &Run) -> Self {
        let images = run.images.iter().map(|image| ToldImage {
            registry: image.registry.clone(),
            repository: image.repository.clone(),
            tag: image.tag.clone(),
            digest: image.digest.clone(),
            elsewhere: image.elsewhere,
        });
        Self {
            run_id: run.id,
            task: run.task.clone(),
            run_type: run.kind.as_str().to_owned(),
            status: run.status.to_string(),
            trigger: run.cause.as_ref().and_then(kind_of),
            create_time: time(run.created_at),
            start_time: run.started_at.map(time),
            finish_time: run.finished_at.map(time),
            run_error_message: run.error.clone(),
            output_images: images.collect(),
        }
    }

    /// One that a trigger has queued.
    pub(super) fn fired(id: RunId, new: &NewRun, now: Millis) -> Self {
        Self {
            run_id: id,
            task: new.task.clone(),
            run_type: new.kind.as_str().to_owned(),
            status: RunStatus::Queued.to_string(),
            trigger: new.cause.as_ref().and_then(kind_of),
            create_time: time(now),
            start_time: None,
            finish_time: None,
            run_error_message: None,
            output_images: Vec::new(),
        }
    }
}

impl Event {
    pub(super) fn ping(at: Millis) -> Self {
        Self { action: WebhookAction::Ping, at, what: What::Nothing }
    }

    pub(super) fn overdue(
        task: &TaskName,
        last_success: Option<Millis>,
        days: u32,
        at: Millis,
    ) -> Self {
        let what = What::Overdue { task: task.clone(), last_success, days };
        Self { action: WebhookAction::TaskOverdue, at, what }
    }

    pub(super) fn of_run(action: WebhookAction, run: ToldRun, at: Millis) -> Self {
        Self { action, at, what: What::Run(Box::new(run)) }
    }

    /// A manifest that is pushed as several tags at once is told as many times, as if they had been
    /// pushed one by one.
    pub(super) fn of_change(change: &ContentChange) -> Vec<Self> {
        let tags: Vec<String> = change.tags.iter().map(|tag| tag.to_string()).collect();
        let (action, all) = match change.deed {
            ContentDeed::Deleted => (WebhookAction::Delete, vec![tags]),
            ContentDeed::Pushed if tags.is_empty() => (WebhookAction::Push, vec![tags]),
            ContentDeed::Pushed => {
                (WebhookAction::Push, tags.into_iter().map(|tag| vec![tag]).collect())
            }
        };
        let event = |tags| Self {
            action,
            at: change.at,
            what: What::Manifest {
                media_type: change.media_type.clone(),
                digest: change.digest.clone(),
                size: change.size,
                repository: change.repository.to_string(),
                tags,
                actor: actor(&change.cause),
            },
        };
        all.into_iter().map(event).collect()
    }

    /// Whether it is about an image of a scope. A run is about what it has pushed.
    pub(super) fn is_in(&self, scope: &WebhookScope) -> bool {
        match &self.what {
            What::Nothing => true,
            What::Overdue { .. } => *scope == WebhookScope::All,
            What::Manifest { repository, tags, .. } => {
                scope.holds(repository, tags.iter().map(String::as_str))
            }
            What::Run(run) => {
                let own = run.output_images.iter().filter(|image| !image.elsewhere);
                *scope == WebhookScope::All || { own }
                    .any(|image| scope.holds(&image.repository, image.tag.as_deref()))
            }
        }
    }

    /// The body of a delivery from the registry whose login server this is.
    pub(super) fn body(&self, format: WebhookFormat, id: Uuid, host: &str) -> String {
        let body = self.acr(id, host);
        match format {
            WebhookFormat::Acr => body.to_string(),
            WebhookFormat::CloudEvents => {
                let mut event = json!({
                    "specversion": "1.0",
                    "id": id,
                    "source": format!("https://{host}"),
                    "type": format!("refit.{}", self.action),
                    "time": time(self.at),
                    "datacontenttype": "application/json",
                    "data": body,
                });
                if let Some(subject) = self.subject() {
                    event["subject"] = subject.into();
                }
                event.to_string()
            }
        }
    }

    fn acr(&self, id: Uuid, host: &str) -> Value {
        let mut body = json!({ "id": id, "timestamp": time(self.at), "action": self.action });
        match &self.what {
            What::Nothing => (),
            What::Manifest { media_type, digest, size, repository, tags, actor } => {
                let mut target = json!({
                    "mediaType": media_type, "digest": digest, "repository": repository,
                });
                let is_push = self.action == WebhookAction::Push;
                if is_push {
                    target["size"] = (*size).into();
                    target["length"] = (*size).into();
                }
                if let ([tag], true) = (&tags[..], is_push) {
                    target["tag"] = tag.as_str().into();
                }
                body["target"] = target;
                let method = if is_push { "PUT" } else { "DELETE" };
                body["request"] = json!({ "id": Uuid::new_v4(), "host": host, "method": method });
                body["actor"] = json!({ "name": actor });
            }
            What::Overdue { task, last_success, days } => {
                body["task"] = json!({
                    "name": task, "lastSuccess": last_success.map(time), "days": days,
                });
                body["request"] = json!({ "id": Uuid::new_v4(), "host": host });
            }
            What::Run(run) => {
                body["run"] = json!(run);
                body["request"] = json!({ "id": Uuid::new_v4(), "host": host });
            }
        }
        body
    }

    fn subject(&self) -> Option<String> {
        match &self.what {
            What::Nothing => None,
            What::Manifest { digest, repository, tags, .. } => match &tags[..] {
                [tag] if self.action == WebhookAction::Push => Some(format!("{repository}:{tag}")),
                _ => Some(format!("{repository}@{digest}")),
            },
            What::Run(run) => Some(format!("runs/{}", run.run_id)),
            What::Overdue { task, .. } => Some(format!("tasks/{task}")),
        }
    }
}

/// Who has done it, for people.
fn actor(cause: &Cause) -> String {
    match cause {
        Cause::Push { principal }
        | Cause::Delete { principal }
        | Cause::Restore { principal }
        | Cause::Purge { principal: Some(principal), .. } => principal.clone(),
        Cause::Build { run } | Cause::Purge { run: Some(run), .. } => format!("run {run}"),
        Cause::Import { source } => format!("import of {source}"),
        Cause::Purge { run: None, principal: None } => "server".to_owned(),
    }
}

/// As rows have it.
fn kind_of(cause: &RunCause) -> Option<String> {
    let cause = serde_json::to_value(cause).ok()?;
    Some(cause.get("kind")?.as_str()?.to_owned())
}

pub(super) fn time(at: Millis) -> String {
    jiff::Timestamp::from_millisecond(at).unwrap_or_default().to_string()
}
