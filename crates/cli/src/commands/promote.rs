//! `refit promote`: moves a tag to an image after checks and, where a task asks for it, an approval.

use std::time::Duration;

use api::{Page, Promotion, PromotionRequest};

use super::Session;
use crate::error::{Error, Result};
use crate::printer::Table;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// An image of the registry, NAME:TAG or NAME@DIGEST
    #[arg(value_name = "IMAGE", required = true)]
    image: Option<String>,
    /// A tag of the same repository, NAME:TAG, or another registry: HOST/ or HOST/NAME:TAG
    #[arg(long, value_name = "TAG|REGISTRY", required = true)]
    to: Option<String>,
    /// Task that looks at the image first, besides those that the task asks for that has made it
    /// (repeatable)
    #[arg(long = "check", value_name = "TASK")]
    checks: Vec<String>,
    /// Do not wait for the end
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List promotions, the newest first
    List(ListArgs),
    /// Show a promotion, and how far it is
    Show(PromotionArgs),
    /// Approve a promotion that somebody else has begun, and whose checks have passed
    Approve(DecideArgs),
    /// End a promotion before its tag moves
    Reject(PromotionArgs),
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// How many at most
    #[arg(long, default_value_t = 50, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    top: u32,
}

#[derive(Debug, clap::Args)]
struct PromotionArgs {
    /// Promotion, such as `m1`
    #[arg(value_name = "PROMOTION")]
    promotion: String,
}

#[derive(Debug, clap::Args)]
struct DecideArgs {
    #[command(flatten)]
    promotion: PromotionArgs,
    /// Do not wait until the tag has moved
    #[arg(long)]
    no_wait: bool,
}

pub(super) async fn run(session: &Session<'_>, args: Args) -> Result<()> {
    let connection = session.connection()?;
    match args.command {
        None => {
            let body = PromotionRequest {
                image: args.image.unwrap_or_default(),
                to: args.to.unwrap_or_default(),
                checks: args.checks,
            };
            let begun: Promotion =
                connection.post(connection.route(&["promotions"]), &body).await?;
            conclude(session, begun, args.no_wait).await
        }
        Some(Command::List(args)) => {
            let mut url = connection.route(&["promotions"]);
            url.query_pairs_mut().append_pair("$top", &args.top.to_string());
            let all: Page<Promotion> = connection.get(url).await?;
            print(session, &all.value, &all.value)
        }
        Some(Command::Show(args)) => {
            let found = find(session, &args.promotion).await?;
            print(session, &found, std::slice::from_ref(&found))
        }
        Some(Command::Approve(args)) => {
            let turned = turn(session, &args.promotion.promotion, "approve").await?;
            conclude(session, turned, args.no_wait).await
        }
        Some(Command::Reject(args)) => {
            let turned = turn(session, &args.promotion, "reject").await?;
            print(session, &turned, std::slice::from_ref(&turned))
        }
    }
}

/// Whether a name is that of a promotion: `m` and a number.
pub(super) fn is_name(text: &str) -> bool {
    let number = text.strip_prefix(['m', 'M']).unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// `refit rollback` of a promotion.
pub(super) async fn roll_back(session: &Session<'_>, promotion: &str) -> Result<()> {
    let turned = turn(session, promotion, "rollback").await?;
    print(session, &turned, std::slice::from_ref(&turned))
}

async fn find(session: &Session<'_>, promotion: &str) -> Result<Promotion> {
    let connection = session.connection()?;
    connection.get(connection.route(&["promotions", promotion])).await
}

async fn turn(session: &Session<'_>, promotion: &str, how: &str) -> Result<Promotion> {
    let connection = session.connection()?;
    let url = connection.route(&["promotions", promotion, how]);
    connection.post(url, &serde_json::json!({})).await
}

/// Between two looks at a promotion.
const LOOK: Duration = Duration::from_millis(500);

/// Waits until nothing of a promotion goes on by itself.
async fn end_of(session: &Session<'_>, mut promotion: Promotion) -> Result<Promotion> {
    let mut told = String::new();
    loop {
        let line = progress(&promotion);
        if line != told {
            session.printer.note(&line);
            told = line;
        }
        if !matches!(&*promotion.status, "Checking" | "Moving") {
            return Ok(promotion);
        }
        tokio::time::sleep(LOOK).await;
        promotion = find(session, &promotion.name).await?;
    }
}

/// Says what became of a promotion.
async fn conclude(session: &Session<'_>, promotion: Promotion, no_wait: bool) -> Result<()> {
    let promotion = if no_wait { promotion } else { end_of(session, promotion).await? };
    print(session, &promotion, std::slice::from_ref(&promotion))?;
    let name = &promotion.name;
    match &*promotion.status {
        "Failed" => {
            let why = promotion.error.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            let error = Error::failed(format!("`{}` has not moved{why}", promotion.to));
            let failed = promotion.checks.iter().find(|check| check.status != "Succeeded");
            Err(match failed {
                Some(check) => {
                    let run = &check.run_id;
                    error.with_hint(format!("`refit task logs --run-id {run}` tells why"))
                }
                None => error,
            })
        }
        "Rejected" => {
            let by = promotion.decided_by.as_deref().unwrap_or("somebody");
            Err(Error::failed(format!("`{}` has not moved: {by} has rejected it", promotion.to)))
        }
        "AwaitingApproval" => {
            session
                .printer
                .note(&format!("Somebody else approves it: `refit promote approve {name}`"));
            Ok(())
        }
        _ => Ok(()),
    }
}

fn progress(promotion: &Promotion) -> String {
    let mut line = format!("{} {}", promotion.name, promotion.status);
    for check in &promotion.checks {
        line.push_str(&format!(", {} {} {}", check.task, check.run_id, check.status));
    }
    line
}

fn print(
    session: &Session<'_>,
    value: &impl serde::Serialize,
    promotions: &[Promotion],
) -> Result<()> {
    let mut table = Table::new([
        "PROMOTION",
        "IMAGE",
        "DIGEST",
        "TO",
        "WAS",
        "STATUS",
        "CHECKS",
        "BY",
        "DECIDED BY",
        "ERROR",
    ]);
    for promotion in promotions {
        let checks = promotion.checks.iter();
        let checks = checks.map(|check| format!("{} {}", check.task, check.status));
        table.row([
            promotion.name.clone(),
            promotion.image.clone(),
            promotion.digest.clone(),
            promotion.to.clone(),
            promotion.old_digest.clone().unwrap_or_default(),
            promotion.status.clone(),
            checks.collect::<Vec<_>>().join(", "),
            promotion.created_by.clone(),
            promotion.decided_by.clone().unwrap_or_default(),
            promotion.error.clone().unwrap_or_default(),
        ]);
    }
    session.printer.result(value, &table)
}
