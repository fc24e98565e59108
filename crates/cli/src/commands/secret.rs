//! `refit secret`: secrets that a registry keeps for its runs.

use std::path::PathBuf;

use api::{Secret, SecretProperties, SecretValue};
use reqwest::Method;
use serde_json::json;

use super::Session;
use super::image::confirm;
use super::repository::pages;
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::printer::Table;
use crate::prompt;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Keep a secret, or give it another value, read from standard input or a file
    Set(SetArgs),
    /// Change who may have a secret; its value stays
    Update(UpdateArgs),
    /// List the secrets, without their values
    List,
    /// Show a secret, without its value
    Show(NameArgs),
    /// Delete a secret
    Delete(DeleteArgs),
}

#[derive(Debug, clap::Args)]
pub struct NameArgs {
    /// Secret
    #[arg(value_name = "SECRET")]
    name: String,
}

#[derive(Debug, clap::Args)]
pub struct SetArgs {
    #[command(flatten)]
    name: NameArgs,
    /// A file with the value, to its last byte; without it, standard input is read, without the end
    /// of its last line, or the terminal asked
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    properties: PropertyArgs,
}

#[derive(Debug, clap::Args)]
pub struct UpdateArgs {
    #[command(flatten)]
    name: NameArgs,
    #[command(flatten)]
    properties: PropertyArgs,
}

#[derive(Debug, clap::Args)]
struct PropertyArgs {
    /// A task whose runs may have it; may be given again. Others then may not
    #[arg(long = "task", value_name = "TASK")]
    tasks: Vec<String>,
    /// All runs of the registry may have it
    #[arg(long, conflicts_with = "tasks")]
    all_runs: bool,
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
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
        Command::Set(args) => {
            let url = route(connection, &args.name.name);
            let known = known(connection, &args.name.name).await?;
            // Who may have it is said, not guessed.
            if known.is_none() && args.properties.tasks.is_empty() && !args.properties.all_runs {
                return Err(Error::usage("nobody would know which runs may have the secret")
                    .with_hint("`--task TASK` names them one by one, `--all-runs` means all"));
            }
            let value = value(&args).await?;
            save(session, url, args.properties, Some(value)).await
        }
        Command::Update(args) => {
            let name = &args.name.name;
            let known = known(connection, name).await?;
            let missing = || Error::new(ErrorKind::NotFound, format!("secret `{name}` not found"));
            known.ok_or_else(missing)?;
            save(session, route(connection, name), args.properties, None).await
        }
        Command::List => {
            let secrets: Vec<Secret> = pages(session, &["secrets"]).await?;
            print(session, &secrets, &secrets)
        }
        Command::Show(args) => {
            let secret: Secret = connection.get(route(connection, &args.name)).await?;
            print(session, &secret, std::slice::from_ref(&secret))
        }
        Command::Delete(args) => {
            let name = &args.name.name;
            confirm(&format!("Delete secret `{name}`?"), args.yes).await?;
            connection.send(Method::DELETE, route(connection, name)).await
        }
    }
}

fn route(connection: &Connection, name: &str) -> url::Url {
    connection.route(&["secrets", name])
}

async fn known(connection: &Connection, name: &str) -> Result<Option<Secret>> {
    match connection.get(route(connection, name)).await {
        Ok(secret) => Ok(Some(secret)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Never from the arguments, which others on this machine may see.
async fn value(args: &SetArgs) -> Result<SecretValue> {
    let text = match &args.file {
        Some(file) => {
            let text = tokio::fs::read_to_string(file).await;
            // As it is: keys need the end of their last line.
            text.map_err(|error| {
                Error::usage(format!("`{}` cannot be read: {error}", file.display()))
            })?
        }
        None if prompt::is_possible() => prompt::ask_hidden("Value: ").await?,
        None => prompt::all_input().await?,
    };
    match text.is_empty() {
        true => Err(Error::usage("the secret has no value")),
        false => Ok(SecretValue(text)),
    }
}

async fn save(
    session: &Session<'_>,
    url: url::Url,
    args: PropertyArgs,
    value: Option<SecretValue>,
) -> Result<()> {
    let connection = session.connection()?;
    let properties = SecretProperties {
        description: args.description,
        tasks: (!args.tasks.is_empty()).then_some(args.tasks),
        all_runs: args.all_runs.then_some(true),
        value,
        ..SecretProperties::default()
    };
    let request = connection.request(Method::PUT, url).json(&json!({ "properties": properties }));
    let secret: Secret = connection.answer(request).await?;
    print(session, &secret, std::slice::from_ref(&secret))
}

fn print(session: &Session<'_>, value: &impl serde::Serialize, secrets: &[Secret]) -> Result<()> {
    let mut table = Table::new(["SECRET", "TASKS", "CHANGED", "DESCRIPTION"]);
    for secret in secrets {
        let of = &secret.properties;
        table.row([
            secret.name.clone(),
            of.tasks.as_ref().map_or_else(|| "all runs".to_owned(), |tasks| tasks.join(" ")),
            of.last_update_date.clone().unwrap_or_default(),
            of.description.clone().unwrap_or_default(),
        ]);
    }
    session.printer.result(value, &table)
}
