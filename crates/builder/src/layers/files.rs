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

use super::index::{IndexEntry, Merged, Placed};
use super::tar_entry::{write_end, write_header, write_padding};
use super::unpack::read_plain;
use super::{ImageLayer, Layers};
use crate::archive::node_of;
use crate::assemble::image_layers;
use crate::build::blocking;
use crate::error::BuildError;
use crate::name::bytes_of;
use crate::tar_reader::{TarKind, TarReader};
use crate::tree::{NodeKind, join};

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
        let merged = Arc::new(self.merged(&layers, stop).await?);
        let names = Names { folder: image.folder.clone() };
        let (walked, names_) = (Arc::clone(&merged), names.clone());
        let folders = blocking(move || write_folders(&walked, &names_, out));
        let (mut out, files) = folders.await.map_err(not_written(stop))?;
        for (layer, files) in layers.iter().zip(files).filter(|(_, files)| files.count > 0) {
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

/// Writes all folders, and looks which files of each layer show.
fn write_folders<W: Write>(
    merged: &Merged,
    names: &Names,
    mut out: W,
) -> io::Result<(W, Vec<LayerFiles>)> {
    let layers = 0..merged.layers().len();
    let mut files: Vec<_> = layers.map(|layer| LayerFiles::new(layer, names.clone())).collect();
    merged.walk(&mut |path, placed| {
        match placed.node.kind {
            NodeKind::Directory if !path.is_empty() || names.folder.is_some() => {
                write_header(&mut out, &names.of(path), &placed.node, None)?;
            }
            NodeKind::File { .. } => files[placed.layer].add(path, &placed),
            _ => (),
        }
        Ok(())
    })?;
    Ok((out, files))
}

/// Links, devices and pipes.
fn write_others<W: Write>(merged: &Merged, names: &Names, mut out: W) -> io::Result<W> {
    merged.walk(&mut |path, placed| match placed.node.kind {
        NodeKind::Directory | NodeKind::File { .. } => Ok(()),
        _ => write_header(&mut out, &names.of(path), &placed.node, None),
    })?;
    Ok(out)
}

/// The files of a layer that show.
struct LayerFiles {
    layer: usize,
    count: usize,
    /// All paths of those that may have several, by entry.
    linked: HashMap<u64, Vec<String>>,
    names: Names,
}

impl LayerFiles {
    fn new(layer: usize, names: Names) -> Self {
        Self { layer, count: 0, linked: HashMap::new(), names }
    }

    fn add(&mut self, path: &str, placed: &Placed) {
        self.count += 1;
        if let (Some(_), Some(entry)) = (placed.node.link, placed.entry) {
            self.linked.entry(entry).or_default().push(path.to_owned());
        }
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
        let mut index = merged.layers()[self.layer].entries();
        while let Some(entry) = archive.next_entry()? {
            if stop.is_cancelled() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let is_link = entry.kind == TarKind::HardLink;
            let node = node_of(&entry)?;
            if node.is_none() && !is_link {
                continue; // Of a kind that no index has.
            }
            let Some((number, noted)) = index.next().transpose()? else {
                return Err(io::Error::other("it has more entries than its index"));
            };
            let (Some(node), IndexEntry::Node { path, .. }) = (node, noted) else { continue };
            let NodeKind::File { size, .. } = node.kind else { continue };
            let paths = match self.linked.get(&number) {
                Some(paths) => paths.clone(),
                None if self.shows(merged, &path, number) => vec![path],
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

    fn shows(&self, merged: &Merged, path: &str, entry: u64) -> bool {
        merged
            .get(path)
            .is_some_and(|placed| placed.layer == self.layer && placed.entry == Some(entry))
    }
}
