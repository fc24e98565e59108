//! `refit task run`: a run of a stored task.

use std::path::{Path, PathBuf};

use api::{OverrideTaskStepProperties, Run, RunRequest, Task, TaskRunRequest, TaskStep};

use super::super::Session;
use super::super::quick_task::{LogArgs, PoolArgs, ProgressArgs, report, see_to_end, upload};
use super::super::task_input::{ValueArgs, named_values};
use super::name::TaskArg;
use super::route;
use crate::context::{Content, Source, Workspace};
use crate::error::{Error, Result};
use crate::interrupt::Interrupts;
use crate::printer::Table;
use crate::progress::Display;
use crate::ssh::Agents;

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    task: TaskArg,

    /// Folder or address to work on instead of the task's context, this time
    #[arg(long, short, value_name = "CONTEXT")]
    context: Option<String>,

    /// Another Dockerfile or task file of the context, this time
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Value for an `ARG` of the Dockerfile; without =VALUE it comes from the environment
    #[arg(long = "arg", visible_alias = "build-arg", value_name = "NAME[=VALUE]")]
    args: Vec<String>,

    /// The same, with a value that is not shown
    #[arg(long = "secret-arg", visible_alias = "secret-build-arg", value_name = "NAME[=VALUE]")]
    secret_args: Vec<String>,

    #[command(flatten)]
    values: ValueArgs,

    /// Stage of the Dockerfile to stop at, this time
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,

    /// Text in Base64 that the run tells again
    #[arg(long, value_name = "TEXT")]
    update_trigger_token: Option<String>,

    /// Print the run once it is queued, and leave
    #[arg(long)]
    no_wait: bool,

    #[command(flatten)]
    progress: ProgressArgs,

    #[command(flatten)]
    pool: PoolArgs,

    #[command(flatten)]
    log: LogArgs,
}

pub(crate) async fn run(
    session: &Session<'_>,
    args: RunArgs,
    interrupts: &mut Interrupts,
) -> Result<()> {
    let values = args.values.values()?;
    let arguments = named_values(&args.args, &args.secret_args, session.environment)?;
    let connection = session.connection()?;
    let mut display = Display::new(args.progress.mode(), session.printer, session.environment);
    let mut overrides = OverrideTaskStepProperties {
        context_path: None,
        file: args.file.as_ref().map(|file| file.to_string_lossy().into_owned()),
        target: args.target.clone(),
        arguments,
        values,
        update_trigger_token: args.update_trigger_token.clone(),
    };
    if let Some(context) = &args.context {
        let place = tokio::select! {
            place = place(session, &args, context, &mut display) => place?,
            // Nothing is queued yet; the server sweeps what it received.
            () = interrupts.next() => return Err(Error::interrupted()),
        };
        overrides.context_path = Some(place.location);
        overrides.file = place.file.or(overrides.file);
    }
    let request = RunRequest::TaskRunRequest(TaskRunRequest {
        task_id: args.task.name().to_owned(),
        override_task_step_properties: Some(overrides),
        agent_pool_name: args.pool.pool.clone(),
        log_template: args.log.template.clone(),
        is_archive_enabled: false,
    });
    let run: Run = connection.post(connection.route(&["scheduleRun"]), &request).await?;
    let id = run.properties.run_id.clone();
    if args.no_wait {
        return session.printer.result(&run, &Table::lines([id]));
    }
    display.note(&format!("Queued a run with ID: {id}"));
    let agents = Agents::open(&[], session.environment).await?;
    let (run, ended) = see_to_end(connection, run, &agents, display, interrupts).await?;
    report(session, &run, ended, false)
}

/// Where the server finds another context, and the file in it if it was named from here.
struct Place {
    location: String,
    file: Option<String>,
}

async fn place(
    session: &Session<'_>,
    args: &RunArgs,
    context: &str,
    display: &mut Display,
) -> Result<Place> {
    let workspace = Workspace::find(context)?;
    let file = args.file.as_deref();
    let file = match file {
        Some(file) => workspace.path_of("--file", file)?,
        None => None,
    };
    let location = match workspace {
        Workspace::Empty => return Err(Error::usage("`--context` names no context")),
        Workspace::Remote(address) => address,
        Workspace::Folder(folder) => {
            let connection = session.connection()?;
            let task: Task = connection.get(route(connection, &args.task)).await?;
            let needed = needed_files(&task, file.as_deref());
            missing(&folder, &needed)?;
            let needed: Vec<&str> = needed.iter().map(String::as_str).collect();
            let content = Content::Folder(Source::of_workspace(&folder, &needed)?);
            upload(connection, session, "the context", content, display).await?
        }
    };
    Ok(Place { location, file })
}

/// The files of the context that the server needs to know what to do.
fn needed_files(task: &Task, file: Option<&str>) -> Vec<String> {
    let (own, values) = match &task.properties.step {
        Some(TaskStep::Docker(step)) => (Some(&step.docker_file_path), None),
        Some(TaskStep::FileTask(step)) => {
            (Some(&step.task_file_path), step.values_file_path.as_ref())
        }
        Some(TaskStep::EncodedTask(_)) | None => return Vec::new(),
    };
    let file = file.or(own.map(String::as_str)).map(str::to_owned);
    file.into_iter().chain(values.cloned()).collect()
}

/// A file that is not there is told before anything is sent.
fn missing(folder: &Path, files: &[String]) -> Result<()> {
    match files.iter().find(|file| !folder.join(file).is_file()) {
        None => Ok(()),
        Some(file) => {
            let shown = folder.display();
            Err(Error::usage(format!(
                "the context `{shown}` has no file `{file}`, which the task needs"
            ))
            .with_hint("`--file` names another one"))
        }
    }
}
