//! `refit trigger`: what triggers have seen and decided.

use api::{
    Page, PauseTriggersRequest, ResumeTriggersRequest, SimulateTriggerRequest, SimulatedDecision,
    Task, TaskStep, TriggerEvent, TriggerPause, TriggerWatch,
};
use jiff::{Span, Timestamp};

use super::Session;
use super::task::source_line;
use crate::error::{Error, Result};
use crate::printer::Table;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List what triggers have seen and decided, the newest first
    List(ListArgs),
    /// Tell why a task has run, or has not
    Why(WhyArgs),
    /// List the images of other registries that tasks are built on, and when they are asked for
    Watches,
    /// Tell what an event would start, and why not; nothing is started
    Simulate(SimulateArgs),
    /// Hold triggers: commits and bases that move wait, times of timers are left out
    Pause(PauseArgs),
    /// Let triggers go on that were held
    Resume(ResumeArgs),
    /// List the triggers that are held
    Pauses,
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

/// Which triggers.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct ScopeArgs {
    /// Those of a task
    #[arg(long = "name", short = 'n', value_name = "TASK")]
    task: Option<String>,
    /// What follows from an image, written as a Dockerfile names it
    #[arg(long, value_name = "IMAGE")]
    base: Option<String>,
    /// All of the registry
    #[arg(long)]
    all: bool,
}

#[derive(Debug, clap::Args)]
pub struct SimulateArgs {
    /// An image that becomes another one, written as a Dockerfile names it
    #[arg(
        long,
        value_name = "IMAGE",
        conflicts_with_all = ["branch", "until"],
        required_unless_present_any = ["branch", "until"]
    )]
    base: Option<String>,
    /// A branch that has another commit
    #[arg(long, value_name = "BRANCH", conflicts_with = "until")]
    branch: Option<String>,
    /// What timers start from now until then, such as 2030-01-31T00:00:00Z
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    /// With --base: which image it becomes, to compare the platforms that were built
    #[arg(long, value_name = "DIGEST", requires = "base")]
    digest: Option<String>,
    /// With --branch: a pull request into it, by its number
    #[arg(long, value_name = "NUMBER", requires = "branch")]
    pull_request: Option<u64>,
    /// With --pull-request: it comes from a fork
    #[arg(long, requires = "pull_request")]
    fork: bool,
    /// Only what concerns this task
    #[arg(long = "name", short = 'n', value_name = "TASK")]
    task: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct PauseArgs {
    #[command(flatten)]
    scope: ScopeArgs,
    /// Why, for whoever wonders
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// When it ends by itself, such as 2030-01-31T00:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "hours")]
    until: Option<Timestamp>,
    /// After how many hours it ends by itself
    #[arg(long, value_name = "HOURS", value_parser = clap::value_parser!(u32).range(1..=87_600))]
    hours: Option<u32>,
}

#[derive(Debug, clap::Args)]
pub struct ResumeArgs {
    #[command(flatten)]
    scope: ScopeArgs,
}

