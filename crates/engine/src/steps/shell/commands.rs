//! What becomes of a command: the step's own, docker's and `acr`'s.

use async_trait::async_trait;
use builder::{
    BaseImage, BaseImages as _, Command as ContainerCommand, CommandError, RunLimits,
    describe_exit, run_command,
};
use bytes::Bytes;
use container::{ContainerError, Exit, OutputSink, Stream};
use oci::{Manifest, Reference};
use tokio::sync::Notify;

use super::docker::{
    Command, ImageCommand, InspectArgs, ManifestCommand, RmiArgs, RunArgs, TagArgs, Told, parse,
};
use super::inspect;
use super::logins;
use super::protocol::{Program, Request};
use super::session::{Caller, KILLED, NOT_STARTED, Session};
use crate::execute::{Failure, blocking, image_failure};
use crate::steps::cmd::{self, command_failure, host_name, limits, network, peers, shared_folders};
use crate::steps::containers::{Ended, Recent, Running};
use crate::steps::{HOME, built_in, identity, push, unless_stopped};

/// What a shell says of a program that it does not find.
const NOT_FOUND: u8 = 127;

/// Images that are shown at once, and what there may be to show of them in JSON.
const INSPECTED_MAX: usize = 50;
const INSPECTED_SIZE_MAX: usize = 8 << 20;

/// Arguments that are an image's name have at most so many bytes.
const NAME_SIZE_MAX: usize = 512;

