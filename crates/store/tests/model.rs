//! Random operations against a simple model: tags, their journal, and what collection may
//! and must delete.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use oci::{
    Algorithm, Descriptor, Digest, ImageManifest, Manifest, RegistryName, RepositoryName, Tag,
    media_type,
};
use proptest::prelude::*;
use store::{
    Catalog, Cause, Expected, GcOptions, ManifestRef, MemoryStore, NewManifest, PoliciesChange,
    SoftDeleteChange, StoreError, ToRestore,
};

/// Few names of everything, so that operations meet.
#[derive(Debug, Clone)]
enum Operation {
    /// An image of one config and some layers, under a tag.
    Push {
        repository: u8,
        tag: u8,
        config: u8,
        layers: Vec<u8>,
    },
    /// The nth manifest of a repository goes, with its tags.
    Delete {
        repository: u8,
        nth: u8,
    },
    /// The nth manifest gets the tag, if the tag is (not) there already.
    Move {
        repository: u8,
        tag: u8,
        nth: u8,
        absent: bool,
    },
    Untag {
        repository: u8,
        tag: u8,
    },
    Lease {
        owner: u8,
        layer: u8,
    },
    Release {
        owner: u8,
    },
    Loose {
        layer: u8,
    },
    Collect,
    /// Whether what is deleted from now on can be restored.
    SoftDelete(bool),
    /// The nth deleted tag of a repository, of those that can be restored.
    RestoreTag {
        repository: u8,
        nth: u8,
        force: bool,
    },
    RestoreManifest {
        repository: u8,
        nth: u8,
    },
    /// What could be restored cannot any more.
    Expire,
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    let layers = prop::collection::vec(0..5u8, 0..3);
    prop_oneof![
        4 => (0..2u8, 0..3u8, 0..3u8, layers).prop_map(|(repository, tag, config, layers)|
            Push { repository, tag, config, layers }),
        2 => (0..2u8, 0..4u8).prop_map(|(repository, nth)| Delete { repository, nth }),
        2 => (0..2u8, 0..3u8, 0..4u8, any::<bool>()).prop_map(|(repository, tag, nth, absent)|
            Move { repository, tag, nth, absent }),
        1 => (0..2u8, 0..3u8).prop_map(|(repository, tag)| Untag { repository, tag }),
        1 => (0..2u8, 0..5u8).prop_map(|(owner, layer)| Lease { owner, layer }),
        1 => (0..2u8).prop_map(|owner| Release { owner }),
        1 => (0..5u8).prop_map(|layer| Loose { layer }),
        2 => Just(Collect),
        2 => any::<bool>().prop_map(SoftDelete),
        2 => (0..2u8, 0..4u8, any::<bool>()).prop_map(|(repository, nth, force)|
            RestoreTag { repository, nth, force }),
        1 => (0..2u8, 0..4u8).prop_map(|(repository, nth)| RestoreManifest { repository, nth }),
        1 => Just(Expire),
    ]
}

#[derive(Default)]
struct Model {
    /// Manifests of repositories, and the blobs each needs.
    manifests: BTreeMap<(u8, Digest), BTreeSet<Digest>>,
    tags: BTreeMap<(u8, u8), Digest>,
    is_soft: bool,
    /// What can be restored, as above.
    deleted: BTreeMap<(u8, Digest), BTreeSet<Digest>>,
    deleted_tags: BTreeSet<(u8, u8, Digest)>,
    journal: Vec<(u8, u8, Option<Digest>, Option<Digest>)>,
    leases: BTreeSet<(u8, Digest)>,
    /// Everything that was ever stored, and whether it still is.
    stored: BTreeMap<Digest, bool>,
}

impl Model {
    fn set_tag(&mut self, repository: u8, tag: u8, new: Option<&Digest>) {
        let old = match new {
            Some(new) => self.tags.insert((repository, tag), new.clone()),
            None => self.tags.remove(&(repository, tag)),
        };
        if old.as_ref() != new {
            self.journal.push((repository, tag, old.clone(), new.cloned()));
        }
        match (new, old) {
            (Some(new), _) => drop(self.deleted_tags.remove(&(repository, tag, new.clone()))),
            (None, Some(old)) if self.is_soft => {
                self.deleted_tags.insert((repository, tag, old));
            }
            _ => (),
        }
    }

