//! Caches of other servers.

use std::collections::BTreeMap;
use std::sync::Arc;

use builder::{Built, CacheImports, TrustDomain, cache_image};
use oci::{Digest, ImageIndex, Manifest, RegistryName, media_type};
use store::{Cause, Expected, NewManifest};

use crate::support::*;

/// Puts the cache of a build into another store, as `registry.test/cache`.
pub(crate) async fn put_cache(from: &Fixture, to: &Fixture, built: &Built, is_index: bool) {
    let image = cache_image(&built.results).expect("there are results");
    let (registry, repository) = (RegistryName::default(), "cache".parse().unwrap());
    let mut blobs = vec![image.config.to_vec()];
    for layer in &image.layers {
        blobs.push(read(&from.catalog, &layer.digest).await);
    }
    for blob in blobs {
        let digest = put(to.catalog.blobs(), &blob).await;
        to.catalog.link_blob(&registry, &repository, &digest).await.unwrap();
    }
    let bytes = match is_index {
        false => image.manifest,
        true => {
            let manifests = image.layers.into_iter().chain([image.config_descriptor]).collect();
            let index = ImageIndex {
                schema_version: 2,
                media_type: Some(media_type::OCI_INDEX.to_owned()),
                artifact_type: None,
                manifests,
                subject: None,
                annotations: BTreeMap::new(),
            };
            serde_json::to_vec(&index).unwrap().into()
        }
    };
    let manifest = Manifest::parse(&bytes, None).unwrap();
    let (digest, media_type) = (Digest::of(&bytes), manifest.media_type().to_owned());
    let new = NewManifest { digest: &digest, media_type: &media_type, bytes, manifest: &manifest };
    let tags = [(oci::Tag::latest(), Expected::Any)];
    let cause = Cause::Push { principal: "test".to_owned() };
    to.catalog.put_manifest(&registry, &repository, new, &tags, &cause).await.unwrap();
}

#[tokio::test]
async fn builds_of_all_domains_take_both_forms_of_a_cache() {
    let dockerfile = "FROM scratch\nCOPY x /\nWORKDIR /folder";
    let one = Fixture::empty().await;
    one.write("x", "x");
    let built = one.build(dockerfile).await.built;
    for domain in [TrustDomain::Trusted, TrustDomain::Untrusted("fork".to_owned())] {
        for is_index in [false, true] {
            let mut two = Fixture::empty().await;
            two.enter(&domain);
            two.write("x", "x");
            put_cache(&one, &two, &built, is_index).await;
            let mut request = two.request(dockerfile);
            let cache = format!("{HOST}/cache").parse().unwrap();
            request.imports = Arc::new(CacheImports::new([cache]));
            let run = two.build_request(&request).await;
            assert_eq!(run.events.warnings(), Vec::<String>::new());
            assert_eq!((run.built.cost.cache_hits, run.built.cost.cache_misses), (2, 0));
            assert_eq!(run.built.layers, built.layers);
            assert_eq!(run.built.results, built.results, "it can be handed on");
            // The own cache, of whatever domain, has none of it.
            assert_eq!(two.build(dockerfile).await.built.cost.cache_misses, 2);
        }
    }
}
