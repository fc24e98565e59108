//! A process of an image that was made before: what a `cmd` step of a task runs.

use container::{
    ContainerError, Exit, Limits, LocalService, Mount, MountKind, Network, OutputSink, Peers,
    Private, ProcessSpec, Rootfs, Usage, User,
};
use tokio_util::sync::CancellationToken;

use crate::assemble::{ImageLayer, image_layers};
use crate::build::{Builder, blocking};
use crate::error::BuildError;
use crate::image::BaseImage;
use crate::run::{PATH, unique_name};
use crate::stage::read_accounts;
use crate::user::{AccountFiles, Identity, UserError};

/// What to run of an image, and what is other than its config says.
#[derive(Debug, Clone)]
pub struct Command {
    /// Names the container: letters, digits and `-`, such as a run id.
    pub name: String,
    pub image: BaseImage,
    /// Takes the place of the image's entry point, and of its arguments.
    pub entry_point: Option<String>,
    /// Take the place of the image's arguments, if there are any.
    pub arguments: Vec<String>,
    /// Over what the image has. Values may be secret.
    pub env: Vec<(String, String)>,
    /// As `USER` has it; `None`: the image's.
    pub user: Option<String>,
    /// `None`: the image's.
    pub working_directory: Option<String>,
    pub hostname: String,
    pub mounts: Vec<Mount>,
    /// Files in memory, by their paths, which only the command's user can read.
    pub files: Vec<(String, Private)>,
    pub network: Network,
    /// Containers that reach each other by name.
    pub peers: Option<Peers>,
    /// Answers the command in its own network; only with [`Network::Isolated`].
    pub service: Option<LocalService>,
    pub limits: Limits,
    /// Callers check policy before they set it.
    pub privileged: bool,
}

/// Why a command did not even start.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("commands are not possible here: this process has no container runtime")]
    NoRuntime,
    #[error("the image names no program to run, and neither does the command")]
    NoProgram,
    #[error("the image cannot be used: {0}")]
    Unusable(String),
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Start(#[from] ContainerError),
    /// Its layers could not be had.
    #[error(transparent)]
    Layers(#[from] BuildError),
}

impl CommandError {
    /// What the user can do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoProgram => Some("name one after the image, or as `entryPoint`".to_owned()),
            Self::User(error) => error.hint(),
            Self::Start(ContainerError::CannotExecute { program, .. }) => {
                Some(format!("is `{program}` in the image, and executable?"))
            }
            _ => None,
        }
    }

    /// Whether the cause is the user's input, so that trying again would not help.
    pub fn is_users(&self) -> bool {
        match self {
            Self::NoProgram | Self::Unusable(_) | Self::User(_) => true,
            Self::Start(error) => !matches!(error, ContainerError::Setup { .. }),
            Self::Layers(error) => error.is_users(),
            Self::NoRuntime => false,
        }
    }
}

/// Runs a command to its end. What it changes in the image's files is gone then. Dropping the
/// future kills it.
pub async fn run_command(
    builder: &Builder,
    command: &Command,
    output: &dyn OutputSink,
    cancel: &CancellationToken,
) -> Result<(Exit, Usage), CommandError> {
    let Some(runtime) = &builder.runtime else { return Err(CommandError::NoRuntime) };
    let args = arguments(command)?;
    let layers = image_layers(&command.image.manifest, &command.image.config);
    let layers = layers.map_err(CommandError::Unusable)?;
    let identity = identity(builder, command, &layers, cancel).await?;
    let lowers = builder.layers.unpacked(&layers, cancel).await?;
    let change = builder.layers.begin_change().await?;
    let config = &command.image.config.config;
    let cwd = command.working_directory.as_ref().unwrap_or(&config.working_dir);
    let (env, private_env) = environment(command, &identity);
    let mounts = mounts(command, &identity);
    let spec = ProcessSpec {
        name: unique_name(&command.name),
        rootfs: Rootfs::Overlay {
            lowers: lowers.paths(),
            upper: change.upper(),
            work: change.work(),
        },
        args,
        env,
        private_env,
        cwd: if cwd.starts_with('/') { cwd.clone() } else { format!("/{cwd}") },
        user: User {
            uid: identity.uid,
            gid: identity.gid,
            additional_gids: identity.additional_gids,
        },
        hostname: command.hostname.clone(),
        mounts,
        extra_hosts: Vec::new(),
        network: command.network,
        peers: command.peers.clone(),
        service: command.service.clone(),
        limits: command.limits.clone(),
        privileged: command.privileged,
    };
    Ok(runtime.run(&spec, output, cancel).await?)
}

fn mounts(command: &Command, identity: &Identity) -> Vec<Mount> {
    let files = command.files.iter().map(|(target, content)| {
        let (content, uid, gid) = (content.clone(), identity.uid, identity.gid);
        let kind = MountKind::File { content, uid, gid, mode: 0o400 };
        Mount { target: target.clone(), read_only: true, kind }
    });
    command.mounts.iter().cloned().chain(files).collect()
}

