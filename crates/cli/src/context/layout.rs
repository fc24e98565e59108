//! An image in a folder of this machine (image-spec, *OCI Image Layout Specification*): which
//! of its blobs travel.
//!
//! Only those that the image reaches. Nothing is checked here but that names are no paths: the
//! server compares every blob with its digest, and says what is missing.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Deserialize;
use tar::Builder;

use super::Summary;
use super::file::{Exactly, file_header, open_regular, packing};
use crate::error::{Result, could_not};

/// An index or manifest is not larger than this.
const MANIFEST_SIZE_MAX: u64 = 4 << 20;

/// Blobs of one image.
const BLOBS_MAX: usize = 10_000;

/// The annotation that holds the tag of an image in a layout's index.
const TAG: &str = "org.opencontainers.image.ref.name";

#[derive(Debug)]
pub(crate) struct Layout {
    folder: PathBuf,
    /// The manifest or index that is meant.
    pub(crate) digest: String,
    /// All that it reaches, as far as it is there.
    blobs: BTreeSet<String>,
}

/// An index or a manifest, as far as it matters here.
#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

impl Layout {
    /// Finds what `PATH[:TAG][@DIGEST]` names.
    pub(crate) fn parse(text: &str) -> std::result::Result<Self, String> {
        let (place, digest) = match text.rsplit_once('@') {
            Some((place, digest)) if digest.contains(':') => (place, Some(digest)),
            _ => (text, None),
        };
        let (folder, tag) = match place.rsplit_once(':') {
            Some((folder, tag)) if !tag.contains('/') => (folder, Some(tag)),
            _ => (place, None),
        };
        Self::find(PathBuf::from(folder), tag, digest)
    }

    /// Finds an image by digest, by tag, or as the only one there is.
    pub(super) fn find(
        folder: PathBuf,
        tag: Option<&str>,
        digest: Option<&str>,
    ) -> std::result::Result<Self, String> {
        let shown = folder.display();
        if !folder.join("oci-layout").is_file() {
            return Err(format!("`{shown}` is no OCI layout, it has no file `oci-layout`"));
        }
        let digest = match digest {
            Some(digest) => digest.to_owned(),
            None => Self::tagged(&folder, tag.unwrap_or("latest"))?,
        };
        if blob_path(&digest).is_none() {
            return Err(format!("`{digest}` is not a digest"));
        }
        let mut layout = Self { folder, digest: digest.clone(), blobs: BTreeSet::new() };
        layout.collect(digest)?;
        Ok(layout)
    }

    fn tagged(folder: &std::path::Path, tag: &str) -> std::result::Result<String, String> {
        let index = read_manifest(&folder.join("index.json"))?;
        let manifests = index.manifests.unwrap_or_default();
        let has_tag = |manifest: &&Descriptor| {
            let annotations = manifest.annotations.as_ref();
            annotations.and_then(|all| all.get(TAG)).is_some_and(|name| name == tag)
        };
        match (manifests.iter().find(has_tag), manifests.as_slice()) {
            (Some(found), _) | (None, [found]) => Ok(found.digest.clone()),
            _ => Err(format!("`{}` has no image with the tag `{tag}`", folder.display())),
        }
    }

    /// Notes a manifest and all that it reaches.
    fn collect(&mut self, top: String) -> std::result::Result<(), String> {
        let mut manifests = vec![top];
        while let Some(digest) = manifests.pop() {
            if !self.note(&digest)? {
                continue;
            }
            let path = blob_path(&digest).expect("noted blobs have one");
            let manifest = read_manifest(&self.folder.join(path))?;
            manifests.extend(manifest.manifests.into_iter().flatten().map(|one| one.digest));
            for blob in manifest.config.into_iter().chain(manifest.layers.into_iter().flatten()) {
                self.note(&blob.digest)?;
            }
        }
        Ok(())
    }

    /// Notes a blob; `false` if that is done already or it is not there.
    fn note(&mut self, digest: &str) -> std::result::Result<bool, String> {
        let path = blob_path(digest).ok_or_else(|| format!("`{digest}` is not a digest"))?;
        if !self.folder.join(path).is_file() {
            return Ok(false);
        }
        if self.blobs.len() >= BLOBS_MAX {
            return Err(format!("the image has more than {BLOBS_MAX} blobs"));
        }
        Ok(self.blobs.insert(digest.to_owned()))
    }

