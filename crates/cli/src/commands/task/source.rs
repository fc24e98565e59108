//! Source triggers: what of a task's repository starts it, and how its host tells.

use api::{GenerateWebhookSecretRequest, SourceTrigger, Task, WebhookSecret};
use dockerfile::ContextAddress;
use serde_json::{Map, Value, json};

use super::super::Session;
use super::name::TaskArg;
use crate::error::{Error, Result};
use crate::printer::Table;

/// Name of a source trigger, if it is given none, as with `az acr`.
const SOURCE_TRIGGER: &str = "defaultSourceTriggerName";

#[derive(Debug, clap::Args)]
pub(super) struct SourceArgs {
    /// Whether a run starts when the branch of the context has another commit [default of a new task: whether
    /// there is a token, or --poll-seconds]
    #[arg(long, value_name = "BOOL")]
    commit_trigger_enabled: Option<bool>,

    /// Whether a run starts when a pull request into the branch of the context has other commits
    #[arg(long, value_name = "BOOL")]
    pull_request_trigger_enabled: Option<bool>,

    /// Seconds between two looks at the branch, 30 to 86400; 0: the host is never asked
    #[arg(long, value_name = "SECONDS")]
    poll_seconds: Option<u32>,

    #[arg(long, hide = true)]
    source_trigger_name: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct WebhookArgs {
    #[command(flatten)]
    task: TaskArg,
    /// Source trigger [default: the only one]
    #[arg(long, value_name = "NAME")]
    source_trigger_name: Option<String>,
}

impl SourceArgs {
    pub(super) fn is_given(&self) -> bool {
        self.commit_trigger_enabled.is_some()
            || self.pull_request_trigger_enabled.is_some()
            || self.poll_seconds.is_some()
            || self.source_trigger_name.is_some()
    }

    /// Adds the source trigger of a new task, if it is to have one. `has_token`: one is given for the context.
    pub(super) fn add_to_new(
        &self,
        session: &Session<'_>,
        properties: &mut Map<String, Value>,
        context: Option<&str>,
        has_token: bool,
    ) -> Result<()> {
        let address = match context.map(ContextAddress::of) {
            Some(ContextAddress::Git(Ok(address))) => address,
            // Nothing of it has commits.
            _ => return Ok(()),
        };
        let is_asked = self.poll_seconds.is_some_and(|seconds| seconds > 0);
        let can = has_token || address.secret().is_some() || is_asked;
        let requests = self.pull_request_trigger_enabled == Some(true);
        let is_wanted = self.commit_trigger_enabled == Some(true) || requests;
        if is_wanted && !can {
            let what = if requests { "pull request" } else { "commit" };
            return Err(Error::usage(format!("a {what} trigger needs a token for the repository"))
                .with_hint(
                    "give it with `--git-access-token`; for a repository that everybody may read, \
                     `--poll-seconds 300` has it looked at every five minutes",
                ));
        }
        let commits = self.commit_trigger_enabled.unwrap_or(can);
        if !commits && !requests {
            if self.commit_trigger_enabled.is_none() {
                session.printer.note(
                    "No commit starts the task: there is neither `--git-access-token` nor \
                     `--poll-seconds`",
                );
            }
            return Ok(());
        }
        let mut trigger = Map::new();
        trigger.insert("name".into(), json!(self.name()));
        trigger.insert("sourceTriggerEvents".into(), json!(events(commits, requests)));
        let kind = control_type(context.unwrap_or_default());
        trigger.insert("sourceRepository".into(), json!({ "sourceControlType": kind }));
        trigger.extend(self.poll_seconds.map(|poll| ("pollSeconds".to_owned(), json!(poll))));
        add(properties, trigger);
        session.printer.note("`refit task webhook` lets the git host tell of commits at once");
        Ok(())
    }

    /// Switches the source triggers of a task off that has no repository any more.
    pub(super) fn leave_git(properties: &mut Map<String, Value>, known: &Task) {
        let sources =
            known.properties.trigger.as_ref().and_then(|all| all.source_triggers.as_ref());
        let off = |source: &SourceTrigger| json!({ "name": source.name, "status": "Disabled" });
        let off: Vec<Value> = sources.into_iter().flatten().map(off).collect();
        if !off.is_empty() {
            let all = properties.entry("trigger").or_insert_with(|| json!({}));
            all["sourceTriggers"] = off.into();
        }
    }

