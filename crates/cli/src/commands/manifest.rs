//! `refit manifest`: what tags point at.

use api::{Deleted, ManifestAttributes, ManifestDocument};

use super::Session;
use super::image::{ImageArg, NamedImage, RepositoryArg, confirm};
use super::repository::{pages, print_deleted};
use crate::OutputFormat;
use crate::error::{Error, ErrorKind, Result};
use crate::printer::Table;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print a manifest
    Show(ShowArgs),
    /// List the manifests of a repository
    #[command(visible_alias = "list-metadata")]
    List(ListArgs),
    /// Delete a manifest and all its tags
    Delete(DeleteArgs),
}

#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    #[command(flatten)]
    image: ImageArg,

    /// Show how it was built here: bases, context, steps
    #[arg(long)]
    record: bool,
}

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    repository: RepositoryArg,
}

#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    image: ImageArg,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(super) async fn run(session: &Session<'_>, command: Command) -> Result<()> {
    match command {
        Command::Show(args) => show(session, args).await,
        Command::List(args) => list(session, args).await,
        Command::Delete(args) => delete(session, &args.image.name()?, args.yes).await,
    }
}

/// A manifest is JSON, so that is what people see too.
async fn show(session: &Session<'_>, args: ShowArgs) -> Result<()> {
    let image = args.image.name()?;
    let reference = image.reference.as_deref().unwrap_or("latest");
    let connection = session.connection()?;
    let route = ["repositories", &image.repository, "manifests", reference];
    if args.record {
        let url = connection.route(&[&route[..], &["record"]].concat());
        let record: serde_json::Value = connection.get(url).await?;
        let text = format!("{record:#}");
        return session.printer.result(&record, &Table::lines(text.lines().map(str::to_owned)));
    }
    let url = connection.route(&route);
    let found: ManifestDocument = connection.get(url).await?;
    let Some(manifest) = found.manifest else {
        let name = &image.repository;
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("the manifest `{reference}` of `{name}` is not to be read: it is locked"),
        )
        .with_hint(format!("`refit repository show {name}` says what of it is locked")));
    };
    let text = match session.printer.format() {
        OutputFormat::Tsv => found.digest,
        _ => format!("{manifest:#}"),
    };
    session.printer.result(&manifest, &Table::lines(text.lines().map(str::to_owned)))
}

async fn list(session: &Session<'_>, args: ListArgs) -> Result<()> {
    let name = args.repository.name();
    let found: Vec<ManifestAttributes> =
        pages(session, &["repositories", &name, "manifests"]).await?;
    let mut table = Table::new(["DIGEST", "TAGS", "SIZE", "UPDATED", "MEDIA TYPE"]);
    for manifest in &found {
        table.row([
            manifest.digest.clone(),
            manifest.tags.join(","),
            manifest.image_size.to_string(),
            manifest.last_update_time.clone(),
            manifest.media_type.clone(),
        ]);
    }
    session.printer.result(&found, &table)
}

/// Also what `refit repository delete --image` does.
pub(super) async fn delete(session: &Session<'_>, image: &NamedImage, yes: bool) -> Result<()> {
    let reference = image.required_reference()?;
    let name = &image.repository;
    confirm(&format!("Delete the manifest `{reference}` of `{name}` and all its tags?"), yes)
        .await?;
    let connection = session.connection()?;
    let url = connection.route(&["repositories", name, "manifests", reference]);
    let deleted: Deleted = connection.delete(url).await?;
    print_deleted(&session.printer, &deleted)
}
