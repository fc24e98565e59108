//! `refit scope-map`: named lists of what tokens may do in which repositories.

use std::collections::BTreeMap;

use api::{ScopeMap, ScopeMapAssignment, ScopeMapAssignmentRequest};
use clap::{Arg, ArgAction, ArgMatches, FromArgMatches};
use reqwest::Method;
use serde_json::json;

use super::Session;
use super::image::confirm;
use super::repository::pages;
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::printer::Table;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a scope map
    Create(CreateArgs),
    /// Add actions to a scope map, or take some away
    Update(UpdateArgs),
    /// List the scope maps, those of the system included
    List,
    /// Show what a scope map allows
    Show(NameArgs),
    /// Delete a scope map that nobody has
    Delete(DeleteArgs),
    /// Give an account or a task a scope map, instead of the one that it has
    Assign(AssignArgs),
    /// Take the scope map away that an account or a task has
    Unassign(HolderArgs),
    /// List which accounts and tasks have scope maps
    ListAssigned,
}

/// A name given as an argument or, as `az acr` has it, by a flag.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct NameArgs {
    /// Scope map
    #[arg(value_name = "SCOPE-MAP")]
    scope_map: Option<String>,
    #[arg(long = "name", short = 'n', hide = true)]
    name_flag: Option<String>,
}

impl NameArgs {
    fn name(&self) -> &str {
        self.scope_map.as_deref().or(self.name_flag.as_deref()).unwrap_or_default()
    }
}

#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    #[command(flatten)]
    name: NameArgs,
    #[command(flatten)]
    scopes: AddedScopes,
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct UpdateArgs {
    #[command(flatten)]
    name: NameArgs,
    #[command(flatten)]
    added: AddedScopes,
    #[command(flatten)]
    removed: RemovedScopes,
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

#[derive(Debug, clap::Args)]
pub struct AssignArgs {
    #[command(flatten)]
    name: NameArgs,
    #[command(flatten)]
    holder: HolderArgs,
}

/// Who has a scope map.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct HolderArgs {
    /// An account
    #[arg(long, value_name = "ACCOUNT")]
    account: Option<String>,
    /// A task as itself; it needs that identity: `refit task identity assign`
    #[arg(long, value_name = "TASK")]
    task: Option<String>,
}

impl HolderArgs {
    /// As the API calls it.
    fn holder(&self) -> String {
        match (&self.account, &self.task) {
            (Some(account), _) => format!("account:{account}"),
            (None, task) => format!("task:{}", task.as_deref().unwrap_or_default()),
        }
    }
}

/// `--repository REPOSITORY ACTION...`, any number of times; as the API writes them.
#[derive(Debug)]
pub(super) struct AddedScopes(pub(super) Vec<String>);

/// `--remove-repository REPOSITORY ACTION...`
#[derive(Debug)]
pub(super) struct RemovedScopes(Vec<String>);

fn scopes_arg(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .help(help)
        .value_names(["REPOSITORY", "ACTION"])
        .num_args(2..)
        .action(ArgAction::Append)
}

/// What was given with each use of an argument.
fn scopes(matches: &ArgMatches, name: &str) -> Vec<String> {
    let mut all = Vec::new();
    for given in matches.get_occurrences::<String>(name).into_iter().flatten() {
        let mut given = given.map(|text| text.to_ascii_lowercase());
        let repository = given.next().unwrap_or_default();
        all.extend(given.map(|action| format!("repositories/{repository}/{action}")));
    }
    all
}

