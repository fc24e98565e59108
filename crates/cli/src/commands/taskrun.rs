//! `refit taskrun`: runs that are declared by name.

use api::TaskRun;

use super::Session;
use super::image::confirm;
use super::repository::pages;
use super::task::print_log;
use crate::error::{Error, ErrorKind, Result};
use crate::printer::Table;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List task runs
    List,
    /// Show a task run
    Show(NameArgs),
    /// Print the log of a task run, and follow it to its end
    Logs(NameArgs),
    /// Delete a task run; its run goes on
    Delete(DeleteArgs),
}

/// A name given as an argument or, as `az acr` has it, by a flag.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct NameArgs {
    /// Task run
    #[arg(value_name = "TASKRUN")]
    task_run: Option<String>,
    #[arg(long = "name", short = 'n', hide = true)]
    name_flag: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

impl NameArgs {
    fn name(&self) -> &str {
        self.task_run.as_deref().or(self.name_flag.as_deref()).unwrap_or_default()
    }
}

pub(super) async fn run(session: &Session<'_>, command: Command) -> Result<()> {
    match command {
        Command::List => {
            let found: Vec<TaskRun> = pages(session, &["taskRuns"]).await?;
            print(session, &found, &found)
        }
        Command::Show(args) => {
            let found = find(session, &args).await?;
            print(session, &found, std::slice::from_ref(&found))
        }
        Command::Logs(args) => logs(session, &args).await,
        Command::Delete(args) => {
            let name = args.name.name();
            confirm(&format!("Delete task run `{name}`?"), args.yes).await?;
            let connection = session.connection()?;
            connection.send(reqwest::Method::DELETE, connection.route(&["taskRuns", name])).await
        }
    }
}

async fn find(session: &Session<'_>, args: &NameArgs) -> Result<TaskRun> {
    let connection = session.connection()?;
    connection.get(connection.route(&["taskRuns", args.name()])).await
}

async fn logs(session: &Session<'_>, args: &NameArgs) -> Result<()> {
    let found = find(session, args).await?;
    let Some(run) = found.properties.run_result else {
        return Err(Error::new(ErrorKind::NotFound, "its run is not kept any more"));
    };
    print_log(session, run.properties.run_id, true).await
}

fn print(session: &Session<'_>, value: &impl serde::Serialize, found: &[TaskRun]) -> Result<()> {
    let mut table = Table::new(["TASK RUN", "RUN ID", "TYPE", "STATUS", "CREATED", "FINISHED"]);
    for task_run in found {
        let run = task_run.properties.run_result.as_ref().map(|run| &run.properties);
        let text = |of: fn(&api::RunProperties) -> String| run.map(of).unwrap_or_default();
        table.row([
            task_run.name.clone(),
            text(|run| run.run_id.clone()),
            text(|run| run.run_type.clone()),
            text(|run| format!("{:?}", run.status)),
            text(|run| run.create_time.clone()),
            text(|run| run.finish_time.clone().unwrap_or_default()),
        ]);
    }
    session.printer.result(value, &table)
}
