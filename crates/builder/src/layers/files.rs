//! All files of images as one tar, made from their layers as they are read.
//!
//! Folders come first, then the files of each layer that no layer above hides, then what has no
//! bytes: so no name in the tar ever leads through a link. Nothing is unpacked, and memory holds
//! what the indexes say and no bytes of files.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use oci::{ImageConfig, ImageManifest};
use tokio_util::sync::CancellationToken;

use super::index::Merged;
use super::tar_entry::{write_end, write_header, write_padding};
use super::unpack::{clean, read_plain};
use super::{ImageLayer, Layers};
use crate::archive::node_of;
use crate::assemble::image_layers;
use crate::build::blocking;
use crate::error::BuildError;
use crate::name::{bytes_of, text_of};
use crate::tar_reader::{TarKind, TarReader};
use crate::tree::{LinkGroup, NodeKind, join};

/// An image of which all files are wanted.
pub struct FilesOf {
    pub manifest: ImageManifest,
    pub config: ImageConfig,
    /// The folder of the tar that gets them; `None`: its root.
    pub folder: Option<String>,
}

impl Layers {
    /// Writes all files of images as one tar, and gives `out` back. What cannot be written is an
    /// error of `out`, which cancels `stop` to say so.
    pub async fn write_files<W: Write + Send + 'static>(
        &self,
        images: &[FilesOf],
        mut out: W,
        stop: &CancellationToken,
    ) -> Result<W, BuildError> {
        for image in images {
            out = self.write_files_of(image, out, stop).await?;
        }
        let end = move || {
            write_end(&mut out)?;
            Ok(out)
        };
        blocking(end).await.map_err(not_written(stop))
    }

    async fn write_files_of<W: Write + Send + 'static>(
        &self,
        image: &FilesOf,
        out: W,
        stop: &CancellationToken,
    ) -> Result<W, BuildError> {
        let layers = image_layers(&image.manifest, &image.config)
            .map_err(|reason| BuildError::BadLayer { reason })?;
        let ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let merged = self.merged(&layers, &ids, stop).await?;
        let names = Names { folder: image.folder.clone() };
        let (files, names_) = (Arc::clone(&merged), names.clone());
        let folders = blocking(move || write_folders(&files, &names_, out));
        let mut out = folders.await.map_err(not_written(stop))?;
        for (number, layer) in layers.iter().enumerate() {
            let files = LayerFiles::of(&merged, number, names.clone());
            if files.count == 0 {
                continue;
            }
            out = self.write_layer_files(layer, files, Arc::clone(&merged), out, stop).await?;
        }
        let others = blocking(move || write_others(&merged, &names, out));
        others.await.map_err(not_written(stop))
    }

    async fn write_layer_files<W: Write + Send + 'static>(
        &self,
        layer: &ImageLayer,
        files: LayerFiles,
        merged: Arc<Merged>,
        mut out: W,
        stop: &CancellationToken,
    ) -> Result<W, BuildError> {
        let blob = self.open_layer(layer).await?;
        let (descriptor, diff_id) = (layer.descriptor.clone(), layer.diff_id.clone());
        let stopped = stop.clone();
        let read = blocking(move || {
            read_plain(blob, &descriptor, &diff_id, |tar| {
                files.write(&merged, tar, &mut out, &stopped)
            })?;
            Ok(out)
        });
        self.was_read(layer, read.await, "read a layer", stop).await
    }
}

fn not_written(stop: &CancellationToken) -> impl Fn(io::Error) -> BuildError {
    |source| match stop.is_cancelled() {
        true => BuildError::Canceled,
        false => BuildError::Io { doing: "send files".to_owned(), source },
    }
}

/// What the names in the tar begin with.
#[derive(Clone)]
struct Names {
    folder: Option<String>,
}

impl Names {
    fn of(&self, path: &str) -> Vec<u8> {
        match &self.folder {
            Some(folder) if path.is_empty() => folder.clone().into_bytes(),
            Some(folder) => bytes_of(&join(folder, path)).into_owned(),
            None => bytes_of(path).into_owned(),
        }
    }
}

fn write_folders<W: Write>(merged: &Merged, names: &Names, mut out: W) -> io::Result<W> {
    for (path, placed) in merged.iter() {
        let is_named = !path.is_empty() || names.folder.is_some();
        if placed.node.is_directory() && is_named {
            write_header(&mut out, &names.of(path), &placed.node, None)?;
        }
    }
    Ok(out)
}

/// Links, devices and pipes.
fn write_others<W: Write>(merged: &Merged, names: &Names, mut out: W) -> io::Result<W> {
    for (path, placed) in merged.iter() {
        if !matches!(placed.node.kind, NodeKind::Directory | NodeKind::File { .. }) {
            write_header(&mut out, &names.of(path), &placed.node, None)?;
        }
    }
    Ok(out)
}

/// The files of a layer that show.
struct LayerFiles {
    layer: usize,
    count: usize,
    /// All paths of those that may have several, sorted.
    linked: HashMap<LinkGroup, Vec<String>>,
    names: Names,
}

impl LayerFiles {
    fn of(merged: &Merged, layer: usize, names: Names) -> Self {
        let mut files = Self { layer, count: 0, linked: HashMap::new(), names };
        for (path, placed) in merged.iter() {
            if placed.layer == layer && matches!(placed.node.kind, NodeKind::File { .. }) {
                files.count += 1;
                if let Some(group) = placed.node.link {
                    files.linked.entry(group).or_default().push(path.to_owned());
                }
            }
        }
        files
    }

    /// Writes them as they come in the layer's tar.
    fn write(
        &self,
        merged: &Merged,
        tar: &mut dyn Read,
        out: &mut dyn Write,
        stop: &CancellationToken,
    ) -> io::Result<()> {
        let mut archive = TarReader::new(tar);
        // Counted as in the layer's index, where numbers name files with several names.
        let mut entries = 0;
        while let Some(entry) = archive.next_entry()? {
            if stop.is_cancelled() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if entry.kind == TarKind::HardLink {
                entries += 1;
                continue;
            }
            let Some(node) = node_of(&entry)? else { continue };
            let group = (self.layer as LinkGroup) << 32 | entries;
            entries += 1;
            let NodeKind::File { size, .. } = node.kind else { continue };
            let path = text_of(&clean(&entry.path)?);
            let paths = match self.linked.get(&group) {
                Some(paths) => paths.clone(),
                None if self.shows(merged, &path) => vec![path],
                None => continue,
            };
            let mut names = paths.iter().map(|path| self.names.of(path));
            let Some(first) = names.next() else { continue };
            write_header(out, &first, &node, None)?;
            io::copy(&mut archive, out)?;
            write_padding(out, size)?;
            for other in names {
                write_header(out, &other, &node, Some(&first))?;
            }
        }
        Ok(())
    }

    fn shows(&self, merged: &Merged, path: &str) -> bool {
        merged.get(path).is_some_and(|placed| {
            let is_file = matches!(placed.node.kind, NodeKind::File { .. });
            placed.layer == self.layer && is_file && placed.node.link.is_none()
        })
    }
}
