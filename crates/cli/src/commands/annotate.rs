//! `refit annotate`: attaches annotations to images, chosen by name.

use api::AnnotateRequest;
use reqwest::Method;

use super::Session;
use super::by_rule::{Rule, follow};
use crate::error::Result;

/// The options of `acr annotate`. The server checks them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Repositories and tags to annotate, both as regular expressions. Repeatable
    #[arg(long = "filter", short = 'f', value_name = "REPOSITORY:TAG")]
    filters: Vec<String>,
    /// Type of what is attached, such as `application/vnd.example.note`
    #[arg(long, value_name = "MEDIA-TYPE")]
    artifact_type: Option<String>,
    /// What it says. Repeatable
    #[arg(long, short, value_name = "KEY=VALUE[,KEY=VALUE]")]
    annotations: Vec<String>,
    /// Annotate manifests that nobody needs too, unless they are OCI images
    #[arg(long)]
    untagged: bool,
    /// Tell what would be annotated, and annotate nothing
    #[arg(long)]
    dry_run: bool,
    /// Annotate images of locked tags too
    #[arg(long)]
    include_locked: bool,
    /// Changes nothing
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    concurrency: Option<i64>,
    /// How long one match of a filter may take, roughly
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    filter_timeout_seconds: Option<i64>,
}

pub(super) async fn run(session: &Session<'_>, args: Args) -> Result<()> {
    let connection = session.connection()?;
    let dry_run = args.dry_run;
    let body = AnnotateRequest {
        filters: args.filters,
        artifact_type: args.artifact_type,
        annotations: args.annotations,
        untagged: args.untagged,
        dry_run,
        include_locked: args.include_locked,
        concurrency: args.concurrency,
        filter_timeout_seconds: args.filter_timeout_seconds,
    };
    let request = connection.request(Method::POST, connection.route(&["annotate"])).json(&body);
    follow(session, request, Rule::Annotate, dry_run).await
}
