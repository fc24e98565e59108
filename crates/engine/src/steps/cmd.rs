//! `cmd` steps: a command of an image, in a container of its own.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use builder::{
    BaseImage, BaseImages as _, BuildError, Command, CommandError, RunLimits, StepEnd, StepNumber,
    describe_exit, run_command,
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
use super::containers::{Listed, Recent, Running};
use super::events::Watch;
use super::workspace::WORKSPACE;
use super::{HOME, TaskContext, Work, attempts, identity, shell, unless_stopped};
use crate::execute::{Failure, RunEvents, image_failure};
use crate::housekeeper::AcrCommand;

/// The network that tasks need not make: it leads out, and to no other container.
const USUAL_NETWORK: &str = "bridge";

/// A command whose words are known.
#[derive(Clone)]
pub(crate) enum Prepared {
    /// An image, and what it gets as arguments.
    Image { image: Box<BaseImage>, arguments: Vec<String> },
    /// A line for the agent shell, which is made of this image.
    Shell(Box<BaseImage>),
    /// One that needs no container.
    BuiltIn(AcrCommand),
}

/// Finds the image of a command, if it is of one.
pub(crate) async fn prepare(context: &TaskContext<'_>, cmd: &Cmd) -> Result<Prepared, Failure> {
    let words = match CommandLine::parse(&cmd.command) {
        Ok(CommandLine::Words(words)) => words,
        Ok(CommandLine::Script(operator)) => {
            let image = shell::prepare(context, cmd, &operator).await?;
            return Ok(Prepared::Shell(Box::new(image)));
        }
        Err(error) => return Err(Failure::User(format!("error: `cmd`: {error}"))),
    };
    let mut words = words.into_iter();
    let Some(name) = words.next() else {
        return Err(Failure::User("error: `cmd` names no image".to_owned()));
    };
    if name == BUILT_IN_ACR {
        let words: Vec<_> = words.collect();
        return built_in::prepare(context, cmd, &words).map(Prepared::BuiltIn);
    }
    let reference: Reference =
        name.parse().map_err(|error: oci::ReferenceError| Failure::user(&error, error.hint()))?;
    let image = pull(context, &reference, cmd.pull.as_ref()).await?;
    Ok(Prepared::Image { image: Box::new(image), arguments: words.collect() })
}

