//! `refit task timer`: when a task starts by itself.

use api::{Task, TaskTriggers, TimerTrigger};
use reqwest::Method;
use serde_json::json;

use super::super::Session;
use super::name::TaskArg;
use super::route;
use crate::error::{Error, ErrorKind, Result};
use crate::printer::Table;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Let a task start at the times of a schedule
    Add(AddArgs),
    /// Change the schedule of a timer, or switch it on or off
    Update(UpdateArgs),
    /// Remove a timer
    Remove(RemoveArgs),
    /// List the timers of a task, and when each is due
    List(ListArgs),
}

#[derive(Debug, clap::Args)]
pub struct AddArgs {
    #[command(flatten)]
    task: TaskArg,
    /// Timer [default: the first of t1, t2, ... that is free]
    #[arg(long, value_name = "NAME")]
    timer_name: Option<String>,
    /// Minute, hour, day of the month, month, day of the week, such as "0 5 * * Mon-Fri"
    #[arg(long, value_name = "CRON")]
    schedule: String,
    #[command(flatten)]
    options: TimerOptions,
}

#[derive(Debug, clap::Args)]
pub struct UpdateArgs {
    #[command(flatten)]
    task: TaskArg,
    /// Timer
    #[arg(long, value_name = "NAME")]
    timer_name: String,
    /// Minute, hour, day of the month, month, day of the week
    #[arg(long, value_name = "CRON")]
    schedule: Option<String>,
    #[command(flatten)]
    options: TimerOptions,
}

#[derive(Debug, clap::Args)]
struct TimerOptions {
    /// Time zone of the schedule, such as Europe/Berlin [default: UTC]
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// Whether it starts runs
    #[arg(long, value_name = "BOOL")]
    enabled: Option<bool>,
}

#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    task: TaskArg,
    /// Timer
    #[arg(long, value_name = "NAME")]
    timer_name: String,
}

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    task: TaskArg,
}

pub(super) async fn run(session: &Session<'_>, command: Command) -> Result<()> {
    match command {
        Command::Add(args) => {
            let known = find(session, &args.task).await?;
            let name = args.timer_name.unwrap_or_else(|| free_name(&timers(&known)));
            if named(&timers(&known), &name).is_some() {
                let text = format!("the task has a timer `{name}` already");
                return Err(Error::new(ErrorKind::Conflict, text)
                    .with_hint("`refit task timer update` changes it"));
            }
            change(session, &args.task, &name, Some(args.schedule), &args.options).await
        }
        Command::Update(args) => {
            must_have(&find(session, &args.task).await?, &args.timer_name)?;
            change(session, &args.task, &args.timer_name, args.schedule, &args.options).await
        }
        Command::Remove(args) => remove(session, &args).await,
        Command::List(args) => print(session, &find(session, &args.task).await?),
    }
}

/// Timers as `--schedule` gives them: a schedule, or `NAME:SCHEDULE`. Those without a name are `t1`,
/// `t2` and so on, in order.
pub(super) fn of_schedules(schedules: &[String]) -> Vec<TimerTrigger> {
    let is_taken = |name: &str| {
        let mut names = schedules.iter().filter_map(|text| text.split_once(':'));
        names.any(|(taken, _)| taken.trim().eq_ignore_ascii_case(name))
    };
    let mut free = (1..).map(|number| format!("t{number}")).filter(|name| !is_taken(name));
    let timers = schedules.iter().map(|text| {
        let (name, schedule) = match text.split_once(':') {
            Some((name, schedule)) => (name.trim().to_owned(), schedule.trim()),
            None => (free.next().unwrap_or_default(), text.trim()),
        };
        let schedule = schedule.to_owned();
        TimerTrigger { name, schedule, status: None, time_zone: None, next_occurrence: None }
    });
    timers.collect()
}

async fn find(session: &Session<'_>, task: &TaskArg) -> Result<Task> {
    let connection = session.connection()?;
    connection.get(route(connection, task)).await
}

fn timers(task: &Task) -> Vec<TimerTrigger> {
    let triggers = task.properties.trigger.as_ref();
    triggers.and_then(|all| all.timer_triggers.clone()).unwrap_or_default()
}

fn named<'a>(timers: &'a [TimerTrigger], name: &str) -> Option<&'a TimerTrigger> {
    timers.iter().find(|timer| timer.name.eq_ignore_ascii_case(name))
}

fn free_name(timers: &[TimerTrigger]) -> String {
    let names = (1..).map(|number| format!("t{number}"));
    names.into_iter().find(|name| named(timers, name).is_none()).unwrap_or_default()
}

fn must_have(task: &Task, name: &str) -> Result<()> {
    match named(&timers(task), name) {
        Some(_) => Ok(()),
        None => Err(Error::new(ErrorKind::NotFound, format!("the task has no timer `{name}`"))
            .with_hint("`refit task timer list` shows those that it has")),
    }
}

async fn change(
    session: &Session<'_>,
    task: &TaskArg,
    name: &str,
    schedule: Option<String>,
    options: &TimerOptions,
) -> Result<()> {
    let mut timer = json!({ "name": name });
    if let Some(schedule) = schedule {
        timer["schedule"] = json!(schedule);
    }
    if let Some(zone) = &options.time_zone {
        timer["timeZone"] = json!(zone);
    }
    if let Some(enabled) = options.enabled {
        timer["status"] = json!(if enabled { "Enabled" } else { "Disabled" });
    }
    let connection = session.connection()?;
    let body = json!({ "properties": { "trigger": { "timerTriggers": [timer] } } });
    let request = connection.request(Method::PATCH, route(connection, task)).json(&body);
    connection.answer::<Task>(request).await?;
    print(session, &find(session, task).await?)
}

/// A change takes no timer away, so all of the task is put again, without this one.
async fn remove(session: &Session<'_>, args: &RemoveArgs) -> Result<()> {
    let connection = session.connection()?;
    let url = connection.route(&["tasks", args.task.name(), "listDetails"]);
    let mut task: Task = connection.post(url, &json!({})).await?;
    must_have(&task, &args.timer_name)?;
    let rest = timers(&task)
        .into_iter()
        .filter(|timer| !timer.name.eq_ignore_ascii_case(&args.timer_name))
        .collect();
    let triggers = task.properties.trigger.take().unwrap_or_default();
    task.properties.trigger = Some(TaskTriggers { timer_triggers: Some(rest), ..triggers });
    let request = connection.request(Method::PUT, route(connection, &args.task)).json(&task);
    connection.answer::<Task>(request).await?;
    print(session, &find(session, &args.task).await?)
}

fn print(session: &Session<'_>, task: &Task) -> Result<()> {
    let timers = timers(task);
    let mut table = Table::new(["NAME", "SCHEDULE", "TIME ZONE", "STATUS", "NEXT"]);
    for timer in &timers {
        table.row([
            timer.name.clone(),
            timer.schedule.clone(),
            timer.time_zone.clone().unwrap_or_else(|| "UTC".to_owned()),
            timer.status.clone().unwrap_or_default(),
            timer.next_occurrence.clone().unwrap_or_default(),
        ]);
    }
    session.printer.result(&timers, &table)
}