    /// Writes the archive of the blobs. They are compressed as they are. Blocking.
    pub(super) fn pack(&self, out: impl Write) -> Result<Summary> {
        let mut archive = Builder::new(GzEncoder::new(out, Compression::none()));
        let mut summary = Summary::default();
        for digest in &self.blobs {
            let path = blob_path(digest).expect("noted blobs have one");
            let file = open_regular(&self.folder.join(&path)).map_err(packing(&path))?;
            let size = file.metadata().map_err(packing(&path))?.len();
            let mut header = file_header(size);
            let content = Exactly { file, left: size };
            archive.append_data(&mut header, &path, content).map_err(packing(&path))?;
            summary.files += 1;
            summary.size += size;
        }
        archive.into_inner().and_then(GzEncoder::finish).map_err(could_not("end the archive"))?;
        Ok(summary)
    }
}

/// Where a blob lies in a layout; none if the text is no digest.
fn blob_path(digest: &str) -> Option<PathBuf> {
    let (algorithm, hex) = digest.split_once(':')?;
    let is_plain = |text: &str| {
        !text.is_empty()
            && text.len() <= 128
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    (is_plain(algorithm) && is_plain(hex)).then(|| PathBuf::from("blobs").join(algorithm).join(hex))
}

fn read_manifest(file: &std::path::Path) -> std::result::Result<Manifest, String> {
    let cannot = |error: io::Error| format!("could not read `{}`: {error}", file.display());
    let mut text = Vec::new();
    let opened: File = open_regular(file).map_err(cannot)?;
    opened.take(MANIFEST_SIZE_MAX + 1).read_to_end(&mut text).map_err(cannot)?;
    if text.len() as u64 > MANIFEST_SIZE_MAX {
        return Err(format!("`{}` is larger than 4 MiB", file.display()));
    }
    serde_json::from_slice(&text)
        .map_err(|error| format!("`{}` is no manifest: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_no_paths() {
        assert!(blob_path("sha256:ab12").is_some());
        for bad in ["", "sha256", "sha256:", ":ab", "sha256:../x", "../x:ab", "sha256:a/b", "a:A"] {
            assert_eq!(blob_path(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_what_an_image_reaches_travels() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let file = folder.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        };
        let find = |tag, digest| Layout::find(folder.path().to_owned(), tag, digest);
        assert!(find(None, None).unwrap_err().contains("no file `oci-layout`"));
        write("oci-layout", "{}");
        write(
            "index.json",
            r#"{"manifests": [
                {"digest": "sha256:1", "annotations": {"org.opencontainers.image.ref.name": "one"}},
                {"digest": "sha256:2"}
            ]}"#,
        );
        // The first reaches itself; what it lacks is for the server to tell.
        write(
            "blobs/sha256/1",
            r#"{"manifests": [{"digest": "sha256:1"}, {"digest": "sha256:3"}, {"digest": "sha256:9"}]}"#,
        );
        write(
            "blobs/sha256/3",
            r#"{"config": {"digest": "sha256:4"}, "layers": [{"digest": "sha256:5"}]}"#,
        );
        for name in ["2", "4", "5", "6"] {
            write(&format!("blobs/sha256/{name}"), "{}");
        }
        let blobs = |layout: Layout| layout.blobs.into_iter().collect::<Vec<_>>().join(" ");
        let one = find(Some("one"), None).unwrap();
        assert_eq!(one.digest, "sha256:1");
        assert_eq!(blobs(one), "sha256:1 sha256:3 sha256:4 sha256:5");
        assert_eq!(blobs(find(Some("x"), Some("sha256:2")).unwrap()), "sha256:2");
        assert!(find(None, None).unwrap_err().contains("no image with the tag `latest`"));
        assert!(find(None, Some("sha256:../../x")).unwrap_err().contains("not a digest"));
        write("index.json", r#"{"manifests": [{"digest": "sha256:../../../etc/passwd"}]}"#);
        assert!(find(None, None).unwrap_err().contains("not a digest"));
    }
}
