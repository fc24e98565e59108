//! `cmd` steps: a command of an image, in a container of its own.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use builder::{
    BaseImage, BaseImages as _, BuildError, Command, CommandError, ImageError, RunLimits, StepEnd,
    StepNumber, describe_exit, run_command,
};
use bytes::Bytes;
use container::{
    Exit, Limits, Mount, MountKind, Network, OutputSink, Peers, Private, Stream, is_host_name,
};
use oci::Reference;
use task::{BUILT_IN_ACR, Cmd, Container, Pull, Step};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::attempts::Attempt;
use super::built_in;
use super::command_line::CommandLine;
use super::events::Watch;
use super::workspace::WORKSPACE;
use super::{HOME, TaskContext, Work, attempts, unless_stopped};
use crate::execute::{Engine, Failure, RunEvents};
use crate::housekeeper::AcrCommand;

/// A command whose words are known.
#[derive(Clone)]
pub(crate) enum Prepared {
    /// An image, and what it gets as arguments.
    Image { image: Box<BaseImage>, arguments: Vec<String> },
    /// One that needs no container.
    BuiltIn(AcrCommand),
}

/// Finds the image of a command, if it is of one.
pub(crate) async fn prepare(context: &TaskContext<'_>, cmd: &Cmd) -> Result<Prepared, Failure> {
    let words = match CommandLine::parse(&cmd.command) {
        Ok(CommandLine::Words(words)) => words,
        Ok(CommandLine::Script(operator)) if built_in::is_meant(cmd) => {
            return Err(Failure::User(format!(
                "error: the command has {operator}, and there is no shell to act on it\n\
                 hint: put the word in quotes, as in `--filter 'app:.*'`"
            )));
        }
        Ok(CommandLine::Script(operator)) => {
            return Err(Failure::User(format!(
                "error: the command has {operator}, which needs a shell outside of the image\n\
                 hint: quote the part that the image's own shell is to run: `IMAGE sh -c '...'`"
            )));
        }
        Err(error) => return Err(Failure::User(format!("error: `cmd`: {error}"))),
    };
    let mut words = words.into_iter();
    let Some(name) = words.next() else {
        return Err(Failure::User("error: `cmd` names no image".to_owned()));
    };
    if name == BUILT_IN_ACR {
        return built_in::prepare(context, cmd, words.collect()).map(Prepared::BuiltIn);
    }
    let reference: Reference =
        name.parse().map_err(|error: oci::ReferenceError| Failure::user(&error, error.hint()))?;
    let image = pull(context, &reference, cmd.pull.as_ref()).await?;
    Ok(Prepared::Image { image: Box::new(image), arguments: words.collect() })
}

/// Brings an image, and tries again as often as the step says.
async fn pull(
    context: &TaskContext<'_>,
    reference: &Reference,
    pull: Option<&Pull>,
) -> Result<BaseImage, Failure> {
    let mut left = pull.map_or(0, |pull| pull.retries);
    loop {
        let platform = &context.request.platform;
        let error = match context.images.resolve(reference, platform, &|_| ()).await {
            Ok(image) => return Ok(image),
            Err(error) => error,
        };
        if left == 0 {
            return Err(image_failure(&error));
        }
        left -= 1;
        context.events.warning(&format!("{error}; it is tried again")).await;
        let delay = pull.map_or(Duration::ZERO, |pull| pull.retry_delay);
        attempts::sleep(delay, &context.kill).await?;
    }
}

fn image_failure(error: &ImageError) -> Failure {
    match error {
        ImageError::Store { .. } | ImageError::Damaged { .. } => Failure::ours(error),
        error => Failure::user(error, error.hint()),
    }
}

/// Runs a command as often as its step asks. An image that was not pulled before is found within
/// the step's time.
pub(crate) async fn execute(
    context: &TaskContext<'_>,
    step: &Step,
    cmd: &Cmd,
    pulled: Option<&Prepared>,
) -> Result<(), Failure> {
    let attempt = |(watch, stop): Attempt| -> Work<'_> {
        Box::pin(async move {
            let prepared = match pulled {
                Some(prepared) => prepared.clone(),
                None => unless_stopped(&stop, prepare(context, cmd)).await?,
            };
            run(context, step, cmd, &prepared, &watch, &stop, None).await
        })
    };
    attempts::execute(step, &cmd.attempts, context, attempt).await
}

