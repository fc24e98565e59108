//! `refit task identity`: whom the runs of a task can be for others.

use api::{IdentityProperties, Task, UserAssignedIdentity};
use serde_json::{Map, Value, json};

use super::super::Session;
use super::name::TaskArg;
use super::route;
use crate::error::{Error, ErrorKind, Result};
use crate::printer::Table;

/// Stands for the task itself.
const SYSTEM: &str = "[system]";
/// Stands for whatever the task has.
const ALL: &str = "[all]";

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Let runs of a task prove that they are the task, or an account
    Assign(ChangeArgs),
    /// Take identities from a task
    Remove(ChangeArgs),
    /// Show the identities of a task, with their ids
    Show(ShowArgs),
}

#[derive(Debug, clap::Args)]
pub struct ChangeArgs {
    #[command(flatten)]
    task: TaskArg,
    /// Service principals, or `[system]`, the task itself, which is meant without any; `[all]` to remove
    /// all
    #[arg(long, num_args = 0.., value_name = "NAME")]
    identities: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    #[command(flatten)]
    task: TaskArg,
}

pub(super) async fn run(session: &Session<'_>, command: Command) -> Result<()> {
    let connection = session.connection()?;
    let (args, is_removal) = match command {
        Command::Show(args) => {
            let task: Task = connection.get(route(connection, &args.task)).await?;
            return print(session, &task);
        }
        Command::Assign(args) => (args, false),
        Command::Remove(args) => (args, true),
    };
    let known: Task = connection.get(route(connection, &args.task)).await?;
    let known = known.identity.unwrap_or_default();
    let identity = match is_removal {
        false => assigned(&known, &args.identities)?,
        true => removed(&known, &args.identities)?,
    };
    let url = route(connection, &args.task);
    let body = json!({ "identity": identity });
    let request = connection.request(reqwest::Method::PATCH, url).json(&body);
    print(session, &connection.answer::<Task>(request).await?)
}

/// The identities that a new task gets by `--assign-identity`.
pub(super) fn of_new_task(wanted: &[String]) -> Result<Value> {
    assigned(&IdentityProperties::default(), wanted)
}

/// Those that a task has, and some more.
fn assigned(known: &IdentityProperties, wanted: &[String]) -> Result<Value> {
    let (system, names) = named(wanted);
    if names.contains(&ALL) {
        return Err(Error::usage("`[all]` is for removing identities"));
    }
    let members = names.into_iter().map(|name| (name.to_owned(), json!({})));
    Ok(request(has_system(known) || system, accounts(known).next().is_some(), members.collect()))
}

/// Those that a task has, without some of them.
fn removed(known: &IdentityProperties, unwanted: &[String]) -> Result<Value> {
    let (system, names) = named(unwanted);
    if names.contains(&ALL) {
        return match unwanted.len() {
            1 => Ok(json!({ "type": "None" })),
            _ => Err(Error::usage("`[all]` stands alone")),
        };
    }
    let lacks = |what: String| {
        Err(Error::new(ErrorKind::NotFound, format!("the task has no identity {what}"))
            .with_hint("`refit task identity show` shows those that it has"))
    };
    if system && !has_system(known) {
        return lacks("of its own".to_owned());
    }
    let mut members = Map::new();
    for name in names {
        match accounts(known).find(|(known, _)| is_same(known, name)) {
            Some((known, _)) => drop(members.insert(known.clone(), Value::Null)),
            None => return lacks(format!("`{name}`")),
        }
    }
    let are_left = accounts(known).any(|(name, _)| !members.contains_key(name));
    Ok(request(has_system(known) && !system, are_left, members))
}

/// Whether the task itself is named, and who else.
fn named(names: &[String]) -> (bool, Vec<&str>) {
    let is_system =
        |name: &&str| [SYSTEM, "system"].iter().any(|system| name.eq_ignore_ascii_case(system));
    let (system, others): (Vec<&str>, Vec<&str>) =
        names.iter().map(String::as_str).partition(is_system);
    (names.is_empty() || !system.is_empty(), others)
}