/// The program and its arguments, as `docker run` puts them together.
fn arguments(command: &Command) -> Result<Vec<String>, CommandError> {
    let config = &command.image.config.config;
    let own = command.arguments.iter();
    let arguments: Vec<String> = match &command.entry_point {
        Some(program) => std::iter::once(program).chain(own).cloned().collect(),
        None => {
            let entry_point = config.entrypoint.iter().flatten();
            let of_image = config.cmd.iter().flatten();
            match command.arguments.is_empty() {
                true => entry_point.chain(of_image).cloned().collect(),
                false => entry_point.chain(own).cloned().collect(),
            }
        }
    };
    match arguments.first().is_some_and(|program| !program.is_empty()) {
        true => Ok(arguments),
        false => Err(CommandError::NoProgram),
    }
}

/// Who runs it, with the groups and the home that the image has for that user.
async fn identity(
    builder: &Builder,
    command: &Command,
    layers: &[ImageLayer],
    stop: &CancellationToken,
) -> Result<Identity, CommandError> {
    let user = command.user.as_ref().unwrap_or(&command.image.config.config.user);
    let view = builder.layers.view(layers, stop).await?;
    let accounts =
        blocking(move || read_accounts(&*view, AccountFiles::BOTH)).await.map_err(|source| {
            CommandError::Layers(BuildError::Io { doing: "read the image's users".into(), source })
        })?;
    Ok(accounts.identity(user)?)
}

/// Variables of the image, and those of the command.
fn environment(command: &Command, identity: &Identity) -> (Vec<String>, Vec<Private>) {
    let name = |entry: &str| entry.split_once('=').map_or(entry, |(name, _)| name).to_owned();
    let is_own = |wanted: &str| command.env.iter().any(|(name, _)| name == wanted);
    let of_image = command.image.config.config.env.iter();
    let mut env: Vec<String> = of_image.filter(|entry| !is_own(&name(entry))).cloned().collect();
    let is_set = |env: &[String], wanted: &str| {
        is_own(wanted) || env.iter().any(|entry| name(entry) == wanted)
    };
    if !is_set(&env, "PATH") {
        env.push(PATH.to_owned());
    }
    if !is_set(&env, "HOME") {
        env.push(format!("HOME={}", identity.home.as_deref().unwrap_or("/")));
    }
    let private = command.env.iter().map(|(name, value)| format!("{name}={value}"));
    (env, private.map(|entry| Private::new(entry.as_bytes())).collect())
}

#[cfg(test)]
mod tests {
    use oci::{ContainerConfig, Digest, ImageConfig, ImageManifest, Platform};

    use super::*;

    fn command(config: ContainerConfig) -> Command {
        let config = ImageConfig { config, ..ImageConfig::scratch(&Platform::host()) };
        let digest = Digest::of(b"");
        let image = BaseImage {
            top: digest.clone(),
            digest: digest.clone(),
            manifest: ImageManifest {
                schema_version: 2,
                media_type: None,
                artifact_type: None,
                config: oci::Descriptor::new(oci::media_type::OCI_CONFIG, digest, 0),
                layers: Vec::new(),
                subject: None,
                annotations: std::collections::BTreeMap::new(),
            },
            config,
        };
        Command {
            name: "c01".to_owned(),
            image,
            entry_point: None,
            arguments: Vec::new(),
            env: Vec::new(),
            user: None,
            working_directory: None,
            hostname: "refit".to_owned(),
            mounts: Vec::new(),
            files: Vec::new(),
            network: Network::None,
            peers: None,
            service: None,
            limits: Limits::default(),
            privileged: false,
        }
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn entry_point_and_arguments_are_put_together_as_docker_run_does() {
        let image = ContainerConfig {
            entrypoint: Some(texts(&["/entry", "-x"])),
            cmd: Some(texts(&["serve"])),
            ..ContainerConfig::default()
        };
        let with = |entry_point: Option<&str>, arguments: &[&str]| {
            let entry_point = entry_point.map(str::to_owned);
            let own =
                Command { entry_point, arguments: texts(arguments), ..command(image.clone()) };
            super::arguments(&own).unwrap().join(" ")
        };
        assert_eq!(with(None, &[]), "/entry -x serve");
        assert_eq!(with(None, &["check"]), "/entry -x check");
        assert_eq!(with(Some("sh"), &[]), "sh");
        assert_eq!(with(Some("sh"), &["-c", "true"]), "sh -c true");
        let none = super::arguments(&command(ContainerConfig::default()));
        assert!(matches!(none, Err(CommandError::NoProgram)), "{none:?}");
    }

    #[test]
    fn variables_of_the_command_take_the_place_of_those_of_the_image() {
        let image = ContainerConfig {
            env: texts(&["A=image", "B=image", "PATH=/p"]),
            ..ContainerConfig::default()
        };
        let own = vec![("A".to_owned(), "own=1".to_owned()), ("HOME".to_owned(), "/h".to_owned())];
        let identity = Identity { uid: 0, gid: 0, additional_gids: vec![0], home: None };
        let (env, private) = environment(&Command { env: own, ..command(image) }, &identity);
        assert_eq!(env, ["B=image", "PATH=/p"]);
        assert_eq!(private, [Private::new(b"A=own=1"), Private::new(b"HOME=/h")]);
        let (env, _) = environment(&command(ContainerConfig::default()), &identity);
        assert_eq!(env, [PATH, "HOME=/"]);
    }
}
