//! `refit manifest`: what tags point at.

use api::{
    Deleted, DeletedManifest, DeletedTag, ManifestAttributes, ManifestDocument, RestoreRequest,
    Restored,
};
use reqwest::Method;

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
    /// List the manifests of a repository that can be restored
    ListDeleted(ListArgs),
    /// List the tags of a repository that can be restored, or what one of them pointed at
    ListDeletedTags(ListDeletedTagsArgs),
    /// Restore a tag with its manifest, or a manifest without a tag
    Restore(RestoreArgs),
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

/// A repository, or a tag of it.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct ListDeletedTagsArgs {
    /// Repository, or REPOSITORY:TAG
    #[arg(value_name = "REPOSITORY")]
    repository: Option<String>,
    #[arg(long = "repository", hide = true, alias = "name", short_alias = 'n')]
    repository_flag: Option<String>,
}

#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    image: ImageArg,
    /// What the tag pointed at, if not what it did last; of a REPOSITORY alone, the manifest
    #[arg(long, short, value_name = "DIGEST")]
    digest: Option<String>,
    /// Take the tag from what it points at by now, which can then be restored in turn
    #[arg(long, short)]
    force: bool,
    /// Nothing is lost by restoring, and nothing asked
    #[arg(long, short, hide = true)]
    yes: bool,
}

pub(super) async fn run(session: &Session<'_>, command: Command) -> Result<()> {
    match command {
        Command::Show(args) => show(session, args).await,
        Command::List(args) => list(session, args).await,
        Command::Delete(args) => delete(session, &args.image.name()?, args.yes).await,
        Command::ListDeleted(args) => list_deleted(session, args).await,
        Command::ListDeletedTags(args) => list_deleted_tags(session, args).await,
        Command::Restore(args) => restore(session, args).await,
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

async fn list_deleted(session: &Session<'_>, args: ListArgs) -> Result<()> {
    let name = args.repository.name();
    let found: Vec<DeletedManifest> =
        pages(session, &["repositories", &name, "deletedManifests"]).await?;
    let mut table = Table::new(["DIGEST", "TAGS", "SIZE", "DELETED", "UNTIL", "MEDIA TYPE"]);
    for manifest in &found {
        table.row([
            manifest.digest.clone(),
            manifest.tags.join(","),
            manifest.image_size.to_string(),
            manifest.deleted_time.clone(),
            manifest.expiry_time.clone(),
            manifest.media_type.clone(),
        ]);
    }
    session.printer.result(&found, &table)
}

async fn list_deleted_tags(session: &Session<'_>, args: ListDeletedTagsArgs) -> Result<()> {
    let text = args.repository.or(args.repository_flag).unwrap_or_default();
    let NamedImage { repository, reference } = NamedImage::parse(&text)?;
    let mut found: Vec<DeletedTag> =
        pages(session, &["repositories", &repository, "deletedTags"]).await?;
    found.retain(|tag| {
        let is_wanted = |wanted: &String| *wanted == tag.name || *wanted == tag.digest;
        reference.as_ref().is_none_or(is_wanted)
    });
    let mut table = Table::new(["TAG", "DIGEST", "DELETED", "UNTIL"]);
    for tag in &found {
        table.row([
            tag.name.clone(),
            tag.digest.clone(),
            tag.deleted_time.clone(),
            tag.expiry_time.clone(),
        ]);
    }
    session.printer.result(&found, &table)
}

async fn restore(session: &Session<'_>, args: RestoreArgs) -> Result<()> {
    let RestoreArgs { image, digest, force, yes: _ } = args;
    let image = image.name()?;
    let body = match (&image.reference, digest) {
        (None, Some(digest)) => RestoreRequest { tag: None, digest: Some(digest), force },
        (Some(reference), Some(_)) if reference.contains(':') => {
            return Err(Error::usage("there are two digests")
                .with_hint("name the image `REPOSITORY:TAG` to restore a tag with `--digest`"));
        }
        (Some(digest), None) if digest.contains(':') => {
            RestoreRequest { tag: None, digest: Some(digest.clone()), force }
        }
        (_, digest) => {
            RestoreRequest { tag: Some(image.required_reference()?.to_owned()), digest, force }
        }
    };
    let connection = session.connection()?;
    let name = &image.repository;
    let url = connection.route(&["repositories", name, "restore"]);
    let restored: Restored =
        connection.answer(connection.request(Method::POST, url).json(&body)).await?;
    for member in &restored.deleted_members {
        session.printer.note(&format!(
            "`{member}`, which it lists, is still deleted: `refit manifest restore {name}@{member}`"
        ));
    }
    let mut table = Table::new(["TAG", "DIGEST", "MANIFEST"]);
    table.row([
        restored.tag.clone().unwrap_or_default(),
        restored.digest.clone(),
        if restored.manifest_restored { "restored" } else { "was there" }.to_owned(),
    ]);
    session.printer.result(&restored, &table)
}
