//! The mounts of a `RUN`: from words of the Dockerfile to folders and files of this machine.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use container::MountKind as ContainerMount;
use dockerfile::{Mount, MountKind, RunOperation, SCRIPTS, Sharing, Source, Span};

use crate::agents::AgentSocket;
use crate::assemble::ImageLayer;
use crate::build::{Build, blocking};
use crate::cache::KeyHasher;
use crate::caches::CacheLease;
use crate::context::BuildContext;
use crate::error::BuildError;
use crate::event::StepNumber;
use crate::layers::Change;
use crate::name::{bytes_of, text_of};
use crate::record::BaseRole;
use crate::secret::Secret;
use crate::tree::{FirstNames, NoFiles, Node, NodeKind, Tree, check_read, join, resolve};

/// A file that a mount brings has at most this many bytes.
const SECRET_SIZE_MAX: usize = 500 << 10;

/// Where the sockets of agents are that have no target; a dot and a number follow.
const SSH_SOCKETS: &str = "/run/buildkit/ssh_agent";

/// What the mounts of a `RUN` read from, found before its cache key is made.
pub(crate) struct Sources {
    /// By the mount's place in the operation; `None`: it reads from nothing of the build.
    sources: Vec<Option<MountSource>>,
}

/// Files that a mount brings.
struct MountSource {
    tree: Arc<dyn Tree>,
    files: Files,
    /// The path in the tree, links followed.
    path: String,
    /// The same as it is on disk.
    real_path: String,
    node: Node,
    /// See [`StageImage::has_secret`](crate::assemble::StageImage::has_secret).
    has_secret: bool,
}

enum Files {
    /// The layers of an image, bottom first.
    Layers(Vec<ImageLayer>),
    Context(Arc<BuildContext>),
}

/// Mounts that are ready, and what keeps them so.
#[derive(Default)]
pub(crate) struct Mounts {
    pub(crate) mounts: Vec<container::Mount>,
    /// `NAME=value` of secrets.
    pub(crate) env: Vec<container::Private>,
    /// Where the first ssh mount is.
    pub(crate) ssh_auth_sock: Option<String>,
    /// Ssh mounts so far, with those that bring nothing.
    ssh_mounts: usize,
    _agents: Vec<AgentSocket>,
    _leases: Vec<CacheLease>,
    /// Caches that nobody else has meanwhile.
    locked: BTreeSet<String>,
    _changes: Vec<Change>,
}

impl Sources {
    /// Finds what the mounts of an operation read.
    pub(crate) async fn find(
        build: &Build<'_>,
        stage: dockerfile::StageId,
        run: &RunOperation,
        step: StepNumber,
    ) -> Result<Self, BuildError> {
        let mut sources = Vec::with_capacity(run.mounts.len());
        for mount in &run.mounts {
            let source = match &mount.kind {
                MountKind::Bind { from, source, .. } => {
                    Some(MountSource::find(build, stage, from.as_ref(), source, mount, step).await?)
                }
                MountKind::Cache { from: Some(from), source, .. } => {
                    Some(MountSource::find(build, stage, Some(from), source, mount, step).await?)
                }
                _ => None,
            };
            sources.push(source);
        }
        Ok(Self { sources })
    }

    /// Whether a secret build argument may have had a part in what they read.
    pub(crate) fn have_secret(&self) -> bool {
        self.sources.iter().flatten().any(|source| source.has_secret)
    }

    /// Adds to a cache key all of the mounts that can change what the command does. What is in
    /// cache folders and secrets does not count, nor which keys an agent has. Times of files are left
    /// out unless there `are_times`: what a command makes of them may be in its layer, whose digest
    /// is promised with a bound on times.
    pub(crate) fn add_to(&self, run: &RunOperation, are_times: bool, key: &mut KeyHasher) {
        key.number("mounts", run.mounts.len() as u64);
        for (mount, source) in run.mounts.iter().zip(&self.sources) {
            add_mount(mount, source.as_ref(), are_times, key);
        }
    }

    /// Whether all that went into keys could be read.
    pub(crate) fn check_read(&self) -> Result<(), BuildError> {
        self.sources.iter().flatten().try_for_each(|source| check_read(&*source.tree))
    }

