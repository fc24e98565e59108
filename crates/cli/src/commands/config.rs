//! `refit config`: what the registry does by itself.

use api::{
    Policies, RetentionPolicy, SoftDeletePolicy, UpdatePolicies, UpdateRetentionPolicy,
    UpdateSoftDeletePolicy,
};
use reqwest::Method;

use super::Session;
use crate::error::Result;
use crate::printer::Table;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// What becomes of manifests that lose their last tag
    #[command(subcommand)]
    Retention(RetentionCommand),
    /// Whether what is deleted can be restored
    #[command(subcommand)]
    SoftDelete(SoftDeleteCommand),
}

#[derive(Debug, clap::Subcommand)]
pub enum RetentionCommand {
    /// Show it
    Show,
    /// Switch it on or off, and say after how many days they go
    Update(UpdateArgs),
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("change").required(true).multiple(true)))]
pub struct UpdateArgs {
    /// `enabled`: what loses its last tag from now on goes. `disabled`: what is still there stays
    #[arg(long, value_name = "STATUS", group = "change")]
    status: Option<String>,
    /// Days that it is kept, 0 to 365
    #[arg(long, value_name = "COUNT", group = "change", allow_negative_numbers = true)]
    days: Option<i64>,
    /// What goes
    #[arg(long = "type", value_name = "TYPE", default_value = "UntaggedManifests")]
    kind: String,
}

#[derive(Debug, clap::Subcommand)]
pub enum SoftDeleteCommand {
    /// Show it
    Show,
    /// Switch it on or off, and say for how many days deleted things can be restored
    Update(SoftDeleteArgs),
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("change").required(true).multiple(true)))]
pub struct SoftDeleteArgs {
    /// `enabled`: what is deleted from now on can be restored. `disabled`: what can be still can
    #[arg(long, value_name = "STATUS", group = "change")]
    status: Option<String>,
    /// Days that it can be, 1 to 90, also of what is deleted already
    #[arg(long, value_name = "COUNT", group = "change", allow_negative_numbers = true)]
    days: Option<i64>,
}

pub(super) async fn run(session: &Session<'_>, command: Command) -> Result<()> {
    match command {
        Command::Retention(RetentionCommand::Show) => retention(session, None).await,
        Command::Retention(RetentionCommand::Update(args)) => {
            let UpdateArgs { status, days, kind } = args;
            let policy = UpdateRetentionPolicy { kind: Some(kind), status, days };
            retention(session, Some(policy)).await
        }
        Command::SoftDelete(SoftDeleteCommand::Show) => soft_delete(session, None).await,
        Command::SoftDelete(SoftDeleteCommand::Update(args)) => {
            let SoftDeleteArgs { status, days } = args;
            let policy = UpdateSoftDeletePolicy { status, retention_days: days };
            soft_delete(session, Some(policy)).await
        }
    }
}

/// What the registry does by itself, after a change if there is one.
async fn policies(session: &Session<'_>, change: Option<UpdatePolicies>) -> Result<Policies> {
    let connection = session.connection()?;
    let url = connection.route(&["policies"]);
    match change {
        None => connection.get(url).await,
        Some(body) => connection.answer(connection.request(Method::PATCH, url).json(&body)).await,
    }
}

async fn retention(session: &Session<'_>, change: Option<UpdateRetentionPolicy>) -> Result<()> {
    let change = change.map(|policy| UpdatePolicies {
        retention_policy: Some(policy),
        ..UpdatePolicies::default()
    });
    let policies = policies(session, change).await?;
    let RetentionPolicy { kind, status, days, last_updated_time } = &policies.retention_policy;
    let mut table = Table::new(["TYPE", "STATUS", "DAYS", "UPDATED"]);
    table.row([
        kind.clone(),
        status.clone(),
        days.to_string(),
        last_updated_time.clone().unwrap_or_default(),
    ]);
    session.printer.result(&policies.retention_policy, &table)
}

async fn soft_delete(session: &Session<'_>, change: Option<UpdateSoftDeletePolicy>) -> Result<()> {
    let change = change.map(|policy| UpdatePolicies {
        soft_delete_policy: Some(policy),
        ..UpdatePolicies::default()
    });
    let policies = policies(session, change).await?;
    let SoftDeletePolicy { status, retention_days, last_updated_time } =
        &policies.soft_delete_policy;
    let mut table = Table::new(["STATUS", "DAYS", "UPDATED"]);
    table.row([
        status.clone(),
        retention_days.to_string(),
        last_updated_time.clone().unwrap_or_default(),
    ]);
    session.printer.result(&policies.soft_delete_policy, &table)
}
