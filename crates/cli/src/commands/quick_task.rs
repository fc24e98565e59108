//! What `refit build` and `refit run` have in common: a context goes up, a run that is queued is
//! followed to its end, and the result is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::{
    AgentProperties, Credentials, ImageDescriptor, PlatformProperties, Run, RunStatus,
    SourceRegistryCredentials,
};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::Session;
use crate::OutputFormat;
use crate::connection::Connection;
use crate::context::{self, Content, Upload};
use crate::error::{Error, ErrorKind, Result};
use crate::follow::{self, Followed};
use crate::interrupt::Interrupts;
use crate::printer::Table;
use crate::progress::{Display, ProgressMode, size};
use crate::ssh::{Agents, Forwarding};

/// How often a display is redrawn.
const TICK: Duration = Duration::from_millis(100);

/// Where a run is executed.
#[derive(Debug, clap::Args)]
pub(super) struct PoolArgs {
    /// Pool whose agents execute the run; without it the server does
    #[arg(long = "agent-pool", value_name = "POOL")]
    pub(super) pool: Option<String>,
}

/// Where the steps of a run may connect to.
#[derive(Debug, clap::Args)]
pub(super) struct EgressArgs {
    /// Place that steps may connect to: a name, `*.NAME`, an address or a range, each with `:PORT`
    /// if it likes; or `registry`, or `none` (repeatable)
    #[arg(long = "egress", value_name = "PLACE", value_delimiter = ',')]
    pub(super) places: Vec<String>,
}

impl EgressArgs {
    pub(super) fn agent_configuration(&self) -> Option<AgentProperties> {
        let egress: Vec<_> =
            self.places.iter().filter(|place| !place.is_empty()).cloned().collect();
        (!egress.is_empty()).then_some(AgentProperties { cpu: None, egress })
    }
}

/// How progress is shown.
#[derive(Debug, clap::Args)]
pub(super) struct ProgressArgs {
    /// Show no log; only the result
    #[arg(long)]
    pub(super) no_logs: bool,

    /// How progress is shown
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    progress: ProgressMode,

    /// The same as --progress plain
    #[arg(long, hide = true)]
    no_format: bool,
}

impl ProgressArgs {
    pub(super) fn mode(&self) -> ProgressMode {
        match (self.no_logs, self.no_format) {
            (true, _) => ProgressMode::None,
            (false, true) if self.progress != ProgressMode::None => ProgressMode::Plain,
            _ => self.progress,
        }
    }
}

/// How a run logs in to its own registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum AuthMode {
    Default,
    None,
}

#[derive(Debug, clap::Args)]
pub(super) struct AuthArgs {
    /// Whether runs log in to their own registry; without a login they cannot use it
    #[arg(long, value_enum, ignore_case = true, value_name = "MODE")]
    auth_mode: Option<AuthMode>,
    /// As whom runs use their own registry, where it asks for that: `[system]` is the task itself,
    /// `[caller]` of a quick run you, an id another identity of the task; `none` nobody
    #[arg(long, value_name = "IDENTITY")]
    source_acr_auth_id: Option<String>,
}

impl AuthArgs {
    /// What a request says of it.
    pub(super) fn credentials(&self) -> Option<Credentials> {
        let login_mode = self.auth_mode.map(|mode| match mode {
            AuthMode::Default => "Default".to_owned(),
            AuthMode::None => "None".to_owned(),
        });
        // An empty one takes away what a task had.
        let identity = self.source_acr_auth_id.clone();
        let identity = identity.map(|id| if id == "none" { String::new() } else { id });
        if login_mode.is_none() && identity.is_none() {
            return None;
        }
        let source = SourceRegistryCredentials { login_mode, identity };
        Some(Credentials { source_registry: Some(source), custom_registries: None })
    }
}

/// What becomes of a run's log.
#[derive(Debug, clap::Args)]
pub(super) struct LogArgs {
    /// Name that the log gets as an artifact of the registry, such as `logs:{{.Run.ID}}`
    #[arg(long = "log-template", value_name = "NAME")]
    pub(super) template: Option<String>,
}

/// That of the machine which executes the run.
pub(super) fn own_platform() -> PlatformProperties {
    PlatformProperties { os: "linux".to_owned(), architecture: None, variant: None }
}

