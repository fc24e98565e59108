//! Packs: files of a listed context on their way to a server that lacks them.

use std::io::{self, Write};
use std::path::Path;

use api::{PACK_FILES_MAX, PACK_SIZE_MAX, PackedFile};
use oci::Digest;

use super::file::{Exactly, open_regular, packing};
use super::key::FileKey;
use super::listing::{Dockerfile, Listing, cannot_read};
use super::records::Record;
use crate::error::{Error, ErrorKind, Result, could_not};

/// Files that travel together.
pub(super) struct Pack {
    /// Their numbers in the list: the first of a row, and how many there are.
    rows: Vec<(u64, u64)>,
    pub(super) files: u64,
    /// Bytes in the files.
    pub(super) size: u64,
}

impl Pack {
    fn has_room_for(&self, size: u64) -> bool {
        self.files < PACK_FILES_MAX as u64 && self.size + size <= PACK_SIZE_MAX
    }

    fn add(&mut self, number: u64, size: u64) {
        match self.rows.last_mut() {
            Some((first, count)) if *first + *count == number => *count += 1,
            _ => self.rows.push((number, 1)),
        }
        self.files += 1;
        self.size += size;
    }
}

/// A file of the list.
pub(super) enum Content<'a> {
    Dockerfile(&'a Dockerfile),
    File(Record),
}

impl Content<'_> {
    pub(super) fn digest(&self) -> &Digest {
        match self {
            Self::Dockerfile(dockerfile) => &dockerfile.digest,
            Self::File(record) => &record.digest,
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::Dockerfile(dockerfile) => dockerfile.text.len() as u64,
            Self::File(record) => record.key.size,
        }
    }
}

/// Gets a file of the list with its number.
type Visit<'a> = dyn FnMut(u64, Content<'_>) -> Result<()> + 'a;

impl Listing {
    /// Missing files in packs, each within its bounds.
    pub(super) fn packs(&self, missing: &[(u64, u64)]) -> Result<Vec<Pack>> {
        let mut packs: Vec<Pack> = Vec::new();
        self.visit(missing, &mut |number, content| {
            let size = content.size();
            if !packs.last().is_some_and(|pack| pack.has_room_for(size)) {
                packs.push(Pack { rows: Vec::new(), files: 0, size: 0 });
            }
            if let Some(pack) = packs.last_mut() {
                pack.add(number, size);
            }
            Ok(())
        })?;
        Ok(packs)
    }

    /// Goes through files by their numbers in the list.
    pub(super) fn visit(&self, rows: &[(u64, u64)], visit: &mut Visit<'_>) -> Result<()> {
        let outside = u64::from(self.dockerfile.is_some());
        let total = outside + self.records.count;
        let mut records = self.records.lookup();
        for (first, count) in rows {
            let end = first.checked_add(*count).filter(|end| *end <= total).ok_or_else(|| {
                let message = format!(
                    "the server wants {count} files from {first} on, of which there are fewer"
                );
                Error::failed(message)
            })?;
            for number in *first..end {
                match &self.dockerfile {
                    Some(dockerfile) if number == 0 => {
                        visit(number, Content::Dockerfile(dockerfile))?;
                    }
                    _ => {
                        let record = records.get(number - outside).map_err(cannot_read)?;
                        visit(number, Content::File(record))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes a pack. A file that is not what was listed is a conflict. Blocking.
    pub(super) fn write_pack(&self, pack: &Pack, out: &mut dyn Write) -> Result<()> {
        let mut before = b'[';
        self.visit(&pack.rows, &mut |_, content| {
            let (digest, size) = (content.digest().to_string(), content.size());
            let mut text = vec![std::mem::replace(&mut before, b',')];
            serde_json::to_writer(&mut text, &PackedFile { digest, size })
                .map_err(could_not("list a pack"))?;
            out.write_all(&text).map_err(cannot_send)
        })?;
        out.write_all(b"]\n").map_err(cannot_send)?;
        self.visit(&pack.rows, &mut |_, content| match content {
            Content::Dockerfile(dockerfile) => out.write_all(&dockerfile.text).map_err(cannot_send),
            Content::File(Record { path, key, .. }) => {
                let mut file = open_listed(&self.folder.join(path), &key)?;
                io::copy(&mut file, out).map(drop).map_err(cannot_send)
            }
        })
    }
}

fn cannot_send(error: io::Error) -> Error {
    could_not("send the context")(error)
}

/// Opens a file that is still as it was listed.
fn open_listed(file: &Path, key: &FileKey) -> Result<Exactly> {
    let changed = || {
        let message = format!("`{}` changed while it was sent", file.display());
        Error::new(ErrorKind::Conflict, message)
    };
    let opened = open_regular(file).map_err(|_| changed())?;
    let found = opened.metadata().map_err(packing(file))?;
    match FileKey::of(&found) == *key {
        true => Ok(Exactly { file: opened, left: key.size }),
        false => Err(changed()),
    }
}

#[cfg(test)]
mod tests {
    use crate::context::listing::tests::{Workshop, tick};

    use super::*;

    #[test]
    fn packs_hold_what_is_missing() {
        let workshop = Workshop::new();
        for name in ["a", "b", "c", "d"] {
            workshop.write(name, &name.repeat(3));
        }
        let listing = workshop.list();
        // Of the Dockerfile that travels by itself, the one in the context, and so on.
        let packs = listing.packs(&[(0, 1), (2, 1), (4, 2)]).unwrap();
        let [pack] = packs.as_slice() else { panic!("several packs") };
        assert_eq!((pack.files, pack.size), (4, 13 + 9));
        let mut bytes = Vec::new();
        listing.write_pack(pack, &mut bytes).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, rest) = text.split_once('\n').unwrap();
        assert_eq!(rest, "FROM scratch\naaacccddd");
        let head: Vec<PackedFile> = serde_json::from_str(head).unwrap();
        let expected = ["FROM scratch\n", "aaa", "ccc", "ddd"].map(|text| PackedFile {
            digest: Digest::of(text.as_bytes()).to_string(),
            size: text.len() as u64,
        });
        assert_eq!(head, expected);

        for row in [(0, 7), (6, 1), (u64::MAX, 2)] {
            let Err(error) = listing.packs(&[row]) else { panic!("{row:?} was found") };
            assert!(error.to_string().contains("of which there are fewer"), "{error}");
        }
        tick(&workshop);
        workshop.write("c", "CCC");
        let error = listing.write_pack(pack, &mut io::sink()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }
}
