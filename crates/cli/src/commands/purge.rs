//! `refit purge`: deletes tags by name and age, and manifests that nobody needs.

use api::PurgeRequest;
use reqwest::Method;

use super::Session;
use super::by_rule::{Rule, follow};
use super::image::confirm;
use crate::error::Result;

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
    /// Delete tags and manifests too that are locked; needs the right to unlock them
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

pub(super) async fn run(session: &Session<'_>, args: Args) -> Result<()> {
    if !args.dry_run {
        confirm(&args.question(), args.yes).await?;
    }
    let (connection, dry_run) = (session.connection()?, args.dry_run);
    let request =
        connection.request(Method::POST, connection.route(&["purge"])).json(&PurgeRequest {
            filters: args.filters,
            ago: args.ago,
            keep: args.keep,
            untagged: args.untagged,
            untagged_only: args.untagged_only,
            dry_run,
            include_locked: args.include_locked,
            concurrency: args.concurrency,
            filter_timeout_seconds: args.filter_timeout_seconds,
            repository_page_size: args.repository_page_size,
        });
    follow(session, request, Rule::Purge, dry_run).await
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
