//! `refit account` and `refit role`: people and programs that use a server, and what they may do.

use api::{Account, AccountPassword, AccountRequest, PasswordRequest, RoleRequest};
use reqwest::Method;

use super::Session;
use super::image::confirm;
use super::repository::server_pages;
use crate::error::{Error, Result};
use crate::printer::Table;
use crate::prompt;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make an account; without a password of yours, a random one is printed this once
    Create(CreateArgs),
    /// Switch an account off and on, or describe it otherwise
    Update(UpdateArgs),
    /// List the accounts with their roles
    List,
    /// Show an account
    Show(NameArgs),
    /// Give an account another password; what was got with the one before ends
    Password(PasswordArgs),
    /// Delete an account with its roles
    Delete(DeleteArgs),
}

#[derive(Debug, clap::Subcommand)]
pub enum RoleCommand {
    /// Give an account a role in the registry, instead of the one that it has there
    Assign(AssignArgs),
    /// Take the role away that an account has in the registry
    Remove(RemoveArgs),
    /// List who has which role in the registry
    List,
}

#[derive(Debug, clap::Args)]
pub struct NameArgs {
    /// Account
    #[arg(value_name = "ACCOUNT")]
    account: String,
}

#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    #[command(flatten)]
    name: NameArgs,
    /// It is a program, not a person
    #[arg(long)]
    service_principal: bool,
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Role in the registry: reader, runner, author, owner or admin
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
    /// Read its password from standard input
    #[arg(long)]
    password_stdin: bool,
}

#[derive(Debug, clap::Args)]
pub struct UpdateArgs {
    #[command(flatten)]
    name: NameArgs,
    /// `enabled` or `disabled`
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct PasswordArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Read it from standard input
    #[arg(long)]
    password_stdin: bool,
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
    /// reader, runner, author, owner or admin
    #[arg(value_name = "ROLE")]
    role: String,
    /// In all registries of the server, those to come included
    #[arg(long)]
    all_registries: bool,
}

#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    name: NameArgs,
    /// The role that it has in all registries
    #[arg(long)]
    all_registries: bool,
}

pub(super) async fn run(session: &Session<'_>, command: Command) -> Result<()> {
    let connection = session.connection()?;
    let route = |name: &NameArgs| connection.server_route(&["accounts", &name.account]);
    match command {
        Command::Create(args) => create(session, args).await,
        Command::Update(args) => {
            let (status, description) = (args.status, args.description);
            let body = AccountRequest { status, description, ..AccountRequest::default() };
            let request = connection.request(Method::PATCH, route(&args.name)).json(&body);
            let account: Account = connection.answer(request).await?;
            print(session, &account, std::slice::from_ref(&account))
        }
        Command::List => {
            let accounts: Vec<Account> = server_pages(session, &["accounts"]).await?;
            print(session, &accounts, &accounts)
        }
        Command::Show(name) => {
            let account: Account = connection.get(route(&name)).await?;
            print(session, &account, std::slice::from_ref(&account))
        }
        Command::Password(args) => {
            let password = password(args.password_stdin).await?;
            let url = connection.server_route(&["accounts", &args.name.account, "setPassword"]);
            let account: Account = connection.post(url, &PasswordRequest { password }).await?;
            print_made(session, &account)
        }
        Command::Delete(args) => {
            confirm(&format!("Delete account `{}`?", args.name.account), args.yes).await?;
            connection.send(Method::DELETE, route(&args.name)).await
        }
    }
}

pub(super) async fn run_role(session: &Session<'_>, command: RoleCommand) -> Result<()> {
    let connection = session.connection()?;
    let route = |name: &NameArgs, all: bool| {
        let path = ["roleAssignments", &name.account];
        if all { connection.server_route(&path) } else { connection.route(&path) }
    };
    match command {
        RoleCommand::Assign(args) => {
            let body = RoleRequest { role: args.role };
            let url = route(&args.name, args.all_registries);
            let request = connection.request(Method::PUT, url).json(&body);
            let account: Account = connection.answer(request).await?;
            print(session, &account, std::slice::from_ref(&account))
        }
        RoleCommand::Remove(args) => {
            connection.send(Method::DELETE, route(&args.name, args.all_registries)).await
        }
        RoleCommand::List => {
            let accounts: Vec<Account> =
                super::repository::pages(session, &["roleAssignments"]).await?;
            print(session, &accounts, &accounts)
        }
    }
}

async fn create(session: &Session<'_>, args: CreateArgs) -> Result<()> {
    let connection = session.connection()?;
    let kind = if args.service_principal { "servicePrincipal" } else { "user" };
    let body = AccountRequest {
        kind: Some(kind.to_owned()),
        status: None,
        description: args.description,
        password: password(args.password_stdin).await?,
    };
    let url = connection.server_route(&["accounts", &args.name.account]);
    let request = connection.request(Method::PUT, url).json(&body);
    let mut account: Account = connection.answer(request).await?;
    if let Some(role) = args.role {
        let url = connection.route(&["roleAssignments", &args.name.account]);
        let request = connection.request(Method::PUT, url).json(&RoleRequest { role });
        let with_role: Result<Account> = connection.answer(request).await;
        match with_role {
            Ok(with_role) => account.roles = with_role.roles,
            Err(error) => {
                // Its password would be lost.
                print_made(session, &account)?;
                return Err(error);
            }
        }
    }
    print_made(session, &account)
}

async fn password(from_stdin: bool) -> Result<Option<AccountPassword>> {
    if !from_stdin {
        return Ok(None);
    }
    match prompt::all_input().await? {
        empty if empty.is_empty() => Err(Error::usage("the password is empty")),
        password => Ok(Some(AccountPassword(password))),
    }
}

/// An account and its password, if that was made.
fn print_made(session: &Session<'_>, account: &Account) -> Result<()> {
    let Some(AccountPassword(password)) = &account.password else {
        return print(session, account, std::slice::from_ref(account));
    };
    session.printer.note("The password is shown this once");
    let mut table = Table::new(["ACCOUNT", "PASSWORD", "ROLES"]);
    table.row([account.name.clone(), password.clone(), roles(account)]);
    session.printer.result(account, &table)
}

fn print(session: &Session<'_>, value: &impl serde::Serialize, accounts: &[Account]) -> Result<()> {
    let mut table = Table::new(["ACCOUNT", "KIND", "STATUS", "ROLES", "DESCRIPTION"]);
    for account in accounts {
        table.row([
            account.name.clone(),
            account.kind.clone(),
            account.status.clone(),
            roles(account),
            account.description.clone(),
        ]);
    }
    session.printer.result(value, &table)
}

/// `owner, reader of local`.
fn roles(account: &Account) -> String {
    let roles = account.roles.iter().map(|role| match &role.registry {
        Some(registry) => format!("{} of {registry}", role.role),
        None => format!("{} of all registries", role.role),
    });
    roles.collect::<Vec<_>>().join(", ")
}