    /// Adds what is said of the source trigger of a task that is there.
    pub(super) fn add_change(
        &self,
        properties: &mut Map<String, Value>,
        known: &Task,
    ) -> Result<()> {
        let sources =
            known.properties.trigger.as_ref().and_then(|all| all.source_triggers.as_ref());
        let all = sources.map_or(0, Vec::len);
        if all > 1 && self.source_trigger_name.is_none() {
            return Err(Error::usage("the task has several source triggers")
                .with_hint("say which one is meant with `--source-trigger-name`"));
        }
        let mut sources = sources.into_iter().flatten();
        let source = match &self.source_trigger_name {
            Some(name) => sources.find(|source| source.name.eq_ignore_ascii_case(name)),
            None => sources.next(),
        };
        let had = |event: &str| {
            let is_it = |known: &String| known.eq_ignore_ascii_case(event);
            source.is_some_and(|source| source.source_trigger_events.iter().any(is_it))
        };
        let commits = self.commit_trigger_enabled.unwrap_or(had("commit"));
        let requests = self.pull_request_trigger_enabled.unwrap_or(had("pullrequest"));
        let mut trigger = Map::new();
        let name = source.map_or_else(|| self.name(), |source| source.name.clone());
        trigger.insert("name".into(), json!(name));
        let is_on = commits || requests;
        if source.is_none() && !is_on {
            return match self.poll_seconds {
                None => Ok(()),
                Some(_) => Err(Error::usage("the task has no source trigger")
                    .with_hint("`--commit-trigger-enabled true` gives it one")),
            };
        }
        trigger.insert("sourceTriggerEvents".into(), json!(events(commits, requests)));
        if self.commit_trigger_enabled.is_some() || self.pull_request_trigger_enabled.is_some() {
            let status = if is_on { "Enabled" } else { "Disabled" };
            trigger.insert("status".into(), json!(status));
        }
        trigger.extend(self.poll_seconds.map(|poll| ("pollSeconds".to_owned(), json!(poll))));
        add(properties, trigger);
        Ok(())
    }

    fn name(&self) -> String {
        self.source_trigger_name.clone().unwrap_or_else(|| SOURCE_TRIGGER.to_owned())
    }
}

fn add(properties: &mut Map<String, Value>, trigger: Map<String, Value>) {
    let all = properties.entry("trigger").or_insert_with(|| json!({}));
    all["sourceTriggers"] = json!([trigger]);
}

fn events(commits: bool, requests: bool) -> Vec<&'static str> {
    let events = [("commit", commits), ("pullrequest", requests)];
    events.into_iter().filter(|(_, is_on)| *is_on).map(|(event, _)| event).collect()
}

/// What a host is called, as `az acr` tells them apart, and further.
fn control_type(context: &str) -> &'static str {
    let context = context.to_ascii_lowercase();
    let is_of = |part: &&(&str, &str)| context.contains(part.0);
    let known = [
        ("github.com", "Github"),
        ("dev.azure.com", "VisualStudioTeamService"),
        (".visualstudio.com", "VisualStudioTeamService"),
        ("gitlab", "GitLab"),
        ("bitbucket", "Bitbucket"),
        ("gitea", "Gitea"),
        ("codeberg.org", "Gitea"),
    ];
    known.iter().find(is_of).map_or("Generic", |(_, kind)| kind)
}

/// Makes a secret for deliveries of the host, and tells it with the address that they go to.
pub(super) async fn webhook(session: &Session<'_>, args: WebhookArgs) -> Result<()> {
    let connection = session.connection()?;
    let url = connection.route(&["tasks", args.task.name(), "generateWebhookSecret"]);
    let body = GenerateWebhookSecretRequest { source_trigger_name: args.source_trigger_name };
    let made: WebhookSecret = connection.post(url, &body).await?;
    let address = match &made.webhook_url {
        Some(address) => address.clone(),
        None => connection.resolve(&made.webhook_path)?.to_string(),
    };
    let mut table = Table::new(["FIELD", "VALUE"]);
    table.row(["address".to_owned(), address]);
    table.row(["secret".to_owned(), made.secret.clone()]);
    table.row(["content type".to_owned(), "application/json".to_owned()]);
    session.printer.note(
        "The secret is shown this once, and the one before is worth nothing now. Give both to the git host: \
         as a webhook for pushes and for pull requests",
    );
    session.printer.result(&made, &table)
}

/// What of a repository starts a task, and how it is known.
pub(in crate::commands) fn line(source: &SourceTrigger) -> String {
    let repository = &source.source_repository;
    let branch = repository.branch.as_deref().unwrap_or("the default branch");
    let events = source.source_trigger_events.join(" and ");
    let told = match source.has_webhook_secret {
        Some(true) => "told by the host's webhook",
        _ => "without a webhook",
    };
    let polled = match source.poll_seconds {
        Some(0) => ", never looked for".to_owned(),
        Some(seconds) => format!(", looked for every {seconds} s"),
        None => String::new(),
    };
    let status = match source.status.as_deref() {
        Some("Disabled") => " (disabled)",
        _ => "",
    };
    format!("{}{status}: {events} of {branch}, {told}{polled}", source.name)
}