impl Session<'_> {
    /// Carries a command out, and gives its exit code.
    pub(super) async fn answer(&self, request: &Request, caller: &Caller) -> u8 {
        let words = &request.arguments;
        self.shell.context.refresh_logins().await;
        let result = match request.program {
            Program::Step => return self.run_step(words, caller).await,
            Program::Docker => match parse(words) {
                Ok(Command::Run(run)) => return self.run_other(&run, request, caller).await,
                Ok(command) => self.docker(&command, caller).await,
                Err(Told::Help(text)) => {
                    caller.say(Stream::Stdout, &text).await;
                    Ok(())
                }
                Err(Told::Refused(text)) => {
                    return self.refuse(caller, NOT_STARTED, Failure::User(text)).await;
                }
            },
            Program::Acr => self.acr(words, caller).await,
        };
        match result {
            Ok(()) => 0,
            Err(failure) => self.refuse(caller, 1, failure).await,
        }
    }

    /// The step's own command, with all that the step says.
    async fn run_step(&self, words: &[String], caller: &Caller) -> u8 {
        let (context, step, cmd) = (self.shell.context, self.shell.step, self.shell.cmd);
        let Some((name, arguments)) = words.split_first() else {
            let failure = Failure::User("error: `cmd` names no image".to_owned());
            return self.refuse(caller, NOT_STARTED, failure).await;
        };
        let prepared = async {
            let image = self.image(name, caller).await?;
            cmd::command(context, step, cmd, &image, arguments)
        };
        match prepared.await {
            Ok(command) => {
                let container = &cmd.container;
                let (may_end, keep) = (container.detach, container.keep);
                let listed = Listing { name: &step.id, image: name, may_end, keep };
                self.run(&command, listed, caller, self.shell.started).await
            }
            Err(failure) => self.refuse(caller, NOT_STARTED, failure).await,
        }
    }

    /// `docker run`, as somebody wrote it.
    async fn run_other(&self, run: &RunArgs, request: &Request, caller: &Caller) -> u8 {
        // Steps have their own bound.
        let place = self.shell.context.shell_containers.acquire();
        let Ok(_place) = unless_stopped(&caller.gone, async { Ok(place.await) }).await else {
            return KILLED;
        };
        match self.other_command(run, request, caller).await {
            Ok(command) => {
                let name = run.name.as_deref().unwrap_or(&command.hostname);
                let keep = !run.rm;
                let listed = Listing { name, image: run.image().0, may_end: true, keep };
                self.run(&command, listed, caller, None).await
            }
            Err(failure) => self.refuse(caller, NOT_STARTED, failure).await,
        }
    }

    async fn other_command(
        &self,
        run: &RunArgs,
        request: &Request,
        caller: &Caller,
    ) -> Result<ContainerCommand, Failure> {
        let (context, container) = (self.shell.context, &self.shell.cmd.container);
        let (name, arguments) = run.image();
        let image = self.image(name, caller).await?;
        let wanted = run.network.as_deref().or(container.network.as_deref());
        let host = run.hostname.as_deref().or(run.name.as_deref());
        let mut env = vec![("HOME".to_owned(), HOME.to_owned())];
        for entry in &run.env {
            let (name, value) = match entry.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (entry.as_str(), request.environment.get(entry).cloned()),
            };
            env.retain(|(other, _)| other != name);
            env.extend(value.map(|value| (name.to_owned(), value)));
        }
        let network = network(context, wanted)?;
        Ok(ContainerCommand {
            name: context.request.run.clone(),
            image,
            entry_point: run.entrypoint.clone(),
            arguments: arguments.to_vec(),
            env,
            user: run.user.clone(),
            working_directory: run.workdir.clone(),
            hostname: host_name(host.unwrap_or(&self.shell.step.id)),
            mounts: shared_folders(context),
            files: Vec::new(),
            network,
            peers: peers(context, wanted, run.name.as_deref())?,
            service: identity::service(context, network),
            limits: limits(context, container)?,
            privileged: false,
        })
    }

    /// Runs a container whose output goes to the caller.
    async fn run(
        &self,
        command: &ContainerCommand,
        listing: Listing<'_>,
        caller: &Caller,
        started: Option<&Notify>,
    ) -> u8 {
        let context = self.shell.context;
        // Whoever stops it does not end the caller, who is told.
        let stop = caller.gone.child_token();
        let Listing { name, image, may_end, keep } = listing;
        let listed = context.containers.add(Running {
            name: name.to_owned(),
            image: image.to_owned(),
            stop: may_end.then(|| stop.clone()),
            keep,
        });
        let recent = listed.recent.as_deref();
        let output = CallerOutput { caller, started, recent };
        let builder = &context.engine.builder;
        let (exit, usage) = match run_command(builder, command, &output, &stop).await {
            Ok(ended) => ended,
            Err(error) => {
                let is_missing =
                    matches!(error, CommandError::Start(ContainerError::CannotExecute { .. }));
                let code = if is_missing { NOT_FOUND } else { NOT_STARTED };
                return self.refuse(caller, code, command_failure(&error)).await;
            }
        };
        context.note_usage(&self.shell.step.id, usage.into());
        listed.note_exit(exit);
        match exit {
            Exit::Code(code) => u8::try_from(code).unwrap_or(u8::MAX),
            Exit::Signal(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
            Exit::Canceled => KILLED,
            Exit::OutOfMemory | Exit::OutOfDisk | Exit::DiskFull | Exit::TimedOut => {
                let limits = RunLimits::of(&command.limits, usage);
                let text = format!("error: the command {}\n", describe_exit(exit, &limits));
                caller.say(Stream::Stderr, &text).await;
                KILLED
            }
        }
    }

    async fn image(&self, name: &str, caller: &Caller) -> Result<BaseImage, Failure> {
        let reference = reference(name)?;
        let found = cmd::pull(self.shell.context, &reference, None);
        let image = unless_stopped(&caller.gone, found).await?;
        self.shell.context.images.note_pulled(&reference, &image.top);
        Ok(image)
    }

    async fn docker(&self, command: &Command, caller: &Caller) -> Result<(), Failure> {
        let say = async |text: &str| caller.say(Stream::Stdout, text).await;
        match command {
            Command::Tag(tag) | Command::Image(ImageCommand::Tag(tag)) => self.tag(tag),
            Command::Push(push) | Command::Image(ImageCommand::Push(push)) => {
                self.push(&push.image, push.quiet, caller).await
            }
            Command::Pull(pull) | Command::Image(ImageCommand::Pull(pull)) => {
                let image = self.image(&pull.image, caller).await?;
                if !pull.quiet {
                    say(&format!("Digest: {}\n", image.top)).await;
                }
                say(&format!("{}\n", pull.image)).await;
                Ok(())
            }
            Command::Images(images) | Command::Image(ImageCommand::Ls(images)) => {
                let names = self.shell.context.images.names();
                say(&inspect::list(&names, images.quiet)).await;
                Ok(())
            }
            Command::Rmi(rmi) | Command::Image(ImageCommand::Rm(rmi)) => {
                self.remove_names(rmi, caller).await
            }
            Command::Inspect(args) | Command::Image(ImageCommand::Inspect(args)) => {
                self.inspect(args, caller).await
            }
            Command::Manifest(ManifestCommand::Inspect(args)) => {
                let manifest = self.manifest(&args.image, caller).await?;
                say(&inspect::show_manifest(&manifest)?).await;
                Ok(())
            }
            Command::Login(login) => logins::login(login, caller).await,
            Command::Logout(logout) => logins::logout(logout, caller).await,
            Command::Ps(ps) => {
                let containers = self.shell.context.containers.list(ps.all);
                say(&inspect::list_containers(&containers, ps.quiet)).await;
                Ok(())
            }
            Command::Stop(stop) | Command::Kill(stop) => self.stop(&stop.containers, caller).await,
            Command::Rm(rm) => {
                for name in &rm.containers {
                    match self.shell.context.containers.remove(name) {
                        true => say(&format!("{name}\n")).await,
                        false => self.stop(std::slice::from_ref(name), caller).await?,
                    }
                }
                Ok(())
            }
            Command::Logs(logs) => {
                let Some(recent) = self.shell.context.containers.recent(&logs.container) else {
                    return Err(Failure::User(format!(
                        "error: no output is kept of a container called `{}`\n\
                         hint: that of steps with `detach` or `keep` is; the log of the run has all",
                        logs.container
                    )));
                };
                let text = last_lines(&recent, logs.tail);
                caller.write(Stream::Stdout, Bytes::copy_from_slice(text)).await;
                Ok(())
            }
            Command::Version(_) => {
                say(&format!("Refit {}\n", env!("CARGO_PKG_VERSION"))).await;
                Ok(())
            }
            // Which reading a command does not let through.
            Command::Run(_) | Command::Other(_) => Err(Failure::Canceled),
        }
    }

    async fn inspect(&self, args: &InspectArgs, caller: &Caller) -> Result<(), Failure> {
        let too_much = || {
            Failure::User(format!(
                "error: that is too much at once\n\
                 hint: ask for at most {INSPECTED_MAX} images, which have at most \
                 {INSPECTED_SIZE_MAX} bytes to show"
            ))
        };
        if args.images.len() > INSPECTED_MAX {
            return Err(too_much());
        }
        let (mut found, mut size) = (Vec::new(), 0);
        for name in &args.images {
            let described = match self.shell.context.containers.find(name) {
                Some(container) => inspect::describe_container(&container),
                None => {
                    let image = self.image(name, caller).await?;
                    let names = self.shell.context.images.names();
                    inspect::describe(&reference(name)?, &image, &names)
                }
            };
            size += described.to_string().len();
            if size > INSPECTED_SIZE_MAX {
                return Err(too_much());
            }
            found.push(described);
        }
        let format = args.format.clone();
        let shown = blocking(move || inspect::show(found, format.as_deref()));
        let shown = unless_stopped(&caller.gone, async { shown.await? }).await?;
        caller.say(Stream::Stdout, &shown).await;
        Ok(())
    }

    fn tag(&self, tag: &TagArgs) -> Result<(), Failure> {
        let (source, target) = (reference(&tag.source)?, reference(&tag.target)?);
        if target.digest.is_some() {
            return Err(Failure::User("error: a digest cannot be given to an image".to_owned()));
        }
        let images = &self.shell.context.images;
        let image = match images.find(&source) {
            Some(image) => image,
            // Not whatever somebody else has under that name.
            None => images.pulled(&source).ok_or_else(|| {
                Failure::User(format!(
                    "error: no image of this run is called `{}`\n\
                     hint: `docker pull` fetches one of elsewhere",
                    tag.source
                ))
            })?,
        };
        match images.add_name(target, image) {
            true => Ok(()),
            false => Err(Failure::User("error: the run has too many names of images".to_owned())),
        }
    }

    async fn push(&self, name: &str, quiet: bool, caller: &Caller) -> Result<(), Failure> {
        let (context, reference) = (self.shell.context, reference(name)?);
        push::execute(context, &self.shell.step.id, std::slice::from_ref(&reference), &caller.gone)
            .await?;
        let digest = context.images.find(&reference).and_then(|image| image.digest().cloned());
        let tag = reference.tag_or_latest();
        let text = match (quiet, tag, digest) {
            (false, Some(tag), Some(digest)) => format!("{tag}: digest: {digest}\n"),
            _ => format!("{name}\n"),
        };
        caller.say(Stream::Stdout, &text).await;
        Ok(())
    }

    async fn remove_names(&self, rmi: &RmiArgs, caller: &Caller) -> Result<(), Failure> {
        for name in &rmi.images {
            let is_gone = self.shell.context.images.remove_name(&reference(name)?);
            if is_gone {
                caller.say(Stream::Stdout, &format!("Untagged: {name}\n")).await;
            } else if !rmi.force {
                return Err(Failure::User(format!(
                    "error: no image of this run is called `{name}`"
                )));
            }
        }
        Ok(())
    }

    async fn manifest(&self, name: &str, caller: &Caller) -> Result<Manifest, Failure> {
        let (context, reference) = (self.shell.context, reference(name)?);
        let found = async {
            let found = context.images.manifest(&reference).await;
            found.map(|(_, manifest)| manifest).map_err(|error| image_failure(&error))
        };
        unless_stopped(&caller.gone, found).await
    }

    async fn stop(&self, names: &[String], caller: &Caller) -> Result<(), Failure> {
        for name in names {
            let ended = async { Ok(self.shell.context.containers.end(name).await) };
            match unless_stopped(&caller.gone, ended).await? {
                Ended::Yes => caller.say(Stream::Stdout, &format!("{name}\n")).await,
                Ended::Unknown => {
                    return Err(Failure::User(format!("error: no container is called `{name}`")));
                }
                Ended::Awaited => {
                    return Err(Failure::User(format!(
                        "error: `{name}` is a step that is waited for, and ends by itself\n\
                         hint: steps with `detach: true` can be ended"
                    )));
                }
            }
        }
        Ok(())
    }

    async fn acr(&self, words: &[String], caller: &Caller) -> Result<(), Failure> {
        let (context, cmd) = (self.shell.context, self.shell.cmd);
        let command = built_in::parse(context, cmd, words)?;
        built_in::run(context, &command, caller, &caller.gone).await
    }
}

