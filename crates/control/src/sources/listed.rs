//! The upload by which only files travel that the server lacks.
//!
//! A client sends the list of its context, and which source it uploaded before, its *base*. It is
//! told which files are missing and sends those, many in one pack. Each pack is durable when it
//! is acknowledged, so an upload that breaks off goes on with a new list and itself as base.
//!
//! What is there already is looked for in the base and nowhere else. Its id is random and known
//! only to who made it, and its registry must be the same: so nobody gets a file from here whose
//! digest is all that he knows.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};

use engine::{ContextList, ListError};
use oci::{Algorithm, Digest, RegistryName};
use sqlx::Row;
use store::{
    BlobWriter, PACK_SIZE_MAX, PackError, PackedFile, Packs, StoreError, Stored, copy_pack,
    lease_within, pack_head,
};

use super::{Sources, is_id, lease_owner};
use crate::{ContextSource, ControlError, Result};

/// Bytes of a list for each entry that a context may have.
const ENTRY_SIZE: u64 = 1024;
/// Packs of one source; each is a row and a lease.
const PACKS_MAX: usize = 2048;
/// So many packs may be small; beyond this the smallest are not used again, and their files
/// travel once more, together.
const SMALL_PACKS_MAX: u64 = 64;
/// And one more for so many bytes.
const USUAL_PACK_SIZE: u64 = 16 << 20;

/// A source whose list is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedSource {
    pub id: String,
    /// Files that must come before it can be committed, each content once: the number of the first
    /// of a row, in the order of the list, and how many there are.
    pub missing: Vec<(u64, u64)>,
}

/// A file of a list, of which there may be a million.
#[derive(Clone, Copy)]
struct ListedFile {
    sha256: [u8; 32],
    size: u64,
}

impl ListedFile {
    /// The pack that has it.
    fn find<'a>(&self, packs: &'a Packs) -> Option<&'a Digest> {
        let (pack, size) = packs.find(&Digest::of_sha256_bytes(&self.sha256))?;
        (size == self.size).then_some(pack)
    }
}

struct ListedRow {
    list: Digest,
    base: Option<String>,
    committed: bool,
}

impl Sources {
    /// Takes the list of a context, from a blocking reader. Of a base that is not there any more,
    /// everything is missing.
    pub async fn create_listed(
        &self,
        registry: &RegistryName,
        base: Option<&str>,
        list: impl Read + Send + 'static,
    ) -> Result<ListedSource> {
        self.check_room("SELECT COUNT(*) FROM listed_sources").await?;
        let (list, files) = self.store_list(list).await?;
        let there = match base {
            Some(base) if self.listed_row(registry, base).await?.is_some() => {
                self.whole(self.packs_of(base).await?).await?
            }
            _ => Vec::new(),
        };
        let digests: Vec<Digest> = there.iter().map(|(digest, _)| digest.clone()).collect();
        let packs = Packs::open(self.catalog.blobs().clone(), &digests).await?;
        let reused = reused_packs(&files, &packs);
        let missing = missing(&files, &packs, &reused);
        let there = there.into_iter().filter(|(digest, _)| reused.contains(digest));
        let there: Vec<(Digest, u64)> = there.collect();
        let id = uuid::Uuid::new_v4().simple().to_string();
        let mut blobs: Vec<Digest> = there.iter().map(|(digest, _)| digest.clone()).collect();
        blobs.push(list.clone());
        let doing = "note a list";
        let mut transaction = self.db.begin().await.map_err(ControlError::database(doing))?;
        lease_within(&mut transaction, &lease_owner(&id), &blobs, self.settings.keep).await?;
        sqlx::query(
            "INSERT INTO listed_sources (id, registry, list, base, committed, expires_at)
             VALUES ($1, $2, $3, $4, FALSE, $5)",
        )
        .bind(&id)
        .bind(registry.as_str())
        .bind(list.as_str())
        .bind(base)
        .bind(self.expiry())
        .execute(&mut *transaction)
        .await
        .map_err(ControlError::database(doing))?;
        for (pack, size) in &there {
            let statement = add_pack_row(&id, pack, *size);
            statement.execute(&mut *transaction).await.map_err(ControlError::database(doing))?;
        }
        transaction.commit().await.map_err(ControlError::database(doing))?;
        Ok(ListedSource { id, missing })
    }

