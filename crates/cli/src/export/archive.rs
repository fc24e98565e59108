//! An image as an OCI image layout (image-spec, *OCI Image Layout Specification*), in a tar or
//! as a folder.
//!
//! With `manifest.json` the same tar is what `docker load` reads. Blobs stream from the server
//! to their place and are compared with their digests on the way.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oci::{Descriptor, ImageManifest, Reference, media_type};
use serde_json::{Value, json};
use tar::Header;

use super::place::{Place, Whole};
use super::{BuiltImage, ImageForm};
use crate::context::file_header;
use crate::error::{Error, Result, could_not};

/// Annotations of an index that name its images: the tag, and the name whole.
const TAG: &str = "org.opencontainers.image.ref.name";
const NAME: &str = "io.containerd.image.name";

/// A tar is made of blocks of this size.
const BLOCK: u64 = 512;

/// Writes an image under its names.
pub(super) async fn write(
    image: &BuiltImage<'_>,
    form: ImageForm,
    place: &Place,
    names: &[Reference],
) -> Result<()> {
    let mut target = match place {
        Place::Stdout => Target::Tar(Whole::stdout()?),
        Place::File(file) => Target::Tar(Whole::begin(file).await?),
        Place::Folder(folder) => Target::folder(folder)?,
    };
    let mut manifests = index_entries(image, names);
    if let Target::Folder(folder) = &target {
        keep_others(folder, &mut manifests)?;
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": manifests,
    });
    target.put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).await?;
    let mut written = BTreeSet::new();
    for (stored, manifest) in &image.images {
        for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
            if written.insert(&blob.digest) {
                target.copy(image, blob).await?;
            }
        }
        if written.insert(&stored.descriptor.digest) {
            target.put(&path_of(&stored.descriptor), &stored.bytes).await?;
        }
    }
    if written.insert(&image.top.descriptor.digest) {
        target.put(&path_of(&image.top.descriptor), &image.top.bytes).await?;
    }
    if form == ImageForm::Docker {
        target.put("manifest.json", docker_entries(image, names).to_string()).await?;
    }
    // In a folder the index is what makes the image visible.
    target.put("index.json", index.to_string()).await?;
    target.finish().await
}

/// The image once under each name, or once without.
fn index_entries(image: &BuiltImage<'_>, names: &[Reference]) -> Vec<Value> {
    let entry = |annotations: Value| {
        let mut entry = descriptor(&image.top.descriptor);
        if annotations.is_object() {
            entry["annotations"] = annotations;
        }
        entry
    };
    match names {
        [] => vec![entry(Value::Null)],
        names => names
            .iter()
            .map(|name| {
                let tag = name.tag.as_ref().map(ToString::to_string);
                entry(json!({NAME: name.to_string(), TAG: tag}))
            })
            .collect(),
    }
}

pub(crate) fn descriptor(descriptor: &Descriptor) -> Value {
    json!({
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest.as_str(),
        "size": descriptor.size,
    })
}

fn docker_entries(image: &BuiltImage<'_>, names: &[Reference]) -> Value {
    let names: Vec<_> = names.iter().map(Reference::familiar).collect();
    let entry = |(_, manifest): &(_, ImageManifest)| {
        json!({
            "Config": path_of(&manifest.config),
            "RepoTags": names,
            "Layers": manifest.layers.iter().map(path_of).collect::<Vec<_>>(),
        })
    };
    image.images.iter().map(entry).collect()
}

/// The images of a layout that is there stay in its index, unless their name is taken.
fn keep_others(folder: &Path, manifests: &mut Vec<Value>) -> Result<()> {
    let file = folder.join("index.json");
    let text = match std::fs::read(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(could_not(format_args!("read `{}`", file.display())))?,
    };
    let index: Value = serde_json::from_slice(&text)
        .map_err(could_not(format_args!("read `{}`", file.display())))?;
    let name = |entry: &Value| {
        let annotations = entry.get("annotations");
        let of = |key| annotations.and_then(|all| all.get(key)).cloned();
        of(NAME).or_else(|| of(TAG))
    };
    let new = manifests.clone();
    let is_replaced = |old: &Value| {
        let same = |entry: &Value| match name(entry) {
            Some(new) => name(old) == Some(new),
            None => name(old).is_none() && entry["digest"] == old["digest"],
        };
        new.iter().any(same)
    };
    let old = index.get("manifests").and_then(Value::as_array).into_iter().flatten();
    manifests.splice(0..0, old.filter(|old| !is_replaced(old)).cloned());
    Ok(())
}