/// `OS[/ARCHITECTURE[/VARIANT]]`, a lone OS implies `amd64` (runs.md section 8); the server knows
/// which there are.
pub(super) fn parse_platform(text: &str) -> Result<PlatformProperties> {
    let lower = text.to_ascii_lowercase();
    let mut parts = lower.split('/').map(|part| part.trim().to_owned());
    let (os, architecture, variant) = (parts.next(), parts.next(), parts.next());
    match os {
        Some(os) if !os.is_empty() && parts.next().is_none() => {
            let architecture = Some(architecture.unwrap_or_else(|| "amd64".to_owned()));
            Ok(PlatformProperties { os, architecture, variant })
        }
        _ => Err(Error::usage(format!("`{text}` is not a platform"))
            .with_hint("it looks like `linux/amd64`")),
    }
}

/// Seconds until a run is ended.
pub(super) fn check_timeout(timeout: Option<u32>) -> Result<()> {
    match timeout {
        Some(timeout) if !(300..=28_800).contains(&timeout) => {
            Err(Error::usage(format!("`--timeout {timeout}` is not between 300 and 28800")))
        }
        _ => Ok(()),
    }
}

/// Sends an archive, and tells where the server has it.
pub(super) async fn upload(
    connection: &Connection,
    session: &Session<'_>,
    what: &str,
    content: Content,
    display: &mut Display,
) -> Result<String> {
    let sent = Arc::new(AtomicU64::new(0));
    let cache = session.environment.cache_folder.as_deref();
    let uploading = context::upload(connection, content, cache, Arc::clone(&sent));
    tokio::pin!(uploading);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let uploaded = loop {
        tokio::select! {
            uploaded = &mut uploading => break uploaded,
            _ = ticks.tick() => display.uploading(sent.load(Ordering::Relaxed)),
        }
    };
    display.uploaded();
    let Upload { relative_path, summary, travelled } = uploaded?;
    let files = if summary.files == 1 { "file" } else { "files" };
    let sent = match travelled {
        Some((0, _)) => ", none of which changed".to_owned(),
        Some((count, bytes)) if bytes < summary.size => format!(" ({count} new, {})", size(bytes)),
        _ => String::new(),
    };
    display.note(&format!("Sent {what}: {} {files}, {}{sent}", summary.files, size(summary.size)));
    for path in &summary.skipped {
        session.printer.warning(&format!("`{path}` is no file, folder or link, and is left out"));
    }
    if summary.skipped_more > 0 {
        let count = summary.skipped_more;
        session.printer.warning(&format!("{count} more like these are left out"));
    }
    Ok(relative_path)
}

/// How following a run ended.
pub(super) struct Ended {
    status: RunStatus,
    error: Option<String>,
    /// References, as far as there are, and digests.
    images: Vec<(Option<String>, String)>,
    /// The user asked for it.
    interrupted: bool,
}

/// How long a second interrupt waits for the server to hear of the first.
const CANCEL_WAIT: Duration = Duration::from_secs(2);

/// Follows a queued run to its end, and gives its record as it is then. `agents` are there for it
/// meanwhile.
pub(super) async fn see_to_end(
    connection: &Connection,
    run: Run,
    agents: &Agents,
    mut display: Display,
    interrupts: &mut Interrupts,
) -> Result<(Run, Ended)> {
    let id = run.properties.run_id.clone();
    let ended = match agents.forward(connection, &id) {
        Ok(forwarding) => wait(connection, &id, &mut display, interrupts, forwarding).await,
        Err(error) => Err(error),
    };
    display.close();
    let ended = ended?;
    let run = match connection.get(connection.route(&["runs", &id])).await {
        // A server that was told to stop stays for the end of a run, and not much longer.
        Err(error) if error.kind() == ErrorKind::Unreachable => as_told(run, &ended),
        asked => asked?,
    };
    Ok((run, ended))
}

/// Follows a run to its end. The first interrupt cancels it, the second leaves it.
async fn wait(
    connection: &Connection,
    id: &str,
    display: &mut Display,
    interrupts: &mut Interrupts,
    mut forwarding: Forwarding,
) -> Result<Ended> {
    let mut events = follow::events(connection.clone(), id.to_owned());
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut waits = Waits::begin(connection.clone(), id.to_owned());
    let mut canceling: Option<tokio::task::JoinHandle<Result<()>>> = None;
    let mut images = Vec::new();
    loop {
        tokio::select! {
            followed = events.recv() => match take(followed, id, display)? {
                Some(api::EventKind::Image { reference, digest }) => {
                    images.push((reference, digest));
                }
                Some(api::EventKind::Status { status }) if status != RunStatus::Queued => waits.end(),
                Some(api::EventKind::Finished { status, error }) => {
                    let interrupted = canceling.is_some();
                    return Ok(Ended { status, error, images, interrupted });
                }
                _ => (),
            },
            _ = ticks.tick() => display.tick(),
            Some(note) = forwarding.note() => display.note(&note),
            Some(note) = waits.notes.recv() => display.note(&note),
            () = interrupts.next() => {
                if let Some(asked) = canceling {
                    // At once, but not before the server knows: the next owner of the data
                    // folder would take the run up again.
                    let answer = tokio::time::timeout(CANCEL_WAIT, asked).await;
                    return Err(match answer {
                        Ok(Ok(Ok(()))) => Error::interrupted(),
                        _ => Error::interrupted().with_hint(format!(
                            "the run may go on; `refit task cancel-run --run-id {id}` ends it"
                        )),
                    });
                }
                display.note("Canceling the run; interrupt again to leave at once");
                canceling = Some(tokio::spawn(cancel(connection.clone(), id.to_owned())));
            }
        }
    }
}

