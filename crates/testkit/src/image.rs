//! Images made from nothing.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use oci::{Descriptor, Digest, ImageConfig, ImageManifest, Platform, RootFs, media_type};
use tar::{EntryType, Header};

/// A layer that is being written.
pub struct Layer {
    archive: tar::Builder<Vec<u8>>,
}

impl Default for Layer {
    fn default() -> Self {
        Self::new()
    }
}

impl Layer {
    pub fn new() -> Self {
        Self { archive: tar::Builder::new(Vec::new()) }
    }

    #[must_use]
    pub fn folder(self, path: &str, mode: u32) -> Self {
        self.entry(EntryType::Directory, path, mode, &[])
    }

    #[must_use]
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, path, mode, content)
    }

    #[must_use]
    pub fn link(mut self, path: &str, target: &str) -> Self {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        self.archive.append_link(&mut header, path, target).expect("memory can be written");
        self
    }

    fn entry(mut self, kind: EntryType, path: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = header(kind, mode, content.len() as u64);
        self.archive.append_data(&mut header, path, content).expect("memory can be written");
        self
    }

    fn tar(self) -> Vec<u8> {
        self.archive.into_inner().expect("memory can be written")
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header
}

/// An image for this machine's platform, of gzip layers.
pub struct Image {
    config: ImageConfig,
    layers: Vec<Vec<u8>>,
}

impl Image {
    pub fn new(layers: impl IntoIterator<Item = Layer>) -> Self {
        let mut config = ImageConfig::scratch(&Platform::host());
        let mut blobs = Vec::new();
        let mut diff_ids = Vec::new();
        for layer in layers {
            let tar = layer.tar();
            diff_ids.push(Digest::of(&tar));
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(&tar).expect("memory can be written");
            blobs.push(gzip.finish().expect("memory can be written"));
        }
        config.rootfs = RootFs { diff_ids, ..config.rootfs };
        Self { config, layers: blobs }
    }

    /// `NAME=value` for every process of the image.
    #[must_use]
    pub fn env(mut self, variable: &str) -> Self {
        self.config.config.env.push(variable.into());
        self
    }

    /// Writes the image as the one image of an OCI layout; gives the path of each blob.
    #[track_caller]
    pub fn write_layout(&self, folder: &Path, tag: &str) -> Vec<PathBuf> {
        let (manifest, media_type) = self.manifest();
        let mut descriptor = serde_json::json!(Descriptor::of(media_type, &manifest));
        descriptor["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": tag });
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": [descriptor] });
        let blobs = folder.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).expect("the folder can be made");
        let write = |path: PathBuf, bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("the folder can be written");
            path
        };
        write(folder.join("oci-layout"), br#"{"imageLayoutVersion": "1.0.0"}"#);
        write(folder.join("index.json"), index.to_string().as_bytes());
        let all = [manifest].into_iter().chain(self.blobs());
        all.map(|blob| write(blobs.join(Digest::of(&blob).hex()), &blob)).collect()
    }

    fn config_blob(&self) -> Vec<u8> {
        serde_json::to_vec(&self.config).expect("an image config is JSON")
    }

    pub(crate) fn blobs(&self) -> Vec<Vec<u8>> {
        self.layers.iter().cloned().chain([self.config_blob()]).collect()
    }

    pub(crate) fn manifest(&self) -> (Vec<u8>, &'static str) {
        let layer = |blob: &Vec<u8>| Descriptor::of(media_type::OCI_LAYER_GZIP, blob);
        let manifest = ImageManifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.into()),
            artifact_type: None,
            config: Descriptor::of(media_type::OCI_CONFIG, &self.config_blob()),
            layers: self.layers.iter().map(layer).collect(),
            subject: None,
            annotations: Default::default(),
        };
        (serde_json::to_vec(&manifest).expect("a manifest is JSON"), media_type::OCI_MANIFEST)
    }
}

/// Programs that tests use; busybox is all of them.
const APPLETS: &[&str] = &[
    "cat", "chmod", "chown", "cp", "echo", "env", "false", "grep", "head", "id", "ls", "mkdir",
    "mv", "rm", "rmdir", "seq", "sh", "sleep", "stat", "test", "touch", "tr", "true", "wc",
];

/// What images with programs have as theirs.
pub(crate) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A base image with a shell, made from this machine's static busybox.
#[track_caller]
pub fn busybox() -> Image {
    Image::new([busybox_layer()]).env(PATH)
}

/// The one layer of [`busybox`].
#[track_caller]
pub fn busybox_layer() -> Layer {
    let program = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut layer = Layer::new()
        .folder("bin/", 0o755)
        .folder("etc/", 0o755)
        .folder("root/", 0o700)
        .folder("tmp/", 0o1777)
        .file("bin/busybox", 0o755, &program)
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n")
        .file("etc/group", 0o644, b"root:x:0:\nuser:x:1000:\n");
    for applet in APPLETS {
        layer = layer.link(&format!("bin/{applet}"), "busybox");
    }
    layer
}
