//! `refit task`: stored tasks, runs and their logs.

mod credential;
mod definition;
mod details;
mod identity;
mod log_text;
mod name;
mod source;
mod start;
mod timer;

use std::io::IsTerminal as _;

use api::{Page, Run, TagAttributes, Task, TaskStep};
use url::Url;

use super::Session;
use super::image::{NamedImage, confirm};
use super::repository::pages;
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result, could_not};
use crate::follow::LogReader;
use crate::printer::Table;

use super::quick_task::ordinal;
use log_text::LogText;
use name::TaskArg;

pub(super) use source::line as source_line;
pub(super) use start::run as start;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Store a task: what it works on, and what it does there
    Create(Box<definition::SaveArgs>),
    /// Change what a task does; what is not given stays
    Update(Box<definition::SaveArgs>),
    /// List tasks
    List,
    /// Show a task
    Show(ShowArgs),
    /// Delete a task; its runs that wait are canceled, the others stay
    Delete(DeleteArgs),
    /// When a task starts by itself
    #[command(subcommand)]
    Timer(timer::Command),
    /// Make the secret that a git host's webhook for a task needs, and tell where it belongs
    Webhook(source::WebhookArgs),
    /// Logins of a task to other registries
    #[command(subcommand)]
    Credential(credential::Command),
    /// Whom the runs of a task can be for others
    #[command(subcommand)]
    Identity(identity::Command),
    /// Run a task
    Run(Box<start::RunArgs>),
    /// Print the log of a run, and follow it to its end
    Logs(LogsArgs),
    /// List runs, the newest first
    ListRuns(ListRunsArgs),
    /// Show a run
    ShowRun(RunArgs),
    /// Keep a run and its log for ever, or no longer than others
    UpdateRun(UpdateRunArgs),
    /// End a run
    CancelRun(RunArgs),
}

#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    #[command(flatten)]
    task: TaskArg,
    /// Accepted: secrets are never shown
    #[arg(long, hide = true)]
    with_secure_properties: bool,
}

#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    task: TaskArg,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    /// Run [default: the newest]
    #[arg(long, value_name = "ID")]
    run_id: Option<String>,
    /// The newest run of this task
    #[arg(long = "name", short = 'n', value_name = "TASK", conflicts_with = "run_id")]
    task: Option<String>,
    /// The newest run that pushed this image
    #[arg(long, value_name = "REPOSITORY:TAG|@DIGEST", conflicts_with = "run_id")]
    image: Option<String>,
    /// Only lines in which this regular expression is found; (?i) in front ignores case
    #[arg(long, value_name = "PATTERN")]
    grep: Option<String>,
    /// Changes nothing: a log is plain
    #[arg(long, hide = true)]
    no_format: bool,
    /// Print what is there, and leave
    #[arg(long)]
    no_follow: bool,
}

