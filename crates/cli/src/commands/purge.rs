//! `refit purge`: deletes tags by name and age, and manifests that nobody needs.

use api::{PurgeFailure, PurgeRecord, PurgeRequest, PurgeSummary, PurgedItem};
use reqwest::{Method, StatusCode};
use serde::Serialize;

use super::Session;
use super::image::confirm;
use crate::error::{Error, ErrorKind, Result, could_not};
use crate::follow::Records;
use crate::printer::{OutputFormat, Table};
use crate::sanitize::{Colors, sanitize};

/// The options of `acr purge`. The server checks them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Repositories and tags to delete, both as regular expressions. Repeatable
    #[arg(long = "filter", short = 'f', value_name = "REPOSITORY:TAG")]
    filters: Vec<String>,
    /// Delete only what is older, such as `30d` or `1d12h`
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    ago: Option<String>,
    /// Keep the newest of what would be deleted, this many in each repository
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    keep: u64,
    /// Delete manifests that nobody needs too
    #[arg(long)]
    untagged: bool,
    /// Delete manifests that nobody needs, and no tags
    #[arg(long, conflicts_with = "untagged")]
    untagged_only: bool,
    /// Tell what would be deleted, and delete nothing
    #[arg(long)]
    dry_run: bool,
    /// Delete what is locked too; nothing is
    #[arg(long)]
    include_locked: bool,
    /// Deletions at once, at most 32
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    concurrency: Option<i64>,
    /// How long one match of a filter may take, roughly
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    filter_timeout_seconds: Option<i64>,
    /// Repositories that the server reads at once
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    repository_page_size: Option<i64>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// What is printed as JSON and YAML.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    summary: PurgeSummary,
    items: Vec<PurgedItem>,
}

pub(super) async fn run(session: &Session<'_>, args: Args) -> Result<()> {
    if !args.dry_run {
        confirm(&args.question(), args.yes).await?;
    }
    let connection = session.connection()?;
    let request =
        connection.request(Method::POST, connection.route(&["purge"])).json(&PurgeRequest {
            filters: args.filters,
            ago: args.ago,
            keep: args.keep,
            untagged: args.untagged,
            untagged_only: args.untagged_only,
            dry_run: args.dry_run,
            include_locked: args.include_locked,
            concurrency: args.concurrency,
            filter_timeout_seconds: args.filter_timeout_seconds,
            repository_page_size: args.repository_page_size,
        });
    let mut response = connection.stream(request).await?;
    let mut records = Records::default();
    let mut items = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(could_not("read the answer"))? {
        for record in records.push(&chunk)? {
            let record = serde_json::from_slice(&record);
            match record.map_err(could_not("understand the server's answer"))? {
                PurgeRecord::Note(text) => session.printer.note(&text),
                PurgeRecord::Warning(text) => session.printer.warning(&text),
                PurgeRecord::Item(item) => print(session, args.dry_run, item, &mut items)?,
                PurgeRecord::Finished(summary) => return finish(session, summary, items),
                PurgeRecord::Failed(PurgeFailure { status, error }) => {
                    let status = StatusCode::from_u16(status).unwrap_or_default();
                    return Err(connection.told(status, Some(error)));
                }
            }
        }
    }
    Err(Error::new(ErrorKind::Unreachable, "the server ended the connection"))
}

/// At once, if its form lets it be; else it is kept until the end.
fn print(
    session: &Session<'_>,
    dry_run: bool,
    item: PurgedItem,
    items: &mut Vec<PurgedItem>,
) -> Result<()> {
    let clean = |text: &str| sanitize(text, Colors::Never);
    match session.printer.format() {
        OutputFormat::Table => {
            let verb = if dry_run { "Would delete:" } else { "Deleted" };
            session.printer.out(format!("{verb} {}\n", clean(&item.name)).as_bytes())
        }
        OutputFormat::Tsv => {
            let PurgedItem { repository, tag, digest, .. } = &item;
            let tag = tag.as_deref().unwrap_or_default();
            let line = [repository, tag, digest].map(clean).join("\t");
            session.printer.out(format!("{line}\n").as_bytes())
        }
        OutputFormat::Json | OutputFormat::Yaml => {
            items.push(item);
            Ok(())
        }
        OutputFormat::None => Ok(()),
    }
}

fn finish(session: &Session<'_>, summary: PurgeSummary, items: Vec<PurgedItem>) -> Result<()> {
    let PurgeSummary { dry_run, tags, manifests } = summary;
    let lines = match dry_run {
        true => [
            format!("Number of tags to be deleted: {tags}"),
            format!("Number of manifests to be deleted: {manifests}"),
        ],
        false => [
            format!("Number of deleted tags: {tags}"),
            format!("Number of deleted manifests: {manifests}"),
        ],
    };
    match session.printer.format() {
        OutputFormat::Table => session.printer.out(format!("{}\n", lines.join("\n")).as_bytes()),
        OutputFormat::Json | OutputFormat::Yaml => {
            session.printer.result(&Report { summary, items }, &Table::default())
        }
        OutputFormat::Tsv | OutputFormat::None => Ok(()),
    }
}

impl Args {
    fn question(&self) -> String {
        let filters = self.filters.join("`, `");
        let age = self.ago.as_ref().map_or(String::new(), |ago| format!(" older than {ago}"));
        match (self.untagged_only, self.untagged) {
            (true, _) if self.filters.is_empty() => {
                format!("Delete all manifests without tags{age}?")
            }
            (true, _) => format!("Delete manifests without tags{age} of `{filters}`?"),
            (false, true) => {
                format!("Delete tags that match `{filters}`{age}, and manifests without tags?")
            }
            (false, false) => format!("Delete tags that match `{filters}`{age}?"),
        }
    }
}