    /// The digest of each mount by its target; `are_times` is as for [`Self::add_to`].
    pub(crate) fn digests(
        &self,
        run: &RunOperation,
        are_times: bool,
    ) -> Vec<(String, oci::Digest)> {
        let mounts = run.mounts.iter().zip(&self.sources);
        let digest = |(mount, source): (&Mount, &Option<MountSource>)| {
            let mut key = KeyHasher::new("mount");
            add_mount(mount, source.as_ref(), are_times, &mut key);
            (target(&mount.kind), key.finish())
        };
        mounts.map(digest).collect()
    }

    /// Makes the mounts ready for a container.
    pub(crate) async fn prepare(
        self,
        build: &Build<'_>,
        run: &RunOperation,
    ) -> Result<Mounts, BuildError> {
        let mut ready = Mounts::default();
        for (mount, source) in run.mounts.iter().zip(self.sources) {
            ready.add(build, mount, source).await?;
        }
        if let Some(script) = &run.script {
            ready.mounts.push(container::Mount {
                target: format!("{SCRIPTS}/{}", script.name),
                read_only: true,
                kind: ContainerMount::File {
                    content: container::Private::new(script.text.as_bytes()),
                    uid: 0,
                    gid: 0,
                    mode: 0o755,
                },
            });
        }
        Ok(ready)
    }
}

impl MountSource {
    async fn find(
        build: &Build<'_>,
        stage: dockerfile::StageId,
        from: Option<&Source>,
        source: &str,
        mount: &Mount,
        step: StepNumber,
    ) -> Result<Self, BuildError> {
        let context = match from {
            None => Some(build.context().await?),
            Some(from) => build.named_files(from).await?,
        };
        let mut has_secret = false;
        let (tree, files): (Arc<dyn Tree>, Files) = match (context, from) {
            (Some(context), _) => (Arc::clone(&context) as _, Files::Context(context)),
            (None, None) => (Arc::new(NoFiles), Files::Layers(Vec::new())),
            (None, Some(from)) => {
                let plan = build.stage_plan(stage);
                let role = BaseRole::Buildtime;
                let image = build.source_image(from, plan, mount.at, role, step).await?;
                has_secret = image.has_secret;
                let view = build.builder.layers.view(&image.layers, &build.stop).await?;
                (view, Files::Layers(image.layers.clone()))
            }
        };
        let node = |path: &str| tree.node(path);
        let wrong = |reason: &str| BuildError::Mount {
            reason: format!("`{}` {reason}", if source.is_empty() { "/" } else { source }),
            at: mount.at,
        };
        let path = resolve(&node, &text_of(source.as_bytes()), true)
            .map_err(|_| wrong("leads in circles"))?;
        let node = tree.node(&path);
        check_read(&*tree)?;
        let Some(node) = node else { return Err(wrong("not found")) };
        match node.kind {
            NodeKind::Directory | NodeKind::File { .. } => {
                let real_path = String::from_utf8(bytes_of(&path).into_owned());
                let real_path =
                    real_path.map_err(|_| wrong("leads to a name that is not UTF-8"))?;
                Ok(Self { tree, files, path, real_path, node, has_secret })
            }
            _ => Err(wrong("is neither a folder nor a file")),
        }
    }

    /// Everything that a command can see of it: names, types, modes, owners and bytes; and times, if
    /// there `are_times`. Folders and links of a context have no time of their own there.
    fn add_to(&self, are_times: bool, key: &mut KeyHasher) {
        let are_layers = matches!(self.files, Files::Layers(_));
        let mut left = vec![(self.path.clone(), self.node.clone())];
        let mut names = FirstNames::default();
        while let Some((path, node)) = left.pop() {
            let below = path.strip_prefix(self.path.as_str()).unwrap_or(&path);
            key.text("path", below);
            names.add_to(below, &node, key);
            if are_times && (are_layers || matches!(node.kind, NodeKind::File { .. })) {
                key.text("time", &node.mtime.to_string());
            }
            if node.is_directory() {
                for name in self.tree.children(&path).into_iter().rev() {
                    let path = join(&path, &name);
                    left.extend(self.tree.node(&path).map(|node| (path, node)));
                }
            }
        }
    }

