//! All files of an image as one tar, made from its layers as they are read.
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
use crate::tree::{LinkGroup, NodeKind};

impl Layers {
    /// Writes all files of an image as a tar, and gives `out` back. What cannot be written is an
    /// error of `out`, which cancels `stop` to say so.
    pub async fn write_files<W: Write + Send + 'static>(
        &self,
        manifest: &ImageManifest,
        config: &ImageConfig,
        out: W,
        stop: &CancellationToken,
    ) -> Result<W, BuildError> {
        let layers =
            image_layers(manifest, config).map_err(|reason| BuildError::BadLayer { reason })?;
        let ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let merged = self.merged(&layers, &ids, stop).await?;
        let written = |source| match stop.is_cancelled() {
            true => BuildError::Canceled,
            false => BuildError::Io { doing: "send files".to_owned(), source },
        };
        let files = Arc::clone(&merged);
        let folders = blocking(move || write_folders(&files, out));
        let mut out = folders.await.map_err(written)?;
        for (number, layer) in layers.iter().enumerate() {
            let files = LayerFiles::of(&merged, number);
            if files.count == 0 {
                continue;
            }
            out = self.write_layer_files(layer, files, Arc::clone(&merged), out, stop).await?;
        }
        let others = blocking(move || write_others(&merged, out));
        others.await.map_err(written)
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

fn write_folders<W: Write>(merged: &Merged, mut out: W) -> io::Result<W> {
    for (path, placed) in merged.iter() {
        if placed.node.is_directory() && !path.is_empty() {
            write_header(&mut out, &bytes_of(path), &placed.node, None)?;
        }
    }
    Ok(out)
}

/// Links, devices and pipes.
fn write_others<W: Write>(merged: &Merged, mut out: W) -> io::Result<W> {
    for (path, placed) in merged.iter() {
        if !matches!(placed.node.kind, NodeKind::Directory | NodeKind::File { .. }) {
            write_header(&mut out, &bytes_of(path), &placed.node, None)?;
        }
    }
    write_end(&mut out)?;
    Ok(out)
}

/// The files of a layer that show.
struct LayerFiles {
    layer: usize,
    count: usize,
    /// All names of those that may have several, sorted.
    names: HashMap<LinkGroup, Vec<String>>,
}

impl LayerFiles {
    fn of(merged: &Merged, layer: usize) -> Self {
        let mut files = Self { layer, count: 0, names: HashMap::new() };
        for (path, placed) in merged.iter() {
            if placed.layer == layer && matches!(placed.node.kind, NodeKind::File { .. }) {
                files.count += 1;
                if let Some(group) = placed.node.link {
                    files.names.entry(group).or_default().push(path.to_owned());
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
            let names = match self.names.get(&group) {
                Some(names) => names.clone(),
                None if self.shows(merged, &path) => vec![path],
                None => continue,
            };
            let (first, others) = names.split_first().expect("a group has a name");
            write_header(out, &bytes_of(first), &node, None)?;
            io::copy(&mut archive, out)?;
            write_padding(out, size)?;
            for other in others {
                write_header(out, &bytes_of(other), &node, Some(&bytes_of(first)))?;
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
