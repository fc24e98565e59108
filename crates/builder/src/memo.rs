//! What a `COPY` came to when it was planned last: a build whose context has not changed then
//! neither reads the context's list nor plans anything.
//!
//! A memo is an entry of the build cache. Its key holds all that a plan is made from, the context
//! by the digest of its list and the image by its layers, and its value names the layer's own key.
//! So a memo says nothing that the plan would not say, and without one nothing is different but
//! the time it takes. It is kept only of plans that had nothing else to tell, such as a pattern
//! without a match, and written together with the image.

use dockerfile::CopyOperation;
use oci::Digest;
use serde::{Deserialize, Serialize};

use crate::cache::KeyHasher;
use crate::context::{ContextFiles, ContextOptions};
use crate::copy::CopyPlan;
use crate::user::AccountFiles;

/// Where a memo is.
pub(crate) struct Memo {
    pub(crate) key: Digest,
    /// The name of the context; of the main one, none.
    pub(crate) context: Option<String>,
    /// The image's layers are in the key.
    pub(crate) looks_below: bool,
}

/// What it says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remembered {
    /// The cache key of the layer.
    pub(crate) layer: Digest,
    /// Of what the build may read of the context, for the record.
    pub(crate) context: Digest,
}

impl Remembered {
    /// What is not readable says nothing.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain structs serialize")
    }
}

/// Whether nothing is told by a plan but its entries.
pub(crate) fn is_all_of(plan: &CopyPlan) -> bool {
    plan.archives.is_empty() && plan.unmatched.is_empty()
}

/// Whether what is below an instruction counts: with `--link` only for the names of owners.
pub(crate) fn looks_below(copy: &CopyOperation) -> bool {
    !copy.link || copy.chown.as_ref().is_some_and(|chown| !AccountFiles::of_owner(chown).are_none())
}

/// The key of a memo; none for what is copied from elsewhere than a list. `key` is begun with what
/// counts for every layer. `time_max` is as for [`CopyPlan::add_to`]: memos from before times were
/// in keys of layers name other layers, and must not be found.
pub(crate) fn key<'a>(
    mut key: KeyHasher,
    copy: &CopyOperation,
    context: &ContextOptions,
    layers: impl Iterator<Item = &'a Digest>,
    time_max: Option<i64>,
) -> Option<Digest> {
    // Every member is looked at: one that is new must be in the key.
    let CopyOperation {
        from: _,
        sources,
        documents,
        destination,
        chown,
        chmod,
        unpack,
        unpack_downloads: _,
        checksum: _,
        link,
        parents,
        excludes,
    } = copy;
    let ContextOptions { files, dockerfile, hidden, entries_max } = context;
    let ContextFiles::Listed { files, .. } = files else { return None };
    if sources.iter().any(|source| source.address.is_some()) {
        return None;
    }
    key.digest("list", files.digest());
    if let Some(max) = time_max {
        key.text("times up to", &max.to_string());
    }
    key.optional("dockerfile", dockerfile.as_deref());
    key.list("hidden", hidden);
    key.number("entries max", *entries_max as u64);
    key.number("sources", sources.len() as u64);
    for source in sources {
        key.text("pattern", &source.pattern);
        key.text("pivot", &source.pivot);
    }
    key.number("documents", documents.len() as u64);
    for document in documents {
        key.text("name", &document.name);
        key.text("text", &document.text);
    }
    key.text("destination", destination);
    key.optional("chown", chown.as_deref());
    key.optional("chmod", chmod.as_ref().map(|mode| mode.text.as_str()));
    key.number("unpack", u64::from(*unpack));
    key.number("link", u64::from(*link));
    key.number("parents", u64::from(*parents));
    key.list("excludes", excludes);
    let layers: Vec<&str> = match looks_below(copy) {
        true => layers.map(Digest::as_str).collect(),
        false => Vec::new(),
    };
    key.list("layers", &layers);
    Some(key.finish())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use store::MemoryStore;

    use super::*;
    use crate::context::LazyFolder;
    use crate::listed::{ContextLimits, ListedFiles};

    #[tokio::test]
    async fn a_memo_without_times_is_not_found_where_they_count() {
        let blobs = MemoryStore::open(db::Db::in_memory().await.unwrap()).await.unwrap();
        let (list, limits) = (Digest::of(b"list"), ContextLimits::default());
        let files = Arc::new(ListedFiles::new(Arc::new(blobs), list, Vec::new(), limits));
        let folder = Arc::new(LazyFolder::new("unused"));
        let context = ContextOptions::of(ContextFiles::Listed { files, folder });
        let copy = CopyOperation {
            from: None,
            sources: Vec::new(),
            documents: Vec::new(),
            destination: "/".to_owned(),
            chown: None,
            chmod: None,
            unpack: false,
            unpack_downloads: false,
            checksum: None,
            link: false,
            parents: false,
            excludes: Vec::new(),
        };
        let key = |time_max| {
            let begun = KeyHasher::new("memo");
            key(begun, &copy, &context, std::iter::empty(), time_max).unwrap()
        };
        assert_eq!(key(None), key(None));
        assert_ne!(key(None), key(Some(7)));
    }
}
