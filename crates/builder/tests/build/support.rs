//! A registry with a base image in it, a context, and a look into what was built.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use builder::{
    BuildError, BuildEvents, BuildRequest, Builder, Built, CacheExplanation, CacheFolders,
    CatalogCache, CatalogImages, ContextOptions, InFlight, LayerIndexes, Layers, OwnNames,
    RunPolicy, StepEnd, StepNumber, TrustDomain,
};
use bytes::Bytes;
use container::Stream;
use oci::{
    ContainerConfig, Descriptor, Digest, History, ImageConfig, ImageManifest, Manifest, Platform,
    RegistryName, media_type,
};
use remote::{DownloadSettings, Downloads, Reach};
use store::{BlobStore, Catalog, Cause, Expected, MemoryStore, NewManifest};
use tokio_util::sync::CancellationToken;

/// The own name of the registry that fixtures have.
pub(crate) const HOST: &str = "registry.test";

/// Seconds since 1970 at which every test happens.
pub(crate) const NOW: i64 = 1_700_000_000;

/// Everything that builds need, in memory and in one temporary folder.
pub(crate) struct Fixture {
    pub(crate) catalog: Catalog,
    pub(crate) builder: Builder,
    pub(crate) folder: tempfile::TempDir,
    memory: MemoryStore,
}

/// Fetches from this machine too.
pub(crate) fn downloads(change: impl FnOnce(&mut DownloadSettings)) -> Downloads {
    let reach = Reach { allowed: vec!["127.0.0.0/8".parse().unwrap()], ..Reach::default() };
    let mut settings = DownloadSettings { reach, attempts: 1, ..DownloadSettings::default() };
    change(&mut settings);
    Downloads::new(settings).unwrap()
}

/// What happens to blobs in bad stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    Gone,
    Cut,
    /// A byte is another one; decompression of gzip does not miss it.
    Flipped,
}

pub(crate) const DAMAGES: [Damage; 3] = [Damage::Gone, Damage::Cut, Damage::Flipped];

