//! `refit import`: an image that was made elsewhere gets names in this registry.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::{
    ImportCredentials, ImportFailure, ImportMode, ImportProgress, ImportReport, ImportRequest,
    ImportSource, ImportTags,
};
use oci::Reference;
use reqwest::{Method, StatusCode, header};

use super::Session;
use crate::context::{Content, Layout, upload};
use crate::error::{Error, ErrorKind, Result, could_not};
use crate::follow::Records;
use crate::printer::Table;
use crate::progress::size;
use crate::prompt;

/// How often it is told how much was sent.
const TOLD_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// `HOST/REPOSITORY[:TAG|@DIGEST]`, `oci-layout://PATH[:TAG|@DIGEST]`, or a tar file: of an
    /// OCI layout, or as `docker save` writes it
    #[arg(value_name = "SOURCE", required_unless_present = "source_flag")]
    source: Option<String>,
    /// The same
    #[arg(long = "source", value_name = "SOURCE", conflicts_with = "source")]
    source_flag: Option<String>,
    /// Name of the image here; else the one it has in its registry. Repeatable
    #[arg(long = "image", short = 't', value_name = "NAME:TAG")]
    images: Vec<String>,
    /// Repository that gets the image without a tag. Repeatable
    #[arg(long = "repository", value_name = "NAME")]
    repositories: Vec<String>,
    /// Import every tag of the source's repository, into those of `--repository`; else into the
    /// one with its name
    #[arg(long, conflicts_with = "images")]
    all_tags: bool,
    /// Move tags that are there already
    #[arg(long)]
    force: bool,
    /// Of an image for several platforms only the one for this, such as `linux/arm64`
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// User name for the registry that it comes from; else as the settings say
    #[arg(long, short, value_name = "NAME", requires = "password_stdin")]
    username: Option<String>,
    /// Read the password for that registry from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
}

/// What the text of a source means.
enum Place {
    Image(String),
    Layout(Layout),
    File(PathBuf),
}

pub(super) async fn run(session: &Session<'_>, args: Args) -> Result<()> {
    let text = args.source.as_deref().or(args.source_flag.as_deref()).unwrap_or_default();
    let place = Place::parse(text)?;
    let credentials = match args.username.clone() {
        Some(username) => {
            Some(ImportCredentials { username, password: prompt::all_input().await? })
        }
        None => None,
    };
    if args.all_tags {
        return import_all(session, &args, &place, credentials).await;
    }
    let mut target_tags = args.images.clone();
    if target_tags.is_empty() && args.repositories.is_empty() {
        target_tags.push(place.name()?);
    }
    let source = ImportSource { credentials, ..place.send(session).await? };
    let request = ImportRequest {
        source,
        target_tags,
        untagged_target_repositories: args.repositories.clone(),
        mode: args.mode(),
        platform: args.platform.clone(),
    };
    let report = import(session, &request).await?;
    session.printer.result(&report, &table([&report]))
}

/// One tag after the other: what was imported before an error stays.
async fn import_all(
    session: &Session<'_>,
    args: &Args,
    place: &Place,
    credentials: Option<ImportCredentials>,
) -> Result<()> {
    let repository = place.repository()?;
    let name = format!("{}/{}", repository.host, repository.repository);
    let source = |image| ImportSource {
        source_image: Some(image),
        credentials: credentials.clone(),
        ..ImportSource::default()
    };
    let connection = session.connection()?;
    let listed: ImportTags =
        connection.post(connection.route(&["import", "tags"]), &source(name.clone())).await?;
    if listed.tags.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, format!("`{name}` has no tags")));
    }
    let targets = match args.repositories.is_empty() {
        true => vec![repository.repository.to_string()],
        false => args.repositories.clone(),
    };
    let mut reports = Vec::new();
    for (at, tag) in listed.tags.iter().enumerate() {
        session.printer.note(&format!("Tag {} of {}: {tag}", at + 1, listed.tags.len()));
        let request = ImportRequest {
            source: source(format!("{name}:{tag}")),
            target_tags: targets.iter().map(|target| format!("{target}:{tag}")).collect(),
            untagged_target_repositories: Vec::new(),
            mode: args.mode(),
            platform: args.platform.clone(),
        };
        reports.push(import(session, &request).await?);
    }
    session.printer.result(&reports, &table(&reports))
}

async fn import(session: &Session<'_>, request: &ImportRequest) -> Result<ImportReport> {
    let report = follow(session, request).await;
    session.printer.passed();
    let report = report?;
    let (manifests, referrers) = (report.manifests, report.referrers);
    let fetched = size(report.fetched);
    session.printer.note(&format!(
        "Imported (manifests: {manifests}, referrers: {referrers}, fetched: {fetched})"
    ));
    Ok(report)
}

