//! `refit task`: runs and their logs. Stored tasks come later.

mod log_text;

use std::io::IsTerminal as _;

use api::{Page, Run};

use super::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::follow::LogReader;
use crate::printer::Table;

use log_text::LogText;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print the log of a run, and follow it to its end
    Logs(LogsArgs),
    /// List runs, the newest first
    ListRuns(ListRunsArgs),
    /// Show a run
    ShowRun(RunArgs),
    /// End a run
    CancelRun(RunArgs),
}

#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    /// Run [default: the newest]
    #[arg(long, value_name = "ID")]
    run_id: Option<String>,
    /// Print what is there, and leave
    #[arg(long)]
    no_follow: bool,
}

#[derive(Debug, clap::Args)]
pub struct ListRunsArgs {
    /// How many at most
    #[arg(long, default_value_t = 15, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    top: u32,
}

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Run
    #[arg(long, value_name = "ID")]
    run_id: String,
}

pub(super) async fn run(session: &Session<'_>, command: Command) -> Result<()> {
    match command {
        Command::Logs(args) => logs(session, args).await,
        Command::ListRuns(args) => {
            let runs = newest(session, args.top).await?;
            print(session, &runs, &runs)
        }
        Command::ShowRun(args) => {
            let connection = session.connection()?;
            let run: Run = connection.get(connection.route(&["runs", &args.run_id])).await?;
            print(session, &run, std::slice::from_ref(&run))
        }
        Command::CancelRun(args) => {
            let connection = session.connection()?;
            let url = connection.route(&["runs", &args.run_id, "cancel"]);
            connection.send(reqwest::Method::POST, url).await
        }
    }
}

async fn logs(session: &Session<'_>, args: LogsArgs) -> Result<()> {
    let id = match args.run_id {
        Some(id) => id,
        None => match newest(session, 1).await?.into_iter().next() {
            Some(run) => run.properties.run_id,
            None => return Err(Error::new(ErrorKind::NotFound, "there are no runs yet")),
        },
    };
    let mut log = LogReader::new(session.connection()?.clone(), id, !args.no_follow);
    let mut text = LogText::new(std::io::stdout().is_terminal());
    while let Some(bytes) = log.next().await? {
        session.printer.out(&text.push(&bytes))?;
    }
    session.printer.out(&text.finish())
}

async fn newest(session: &Session<'_>, top: u32) -> Result<Vec<Run>> {
    let connection = session.connection()?;
    let mut url = connection.route(&["runs"]);
    url.query_pairs_mut().append_pair("$top", &top.to_string());
    let page: Page<Run> = connection.get(url).await?;
    Ok(page.value)
}

fn print(session: &Session<'_>, value: &impl serde::Serialize, runs: &[Run]) -> Result<()> {
    let mut table = Table::new(["RUN ID", "TYPE", "STATUS", "CREATED", "FINISHED", "IMAGES"]);
    for run in runs {
        let run = &run.properties;
        let images = run.output_images.iter().map(|image| match &image.tag {
            Some(tag) => format!("{}:{tag}", image.repository),
            None => image.repository.clone(),
        });
        table.row([
            run.run_id.clone(),
            run.run_type.clone(),
            format!("{:?}", run.status),
            run.create_time.clone(),
            run.finish_time.clone().unwrap_or_default(),
            images.collect::<Vec<_>>().join(","),
        ]);
    }
    session.printer.result(value, &table)
}
