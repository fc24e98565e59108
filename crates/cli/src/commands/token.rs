//! `refit token`: user names of the registry, for other programs and machines.

use api::{GenerateCredentialsRequest, GeneratedCredentials, Token, TokenPassword};
use jiff::{Span, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};

use super::Session;
use super::image::confirm;
use super::repository::pages;
use super::scope_map::{self, AddedScopes, refuse_existing};
use crate::connection::Connection;
use crate::error::{Error, Result};
use crate::printer::Table;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a token, and print its passwords this once
    Create(CreateArgs),
    /// Give a token another scope map, or switch it off and on
    Update(UpdateArgs),
    /// List the tokens
    List,
    /// Show a token
    Show(NameArgs),
    /// Delete a token; whoever uses it is shut out
    Delete(DeleteArgs),
    /// Passwords of a token
    #[command(subcommand)]
    Credential(CredentialCommand),
}

#[derive(Debug, clap::Subcommand)]
pub enum CredentialCommand {
    /// Make new passwords, and print them this once; those before open nothing any more
    Generate(GenerateArgs),
    /// Take passwords away
    Delete(DeletePasswordArgs),
}

/// A name given as an argument or, as `az acr` has it, by a flag.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct NameArgs {
    /// Token
    #[arg(value_name = "TOKEN")]
    token: Option<String>,
    #[arg(long = "name", short = 'n', hide = true)]
    name_flag: Option<String>,
}

impl NameArgs {
    fn name(&self) -> &str {
        self.token.as_deref().or(self.name_flag.as_deref()).unwrap_or_default()
    }
}

/// Until when passwords are good.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub(super) struct ExpiryArgs {
    /// Until when the passwords are good, such as 2030-01-31T00:00:00Z
    #[arg(long, value_name = "TIME")]
    expiration: Option<Timestamp>,
    /// For how many days they are
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    expiration_in_days: Option<u32>,
}

impl ExpiryArgs {
    fn expiry(&self) -> Result<Option<String>> {
        let days = self.expiration_in_days.map(|days| {
            let span = Span::new().hours(i64::from(days) * 24);
            Timestamp::now().checked_add(span)
        });
        let in_days = days.transpose().map_err(|error| Error::usage(error.to_string()))?;
        Ok(self.expiration.or(in_days).map(|at| at.to_string()))
    }
}

#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    #[command(flatten)]
    name: NameArgs,
    /// What it may do: a scope map, such as `_repositories_pull`
    #[arg(
        long,
        value_name = "SCOPE-MAP",
        conflicts_with = "repository",
        required_unless_present = "repository"
    )]
    scope_map: Option<String>,
    /// Or: a scope map of its own is made
    #[command(flatten)]
    scopes: AddedScopes,
    #[command(flatten)]
    expiry: ExpiryArgs,
    /// Make no passwords yet
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "BOOL")]
    no_passwords: bool,
    /// `enabled` or `disabled`
    #[arg(long, value_name = "STATUS", default_value = "enabled")]
    status: String,
}

#[derive(Debug, clap::Args)]
pub struct UpdateArgs {
    #[command(flatten)]
    name: NameArgs,
    /// What it may do
    #[arg(long, value_name = "SCOPE-MAP")]
    scope_map: Option<String>,
    /// `enabled` or `disabled`
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

#[derive(Debug, clap::Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Only the first one
    #[arg(long)]
    password1: bool,
    /// Only the second one
    #[arg(long)]
    password2: bool,
    #[command(flatten)]
    expiry: ExpiryArgs,
}

