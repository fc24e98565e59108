//! Indexes of layers that were looked at lately.

use std::collections::HashMap;
use std::sync::Arc;

use oci::Digest;

use super::index::LayerIndex;

/// Bytes of memory that those may take which no build looks at just now.
const MEMORY_MAX: usize = 96 << 20;
/// Indexes at once; each may have a file open.
const COUNT_MAX: usize = 256;

/// Indexes by diff IDs. Those that were not used longest go first.
#[derive(Default)]
pub(super) struct RecentIndexes {
    indexes: HashMap<Digest, Recent>,
    memory: usize,
    uses: u64,
}

struct Recent {
    index: Arc<LayerIndex>,
    memory: usize,
    /// The number of the last use.
    used: u64,
}

impl RecentIndexes {
    pub(super) fn get(&mut self, diff_id: &Digest) -> Option<Arc<LayerIndex>> {
        self.uses += 1;
        let recent = self.indexes.get_mut(diff_id)?;
        recent.used = self.uses;
        Some(Arc::clone(&recent.index))
    }

    pub(super) fn put(&mut self, diff_id: &Digest, index: &Arc<LayerIndex>) {
        self.uses += 1;
        let memory = index.memory();
        let recent = Recent { index: Arc::clone(index), memory, used: self.uses };
        self.memory += memory;
        if let Some(before) = self.indexes.insert(diff_id.clone(), recent) {
            self.memory -= before.memory;
        }
        while self.memory > MEMORY_MAX || self.indexes.len() > COUNT_MAX {
            let oldest = self.indexes.iter().min_by_key(|(_, recent)| recent.used);
            let Some(oldest) = oldest.map(|(diff_id, _)| diff_id.clone()) else { break };
            self.memory -= self.indexes.remove(&oldest).map_or(0, |recent| recent.memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::index::IndexWriter;

    #[test]
    fn what_was_not_used_longest_goes_first() {
        let mut recent = RecentIndexes::default();
        let index = Arc::new(IndexWriter::new(&std::env::temp_dir()).finish());
        let id = |number: usize| Digest::of(number.to_string().as_bytes());
        for number in 0..COUNT_MAX {
            recent.put(&id(number), &index);
        }
        assert!(recent.get(&id(0)).is_some());
        recent.put(&id(COUNT_MAX), &index);
        recent.put(&id(COUNT_MAX), &index);
        assert!(recent.get(&id(0)).is_some() && recent.get(&id(COUNT_MAX)).is_some());
        assert!(recent.get(&id(1)).is_none() && recent.get(&id(2)).is_some());
        assert_eq!(recent.memory, COUNT_MAX * index.memory());
    }
}
