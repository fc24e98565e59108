//! `refit webhook`: who is told of what happens in the registry.

use std::path::{Path, PathBuf};

use api::{
    CallbackConfig, Page, SecretValue, Webhook, WebhookEvent, WebhookPing, WebhookProperties,
};
use reqwest::Method;
use serde_json::json;
use url::Url;

use super::Session;
use super::image::confirm;
use super::repository::pages;
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::printer::Table;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Have somebody told of what happens
    Create(CreateArgs),
    /// Change a webhook; what is not given stays
    Update(UpdateArgs),
    /// List the webhooks
    List,
    /// Show a webhook
    Show(NameArgs),
    /// Show where a webhook is posted to, with the names of its headers
    GetConfig(NameArgs),
    /// Tell a webhook that it is there
    Ping(NameArgs),
    /// List what a webhook was told within a week, and what it answered
    ListEvents(EventsArgs),
    /// Delete a webhook, with what it was told
    Delete(DeleteArgs),
}

/// A name given as an argument or, as `az acr` has it, by a flag.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct NameArgs {
    /// Webhook
    #[arg(value_name = "WEBHOOK")]
    webhook: Option<String>,
    #[arg(long = "name", short = 'n', hide = true)]
    name_flag: Option<String>,
}

impl NameArgs {
    fn name(&self) -> &str {
        self.webhook.as_deref().or(self.name_flag.as_deref()).unwrap_or_default()
    }

    fn url(&self, connection: &Connection, more: &[&str]) -> Url {
        connection.route(&[&["webhooks", self.name()], more].concat())
    }
}

#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Where to post, http or https
    #[arg(long, value_name = "ADDRESS")]
    uri: String,
    /// What to tell: push, delete, run_finished, run_failed, run_fired, task_overdue
    #[arg(long, required = true, num_args = 1.., value_delimiter = ',', value_name = "ACTION")]
    actions: Vec<String>,
    #[command(flatten)]
    properties: PropertyArgs,
}

#[derive(Debug, clap::Args)]
pub struct UpdateArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Where to post, http or https
    #[arg(long, value_name = "ADDRESS")]
    uri: Option<String>,
    /// What to tell: push, delete, run_finished, run_failed, run_fired, task_overdue
    #[arg(long, num_args = 1.., value_delimiter = ',', value_name = "ACTION")]
    actions: Vec<String>,
    #[command(flatten)]
    properties: PropertyArgs,
    /// Sign no more
    #[arg(long, conflicts_with = "signing_secret_file")]
    no_signing_secret: bool,
}

#[derive(Debug, clap::Args)]
struct PropertyArgs {
    /// Headers to send along, each `NAME=VALUE`; of an update they are all that there are
    #[arg(long, num_args = 1.., value_name = "HEADER")]
    headers: Option<Vec<String>>,
    /// A file with such headers, one on each line: command lines are seen by others
    #[arg(long, value_name = "FILE", conflicts_with = "headers")]
    headers_file: Option<PathBuf>,
    /// Images to tell of: `app:*`, `app:tag`, `app` for `app:latest`, `app*`; all if empty
    #[arg(long, value_name = "SCOPE")]
    scope: Option<String>,
    /// enabled or disabled
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    /// acr, or cloudevents for CloudEvents 1.0
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// How many days a task with triggers may not succeed until `task_overdue` is told; 7 at first
    #[arg(long, value_name = "DAYS")]
    overdue_days: Option<u32>,
    /// A file with the secret to sign with, without the end of its last line
    #[arg(long, value_name = "FILE")]
    signing_secret_file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct EventsArgs {
    #[command(flatten)]
    name: NameArgs,
    /// How many at most
    #[arg(long, default_value_t = 50, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    top: u32,
}

#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(super) async fn run(session: &Session<'_>, command: Command) -> Result<()> {
    let connection = session.connection()?;
    match command {
        Command::Create(args) => {
            let url = args.name.url(connection, &[]);
            refuse_existing(connection, &args.name).await?;
            let mut properties = properties(args.properties).await?;
            properties.service_uri = Some(SecretValue(args.uri));
            properties.actions = Some(args.actions);
            save(session, Method::PUT, url, properties).await
        }
        Command::Update(args) => {
            let url = args.name.url(connection, &[]);
            let mut properties = properties(args.properties).await?;
            properties.service_uri = args.uri.map(SecretValue);
            properties.actions = (!args.actions.is_empty()).then_some(args.actions);
            if args.no_signing_secret {
                properties.signing_secret = Some(SecretValue(String::new()));
            }
            save(session, Method::PATCH, url, properties).await
        }
        Command::List => {
            let webhooks: Vec<Webhook> = pages(session, &["webhooks"]).await?;
            print(session, &webhooks, &webhooks)
        }
        Command::Show(name) => {
            let webhook: Webhook = connection.get(name.url(connection, &[])).await?;
            print(session, &webhook, std::slice::from_ref(&webhook))
        }
        Command::GetConfig(name) => get_config(session, &name).await,
        Command::Ping(name) => {
            let url = name.url(connection, &["ping"]);
            let ping: WebhookPing =
                connection.answer(connection.request(Method::POST, url)).await?;
            let mut table = Table::new(["EVENT"]);
            table.row([ping.id.clone()]);
            session.printer.result(&ping, &table)
        }
        Command::ListEvents(args) => list_events(session, &args).await,
        Command::Delete(args) => {
            confirm(&format!("Delete webhook `{}`?", args.name.name()), args.yes).await?;
            connection.send(Method::DELETE, args.name.url(connection, &[])).await
        }
    }
}

