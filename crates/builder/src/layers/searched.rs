//! Layers of earlier builds are searched for secrets too before an image with them is given out,
//! each once for each secret: what was found is remembered while the process lives, and nothing of
//! the secrets is stored anywhere.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci::Digest;
use tokio_util::sync::CancellationToken;

use super::Layers;
use super::unpack::read_plain;
use crate::assemble::ImageLayer;
use crate::build::blocking;
use crate::error::BuildError;
use crate::secret_scan::{Findings, Held, LayerSearch, SecretScan};
use crate::tar_reader::TarReader;

/// Pairs of a layer and a secret that are remembered; of the others layers are read again.
const REMEMBERED_MAX: usize = 16_384;

/// What layers hold of secrets, by their diff IDs and the secrets' fingerprints.
#[derive(Default)]
pub(super) struct Searched {
    /// Make fingerprints that mean nothing outside this process.
    keys: [RandomState; 2],
    layers: Mutex<HashMap<(Digest, Fingerprint), Option<Held>>>,
}

type Fingerprint = [u64; 2];

impl Searched {
    /// Remembers what a search has shown.
    pub(super) fn note(&self, layer: &Digest, scan: &SecretScan, found: &Findings) {
        let mut layers = self.layers();
        for (place, value) in scan.older() {
            if layers.len() >= REMEMBERED_MAX {
                layers.clear();
            }
            layers.insert((layer.clone(), self.fingerprint(value)), found.get(place).cloned());
        }
    }

    /// What a layer holds, if it was searched for all that an earlier layer could hold.
    fn get(&self, layer: &Digest, scan: &SecretScan) -> Option<Findings> {
        let layers = self.layers();
        let held = scan.older().map(|(place, value)| {
            let held = layers.get(&(layer.clone(), self.fingerprint(value)))?;
            Some((place, held.clone()))
        });
        let held: Vec<_> = held.collect::<Option<_>>()?;
        Some(held.into_iter().filter_map(|(place, held)| Some((place, held?))).collect())
    }

    fn fingerprint(&self, value: &[u8]) -> Fingerprint {
        self.keys.each_ref().map(|key| key.hash_one(value))
    }

    fn layers(&self) -> MutexGuard<'_, HashMap<(Digest, Fingerprint), Option<Held>>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Layers {
    /// The secrets that a layer holds. It is read unless that is known.
    pub(crate) async fn search(
        &self,
        layer: &ImageLayer,
        scan: &Arc<SecretScan>,
        stop: &CancellationToken,
    ) -> Result<Findings, BuildError> {
        if let Some(found) = self.inner.searched.get(&layer.diff_id, scan) {
            return Ok(found);
        }
        let blob = self.open_layer(layer).await?;
        let (descriptor, diff_id) = (layer.descriptor.clone(), layer.diff_id.clone());
        let (search, stopped) = (LayerSearch::new(Arc::clone(scan)), stop.clone());
        let read = blocking(move || {
            read_plain(blob, &descriptor, &diff_id, |tar| search_tar(tar, search, &stopped))
        });
        let found = self.was_read(layer, read.await, "search a layer", stop).await?;
        self.inner.searched.note(&layer.diff_id, scan, &found);
        Ok(found)
    }
}

fn search_tar(
    tar: &mut dyn Read,
    mut search: LayerSearch,
    stop: &CancellationToken,
) -> io::Result<Findings> {
    let mut buffer = vec![0; 64 << 10];
    let mut archive = TarReader::new(tar);
    while let Some(entry) = archive.next_entry()? {
        if stop.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        search.text(&entry.path);
        search.text(&entry.link);
        for (name, value) in &entry.xattrs {
            search.text(name);
            search.text(value);
        }
        loop {
            match archive.read(&mut buffer)? {
                0 => break,
                read => search.bytes(&buffer[..read]),
            }
        }
        search.end(&entry.path);
    }
    Ok(search.finish())
}
