//! Manifests: what they need, who refers to them.

use bytes::Bytes;
use oci::{Descriptor, Digest, Manifest, RegistryName, RepositoryName, Tag};
use sqlx::{Row, SqliteConnection};
use tokio::io::AsyncReadExt;

use super::aged::is_needed;
use super::changes::Deed;
use super::repositories::{count, link};
use super::{Catalog, changes, hot, job, locks, parsed, retention, soft_delete, tags};
use crate::error::database;
use crate::model::{
    Attribute, Cause, ContentDeed, Deleted, Expected, ManifestEntry, ManifestInfo, ManifestRef,
    Millis, NewManifest, Referrer, Removal, Removed, Unneeded,
};
use crate::{Result, StoreError, gc, now};

/// A manifest as its row will be.
pub(super) struct NewRow {
    pub(super) registry: RegistryName,
    pub(super) repository: RepositoryName,
    pub(super) digest: Digest,
    media_type: String,
    size: i64,
    image_size: i64,
    artifact_type: Option<String>,
    config_media_type: Option<String>,
    subject: Option<Digest>,
    /// As JSON. Only lists of referrers show them, so without a subject there are none.
    annotations: String,
    /// Of a copy of another registry's: when it was last pulled.
    pub(super) used_at: Option<Millis>,
    /// Of a built image: how it was built. Its blobs are stored, and become the repository's.
    build_record: Option<String>,
    blobs: Vec<Digest>,
    manifests: Vec<Digest>,
}

impl NewRow {
    fn new(
        registry: &RegistryName,
        repository: &RepositoryName,
        new: &NewManifest<'_>,
        used_at: Option<Millis>,
    ) -> Self {
        let references = new.manifest.references();
        let digests = |list: &[Descriptor]| list.iter().map(|d| d.digest.clone()).collect();
        let config_media_type = match new.manifest {
            Manifest::Image(image) => Some(image.config.media_type.clone()),
            _ => None,
        };
        let annotations = match references.subject {
            Some(_) => serde_json::to_string(new.manifest.annotations()).unwrap_or_default(),
            None => "{}".to_owned(),
        };
        let image_size = references.blobs.iter().fold(0u64, |sum, d| sum.saturating_add(d.size));
        Self {
            registry: registry.clone(),
            repository: repository.clone(),
            digest: new.digest.clone(),
            media_type: new.media_type.to_owned(),
            size: i64::try_from(new.bytes.len()).unwrap_or(i64::MAX),
            image_size: i64::try_from(image_size).unwrap_or(i64::MAX),
            artifact_type: new.manifest.artifact_type().map(str::to_owned),
            config_media_type,
            annotations,
            used_at,
            build_record: None,
            blobs: digests(&references.blobs),
            manifests: digests(&references.manifests),
            subject: references.subject,
        }
    }
}

/// When a manifest is removed, of those that are there.
#[derive(Clone, Copy)]
pub(super) enum Condition {
    None,
    Unneeded(Unneeded),
    /// It was to go by then.
    Due(Millis),
}

impl Catalog {
    /// Stores a manifest and moves tags to it, all or nothing. Blobs and manifests it refers
    /// to must be in the repository (`MissingReference`); a subject need not. What an index
    /// lists may be either. What can be restored is not pushed (`SoftDeleted`). Idempotent.
    pub async fn put_manifest(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        new: NewManifest<'_>,
        tags: &[(Tag, Expected)],
        cause: &Cause,
    ) -> Result<()> {
        let row = NewRow::new(registry, repository, &new, None);
        self.put(row, new, tags, cause).await
    }