impl Fixture {
    /// A store without any image.
    pub(crate) async fn empty() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let db = db::Db::in_memory().await.unwrap();
        let memory = MemoryStore::open(db.clone()).await.unwrap();
        let catalog = Catalog::open(db, Arc::new(memory.clone())).await.unwrap();
        let builder = Self::builder(&catalog, folder.path()).await;
        std::fs::create_dir(folder.path().join("context")).unwrap();
        Self { catalog, builder, folder, memory }
    }

    /// Another process opens the same store: what the first one knew of it is forgotten.
    pub(crate) async fn restart(&mut self) {
        let runtime = self.builder.runtime.take();
        self.builder = Self::builder(&self.catalog, self.folder.path()).await;
        self.builder.runtime = runtime;
    }

    /// Builds from now on are of this domain.
    pub(crate) fn enter(&mut self, domain: &TrustDomain) {
        let registry = RegistryName::default();
        self.builder.cache = Arc::new(CatalogCache::new(self.catalog.clone(), &registry, domain));
    }

    /// The cache of unpacked layers is lost.
    pub(crate) fn forget_snapshots(&self) {
        let folder = self.folder.path().join("snapshots/layers");
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::create_dir(&folder).unwrap();
    }

    /// How many layers are unpacked.
    pub(crate) fn unpacked(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("snapshots/layers")).unwrap().count()
    }

    pub(crate) async fn damage(&self, digest: &Digest, damage: Damage) {
        let mut bytes = read(&self.catalog, digest).await;
        let bytes = match damage {
            Damage::Gone => None,
            Damage::Cut => Some(bytes[1..].to_vec()),
            Damage::Flipped => {
                bytes[4] ^= 1; // The time in the header of gzip.
                Some(bytes)
            }
        };
        self.memory.damage(digest, bytes.map(Bytes::from));
    }

    /// The digest of the image config of `registry.test/NAME`.
    pub(crate) async fn config_digest(&self, name: &str) -> Digest {
        let (registry, tag) = (RegistryName::default(), oci::Tag::latest());
        let (name, tag) = (name.parse().unwrap(), store::ManifestRef::Tag(tag));
        let entry = self.catalog.manifest(&registry, &name, &tag).await.unwrap().unwrap();
        let manifest = Manifest::parse(&entry.bytes, Some(&entry.media_type)).unwrap();
        let Manifest::Image(manifest) = manifest else { panic!("not an image manifest") };
        manifest.config.digest
    }

    /// Whether the store has a blob whole.
    pub(crate) async fn is_whole(&self, digest: &Digest) -> bool {
        self.catalog.blobs().verify(digest).await.unwrap()
    }

    pub(crate) async fn builder(catalog: &Catalog, folder: &Path) -> Builder {
        let registry = RegistryName::default();
        let own = OwnNames::new([(HOST.to_owned(), registry.clone())]);
        let blobs = Arc::clone(catalog.blobs());
        let indexes: Arc<dyn LayerIndexes> = Arc::new(catalog.clone());
        let layers = Layers::open(Arc::clone(&blobs), indexes, &folder.join("snapshots")).unwrap();
        Builder {
            blobs,
            images: Arc::new(CatalogImages::new(catalog.clone(), registry.clone(), own, None)),
            cache: Arc::new(CatalogCache::new(catalog.clone(), &registry, &TrustDomain::Trusted)),
            layers: Arc::new(layers),
            runtime: None,
            runs: Arc::new(tokio::sync::Semaphore::new(4)),
            in_flight: Arc::new(InFlight::default()),
            cache_folders: CacheFolders::open(&folder.join("mounts"), u64::MAX).unwrap(),
            downloads: Arc::new(downloads(|_| ())),
            policy: RunPolicy::default(),
        }
    }

    /// A store with the image `registry.test/base`, see [`base_files`].
    pub(crate) async fn with_base() -> Self {
        let fixture = Self::empty().await;
        fixture.put_image("base", &base_files(), &[], media_type::OCI_LAYER_GZIP).await;
        fixture
    }

    /// Stores an image of one layer.
    pub(crate) async fn put_image(
        &self,
        name: &str,
        files: &[File],
        env: &[&str],
        layer_type: &str,
    ) -> Digest {
        self.put_layers(name, &[files], env, layer_type).await
    }

    /// Stores an image of several layers.
    pub(crate) async fn put_layers(
        &self,
        name: &str,
        layers: &[&[File]],
        env: &[&str],
        layer_type: &str,
    ) -> Digest {
        let diff_ids = layers.iter().map(|files| Digest::of(&tar(files))).collect();
        self.put_claiming(name, layers, diff_ids, env, layer_type).await
    }

    /// Stores an image whose config says of its layers what it likes.
    pub(crate) async fn put_claiming(
        &self,
        name: &str,
        layers: &[&[File]],
        diff_ids: Vec<Digest>,
        env: &[&str],
        layer_type: &str,
    ) -> Digest {
        self.put_config(name, layers, diff_ids, env, layer_type, |_| ()).await
    }

    /// The same, with whatever else is to be in the config.
    pub(crate) async fn put_config(
        &self,
        name: &str,
        layers: &[&[File]],
        diff_ids: Vec<Digest>,
        env: &[&str],
        layer_type: &str,
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Digest {
        let layers = layers.iter().map(|files| tar(files));
        let pack = |layer: Vec<u8>| match layer_type {
            media_type::OCI_LAYER_TAR | media_type::DOCKER_LAYER_TAR => layer,
            media_type::OCI_LAYER_ZSTD => zstd::encode_all(&layer[..], 1).unwrap(),
            _ => gzip(&layer),
        };
        let packed: Vec<Vec<u8>> = layers.map(pack).collect();
        let mut config = ImageConfig::scratch(&Platform::host());
        config.created = Some("2001-02-03T04:05:06Z".to_owned());
        config.config.env = env.iter().map(|text| (*text).to_owned()).collect();
        config.config.cmd = Some(vec!["/bin/sh".to_owned()]);
        change(&mut config.config);
        config.history = vec![
            History {
                created: config.created.clone(),
                created_by: Some("the test".to_owned()),
                ..History::default()
            };
            diff_ids.len()
        ];
        config.rootfs.diff_ids = diff_ids;
        let config = serde_json::to_vec(&config).unwrap();
        let is_docker = layer_type.contains("docker");
        let (manifest_type, config_type) = match is_docker {
            true => (media_type::DOCKER_MANIFEST, media_type::DOCKER_CONFIG),
            false => (media_type::OCI_MANIFEST, media_type::OCI_CONFIG),
        };
        let manifest = ImageManifest {
            schema_version: 2,
            media_type: Some(manifest_type.to_owned()),
            artifact_type: None,
            config: Descriptor::of(config_type, &config),
            layers: packed.iter().map(|layer| Descriptor::of(layer_type, layer)).collect(),
            subject: None,
            annotations: BTreeMap::new(),
        };
        let (registry, repository) = (RegistryName::default(), name.parse().unwrap());
        for blob in packed.into_iter().chain([config]) {
            let digest = put(self.catalog.blobs(), &blob).await;
            self.catalog.link_blob(&registry, &repository, &digest).await.unwrap();
        }
        let bytes = Bytes::from(serde_json::to_vec(&manifest).unwrap());
        let digest = Digest::of(&bytes);
        let new = NewManifest {
            digest: &digest,
            media_type: manifest_type,
            bytes,
            manifest: &Manifest::Image(Box::new(manifest)),
        };
        let tags = [(oci::Tag::latest(), Expected::Any)];
        let cause = Cause::Push { principal: "test".to_owned() };
        self.catalog.put_manifest(&registry, &repository, new, &tags, &cause).await.unwrap();
        digest
    }

    /// Gives a built image a name in the own registry.
    pub(crate) async fn publish(&self, name: &str, built: &Built) {
        let (registry, repository) = (RegistryName::default(), name.parse().unwrap());
        let config = Digest::of(&built.config);
        let layers = built.layers.iter().map(|layer| layer.descriptor.digest.clone());
        for digest in layers.chain([config]) {
            self.catalog.link_blob(&registry, &repository, &digest).await.unwrap();
        }
        let bytes = built.manifest.clone();
        let parsed = Manifest::parse(&bytes, Some(media_type::OCI_MANIFEST)).unwrap();
        let digest = &built.descriptor.digest;
        let media_type = media_type::OCI_MANIFEST;
        let new = NewManifest { digest, media_type, bytes, manifest: &parsed };
        let tags = [(oci::Tag::latest(), Expected::Any)];
        let cause = Cause::Push { principal: "test".to_owned() };
        self.catalog.put_manifest(&registry, &repository, new, &tags, &cause).await.unwrap();
    }

    pub(crate) fn context(&self) -> PathBuf {
        self.folder.path().join("context")
    }

    /// Writes a file of the context, with the folders above it.
    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.context().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(crate) fn chmod(&self, path: &str, mode: u32) {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(self.context().join(path), mode).unwrap();
    }

    /// Sets when a file of the context was changed last, in seconds since 1970.
    pub(crate) fn touch(&self, path: &str, seconds: i64) {
        let time = UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap());
        let file = std::fs::File::options().append(true).open(self.context().join(path));
        file.unwrap().set_modified(time).unwrap();
    }

    pub(crate) fn request(&self, dockerfile: &str) -> BuildRequest {
        let mut request = BuildRequest::new(dockerfile, NOW);
        request.context = Some(ContextOptions::new(self.context()));
        request
    }

    /// Builds, and checks that the image is valid whatever is in it.
    pub(crate) async fn build(&self, dockerfile: &str) -> Run {
        self.build_request(&self.request(dockerfile)).await
    }

    pub(crate) async fn build_request(&self, request: &BuildRequest) -> Run {
        let (built, events) = self.try_build(request).await;
        let built = built.unwrap_or_else(|error| {
            let text = error.render("Dockerfile", &request.dockerfile);
            panic!("{text}\n{error:?}\n{}", events.render())
        });
        validate(&self.catalog, &built).await;
        Run { built, events }
    }

    pub(crate) async fn try_build(
        &self,
        request: &BuildRequest,
    ) -> (Result<Built, BuildError>, Recorder) {
        let events = Recorder::default();
        let never = CancellationToken::new();
        let built = builder::build(&self.builder, request, &events, &never).await;
        (built, events)
    }

    /// The rendered error of a build that must fail.
    pub(crate) async fn error(&self, dockerfile: &str) -> String {
        let request = self.request(dockerfile);
        match self.try_build(&request).await.0 {
            Ok(_) => panic!("the build was expected to fail"),
            Err(error) => error.render("Dockerfile", dockerfile),
        }
    }

    /// The files of a built image.
    pub(crate) async fn files(&self, built: &Built) -> Files {
        let mut files = Files::default();
        for layer in &built.layers {
            files.apply(&unpacked(&self.catalog, &layer.descriptor).await);
        }
        files
    }

    /// The tar of a built image's last layer.
    pub(crate) async fn last_tar(&self, built: &Built) -> Vec<u8> {
        unpacked(&self.catalog, &built.layers.last().unwrap().descriptor).await
    }

    /// The entries of a built image's last layer, in order; hard links with what they link to.
    pub(crate) async fn last_layer(&self, built: &Built) -> Vec<String> {
        let bytes = self.last_tar(built).await;
        let mut archive = tar::Archive::new(&bytes[..]);
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            let header = entry.header();
            let (mode, uid, gid) =
                (header.mode().unwrap(), header.uid().unwrap(), header.gid().unwrap());
            let link = match header.entry_type() {
                tar::EntryType::Link => {
                    let target = entry.link_name_bytes().unwrap().into_owned();
                    format!(" = {}", String::from_utf8(target).unwrap())
                }
                _ => String::new(),
            };
            format!("{path} {mode:o} {uid}:{gid} {}{link}", header.mtime().unwrap())
        });
        entries.collect()
    }
}

