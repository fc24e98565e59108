//! What the server does to many images by a rule, told while it goes on.

use api::{PurgeFailure, PurgeRecord, PurgeSummary, PurgedItem};
use reqwest::{RequestBuilder, StatusCode};
use serde::Serialize;

use super::Session;
use crate::error::{Error, ErrorKind, Result, could_not};
use crate::follow::Records;
use crate::printer::{OutputFormat, Table};
use crate::sanitize::{Colors, sanitize};

#[derive(Debug, Clone, Copy)]
pub(super) enum Rule {
    Purge,
    Annotate,
}

/// What is printed as JSON and YAML.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    summary: PurgeSummary,
    items: Vec<PurgedItem>,
}

/// Asks for it, and prints the answer as it comes.
pub(super) async fn follow(
    session: &Session<'_>,
    request: RequestBuilder,
    rule: Rule,
    dry_run: bool,
) -> Result<()> {
    let connection = session.connection()?;
    let mut response = connection.stream(request).await?;
    let mut records = Records::default();
    let mut items = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(could_not("read the answer"))? {
        for record in records.push(&chunk)? {
            let record = serde_json::from_slice(&record);
            match record.map_err(could_not("understand the server's answer"))? {
                PurgeRecord::Note(text) => session.printer.note(&text),
                PurgeRecord::Warning(text) => session.printer.warning(&text),
                PurgeRecord::Item(item) => print(session, rule.verb(dry_run), item, &mut items)?,
                PurgeRecord::Finished(summary) => return finish(session, rule, summary, items),
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
    verb: &str,
    item: PurgedItem,
    items: &mut Vec<PurgedItem>,
) -> Result<()> {
    let clean = |text: &str| sanitize(text, Colors::Never);
    match session.printer.format() {
        OutputFormat::Table => {
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

fn finish(
    session: &Session<'_>,
    rule: Rule,
    summary: PurgeSummary,
    items: Vec<PurgedItem>,
) -> Result<()> {
    match session.printer.format() {
        OutputFormat::Table => {
            session.printer.out(format!("{}\n", rule.totals(&summary).join("\n")).as_bytes())
        }
        OutputFormat::Json | OutputFormat::Yaml => {
            session.printer.result(&Report { summary, items }, &Table::default())
        }
        OutputFormat::Tsv | OutputFormat::None => Ok(()),
    }
}

impl Rule {
    /// What is said before an item.
    fn verb(self, dry_run: bool) -> &'static str {
        match (self, dry_run) {
            (Self::Purge, false) => "Deleted",
            (Self::Purge, true) => "Would delete:",
            (Self::Annotate, false) => "Annotated",
            (Self::Annotate, true) => "Would annotate:",
        }
    }

    /// The last lines, as `acr` has them.
    fn totals(self, summary: &PurgeSummary) -> Vec<String> {
        let PurgeSummary { dry_run, tags, manifests, locked } = *summary;
        let done = match self {
            Self::Purge => "deleted",
            Self::Annotate => "annotated",
        };
        let of = |kind: &str, count: u64| match dry_run {
            true => format!("Number of {kind} to be {done}: {count}"),
            false => format!("Number of {done} {kind}: {count}"),
        };
        let mut lines = vec![of("tags", tags), of("manifests", manifests)];
        if matches!(self, Self::Annotate) {
            lines.push(format!("Number of locked tags skipped: {locked}"));
        }
        lines
    }
}