async fn refuse_existing(connection: &Connection, name: &NameArgs) -> Result<()> {
    match connection.get::<Webhook>(name.url(connection, &[])).await {
        Ok(_) => {
            let message = format!("there is a webhook `{}` already", name.name());
            Err(Error::new(ErrorKind::Conflict, message)
                .with_hint("`refit webhook update` changes it"))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

async fn properties(args: PropertyArgs) -> Result<WebhookProperties> {
    let given = match &args.headers_file {
        Some(file) => Some(read(file).await?.lines().map(str::to_owned).collect::<Vec<_>>()),
        None => args.headers,
    };
    let lines = given.map(|lines| lines.into_iter().filter(|line| !line.trim().is_empty()));
    let headers = lines.map(|lines| lines.map(|text| header(&text)).collect());
    let signing_secret = match &args.signing_secret_file {
        Some(file) => {
            let text = read(file).await?;
            Some(SecretValue(text.trim_end_matches(['\r', '\n']).to_owned()))
        }
        None => None,
    };
    Ok(WebhookProperties {
        custom_headers: headers.transpose()?,
        signing_secret,
        status: args.status,
        scope: args.scope,
        format: args.format,
        overdue_days: args.overdue_days,
        ..WebhookProperties::default()
    })
}

async fn read(file: &Path) -> Result<String> {
    let text = tokio::fs::read_to_string(file).await;
    text.map_err(|error| Error::usage(format!("`{}` cannot be read: {error}", file.display())))
}

fn header(text: &str) -> Result<(String, SecretValue)> {
    let (name, value) = text.split_once('=').ok_or_else(|| {
        Error::usage("a header has the form `NAME=VALUE`, and one of them has no `=`")
    })?;
    Ok((name.to_owned(), SecretValue(value.to_owned())))
}

async fn save(
    session: &Session<'_>,
    method: Method,
    url: Url,
    properties: WebhookProperties,
) -> Result<()> {
    let connection = session.connection()?;
    let request = connection.request(method, url).json(&json!({ "properties": properties }));
    let webhook: Webhook = connection.answer(request).await?;
    print(session, &webhook, std::slice::from_ref(&webhook))
}

async fn get_config(session: &Session<'_>, name: &NameArgs) -> Result<()> {
    let connection = session.connection()?;
    let url = name.url(connection, &["getCallbackConfig"]);
    let config: CallbackConfig = connection.answer(connection.request(Method::POST, url)).await?;
    let mut table = Table::new(["URI", "HEADERS"]);
    let names: Vec<&str> = config.custom_headers.keys().map(String::as_str).collect();
    table.row([config.service_uri.clone(), names.join(" ")]);
    session.printer.result(&config, &table)
}

async fn list_events(session: &Session<'_>, args: &EventsArgs) -> Result<()> {
    let connection = session.connection()?;
    let mut url = args.name.url(connection, &["listEvents"]);
    url.query_pairs_mut().append_pair("$top", &args.top.to_string());
    let page: Page<WebhookEvent> = connection.answer(connection.request(Method::POST, url)).await?;
    let mut table = Table::new(["ID", "ACTION", "SUBJECT", "STATE", "ATTEMPTS", "ANSWER"]);
    for event in &page.value {
        let last = event.attempts.last();
        let status = last.and_then(|last| last.status_code).map(|status| status.to_string());
        let error = last.and_then(|last| last.error.clone());
        let (action, subject) = about(&event.event_request_message.content);
        table.row([
            event.id.clone(),
            action,
            subject,
            event.state.clone(),
            event.attempts.len().to_string(),
            status.or(error).unwrap_or_default(),
        ]);
    }
    session.printer.result(&page.value, &table)
}

/// What a body says has happened, and to what.
fn about(content: &serde_json::Value) -> (String, String) {
    // Of a CloudEvent, its data.
    let body = content.get("data").unwrap_or(content);
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let (target, run, task) = (&body["target"], &body["run"], &body["task"]);
    let subject = match (target["tag"].as_str(), run["runId"].as_str()) {
        (Some(tag), _) => format!("{}:{tag}", text(&target["repository"])),
        (None, Some(run_id)) => format!("run {run_id} {}", text(&run["status"])),
        (None, None) if target.is_object() => {
            format!("{}@{}", text(&target["repository"]), text(&target["digest"]))
        }
        (None, None) => text(&task["name"]),
    };
    (text(&body["action"]), subject)
}

fn print(session: &Session<'_>, value: &impl serde::Serialize, webhooks: &[Webhook]) -> Result<()> {
    let mut table = Table::new(["WEBHOOK", "STATUS", "SCOPE", "ACTIONS", "FORMAT"]);
    for webhook in webhooks {
        let of = &webhook.properties;
        table.row([
            webhook.name.clone(),
            of.status.clone().unwrap_or_default(),
            of.scope.clone().unwrap_or_default(),
            of.actions.as_ref().map(|actions| actions.join(" ")).unwrap_or_default(),
            of.format.clone().unwrap_or_default(),
        ]);
    }
    session.printer.result(value, &table)
}