    /// Stores a list while it is read.
    async fn store_list(
        &self,
        list: impl Read + Send + 'static,
    ) -> Result<(Digest, Vec<ListedFile>)> {
        let limits = self.settings.context;
        let size_max = ENTRY_SIZE.saturating_mul(limits.entries_max as u64);
        let upload = self.catalog.blobs().begin_upload(Algorithm::Sha256).await?;
        let mut writer = BlobWriter::new(upload);
        let parse = move || {
            let copied = Copied { from: list, to: &mut writer, left: size_max };
            let mut files = Vec::new();
            let text = BufReader::with_capacity(128 << 10, copied);
            let mut each = |_: &str, PackedFile { digest, size }: PackedFile| {
                // Lists have no other digests.
                files.extend(digest.sha256_bytes().map(|sha256| ListedFile { sha256, size }));
            };
            ContextList::parse(text, limits, &mut each)
                .map_err(|error| list_error(error, size_max))?;
            Ok::<_, ControlError>((writer.commit(None)?.digest, files))
        };
        blocking(parse).await?
    }

    /// Takes a pack, from a blocking reader. It is durable when this answers.
    pub async fn add_pack(
        &self,
        registry: &RegistryName,
        id: &str,
        mut pack: impl BufRead + Send + 'static,
    ) -> Result<()> {
        let row = self.listed_row(registry, id).await?.ok_or_else(no_source)?;
        if row.committed {
            let message = "this source is complete, and takes no more files".to_owned();
            return Err(ControlError::Conflict { message });
        }
        let there = self.packs_of(id).await?;
        if there.len() >= PACKS_MAX {
            let message = format!("a source has at most {PACKS_MAX} packs");
            let hint = Some("send more files in each".to_owned());
            return Err(ControlError::Invalid { message, hint });
        }
        let used: u64 = there.iter().map(|(_, size)| size).sum();
        let size_max = self.settings.context.bytes_max;
        // Packs of the base may hold as much again that is not used any more.
        let left = size_max.saturating_mul(2).saturating_sub(used).min(size_max);
        let upload = self.catalog.blobs().begin_upload(Algorithm::Sha256).await?;
        let mut writer = BlobWriter::new(upload);
        let copy = move || {
            if let Err(error) = copy_pack(&mut pack, &mut writer, left) {
                // A client that may send all of it hears what is wrong with it.
                let _ = io::copy(&mut pack.take(PACK_SIZE_MAX), &mut io::sink());
                return Err(pack_error(error));
            }
            Ok(writer.commit(None)?)
        };
        let Stored { digest, size } = blocking(copy).await??;
        let doing = "note a pack";
        let mut transaction = self.db.begin().await.map_err(ControlError::database(doing))?;
        let (owner, keep) = (lease_owner(id), self.settings.keep);
        lease_within(&mut transaction, &owner, std::slice::from_ref(&digest), keep).await?;
        let statement = add_pack_row(id, &digest, size);
        statement.execute(&mut *transaction).await.map_err(ControlError::database(doing))?;
        let noted = sqlx::query("UPDATE listed_sources SET expires_at = $2 WHERE id = $1")
            .bind(id)
            .bind(self.expiry())
            .execute(&mut *transaction)
            .await
            .map_err(ControlError::database(doing))?;
        if noted.rows_affected() == 0 {
            return Err(no_source());
        }
        transaction.commit().await.map_err(ControlError::database(doing))
    }

    /// Takes one file, which has a pack of its own then.
    pub async fn add_file(
        &self,
        registry: &RegistryName,
        id: &str,
        file: PackedFile,
        content: impl Read + Send + 'static,
    ) -> Result<()> {
        let head = io::Cursor::new(pack_head(&[file]));
        self.add_pack(registry, id, BufReader::new(head.chain(content))).await
    }