/// A change of the identity. `members` are the accounts that come, or go.
fn request(system: bool, has_accounts: bool, members: Map<String, Value>) -> Value {
    let has_accounts = has_accounts || members.values().any(|value| !value.is_null());
    let kind = match (system, has_accounts) {
        (false, false) => "None",
        (true, false) => "SystemAssigned",
        (false, true) => "UserAssigned",
        (true, true) => "SystemAssigned, UserAssigned",
    };
    match has_accounts {
        true => json!({ "type": kind, "userAssignedIdentities": members }),
        false => json!({ "type": kind }),
    }
}

fn has_system(identity: &IdentityProperties) -> bool {
    identity.principal_id.is_some()
}

fn accounts(
    identity: &IdentityProperties,
) -> impl Iterator<Item = (&String, &UserAssignedIdentity)> {
    let all = identity.user_assigned_identities.iter().flatten();
    all.filter_map(|(name, value)| Some((name, value.as_ref()?)))
}

/// By name, or by an id that ends with it.
fn is_same(known: &str, given: &str) -> bool {
    let last = |name: &str| name.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    last(known) == last(given)
}

fn print(session: &Session<'_>, task: &Task) -> Result<()> {
    let mut table = Table::new(["IDENTITY", "CLIENT ID"]);
    let identity = task.identity.clone().unwrap_or_default();
    if let Some(id) = &identity.principal_id {
        table.row([SYSTEM.to_owned(), id.clone()]);
    }
    for (name, account) in accounts(&identity) {
        table.row([name.clone(), account.client_id.clone().unwrap_or_default()]);
    }
    session.printer.result(&task.identity, &table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(system: bool, names: &[&str]) -> IdentityProperties {
        let accounts = names.iter().map(|name| ((*name).to_owned(), Some(Default::default())));
        IdentityProperties {
            kind: None,
            principal_id: system.then(|| "id".to_owned()),
            user_assigned_identities: Some(accounts.collect()),
        }
    }

    fn texts(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_is_assigned_is_added() {
        let assign =
            |known: &IdentityProperties, names: &[&str]| assigned(known, &texts(names)).unwrap();
        assert_eq!(assign(&known(false, &[]), &[]), json!({ "type": "SystemAssigned" }));
        let both = json!({
            "type": "SystemAssigned, UserAssigned", "userAssignedIdentities": { "bot": {} }
        });
        assert_eq!(assign(&known(true, &[]), &["bot"]), both);
        assert_eq!(assign(&known(false, &[]), &["bot", "[system]"]), both);
        let kept = json!({ "type": "SystemAssigned, UserAssigned", "userAssignedIdentities": {} });
        assert_eq!(assign(&known(false, &["bot"]), &[]), kept);
        assert!(assigned(&known(true, &[]), &texts(&["[all]"])).is_err());
    }

    #[test]
    fn what_is_removed_was_there() {
        let remove = |known: &IdentityProperties, names: &[&str]| removed(known, &texts(names));
        let bots = known(true, &["bot", "other"]);
        assert_eq!(remove(&bots, &["[all]"]).unwrap(), json!({ "type": "None" }));
        let kept = json!({ "type": "UserAssigned", "userAssignedIdentities": {} });
        assert_eq!(remove(&bots, &[]).unwrap(), kept);
        assert_eq!(
            remove(&bots, &["/subscriptions/x/userAssignedIdentities/BOT"]).unwrap(),
            json!({
                "type": "SystemAssigned, UserAssigned", "userAssignedIdentities": { "bot": null }
            })
        );
        assert_eq!(remove(&known(false, &["bot"]), &["bot"]).unwrap(), json!({ "type": "None" }));
        assert!(remove(&bots, &["[all]", "bot"]).is_err());
        assert!(remove(&bots, &["nobody"]).is_err());
        assert!(remove(&known(false, &["bot"]), &["[system]"]).is_err());
    }
}
