//! Which other repositories belong into folders of one.

use std::collections::BTreeMap;

use gix::bstr::{BString, ByteSlice};
use gix::objs::tree::EntryKind;
use gix::{ObjectId, Repository};

use super::{Connection, GitError, Result};

/// A `.gitmodules` file is at most this large, in bytes.
const FILE_SIZE_MAX: u64 = 4 << 20;

/// What `.gitmodules` says: addresses by folders.
pub(super) struct Modules(BTreeMap<BString, String>);

impl Modules {
    pub(super) fn read(
        connection: &Connection,
        repository: &Repository,
        tree: ObjectId,
    ) -> Result<Self> {
        let failed = |error: gix::Error| connection.protocol(&error);
        let tree = repository.find_tree(tree).map_err(failed)?;
        let Some(entry) = tree.find_entry(".gitmodules") else { return Ok(Self(BTreeMap::new())) };
        let (kind, id) = (entry.mode().kind(), entry.object_id());
        let refuse = |reason| GitError::Submodule {
            address: connection.address(),
            path: ".gitmodules".to_owned(),
            reason,
        };
        if !matches!(kind, EntryKind::Blob | EntryKind::BlobExecutable) {
            return Err(refuse("it is no file"));
        }
        if repository.find_header(id).map_err(failed)?.size() > FILE_SIZE_MAX {
            return Err(refuse("it is too large"));
        }
        let file = repository.find_object(id).map_err(failed)?;
        Self::parse(&file.data).ok_or_else(|| refuse("git cannot read it"))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let meta = gix::config::file::Metadata::api();
        let file =
            gix::config::File::from_bytes_no_includes(bytes, meta, Default::default()).ok()?;
        let sections = file.sections_by_name("submodule").into_iter().flatten();
        let modules = sections.filter_map(|section| {
            let path = section.value("path")?;
            let url = section.value("url")?.to_str().ok()?.to_owned();
            Some((path.trim_end_with(|c| c == '/').into(), url))
        });
        Some(Self(modules.collect()))
    }

    pub(super) fn url(&self, path: &BString) -> Option<&str> {
        self.0.get(path).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_have_addresses() {
        let text = "[submodule \"x\"]\n\tpath = libs/x/\n\turl = ../x.git\n\
             [submodule \"no url\"]\n\tpath = y\n";
        let modules = Modules::parse(text.as_bytes()).unwrap();
        assert_eq!(modules.url(&"libs/x".into()), Some("../x.git"));
        assert_eq!(modules.url(&"y".into()), None);
        assert!(Modules::parse(b"[submodule").is_none());
    }
}