    /// The folders that overlayfs stacks, topmost first.
    async fn lowers(
        &self,
        build: &Build<'_>,
    ) -> Result<(Vec<PathBuf>, Option<Change>), BuildError> {
        let layers = &build.builder.layers;
        match &self.files {
            Files::Layers(image) => Ok((layers.unpacked(image, &build.stop).await?.paths(), None)),
            Files::Context(context) => {
                let (context, stop) = (Arc::clone(context), build.stop.clone());
                let (root, hidden) = blocking(move || context.as_folder(&stop)).await?;
                if hidden.is_empty() {
                    return Ok((vec![root], None));
                }
                let mask = layers.mask(&root, &hidden).await?;
                Ok((vec![mask.upper(), root], Some(mask)))
            }
        }
    }
}

fn add_mount(mount: &Mount, source: Option<&MountSource>, are_times: bool, key: &mut KeyHasher) {
    match &mount.kind {
        MountKind::Bind { target, read_only, .. } => {
            key.text("bind", target);
            key.number("read only", u64::from(*read_only));
        }
        MountKind::Cache { id, target, read_only, sharing, owner, .. } => {
            key.text("cache", target);
            key.text("id", id);
            key.text("sharing", &format!("{sharing:?}"));
            key.text("owner", &format!("{owner:?}"));
            key.number("read only", u64::from(*read_only));
        }
        MountKind::Tmpfs { target, size } => {
            key.text("tmpfs", target);
            key.number("size", size.unwrap_or(0));
        }
        MountKind::Secret { id, target, env, owner, .. } => {
            key.text("secret", id);
            key.optional("target", target.as_deref());
            key.optional("env", env.as_deref());
            key.text("owner", &format!("{owner:?}"));
        }
        MountKind::Ssh { id, target, owner, .. } => {
            key.text("ssh", id);
            key.optional("target", target.as_deref());
            key.text("owner", &format!("{owner:?}"));
        }
    }
    if let Some(source) = source {
        // What a cache folder began with may have any time by now.
        source.add_to(are_times && matches!(mount.kind, MountKind::Bind { .. }), key);
    }
}

/// Where a mount is seen.
fn target(kind: &MountKind) -> String {
    match kind {
        MountKind::Bind { target, .. }
        | MountKind::Cache { target, .. }
        | MountKind::Tmpfs { target, .. } => target.clone(),
        MountKind::Secret { id, target, .. } | MountKind::Ssh { id, target, .. } => {
            target.clone().unwrap_or_else(|| id.clone())
        }
    }
}