    /// Ends an upload, and gives the name of the source for a run. May be asked again for as long
    /// as the source is kept, which begins anew each time. `NotFound` if something of it is gone.
    pub async fn commit_listed(
        &self,
        registry: &RegistryName,
        id: &str,
        list: &Digest,
    ) -> Result<String> {
        let row = self.listed_row(registry, id).await?.ok_or_else(no_source)?;
        if row.list != *list {
            let message = "this source has another list".to_owned();
            return Err(ControlError::Conflict { message });
        }
        let packs = self.packs_of(id).await?;
        let whole = self.whole(packs.clone()).await?;
        if whole.len() < packs.len() || self.catalog.blobs().stat(list).await?.is_none() {
            return Err(no_source());
        }
        let mut blobs: Vec<Digest> = packs.into_iter().map(|(digest, _)| digest).collect();
        if !row.committed {
            self.check_complete(list, &blobs).await?;
        }
        blobs.push(list.clone());
        let keep = self.settings.reuse_keep;
        let doing = "commit a source";
        let mut transaction = self.db.begin().await.map_err(ControlError::database(doing))?;
        lease_within(&mut transaction, &lease_owner(id), &blobs, keep).await?;
        let statement = "UPDATE listed_sources SET committed = TRUE, expires_at = $2 WHERE id = $1";
        let noted = sqlx::query(statement)
            .bind(id)
            .bind(self.after(keep))
            .execute(&mut *transaction)
            .await
            .map_err(ControlError::database(doing))?;
        if noted.rows_affected() == 0 {
            return Err(no_source());
        }
        // Its maker will not ask for the base again, unless he never hears of this.
        sqlx::query("UPDATE listed_sources SET expires_at = $2 WHERE id = $1 AND expires_at > $2")
            .bind(row.base)
            .bind(self.expiry())
            .execute(&mut *transaction)
            .await
            .map_err(ControlError::database(doing))?;
        transaction.commit().await.map_err(ControlError::database(doing))?;
        Ok(relative_path(id))
    }

    async fn check_complete(&self, list: &Digest, packs: &[Digest]) -> Result<()> {
        let text = self.catalog.blobs().open(list, 0).await?.into_blocking();
        let limits = self.settings.context;
        let packs = Packs::open(self.catalog.blobs().clone(), packs).await?;
        let count = move || {
            let mut missing = 0;
            let mut count = |_: &str, file: PackedFile| {
                let found = packs.find(&file.digest);
                missing += u64::from(found.is_none_or(|(_, size)| size != file.size));
            };
            ContextList::parse(BufReader::new(text), limits, &mut count).map(|_| missing)
        };
        match blocking(count).await?.map_err(|error| list_error(error, u64::MAX))? {
            0 => Ok(()),
            count => Err(ControlError::Conflict {
                message: format!("{count} files of this source did not come yet"),
            }),
        }
    }

    pub(super) async fn resolve_listed(
        &self,
        registry: &RegistryName,
        id: &str,
    ) -> Result<Option<ContextSource>> {
        let row = self.listed_row(registry, id).await?.filter(|row| row.committed);
        let Some(row) = row else { return Ok(None) };
        let packs = self.packs_of(id).await?.into_iter().map(|(digest, _)| digest).collect();
        Ok(Some(ContextSource::Listed { list: row.list, packs }))
    }

