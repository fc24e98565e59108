//! Why a build ended without an image.

use std::borrow::Cow;

use container::{ContainerError, Exit, Limits, Usage};
use dockerfile::{DockerfileError, OperationsError, Span};
use oci::Digest;
use remote::{DownloadError, GitError};
use store::StoreError;

use crate::context::ContextError;
use crate::copy::CopyError;
use crate::image::ImageError;
use crate::secret_scan::HeldSecret;
use crate::user::UserError;

/// Why a build failed. `Display` is the sentence alone; [`Self::render`] shows the guilty
/// line of the Dockerfile and the hint too.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The Dockerfile is wrong.
    #[error(transparent)]
    Dockerfile(#[from] DockerfileError),
    /// A trigger of a base image needs a stage that was not planned; the build begins again.
    #[error("stage {0} is needed by a trigger of a base image")]
    NeedsStage(usize),
    #[error(transparent)]
    Context(#[from] ContextError),
    #[error("context `{name}`: {error}")]
    NamedContext { name: String, error: ContextError },
    #[error("{error}")]
    Image { error: ImageError, at: Span },
    #[error("{error}")]
    Copy { error: CopyError, at: Span },
    /// An `ADD` did not get what it names by address.
    #[error("{error}")]
    Download { error: DownloadError, at: Span },
    /// An `ADD` did not get a git repository.
    #[error("{error}")]
    Repository { error: GitError, at: Span },
    #[error("{error}")]
    User { error: UserError, at: Span },
    /// A `RUN` ended otherwise than with exit code 0.
    #[error("`{command}` {}", describe_exit(*exit, limits))]
    Run { command: String, exit: Exit, limits: RunLimits, at: Span },
    /// A `RUN` did not even start.
    #[error("`{command}` did not start: {error}")]
    Start { command: String, error: ContainerError, at: Span },
    /// A `RUN` left something that no layer can hold.
    #[error("{reason}")]
    NotInLayer { reason: String, at: Span },
    /// A layer of the image has a secret in it, so that there is no image.
    #[error("{held}, and an image must not have it")]
    HoldsSecret { held: Box<HeldSecret>, at: Span },
    /// A `--mount` cannot be made.
    #[error("{reason}")]
    Mount { reason: String, at: Span },
    #[error("secret `{id}` is required, and the build was given none")]
    NoSecret { id: String, at: Span },
    #[error("ssh agent `{id}` is required, and the build was given none")]
    NoSshAgent { id: String, at: Span },
    /// The server does not allow it.
    #[error("`{flag}` is not allowed by this server")]
    NotAllowed { flag: &'static str, setting: &'static str, at: Span },
    #[error("`{flag}` cannot be had by runs whose connections are bounded")]
    Unbounded { flag: &'static str, at: Span },
    #[error("`RUN` is not possible here: this process has no container runtime")]
    NoRuntime { at: Span },
    /// Something changed while the build read it.
    #[error("`{path}` changed while the build read it")]
    Changed { path: String, at: Span },
    #[error("the build was canceled")]
    Canceled,
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Ours, not the user's.
    #[error("could not {doing}")]
    Io {
        doing: String,
        #[source]
        source: std::io::Error,
    },
    /// A part of an imported cache could not be had; the build goes on without it.
    #[error("{error}")]
    Import { error: ImageError },
    #[error("a layer of the image is not usable: {reason}")]
    BadLayer { reason: String },
    /// The store did not keep a layer as it was; the build begins again without it.
    #[error("layer {digest} is damaged in the store")]
    DamagedLayer { digest: Digest },
}

/// The bounds that a `RUN` had, for the message when it met one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunLimits {
    pub memory: Option<u64>,
    pub timeout: Option<std::time::Duration>,
    pub disk: Option<u64>,
    /// Whether the kernel killed one of its processes for want of memory.
    pub out_of_memory: bool,
}

impl RunLimits {
    /// What a container was bound to, for how it ended.
    pub fn of(limits: &Limits, usage: Usage) -> Self {
        Self {
            memory: limits.memory,
            timeout: limits.timeout,
            disk: limits.disk.size_max,
            out_of_memory: usage.out_of_memory,
        }
    }
}

/// How a process ended, as the end of a sentence about it.
pub fn describe_exit(exit: Exit, limits: &RunLimits) -> String {
    match exit {
        Exit::Code(code) => format!("ended with exit code {code}"),
        Exit::Signal(signal) => format!("was killed by signal {signal}"),
        Exit::OutOfMemory => match limits.memory {
            Some(memory) => format!("ran out of memory, its limit is {} MiB", memory >> 20),
            None => "was killed because the machine ran out of memory".to_owned(),
        },
        Exit::OutOfDisk => {
            let limit = limits.disk.map(|disk| format!(" of {} MiB", disk >> 20));
            format!("wrote more to disk than its limit{}", limit.unwrap_or_default())
        }
        Exit::DiskFull => {
            "was killed because the machine's disk is nearly full, and it had written the most"
                .to_owned()
        }
        Exit::TimedOut => match limits.timeout {
            Some(timeout) => format!("took longer than its limit of {} s", timeout.as_secs()),
            None => "took too long".to_owned(),
        },
        Exit::Canceled => "was canceled".to_owned(),
    }
}

impl From<OperationsError> for BuildError {
    fn from(error: OperationsError) -> Self {
        match error {
            OperationsError::Dockerfile(error) => Self::Dockerfile(error),
            OperationsError::NeedsStage(number) => Self::NeedsStage(number),
        }
    }
}

impl BuildError {
    /// What the user can do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Dockerfile(error) => error.hint.clone(),
            Self::Context(error) | Self::NamedContext { error, .. } => error.hint(),
            Self::Image { error, .. } => error.hint(),
            Self::Copy { error, .. } => error.hint(),
            Self::Download { error, .. } => error.hint(),
            Self::Repository { error, .. } => error.hint(),
            Self::User { error, .. } => error.hint(),
            Self::Run { exit: Exit::OutOfMemory, .. } => {
                Some("let the command use less, or raise the build's memory limit".to_owned())
            }
            Self::Run { exit: Exit::OutOfDisk, .. } => {
                Some("let the command write less, or raise `build.disk` of the server".to_owned())
            }
            Self::Run { exit: Exit::DiskFull, .. } => Some(
                "make room on the server's disk, for instance with `refit gc`; how much stays free is \
                 `build.disk_reserve`"
                    .to_owned(),
            ),
            Self::Run { limits: RunLimits { out_of_memory: true, memory, .. }, .. } => {
                let limit = memory.map(|memory| format!("; its limit is {} MiB", memory >> 20));
                let limit = limit.unwrap_or_default();
                Some(format!("a process of it was killed for want of memory{limit}"))
            }
            Self::Run { exit: Exit::Code(127), .. } => {
                Some("127 usually means that a program was not found in the image".to_owned())
            }
            Self::Run { exit: Exit::Code(126), .. } => {
                Some("126 usually means that a file is there but not executable".to_owned())
            }
            Self::Start { error: ContainerError::CannotExecute { program, reason }, .. }
                if program == "/bin/sh" && reason.starts_with("no such file") =>
            {
                Some(
                    "the image has no shell: use the exec form `RUN [\"program\", \"argument\"]`, \
                     or a base image with a shell"
                        .to_owned(),
                )
            }
            Self::Start { error: ContainerError::NotForThisMachine { .. }, .. } => Some(
                "for images of other processors install the package `qemu-user-static` where the \
                 server runs; `refit doctor` shows for which it is there"
                    .to_owned(),
            ),
            Self::HoldsSecret { .. } => Some(
                "mount it with `RUN --mount=type=secret` and write it nowhere, remove the file in \
                 the `RUN` that makes it, or keep it from `COPY` with a `.dockerignore`"
                    .to_owned(),
            ),
            Self::NoSecret { id, .. } => {
                Some(format!("give it with `--secret id={id},src=FILE` or `id={id},env=NAME`"))
            }
            Self::NoSshAgent { id, .. } => Some(format!(
                "give it with `--ssh {id}`, or `--ssh {id}=` and a socket or keys; in a `build` step \
                 with `--ssh {id}=` and keys"
            )),
            Self::NotAllowed { setting, .. } => {
                Some(format!("its operator can allow it with `{setting} = true`"))
            }
            Self::Changed { .. } => Some("build again".to_owned()),
            Self::DamagedLayer { .. } => {
                Some("it was damaged again while it was used: look at the server's disk".to_owned())
            }
            _ => None,
        }
    }

    /// The layer that was found damaged, if that is the cause.
    pub(crate) fn damaged_layer(&self) -> Option<&Digest> {
        match self {
            Self::DamagedLayer { digest } => Some(digest),
            // Trees of files know only errors of input and output.
            Self::Io { source, .. } => {
                source.get_ref()?.downcast_ref::<Self>().and_then(Self::damaged_layer)
            }
            _ => None,
        }
    }

    /// Where in the Dockerfile the cause is.
    pub fn at(&self) -> Option<Span> {
        match self {
            Self::Dockerfile(error) => Some(error.at),
            Self::Image { at, .. }
            | Self::Copy { at, .. }
            | Self::Download { at, .. }
            | Self::Repository { at, .. }
            | Self::User { at, .. }
            | Self::Run { at, .. }
            | Self::Start { at, .. }
            | Self::NotInLayer { at, .. }
            | Self::HoldsSecret { at, .. }
            | Self::Mount { at, .. }
            | Self::NoSecret { at, .. }
            | Self::NoSshAgent { at, .. }
            | Self::NotAllowed { at, .. }
            | Self::Unbounded { at, .. }
            | Self::NoRuntime { at }
            | Self::Changed { at, .. } => Some(*at),
            _ => None,
        }
    }

    /// Whether the cause is the user's input, so that trying again would not help. Otherwise
    /// it is this machine's or the network's.
    pub fn is_users(&self) -> bool {
        match self {
            Self::Dockerfile(_)
            | Self::Copy { .. }
            | Self::User { .. }
            | Self::Run { .. }
            | Self::NotInLayer { .. }
            | Self::HoldsSecret { .. }
            | Self::Mount { .. }
            | Self::NoSecret { .. }
            | Self::NoSshAgent { .. }
            | Self::NotAllowed { .. }
            | Self::Unbounded { .. }
            | Self::Changed { .. }
            | Self::BadLayer { .. } => true,
            Self::Context(error) | Self::NamedContext { error, .. } => error.is_users(),
            Self::Image { error, .. } => !matches!(
                error,
                ImageError::Store { .. }
                    | ImageError::Damaged { .. }
                    | ImageError::Pull { refused: false, .. }
            ),
            Self::Download { error, .. } => error.is_users(),
            Self::Repository { error, .. } => error.is_users(),
            Self::Start { error, .. } => !matches!(error, ContainerError::Setup { .. }),
            Self::NeedsStage(_)
            | Self::NoRuntime { .. }
            | Self::Canceled
            | Self::Store(_)
            | Self::DamagedLayer { .. }
            | Self::Import { .. }
            | Self::Io { .. } => false,
        }
    }

    /// The error with file, line, the guilty text and the hint.
    pub fn render(&self, file: &str, text: &str) -> String {
        let hint = self.hint();
        let message = match self {
            Self::Io { source, .. }
            | Self::Context(ContextError::Io { source, .. })
            | Self::NamedContext { error: ContextError::Io { source, .. }, .. } => {
                format!("{self}: {source}")
            }
            _ => self.to_string(),
        };
        let text = match self {
            Self::HoldsSecret { held, .. } => Cow::Owned(held.hide(text)),
            _ => Cow::Borrowed(text),
        };
        match self.at() {
            Some(at) => DockerfileError { message, at, hint }.render(file, &text),
            None => match hint {
                Some(hint) => format!("error: {message}\nhint: {hint}\n"),
                None => format!("error: {message}\n"),
            },
        }
    }
}