#[derive(Debug, clap::Args)]
pub struct ListRunsArgs {
    /// Only runs of this task
    #[arg(long = "name", short = 'n', value_name = "TASK")]
    task: Option<String>,
    /// Only runs with this status
    #[arg(long, value_name = "STATUS")]
    run_status: Option<String>,
    /// Only runs that pushed this image
    #[arg(long, value_name = "REPOSITORY:TAG|@DIGEST")]
    image: Option<String>,
    /// Only runs that agents of this pool execute
    #[arg(long, value_name = "POOL")]
    agent_pool: Option<String>,
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

#[derive(Debug, clap::Args)]
pub struct UpdateRunArgs {
    /// Run
    #[arg(long, value_name = "ID")]
    run_id: String,
    /// false: keep it for ever; true: no longer than others
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    no_archive: bool,
}

pub(super) async fn run(session: &Session<'_>, command: Command) -> Result<()> {
    match command {
        Command::Create(args) => definition::create(session, *args).await,
        Command::Update(args) => definition::update(session, *args).await,
        Command::List => list(session).await,
        Command::Show(args) => show(session, &args.task).await,
        Command::Delete(args) => delete(session, args).await,
        Command::Identity(command) => identity::run(session, command).await,
        Command::Timer(command) => timer::run(session, command).await,
        Command::Webhook(args) => source::webhook(session, args).await,
        Command::Credential(command) => credential::run(session, command).await,
        Command::Run(_) => Err(Error::failed("a run needs to be interruptible")),
        Command::Logs(args) => logs(session, args).await,
        Command::ListRuns(args) => {
            let filter = RunFilter {
                task: args.task,
                status: args.run_status,
                image: digest_of(session, args.image).await?,
                pool: args.agent_pool,
            }
            .text();
            let runs = newest(session, args.top, &filter).await?;
            print_runs(session, &runs, &runs)
        }
        Command::ShowRun(args) => {
            let connection = session.connection()?;
            let run: Run = connection.get(connection.route(&["runs", &args.run_id])).await?;
            session.printer.result(&run, &details::run(&run))
        }
        Command::UpdateRun(args) => {
            let connection = session.connection()?;
            let change = api::RunUpdate { is_archive_enabled: Some(!args.no_archive) };
            let url = connection.route(&["runs", &args.run_id]);
            let request = connection.request(reqwest::Method::PATCH, url).json(&change);
            let run: Run = connection.answer(request).await?;
            print_runs(session, &run, std::slice::from_ref(&run))
        }
        Command::CancelRun(args) => {
            let connection = session.connection()?;
            let url = connection.route(&["runs", &args.run_id, "cancel"]);
            connection.send(reqwest::Method::POST, url).await
        }
    }
}

fn route(connection: &Connection, task: &TaskArg) -> Url {
    connection.route(&["tasks", task.name()])
}

async fn list(session: &Session<'_>) -> Result<()> {
    let tasks: Vec<Task> = pages(session, &["tasks"]).await?;
    print(session, &tasks, &tasks)
}

async fn show(session: &Session<'_>, task: &TaskArg) -> Result<()> {
    let connection = session.connection()?;
    let task: Task = connection.get(route(connection, task)).await?;
    session.printer.result(&task, &details::task(&task))
}

async fn delete(session: &Session<'_>, args: DeleteArgs) -> Result<()> {
    confirm(&format!("Delete task `{}`?", args.task.name()), args.yes).await?;
    let connection = session.connection()?;
    connection.send(reqwest::Method::DELETE, route(connection, &args.task)).await
}

fn print(session: &Session<'_>, value: &impl serde::Serialize, tasks: &[Task]) -> Result<()> {
    let mut table =
        Table::new(["TASK", "STATUS", "PLATFORM", "DOES", "CONTEXT", "OWNER", "CHANGED"]);
    for task in tasks {
        let properties = &task.properties;
        let (does, context) = match &properties.step {
            Some(TaskStep::Docker(step)) => {
                (format!("builds {}", step.docker_file_path), &step.context)
            }
            Some(TaskStep::FileTask(step)) => {
                (format!("runs {}", step.task_file_path), &step.context)
            }
            Some(TaskStep::EncodedTask(step)) => ("runs its own file".to_owned(), &step.context),
            None => ("says how quick runs go".to_owned(), &api::StepContext::default()),
        };
        table.row([
            task.name.clone(),
            properties.status.clone().unwrap_or_default(),
            properties.platform.as_ref().map(details::platform).unwrap_or_default(),
            does,
            context.context_path.clone().unwrap_or_default(),
            properties.owner.clone().unwrap_or_default(),
            properties.last_updated_time.clone().unwrap_or_default(),
        ]);
    }
    session.printer.result(value, &table)
}

/// Which runs are listed.
#[derive(Default)]
struct RunFilter {
    task: Option<String>,
    status: Option<String>,
    /// `REPOSITORY@DIGEST`
    image: Option<String>,
    pool: Option<String>,
}

impl RunFilter {
    /// The `$filter` of the listing.
    fn text(&self) -> String {
        let quoted = |text: &String| format!("'{}'", text.replace('\'', "''"));
        let is = |name: &str, value: &Option<String>| {
            value.as_ref().map(|value| format!("{name} eq {}", quoted(value)))
        };
        let image = self.image.as_ref();
        let image = image.map(|image| format!("contains(OutputImageManifests, {})", quoted(image)));
        let parts = [
            is("TaskName", &self.task),
            is("Status", &self.status),
            image,
            is("AgentPoolName", &self.pool),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" and ")
    }
}

/// An image as runs are found by: a tag is where the registry has it now.
async fn digest_of(session: &Session<'_>, image: Option<String>) -> Result<Option<String>> {
    let Some(image) = image else { return Ok(None) };
    let named = NamedImage::parse(&image)?;
    let reference = named.required_reference()?;
    if image.contains('@') {
        return Ok(Some(image));
    }
    let connection = session.connection()?;
    let url = connection.route(&["repositories", &named.repository, "tags", reference]);
    let tag: TagAttributes = connection.get(url).await?;
    Ok(Some(format!("{}@{}", named.repository, tag.digest)))
}

async fn logs(session: &Session<'_>, args: LogsArgs) -> Result<()> {
    let id = match args.run_id {
        Some(id) => id,
        None => {
            let image = digest_of(session, args.image).await?;
            let filter = RunFilter { task: args.task, image, ..RunFilter::default() }.text();
            match newest(session, 1, &filter).await?.into_iter().next() {
                Some(run) => run.properties.run_id,
                None => return Err(Error::new(ErrorKind::NotFound, "there is no such run yet")),
            }
        }
    };
    if let Some(pattern) = &args.grep {
        let connection = session.connection()?;
        let mut text = LogText::new(std::io::stdout().is_terminal());
        let mut url = connection.route(&["runs", &id, "logs"]);
        let follow = if args.no_follow { "false" } else { "true" };
        url.query_pairs_mut().append_pair("grep", pattern).append_pair("follow", follow);
        let request = connection.request(reqwest::Method::GET, url);
        let mut found = connection.stream(request).await?;
        while let Some(bytes) = found.chunk().await.map_err(could_not("read the log"))? {
            session.printer.out(&text.push(&bytes))?;
        }
        session.printer.out(&text.finish())?;
        let run: Run = connection.get(connection.route(&["runs", &id])).await?;
        return match args.no_follow || run.properties.status.is_final() {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Unreachable, "the server ended the connection")
                .with_hint("the run may go on: search again")),
        };
    }
    print_log(session, id, !args.no_follow).await
}

