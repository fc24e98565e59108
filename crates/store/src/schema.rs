//! The catalog's tables, in SQL that SQLite and PostgreSQL share.

use crate::Result;

/// Applied in order, each once; never changed after a release, only added to.
const MIGRATIONS: [&str; 11] = [
    "
-- Bytes that exist, and where.
CREATE TABLE blobs (
    digest TEXT PRIMARY KEY,
    size BIGINT NOT NULL,
    location TEXT NOT NULL,
    stored_at BIGINT NOT NULL
);
-- Blobs taken off the list whose bytes are still to be removed.
CREATE TABLE unlisted_blobs (digest TEXT PRIMARY KEY);
-- Digests that may have become unreachable: what collection looks at, and nothing else.
CREATE TABLE gc_candidates (digest TEXT PRIMARY KEY, since BIGINT NOT NULL);

CREATE TABLE repository_blobs (
    registry TEXT NOT NULL,
    repository TEXT NOT NULL,
    digest TEXT NOT NULL REFERENCES blobs (digest),
    linked_at BIGINT NOT NULL,
    PRIMARY KEY (registry, repository, digest)
);
CREATE INDEX repository_blobs_digest ON repository_blobs (digest);

CREATE TABLE manifests (
    registry TEXT NOT NULL,
    repository TEXT NOT NULL,
    digest TEXT NOT NULL REFERENCES blobs (digest),
    media_type TEXT NOT NULL,
    size BIGINT NOT NULL,
    image_size BIGINT NOT NULL,
    artifact_type TEXT,
    config_media_type TEXT,
    subject TEXT,
    annotations TEXT NOT NULL,
    pushed_at BIGINT NOT NULL,
    PRIMARY KEY (registry, repository, digest)
);
CREATE INDEX manifests_digest ON manifests (digest);
CREATE INDEX manifests_subject ON manifests (registry, repository, subject);

-- What a manifest needs to be complete: `blob` or `manifest`.
CREATE TABLE manifest_references (
    registry TEXT NOT NULL,
    repository TEXT NOT NULL,
    manifest TEXT NOT NULL,
    target TEXT NOT NULL,
    kind TEXT NOT NULL,
    PRIMARY KEY (registry, repository, manifest, target)
);
CREATE INDEX manifest_references_target ON manifest_references (target);

-- Referrers whose subject was deleted: collected after the grace period, while those whose
-- subject never existed stay.
CREATE TABLE orphans (
    registry TEXT NOT NULL,
    repository TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (registry, repository, digest)
);

CREATE TABLE tags (
    registry TEXT NOT NULL,
    repository TEXT NOT NULL,
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (registry, repository, name)
);
CREATE INDEX tags_digest ON tags (registry, repository, digest);

-- The journal: every move of every tag, in order.
CREATE TABLE tag_moves (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    registry TEXT NOT NULL,
    repository TEXT NOT NULL,
    tag TEXT NOT NULL,
    old TEXT,
    new TEXT,
    cause TEXT NOT NULL,
    at BIGINT NOT NULL
);

CREATE TABLE uploads (
    id TEXT PRIMARY KEY,
    registry TEXT NOT NULL,
    repository TEXT NOT NULL,
    used_at BIGINT NOT NULL
);

CREATE TABLE leases (
    owner TEXT NOT NULL,
    digest TEXT NOT NULL REFERENCES blobs (digest),
    ends_at BIGINT NOT NULL,
    PRIMARY KEY (owner, digest)
);
CREATE INDEX leases_digest ON leases (digest);

CREATE TABLE build_records (
    registry TEXT NOT NULL,
    manifest TEXT NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (registry, manifest)
);

CREATE TABLE layer_indexes (
    layer TEXT PRIMARY KEY,
    path_index TEXT NOT NULL REFERENCES blobs (digest)
);
CREATE INDEX layer_indexes_index ON layer_indexes (path_index);

CREATE TABLE cache_entries (
    namespace TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    cost BIGINT NOT NULL,
    size BIGINT NOT NULL,
    used_at BIGINT NOT NULL,
    PRIMARY KEY (namespace, key)
);
CREATE TABLE cache_blobs (
    namespace TEXT NOT NULL,
    key TEXT NOT NULL,
    digest TEXT NOT NULL REFERENCES blobs (digest),
    PRIMARY KEY (namespace, key, digest)
);
CREATE INDEX cache_blobs_digest ON cache_blobs (digest);
",
    "
-- The one pass over stored content that is under way, or was the last.
CREATE TABLE scrub (
    id BIGINT PRIMARY KEY,
    number BIGINT NOT NULL,
    started_at BIGINT NOT NULL,
    finished_at BIGINT,
    rate BIGINT,
    position TEXT NOT NULL,
    blobs BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    damaged BIGINT NOT NULL
);
CREATE INDEX blobs_lost ON blobs (digest) WHERE location = 'lost';
",
    "
-- When the copy of another registry's manifest was last pulled. NULL: it was pushed here.
ALTER TABLE manifests ADD COLUMN used_at BIGINT;
CREATE INDEX manifests_used ON manifests (used_at) WHERE used_at IS NOT NULL;
",
    "
-- What the layer was found to unpack to when its index was made. NULL: not looked at yet.
ALTER TABLE layer_indexes ADD COLUMN diff_id TEXT;
",
    "
-- When it was pushed, tagged or untagged last.
ALTER TABLE manifests ADD COLUMN updated_at BIGINT NOT NULL DEFAULT 0;
UPDATE manifests SET updated_at = pushed_at;
UPDATE manifests SET updated_at = MAX(updated_at, moved.at) FROM (
    SELECT registry, repository, digest, MAX(at) AS at FROM (
        SELECT registry, repository, old AS digest, at FROM tag_moves WHERE old IS NOT NULL
        UNION ALL
        SELECT registry, repository, new AS digest, at FROM tag_moves WHERE new IS NOT NULL)
    GROUP BY registry, repository, digest) AS moved
WHERE manifests.registry = moved.registry AND manifests.repository = moved.repository
    AND manifests.digest = moved.digest;
-- In order of age, for those who delete what is old.
CREATE INDEX tags_updated ON tags (registry, repository, updated_at DESC, name);
CREATE INDEX manifests_updated ON manifests (registry, repository, updated_at DESC, digest);
",
    "
-- What the run came to that built it, once it has ended.
ALTER TABLE build_records ADD COLUMN run TEXT;
",
    "
-- What is locked: the sum of 1 against deletion, 2 against writing, 4 against reading, 8 against
-- being listed.
ALTER TABLE tags ADD COLUMN locked BIGINT NOT NULL DEFAULT 0;
ALTER TABLE manifests ADD COLUMN locked BIGINT NOT NULL DEFAULT 0;
-- Of repositories; most have no row.
CREATE TABLE repository_locks (
    registry TEXT NOT NULL,
    repository TEXT NOT NULL,
    locked BIGINT NOT NULL,
    PRIMARY KEY (registry, repository)
);
",
    "
-- What becomes of manifests without tags. Nothing, in a registry without a row.
CREATE TABLE retention_policies (
    registry TEXT PRIMARY KEY,
    enabled BIGINT NOT NULL,
    days BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
-- When a manifest goes that lost its last tag while that was wanted.
ALTER TABLE manifests ADD COLUMN due_at BIGINT;
CREATE INDEX manifests_due ON manifests (due_at) WHERE due_at IS NOT NULL;
",
    "
-- Whether what is deleted can be restored, and for how long. It cannot, in a registry without a row.
CREATE TABLE soft_delete_policies (
    registry TEXT PRIMARY KEY,
    enabled BIGINT NOT NULL,
    days BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
-- Deleted manifests that can be restored, as they were.
CREATE TABLE deleted_manifests (
    registry TEXT NOT NULL,
    repository TEXT NOT NULL,
    digest TEXT NOT NULL REFERENCES blobs (digest),
    media_type TEXT NOT NULL,
    size BIGINT NOT NULL,
    image_size BIGINT NOT NULL,
    artifact_type TEXT,
    config_media_type TEXT,
    subject TEXT,
    annotations TEXT NOT NULL,
    pushed_at BIGINT NOT NULL,
    locked BIGINT NOT NULL,
    deleted_at BIGINT NOT NULL,
    PRIMARY KEY (registry, repository, digest)
);
CREATE INDEX deleted_manifests_digest ON deleted_manifests (digest);
CREATE INDEX deleted_manifests_time ON deleted_manifests (registry, deleted_at);
-- What they need to be complete.
CREATE TABLE deleted_references (
    registry TEXT NOT NULL,
    repository TEXT NOT NULL,
    manifest TEXT NOT NULL,
    target TEXT NOT NULL,
    kind TEXT NOT NULL,
    PRIMARY KEY (registry, repository, manifest, target)
);
CREATE INDEX deleted_references_target ON deleted_references (target);
-- Removed tags that can be restored: of each, all that it pointed at when it was removed.
CREATE TABLE deleted_tags (
    registry TEXT NOT NULL,
    repository TEXT NOT NULL,
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    locked BIGINT NOT NULL,
    deleted_at BIGINT NOT NULL,
    PRIMARY KEY (registry, repository, name, digest)
);
CREATE INDEX deleted_tags_digest ON deleted_tags (registry, repository, digest);
CREATE INDEX deleted_tags_time ON deleted_tags (registry, deleted_at);
",
    "
CREATE INDEX tag_moves_by_tag ON tag_moves (registry, repository, tag, sequence);
",
    "
-- Registries of which manifests that come and go are written down.
CREATE TABLE content_followers (registry TEXT PRIMARY KEY);
-- Until those who follow have taken them.
CREATE TABLE content_changes (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    registry TEXT NOT NULL,
    repository TEXT NOT NULL,
    digest TEXT NOT NULL,
    media_type TEXT NOT NULL,
    size BIGINT NOT NULL,
    deed TEXT NOT NULL,
    tags TEXT NOT NULL,
    cause TEXT NOT NULL,
    at BIGINT NOT NULL
);
",
];

pub(crate) async fn migrate(db: &db::Db) -> Result<()> {
    Ok(db.migrate("store", &MIGRATIONS).await?)
}
