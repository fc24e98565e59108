//! Writes a layer in one pass: tar, diff ID, compression, digest, store, index.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use oci::{Compression, Descriptor, Digest, Hasher};
use store::BlobWriter;

use super::blocks::{BlockMap, BlockWriter, EarlierBlocks, Finished};
use super::index::{IndexEntry, IndexWriter, LayerIndex};
use super::tar_entry::{write_end, write_header, write_padding};
use crate::assemble::ImageLayer;
use crate::name::{bytes_of, text_of};
use crate::secret_scan::{Findings, LayerSearch};
use crate::tree::{Node, NodeKind};

/// Read at once of a file.
const BUFFER_SIZE: usize = 128 << 10;

/// A layer being written. Blocking; used in a thread of its own.
pub(crate) struct LayerWriter {
    out: Hashing<BlockWriter<BlobWriter>>,
    media_type: &'static str,
    index: IndexWriter,
    /// For bytes of files.
    buffer: Vec<u8>,
    /// No time is later than this.
    time_max: Option<i64>,
    /// Looks for secrets.
    search: Option<LayerSearch>,
}

/// A layer that has been written, and is not durable yet.
pub(crate) struct Written {
    pub(crate) layer: LayerBlob,
    pub(crate) index: LayerIndex,
    pub(crate) blocks: Option<BlockMap>,
    /// Bytes that came from an earlier layer.
    pub(crate) reused: u64,
    /// Secrets that are in it.
    pub(crate) found: Findings,
}

impl LayerWriter {
    /// `spools` is as for [`IndexWriter::new`].
    pub(crate) fn new(
        blob: BlobWriter,
        compression: Compression,
        earlier: Option<Arc<EarlierBlocks>>,
        time_max: Option<i64>,
        search: Option<LayerSearch>,
        spools: &Path,
    ) -> io::Result<Self> {
        let encoder = BlockWriter::new(blob, compression)?.noting(earlier);
        let media_type = compression.format.media_type();
        let out = Hashing { inner: encoder, hasher: Hasher::sha256() };
        let (index, buffer) = (IndexWriter::new(spools), vec![0; BUFFER_SIZE]);
        Ok(Self { out, media_type, index, buffer, time_max, search })
    }

    /// Adds a folder, link or device.
    pub(crate) fn add(&mut self, path: &[u8], node: &Node) -> io::Result<()> {
        let node = self.clamped(node);
        self.header(path, &node, None)?;
        self.note(path, node, None)
    }

    /// Adds a file, reading exactly as many bytes as its node says. Gives the digest of what
    /// was read, which the index holds too.
    pub(crate) fn add_file(
        &mut self,
        path: &[u8],
        node: &Node,
        size: u64,
        content: &mut dyn Read,
    ) -> io::Result<Digest> {
        let mut node = self.clamped(node);
        node.kind = NodeKind::File { size, digest: Digest::of(b"") };
        self.header(path, &node, None)?;
        let mut hasher = Hasher::sha256();
        let mut kept = self.index.keeps_content(&text_of(path), size).then(Vec::new);
        let mut left = size;
        while left > 0 {
            let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let buffer = &mut self.buffer[..want];
            let read = content.read(buffer)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            hasher.update(&buffer[..read]);
            if let Some(search) = &mut self.search {
                search.bytes(&buffer[..read]);
            }
            if let Some(kept) = &mut kept {
                kept.extend_from_slice(&buffer[..read]);
            }
            self.out.write_all(&buffer[..read])?;
            left -= read as u64;
        }
        write_padding(&mut self.out, size)?;
        let digest = hasher.finish();
        node.kind = NodeKind::File { size, digest: digest.clone() };
        self.note(path, node, kept)?;
        Ok(digest)
    }

    /// What the next entry will be named by.
    pub(crate) fn next_entry(&self) -> u64 {
        self.index.next()
    }

    /// Adds another name of an entry.
    pub(crate) fn add_hard_link(&mut self, path: &[u8], first: u64) -> io::Result<()> {
        let (target, node) = self.index.entry(first)?;
        self.header(path, &node, Some(&*bytes_of(&target)))?;
        self.end_search(path);
        self.index.push(&IndexEntry::Link { path: text_of(path), first })
    }

    /// Adds the mark that a path of the layers below is gone.
    pub(crate) fn add_mark(&mut self, path: &[u8]) -> io::Result<()> {
        let kind = NodeKind::File { size: 0, digest: Digest::of(b"") };
        let node = Node { kind, mode: 0, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new(), link: None };
        self.header(path, &node, None)?;
        self.note(path, node, None)
    }

    /// Ends the layer.
    pub(crate) fn finish(mut self) -> io::Result<Written> {
        write_end(&mut self.out)?;
        let diff_id = self.out.hasher.finish();
        let Finished { out: blob, blocks, reused } = self.out.inner.finish()?;
        let layer = LayerBlob { blob, media_type: self.media_type, diff_id };
        let found = self.search.map(LayerSearch::finish).unwrap_or_default();
        Ok(Written { layer, index: self.index.finish(), blocks, reused, found })
    }

    /// Begins an entry. `link`: as for [`write_header`].
    fn header(&mut self, path: &[u8], node: &Node, link: Option<&[u8]>) -> io::Result<()> {
        let size = match (&node.kind, link) {
            (NodeKind::File { size, .. }, None) => *size,
            _ => 0,
        };
        self.out.inner.begin_entry(path, size)?;
        if let Some(search) = &mut self.search {
            search.text(path);
            search.text(link.unwrap_or_default());
            search.node(node);
        }
        write_header(&mut self.out, path, node, link)
    }

    fn clamped(&self, node: &Node) -> Node {
        let mut node = node.clone();
        if let Some(max) = self.time_max {
            node.mtime = node.mtime.min(max);
        }
        node
    }

    fn end_search(&mut self, path: &[u8]) {
        if let Some(search) = &mut self.search {
            search.end(path);
        }
    }

    /// Ends an entry; `kept` is what the index keeps of a file.
    fn note(&mut self, path: &[u8], node: Node, kept: Option<Vec<u8>>) -> io::Result<()> {
        self.end_search(path);
        let mut entry = IndexEntry::from_tar(text_of(path), Node { link: None, ..node });
        if let Some(bytes) = kept {
            entry.set_content(&bytes);
        }
        self.index.push(&entry)
    }
}

/// What is to be stored of a layer.
pub(crate) struct LayerBlob {
    blob: BlobWriter,
    media_type: &'static str,
    diff_id: Digest,
}

impl LayerBlob {
    pub(crate) fn diff_id(&self) -> &Digest {
        &self.diff_id
    }

    /// Blocking.
    pub(crate) fn commit(self) -> store::Result<ImageLayer> {
        let stored = self.blob.commit(None)?;
        let descriptor = Descriptor::new(self.media_type, stored.digest, stored.size);
        Ok(ImageLayer { descriptor, diff_id: self.diff_id })
    }
}

/// Hashes what passes.
struct Hashing<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