/// Runs a command that other steps do not wait for, until its process has started.
pub(crate) async fn detach<'c>(
    context: &'c TaskContext<'_>,
    step: &'c Step,
    cmd: &'c Cmd,
    pulled: Option<Prepared>,
) -> Result<Work<'c>, Failure> {
    let started = Arc::new(Notify::new());
    let told = Arc::clone(&started);
    let mut process: Work<'c> = Box::pin(async move {
        let prepared = match pulled {
            Some(prepared) => prepared,
            None => unless_stopped(&context.kill, prepare(context, cmd)).await?,
        };
        let watch = Watch::new(&[]);
        run(context, step, cmd, &prepared, &watch, &context.kill, Some(&told)).await
    });
    tokio::select! {
        // A process that has started and ended at once has started.
        biased;
        () = started.notified() => Ok(process),
        ended = &mut process => ended.map(|()| Box::pin(std::future::ready(Ok(()))) as Work<'c>),
        () = tokio::time::sleep(step.timeout) => Err(attempts::time_is_up(step.timeout)),
    }
}

/// Runs a command once. `started` is told when its process has.
pub(crate) async fn run(
    context: &TaskContext<'_>,
    step: &Step,
    cmd: &Cmd,
    prepared: &Prepared,
    watch: &Watch,
    stop: &CancellationToken,
    started: Option<&Notify>,
) -> Result<(), Failure> {
    let number = context.numbers.next();
    let output = Output { events: context.events, number, watch, started };
    let result = match prepared {
        Prepared::BuiltIn(command) => {
            let shown = built_in::shown(&cmd.command);
            context.events.step_started(number, &format!("[{}] {shown}", step.id)).await;
            built_in::run(context, command, &output, stop).await
        }
        Prepared::Image { image, arguments } => {
            let command = command(context, step, cmd, image, arguments)?;
            context.events.message(&format!("Launching container with name: {}", step.id)).await;
            let shown = first_line(&cmd.command);
            context.events.step_started(number, &format!("[{}] {shown}", step.id)).await;
            in_container(context, &command, &output, stop).await
        }
    };
    let end = match &result {
        Ok(()) => StepEnd::Done,
        Err(failure) => StepEnd::Failed { error: failure.first_line().to_owned() },
    };
    context.events.step_finished(number, end).await;
    result
}

async fn in_container(
    context: &TaskContext<'_>,
    command: &Command,
    output: &Output<'_>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    match run_command(&context.engine.builder, command, output, stop).await {
        Ok((Exit::Code(0), _)) => Ok(()),
        Ok((Exit::Canceled, _)) => Err(Failure::Canceled),
        Ok((exit, usage)) => {
            let limits = RunLimits {
                memory: command.limits.memory,
                timeout: None,
                out_of_memory: usage.out_of_memory,
            };
            Err(Failure::User(format!("error: the command {}", describe_exit(exit, &limits))))
        }
        Err(error) => Err(command_failure(&error)),
    }
}

fn command_failure(error: &CommandError) -> Failure {
    match error {
        CommandError::Layers(BuildError::Canceled) => Failure::Canceled,
        error if error.is_users() => Failure::user(error, error.hint()),
        error => Failure::ours(error),
    }
}

/// What to run, all of it known.
fn command(
    context: &TaskContext<'_>,
    step: &Step,
    cmd: &Cmd,
    image: &BaseImage,
    arguments: &[String],
) -> Result<Command, Failure> {
    let container = &cmd.container;
    let engine = &context.engine;
    if container.privileged && !engine.builder.policy.insecure {
        return Err(not_allowed("`privileged`", "build.allow_insecure"));
    }
    Ok(Command {
        name: context.request.run.clone(),
        image: image.clone(),
        entry_point: cmd.entry_point.clone(),
        arguments: arguments.to_vec(),
        env: container.env.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        user: container.user.clone(),
        working_directory: container.working_directory.clone(),
        hostname: host_name(&step.id),
        mounts: mounts(context, container),
        network: network(context, container)?,
        peers: peers(context, step, container)?,
        limits: limits(engine, container)?,
        privileged: container.privileged,
    })
}

