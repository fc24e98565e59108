//! Build contexts that clients upload before they queue a run.
//!
//! An address is given out, a tar archive is put there once, and `relative_path` names it
//! in the request of a run. The bytes are a blob, kept by a lease until the address expires
//! and from then on by the runs that use it. [`listed`] is the way by which only files travel
//! that are not there yet.

mod listed;

pub use listed::ListedSource;

use std::time::Duration;

use bytes::Bytes;
use db::Db;
use engine::ContextLimits;
use futures_util::{Stream, StreamExt};
use oci::{Algorithm, Digest, RegistryName};
use store::{Catalog, Millis};

use crate::{Clock, ContextSource, ControlError, Result, table};

const SCHEMA: &[&str] = &[
    "CREATE TABLE sources (
        id TEXT NOT NULL PRIMARY KEY,
        registry TEXT NOT NULL,
        signature TEXT NOT NULL,
        expires_at BIGINT NOT NULL,
        begun BOOLEAN NOT NULL,
        digest TEXT
    )",
    "CREATE INDEX sources_by_expiry ON sources (expires_at)",
    // `base`: the source that this one was made from. `committed`: all of its files are there.
    "CREATE TABLE listed_sources (
        id TEXT NOT NULL PRIMARY KEY,
        registry TEXT NOT NULL,
        list TEXT NOT NULL,
        base TEXT,
        committed BOOLEAN NOT NULL,
        expires_at BIGINT NOT NULL
    )",
    "CREATE INDEX listed_sources_by_expiry ON listed_sources (expires_at)",
    "CREATE TABLE source_packs (
        source TEXT NOT NULL,
        pack TEXT NOT NULL,
        size BIGINT NOT NULL,
        PRIMARY KEY (source, pack)
    )",
];

/// Addresses that may be open at once; each is a row, and clients may ask without end.
const OPEN_MAX: i64 = 10_000;
/// Nobody uploads a context for longer.
const UPLOAD_TIME_MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone)]
pub struct SourceSettings {
    /// Bytes of one upload.
    pub size_max: u64,
    /// How long an address is valid.
    pub keep: Duration,
    /// How long the files of a context are kept after it was last used, for its next upload.
    pub reuse_keep: Duration,
    /// Bytes of all files that are kept so.
    pub reuse_size_max: u64,
    pub context: ContextLimits,
}

/// An address to upload to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSource {
    pub id: String,
    /// Whoever has it may upload, once.
    pub signature: String,
    /// Names the upload in a run's request.
    pub relative_path: String,
}

/// Uploaded sources. Cheap to clone.
#[derive(Clone)]
pub struct Sources {
    db: Db,
    catalog: Catalog,
    clock: Clock,
    settings: SourceSettings,
}

impl Sources {
    pub async fn open(
        db: Db,
        catalog: Catalog,
        clock: Clock,
        settings: SourceSettings,
    ) -> Result<Self> {
        let failed = "prepare the table of sources";
        db.migrate("sources", SCHEMA).await.map_err(ControlError::database(failed))?;
        Ok(Self { db, catalog, clock, settings })
    }

    /// Gives out an address, valid for a while and for one upload.
    pub async fn create(&self, registry: &RegistryName) -> Result<NewSource> {
        let failed = "give out an upload address";
        self.check_room("SELECT COUNT(*) FROM sources").await?;
        let id = uuid::Uuid::new_v4().simple().to_string();
        let signature = uuid::Uuid::new_v4().simple().to_string();
        let statement = sqlx::query(
            "INSERT INTO sources (id, registry, signature, expires_at, begun)
             VALUES ($1, $2, $3, $4, FALSE)",
        )
        .bind(&id)
        .bind(registry.as_str())
        .bind(fingerprint(&signature))
        .bind(self.expiry());
        table::execute(&self.db, failed, statement).await?;
        let relative_path = relative_path(&id);
        Ok(NewSource { id, signature, relative_path })
    }

    /// Refuses more than so many rows; `count` counts them.
    async fn check_room(&self, count: &'static str) -> Result<()> {
        let open: i64 = sqlx::query_scalar(count)
            .fetch_one(self.db.reads())
            .await
            .map_err(ControlError::database("count uploads"))?;
        match open < OPEN_MAX {
            true => Ok(()),
            false => Err(ControlError::Conflict {
                message: "too many upload addresses are open; some expire within the hour".into(),
            }),
        }
    }