#[derive(Debug, clap::Args)]
pub struct DeletePasswordArgs {
    #[command(flatten)]
    name: NameArgs,
    /// The first one
    #[arg(long, required_unless_present = "password2")]
    password1: bool,
    /// The second one
    #[arg(long)]
    password2: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(super) async fn run(session: &Session<'_>, command: Command) -> Result<()> {
    let connection = session.connection()?;
    match command {
        Command::Create(args) => create(session, args).await,
        Command::Update(args) => {
            let mut properties = json!({});
            if let Some(map) = &args.scope_map {
                properties["scopeMapId"] = map.as_str().into();
            }
            if let Some(status) = &args.status {
                properties["status"] = status.as_str().into();
            }
            let token = change(connection, args.name.name(), properties).await?;
            print(session, &token, std::slice::from_ref(&token))
        }
        Command::List => {
            let tokens: Vec<Token> = pages(session, &["tokens"]).await?;
            print(session, &tokens, &tokens)
        }
        Command::Show(args) => {
            let token: Token = connection.get(route(connection, args.name())).await?;
            print(session, &token, std::slice::from_ref(&token))
        }
        Command::Delete(args) => {
            let name = args.name.name();
            confirm(&format!("Delete token `{name}`?"), args.yes).await?;
            connection.send(Method::DELETE, route(connection, name)).await
        }
        Command::Credential(CredentialCommand::Generate(args)) => {
            let only = match (args.password1, args.password2) {
                (true, false) => Some("password1"),
                (false, true) => Some("password2"),
                _ => None,
            };
            let made = generate(connection, args.name.name(), only, args.expiry.expiry()?).await?;
            session.printer.result(&made, &passwords(&made))
        }
        Command::Credential(CredentialCommand::Delete(args)) => delete(session, &args).await,
    }
}

fn route(connection: &Connection, name: &str) -> url::Url {
    connection.route(&["tokens", name])
}

async fn create(session: &Session<'_>, args: CreateArgs) -> Result<()> {
    let connection = session.connection()?;
    let (name, expiry) = (args.name.name(), args.expiry.expiry()?);
    let url = route(connection, name);
    refuse_existing::<Token>(connection, url.clone(), "token", name).await?;
    let map = match args.scope_map {
        Some(map) => map,
        None => {
            let map = format!("{name}-scope-map");
            let description = format!("Of token {name}");
            scope_map::create(connection, &map, &args.scopes.0, Some(&description)).await?;
            map
        }
    };
    let body = json!({ "properties": { "scopeMapId": map, "status": args.status } });
    let request = connection.request(Method::PUT, url).json(&body);
    let token: Token = connection.answer(request).await?;
    if args.no_passwords {
        return print(session, &token, std::slice::from_ref(&token));
    }
    let made = generate(connection, name, None, expiry).await?;
    let mut value =
        serde_json::to_value(&token).map_err(|error| Error::failed(error.to_string()))?;
    value["credentials"] =
        serde_json::to_value(&made).map_err(|error| Error::failed(error.to_string()))?;
    session.printer.note("The passwords are shown this once");
    session.printer.result(&value, &passwords(&made))
}

async fn generate(
    connection: &Connection,
    name: &str,
    only: Option<&str>,
    expiry: Option<String>,
) -> Result<GeneratedCredentials> {
    let only = only.map(str::to_owned);
    let body = GenerateCredentialsRequest { token_id: name.to_owned(), name: only, expiry };
    connection.post(connection.route(&["generateCredentials"]), &body).await
}

async fn delete(session: &Session<'_>, args: &DeletePasswordArgs) -> Result<()> {
    let connection = session.connection()?;
    let name = args.name.name();
    let gone: Vec<&str> = [("password1", args.password1), ("password2", args.password2)]
        .into_iter()
        .filter_map(|(name, given)| given.then_some(name))
        .collect();
    confirm(&format!("Delete {} of token `{name}`?", gone.join(" and ")), args.yes).await?;
    let known: Token = connection.get(route(connection, name)).await?;
    let kept = known.properties.credentials.and_then(|credentials| credentials.passwords);
    let kept: Vec<TokenPassword> = kept
        .into_iter()
        .flatten()
        .filter(|password| !gone.contains(&password.name.as_str()))
        .collect();
    let token = change(connection, name, json!({ "credentials": { "passwords": kept } })).await?;
    print(session, &token, std::slice::from_ref(&token))
}

async fn change(connection: &Connection, name: &str, properties: Value) -> Result<Token> {
    let body = json!({ "properties": properties });
    let request = connection.request(Method::PATCH, route(connection, name)).json(&body);
    connection.answer(request).await
}

fn passwords(made: &GeneratedCredentials) -> Table {
    let mut table = Table::new(["USERNAME", "NAME", "PASSWORD", "EXPIRES"]);
    for password in &made.passwords {
        table.row([
            made.username.clone(),
            password.name.clone(),
            password.value.clone().unwrap_or_default(),
            password.expiry.clone().unwrap_or_else(|| "never".into()),
        ]);
    }
    table
}

fn print(session: &Session<'_>, value: &impl serde::Serialize, tokens: &[Token]) -> Result<()> {
    let mut table = Table::new(["TOKEN", "STATUS", "SCOPE MAP", "PASSWORDS", "CREATED"]);
    for token in tokens {
        let of = &token.properties;
        let map = of.scope_map_id.as_deref().unwrap_or_default();
        let passwords =
            of.credentials.iter().flat_map(|credentials| credentials.passwords.iter().flatten());
        let passwords: Vec<String> = passwords
            .map(|password| match &password.expiry {
                Some(expiry) => format!("{} until {expiry}", password.name),
                None => password.name.clone(),
            })
            .collect();
        table.row([
            token.name.clone(),
            of.status.clone().unwrap_or_default(),
            map.rsplit('/').next().unwrap_or_default().to_owned(),
            passwords.join(", "),
            of.creation_date.clone().unwrap_or_default(),
        ]);
    }
    session.printer.result(value, &table)
}