fn not_allowed(what: &str, setting: &str) -> Failure {
    Failure::User(format!(
        "error: {what} is not allowed by this server\n\
         hint: its operator can allow it with `{setting} = true`"
    ))
}

/// The workspace, the home folder, and the files of secret volumes.
fn mounts(context: &TaskContext<'_>, container: &Container) -> Vec<Mount> {
    let bind = |target: &str, source| Mount {
        target: target.to_owned(),
        read_only: false,
        kind: MountKind::Bind { source },
    };
    let mut mounts =
        vec![bind(WORKSPACE, context.workspace.clone()), bind(HOME, context.home.clone())];
    for mount in &container.mounts {
        let files = context.volumes.get(mount.volume.as_str()).into_iter().flatten();
        mounts.extend(files.map(|(name, content)| Mount {
            target: format!("{}/{name}", mount.path.trim_end_matches('/')),
            read_only: true,
            kind: MountKind::File { content: content.clone(), uid: 0, gid: 0, mode: 0o400 },
        }));
    }
    mounts
}

/// The files of a volume, which are in memory only.
pub(crate) type VolumeFiles = Vec<(String, Private)>;

fn network(context: &TaskContext<'_>, container: &Container) -> Result<Network, Failure> {
    match container.network.as_deref() {
        Some("none") => Ok(Network::None),
        Some("host") if !context.engine.allow_host_network => {
            Err(not_allowed("the host's network", "build.allow_host_network"))
        }
        Some("host") => Ok(Network::Host),
        None | Some(_) => Ok(Network::Isolated),
    }
}

/// The other containers that a step reaches by their ids.
fn peers(
    context: &TaskContext<'_>,
    step: &Step,
    container: &Container,
) -> Result<Option<Peers>, Failure> {
    let Some(name) = container.network.as_deref().filter(|name| !matches!(*name, "none" | "host"))
    else {
        return Ok(None);
    };
    if context.engine.builder.runtime.is_none() {
        // Which is said when the command is to start.
        return Ok(None);
    }
    let Some(network) = context.networks.get(name) else {
        return Err(Failure::User(format!(
            "error: there is no network `{name}`\n\
             hint: list it under `networks` of the task"
        )));
    };
    // An id that is no host name cannot be reached by it.
    let names = is_host_name(&step.id).then(|| step.id.clone());
    Ok(Some(Peers { network: network.clone(), names: names.into_iter().collect() }))
}

/// The server's bounds, and processors as the step asks for them, if that is less.
fn limits(engine: &Engine, container: &Container) -> Result<Limits, Failure> {
    let mut limits = engine.container_limits.clone();
    if let Some(text) = &container.cpus {
        let wanted = text.trim().parse::<f64>().ok().filter(|cpus| (0.01..=4096.0).contains(cpus));
        let Some(wanted) = wanted else {
            return Err(Failure::User(format!(
                "error: `cpus` is a number of processors such as `1.5`, not `{text}`"
            )));
        };
        limits.cpus = Some(limits.cpus.map_or(wanted, |max| max.min(wanted)));
    }
    Ok(limits)
}

/// The id of a step as a host name: what cannot be in one becomes `-`.
fn host_name(id: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '-' };
    id.chars().take(63).map(letter).collect()
}

pub(crate) fn first_line(text: &str) -> &str {
    text.trim().lines().next().unwrap_or_default()
}

/// Passes on what a command prints.
pub(crate) struct Output<'a> {
    events: &'a dyn RunEvents,
    number: StepNumber,
    watch: &'a Watch,
    started: Option<&'a Notify>,
}

#[async_trait]
impl OutputSink for Output<'_> {
    async fn started(&self) {
        if let Some(started) = self.started {
            started.notify_one();
        }
    }

    async fn write(&self, stream: Stream, bytes: Bytes) {
        self.watch.look(stream, &bytes);
        self.events.output(self.number, stream, bytes).await;
    }
}
