//! `refit repository`: what the registry holds.

use api::{Deleted, Page, Repository, TagAttributes};

use super::Session;
use super::image::{NamedImage, RepositoryArg, confirm};
use super::tag::list_tags;
use crate::error::{Error, Result};
use crate::printer::{Printer, Table};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List repositories
    List,
    /// List the tags of a repository
    ShowTags(ShowTagsArgs),
    /// Delete a repository, or an image with all its tags
    Delete(DeleteArgs),
}

#[derive(Debug, clap::Args)]
pub struct ShowTagsArgs {
    #[command(flatten)]
    repository: RepositoryArg,
    /// Show digests and times too
    #[arg(long)]
    detail: bool,
}

#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// Repository to delete with all it holds
    #[arg(value_name = "REPOSITORY", required_unless_present_any = ["repository_flag", "image"])]
    repository: Option<String>,
    #[arg(long = "repository", hide = true, conflicts_with = "repository")]
    repository_flag: Option<String>,
    /// Image to delete instead, NAME:TAG or NAME@DIGEST: its manifest and all its tags
    #[arg(long, short = 't', value_name = "IMAGE", conflicts_with_all = ["repository", "repository_flag"])]
    image: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(super) async fn run(session: &Session<'_>, command: Command) -> Result<()> {
    match command {
        Command::List => list(session).await,
        Command::ShowTags(args) => show_tags(session, args).await,
        Command::Delete(args) => delete(session, args).await,
    }
}

async fn list(session: &Session<'_>) -> Result<()> {
    let found: Vec<Repository> = pages(session, &["repositories"]).await?;
    let names: Vec<_> = found.iter().map(|repository| repository.image_name.clone()).collect();
    let mut table = Table::new(["REPOSITORY", "TAGS", "MANIFESTS", "UPDATED"]);
    for repository in found {
        table.row([
            repository.image_name,
            repository.tag_count.to_string(),
            repository.manifest_count.to_string(),
            repository.last_update_time.unwrap_or_default(),
        ]);
    }
    session.printer.result(&names, &table)
}

async fn show_tags(session: &Session<'_>, args: ShowTagsArgs) -> Result<()> {
    let tags: Vec<TagAttributes> = list_tags(session, &args.repository.name()).await?;
    if args.detail {
        return super::tag::print(session, tags);
    }
    let names: Vec<_> = tags.into_iter().map(|tag| tag.name).collect();
    session.printer.result(&names, &Table::lines(names.iter().cloned()))
}

async fn delete(session: &Session<'_>, args: DeleteArgs) -> Result<()> {
    let connection = session.connection()?;
    if let Some(image) = &args.image {
        let image = NamedImage::parse(image)?;
        return super::manifest::delete(session, &image, args.yes).await;
    }
    let Some(name) = args.repository.or(args.repository_flag) else {
        return Err(Error::usage("there is no repository to delete"));
    };
    confirm(&format!("Delete repository `{name}` with all its images?"), args.yes).await?;
    let deleted: Deleted = connection.delete(connection.route(&["repositories", &name])).await?;
    print_deleted(&session.printer, &deleted)
}

pub(super) fn print_deleted(printer: &Printer, deleted: &Deleted) -> Result<()> {
    let mut table = Table::new(["MANIFESTS DELETED", "TAGS DELETED"]);
    table.row([deleted.manifests_deleted.to_string(), deleted.tags_deleted.to_string()]);
    printer.result(deleted, &table)
}

/// All pages of a listing.
pub(super) async fn pages<T: serde::de::DeserializeOwned>(
    session: &Session<'_>,
    segments: &[&str],
) -> Result<Vec<T>> {
    all_pages(session, session.connection()?.route(segments)).await
}

/// The same for what belongs to no registry.
pub(super) async fn server_pages<T: serde::de::DeserializeOwned>(
    session: &Session<'_>,
    segments: &[&str],
) -> Result<Vec<T>> {
    all_pages(session, session.connection()?.server_route(segments)).await
}

async fn all_pages<T: serde::de::DeserializeOwned>(
    session: &Session<'_>,
    first: url::Url,
) -> Result<Vec<T>> {
    let connection = session.connection()?;
    let mut all = Vec::new();
    let mut next = Some(first);
    while let Some(url) = next {
        let page: Page<T> = connection.get(url).await?;
        // A page that adds nothing but names another would go on for ever.
        let is_empty = page.value.is_empty();
        all.extend(page.value);
        next = match page.next_link {
            Some(link) if !is_empty => Some(connection.resolve(&link)?),
            _ => None,
        };
    }
    Ok(all)
}