    fn delete(&mut self, repository: u8, digest: Digest) {
        for tag in 0..3 {
            if self.tags.get(&(repository, tag)) == Some(&digest) {
                self.set_tag(repository, tag, None);
            }
        }
        let Some(needs) = self.manifests.remove(&(repository, digest.clone())) else { return };
        match self.is_soft {
            true => drop(self.deleted.insert((repository, digest), needs)),
            false => self.deleted_tags.retain(|(of, _, at)| (*of, at) != (repository, &digest)),
        }
    }

    /// Says whether there was something to restore.
    fn restore(&mut self, repository: u8, digest: &Digest) -> bool {
        let key = (repository, digest.clone());
        let needs = self.deleted.remove(&key);
        let was_deleted = needs.is_some();
        self.manifests.extend(needs.map(|needs| (key, needs)));
        was_deleted
    }

    fn nth(&self, repository: u8, nth: u8) -> Option<Digest> {
        let mut own = self.manifests.keys().filter(|(of, _)| *of == repository);
        own.nth(nth.into()).map(|(_, digest)| digest.clone())
    }

    fn is_reachable(&self, digest: &Digest) -> bool {
        let mut all = self.manifests.iter().chain(&self.deleted);
        all.any(|((_, own), needs)| own == digest || needs.contains(digest))
            || self.leases.iter().any(|(_, leased)| leased == digest)
    }
}

struct World {
    catalog: Catalog,
    model: Model,
}

fn registry() -> RegistryName {
    RegistryName::default()
}

fn repository(number: u8) -> RepositoryName {
    format!("app{number}").parse().unwrap()
}

fn tag(number: u8) -> Tag {
    format!("v{number}").parse().unwrap()
}

fn cause() -> Cause {
    Cause::Build { run: "one".to_owned() }
}

fn layer(number: u8) -> Vec<u8> {
    format!("layer {number}").into_bytes()
}

impl World {
    async fn new() -> Self {
        let db = db::Db::in_memory().await.unwrap();
        let blobs = Arc::new(MemoryStore::open(db.clone()).await.unwrap());
        Self { catalog: Catalog::open(db, blobs).await.unwrap(), model: Model::default() }
    }

    async fn put(&mut self, bytes: &[u8]) -> Digest {
        let mut upload = self.catalog.blobs().begin_upload(Algorithm::Sha256).await.unwrap();
        upload.write(Bytes::copy_from_slice(bytes)).await.unwrap();
        let digest = upload.commit(None).await.unwrap().digest;
        self.model.stored.insert(digest.clone(), true);
        digest
    }