/// A build that succeeded, and what it said.
pub(crate) struct Run {
    pub(crate) built: Built,
    pub(crate) events: Recorder,
}

impl Run {
    pub(crate) fn config(&self) -> ImageConfig {
        serde_json::from_slice(&self.built.config).unwrap()
    }

    /// Names of steps with how they ended.
    pub(crate) fn steps(&self) -> String {
        self.events.render()
    }
}

pub(crate) async fn put(blobs: &Arc<dyn BlobStore>, bytes: &[u8]) -> Digest {
    let mut upload = blobs.begin_upload(oci::Algorithm::Sha256).await.unwrap();
    upload.write(Bytes::copy_from_slice(bytes)).await.unwrap();
    upload.commit(None).await.unwrap().digest
}

pub(crate) async fn read(catalog: &Catalog, digest: &Digest) -> Vec<u8> {
    let reader = catalog.blobs().open(digest, 0).await.unwrap();
    let mut bytes = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut reader.into_async(), &mut bytes).await.unwrap();
    bytes
}

async fn unpacked(catalog: &Catalog, layer: &Descriptor) -> Vec<u8> {
    let packed = read(catalog, &layer.digest).await;
    let mut bytes = Vec::new();
    match layer.media_type.as_str() {
        media_type::OCI_LAYER_GZIP => {
            flate2::read::MultiGzDecoder::new(&packed[..]).read_to_end(&mut bytes).unwrap();
        }
        media_type::OCI_LAYER_ZSTD => bytes = zstd::decode_all(&packed[..]).unwrap(),
        media_type::OCI_LAYER_TAR => bytes = packed,
        other => panic!("not an OCI layer: {other}"),
    }
    bytes
}