/// Prints the log of a run, and follows it to its end.
pub(super) async fn print_log(session: &Session<'_>, id: String, follow: bool) -> Result<()> {
    let mut text = LogText::new(std::io::stdout().is_terminal());
    let mut log = LogReader::new(session.connection()?.clone(), id, follow);
    while let Some(bytes) = log.next().await? {
        session.printer.out(&text.push(&bytes))?;
    }
    session.printer.out(&text.finish())
}

async fn newest(session: &Session<'_>, top: u32, filter: &str) -> Result<Vec<Run>> {
    let connection = session.connection()?;
    let mut url = connection.route(&["runs"]);
    url.query_pairs_mut().append_pair("$top", &top.to_string()).append_pair("$filter", filter);
    let page: Page<Run> = connection.get(url).await?;
    Ok(page.value)
}

fn print_runs(session: &Session<'_>, value: &impl serde::Serialize, runs: &[Run]) -> Result<()> {
    let mut table =
        Table::new(["RUN ID", "TASK", "TRIGGER", "STATUS", "CREATED", "FINISHED", "IMAGES"]);
    for run in runs {
        let run = &run.properties;
        let images = run.output_images.iter().map(|image| match &image.tag {
            Some(tag) => format!("{}:{tag}", image.repository),
            None => image.repository.clone(),
        });
        table.row([
            run.run_id.clone(),
            run.task.clone().unwrap_or_default(),
            run.cause.as_ref().map(|cause| cause.kind.clone()).unwrap_or_default(),
            match &run.waiting {
                Some(waiting) => format!("Queued ({})", ordinal(waiting.position)),
                None => format!("{:?}", run.status),
            },
            run.create_time.clone(),
            run.finish_time.clone().unwrap_or_default(),
            images.collect::<Vec<_>>().join(","),
        ]);
    }
    session.printer.result(value, &table)
}
