//! `refit task credential`: the logins of a task to other registries.

use api::{CustomRegistryCredentials, Task};
use serde_json::{Value, json};

use super::super::Session;
use super::name::TaskArg;
use super::route;
use crate::error::{Error, ErrorKind, Result};
use crate::printer::Table;
use crate::prompt;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Let runs of a task log in to a registry
    Add(SaveArgs),
    /// Change a login
    Update(SaveArgs),
    /// Remove a login
    Remove(RemoveArgs),
    /// List the registries that a task logs in to
    List(ListArgs),
}

#[derive(Debug, clap::Args)]
pub struct SaveArgs {
    #[command(flatten)]
    task: TaskArg,
    #[command(flatten)]
    server: ServerArg,
    /// User name, or the address of a secret that it is
    #[arg(long, short, value_name = "NAME")]
    username: Option<String>,
    /// Password or token, or the address of a secret that it is. Others on this machine may see a
    /// password: better is --password-stdin
    #[arg(long, short, value_name = "PASSWORD", conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password or token from standard input
    #[arg(long)]
    password_stdin: bool,
    /// `[system]` or the client id of an identity: alone, the registry exchanges its tokens; with a user
    /// name and a password, it reads them from a vault
    #[arg(long, value_name = "ID")]
    use_identity: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct ServerArg {
    /// Host of the registry, such as ghcr.io
    #[arg(long = "login-server", value_name = "HOST")]
    host: String,
}

#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    task: TaskArg,
    #[command(flatten)]
    server: ServerArg,
}

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    task: TaskArg,
}

pub(super) async fn run(session: &Session<'_>, command: Command) -> Result<()> {
    match command {
        Command::Add(args) => {
            let known = find(session, &args.task).await?;
            if login(&known, &args.server.host).is_some() {
                let text = format!("the task has a login to `{}` already", args.server.host);
                return Err(Error::new(ErrorKind::Conflict, text)
                    .with_hint("`refit task credential update` changes it"));
            }
            if args.username.is_none() && args.use_identity.is_none() {
                return Err(Error::usage("a login needs a user name")
                    .with_hint("give it with `--username`"));
            }
            save(session, &args, false).await
        }
        Command::Update(args) => {
            must_have(&find(session, &args.task).await?, &args.server.host)?;
            save(session, &args, true).await
        }
        Command::Remove(args) => {
            must_have(&find(session, &args.task).await?, &args.server.host)?;
            change(session, &args.task, &args.server.host, &Value::Null).await
        }
        Command::List(args) => print(session, &find(session, &args.task).await?),
    }
}

/// The task with the user names of its logins.
async fn find(session: &Session<'_>, task: &TaskArg) -> Result<Task> {
    let connection = session.connection()?;
    let url = connection.route(&["tasks", task.name(), "listDetails"]);
    connection.post(url, &json!({})).await
}

/// A registry as the server names it.
fn host(server: &str) -> String {
    let host = server.trim_start_matches("https://").trim_end_matches('/').to_ascii_lowercase();
    if host == "index.docker.io" { "docker.io".to_owned() } else { host }
}

fn logins(task: &Task) -> impl Iterator<Item = (&String, &CustomRegistryCredentials)> {
    let credentials = task.properties.credentials.as_ref();
    let registries = credentials.and_then(|all| all.custom_registries.as_ref());
    registries.into_iter().flatten().filter_map(|(host, login)| Some((host, login.as_ref()?)))
}

fn login<'a>(task: &'a Task, host: &str) -> Option<&'a CustomRegistryCredentials> {
    let wanted = self::host(host);
    logins(task).find(|(known, _)| **known == wanted).map(|(_, login)| login)
}

fn must_have(task: &Task, host: &str) -> Result<()> {
    match login(task, host) {
        Some(_) => Ok(()),
        None => Err(Error::new(ErrorKind::NotFound, format!("the task has no login to `{host}`"))
            .with_hint("`refit task credential list` shows those that it has")),
    }
}

async fn save(session: &Session<'_>, args: &SaveArgs, is_known: bool) -> Result<()> {
    let is_identity_alone =
        args.username.is_none() && args.password.is_none() && !args.password_stdin;
    if let Some(identity) = args.use_identity.as_ref().filter(|_| is_identity_alone) {
        let login = json!({ "userName": null, "password": null, "identity": identity });
        return change(session, &args.task, &args.server.host, &login).await;
    }
    let password = match (&args.password, args.password_stdin) {
        (Some(password), _) => Some(password.clone()),
        (None, true) => Some(prompt::all_input().await?),
        // A change of the user name alone keeps the password.
        (None, false) if is_known && args.username.is_some() => None,
        (None, false) if prompt::is_possible() => {
            let question = format!("The password for {}: ", args.server.host);
            Some(prompt::ask_hidden(&question).await?)
        }
        (None, false) => {
            return Err(Error::usage("nobody is there to ask for the password")
                .with_hint("add `--password-stdin`"));
        }
    };
    let mut login = json!({});
    if let Some(identity) = &args.use_identity {
        login["identity"] = json!(identity);
    }
    // What is left out stays as it is, where it is.
    if password.is_some() || !is_known {
        login["password"] = part(&password);
    }
    if args.username.is_some() {
        login["userName"] = part(&args.username);
    }
    change(session, &args.task, &args.server.host, &login).await
}

/// A part of a login. What looks like the address of a secret is one.
fn part(value: &Option<String>) -> Value {
    let is_address = |text: &String| text.parse::<task::SecretAddress>().is_ok();
    let kind = if value.as_ref().is_some_and(is_address) { "Vaultsecret" } else { "Opaque" };
    json!({ "value": value, "type": kind })
}

async fn change(session: &Session<'_>, task: &TaskArg, host: &str, login: &Value) -> Result<()> {
    let connection = session.connection()?;
    let host = self::host(host);
    let credentials = json!({ "customRegistries": { host: login } });
    let body = json!({ "properties": { "credentials": credentials } });
    let url = route(connection, task);
    let request = connection.request(reqwest::Method::PATCH, url).json(&body);
    connection.answer::<Task>(request).await?;
    print(session, &find(session, task).await?)
}

fn print(session: &Session<'_>, task: &Task) -> Result<()> {
    let mut table = Table::new(["REGISTRY", "USER", "PASSWORD", "IDENTITY"]);
    for (host, login) in logins(task) {
        let value = |part: &Option<api::SecretObject>| {
            part.as_ref().and_then(|part| part.value.clone()).unwrap_or_default()
        };
        // Of one that is kept elsewhere, where it is.
        let password = match &login.password {
            Some(password) if password.value.is_none() => "***".to_owned(),
            password => value(password),
        };
        let identity = login.identity.clone().unwrap_or_default();
        table.row([host.clone(), value(&login.user_name), password, identity]);
    }
    let all = task.properties.credentials.as_ref().and_then(|all| all.custom_registries.as_ref());
    session.printer.result(&all, &table)
}