/// Checks every digest, size, diff ID and media type of an image.
pub(crate) async fn validate(catalog: &Catalog, built: &Built) {
    oci::check_blob(&built.descriptor, &built.manifest).unwrap();
    let manifest = Manifest::parse(&built.manifest, Some(media_type::OCI_MANIFEST)).unwrap();
    let Manifest::Image(manifest) = manifest else { panic!("not an image manifest") };
    assert_eq!(manifest.config.media_type, media_type::OCI_CONFIG);
    let config_bytes = read(catalog, &manifest.config.digest).await;
    oci::check_blob(&manifest.config, &config_bytes).unwrap();
    assert_eq!(config_bytes, built.config);
    let config: ImageConfig = serde_json::from_slice(&config_bytes).unwrap();
    oci::check_image_config(&config).unwrap();
    oci::check_layer_count(&manifest, &config).unwrap();
    for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
        oci::check_blob(layer, &read(catalog, &layer.digest).await).unwrap();
        assert_eq!(Digest::of(&unpacked(catalog, layer).await), *diff_id);
    }
    assert_eq!(built.record.output.manifest, built.descriptor.digest);
}

/// A file of an image that a test makes.
#[derive(Clone)]
pub(crate) struct File {
    path: &'static Path,
    mode: u32,
    owner: (u32, u32),
    kind: FileKind,
    /// Name and value of an extended attribute.
    xattr: Option<(&'static str, &'static [u8])>,
    /// Seconds since 1970.
    mtime: u64,
}

impl File {
    pub(crate) fn with_xattr(self, name: &'static str, value: &'static [u8]) -> Self {
        Self { xattr: Some((name, value)), ..self }
    }

    pub(crate) fn of_time(self, mtime: u64) -> Self {
        Self { mtime, ..self }
    }
}

