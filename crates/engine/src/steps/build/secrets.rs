//! What `RUN`s of a build may use and nobody may see: `--secret` and `--ssh` of a step.
//!
//! Both name files, of the step's volumes or of the workspace. What is wrong with a file of a volume
//! is found before any step begins.

use std::collections::BTreeMap;
use std::sync::Arc;

use builder::{KeyAgents, Secret, Secrets, SshAgents, SshKey};
use container::Private;
use task::{Build, BuildOption};

use super::malformed;
use crate::execute::{Failure, blocking};
use crate::steps::TaskContext;
use crate::steps::cmd::volume_files;
use crate::steps::workspace::{WORKSPACE, path_in, read_file};

/// Bytes of a secret of the workspace.
const SECRET_SIZE_MAX: u64 = 500 << 10;
/// Keys of one step.
const KEYS_MAX: usize = 32;

const SECRET_FORM: &str = "id=ID,src=FILE";
const SSH_FORM: &str = "ID=KEY[,KEY]";

/// Finds what is wrong with the options of a step before any step has begun.
pub(super) fn check(context: &TaskContext<'_>, build: &Build) -> Result<(), Failure> {
    secret_sources(context, build)?;
    for (path, source) in key_sources(context, build)?.into_values().flatten() {
        if let Source::Volume(content) = source {
            key(path, content.reveal())?;
        }
    }
    Ok(())
}

/// What `RUN --mount=type=secret` of the build may use.
pub(super) async fn secrets(context: &TaskContext<'_>, build: &Build) -> Result<Secrets, Failure> {
    let mut secrets = Secrets::new();
    for (id, source) in secret_sources(context, build)? {
        let content = source.read(context, "the secret", SECRET_SIZE_MAX).await?;
        secrets.insert(id.to_owned(), Secret::new(content.reveal()));
    }
    Ok(secrets)
}

/// The agents that `RUN --mount=type=ssh` of the build may use, if there are some. Their keys are
/// secrets of the run from now on.
pub(super) async fn ssh_agents(
    context: &TaskContext<'_>,
    build: &Build,
) -> Result<Option<Arc<dyn SshAgents>>, Failure> {
    let mut agents = BTreeMap::new();
    for (id, sources) in key_sources(context, build)? {
        let mut keys = Vec::new();
        for (path, source) in sources {
            let content = source.read(context, "the ssh key", SshKey::FILE_SIZE_MAX as u64).await?;
            let known_secrets = &context.request.known_secrets;
            known_secrets.add(format!("ssh key `{path}`"), content.reveal());
            if let Ok(text) = str::from_utf8(content.reveal()) {
                context.events.hide(text);
            }
            keys.push(key(path, content.reveal())?);
        }
        agents.insert(id.to_owned(), keys);
    }
    Ok((!agents.is_empty()).then(|| Arc::new(KeyAgents::new(agents)) as _))
}

fn key(path: &str, content: &[u8]) -> Result<SshKey, Failure> {
    SshKey::parse(content).map_err(|error| {
        let hint = error.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
        Failure::User(format!("error: the ssh key `{path}` {error}{hint}"))
    })
}

/// Where a file is.
enum Source {
    Volume(Private),
    /// A path in the workspace.
    Workspace(String),
}

impl Source {
    async fn read(
        self,
        context: &TaskContext<'_>,
        what: &'static str,
        size_max: u64,
    ) -> Result<Private, Failure> {
        match self {
            Self::Volume(content) => Ok(content),
            Self::Workspace(path) => {
                let root = context.workspace.clone();
                let read = move || read_file(&root, &path, what, size_max);
                Ok(Private::new(&blocking(read).await??))
            }
        }
    }
}

/// The files that options of a step may name.
struct Files<'a> {
    /// Where paths begin.
    base: &'a str,
    mounted: Vec<(String, Private)>,
}