/// Brings an image, and tries again as often as the step says.
pub(crate) async fn pull(
    context: &TaskContext<'_>,
    reference: &Reference,
    pull: Option<&Pull>,
) -> Result<BaseImage, Failure> {
    let mut left = pull.map_or(0, |pull| pull.retries);
    loop {
        let platform = &context.request.platform;
        let error = match context.images.resolve(reference, platform, &|_| ()).await {
            Ok(image) => {
                context.note_image(reference, &image.top);
                return Ok(image);
            }
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
    let output = Output { events: context.events, number, watch, started, recent: None };
    let result = match prepared {
        Prepared::BuiltIn(command) => {
            let shown = built_in::plain(&cmd.command);
            let shown = format!("[{}] {}", step.id, first_line(&shown));
            context.events.step_started(number, &shown).await;
            built_in::run(context, command, &output, stop).await
        }
        Prepared::Image { image, arguments } => {
            let command = command(context, step, cmd, image, arguments)?;
            let stop = stop.child_token();
            let listed = context.containers.add(Running {
                name: step.id.clone(),
                image: first_word(&cmd.command).to_owned(),
                stop: cmd.container.detach.then(|| stop.clone()),
                keep: cmd.container.keep,
            });
            tell_launch(context, step, number, &cmd.command).await;
            let output = Output { recent: listed.recent.as_deref(), ..output };
            in_container(context, step, &command, &output, &stop, Some(&listed)).await
        }
        Prepared::Shell(image) => {
            tell_launch(context, step, number, &built_in::plain(&cmd.command)).await;
            let output = Output { started: None, ..output };
            let shell = shell::Shell { context, step, cmd, started };
            shell.run(image, &output, stop).await
        }
    };
    let end = match &result {
        Ok(()) => StepEnd::Done,
        Err(failure) => StepEnd::Failed { error: failure.first_line().to_owned() },
    };
    context.events.step_finished(number, end).await;
    result
}

async fn tell_launch(context: &TaskContext<'_>, step: &Step, number: StepNumber, command: &str) {
    context.events.message(&format!("Launching container with name: {}", step.id)).await;
    let shown = first_line(command);
    context.events.step_started(number, &format!("[{}] {shown}", step.id)).await;
}

pub(crate) async fn in_container(
    context: &TaskContext<'_>,
    step: &Step,
    command: &Command,
    output: &Output<'_>,
    stop: &CancellationToken,
    listed: Option<&Listed<'_>>,
) -> Result<(), Failure> {
    let ended = run_command(&context.engine.builder, command, output, stop).await;
    if let Ok((exit, usage)) = &ended {
        context.note_usage(&step.id, (*usage).into());
        if let Some(listed) = listed {
            listed.note_exit(*exit);
        }
    }
    match ended {
        Ok((Exit::Code(0), _)) => Ok(()),
        Ok((Exit::Canceled, _)) => Err(Failure::Canceled),
        Ok((exit, usage)) => {
            let limits = RunLimits::of(&command.limits, usage);
            Err(Failure::User(format!("error: the command {}", describe_exit(exit, &limits))))
        }
        Err(error) => Err(command_failure(&error)),
    }
}

pub(crate) fn command_failure(error: &CommandError) -> Failure {
    match error {
        CommandError::Layers(BuildError::Canceled) => Failure::Canceled,
        error if error.is_users() => Failure::user(error, error.hint()),
        error => Failure::ours(error),
    }
}

/// Whether a step is carried out by the agent shell.
pub(crate) fn is_shell(step: &Step) -> bool {
    let task::Action::Cmd(cmd) = &step.action else { return false };
    matches!(CommandLine::parse(&cmd.command), Ok(CommandLine::Script(_)))
}

/// Finds what the server's policy refuses of a step, before any has begun. Images that are `built` by
/// another step are the run's own; `None`: which ones these are cannot be known.
pub(crate) async fn check_policy(
    context: &TaskContext<'_>,
    cmd: &Cmd,
    built: Option<&[Reference]>,
) -> Result<(), Failure> {
    let container = &cmd.container;
    if container.privileged && !context.engine.builder.policy.insecure {
        return Err(not_allowed("`privileged`", "build.allow_insecure"));
    }
    let network = network(context, container.network.as_deref())?;
    let is_unbounded = container.privileged || network == Network::Host;
    if is_unbounded && !context.engine.container_limits.egress.is_open() {
        let what = "error: `privileged` and the host's network cannot be had by runs whose \
                    connections are bounded";
        return Err(Failure::User(what.to_owned()));
    }
    // What cannot be read is an error when the step begins, or the business of a shell.
    let Ok(CommandLine::Words(words)) = CommandLine::parse(&cmd.command) else { return Ok(()) };
    let named = words.first().filter(|name| *name != BUILT_IN_ACR);
    let reference = named.and_then(|name| name.parse::<Reference>().ok());
    let (Some(reference), Some(built)) = (reference, built) else { return Ok(()) };
    match built.iter().any(|built| built.shortest() == reference.shortest()) {
        true => Ok(()),
        false => {
            let checked = context.images.check(&reference).await;
            checked.map_err(|error| image_failure(&error))
        }
    }
}

/// What to run, all of it known.
pub(crate) fn command(
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
    let network = network(context, container.network.as_deref())?;
    Ok(Command {
        name: context.request.run.clone(),
        image: image.clone(),
        entry_point: cmd.entry_point.clone(),
        arguments: arguments.to_vec(),
        env: env(context, container),
        user: container.user.clone(),
        working_directory: container.working_directory.clone(),
        hostname: host_name(&step.id),
        mounts: shared_folders(context),
        files: volume_files(context, container),
        network,
        peers: peers(context, container.network.as_deref(), Some(&step.id))?,
        service: identity::service(context, network),
        limits: limits(context, container)?,
        privileged: container.privileged,
    })
}

/// What the step sets; the registry of its run for `acr` in images of others (builtin-commands.md
/// section 1); and where it asks for tokens of its identities.
pub(crate) fn env(context: &TaskContext<'_>, container: &Container) -> Vec<(String, String)> {
    let engine = &context.engine;
    let own = engine.own.host(&engine.registry).map(|host| (built_in::DEFAULT_REGISTRY, host));
    let identities = identity::variable(context);
    let ours = own.into_iter().chain(identities);
    let all = ours.filter(|(name, _)| container.env.iter().all(|(given, _)| given != *name));
    let all = all.chain(container.env.iter());
    all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn not_allowed(what: &str, setting: &str) -> Failure {
    Failure::User(format!(
        "error: {what} is not allowed by this server\n\
         hint: its operator can allow it with `{setting} = true`"
    ))
}

/// The files of secret volumes, by where they are mounted.
pub(crate) fn volume_files(
    context: &TaskContext<'_>,
    container: &Container,
) -> Vec<(String, Private)> {
    let mut mounted = Vec::new();
    for mount in &container.mounts {
        let files = context.volumes.get(mount.volume.as_str()).into_iter().flatten();
        let folder = mount.path.trim_end_matches('/');
        mounted.extend(files.map(|(name, content)| (format!("{folder}/{name}"), content.clone())));
    }
    mounted
}

/// The workspace and the home folder, which all containers of a run have.
pub(crate) fn shared_folders(context: &TaskContext<'_>) -> Vec<Mount> {
    let bind = |target: &str, source| Mount {
        target: target.to_owned(),
        read_only: false,
        kind: MountKind::Bind { source },
    };
    vec![bind(WORKSPACE, context.workspace.clone()), bind(HOME, context.home.clone())]
}

/// The files of a volume, which are in memory only.
pub(crate) type VolumeFiles = Vec<(String, Private)>;

pub(crate) fn network(context: &TaskContext<'_>, name: Option<&str>) -> Result<Network, Failure> {
    match name {
        Some("none") => Ok(Network::None),
        Some("host") if !context.engine.allow_host_network => {
            Err(not_allowed("the host's network", "build.allow_host_network"))
        }
        Some("host") => Ok(Network::Host),
        None | Some(_) => Ok(Network::Isolated),
    }
}

/// The other containers that one of a network reaches by their ids; they reach it by `name`.
pub(crate) fn peers(
    context: &TaskContext<'_>,
    network: Option<&str>,
    name: Option<&str>,
) -> Result<Option<Peers>, Failure> {
    let Some(network) = network.filter(|network| !matches!(*network, "none" | "host")) else {
        return Ok(None);
    };
    if context.engine.builder.runtime.is_none() {
        // Which is said when the command is to start.
        return Ok(None);
    }
    let Some(found) = context.networks.get(network) else {
        // What containers have that name no network; it is always there.
        if network == USUAL_NETWORK {
            return Ok(None);
        }
        return Err(Failure::User(format!(
            "error: there is no network `{network}`\n\
             hint: list it under `networks` of the task, without `skipCreation`: \
             this server has no networks but those that a run makes, and `{USUAL_NETWORK}`"
        )));
    };
    let Some(found) = found else { return Ok(None) };
    // An id that is no host name cannot be reached by it.
    let names = name.filter(|name| is_host_name(name)).map(str::to_owned);
    Ok(Some(Peers { network: found.clone(), names: names.into_iter().collect() }))
}

/// The server's bounds, and processors as the step asks for them, if that is less.
pub(crate) fn limits(context: &TaskContext<'_>, container: &Container) -> Result<Limits, Failure> {
    let mut limits = context.engine.container_limits.clone();
    limits.disk.besides = vec![context.workspace.clone(), context.home.clone()];
    if let Some(text) = &container.cpus {
        let wanted = text.trim().parse::<f64>().ok().filter(|cpus| (0.01..=4096.0).contains(cpus));
        let Some(wanted) = wanted else {
            return Err(Failure::User(format!(
                "error: `cpus` is a number of processors such as `1.5`, not `{text}`"
            )));
        };
        limits.bound_cpus(wanted);
    }
    Ok(limits)
}

/// The id of a step as a host name: what cannot be in one becomes `-`.
pub(crate) fn host_name(id: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '-' };
    id.chars().take(63).map(letter).collect()
}

pub(crate) fn first_line(text: &str) -> &str {
    text.trim().lines().next().unwrap_or_default()
}

pub(crate) fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

/// Passes on what a command prints.
pub(crate) struct Output<'a> {
    events: &'a dyn RunEvents,
    number: StepNumber,
    watch: &'a Watch,
    started: Option<&'a Notify>,
    recent: Option<&'a Recent>,
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
        if let Some(recent) = self.recent {
            recent.add(&bytes);
        }
        self.events.output(self.number, stream, bytes).await;
    }
}
