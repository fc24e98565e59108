//! `refit repository`: what the registry holds.

use api::{
    Attributes, AttributesChange, Deleted, DeletedRepository, ManifestDocument, Page, Repository,
    TagAttributes, UpdateAttributes,
};
use reqwest::Method;

use super::Session;
use super::image::{NamedImage, RepositoryArg, confirm};
use super::tag::list_tags;
use crate::error::{Error, Result};
use crate::printer::{Printer, Table};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List repositories
    List,
    /// List repositories of which something can be restored
    ListDeleted,
    /// List the tags of a repository
    ShowTags(ShowTagsArgs),
    /// Show a repository, a tag or a manifest, and what is locked of it
    Show(SubjectArgs),
    /// Lock a repository, a tag or a manifest, or unlock it
    Update(UpdateArgs),
    /// Delete a repository, or an image with all its tags
    Delete(DeleteArgs),
}

/// A repository, or what is in it.
#[derive(Debug, clap::Args)]
pub struct SubjectArgs {
    /// Repository
    #[arg(value_name = "REPOSITORY", required_unless_present_any = ["repository_flag", "image"])]
    repository: Option<String>,
    #[arg(long = "repository", hide = true, conflicts_with = "repository")]
    repository_flag: Option<String>,
    /// Image instead: NAME:TAG is the tag, NAME@DIGEST the manifest
    #[arg(long, short = 't', value_name = "IMAGE", conflicts_with_all = ["repository", "repository_flag"])]
    image: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("attributes").required(true).multiple(true)))]
pub struct UpdateArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Whether it may be deleted; of a repository, whether that may be as a whole
    #[arg(long, value_name = "BOOL", group = "attributes")]
    delete_enabled: Option<bool>,
    /// Whether it may be written and deleted; of a repository, also what is in it
    #[arg(long, value_name = "BOOL", group = "attributes")]
    write_enabled: Option<bool>,
    /// Whether it may be pulled; of a repository, also what is in it
    #[arg(long, value_name = "BOOL", group = "attributes")]
    read_enabled: Option<bool>,
    /// Whether it is in lists
    #[arg(long, value_name = "BOOL", group = "attributes")]
    list_enabled: Option<bool>,
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
        Command::ListDeleted => list_deleted(session).await,
        Command::ShowTags(args) => show_tags(session, args).await,
        Command::Show(args) => show(session, &args).await,
        Command::Update(args) => update(session, args).await,
        Command::Delete(args) => delete(session, args).await,
    }
}

/// What is shown or locked.
enum Subject {
    Repository(String),
    Tag(String, String),
    Manifest(String, String),
}

impl SubjectArgs {
    fn read(&self) -> Result<Subject> {
        if let Some(image) = &self.image {
            let image = NamedImage::parse(image)?;
            let reference = image.required_reference()?.to_owned();
            return Ok(match reference.contains(':') {
                true => Subject::Manifest(image.repository, reference),
                false => Subject::Tag(image.repository, reference),
            });
        }
        let name = self.repository.as_ref().or(self.repository_flag.as_ref());
        let name = name.ok_or_else(|| Error::usage("there is no repository"))?;
        Ok(Subject::Repository(name.clone()))
    }
}

impl Subject {
    fn url(&self, session: &Session<'_>) -> Result<url::Url> {
        let connection = session.connection()?;
        Ok(match self {
            Self::Repository(name) => connection.route(&["repositories", name]),
            Self::Tag(name, tag) => connection.route(&["repositories", name, "tags", tag]),
            Self::Manifest(name, digest) => {
                connection.route(&["repositories", name, "manifests", digest])
            }
        })
    }

    async fn print(&self, session: &Session<'_>, request: reqwest::RequestBuilder) -> Result<()> {
        let connection = session.connection()?;
        match self {
            Self::Repository(_) => {
                let shown: Repository = connection.answer(request).await?;
                print_attributes(session, &shown, &shown.image_name, shown.changeable_attributes)
            }
            Self::Tag(name, _) => {
                let shown: TagAttributes = connection.answer(request).await?;
                let title = format!("{name}:{}", shown.name);
                print_attributes(session, &shown, &title, shown.changeable_attributes)
            }
            Self::Manifest(name, _) => {
                let shown: ManifestDocument = connection.answer(request).await?;
                let title = format!("{name}@{}", shown.digest);
                print_attributes(session, &shown, &title, shown.changeable_attributes)
            }
        }
    }
}

fn print_attributes<T: serde::Serialize>(
    session: &Session<'_>,
    shown: &T,
    title: &str,
    attributes: Attributes,
) -> Result<()> {
    let Attributes { delete_enabled, write_enabled, read_enabled, list_enabled } = attributes;
    let mut table = Table::new(["NAME", "DELETE", "WRITE", "READ", "LIST"]);
    let word = |enabled: bool| if enabled { "enabled" } else { "locked" }.to_owned();
    table.row([
        title.to_owned(),
        word(delete_enabled),
        word(write_enabled),
        word(read_enabled),
        word(list_enabled),
    ]);
    session.printer.result(shown, &table)
}

async fn show(session: &Session<'_>, args: &SubjectArgs) -> Result<()> {
    let subject = args.read()?;
    let request = session.connection()?.request(Method::GET, subject.url(session)?);
    subject.print(session, request).await
}

async fn update(session: &Session<'_>, args: UpdateArgs) -> Result<()> {
    let UpdateArgs { subject, delete_enabled, write_enabled, read_enabled, list_enabled } = args;
    let changeable_attributes =
        AttributesChange { delete_enabled, write_enabled, read_enabled, list_enabled };
    let subject = subject.read()?;
    let request = session.connection()?.request(Method::PATCH, subject.url(session)?);
    let request = request.json(&UpdateAttributes { changeable_attributes });
    subject.print(session, request).await
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

async fn list_deleted(session: &Session<'_>) -> Result<()> {
    let found: Vec<DeletedRepository> = pages(session, &["deletedRepositories"]).await?;
    let names: Vec<_> = found.iter().map(|repository| repository.image_name.clone()).collect();
    let mut table = Table::new(["REPOSITORY", "TAGS", "MANIFESTS"]);
    for repository in found {
        table.row([
            repository.image_name,
            repository.tag_count.to_string(),
            repository.manifest_count.to_string(),
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