/// When the user is told why a run waits, and how often it is asked for.
const WAITING_FIRST: Duration = Duration::from_secs(1);
const WAITING_PERIOD: Duration = Duration::from_secs(5);

/// Asks why a run waits, beside everything else: an answer may take long.
struct Waits {
    /// For the user, whenever the place in line changes.
    notes: mpsc::Receiver<String>,
    asking: tokio::task::JoinHandle<()>,
}

impl Waits {
    fn begin(connection: Connection, id: String) -> Self {
        let (sender, notes) = mpsc::channel(1);
        let asking = tokio::spawn(async move {
            // Most runs begin before anybody would ask why they do not.
            tokio::time::sleep(WAITING_FIRST).await;
            let mut told = None;
            // To know it is no need: an answer that does not come is no error.
            while let Ok(run) = connection.get::<Run>(connection.route(&["runs", &id])).await {
                if run.properties.status != RunStatus::Queued {
                    return;
                }
                let waiting = run.properties.waiting;
                if let Some(waiting) = waiting.filter(|waiting| told != Some(waiting.position)) {
                    told = Some(waiting.position);
                    if sender.send(explained(&waiting)).await.is_err() {
                        return;
                    }
                }
                tokio::time::sleep(WAITING_PERIOD).await;
            }
        });
        Self { notes, asking }
    }

    fn end(&self) {
        self.asking.abort();
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.end();
    }
}

fn explained(waiting: &api::Waiting) -> String {
    let usually = match waiting.expected_seconds {
        Some(seconds) => format!("; usually starts in {seconds} s"),
        None => String::new(),
    };
    format!("Waiting: {}; {} in line{usually}", waiting.reason, ordinal(waiting.position))
}

/// `1st`, `2nd`, `11th`.
pub(super) fn ordinal(number: u64) -> String {
    let suffix = match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{number}{suffix}")
}

/// Shows what was told, and gives it back.
fn take(
    followed: Option<Followed>,
    id: &str,
    display: &mut Display,
) -> Result<Option<api::EventKind>> {
    match followed {
        Some(Followed::Event(event)) => {
            display.event(&event);
            Ok(Some(event.kind))
        }
        Some(Followed::Lost(why)) => {
            display.note(&format!("Lost the server, trying again: {why}"));
            Ok(None)
        }
        Some(Followed::Failed(error)) => {
            Err(error.with_hint(format!("see how it goes on with `refit task logs --run-id {id}`")))
        }
        None => Err(Error::failed("following the run ended early")),
    }
}

async fn cancel(connection: Connection, id: String) -> Result<()> {
    let url = connection.route(&["runs", &id, "cancel"]);
    match connection.send(reqwest::Method::POST, url).await {
        // It has ended by itself; following tells how.
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
        other => other,
    }
}

/// The record of a run as its events told it, which is all but its times and its cost.
fn as_told(mut run: Run, ended: &Ended) -> Run {
    let properties = &mut run.properties;
    properties.status = ended.status;
    properties.provisioning_state = match ended.status {
        RunStatus::Succeeded => "Succeeded",
        RunStatus::Canceled => "Canceled",
        _ => "Failed",
    }
    .to_owned();
    properties.run_error_message.clone_from(&ended.error);
    for (reference, digest) in &ended.images {
        properties.output_digest = Some(digest.clone());
        let named = reference.as_deref().and_then(|reference| reference.split_once('/'));
        let Some((registry, name)) = named else { continue };
        let (repository, tag) = match name.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag.to_owned())),
            None => (name, None),
        };
        let image = ImageDescriptor {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            tag,
            digest: digest.clone(),
        };
        // Told again by a later attempt.
        if !properties.output_images.contains(&image) {
            properties.output_images.push(image);
        }
    }
    run
}