    async fn apply(&mut self, operation: Operation) {
        let catalog = self.catalog.clone();
        match operation {
            Operation::Push { repository, tag, config, layers } => {
                self.push(repository, tag, config, &layers).await;
            }
            Operation::Delete { repository: name, nth } => {
                let Some(digest) = self.model.nth(name, nth) else { return };
                let repository = repository(name);
                let deleted =
                    catalog.delete_manifest(&registry(), &repository, &digest, &cause()).await;
                // The journal's order within one deletion is that of the names.
                let tags: Vec<u8> = (0..3)
                    .filter(|tag| self.model.tags.get(&(name, *tag)) == Some(&digest))
                    .collect();
                assert_eq!(deleted.unwrap().tags, tags.len() as u64);
                self.model.delete(name, digest);
            }
            Operation::Move { repository: name, tag: number, nth, absent } => {
                let Some(digest) = self.model.nth(name, nth) else { return };
                let (repository, tag) = (repository(name), tag(number));
                let expected = if absent { Expected::Absent } else { Expected::Any };
                let (registry, cause) = (registry(), cause());
                let moved = catalog.move_tag(
                    &registry,
                    &repository,
                    &tag,
                    &expected,
                    Some(&digest),
                    &cause,
                );
                let may = !absent || !self.model.tags.contains_key(&(name, number));
                assert_eq!(moved.await.is_ok(), may);
                if may {
                    self.model.set_tag(name, number, Some(&digest));
                }
            }
            Operation::Untag { repository: name, tag: number } => {
                let (repository, tag) = (repository(name), tag(number));
                let untagged = catalog
                    .move_tag(&registry(), &repository, &tag, &Expected::Any, None, &cause())
                    .await;
                assert_eq!(untagged.is_ok(), self.model.tags.contains_key(&(name, number)));
                self.model.set_tag(name, number, None);
            }
            Operation::Lease { owner, layer: number } => {
                let digest = Digest::of(&layer(number));
                let keep = Duration::from_secs(3600);
                let leased = catalog.lease_blob(&owner.to_string(), &digest, keep).await;
                let stored = self.model.stored.get(&digest) == Some(&true);
                assert_eq!(leased.is_ok(), stored);
                if stored {
                    self.model.leases.insert((owner, digest));
                }
            }
            Operation::Release { owner } => {
                catalog.release_leases(&owner.to_string()).await.unwrap();
                self.model.leases.retain(|(of, _)| *of != owner);
            }
            Operation::Loose { layer: number } => {
                self.put(&layer(number)).await;
            }
            Operation::Collect => self.collect().await,
            Operation::SoftDelete(enabled) => {
                let change = SoftDeleteChange { enabled: Some(enabled), days: None };
                let change = PoliciesChange { soft_delete: Some(change), retention: None };
                catalog.change_policies(&registry(), change).await.unwrap();
                self.model.is_soft = enabled;
            }
            Operation::RestoreTag { repository: name, nth, force } => {
                let mut own = self.model.deleted_tags.iter().filter(|(of, ..)| *of == name);
                let Some((_, number, digest)) = own.nth(nth.into()).cloned() else { return };
                let restored = self.restore(
                    name,
                    ToRestore::Tag { tag: tag(number), digest: Some(digest.clone()), force },
                );
                let restored = restored.await;
                let there = self.model.tags.get(&(name, number)).cloned();
                if there.is_some() && !force {
                    assert!(matches!(restored, Err(StoreError::TagExists { .. })), "{restored:?}");
                    return;
                }
                let with_manifest = self.model.restore(name, &digest);
                assert_eq!(restored.unwrap().with_manifest, with_manifest);
                self.model.set_tag(name, number, Some(&digest));
                if let Some(there) = there.filter(|_| self.model.is_soft) {
                    self.model.deleted_tags.insert((name, number, there));
                }
            }
            Operation::RestoreManifest { repository: name, nth } => {
                let mut own = self.model.deleted.keys().filter(|(of, _)| *of == name);
                let digest = own.nth(nth.into()).map(|(_, digest)| digest.clone());
                let digest = digest.unwrap_or_else(|| Digest::of(b"never deleted"));
                let restored = self.restore(name, ToRestore::Manifest(digest.clone())).await;
                assert_eq!(restored.is_ok(), self.model.restore(name, &digest));
            }
            Operation::Expire => {
                let at = 4_000_000_000_000;
                let removed = catalog.remove_deleted(at).await.unwrap();
                assert_eq!(removed.manifests, self.model.deleted.len() as u64);
                self.model.deleted.clear();
                self.model.deleted_tags.clear();
            }
        }
    }

    async fn restore(&self, name: u8, wanted: ToRestore) -> store::Result<store::Restored> {
        let cause = Cause::Restore { principal: "tester".to_owned() };
        self.catalog.restore(&registry(), &repository(name), &wanted, &cause).await
    }