    /// Takes the bytes for an address. The address is used up by the first attempt: a
    /// broken upload asks for a new one.
    pub async fn upload(
        &self,
        registry: &RegistryName,
        id: &str,
        signature: &str,
        announced: Option<u64>,
        body: impl Stream<Item = Result<Bytes, std::io::Error>> + Send,
    ) -> Result<Digest> {
        self.check_size(announced.unwrap_or(0))?;
        self.begin(registry, id, signature).await?;
        let mut upload = self.catalog.blobs().begin_upload(Algorithm::Sha256).await?;
        let mut size = 0u64;
        let mut body = std::pin::pin!(body);
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|source| ControlError::BrokenOff {
                source,
                hint: "ask for a new upload address and try again",
            })?;
            size += chunk.len() as u64;
            self.check_size(size)?;
            upload.write(chunk).await?;
        }
        let stored = upload.commit(None).await?;
        self.catalog.lease_blob(&lease_owner(id), &stored.digest, self.settings.keep).await?;
        let statement =
            sqlx::query("UPDATE sources SET digest = $2, expires_at = $3 WHERE id = $1")
                .bind(id)
                .bind(stored.digest.to_string())
                .bind(self.expiry());
        match table::execute(&self.db, "note an upload", statement).await? {
            1 => Ok(stored.digest),
            _ => Err(ControlError::NotFound { what: "the address of this upload any more".into() }),
        }
    }

    fn check_size(&self, size: u64) -> Result<()> {
        match size <= self.settings.size_max {
            true => Ok(()),
            false => Err(ControlError::TooLarge {
                what: "the build context".into(),
                max: self.settings.size_max,
            }),
        }
    }

    /// Uses an address up; one statement, so that of two uploads one gets it.
    async fn begin(&self, registry: &RegistryName, id: &str, signature: &str) -> Result<()> {
        let statement = sqlx::query(
            "UPDATE sources SET begun = TRUE
             WHERE id = $1 AND registry = $2 AND signature = $3 AND expires_at > $4 AND NOT begun",
        )
        .bind(id)
        .bind(registry.as_str())
        .bind(fingerprint(signature))
        .bind(self.clock.now());
        match table::execute(&self.db, "begin an upload", statement).await? {
            1 => Ok(()),
            _ => Err(ControlError::NotFound {
                what: "an open upload at this address (it is valid once, and for a while)".into(),
            }),
        }
    }

    /// The upload that a request's `sourceLocation` names.
    pub async fn resolve(&self, registry: &RegistryName, location: &str) -> Result<ContextSource> {
        let unknown = || ControlError::Invalid {
            message: format!("there is no uploaded source `{}`", quoted(location)),
            hint: Some("upload it first: `POST .../listBuildSourceUploadUrl`, then `PUT`".into()),
        };
        if let Some(id) = listed::source_id(location) {
            return self.resolve_listed(registry, id).await?.ok_or_else(unknown);
        }
        let id = source_id(location).ok_or_else(unknown)?;
        let digest: Option<Option<String>> = sqlx::query_scalar(
            "SELECT digest FROM sources WHERE id = $1 AND registry = $2 AND expires_at > $3",
        )
        .bind(id)
        .bind(registry.as_str())
        .bind(self.clock.now())
        .fetch_optional(self.db.reads())
        .await
        .map_err(ControlError::database("look up an upload"))?;
        let digest = digest.flatten().and_then(|digest| digest.parse().ok());
        digest.map(ContextSource::Upload).ok_or_else(unknown)
    }

    /// Forgets addresses that have expired; their leases expire by themselves. An upload under
    /// way keeps its address for a day.
    pub async fn sweep(&self) -> Result<u64> {
        let listed = self.sweep_listed().await?;
        let now = self.clock.now();
        let statement = sqlx::query(
            "DELETE FROM sources WHERE expires_at <= $1
                AND (NOT begun OR digest IS NOT NULL OR expires_at <= $2)",
        )
        .bind(now)
        .bind(now.saturating_sub_unsigned(UPLOAD_TIME_MAX.as_millis() as u64));
        Ok(listed + table::execute(&self.db, "forget old uploads", statement).await?)
    }

    fn expiry(&self) -> Millis {
        self.after(self.settings.keep)
    }

    fn after(&self, time: Duration) -> Millis {
        self.clock.now().saturating_add_unsigned(time.as_millis() as u64)
    }
}

fn relative_path(id: &str) -> String {
    format!("source/{id}.tar.gz")
}

fn source_id(location: &str) -> Option<&str> {
    location.strip_prefix("source/")?.strip_suffix(".tar.gz").filter(|id| is_id(id))
}

fn is_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn lease_owner(id: &str) -> String {
    format!("source/{id}")
}

/// A signature as it is kept: random, so a plain digest hides it.
fn fingerprint(signature: &str) -> String {
    Digest::of(signature.as_bytes()).to_string()
}

/// A piece of the user's text, short enough for a message.
fn quoted(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("settings", &self.settings).finish_non_exhaustive()
    }
}