impl Mounts {
    async fn add(
        &mut self,
        build: &Build<'_>,
        mount: &Mount,
        source: Option<MountSource>,
    ) -> Result<(), BuildError> {
        let io = |source| BuildError::Io { doing: "make a cache folder".to_owned(), source };
        match &mount.kind {
            MountKind::Bind { target, read_only, .. } => {
                let Some(source) = source else { return Ok(()) };
                let change = build.builder.layers.begin_change().await?;
                let kind = self.overlay(build, &source, change.upper(), change.work()).await?;
                self._changes.push(change);
                self.push(target, *read_only, kind);
            }
            MountKind::Cache { id, sharing, target, read_only, owner, .. } => {
                let caches = &build.builder.cache_folders;
                let namespace = build.builder.cache.namespace();
                let id = match &source {
                    // What a folder began with is a part of what it is, and so is where that was:
                    // what is written lies there too.
                    Some(source) => format!("{id}\0{}\0{}", source.real_path, source.digest()),
                    None => id.clone(),
                };
                // The kernel takes one folder into one overlay at a time.
                let sharing = match (&source, sharing) {
                    (Some(_), Sharing::Shared) => Sharing::Locked,
                    _ => *sharing,
                };
                // It would wait for itself.
                if sharing == Sharing::Locked && !self.locked.insert(id.clone()) {
                    let reason = "another mount of this `RUN` has the same cache".to_owned();
                    return Err(BuildError::Mount { reason, at: mount.at });
                }
                let lease = tokio::select! {
                    lease = caches.lease(namespace, &id, sharing, *owner) => lease.map_err(io)?,
                    () = build.cancel.cancelled() => return Err(BuildError::Canceled),
                };
                let kind = match source {
                    None => ContainerMount::Bind { source: lease.path() },
                    Some(source) => {
                        let upper = lease.path();
                        let work = upper.with_file_name("work");
                        std::fs::create_dir_all(&work).map_err(io)?;
                        self.overlay(build, &source, upper, work).await?
                    }
                };
                self._leases.push(lease);
                self.push(target, *read_only, kind);
            }
            MountKind::Tmpfs { target, size } => {
                // Zero is no bound but that of the container's memory.
                let kind = ContainerMount::Tmpfs { size: size.unwrap_or(0), mode: 0o1777 };
                self.push(target, false, kind);
            }
            MountKind::Secret { id, target, env, required, owner } => {
                let Some(secret) = build.request.secrets.get(id) else {
                    return match required {
                        true => Err(BuildError::NoSecret { id: id.clone(), at: mount.at }),
                        false => Ok(()),
                    };
                };
                self.secret(id, secret, target.as_deref(), env.as_deref(), *owner, mount.at)?;
            }
            MountKind::Ssh { id, target, required, owner } => {
                let number = self.ssh_mounts;
                self.ssh_mounts += 1;
                let agents = build.request.ssh_agents.as_ref();
                let Some(agents) = agents.filter(|agents| agents.has(id)) else {
                    return match required {
                        true => Err(BuildError::NoSshAgent { id: id.clone(), at: mount.at }),
                        false => Ok(()),
                    };
                };
                let folder = build.builder.layers.begin_folder()?;
                let socket = AgentSocket::open(folder, *owner, Arc::clone(agents), id);
                let socket = socket.map_err(|source| {
                    let doing = format!("open a socket for the ssh agent `{id}`");
                    BuildError::Io { doing, source }
                })?;
                let default = || format!("{SSH_SOCKETS}.{number}");
                let target = target.clone().unwrap_or_else(default);
                let kind = ContainerMount::Bind { source: socket.path().to_owned() };
                self.push(&target, true, kind);
                self._agents.push(socket);
                if number == 0 {
                    self.ssh_auth_sock = Some(target);
                }
            }
        }
        Ok(())
    }

    fn secret(
        &mut self,
        id: &str,
        secret: &Secret,
        target: Option<&str>,
        env: Option<&str>,
        owner: dockerfile::FileOwner,
        at: Span,
    ) -> Result<(), BuildError> {
        let wrong = |why: &str| BuildError::Mount { reason: format!("secret `{id}` {why}"), at };
        if secret.value().len() > SECRET_SIZE_MAX {
            return Err(wrong("is larger than 500 KiB"));
        }
        if let Some(name) = env {
            let Ok(value) = std::str::from_utf8(secret.value()) else {
                return Err(wrong("is not UTF-8, as a variable must be"));
            };
            if value.contains('\0') {
                return Err(wrong("has a NUL byte, which no variable can have"));
            }
            self.env.push(container::Private::new(format!("{name}={value}").as_bytes()));
        }
        if let Some(target) = target {
            let kind = ContainerMount::File {
                content: container::Private::new(secret.value()),
                uid: owner.uid.unwrap_or(0),
                gid: owner.gid.unwrap_or(0),
                mode: owner.mode.unwrap_or(0o400),
            };
            self.push(target, true, kind);
        }
        Ok(())
    }

    async fn overlay(
        &mut self,
        build: &Build<'_>,
        source: &MountSource,
        upper: PathBuf,
        work: PathBuf,
    ) -> Result<ContainerMount, BuildError> {
        let (lowers, mask) = source.lowers(build).await?;
        self._changes.extend(mask);
        Ok(ContainerMount::Overlay { lowers, upper, work, path: source.real_path.clone() })
    }

    fn push(&mut self, target: &str, read_only: bool, kind: ContainerMount) {
        self.mounts.push(container::Mount { target: target.to_owned(), read_only, kind });
    }
}

impl MountSource {
    fn digest(&self) -> oci::Digest {
        let mut key = KeyHasher::new("mount");
        self.add_to(false, &mut key);
        key.finish()
    }
}
