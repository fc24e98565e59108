//! The agent shell: what carries out the text of a `cmd` that is more than an image and words
//! (task-yaml.md section 4.6).
//!
//! It is a container like those of steps, of an image with `sh`. The text begins with the step's own
//! command, so that its first words are an image and arguments; what else there is to act on, the
//! shell acts on. Its commands `docker` and `acr` are our own binary as a [`client`], which asks the
//! run through a [`door`]: a socket that no other container has. [`session`] answers.
//!
//! Invariants:
//! - The shell is never privileged, whatever its step is.
//! - The engine opens no path for it. Files are what the client writes in its own container.
//! - What clients asked for has ended when the shell has.

mod client;
mod commands;
mod docker;
mod door;
mod inspect;
mod logins;
mod protocol;
mod session;

use builder::{BaseImage, Command};
use container::Network;
use oci::Reference;
use task::{Cmd, Step};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use client::{SHELL_CLIENT_ARG, shell_client};

use super::cmd::{
    Output, env, first_word, host_name, in_container, limits, peers, pull, shared_folders,
};
use super::command_line::Operator;
use super::workspace::WORKSPACE;
use super::{HOME, TaskContext, built_in, identity};
use crate::execute::Failure;
use door::{COMMANDS, Door, STEP_COMMAND};
use session::Session;

/// Where programs are if the image does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Variables of a step that are not for the shell: it has its own programs, and its home.
const OWN_VARIABLES: [&str; 2] = ["PATH", "HOME"];

/// Finds the image of the shell, and before it that of the step if it is to be pulled.
pub(super) async fn prepare(
    context: &TaskContext<'_>,
    cmd: &Cmd,
    operator: &Operator,
) -> Result<BaseImage, Failure> {
    if built_in::is_meant(cmd) {
        built_in::check(cmd)?;
    } else if let (Some(wanted), Ok(image)) = (&cmd.pull, first_word(&cmd.command).parse()) {
        pull(context, &image, Some(wanted)).await?;
    }
    let name = &context.engine.shell_image;
    let instead = match built_in::is_meant(cmd) {
        true => "put the word in quotes, as in `--filter 'app:.*'`",
        false => "quote it for the image's own shell, `IMAGE sh -c '...'`",
    };
    let lacking = |reason: &str| {
        format!(
            "error: the command has {operator}, which needs a shell outside of the image, and that \
             shell's image cannot be had: {reason}\n\
             hint: {instead}; or the operator of this server names another image in \
             `build.shell_image`"
        )
    };
    let reference: Reference = name
        .parse()
        .map_err(|error: oci::ReferenceError| Failure::User(lacking(&error.to_string())))?;
    pull(context, &reference, cmd.pull.as_ref()).await.map_err(|failure| match failure {
        Failure::User(_) => Failure::User(lacking(failure.first_line())),
        failure => failure,
    })
}

/// Where the shell finds programs: its own commands, and those of the image.
fn path(image: &BaseImage) -> String {
    let mut variables = image.config.config.env.iter();
    let of_image = variables.find_map(|entry| entry.strip_prefix("PATH="));
    format!("{COMMANDS}:{}", of_image.unwrap_or(PATH))
}

/// A shell of a step.
#[derive(Clone, Copy)]
pub(super) struct Shell<'a> {
    pub(super) context: &'a TaskContext<'a>,
    pub(super) step: &'a Step,
    pub(super) cmd: &'a Cmd,
    /// Is told when the step's own command has started.
    pub(super) started: Option<&'a Notify>,
}

impl Shell<'_> {
    /// Carries the text out, once.
    pub(super) async fn run(
        &self,
        image: &BaseImage,
        output: &Output<'_>,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let door = Door::open(self.context.private_folder());
        let door = door.map_err(|error| Failure::ours(&error))?;
        let command = self.command(image, &door)?;
        let session = Session::new(*self, stop.child_token());
        let shell = async {
            let ended = in_container(self.context, self.step, &command, output, &session.end, None);
            let result = ended.await;
            session.end.cancel();
            result
        };
        let (result, ()) = tokio::join!(shell, session.serve(&door.listener));
        match session.trouble() {
            // What the line ended with is no more than its consequence.
            Some(trouble) if result.is_err() || trouble == Failure::Superseded => Err(trouble),
            _ => result,
        }
    }

    fn command(&self, image: &BaseImage, door: &Door) -> Result<Command, Failure> {
        let (context, container) = (self.context, &self.cmd.container);
        let files = container::program_files().map_err(|error| Failure::ours(&error))?;
        let own = env(context, container).into_iter();
        let own = own.filter(|(name, _)| !OWN_VARIABLES.contains(&name.as_str()));
        let network = match container.network.as_deref() {
            Some("none") => Network::None,
            _ => Network::Isolated,
        };
        let set = [("HOME".to_owned(), HOME.to_owned()), ("PATH".to_owned(), path(image))];
        Ok(Command {
            name: context.request.run.clone(),
            image: image.clone(),
            entry_point: Some("/bin/sh".to_owned()),
            arguments: vec!["-c".to_owned(), self.text()],
            env: own.chain(set).collect(),
            user: Some("0:0".to_owned()),
            working_directory: Some(WORKSPACE.to_owned()),
            hostname: host_name(&self.step.id),
            mounts: [shared_folders(context), door.mounts(files)].concat(),
            files: Vec::new(),
            network,
            peers: peers(context, container.network.as_deref(), None)?,
            service: identity::service(context, network),
            limits: limits(context, container)?,
            privileged: false,
        })
    }

    /// What the shell is to make of the text.
    fn text(&self) -> String {
        match built_in::is_meant(self.cmd) {
            // Filters look like patterns of file names.
            true => format!("set -f; {}", built_in::plain(&self.cmd.command)),
            false => format!("{STEP_COMMAND} {}", self.cmd.command.trim()),
        }
    }
}