    /// As [`Self::put_manifest`], together with the build record of the manifest (architecture.md
    /// decision 1), as JSON: nobody sees the one without the other, and it lives as long as the
    /// manifest does in any repository of the registry. Its blobs need only be stored: they become
    /// the repository's with it, as by [`Self::link_blobs`].
    pub async fn put_built(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        new: NewManifest<'_>,
        record: &str,
        tags: &[(Tag, Expected)],
        cause: &Cause,
    ) -> Result<()> {
        let mut row = NewRow::new(registry, repository, &new, None);
        row.build_record = Some(record.to_owned());
        self.put(row, new, tags, cause).await
    }

    /// As [`Self::put_manifest`], for a copy of another registry's manifest that is used now.
    pub(super) async fn put_as_copy(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        new: NewManifest<'_>,
        tags: &[(Tag, Expected)],
        cause: &Cause,
    ) -> Result<()> {
        let row = NewRow::new(registry, repository, &new, Some(now()));
        self.put(row, new, tags, cause).await
    }

    async fn put(
        &self,
        row: NewRow,
        new: NewManifest<'_>,
        tags: &[(Tag, Expected)],
        cause: &Cause,
    ) -> Result<()> {
        // A builder stores what it has built; the bytes of others are a client's to send again.
        if row.build_record.is_none() || !self.blobs.verify(new.digest).await? {
            let mut upload = self.blobs.begin_upload(new.digest.algorithm()).await?;
            upload.write(new.bytes.clone()).await?;
            upload.commit(Some(new.digest)).await?;
        }
        let (moves, cause) = (tags.to_vec(), cause.clone());
        let tagged = tags.iter().map(|(tag, _)| tag);
        let keys = forgotten(&row.registry, &row.repository, new.digest, tagged);
        let has_moved = !tags.is_empty();
        let owned = row.registry.clone();
        let (name, digest) = (row.repository.clone(), new.digest.clone());
        self.write_then(
            move |connection| {
                Box::pin(async move {
                    let retyped = retyped_tags(connection, &row).await?;
                    if row.build_record.is_some() {
                        let (registry, repository) =
                            (row.registry.as_str(), row.repository.as_str());
                        link(connection, registry, repository, &row.blobs).await?;
                    }
                    insert(connection, &row).await?;
                    write_build_record(connection, &row).await?;
                    for (tag, expected) in &moves {
                        let to = Some(&row.digest);
                        let (registry, repository) = (&row.registry, &row.repository);
                        tags::check(connection, registry, repository, tag, expected).await?;
                        tags::write(connection, registry, repository, tag, to, &cause).await?;
                    }
                    let tags: Vec<Tag> = moves.into_iter().map(|(tag, _)| tag).collect();
                    let deed = Deed { kind: ContentDeed::Pushed, tags: &tags, cause: &cause };
                    let (repository, digest) = (&row.repository, row.digest.as_str());
                    changes::note(connection, &row.registry, repository, digest, &deed).await?;
                    Ok(retyped)
                })
            },
            move |catalog, retyped: &Vec<Tag>| {
                let retyped = forgotten(&owned, &name, &digest, retyped.iter());
                keys.iter().chain(&retyped).for_each(|key| catalog.hot.forget(key));
                match has_moved {
                    true => catalog.announce(),
                    false => catalog.announce_change(),
                }
            },
        )
        .await
        .map(|_| ())
    }