/// Waits for the end of an import, and tells how much has come.
async fn follow(session: &Session<'_>, request: &ImportRequest) -> Result<ImportReport> {
    let connection = session.connection()?;
    let request = connection
        .request(Method::POST, connection.route(&["import"]))
        .header(header::ACCEPT, "application/x-ndjson")
        .json(request);
    let mut response = connection.stream(request).await?;
    let mut records = Records::default();
    while let Some(chunk) = response.chunk().await.map_err(could_not("read the answer"))? {
        for record in records.push(&chunk)? {
            let progress = serde_json::from_slice(&record);
            match progress.map_err(could_not("understand the server's answer"))? {
                ImportProgress::Fetched(bytes) => {
                    session.printer.passing(&format!("Fetched {} so far", size(bytes)));
                }
                ImportProgress::Imported(report) => return Ok(report),
                ImportProgress::Failed(ImportFailure { status, error }) => {
                    let status = StatusCode::from_u16(status).unwrap_or_default();
                    return Err(connection.told(status, Some(error)));
                }
            }
        }
    }
    Err(Error::new(ErrorKind::Unreachable, "the server ended the connection"))
}

fn table<'a>(reports: impl IntoIterator<Item = &'a ImportReport>) -> Table {
    let mut table = Table::new(["IMAGE", "DIGEST"]);
    for report in reports {
        for image in &report.images {
            table.row([image.clone(), report.digest.clone()]);
        }
    }
    table
}

impl Args {
    fn mode(&self) -> ImportMode {
        if self.force { ImportMode::Force } else { ImportMode::NoForce }
    }
}

impl Place {
    fn parse(text: &str) -> Result<Self> {
        if let Some(layout) = text.strip_prefix("oci-layout://") {
            return Layout::parse(layout).map(Self::Layout).map_err(Error::usage);
        }
        let path = Path::new(text);
        let looks_like_path = [".", "/"].iter().any(|start| text.starts_with(start))
            || [".tar", ".tar.gz", ".tgz", ".tar.zst"].iter().any(|end| text.ends_with(end));
        match (path.is_dir(), path.is_file()) {
            (true, _) if looks_like_path => {
                Layout::parse(text).map(Self::Layout).map_err(Error::usage)
            }
            (_, true) if looks_like_path => Ok(Self::File(path.to_owned())),
            _ if looks_like_path => Err(Error::usage(format!("there is no `{text}`"))),
            _ => Ok(Self::Image(text.to_owned())),
        }
    }

    /// The name that the image has where it comes from.
    fn name(&self) -> Result<String> {
        let nameless = || {
            Error::usage("the image needs a name here")
                .with_hint("`-t NAME:TAG`, or `--repository`")
        };
        let Self::Image(image) = self else { return Err(nameless()) };
        let reference = parse_reference(image)?;
        match (&reference.digest, reference.tag_or_latest()) {
            (None, Some(tag)) => Ok(format!("{}:{tag}", reference.repository)),
            _ => Err(nameless()),
        }
    }

    /// The repository of which all tags are wanted.
    fn repository(&self) -> Result<Reference> {
        let reference = match self {
            Self::Image(image) => parse_reference(image)?,
            _ => return Err(Error::usage("only a registry has all tags of a repository")),
        };
        match (&reference.tag, &reference.digest) {
            (None, None) => Ok(reference),
            _ => Err(Error::usage("`--all-tags` takes a repository, without tag and digest")),
        }
    }

    /// Sends what is on this machine.
    async fn send(self, session: &Session<'_>) -> Result<ImportSource> {
        let (archive, digest) = match self {
            Self::Image(image) => {
                return Ok(ImportSource { source_image: Some(image), ..ImportSource::default() });
            }
            Self::Layout(layout) => {
                let digest = layout.digest.clone();
                (Content::Layout(layout), Some(digest))
            }
            Self::File(path) => (Content::File(path), None),
        };
        let sent = Arc::new(AtomicU64::new(0));
        let sending = upload(session.connection()?, archive, None, Arc::clone(&sent));
        let source_location = Some(watch(session, sending, &sent).await?.relative_path);
        Ok(ImportSource { source_location, digest, ..ImportSource::default() })
    }
}

/// Tells how much was sent until it is done.
async fn watch<T>(session: &Session<'_>, sending: impl Future<Output = T>, sent: &AtomicU64) -> T {
    let mut ticks = tokio::time::interval(TOLD_EVERY);
    tokio::pin!(sending);
    loop {
        tokio::select! {
            done = &mut sending => {
                session.printer.passed();
                return done;
            }
            _ = ticks.tick() => {
                let sent = size(sent.load(Ordering::Relaxed));
                session.printer.passing(&format!("Sent {sent} so far"));
            }
        }
    }
}

fn parse_reference(text: &str) -> Result<Reference> {
    text.parse::<Reference>().map_err(|error| {
        let told = Error::usage(error.to_string());
        match error.hint() {
            Some(hint) => told.with_hint(hint),
            None => told,
        }
    })
}
