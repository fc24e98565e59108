//! `refit plan`, `apply` and `rollback`: what an update of a base touches, carried out and put back.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use api::{Page, Plan, PlanMove, PlanRequest, PlanTask};

use super::{Session, promote};
use crate::error::{Error, Result};
use crate::printer::Table;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// The image that becomes another one, written as a Dockerfile names it
    #[arg(long, value_name = "IMAGE", required = true)]
    base: Option<String>,
    /// Which one it becomes: `refit apply` moves an image of the registry itself there
    #[arg(long, value_name = "DIGEST")]
    to: Option<String>,
    /// The part of each level that is built first; the rest waits until it has succeeded
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    canary: Option<u8>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List plans, the newest first
    List(ListArgs),
    /// Show a plan, and how far it is
    Show(PlanArgs),
    /// Start no more of a plan; what runs goes on to its end
    Stop(PlanArgs),
    /// Give up a plan: its tasks follow their triggers again
    Close(PlanArgs),
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// How many at most
    #[arg(long, default_value_t = 50, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    top: u32,
}

#[derive(Debug, clap::Args)]
struct PlanArgs {
    /// Plan, such as `p1`
    #[arg(value_name = "PLAN")]
    plan: String,
}

#[derive(Debug, clap::Args)]
pub struct CarryOutArgs {
    /// Plan, such as `p1`
    #[arg(value_name = "PLAN")]
    plan: String,
    /// Do not wait for the end
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, clap::Args)]
pub struct RollBackArgs {
    /// Plan, such as `p1`, or promotion, such as `m1`
    #[arg(value_name = "NAME")]
    name: String,
    /// Do not wait for the end
    #[arg(long)]
    no_wait: bool,
}

pub(super) async fn run(session: &Session<'_>, args: Args) -> Result<()> {
    let connection = session.connection()?;
    match args.command {
        None => {
            let body = PlanRequest {
                base: args.base.unwrap_or_default(),
                digest: args.to,
                canary_percent: args.canary,
            };
            let plan: Plan = connection.post(connection.route(&["plans"]), &body).await?;
            print(session, &plan)?;
            let tasks = plan.tasks.as_deref().unwrap_or_default();
            if tasks.iter().any(|task| task.method != "Nothing") {
                session.printer.note(&format!("Carry it out with `refit apply {}`", plan.name));
            }
            Ok(())
        }
        Some(Command::List(args)) => {
            let mut url = connection.route(&["plans"]);
            url.query_pairs_mut().append_pair("$top", &args.top.to_string());
            let plans: Page<Plan> = connection.get(url).await?;
            let mut table = Table::new(["PLAN", "BASE", "STATUS", "CREATED", "BY", "ERROR"]);
            for plan in &plans.value {
                table.row([
                    plan.name.clone(),
                    plan.base.clone(),
                    plan.status.clone(),
                    plan.create_time.clone(),
                    plan.created_by.clone(),
                    plan.error.clone().unwrap_or_default(),
                ]);
            }
            session.printer.result(&plans.value, &table)
        }
        Some(Command::Show(args)) => print(session, &find(session, &args.plan).await?),
        Some(Command::Stop(args)) => print(session, &turn(session, &args.plan, "stop").await?),
        Some(Command::Close(args)) => print(session, &turn(session, &args.plan, "close").await?),
    }
}

/// `refit apply`.
pub(super) async fn apply(session: &Session<'_>, args: CarryOutArgs) -> Result<()> {
    let plan = turn(session, &args.plan, "apply").await?;
    if args.no_wait {
        return print(session, &plan);
    }
    let plan = end_of(session, plan).await?;
    print(session, &plan)?;
    match &*plan.status {
        "Succeeded" => Ok(()),
        status => {
            let why = plan.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
            let name = &plan.name;
            Err(Error::failed(format!("plan `{name}` is {status}{why}")).with_hint(format!(
                "`refit apply {name}` goes on, `refit rollback {name}` puts back what it has moved"
            )))
        }
    }
}

/// `refit rollback`.
pub(super) async fn roll_back(session: &Session<'_>, args: RollBackArgs) -> Result<()> {
    if promote::is_name(&args.name) {
        return promote::roll_back(session, &args.name).await;
    }
    let plan = turn(session, &args.name, "rollback").await?;
    let plan = if args.no_wait { plan } else { end_of(session, plan).await? };
    let moves = moves(&plan);
    let mut table = Table::new(["IMAGE", "WAS", "IS AGAIN", "NOTE"]);
    for moved in &moves {
        let (returned, reason) = (moved.returned == Some(true), moved.reason.as_ref());
        table.row([
            moved.image.clone(),
            moved.digest.clone(),
            match returned {
                true => moved.old_digest.clone().unwrap_or_else(|| "nothing".to_owned()),
                false => String::new(),
            },
            reason.map(|reason| format!("not put back: {reason}")).unwrap_or_default(),
        ]);
    }
    session.printer.result(&plan, &table)?;
    let kept = moves.iter().filter(|moved| moved.returned == Some(false)).count();
    match kept {
        0 => Ok(()),
        _ => Err(Error::failed(format!("{kept} of {} tags were not put back", moves.len()))),
    }
}

