//! `refit scrub`: reads all content again, and tells what is damaged.

use std::time::Duration;

use api::{DamagedBlob, ScrubReport, ScrubRequest};

use super::Session;
use crate::error::{Error, Result};
use crate::printer::Table;
use crate::progress::size;

/// How often the server is asked how far it is.
const POLL_PERIOD: Duration = Duration::from_millis(500);
/// Percents between two lines that tell it.
const TOLD_STEP: u64 = 10;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Bytes read in a second at most, such as `100m`; `0` for no bound. Else as the settings say
    #[arg(long, value_name = "SIZE")]
    rate: Option<String>,
    /// Do not wait for the end
    #[arg(long, conflicts_with = "report")]
    no_wait: bool,
    /// Read nothing; tell what the last pass found
    #[arg(long, conflicts_with = "rate")]
    report: bool,
}

pub(super) async fn run(session: &Session<'_>, args: Args) -> Result<()> {
    let connection = session.connection()?;
    let route = || connection.route(&["scrub"]);
    let report: ScrubReport = match args.report {
        true => connection.get(route()).await?,
        false => {
            let rate = args.rate.as_deref().map(rate).transpose()?;
            let begun = connection.post(route(), &ScrubRequest { rate }).await?;
            match args.no_wait {
                true => begun,
                false => finished(session, begun).await?,
            }
        }
    };
    let mut table = Table::new(["DIGEST", "SIZE", "REPOSITORIES"]);
    for blob in &report.damaged {
        table.row([blob.digest.clone(), blob.size.to_string(), repositories(blob)]);
    }
    session.printer.result(&report, &table)?;
    session.printer.note(&summary(&report));
    match report.damaged.len() {
        0 => Ok(()),
        _ => Err(Error::failed("content of the store is damaged")
            .with_hint("push or build again the images that need it")),
    }
}

fn rate(text: &str) -> Result<u64> {
    dockerfile::bytes(text).ok_or_else(|| {
        Error::usage(format!("`--rate {text}` is not a size")).with_hint("such as `100m`")
    })
}

/// Waits for the end of the pass that was begun, or of one that somebody began in its place.
async fn finished(session: &Session<'_>, begun: ScrubReport) -> Result<ScrubReport> {
    let connection = session.connection()?;
    let (mut report, mut told) = (begun, 0);
    while report.finished_time.is_none() {
        tokio::time::sleep(POLL_PERIOD).await;
        report = connection.get(connection.route(&["scrub"])).await?;
        let percent = report.bytes.saturating_mul(100).checked_div(report.stored_bytes);
        let percent = percent.unwrap_or(100);
        if percent >= told + TOLD_STEP && report.finished_time.is_none() {
            told = percent;
            let (read, all) = (size(report.bytes), size(report.stored_bytes));
            session.printer.note(&format!("{percent} %: {read} of {all}"));
        }
    }
    Ok(report)
}

fn repositories(blob: &DamagedBlob) -> String {
    let names = blob.repositories.iter().map(|found| found.repository.clone());
    names.collect::<Vec<_>>().join(",")
}

fn summary(report: &ScrubReport) -> String {
    let read = format!("{} blobs, {}; {} damaged", report.blobs, size(report.bytes), report.found);
    match (&report.started_time, &report.finished_time) {
        (None, _) => "Nothing was read again yet".to_owned(),
        (Some(_), Some(at)) => format!("Read again until {at}: {read}"),
        (Some(at), None) => format!("Being read again since {at}: so far {read}"),
    }
}