pub(super) async fn run(session: &Session<'_>, command: Command) -> Result<()> {
    match command {
        Command::List(args) => {
            for pause in pauses(session, None).await? {
                session.printer.note(&pause_line(&pause));
            }
            let (task, decision) = (args.task.as_deref(), args.decision.as_deref());
            let events = events(session, task, decision, args.top).await?;
            session.printer.result(&events, &table(&events))
        }
        Command::Why(args) => why(session, &args).await,
        Command::Watches => {
            let watches = watches(session).await?;
            session.printer.result(&watches, &watches_table(&watches))
        }
        Command::Simulate(args) => simulate(session, args).await,
        Command::Pause(args) => pause(session, args).await,
        Command::Resume(args) => {
            let connection = session.connection()?;
            let ScopeArgs { task, base, all: _ } = args.scope;
            let body = ResumeTriggersRequest { task, base };
            let url = connection.route(&["resumeTriggers"]);
            let left: Page<TriggerPause> = connection.post(url, &body).await?;
            session.printer.result(&left.value, &pauses_table(&left.value))
        }
        Command::Pauses => {
            let pauses = pauses(session, None).await?;
            session.printer.result(&pauses, &pauses_table(&pauses))
        }
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

async fn simulate(session: &Session<'_>, args: SimulateArgs) -> Result<()> {
    let connection = session.connection()?;
    let body = SimulateTriggerRequest {
        base: args.base,
        digest: args.digest,
        branch: args.branch,
        pull_request_number: args.pull_request,
        fork: args.fork.then_some(true),
        until: args.until.map(|until| until.to_string()),
        task: args.task,
    };
    let url = connection.route(&["simulateTrigger"]);
    let foreseen: Page<SimulatedDecision> = connection.post(url, &body).await?;
    if foreseen.value.is_empty() {
        session.printer.note("It concerns no task");
    }
    let mut table = Table::new(["LEVEL", "TASK", "TRIGGER", "DECISION", "IMAGES", "REASON"]);
    for decision in &foreseen.value {
        table.row([
            decision.level.to_string(),
            decision.task.clone(),
            format!("{} {}", decision.kind, decision.trigger),
            decision.decision.clone(),
            decision.images.join(", "),
            decision.reason.clone().unwrap_or_default(),
        ]);
    }
    session.printer.result(&foreseen.value, &table)
}

async fn pause(session: &Session<'_>, args: PauseArgs) -> Result<()> {
    let hours = args.hours.map(|hours| Timestamp::now().checked_add(Span::new().hours(hours)));
    let hours = hours.transpose().map_err(|error| Error::usage(error.to_string()))?;
    let connection = session.connection()?;
    let ScopeArgs { task, base, all: _ } = args.scope;
    let body = PauseTriggersRequest {
        task,
        base,
        reason: args.reason,
        end_time: args.until.or(hours).map(|end| end.to_string()),
    };
    let pause: TriggerPause = connection.post(connection.route(&["pauseTriggers"]), &body).await?;
    let table = pauses_table(std::slice::from_ref(&pause));
    session.printer.result(&pause, &table)
}

/// What is held, or as much of it as concerns a task.
async fn pauses(session: &Session<'_>, task: Option<&str>) -> Result<Vec<TriggerPause>> {
    let connection = session.connection()?;
    let mut url = connection.route(&["triggerPauses"]);
    if let Some(task) = task {
        url.query_pairs_mut().append_pair("taskName", task);
    }
    let page: Page<TriggerPause> = connection.get(url).await?;
    Ok(page.value)
}

fn pauses_table(pauses: &[TriggerPause]) -> Table {
    let mut table = Table::new(["PAUSED", "UNTIL", "SINCE", "BY", "REASON"]);
    for pause in pauses {
        table.row([
            paused(pause),
            pause.end_time.clone().unwrap_or_default(),
            pause.start_time.clone(),
            pause.principal.clone(),
            pause.reason.clone(),
        ]);
    }
    table
}

fn paused(pause: &TriggerPause) -> String {
    match (&pause.task, &pause.base) {
        (Some(task), _) => format!("task {task}"),
        (None, Some(base)) => format!("base {base}"),
        (None, None) => "all triggers".to_owned(),
    }
}

fn pause_line(pause: &TriggerPause) -> String {
    let until = pause.end_time.as_ref().map(|end| format!(" until {end}")).unwrap_or_default();
    format!("Paused{until}: {}, by {}: {}", paused(pause), pause.principal, pause.reason)
}

async fn watches(session: &Session<'_>) -> Result<Vec<TriggerWatch>> {
    let connection = session.connection()?;
    let page: Page<TriggerWatch> = connection.get(connection.route(&["triggerWatches"])).await?;
    Ok(page.value)
}

fn watches_table(watches: &[TriggerWatch]) -> Table {
    let mut table = Table::new(["IMAGE", "DIGEST", "ASKED", "NEXT", "NOTE"]);
    for watch in watches {
        table.row([
            watch.image.clone(),
            watch.digest.clone().unwrap_or_default(),
            watch.last_time.clone().unwrap_or_default(),
            watch.next_time.clone(),
            watch_note(watch).unwrap_or_default(),
        ]);
    }
    table
}

/// What is out of the ordinary with a watched image.
fn watch_note(watch: &TriggerWatch) -> Option<String> {
    let settling = watch.settling_digest.as_ref();
    let settling = settling.map(|digest| format!("has moved to {digest}, and may not stay so"));
    watch.error.as_ref().map(|error| format!("is not told: {error}")).or(settling)
}

/// How an image of another registry is followed.
fn watch_line(watch: &TriggerWatch) -> String {
    let asked = match &watch.last_time {
        Some(time) => format!("was asked for at {time}, "),
        None => String::new(),
    };
    let note = watch_note(watch).map(|note| format!("; it {note}")).unwrap_or_default();
    format!("  {} {asked}is asked for at {}{note}", watch.image, watch.next_time)
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
    for pause in pauses(session, Some(&args.task)).await? {
        session.printer.note(&pause_line(&pause));
    }
    for line in standing(&task) {
        session.printer.note(&line);
    }
    let names = base_names(&task);
    for watch in watches(session).await?.iter().filter(|watch| names.contains(&watch.image)) {
        session.printer.note(&watch_line(watch));
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
    let names = base_names(task);
    match names.is_empty() {
        true => format!(
            "Base-image trigger `{}` knows no image yet: a run that succeeds tells it",
            trigger.name
        ),
        false => format!(
            "Base-image trigger `{}`: the task is built on {}",
            trigger.name,
            names.join(", ")
        ),
    }
}

/// The images that start a task when they move.
fn base_names(task: &Task) -> Vec<String> {
    let triggers = task.properties.trigger.as_ref();
    let trigger = triggers.and_then(|triggers| triggers.base_image_trigger.as_ref());
    let Some(trigger) = trigger.filter(|trigger| trigger.status.as_deref() != Some("Disabled"))
    else {
        return Vec::new();
    };
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
            let host = if base.registry == DOCKER_HUB { "docker.io" } else { &base.registry };
            Some(format!("{host}/{}:{tag}", base.repository))
        })
        .collect();
    names.dedup();
    names
}

/// How clients of the managed service know Docker Hub.
const DOCKER_HUB: &str = "registry.hub.docker.com";

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