    async fn push(&mut self, name: u8, number: u8, config: u8, layers: &[u8]) {
        let config = format!("{{\"config\":{config}}}").into_bytes();
        let layers: Vec<Vec<u8>> = layers.iter().map(|number| layer(*number)).collect();
        let mut needs = BTreeSet::new();
        for bytes in layers.iter().chain([&config]) {
            let digest = self.put(bytes).await;
            self.catalog.link_blob(&registry(), &repository(name), &digest).await.unwrap();
            needs.insert(digest);
        }
        let image = ImageManifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.to_owned()),
            artifact_type: None,
            config: Descriptor::of(media_type::OCI_CONFIG, &config),
            layers: layers.iter().map(|l| Descriptor::of(media_type::OCI_LAYER_TAR, l)).collect(),
            subject: None,
            annotations: BTreeMap::new(),
        };
        let bytes = Bytes::from(serde_json::to_vec(&image).unwrap());
        let digest = Digest::of(&bytes);
        let manifest = Manifest::Image(Box::new(image));
        let media_type = media_type::OCI_MANIFEST;
        let new = NewManifest { digest: &digest, media_type, bytes, manifest: &manifest };
        let tags = [(tag(number), Expected::Any)];
        let (registry, repository) = (registry(), repository(name));
        let put = self.catalog.put_manifest(&registry, &repository, new, &tags, &cause()).await;
        self.model.stored.insert(digest.clone(), true);
        if self.model.deleted.contains_key(&(name, digest.clone())) {
            assert!(matches!(put, Err(StoreError::SoftDeleted { .. })), "{put:?}");
            return;
        }
        put.unwrap();
        self.model.set_tag(name, number, Some(&digest));
        self.model.manifests.insert((name, digest), needs);
    }

    /// Without grace, collection deletes exactly what is unreachable.
    async fn collect(&mut self) {
        // It judges what is older than the millisecond it starts in.
        tokio::time::sleep(Duration::from_millis(2)).await;
        let options = GcOptions { dry_run: false, grace: Duration::ZERO, cache_size_max: u64::MAX };
        let dry = GcOptions { dry_run: true, ..options.clone() };
        let planned = self.catalog.collect_garbage(&dry).await.unwrap();
        let report = self.catalog.collect_garbage(&options).await.unwrap();
        assert_eq!(planned.blobs, report.blobs);
        let expected: BTreeSet<Digest> = self
            .model
            .stored
            .iter()
            .filter(|(digest, there)| **there && !self.model.is_reachable(digest))
            .map(|(digest, _)| digest.clone())
            .collect();
        let deleted: BTreeSet<Digest> = report.blobs.into_iter().map(|(d, _)| d).collect();
        assert_eq!(deleted, expected);
        for digest in expected {
            self.model.stored.insert(digest, false);
        }
    }

    async fn check(&self) {
        for (digest, there) in &self.model.stored {
            let size = self.catalog.blobs().size(digest).await.unwrap();
            assert_eq!(size.is_some(), *there, "{digest}");
        }
        let registry = registry();
        for name in 0..2 {
            for number in 0..3 {
                let reference = ManifestRef::Tag(tag(number));
                let found = self.catalog.manifest(&registry, &repository(name), &reference).await;
                let found = found.unwrap().map(|entry| entry.digest);
                assert_eq!(found.as_ref(), self.model.tags.get(&(name, number)));
            }
            for ((_, digest), needs) in
                self.model.manifests.iter().filter(|((of, _), _)| *of == name)
            {
                let reference = ManifestRef::Digest(digest.clone());
                let found = self.catalog.manifest(&registry, &repository(name), &reference).await;
                assert!(found.unwrap().is_some());
                for digest in needs {
                    let size = self.catalog.blob_size(&registry, &repository(name), digest).await;
                    assert!(size.unwrap().is_some(), "a manifest lost {digest}");
                }
            }
        }
        for name in 0..2 {
            let (repository, many) = (repository(name), 1000);
            let found =
                self.catalog.deleted_manifests(&registry, &repository, None, many).await.unwrap();
            let expected = self.model.deleted.keys().filter(|(of, _)| *of == name);
            let expected: Vec<_> = expected.map(|(_, digest)| digest.clone()).collect();
            assert_eq!(found.iter().map(|m| m.digest.clone()).collect::<Vec<_>>(), expected);
            for digest in expected {
                let by_digest = ManifestRef::Digest(digest);
                let found = self.catalog.manifest(&registry, &repository, &by_digest).await;
                assert!(found.unwrap().is_none(), "what is deleted is given out");
            }
            let found = self.catalog.deleted_tags(&registry, &repository, None, many).await;
            let found = found.unwrap().into_iter().map(|found| (found.tag, found.digest));
            let expected = self.model.deleted_tags.iter().filter(|(of, ..)| *of == name);
            let expected = expected.map(|(_, number, digest)| (tag(*number), digest.clone()));
            assert_eq!(found.collect::<BTreeSet<_>>(), expected.collect::<BTreeSet<_>>());
        }
        let moves = self.catalog.tag_moves(0, 10_000).await.unwrap();
        assert!(moves.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
        let told = moves.into_iter().map(|m| (m.repository, m.tag, m.old, m.new));
        let expected = self.model.journal.iter().cloned();
        let expected = expected.map(|(name, t, old, new)| (repository(name), tag(t), old, new));
        assert_eq!(told.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_catalog_behaves_like_its_model(operations in prop::collection::vec(operation(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for operation in operations {
                world.apply(operation).await;
                world.check().await;
            }
            world.collect().await;
            world.check().await;
        });
    }
}
