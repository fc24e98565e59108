//! `refit config`: what the registry does by itself.

use api::{Policies, RetentionPolicy, UpdatePolicies, UpdateRetentionPolicy};
use reqwest::Method;

use super::Session;
use crate::error::Result;
use crate::printer::Table;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// What becomes of manifests that lose their last tag
    #[command(subcommand)]
    Retention(RetentionCommand),
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

pub(super) async fn run(session: &Session<'_>, command: Command) -> Result<()> {
    let connection = session.connection()?;
    let url = connection.route(&["policies"]);
    let policies: Policies = match command {
        Command::Retention(RetentionCommand::Show) => connection.get(url).await?,
        Command::Retention(RetentionCommand::Update(args)) => {
            let UpdateArgs { status, days, kind } = args;
            let policy = UpdateRetentionPolicy { kind: Some(kind), status, days };
            let body = UpdatePolicies { retention_policy: Some(policy) };
            connection.answer(connection.request(Method::PATCH, url).json(&body)).await?
        }
    };
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
