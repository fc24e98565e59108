//! `refit trigger`: what triggers have seen and decided.

use api::{Page, Task, TaskStep, TriggerEvent};

use super::Session;
use super::task::source_line;
use crate::error::Result;
use crate::printer::Table;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List what triggers have seen and decided, the newest first
    List(ListArgs),
    /// Tell why a task has run, or has not
    Why(WhyArgs),
}

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Only events of this task
    #[arg(long = "name", short = 'n', value_name = "TASK")]
    task: Option<String>,
    /// Only those with this decision: Fired, Joined, Skipped, Suppressed or Waits
    #[arg(long, value_name = "DECISION")]
    decision: Option<String>,
    /// How many at most
    #[arg(long, default_value_t = 50, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    top: u32,
}

#[derive(Debug, clap::Args)]
pub struct WhyArgs {
    /// Task
    #[arg(value_name = "TASK")]
    task: String,
    /// How many events at most
    #[arg(long, default_value_t = 10, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    top: u32,
}

pub(super) async fn run(session: &Session<'_>, command: Command) -> Result<()> {
    match command {
        Command::List(args) => {
            let (task, decision) = (args.task.as_deref(), args.decision.as_deref());
            let events = events(session, task, decision, args.top).await?;
            session.printer.result(&events, &table(&events))
        }
        Command::Why(args) => why(session, &args).await,
    }
}

async fn events(
    session: &Session<'_>,
    task: Option<&str>,
    decision: Option<&str>,
    top: u32,
) -> Result<Vec<TriggerEvent>> {
    let connection = session.connection()?;
    let mut url = connection.route(&["triggerEvents"]);
    {
        let mut query = url.query_pairs_mut();
        query.append_pair("$top", &top.to_string());
        task.map(|task| query.append_pair("taskName", task));
        decision.map(|decision| query.append_pair("decision", decision));
    }
    let page: Page<TriggerEvent> = connection.get(url).await?;
    Ok(page.value)
}

fn table(events: &[TriggerEvent]) -> Table {
    let mut table = Table::new(["TIME", "TASK", "TRIGGER", "EVENT", "DECISION", "RUN", "REASON"]);
    for event in events {
        let times =
            if event.count > 1 { format!(" ({} times)", event.count) } else { String::new() };
        table.row([
            event.time.clone(),
            event.task.clone(),
            format!("{} {}", event.kind, event.trigger),
            event.event.clone(),
            format!("{}{times}", event.decision),
            event.run_id.clone().unwrap_or_default(),
            event.reason.clone().unwrap_or_default(),
        ]);
    }
    table
}

/// What would start the task, and what did.
async fn why(session: &Session<'_>, args: &WhyArgs) -> Result<()> {
    let connection = session.connection()?;
    let task: Task = connection.get(connection.route(&["tasks", &args.task])).await?;
    let events = events(session, Some(&args.task), None, args.top).await?;
    for line in standing(&task) {
        session.printer.note(&line);
    }
    if events.is_empty() {
        session.printer.note("No trigger of this task has seen anything yet");
    }
    session.printer.result(&events, &table(&events))
}

/// Which images start a task when they move.
fn base_line(task: &Task, trigger: &api::BaseImageTrigger) -> String {
    if trigger.status.as_deref() == Some("Disabled") {
        return format!("Base-image trigger `{}` is disabled", trigger.name);
    }
    let is_all = trigger.base_image_trigger_type.eq_ignore_ascii_case("all");
    let step = task.properties.step.as_ref();
    let context = step.map(|step| match step {
        TaskStep::Docker(step) => &step.context,
        TaskStep::FileTask(step) => &step.context,
        TaskStep::EncodedTask(step) => &step.context,
    });
    let bases = context.and_then(|context| context.base_image_dependencies.as_ref());
    let bases = bases.into_iter().flatten();
    let mut names: Vec<String> = bases
        .filter(|base| is_all || base.kind.eq_ignore_ascii_case("runtime"))
        .filter(|base| base.digest.is_some())
        .filter_map(|base| {
            let tag = base.tag.as_ref().filter(|tag| !tag.is_empty())?;
            Some(format!("{}/{}:{tag}", base.registry, base.repository))
        })
        .collect();
    names.dedup();
    match names.is_empty() {
        true => format!(
            "Base-image trigger `{}` knows no image yet: a run that succeeds tells it",
            trigger.name
        ),
        false => format!(
            "Base-image trigger `{}`: the task is built on {}; those of this server start it",
            trigger.name,
            names.join(", ")
        ),
    }
}

/// What starts a task, as it stands.
fn standing(task: &Task) -> Vec<String> {
    let mut lines = Vec::new();
    let properties = &task.properties;
    if properties.status.as_deref() == Some("Disabled") {
        lines.push("The task is disabled: nothing starts it".to_owned());
    }
    if let Some(time) = &properties.expires_on {
        lines.push(format!("The task starts no runs from {time} on"));
    }
    let timers = properties.trigger.as_ref().and_then(|all| all.timer_triggers.as_ref());
    for timer in timers.into_iter().flatten() {
        let zone = timer.time_zone.as_deref().unwrap_or("UTC");
        let next = match (&timer.next_occurrence, timer.status.as_deref()) {
            (Some(next), _) => format!("is due at {next}"),
            (None, Some("Disabled")) => "is disabled".to_owned(),
            (None, _) => "starts nothing".to_owned(),
        };
        lines.push(format!("Timer `{}` ({} {zone}) {next}", timer.name, timer.schedule));
    }
    let sources = properties.trigger.as_ref().and_then(|all| all.source_triggers.as_ref());
    let sources = sources.into_iter().flatten();
    lines.extend(sources.clone().map(|source| format!("Source trigger {}", source_line(source))));
    let bases = properties.trigger.as_ref().and_then(|all| all.base_image_trigger.as_ref());
    lines.extend(bases.map(|trigger| base_line(task, trigger)));
    if timers.is_none_or(Vec::is_empty) && bases.is_none() && sources.count() == 0 {
        lines.push("The task has no triggers: it runs when somebody starts it".to_owned());
    }
    lines
}
