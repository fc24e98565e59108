//! `refit gc`: deletes what nothing refers to.

use api::{GarbageReport, GarbageRequest};

use super::Session;
use crate::error::Result;
use crate::printer::Table;
use crate::progress::size;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tell what would be deleted, delete nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(session: &Session<'_>, args: Args) -> Result<()> {
    let connection = session.connection()?;
    let request = GarbageRequest { dry_run: args.dry_run };
    let report: GarbageReport =
        connection.post_patiently(connection.route(&["gc"]), &request).await?;
    let mut table = Table::new(["KIND", "DIGEST", "SIZE", "REPOSITORY"]);
    for manifest in &report.manifests {
        let repository = manifest.repository.clone();
        table.row(["manifest".to_owned(), manifest.digest.clone(), String::new(), repository]);
    }
    for blob in &report.blobs {
        table.row(["blob".to_owned(), blob.digest.clone(), blob.size.to_string(), String::new()]);
    }
    session.printer.result(&report, &table)?;
    let verb = if report.dry_run { "Would delete" } else { "Deleted" };
    session.printer.note(&format!(
        "{verb} {} manifests, {} blobs, {} cache entries, {} uploads: {}",
        report.manifests.len(),
        report.blobs.len(),
        report.cache_entries,
        report.uploads,
        size(report.bytes)
    ));
    Ok(())
}