#[derive(Clone)]
enum FileKind {
    Folder,
    File(Vec<u8>),
    Link(&'static Path),
    HardLink(&'static Path),
}

/// Names are text, or bytes that are none.
pub(crate) trait Name {
    fn path(&'static self) -> &'static Path;
}

impl Name for str {
    fn path(&'static self) -> &'static Path {
        Path::new(self)
    }
}

impl<const N: usize> Name for [u8; N] {
    fn path(&'static self) -> &'static Path {
        Path::new(OsStr::from_bytes(self))
    }
}

pub(crate) fn folder(path: &'static (impl Name + ?Sized), mode: u32, owner: (u32, u32)) -> File {
    of_kind(path.path(), mode, owner, FileKind::Folder)
}

pub(crate) fn file(
    path: &'static (impl Name + ?Sized),
    mode: u32,
    owner: (u32, u32),
    bytes: &[u8],
) -> File {
    of_kind(path.path(), mode, owner, FileKind::File(bytes.to_vec()))
}

pub(crate) fn link(
    path: &'static (impl Name + ?Sized),
    target: &'static (impl Name + ?Sized),
) -> File {
    of_kind(path.path(), 0o777, (0, 0), FileKind::Link(target.path()))
}

pub(crate) fn hard_link(
    path: &'static (impl Name + ?Sized),
    target: &'static (impl Name + ?Sized),
) -> File {
    of_kind(path.path(), 0o644, (0, 0), FileKind::HardLink(target.path()))
}

fn of_kind(path: &'static Path, mode: u32, owner: (u32, u32), kind: FileKind) -> File {
    File { path, mode, owner, kind, xattr: None, mtime: 1_000_000_000 }
}

/// A small system: users, some folders with modes of their own, links between them.
pub(crate) fn base_files() -> Vec<File> {
    let root = (0, 0);
    vec![
        folder("etc", 0o755, root),
        file(
            "etc/passwd",
            0o644,
            root,
            b"root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:\n",
        ),
        file("etc/group", 0o644, root, b"root:x:0:\napp:x:1001:\nstaff:x:50:app\n"),
        folder("home", 0o755, root),
        folder("home/app", 0o750, (1000, 1001)),
        link("lib", "usr/lib"),
        folder("tmp", 0o1777, root),
        folder("usr", 0o755, root),
        folder("usr/lib", 0o775, (0, 50)),
        file("usr/lib/old", 0o600, (1000, 50), b"old"),
    ]
}

/// The small system with a shell that works.
pub(crate) fn busybox_files() -> Vec<File> {
    let busybox = std::fs::read("/bin/busybox").expect("the package busybox-static is installed");
    let mut files = base_files();
    files.push(folder("bin", 0o755, (0, 0)));
    files.push(file("bin/busybox", 0o755, (0, 0), &busybox));
    for path in ["bin/sh", "bin/cat", "bin/id", "bin/mkdir", "bin/rm", "bin/sleep"] {
        files.push(link(path, "/bin/busybox"));
    }
    files
}

pub(crate) fn tar(files: &[File]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for file in files {
        if let Some((name, value)) = file.xattr {
            let name = format!("SCHILY.xattr.{name}");
            builder.append_pax_extensions([(name.as_str(), value)]).unwrap();
        }
        let mut header = tar::Header::new_ustar();
        header.set_mode(file.mode);
        header.set_uid(file.owner.0.into());
        header.set_gid(file.owner.1.into());
        header.set_mtime(file.mtime);
        header.set_size(0);
        match &file.kind {
            FileKind::Folder => {
                header.set_entry_type(tar::EntryType::Directory);
                builder.append_data(&mut header, file.path.join(""), &b""[..]).unwrap();
            }
            FileKind::File(bytes) => {
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, file.path, &bytes[..]).unwrap();
            }
            FileKind::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                builder.append_link(&mut header, file.path, target).unwrap();
            }
            FileKind::HardLink(target) => {
                header.set_entry_type(tar::EntryType::Link);
                builder.append_link(&mut header, file.path, target).unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The files of an image, layers applied by a second, simpler reading of the image-spec.
#[derive(Default)]
pub(crate) struct Files(BTreeMap<String, String>);

impl Files {
    /// The files of one layer.
    pub(crate) fn of(layer: &[u8]) -> Self {
        let mut files = Self::default();
        files.apply(layer);
        files
    }

    fn apply(&mut self, layer: &[u8]) {
        let mut archive = tar::Archive::new(layer);
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            let path = path.trim_start_matches("./").trim_end_matches('/').to_owned();
            let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
            let under = |folder: &str| format!("{folder}/");
            if name == ".wh..wh..opq" {
                self.0.retain(|path, _| !path.starts_with(&under(folder)));
                continue;
            }
            if let Some(gone) = name.strip_prefix(".wh.") {
                let gone = if folder.is_empty() { gone.to_owned() } else { under(folder) + gone };
                self.0.retain(|path, _| *path != gone && !path.starts_with(&under(&gone)));
                continue;
            }
            let kind = entry.header().entry_type();
            let what = match kind {
                tar::EntryType::Directory => "folder".to_owned(),
                tar::EntryType::Symlink => {
                    let target = entry.link_name_bytes().unwrap().into_owned();
                    format!("-> {}", String::from_utf8(target).unwrap())
                }
                tar::EntryType::Link => {
                    let target = entry.link_name_bytes().unwrap().into_owned();
                    self.0[&String::from_utf8(target).unwrap()].clone()
                }
                _ if entry.size() > 100 => format!("{} bytes", entry.size()),
                _ => {
                    let mut bytes = Vec::new();
                    entry.read_to_end(&mut bytes).unwrap();
                    format!("{:?}", String::from_utf8_lossy(&bytes))
                }
            };
            if !kind.is_dir() {
                self.0.retain(|other, _| !other.starts_with(&under(&path)));
            }
            let header = entry.header();
            let (mode, uid, gid) =
                (header.mode().unwrap(), header.uid().unwrap(), header.gid().unwrap());
            let line = match kind {
                tar::EntryType::Link => what,
                _ => format!("{mode:o} {uid}:{gid} {what}"),
            };
            self.0.insert(path, line);
        }
    }

    /// What is at a path: mode, owner and content.
    pub(crate) fn at(&self, path: &str) -> &str {
        self.0.get(path).map_or("nothing", String::as_str)
    }

    /// A line for each path that starts so.
    pub(crate) fn below(&self, start: &str) -> String {
        let chosen = self.0.iter().filter(|(path, _)| path.starts_with(start));
        chosen.map(|(path, line)| format!("{path} {line}\n")).collect()
    }
}

/// Keeps what a build says.
#[derive(Default)]
pub(crate) struct Recorder {
    /// Name, end, output and explanation.
    steps: Mutex<BTreeMap<u32, (String, String, String, String)>>,
    warnings: Mutex<Vec<String>>,
}

impl Recorder {
    /// Steps with how they ended, sorted by name, since stages interleave.
    pub(crate) fn render(&self) -> String {
        let steps = self.steps.lock().unwrap();
        let mut lines: Vec<_> =
            steps.values().map(|(name, end, ..)| format!("{name}: {end}\n")).collect();
        lines.sort();
        lines.concat()
    }

    /// Steps with why the cache had them or not.
    pub(crate) fn explanations(&self) -> String {
        let steps = self.steps.lock().unwrap();
        let explained = steps.values().filter(|(.., explanation)| !explanation.is_empty());
        let mut lines: Vec<_> =
            explained.map(|(name, .., explanation)| format!("{name}: {explanation}\n")).collect();
        lines.sort();
        lines.concat()
    }

    pub(crate) fn output(&self) -> String {
        self.steps.lock().unwrap().values().map(|(_, _, output, _)| output.as_str()).collect()
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap().clone()
    }
}

#[async_trait]
impl BuildEvents for Recorder {
    async fn step_started(&self, step: StepNumber, name: &str) {
        let entry = (name.to_owned(), "unfinished".to_owned(), String::new(), String::new());
        self.steps.lock().unwrap().insert(step.0, entry);
    }

    async fn output(&self, step: StepNumber, _: Stream, bytes: Bytes) {
        let mut steps = self.steps.lock().unwrap();
        steps.get_mut(&step.0).unwrap().2.push_str(&String::from_utf8_lossy(&bytes));
    }

    async fn progress(&self, _: StepNumber, _: u64, _: Option<u64>) {}

    async fn explained(&self, step: StepNumber, explanation: &CacheExplanation) {
        let mut steps = self.steps.lock().unwrap();
        steps.get_mut(&step.0).unwrap().3 = explanation.text.clone();
    }

    async fn step_finished(&self, step: StepNumber, end: StepEnd) {
        let end = match end {
            StepEnd::Done => "done".to_owned(),
            StepEnd::Cached { .. } => "cached".to_owned(),
            StepEnd::Failed { error } => error,
        };
        self.steps.lock().unwrap().get_mut(&step.0).unwrap().1 = end;
    }

    async fn warning(&self, text: &str) {
        self.warnings.lock().unwrap().push(text.to_owned());
    }
}
