//! The file tree and config that an image gives, read from an OCI layout by other means than
//! the builder's own: for comparing what two builders made of one Dockerfile.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use oci::{Digest, ImageConfig, ImageManifest, Manifest};

/// One path of an image. Times are left out: builders need not agree on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// `file SIZE DIGEST`, `directory`, `symlink TARGET`, `fifo`, ...
    pub what: String,
    /// Permission bits.
    pub mode: u32,
    pub owner: (u64, u64),
    /// The first name of the same file, for one with several. While layers are read, which
    /// entry made the file.
    pub first_name: Option<String>,
}

/// An image taken apart.
#[derive(Debug)]
pub struct ImageTree {
    pub config: ImageConfig,
    pub nodes: BTreeMap<String, Node>,
}

impl ImageTree {
    /// Reads the one image of an OCI layout, checking sizes, digests and diff IDs as it goes.
    pub fn read(layout: &Path) -> Result<Self> {
        let index: serde_json::Value =
            serde_json::from_slice(&std::fs::read(layout.join("index.json"))?)?;
        let digest = index["manifests"][0]["digest"].as_str().context("layout has no manifest")?;
        let bytes = blob(layout, &digest.parse()?)?;
        let Manifest::Image(manifest) = Manifest::parse(&bytes, None)? else {
            bail!("{digest} is not the manifest of an image");
        };
        let config = checked(layout, &manifest.config)?;
        let config: ImageConfig = serde_json::from_slice(&config)?;
        oci::check_layer_count(&manifest, &config)?;
        oci::check_image_config(&config)?;
        let nodes = nodes(layout, &manifest, &config)?;
        Ok(Self { config, nodes })
    }

    /// What differs from another tree, a line each: `path: this | other`.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let show = |node: Option<&Node>| match node {
            Some(node) => {
                let first = node.first_name.as_ref().map(|name| format!(" = {name}"));
                let (uid, gid) = node.owner;
                format!("{} {:o} {uid}:{gid}{}", node.what, node.mode, first.unwrap_or_default())
            }
            None => "-".to_owned(),
        };
        let paths: std::collections::BTreeSet<&String> =
            self.nodes.keys().chain(other.nodes.keys()).collect();
        let different = paths.into_iter().filter_map(|path| {
            let (left, right) = (self.nodes.get(path), other.nodes.get(path));
            (left != right).then(|| format!("{path}: {} | {}", show(left), show(right)))
        });
        different.collect()
    }
}

fn blob(layout: &Path, digest: &Digest) -> Result<Vec<u8>> {
    let path = layout.join("blobs").join(digest.algorithm().name()).join(digest.hex());
    std::fs::read(&path).with_context(|| format!("blob {digest}"))
}

fn checked(layout: &Path, descriptor: &oci::Descriptor) -> Result<Vec<u8>> {
    let bytes = blob(layout, &descriptor.digest)?;
    oci::check_blob(descriptor, &bytes)?;
    Ok(bytes)
}

fn nodes(
    layout: &Path,
    manifest: &ImageManifest,
    config: &ImageConfig,
) -> Result<BTreeMap<String, Node>> {
    let mut nodes = BTreeMap::new();
    let layers = manifest.layers.iter().zip(&config.rootfs.diff_ids);
    for (number, (layer, diff_id)) in layers.enumerate() {
        let packed = checked(layout, layer)?;
        let mut plain = Vec::new();
        match packed.starts_with(&[0x1f, 0x8b]) {
            true => flate2::read::MultiGzDecoder::new(&packed[..]).read_to_end(&mut plain)?,
            false => (&packed[..]).read_to_end(&mut plain)?,
        };
        let actual = Digest::of(&plain);
        if actual != *diff_id {
            bail!("layer {} unpacks to {actual}, not {diff_id}", layer.digest);
        }
        apply(&plain, number, &mut nodes).with_context(|| format!("layer {}", layer.digest))?;
    }
    name_first(&mut nodes);
    Ok(nodes)
}

/// The files of one tar, such as an export of a container.
pub fn tar_nodes(tar: &Path) -> Result<BTreeMap<String, Node>> {
    let mut nodes = BTreeMap::new();
    apply(&std::fs::read(tar)?, 0, &mut nodes).with_context(|| tar.display().to_string())?;
    name_first(&mut nodes);
    Ok(nodes)
}

/// Which name an archive has first is the builder's choice: files are told apart by the first
/// in order.
fn name_first(nodes: &mut BTreeMap<String, Node>) {
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, node) in nodes.iter_mut() {
        if let Some(made_by) = node.first_name.take() {
            names.entry(made_by).or_default().push(path.clone());
        }
    }
    for names in names.into_values().filter(|names| names.len() > 1) {
        for name in &names {
            if let Some(node) = nodes.get_mut(name) {
                node.first_name = Some(names[0].clone());
            }
        }
    }
}

/// Applies one layer (image-spec, *Applying Changesets*).
fn apply(layer: &[u8], number: usize, nodes: &mut BTreeMap<String, Node>) -> Result<()> {
    let mut archive = tar::Archive::new(layer);
    for (position, entry) in archive.entries()?.enumerate() {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let path = path.trim_start_matches("./").trim_matches('/').to_owned();
        if path.is_empty() || path == "." {
            continue;
        }
        let (parent, name) = match path.rsplit_once('/') {
            Some((parent, name)) => (format!("{parent}/"), name),
            None => (String::new(), path.as_str()),
        };
        if name == ".wh..wh..opq" {
            nodes.retain(|path, _| !path.starts_with(&parent));
            continue;
        }
        if let Some(name) = name.strip_prefix(".wh.") {
            let (gone, below) = (format!("{parent}{name}"), format!("{parent}{name}/"));
            nodes.retain(|path, _| *path != gone && !path.starts_with(&below));
            continue;
        }
        let header = entry.header();
        let kind = header.entry_type();
        let link = entry.link_name()?.map(|link| link.to_string_lossy().into_owned());
        let (mode, owner) = (header.mode()? & 0o7777, (entry.header().uid()?, header.gid()?));
        let what = match kind {
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let mut content = Vec::new();
                entry.read_to_end(&mut content)?;
                format!("file {} {}", content.len(), Digest::of(&content).short())
            }
            tar::EntryType::Directory => "directory".to_owned(),
            tar::EntryType::Symlink => format!("symlink {}", link.unwrap_or_default()),
            tar::EntryType::Link => {
                let target = link.unwrap_or_default();
                let target = target.trim_start_matches("./").trim_matches('/');
                let node = nodes.get(target).with_context(|| format!("hard link to {target}"))?;
                let node = node.clone();
                nodes.insert(path, node);
                continue;
            }
            other => format!("{other:?}").to_lowercase(),
        };
        if what != "directory" {
            let below = format!("{path}/");
            nodes.retain(|path, _| !path.starts_with(&below));
        }
        let first_name = (what != "directory").then(|| format!("{number} {position}"));
        nodes.insert(path, Node { what, mode, owner, first_name });
    }
    Ok(())
}