fn path_of(blob: &Descriptor) -> String {
    format!("blobs/{}/{}", blob.digest.algorithm().name(), blob.digest.hex())
}

/// What a layout is written to.
enum Target {
    Tar(Whole),
    Folder(PathBuf),
}

impl Target {
    /// A folder that is new, empty, or a layout already; nothing is ever removed from it.
    fn folder(folder: &Path) -> Result<Self> {
        let doing = || format!("write `{}`", folder.display());
        std::fs::create_dir_all(folder).map_err(could_not(doing()))?;
        let mut found = std::fs::read_dir(folder).map_err(could_not(doing()))?;
        if found.next().is_some() && !folder.join("oci-layout").is_file() {
            let told = format!("`{}` is neither empty nor an OCI layout", folder.display());
            return Err(Error::failed(told).with_hint("name another folder"));
        }
        Ok(Self::Folder(folder.to_owned()))
    }

    async fn put(&mut self, path: &str, bytes: impl AsRef<[u8]>) -> Result<()> {
        let bytes = bytes.as_ref();
        match self {
            Self::Tar(out) => {
                let size = bytes.len() as u64;
                out.write(header(path, size)?.as_bytes()).await?;
                out.write(bytes).await?;
                out.write(padding(size)).await
            }
            Self::Folder(folder) => {
                let mut out = Whole::begin(&in_folder(folder, path)?).await?;
                out.write(bytes).await?;
                out.finish().await
            }
        }
    }

    async fn copy(&mut self, image: &BuiltImage<'_>, blob: &Descriptor) -> Result<()> {
        let path = path_of(blob);
        match self {
            Self::Tar(out) => {
                out.write(header(&path, blob.size)?.as_bytes()).await?;
                image.read(blob, async |bytes| out.write(bytes).await).await?;
                out.write(padding(blob.size)).await
            }
            Self::Folder(folder) => {
                let mut out = Whole::begin(&in_folder(folder, &path)?).await?;
                image.read(blob, async |bytes| out.write(bytes).await).await?;
                out.finish().await
            }
        }
    }

    async fn finish(self) -> Result<()> {
        match self {
            Self::Tar(mut out) => {
                // Two empty blocks end an archive.
                out.write(&[0; 2 * BLOCK as usize]).await?;
                out.finish().await
            }
            Self::Folder(_) => Ok(()),
        }
    }
}

fn in_folder(folder: &Path, path: &str) -> Result<PathBuf> {
    let file = folder.join(path);
    if let Some(parent) = file.parent() {
        std::fs::create_dir_all(parent)
            .map_err(could_not(format_args!("make the folder `{}`", parent.display())))?;
    }
    Ok(file)
}

/// The same bytes for the same image: owned by root, without a time.
fn header(path: &str, size: u64) -> Result<Header> {
    let mut header = file_header(size);
    header.set_path(path).map_err(could_not("write an archive"))?;
    header.set_cksum();
    Ok(header)
}

fn padding(size: u64) -> &'static [u8] {
    let used = (size % BLOCK) as usize; // Less than a block.
    &[0; BLOCK as usize][..(BLOCK as usize - used) % BLOCK as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_block_is_filled() {
        assert_eq!([0, 1, 511, 512, 513].map(|size| padding(size).len()), [0, 511, 1, 0, 511]);
    }

    #[test]
    fn images_of_a_layout_stay_unless_their_name_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let entry = |digest: &str, name: Option<&str>| match name {
            Some(name) => json!({"digest": digest, "annotations": {NAME: name, TAG: "1"}}),
            None => json!({"digest": digest}),
        };
        let old =
            json!({"manifests": [entry("a", Some("x")), entry("b", Some("y")), entry("c", None)]});
        std::fs::write(folder.path().join("index.json"), old.to_string()).unwrap();
        let merged = |new: Value| {
            let mut manifests = vec![new];
            keep_others(folder.path(), &mut manifests).unwrap();
            let digests = manifests.iter().map(|entry| entry["digest"].as_str().unwrap());
            digests.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(merged(entry("d", Some("x"))), "b c d");
        assert_eq!(merged(entry("c", None)), "a b c");
        assert_eq!(merged(entry("e", None)), "a b c e");
    }
}