impl clap::Args for AddedScopes {
    fn augment_args(command: clap::Command) -> clap::Command {
        let help = "Repository, `FOLDER/*` or `*`, with `content/read`, `content/write`, \
                    `content/delete`, `metadata/read`, `metadata/write`";
        command.arg(scopes_arg("repository", help).visible_alias("add-repository"))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for AddedScopes {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(scopes(matches, "repository")))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for RemovedScopes {
    fn augment_args(command: clap::Command) -> clap::Command {
        command
            .arg(scopes_arg("remove-repository", "Actions to take away, written as those to add"))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for RemovedScopes {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(scopes(matches, "remove-repository")))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

pub(super) async fn run(session: &Session<'_>, command: Command) -> Result<()> {
    let connection = session.connection()?;
    match command {
        Command::Create(args) => {
            let (name, actions) = (args.name.name(), args.scopes.0);
            let map = create(connection, name, &actions, args.description.as_deref()).await?;
            print(session, &map, std::slice::from_ref(&map))
        }
        Command::Update(args) => update(session, args).await,
        Command::List => {
            let maps: Vec<ScopeMap> = pages(session, &["scopeMaps"]).await?;
            print(session, &maps, &maps)
        }
        Command::Show(args) => {
            let map: ScopeMap = connection.get(route(connection, args.name())).await?;
            show(session, &map)
        }
        Command::Delete(args) => {
            let name = args.name.name();
            confirm(&format!("Delete scope map `{name}`?"), args.yes).await?;
            connection.send(Method::DELETE, route(connection, name)).await
        }
        Command::Assign(args) => {
            let url = connection.route(&["scopeMapAssignments", &args.holder.holder()]);
            let body = ScopeMapAssignmentRequest { scope_map: args.name.name().to_owned() };
            let request = connection.request(Method::PUT, url).json(&body);
            let assigned: ScopeMapAssignment = connection.answer(request).await?;
            print_assigned(session, &assigned, std::slice::from_ref(&assigned))
        }
        Command::Unassign(args) => {
            let url = connection.route(&["scopeMapAssignments", &args.holder()]);
            connection.send(Method::DELETE, url).await
        }
        Command::ListAssigned => {
            let all: Vec<ScopeMapAssignment> = pages(session, &["scopeMapAssignments"]).await?;
            print_assigned(session, &all, &all)
        }
    }
}

fn route(connection: &Connection, name: &str) -> url::Url {
    connection.route(&["scopeMaps", name])
}

/// Makes a scope map that is not there yet.
pub(super) async fn create(
    connection: &Connection,
    name: &str,
    actions: &[String],
    description: Option<&str>,
) -> Result<ScopeMap> {
    if actions.is_empty() {
        return Err(Error::usage("a scope map needs actions")
            .with_hint("`--repository REPOSITORY content/read` is one"));
    }
    let url = route(connection, name);
    refuse_existing::<ScopeMap>(connection, url.clone(), "scope map", name).await?;
    let body = json!({ "properties": { "actions": actions, "description": description } });
    connection.answer(connection.request(Method::PUT, url).json(&body)).await
}

/// `PUT` would change what is there.
pub(super) async fn refuse_existing<T: serde::de::DeserializeOwned>(
    connection: &Connection,
    url: url::Url,
    kind: &str,
    name: &str,
) -> Result<()> {
    match connection.get::<T>(url).await {
        Ok(_) => Err(Error::new(ErrorKind::Conflict, format!("{kind} `{name}` is there already"))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

async fn update(session: &Session<'_>, args: UpdateArgs) -> Result<()> {
    let connection = session.connection()?;
    let url = route(connection, args.name.name());
    let known: ScopeMap = connection.get(url.clone()).await?;
    let mut actions = known.properties.actions.unwrap_or_default();
    for removed in &args.removed.0 {
        let before = actions.len();
        actions.retain(|action| !action.eq_ignore_ascii_case(removed));
        if actions.len() == before {
            let message = format!("scope map `{}` does not have `{removed}`", known.name);
            return Err(Error::new(ErrorKind::NotFound, message));
        }
    }
    actions.extend(args.added.0);
    let mut properties = json!({ "actions": actions });
    if let Some(description) = args.description {
        properties["description"] = description.into();
    }
    let request = connection.request(Method::PATCH, url).json(&json!({ "properties": properties }));
    let map: ScopeMap = connection.answer(request).await?;
    show(session, &map)
}

fn print(session: &Session<'_>, value: &impl serde::Serialize, maps: &[ScopeMap]) -> Result<()> {
    let mut table = Table::new(["SCOPE MAP", "TYPE", "ACTIONS", "DESCRIPTION"]);
    for map in maps {
        let of = &map.properties;
        table.row([
            map.name.clone(),
            of.kind.clone().unwrap_or_default(),
            of.actions.as_deref().unwrap_or_default().len().to_string(),
            of.description.clone().unwrap_or_default(),
        ]);
    }
    session.printer.result(value, &table)
}

fn print_assigned(
    session: &Session<'_>,
    value: &impl serde::Serialize,
    all: &[ScopeMapAssignment],
) -> Result<()> {
    let mut table = Table::new(["HOLDER", "SCOPE MAP"]);
    for assigned in all {
        table.row([assigned.holder.clone(), assigned.scope_map.clone()]);
    }
    session.printer.result(value, &table)
}

/// A line for each repository.
fn show(session: &Session<'_>, map: &ScopeMap) -> Result<()> {
    let mut rows: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for action in map.properties.actions.iter().flatten() {
        let (rest, second) = action.rsplit_once('/').unwrap_or((action, ""));
        let (repository, first) = rest.rsplit_once('/').unwrap_or((rest, ""));
        let repository = repository.strip_prefix("repositories/").unwrap_or(repository);
        rows.entry(repository)
            .or_default()
            .push(&action[action.len() - first.len() - second.len() - 1..]);
    }
    let mut table = Table::new(["REPOSITORY", "ACTIONS"]);
    for (repository, actions) in rows {
        table.row([repository.to_owned(), actions.join(" ")]);
    }
    session.printer.result(map, &table)
}