    /// A manifest for whoever pulls it. `Locked` if it, its tag or its repository is not to be
    /// read.
    pub async fn manifest(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<Option<ManifestEntry>> {
        let key = (registry.clone(), repository.clone(), reference.clone());
        let before = match self.hot.get(&key) {
            Ok(entry) => return Ok(Some(entry)),
            Err(before) => before,
        };
        self.require_readable(registry, repository, Some(reference)).await?;
        let Some(entry) = self.stored_manifest(registry, repository, reference).await? else {
            return Ok(None);
        };
        if let ManifestRef::Tag(_) = reference {
            let own = ManifestRef::Digest(entry.digest.clone());
            self.require_readable(registry, repository, Some(&own)).await?;
        }
        self.hot.remember(key, entry.clone(), before);
        Ok(Some(entry))
    }

    /// As [`Self::manifest`], for those who keep house: whatever its attributes are.
    pub async fn stored_manifest(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<Option<ManifestEntry>> {
        let Some((digest, media_type)) = self.look_up(registry, repository, reference).await?
        else {
            return Ok(None);
        };
        let bytes = self.read_manifest(&digest).await?;
        let size = bytes.len() as u64;
        Ok(Some(ManifestEntry { digest, media_type, size, bytes }))
    }

    /// The digest behind a reference, whatever its attributes are and whether or not its bytes are
    /// there.
    pub async fn digest_of(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<Option<Digest>> {
        Ok(self.look_up(registry, repository, reference).await?.map(|(digest, _)| digest))
    }

    /// Digest and media type.
    async fn look_up(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        reference: &ManifestRef,
    ) -> Result<Option<(Digest, String)>> {
        let row = match reference {
            ManifestRef::Digest(digest) => sqlx::query(
                "SELECT digest, media_type, size FROM manifests
                 WHERE registry = $1 AND repository = $2 AND digest = $3",
            )
            .bind(registry.as_str())
            .bind(repository.as_str())
            .bind(digest.as_str()),
            ManifestRef::Tag(tag) => sqlx::query(
                "SELECT digest, media_type, size FROM manifests
                 WHERE registry = $1 AND repository = $2 AND digest =
                   (SELECT digest FROM tags WHERE registry = $1 AND repository = $2 AND name = $3)",
            )
            .bind(registry.as_str())
            .bind(repository.as_str())
            .bind(tag.as_str()),
        };
        let failed = || database("look up a manifest");
        let row = row.fetch_optional(self.db.reads()).await.map_err(failed())?;
        let Some(row) = row else { return Ok(None) };
        let digest: Digest = parsed(row.try_get("digest").map_err(failed())?)?;
        Ok(Some((digest, row.try_get("media_type").map_err(failed())?)))
    }

    async fn read_manifest(&self, digest: &Digest) -> Result<Bytes> {
        let lost = || StoreError::NotFound { what: format!("manifest {digest}") };
        let reader = match self.blobs.open(digest, 0).await {
            Err(StoreError::NotFound { .. }) => return Err(lost()),
            result => result?,
        };
        let mut bytes = Vec::new();
        let limit = oci::MANIFEST_SIZE_MAX as u64;
        let read = reader.into_async().take(limit).read_to_end(&mut bytes).await;
        read.map_err(|source| StoreError::Io { doing: format!("read manifest {digest}"), source })?;
        if Digest::with(digest.algorithm(), &bytes) != *digest {
            // Noted as lost, so that the next push of it is not in vain.
            self.blobs.verify(digest).await?;
            return Err(lost());
        }
        Ok(bytes.into())
    }

    /// Manifests after `last` in order of their digests, at most `limit`, with their tags. None that
    /// are hidden.
    pub async fn manifests(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        last: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<ManifestInfo>> {
        let failed = || database("list manifests");
        let rows = sqlx::query(
            "SELECT digest, media_type, size, image_size, artifact_type, config_media_type, subject,
                pushed_at, updated_at, locked
             FROM manifests
             WHERE registry = $1 AND repository = $2 AND digest > $3 AND (locked & 8) = 0
             ORDER BY digest LIMIT $4",
        )
        .bind(registry.as_str())
        .bind(repository.as_str())
        .bind(last.map_or("", Digest::as_str))
        .bind(count(limit))
        .fetch_all(self.db.reads())
        .await
        .map_err(failed())?;
        self.with_tags(registry, repository, rows).await
    }

    /// One manifest, hidden or not.
    pub async fn manifest_info(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<ManifestInfo>> {
        let rows = sqlx::query(
            "SELECT digest, media_type, size, image_size, artifact_type, config_media_type, subject,
                pushed_at, updated_at, locked
             FROM manifests WHERE registry = $1 AND repository = $2 AND digest = $3",
        )
        .bind(registry.as_str())
        .bind(repository.as_str())
        .bind(digest.as_str())
        .fetch_all(self.db.reads())
        .await
        .map_err(database("look up a manifest"))?;
        Ok(self.with_tags(registry, repository, rows).await?.pop())
    }

    /// Rows of `manifests` as listings show them. Tags are looked up as in `aged`.
    pub(super) async fn with_tags(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        rows: Vec<sqlx::sqlite::SqliteRow>,
    ) -> Result<Vec<ManifestInfo>> {
        let failed = || database("list manifests");
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            let digest: String = row.try_get("digest").map_err(failed())?;
            let tags: Vec<(String, bool)> = sqlx::query_as(
                "SELECT name, (locked & 8) = 0 FROM tags
                 WHERE registry = $1 AND repository = $2 AND digest = $3 ORDER BY name || ''",
            )
            .bind(registry.as_str())
            .bind(repository.as_str())
            .bind(&digest)
            .fetch_all(self.db.reads())
            .await
            .map_err(failed())?;
            let subject: Option<String> = row.try_get("subject").map_err(failed())?;
            let size = |name: &str| row.try_get::<i64, _>(name).map_err(failed());
            found.push(ManifestInfo {
                digest: parsed(&digest)?,
                media_type: row.try_get("media_type").map_err(failed())?,
                size: size("size")? as u64,
                image_size: size("image_size")? as u64,
                artifact_type: row.try_get("artifact_type").map_err(failed())?,
                config_media_type: row.try_get("config_media_type").map_err(failed())?,
                subject: subject.as_deref().map(parsed).transpose()?,
                pushed_at: row.try_get("pushed_at").map_err(failed())?,
                updated_at: row.try_get("updated_at").map_err(failed())?,
                is_tagged: !tags.is_empty(),
                tags: tags
                    .iter()
                    .filter(|(_, is_listed)| *is_listed)
                    .map(|(tag, _)| parsed(tag))
                    .collect::<Result<_>>()?,
                attributes: locks::attributes(row.try_get("locked").map_err(failed())?),
            });
        }
        Ok(found)
    }

    /// The manifests that an index lists; none of a manifest that is no index, or is not there.
    pub async fn members(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        index: &Digest,
    ) -> Result<Vec<Digest>> {
        let rows: Vec<String> = sqlx::query_scalar(
            "SELECT target FROM manifest_references
             WHERE registry = $1 AND repository = $2 AND manifest = $3 AND kind = 'manifest'
             ORDER BY target",
        )
        .bind(registry.as_str())
        .bind(repository.as_str())
        .bind(index.as_str())
        .fetch_all(self.db.reads())
        .await
        .map_err(database("list the members of an index"))?;
        rows.iter().map(|digest| parsed(digest)).collect()
    }

    /// The indexes that list a manifest, in whatever repository; at most `limit`.
    pub async fn indexes_with(
        &self,
        registry: &RegistryName,
        digest: &Digest,
        limit: usize,
    ) -> Result<Vec<Digest>> {
        let rows: Vec<String> = sqlx::query_scalar(
            "SELECT DISTINCT manifest FROM manifest_references
             WHERE registry || '' = $1 AND target = $2 AND kind = 'manifest' LIMIT $3",
        )
        .bind(registry.as_str())
        .bind(digest.as_str())
        .bind(count(limit))
        .fetch_all(self.db.reads())
        .await
        .map_err(database("list the indexes with a manifest"))?;
        rows.iter().map(|digest| parsed(digest)).collect()
    }

    /// Removes a manifest and every tag that points at it. `NotFound` if there is none.
    pub async fn delete_manifest(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        digest: &Digest,
        cause: &Cause,
    ) -> Result<Deleted> {
        let deleted = self.delete_if(registry, repository, digest, Condition::None, cause).await?;
        let missing = || StoreError::NotFound { what: format!("manifest {digest}") };
        deleted.ok_or_else(missing)
    }

    /// Removes a manifest that is there, on a condition.
    pub(super) async fn delete_if(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        digest: &Digest,
        condition: Condition,
        cause: &Cause,
    ) -> Result<Option<Deleted>> {
        self.blobs.make_room().await?;
        let (owned, name, gone) = (registry.clone(), repository.clone(), digest.clone());
        let because = cause.clone();
        let job = job(move |connection| {
            Box::pin(async move {
                let failed = || database("delete a manifest");
                let found: Option<i64> = sqlx::query_scalar(
                    "SELECT 1 FROM manifests
                     WHERE registry = $1 AND repository = $2 AND digest = $3",
                )
                .bind(owned.as_str())
                .bind(name.as_str())
                .bind(gone.as_str())
                .fetch_optional(&mut *connection)
                .await
                .map_err(failed())?;
                if found.is_none() {
                    return Ok(None);
                }
                match condition {
                    Condition::None => (),
                    Condition::Unneeded(unneeded) => {
                        if is_needed(connection, &owned, &name, &gone, unneeded).await? {
                            return Ok(None);
                        }
                        if unneeded.even_locked {
                            let own = ManifestRef::Digest(gone.clone());
                            locks::lift(connection, &owned, &name, &own).await?;
                        }
                    }
                    Condition::Due(now) => {
                        if !retention::is_due(connection, &owned, &name, &gone, now).await? {
                            return Ok(None);
                        }
                        retention::note_members(connection, &owned, &name, &gone, now).await?;
                    }
                }
                let tags: Vec<String> = sqlx::query_scalar(
                    "SELECT name FROM tags
                     WHERE registry = $1 AND repository = $2 AND digest = $3 ORDER BY name || ''",
                )
                .bind(owned.as_str())
                .bind(name.as_str())
                .bind(gone.as_str())
                .fetch_all(&mut *connection)
                .await
                .map_err(failed())?;
                let tags: Vec<Tag> = tags.iter().map(|tag| parsed(tag)).collect::<Result<_>>()?;
                for tag in &tags {
                    super::tags::write(connection, &owned, &name, tag, None, &because).await?;
                }
                remove(connection, &owned, &name, gone.as_str(), &tags, &because).await?;
                Ok(Some(tags))
            })
        });
        let mut removal = Removal {
            registry: registry.clone(),
            repository: repository.clone(),
            what: Removed::Manifest(digest.clone()),
            tags: Vec::new(),
            cause: cause.clone(),
        };
        let gone = digest.clone();
        let tags = self.write_then(job, move |catalog, tags: &Option<Vec<Tag>>| {
            let Some(tags) = tags else { return };
            let keys = forgotten(&removal.registry, &removal.repository, &gone, tags.iter());
            keys.iter().for_each(|key| catalog.hot.forget(key));
            match tags.is_empty() {
                true => catalog.announce_change(),
                false => catalog.announce(),
            }
            removal.tags.clone_from(tags);
            catalog.tell(removal);
        });
        Ok(tags.await?.map(|tags| Deleted { manifests: 1, tags: tags.len() as u64 }))
    }

    /// Manifests whose subject is `subject`, after `last` in order of their digests, without those
    /// that are hidden; and the `last` of the next page if there is one. A page has at most `limit` entries, of
    /// manifests that together are no larger than one may be: their annotations are in memory.
    pub async fn referrers(
        &self,
        registry: &RegistryName,
        repository: &RepositoryName,
        subject: &Digest,
        artifact_type: Option<&str>,
        last: Option<&Digest>,
        limit: usize,
    ) -> Result<(Vec<Referrer>, Option<Digest>)> {
        // Digests first: a row with its annotations may be large, and sorting keeps rows.
        let failed = || database("list referrers");
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT digest, size FROM manifests
             WHERE registry = $1 AND repository = $2 AND subject = $3 AND digest > $4
               AND (locked & 8) = 0
               AND ($5 IS NULL OR artifact_type = $5) ORDER BY digest LIMIT $6",
        )
        .bind(registry.as_str())
        .bind(repository.as_str())
        .bind(subject.as_str())
        .bind(last.map_or("", Digest::as_str))
        .bind(artifact_type)
        .bind(count(limit + 1))
        .fetch_all(self.db.reads())
        .await
        .map_err(failed())?;
        let fitting = fitting(rows.iter().map(|(_, size)| *size as u64)).min(limit);
        let Some((end, _)) = rows.get(fitting.wrapping_sub(1)) else { return Ok((vec![], None)) };
        let page = sqlx::query(
            "SELECT digest, media_type, size, artifact_type, annotations FROM manifests
             WHERE registry = $1 AND repository = $2 AND subject = $3 AND digest > $4
               AND (locked & 8) = 0
               AND ($5 IS NULL OR artifact_type = $5) AND digest <= $6 ORDER BY digest LIMIT $7",
        )
        .bind(registry.as_str())
        .bind(repository.as_str())
        .bind(subject.as_str())
        .bind(last.map_or("", Digest::as_str))
        .bind(artifact_type)
        .bind(end)
        .bind(count(fitting))
        .fetch_all(self.db.reads())
        .await
        .map_err(failed())?;
        let referrer = |row: &sqlx::sqlite::SqliteRow| {
            let media_type: String = row.try_get("media_type").map_err(failed())?;
            let digest = parsed(row.try_get("digest").map_err(failed())?)?;
            let size: i64 = row.try_get("size").map_err(failed())?;
            let annotations: &str = row.try_get("annotations").map_err(failed())?;
            let mut descriptor = Descriptor::new(media_type, digest, size as u64);
            descriptor.artifact_type = row.try_get("artifact_type").map_err(failed())?;
            descriptor.annotations = serde_json::from_str(annotations).unwrap_or_default();
            Ok(Referrer { descriptor })
        };
        let found = page.iter().map(referrer).collect::<Result<Vec<_>>>()?;
        let next = (rows.len() > fitting).then(|| parsed(end)).transpose()?;
        Ok((found, next))
    }
}

/// What an entry of a list of referrers takes besides its annotations, at most.
const REFERRER_COST: u64 = 512;

/// How many manifests of these sizes go into one list of referrers: at least one, or a list
/// would never end.
fn fitting(sizes: impl Iterator<Item = u64>) -> usize {
    let mut left = oci::MANIFEST_SIZE_MAX as u64;
    let fits = sizes.take_while(|size| {
        let rest = left.checked_sub(size.saturating_add(REFERRER_COST));
        left = rest.unwrap_or(0);
        rest.is_some()
    });
    fits.count().max(1)
}

/// What may be remembered of a manifest and its tags.
pub(super) fn forgotten<'a>(
    registry: &RegistryName,
    repository: &RepositoryName,
    digest: &Digest,
    tags: impl Iterator<Item = &'a Tag>,
) -> Vec<hot::Key> {
    let references = tags.map(|tag| ManifestRef::Tag(tag.clone()));
    let digest = std::iter::once(ManifestRef::Digest(digest.clone()));
    let key = |reference| (registry.clone(), repository.clone(), reference);
    references.chain(digest).map(key).collect()
}

/// The tags of a manifest that is pushed again as another media type: they are served as that
/// from now on.
async fn retyped_tags(connection: &mut SqliteConnection, row: &NewRow) -> Result<Vec<Tag>> {
    let tags: Vec<String> = sqlx::query_scalar(
        "SELECT t.name FROM manifests m JOIN tags t
           ON t.registry = m.registry AND t.repository = m.repository AND t.digest = m.digest
         WHERE m.registry = $1 AND m.repository = $2 AND m.digest = $3 AND m.media_type <> $4",
    )
    .bind(row.registry.as_str())
    .bind(row.repository.as_str())
    .bind(row.digest.as_str())
    .bind(&row.media_type)
    .fetch_all(connection)
    .await
    .map_err(database("store a manifest"))?;
    tags.iter().map(|tag| parsed(tag)).collect()
}

async fn write_build_record(connection: &mut SqliteConnection, row: &NewRow) -> Result<()> {
    let Some(record) = &row.build_record else { return Ok(()) };
    sqlx::query(
        "INSERT INTO build_records (registry, manifest, record) VALUES ($1, $2, $3)
         ON CONFLICT (registry, manifest) DO UPDATE SET record = excluded.record, run = NULL",
    )
    .bind(row.registry.as_str())
    .bind(row.digest.as_str())
    .bind(record)
    .execute(connection)
    .await
    .map_err(database("keep a build record"))?;
    Ok(())
}

async fn insert(connection: &mut SqliteConnection, row: &NewRow) -> Result<()> {
    let failed = || database("store a manifest");
    let own = ManifestRef::Digest(row.digest.clone());
    let needed = [Attribute::WriteEnabled];
    locks::require(connection, &row.registry, &row.repository, Some(&own), &needed).await?;
    soft_delete::make_way(connection, row).await?;
    let (registry, repository) = (row.registry.as_str(), row.repository.as_str());
    let mut references = Vec::with_capacity(row.blobs.len() + row.manifests.len());
    for (digest, may_be_manifest) in row
        .blobs
        .iter()
        .map(|digest| (digest, false))
        .chain(row.manifests.iter().map(|digest| (digest, true)))
    {
        let kind = match may_be_manifest && has_manifest(connection, row, digest).await? {
            true => "manifest",
            // Build caches are indexes that list layers and a config, which are blobs.
            false if has_blob(connection, row, digest).await? => "blob",
            // The rest of a copy comes when somebody asks for it.
            false if row.used_at.is_some() && may_be_manifest => "manifest",
            false if row.used_at.is_some() => "blob",
            false => {
                soft_delete::refuse(connection, &row.registry, &row.repository, digest).await?;
                let (repository, digest) = (row.repository.clone(), digest.clone());
                return Err(StoreError::MissingReference { repository, digest });
            }
        };
        references.push((digest, kind));
    }
    // The bytes were stored a moment ago; were they collected since, this refuses.
    sqlx::query(
        "INSERT INTO manifests (registry, repository, digest, media_type, size, image_size,
            artifact_type, config_media_type, subject, annotations, pushed_at, updated_at, used_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11, $12)
         ON CONFLICT (registry, repository, digest) DO UPDATE
         SET media_type = excluded.media_type, used_at = excluded.used_at, due_at = NULL,
            updated_at = excluded.updated_at",
    )
    .bind(registry)
    .bind(repository)
    .bind(row.digest.as_str())
    .bind(&row.media_type)
    .bind(row.size)
    .bind(row.image_size)
    .bind(&row.artifact_type)
    .bind(&row.config_media_type)
    .bind(row.subject.as_ref().map(Digest::as_str))
    .bind(&row.annotations)
    .bind(now())
    .bind(row.used_at)
    .execute(&mut *connection)
    .await
    .map_err(failed())?;
    // Pushed anew, it stays like any referrer whose subject is not there.
    sqlx::query("DELETE FROM orphans WHERE registry = $1 AND repository = $2 AND digest = $3")
        .bind(registry)
        .bind(repository)
        .bind(row.digest.as_str())
        .execute(&mut *connection)
        .await
        .map_err(failed())?;
    for (digest, kind) in references {
        sqlx::query(
            "INSERT INTO manifest_references (registry, repository, manifest, target, kind)
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        )
        .bind(registry)
        .bind(repository)
        .bind(row.digest.as_str())
        .bind(digest.as_str())
        .bind(kind)
        .execute(&mut *connection)
        .await
        .map_err(failed())?;
    }
    Ok(())
}

async fn has_manifest(
    connection: &mut SqliteConnection,
    row: &NewRow,
    digest: &Digest,
) -> Result<bool> {
    let query = "SELECT 1 FROM manifests WHERE registry = $1 AND repository = $2 AND digest = $3";
    is_there(connection, query, row, digest).await
}

async fn has_blob(
    connection: &mut SqliteConnection,
    row: &NewRow,
    digest: &Digest,
) -> Result<bool> {
    let query = "SELECT 1 FROM repository_blobs JOIN blobs USING (digest)
         WHERE registry = $1 AND repository = $2 AND digest = $3 AND location <> 'lost'";
    is_there(connection, query, row, digest).await
}

async fn is_there(
    connection: &mut SqliteConnection,
    query: &'static str,
    row: &NewRow,
    digest: &Digest,
) -> Result<bool> {
    let found: Option<i64> = sqlx::query_scalar(query)
        .bind(row.registry.as_str())
        .bind(row.repository.as_str())
        .bind(digest.as_str())
        .fetch_optional(connection)
        .await
        .map_err(database("store a manifest"))?;
    Ok(found.is_some())
}

/// Removes a manifest's rows; what it referred to, its own bytes and its referrers become
/// candidates for collection. The one place that does, so that no lock is passed by and what can be
/// restored is kept. `tags` have gone with it.
pub(crate) async fn remove(
    connection: &mut SqliteConnection,
    registry: &RegistryName,
    repository: &RepositoryName,
    digest: &str,
    tags: &[Tag],
    cause: &Cause,
) -> Result<()> {
    let failed = || database("delete a manifest");
    let own = ManifestRef::Digest(parsed(digest)?);
    let needed = [Attribute::WriteEnabled, Attribute::DeleteEnabled];
    locks::require(connection, registry, repository, Some(&own), &needed).await?;
    let at = now();
    let touched: Vec<String> = sqlx::query_scalar(
        "SELECT target FROM manifest_references
           WHERE registry = $1 AND repository = $2 AND manifest = $3
         UNION SELECT digest FROM manifests
           WHERE registry = $1 AND repository = $2 AND (subject = $3 OR digest = $3)",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(digest)
    .fetch_all(&mut *connection)
    .await
    .map_err(failed())?;
    // Referrers of what is gone count as unreachable from now on (registry.md section 1):
    // the orphan mark tells them from those whose subject never existed.
    sqlx::query(
        "INSERT INTO orphans (registry, repository, digest)
         SELECT registry, repository, digest FROM manifests
         WHERE registry = $1 AND repository = $2 AND subject = $3 ON CONFLICT DO NOTHING",
    )
    .bind(registry.as_str())
    .bind(repository.as_str())
    .bind(digest)
    .execute(&mut *connection)
    .await
    .map_err(failed())?;
    let deed = Deed { kind: ContentDeed::Deleted, tags, cause };
    changes::note(connection, registry, repository, digest, &deed).await?;
    soft_delete::keep_manifest(connection, registry, repository, digest, at).await?;
    for query in [
        "DELETE FROM manifest_references WHERE registry = $1 AND repository = $2 AND manifest = $3",
        "DELETE FROM orphans WHERE registry = $1 AND repository = $2 AND digest = $3",
        "DELETE FROM manifests WHERE registry = $1 AND repository = $2 AND digest = $3",
    ] {
        sqlx::query(query)
            .bind(registry.as_str())
            .bind(repository.as_str())
            .bind(digest)
            .execute(&mut *connection)
            .await
            .map_err(failed())?;
    }
    for target in touched {
        gc::add_candidate(connection, &target, at).await?;
    }
    locks::forget_repository(connection, registry, repository).await
}