/// The result on stdout, or why there is none. Something else may be on stdout already.
pub(super) fn report(session: &Session<'_>, run: &Run, ended: Ended, is_taken: bool) -> Result<()> {
    let id = &run.properties.run_id;
    match ended.status {
        RunStatus::Succeeded if is_taken => {
            images(run).iter().for_each(|image| session.printer.note(image));
            Ok(())
        }
        RunStatus::Succeeded => session.printer.result(run, &Table::lines(images(run))),
        _ => {
            let is_json =
                matches!(session.printer.format(), OutputFormat::Json | OutputFormat::Yaml);
            if is_json && !is_taken {
                session.printer.result(run, &Table::default())?;
            }
            let told = ended.error.or_else(|| run.properties.run_error_message.clone());
            Err(match (ended.status, ended.interrupted) {
                (RunStatus::Canceled, true) => {
                    Error::new(ErrorKind::Interrupted, format!("run `{id}` was canceled"))
                }
                (RunStatus::Canceled, false) => Error::failed(format!("run `{id}` was canceled")),
                (status, _) => {
                    let how = match status {
                        RunStatus::Timeout => "timed out",
                        RunStatus::Error => "met an error of the server",
                        _ => "failed",
                    };
                    let why = told.map(|told| format!(": {told}")).unwrap_or_default();
                    Error::failed(format!("run `{id}` {how}{why}"))
                }
            })
        }
    }
}

/// `repository@digest` per tag; the digest alone if there is none.
fn images(run: &Run) -> Vec<String> {
    let tagged = run.properties.output_images.iter();
    let tagged: Vec<_> =
        tagged.map(|image| format!("{}@{}", image.repository, image.digest)).collect();
    match tagged.is_empty() {
        true => run.properties.output_digest.iter().cloned().collect(),
        false => tagged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_can_be_told_from_its_events() {
        let queued = r#"{"id": "/c01", "name": "c01", "type": "runs", "properties": {
            "runId": "c01", "status": "Queued", "runType": "QuickBuild", "createTime": "",
            "lastUpdatedTime": "", "platform": {"os": "linux"}, "provisioningState": "Creating"}}"#;
        let image =
            |reference: Option<&str>| (reference.map(str::to_owned), "sha256:ab".to_owned());
        let told = |images| {
            let status = RunStatus::Succeeded;
            let ended = Ended { status, error: None, images, interrupted: false };
            as_told(serde_json::from_str(queued).unwrap(), &ended)
        };
        let run = told(vec![image(Some("localhost:5000/team/app:1")), image(Some("h:1/b:2"))]);
        assert_eq!(images(&run), ["team/app@sha256:ab", "b@sha256:ab"]);
        assert_eq!(run.properties.output_images[0].registry, "localhost:5000");
        assert_eq!(run.properties.output_images[1].tag.as_deref(), Some("2"));
        assert_eq!(run.properties.provisioning_state, "Succeeded");
        assert_eq!(images(&told(vec![image(None)])), ["sha256:ab"]);
    }

    #[test]
    fn a_place_in_line_is_told_with_its_reason() {
        let mut waiting = api::Waiting {
            reason: "2 of 2 workers are busy".into(),
            position: 3,
            expected_seconds: Some(40),
        };
        assert_eq!(
            explained(&waiting),
            "Waiting: 2 of 2 workers are busy; 3rd in line; usually starts in 40 s"
        );
        waiting.expected_seconds = None;
        assert!(explained(&waiting).ends_with("3rd in line"));
        let ordinals = [1, 2, 4, 11, 12, 13, 21, 102, 111].map(ordinal);
        assert_eq!(ordinals.join(" "), "1st 2nd 4th 11th 12th 13th 21st 102nd 111th");
    }

    #[test]
    fn l6_a_platform_has_up_to_three_parts() {
        let parsed = parse_platform("Linux/ARM/v7").unwrap();
        assert_eq!(parsed.os, "linux");
        assert_eq!(parsed.architecture.as_deref(), Some("arm"));
        assert_eq!(parsed.variant.as_deref(), Some("v7"));
        let lone = parse_platform("Linux").unwrap();
        assert_eq!((lone.os.as_str(), lone.architecture.as_deref()), ("linux", Some("amd64")));
        for bad in ["", "a/b/c/d", "/amd64"] {
            assert_eq!(parse_platform(bad).unwrap_err().kind(), ErrorKind::Usage, "{bad}");
        }
    }
}