    async fn listed_row(&self, registry: &RegistryName, id: &str) -> Result<Option<ListedRow>> {
        let doing = "look up a source";
        let row = sqlx::query(
            "SELECT list, base, committed FROM listed_sources
             WHERE id = $1 AND registry = $2 AND expires_at > $3",
        )
        .bind(id)
        .bind(registry.as_str())
        .bind(self.clock.now())
        .fetch_optional(self.db.reads())
        .await
        .map_err(ControlError::database(doing))?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(ListedRow {
            list: parsed(row.try_get("list").map_err(ControlError::database(doing))?)?,
            base: row.try_get("base").map_err(ControlError::database(doing))?,
            committed: row.try_get("committed").map_err(ControlError::database(doing))?,
        }))
    }

    /// The packs of a source with their sizes.
    async fn packs_of(&self, id: &str) -> Result<Vec<(Digest, u64)>> {
        let doing = "look up the packs of a source";
        let rows =
            sqlx::query("SELECT pack, size FROM source_packs WHERE source = $1 ORDER BY pack")
                .bind(id)
                .fetch_all(self.db.reads())
                .await
                .map_err(ControlError::database(doing))?;
        let pack = |row: &sqlx::sqlite::SqliteRow| {
            let size: i64 = row.try_get("size").map_err(ControlError::database(doing))?;
            Ok((
                parsed(row.try_get("pack").map_err(ControlError::database(doing))?)?,
                size.unsigned_abs(),
            ))
        };
        rows.iter().map(pack).collect()
    }

    /// Those packs whose bytes are there.
    async fn whole(&self, packs: Vec<(Digest, u64)>) -> Result<Vec<(Digest, u64)>> {
        let mut whole = Vec::with_capacity(packs.len());
        for (digest, size) in packs {
            if self.catalog.blobs().stat(&digest).await? == Some(size) {
                whole.push((digest, size));
            }
        }
        Ok(whole)
    }

    /// Forgets sources whose time is over, and those used longest ago beyond the bound on bytes.
    pub(super) async fn sweep_listed(&self) -> Result<u64> {
        let doing = "list sources";
        let rows = sqlx::query(
            "SELECT s.id, s.expires_at, s.committed, p.pack, p.size FROM listed_sources s
             LEFT JOIN source_packs p ON p.source = s.id
             ORDER BY s.expires_at DESC, s.id",
        )
        .fetch_all(self.db.reads())
        .await
        .map_err(ControlError::database(doing))?;
        let (mut seen, mut size) = (HashSet::new(), 0_u64);
        let mut over = HashSet::new();
        for row in rows {
            let id: String = row.try_get("id").map_err(ControlError::database(doing))?;
            let pack: Option<String> =
                row.try_get("pack").map_err(ControlError::database(doing))?;
            if pack.is_some_and(|pack| seen.insert(pack)) {
                let bytes: i64 = row.try_get("size").map_err(ControlError::database(doing))?;
                size = size.saturating_add(bytes.unsigned_abs());
            }
            let expires_at: i64 =
                row.try_get("expires_at").map_err(ControlError::database(doing))?;
            let committed: bool =
                row.try_get("committed").map_err(ControlError::database(doing))?;
            let is_beyond = committed && size > self.settings.reuse_size_max;
            if expires_at <= self.clock.now() || is_beyond {
                over.insert(id);
            }
        }
        for id in &over {
            let mut transaction = self.db.begin().await.map_err(ControlError::database(doing))?;
            for statement in [
                "DELETE FROM source_packs WHERE source = $1",
                "DELETE FROM listed_sources WHERE id = $1",
            ] {
                let statement = sqlx::query(statement).bind(id);
                statement
                    .execute(&mut *transaction)
                    .await
                    .map_err(ControlError::database(doing))?;
            }
            transaction.commit().await.map_err(ControlError::database(doing))?;
            self.catalog.release_leases(&lease_owner(id)).await?;
        }
        Ok(over.len() as u64)
    }
}

/// The packs from which files are used again.
fn reused_packs(files: &[ListedFile], packs: &Packs) -> HashSet<Digest> {
    let mut used: HashMap<&Digest, u64> = HashMap::new();
    for file in files {
        if let Some(pack) = file.find(packs) {
            *used.entry(pack).or_default() += file.size;
        }
    }
    let allowed = SMALL_PACKS_MAX + used.values().sum::<u64>() / USUAL_PACK_SIZE;
    let mut used: Vec<(&Digest, u64)> = used.into_iter().collect();
    used.sort_unstable_by(|a, b| (b.1, a.0).cmp(&(a.1, b.0)));
    if used.len() as u64 > allowed {
        // Half of them, so that it is not one more with every upload.
        used.truncate(used.len() / 2);
    }
    used.into_iter().map(|(pack, _)| pack.clone()).collect()
}