/// The last lines of a text; all of them if it has no more, or if no number is given.
fn last_lines(text: &[u8], count: Option<usize>) -> &[u8] {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let mut ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    match count {
        None => text,
        Some(0) => &[],
        Some(count) => ends.nth(count - 1).map_or(text, |(end, _)| &text[end + 1..]),
    }
}

fn reference(name: &str) -> Result<Reference, Failure> {
    if name.len() > NAME_SIZE_MAX {
        return Err(Failure::User("error: the name of an image is too long".to_owned()));
    }
    name.parse().map_err(|error: oci::ReferenceError| Failure::user(&error, error.hint()))
}

/// How a container is listed, and whether it may be ended by its name.
struct Listing<'a> {
    name: &'a str,
    image: &'a str,
    may_end: bool,
    /// Also when it has ended.
    keep: bool,
}

/// Output of a container for the one who asked for it.
struct CallerOutput<'a> {
    caller: &'a Caller,
    started: Option<&'a Notify>,
    recent: Option<&'a Recent>,
}

#[async_trait]
impl OutputSink for CallerOutput<'_> {
    async fn started(&self) {
        if let Some(started) = self.started {
            started.notify_one();
        }
    }

    async fn write(&self, stream: Stream, bytes: Bytes) {
        if let Some(recent) = self.recent {
            recent.add(&bytes);
        }
        self.caller.write(stream, bytes).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_those_that_were_asked_for() {
        let last = |text: &'static str, count| {
            std::str::from_utf8(last_lines(text.as_bytes(), count)).unwrap()
        };
        assert_eq!(last("a\nb\nc\n", Some(2)), "b\nc\n");
        assert_eq!(last("a\nb\nc", Some(1)), "c");
        assert_eq!(last("a\nb\n", Some(2)), "a\nb\n");
        assert_eq!(last("a\nb\n", Some(9)), "a\nb\n");
        assert_eq!(last("a\nb\n", Some(0)), "");
        assert_eq!(last("", Some(1)), "");
        assert_eq!(last("a\nb\n", None), "a\nb\n");
    }

    #[test]
    fn names_of_images_are_bounded() {
        assert!(reference("busybox").is_ok());
        assert!(matches!(reference("A"), Err(Failure::User(_))));
        assert!(matches!(reference(&"a".repeat(600)), Err(Failure::User(_))));
    }
}