/// All tags that a plan has moved, in the order of its tasks.
fn moves(plan: &Plan) -> Vec<&PlanMove> {
    let tasks = plan.tasks.iter().flatten();
    plan.base_move.iter().chain(tasks.flat_map(|task| &task.moves)).collect()
}

async fn find(session: &Session<'_>, plan: &str) -> Result<Plan> {
    let connection = session.connection()?;
    connection.get(connection.route(&["plans", plan])).await
}

async fn turn(session: &Session<'_>, plan: &str, how: &str) -> Result<Plan> {
    let connection = session.connection()?;
    let url = connection.route(&["plans", plan, how]);
    connection.post(url, &serde_json::json!({})).await
}

/// Between two looks at a plan, at least.
const LOOK: Duration = Duration::from_secs(1);

/// Waits until nothing of a plan goes on, and tells how far it is.
async fn end_of(session: &Session<'_>, mut plan: Plan) -> Result<Plan> {
    let mut told = String::new();
    loop {
        let line = progress(&plan);
        if line != told {
            session.printer.note(&line);
            told = line;
        }
        if !matches!(&*plan.status, "Applying" | "Stopping" | "RollingBack") {
            return Ok(plan);
        }
        // A plan of thousands of tasks is not asked for all the time.
        let asked = Instant::now();
        let next = find(session, &plan.name).await?;
        tokio::time::sleep(LOOK.max(asked.elapsed() * 5)).await;
        plan = next;
    }
}

fn progress(plan: &Plan) -> String {
    let tasks = || plan.tasks.iter().flatten();
    let count = |status: &str| tasks().filter(|task| task.status == status).count();
    let all = tasks().filter(|task| task.method != "Nothing").count();
    let mut line = format!("{} {}", plan.name, plan.status);
    let words = [
        ("Succeeded", "built"),
        ("RolledBack", "put back"),
        ("Running", "running"),
        ("Failed", "failed"),
    ];
    let counts = words.into_iter().map(|(status, word)| (count(status), word));
    let counts = counts.filter(|(count, _)| *count > 0);
    let counts: Vec<_> = counts.map(|(count, word)| format!("{count} {word}")).collect();
    let counts = if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
    let _ = write!(line, ": {counts} of {all}");
    line
}

fn print(session: &Session<'_>, plan: &Plan) -> Result<()> {
    for line in head(plan) {
        session.printer.note(&line);
    }
    let mut table = Table::new([
        "LEVEL", "TASK", "OWNER", "METHOD", "BUILT ON", "MOVES", "EXPECTED", "STATUS", "RUN",
        "REASON",
    ]);
    for task in plan.tasks.iter().flatten() {
        table.row([
            task.level.to_string(),
            task.task.clone(),
            task.owner.clone().unwrap_or_default(),
            task.method.clone(),
            task.bases.join(", "),
            match &*task.method {
                "Nothing" => String::new(),
                _ => task.images.join(", "),
            },
            task.expected.map(|time| range(&time)).unwrap_or_default(),
            status(task),
            task.run_id.clone().unwrap_or_default(),
            task.error.clone().or_else(|| task.reason.clone()).unwrap_or_default(),
        ]);
    }
    session.printer.result(plan, &table)
}

fn status(task: &PlanTask) -> String {
    if task.canary && task.status == "Waiting" {
        return "Waiting (canary)".to_owned();
    }
    task.status.clone()
}

/// What is to be said of a plan besides its tasks.
fn head(plan: &Plan) -> Vec<String> {
    let unknown = || "unknown".to_owned();
    let mut lines = vec![format!("Plan {} is {}, {}", plan.name, plan.status, plan.hash)];
    lines.extend(plan.error.as_ref().map(|error| format!("It has stopped: {error}")));
    lines.push(format!(
        "Base {}: {} becomes {}",
        plan.base,
        plan.base_digest.clone().unwrap_or_else(unknown),
        plan.digest.clone().unwrap_or_else(|| "whatever it is when the plan is applied".to_owned()),
    ));
    if let Some(expected) = &plan.expected {
        let mut line = format!("Expected: {} of work", seconds(expected.sum));
        if !expected.critical_path.is_empty() {
            let (time, path) = (range(&expected.critical), expected.critical_path.join(" > "));
            let _ = write!(line, ", at least {time} along {path}");
        }
        if expected.unknown > 0 {
            let _ = write!(line, "; not known of {} tasks", expected.unknown);
        }
        lines.push(line);
    }
    lines
}

/// `12 s (10 to 19 s)`.
fn range(time: &api::ExpectedTime) -> String {
    if time.min == time.max {
        return seconds(time.median);
    }
    format!("{} ({} to {})", seconds(time.median), seconds(time.min), seconds(time.max))
}

fn seconds(millis: u64) -> String {
    format!("{:.1} s", millis as f64 / 1_000.0)
}