impl<'a> Files<'a> {
    fn of(context: &TaskContext<'_>, build: &'a Build) -> Self {
        let base = build.container.working_directory.as_deref().unwrap_or(WORKSPACE);
        Self { base, mounted: volume_files(context, &build.container) }
    }

    fn find(&self, what: &str, path: &str) -> Result<Source, Failure> {
        let wanted = task::absolute(self.base, path);
        // Of several at one path the last one is seen.
        let mounted = self.mounted.iter().rev();
        let mounted = mounted.into_iter().find(|(at, _)| task::absolute("/", at) == wanted);
        match (mounted, path_in(self.base, path)) {
            (Some((_, content)), _) => Ok(Source::Volume(content.clone())),
            (None, Some(inside)) => Ok(Source::Workspace(inside)),
            (None, None) => Err(Failure::User(format!(
                "error: {what} `{path}` is neither in a volume of the step nor in the workspace"
            ))),
        }
    }
}

fn options<'a>(build: &'a Build, name: &str) -> impl Iterator<Item = &'a BuildOption> {
    build.arguments.options.iter().filter(move |option| option.name == name)
}

/// Where the secrets of a step are, by their ids.
fn secret_sources<'a>(
    context: &TaskContext<'_>,
    build: &'a Build,
) -> Result<BTreeMap<&'a str, Source>, Failure> {
    let files = Files::of(context, build);
    let mut sources = BTreeMap::new();
    for option in options(build, "secret") {
        let (id, path) = secret_parts(option)?;
        sources.insert(id, files.find("the secret", path)?);
    }
    Ok(sources)
}

/// The id and the file of `--secret id=ID,src=FILE`.
fn secret_parts(option: &BuildOption) -> Result<(&str, &str), Failure> {
    let value = option.value.as_deref().unwrap_or_default();
    let (mut id, mut path) = (None, None);
    for field in value.split(',') {
        match field.split_once('=') {
            Some(("id", value)) => id = Some(value),
            Some(("src" | "source", value)) => path = Some(value),
            Some(("type", "file")) => (),
            _ => return Err(malformed(option, SECRET_FORM)),
        }
    }
    match id.filter(|id| !id.is_empty()) {
        Some(id) => Ok((id, path.unwrap_or(id))),
        None => Err(malformed(option, SECRET_FORM)),
    }
}

/// Where the keys of a step's agents are, with their paths, by the ids of the agents.
type KeySources<'a> = BTreeMap<&'a str, Vec<(&'a str, Source)>>;

fn key_sources<'a>(context: &TaskContext<'_>, build: &'a Build) -> Result<KeySources<'a>, Failure> {
    let files = Files::of(context, build);
    let (mut sources, mut count) = (KeySources::new(), 0);
    for option in options(build, "ssh") {
        let (id, paths) = ssh_parts(option)?;
        let mut keys = Vec::new();
        for path in paths {
            count += 1;
            keys.push((path, files.find("the ssh key", path)?));
        }
        if count > KEYS_MAX {
            let text = format!("error: the step has more than {KEYS_MAX} ssh keys");
            return Err(Failure::User(text));
        }
        if sources.insert(id, keys).is_some() {
            return Err(Failure::User(format!("error: `--ssh {id}` is given twice")));
        }
    }
    Ok(sources)
}

/// The id and the files of `--ssh ID=KEY[,KEY]`.
fn ssh_parts(option: &BuildOption) -> Result<(&str, Vec<&str>), Failure> {
    let value = option.value.as_deref().unwrap_or_default();
    match value.split_once('=') {
        None if !value.is_empty() => Err(Failure::User(format!(
            "error: `--ssh {value}` needs a key, since a run has no agent of its own\n\
             hint: name the file of a private key, of a volume of the step or of the workspace: \
             `--ssh {value}=FILE`"
        ))),
        Some((id, paths)) if !id.is_empty() && paths.split(',').all(|path| !path.is_empty()) => {
            Ok((id, paths.split(',').collect()))
        }
        _ => Err(malformed(option, SSH_FORM)),
    }
}
