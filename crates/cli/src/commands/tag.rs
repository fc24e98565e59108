//! `refit tag`: names that move.

use api::{Deleted, TagAttributes};

use super::Session;
use super::image::{ImageArg, RepositoryArg, confirm};
use super::repository::{pages, print_deleted};
use crate::error::{Error, Result};
use crate::printer::Table;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List the tags of a repository
    List(ListArgs),
    /// Take a tag away; the manifest stays
    #[command(visible_alias = "untag")]
    Delete(DeleteArgs),
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
        Command::List(args) => {
            let tags = list_tags(session, &args.repository.name()).await?;
            print(session, tags)
        }
        Command::Delete(args) => delete(session, args).await,
    }
}

pub(super) async fn list_tags(session: &Session<'_>, name: &str) -> Result<Vec<TagAttributes>> {
    pages(session, &["repositories", name, "tags"]).await
}

pub(super) fn print(session: &Session<'_>, tags: Vec<TagAttributes>) -> Result<()> {
    let mut table = Table::new(["TAG", "DIGEST", "UPDATED"]);
    for tag in &tags {
        table.row([tag.name.clone(), tag.digest.clone(), tag.last_update_time.clone()]);
    }
    session.printer.result(&tags, &table)
}

async fn delete(session: &Session<'_>, args: DeleteArgs) -> Result<()> {
    let image = args.image.name()?;
    let tag = image.required_reference()?;
    if tag.contains(':') {
        return Err(Error::usage(format!("`{tag}` is a digest, not a tag"))
            .with_hint("`refit manifest delete` deletes by digest"));
    }
    let name = &image.repository;
    confirm(&format!("Take the tag `{tag}` off `{name}`?"), args.yes).await?;
    let connection = session.connection()?;
    let url = connection.route(&["repositories", name, "tags", tag]);
    let deleted: Deleted = connection.delete(url).await?;
    print_deleted(&session.printer, &deleted)
}