/// The files that are in no pack that is used again, each content once.
fn missing(files: &[ListedFile], packs: &Packs, reused: &HashSet<Digest>) -> Vec<(u64, u64)> {
    let is_missing =
        |file: &ListedFile| !file.find(packs).is_some_and(|pack| reused.contains(pack));
    let mut missing: Vec<usize> =
        (0..files.len()).filter(|number| is_missing(&files[*number])).collect();
    missing.sort_unstable_by_key(|number| (files[*number].sha256, *number));
    missing.dedup_by_key(|number| files[*number].sha256);
    missing.sort_unstable();
    let mut rows: Vec<(u64, u64)> = Vec::new();
    for number in missing {
        let number = number as u64;
        match rows.last_mut() {
            Some((first, count)) if *first + *count == number => *count += 1,
            _ => rows.push((number, 1)),
        }
    }
    rows
}

fn add_pack_row<'q>(
    source: &'q str,
    pack: &'q Digest,
    size: u64,
) -> sqlx::query::Query<'q, sqlx::Sqlite, sqlx::sqlite::SqliteArguments> {
    sqlx::query(
        "INSERT INTO source_packs (source, pack, size) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
    )
    .bind(source)
    .bind(pack.as_str())
    .bind(i64::try_from(size).unwrap_or(i64::MAX))
}

fn no_source() -> ControlError {
    ControlError::NotFound { what: "this source, or some of its files,".into() }
}

fn relative_path(id: &str) -> String {
    format!("source/{id}.list")
}

pub(super) fn source_id(location: &str) -> Option<&str> {
    location.strip_prefix("source/")?.strip_suffix(".list").filter(|id| is_id(id))
}

fn parsed(digest: &str) -> Result<Digest> {
    let damaged = ControlError::database("read a digest, which is damaged");
    digest.parse().map_err(|error: oci::DigestError| damaged(sqlx::Error::Decode(error.into())))
}

/// Reads within a bound, and writes what it has read.
struct Copied<R, W> {
    from: R,
    to: W,
    left: u64,
}

impl<R: Read, W: Write> Read for Copied<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or(io::ErrorKind::QuotaExceeded)?;
        self.to.write_all(&buffer[..read])?;
        Ok(read)
    }
}

fn list_error(error: ListError, size_max: u64) -> ControlError {
    match error {
        ListError::Io(error) if error.kind() == io::ErrorKind::QuotaExceeded => {
            ControlError::TooLarge { what: "the context's list".into(), max: size_max }
        }
        ListError::Io(error) => body_error(error),
        ListError::Store(error) => error.into(),
        error => ControlError::Invalid { hint: error.hint(), message: error.to_string() },
    }
}

fn pack_error(error: PackError) -> ControlError {
    match error {
        PackError::Io(error) => body_error(error),
        // The file has changed since it was listed.
        PackError::WrongDigest { .. } => ControlError::Conflict { message: error.to_string() },
        PackError::TooLarge { max } => {
            ControlError::TooLarge { what: "what a pack holds".into(), max }
        }
        error => ControlError::Invalid { message: error.to_string(), hint: None },
    }
}

/// Reading a body failed, or storing it.
fn body_error(error: io::Error) -> ControlError {
    match error.downcast::<StoreError>() {
        Ok(error) => error.into(),
        // What came is no archive.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::InvalidData) => {
            ControlError::Invalid { message: error.to_string(), hint: None }
        }
        Err(source) => ControlError::BrokenOff {
            source,
            hint: "send the list again, with this source as base",
        },
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ControlError::Io {
        doing: "finish an upload".into(),
        source: io::Error::other(error),
    })
}
