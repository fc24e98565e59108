//! Blobs that the store did not keep: nothing is built on them, and nothing that was built
//! cannot be pulled. [`Fixture::build_request`] reads every blob of what it built.

use oci::media_type;

use crate::support::*;

const DOCKERFILE: &str = "\
FROM registry.test/base AS one
COPY src /src
FROM registry.test/base
COPY --from=one /src/a /copied/
COPY b /b
";

async fn prepared() -> Fixture {
    let fixture = Fixture::with_base().await;
    fixture.write("src/a", "a");
    fixture.write("b", "b");
    fixture
}

#[tokio::test]
async fn a_damaged_layer_of_a_copy_is_copied_again() {
    let mut fixture = prepared().await;
    let request = fixture.request(DOCKERFILE);
    let first = fixture.build_request(&request).await.built;
    for damage in DAMAGES {
        let layer = &first.layers.last().unwrap().descriptor.digest;
        fixture.damage(layer, damage).await;
        fixture.restart().await;
        let run = fixture.build_request(&request).await;
        let cost = &run.built.cost;
        assert_eq!((cost.cache_misses, cost.cache_hits), (1, 2), "{damage:?}: {}", run.steps());
        // The same bytes again: images that were published with them can be pulled again.
        assert_eq!(run.built.descriptor, first.descriptor);
        assert!(fixture.is_whole(layer).await);
        let told = run.events.warnings();
        let is_late = damage == Damage::Flipped;
        assert_eq!(told.len(), usize::from(is_late), "{told:?}");
        assert!(told.iter().all(|text| text.contains(layer.as_str())), "{told:?}");
        assert_eq!(fixture.build_request(&request).await.built.cost.cache_misses, 0);
    }
}

#[tokio::test]
async fn a_layer_is_read_when_it_is_used_again_for_the_first_time() {
    let fixture = prepared().await;
    let request = fixture.request(DOCKERFILE);
    let first = fixture.build_request(&request).await.built;
    fixture.damage(&first.layers[2].descriptor.digest, Damage::Flipped).await;
    assert_eq!(fixture.build_request(&request).await.built.cost.cache_misses, 1);
}

#[tokio::test]
async fn a_layer_of_another_stage_that_is_damaged_is_noticed_when_it_is_read() {
    for damage in DAMAGES {
        let fixture = prepared().await;
        let mut request = fixture.request(DOCKERFILE);
        fixture.build_request(&request).await;
        let only_one = fixture.request("FROM registry.test/base AS one\nCOPY src /src");
        let one = fixture.build_request(&only_one).await.built;
        fixture.damage(&one.layers.last().unwrap().descriptor.digest, damage).await;
        fixture.forget_snapshots();
        request.no_cache_stages.insert("1".to_owned());
        let run = fixture.build_request(&request).await;
        assert_eq!(run.built.cost.cache_misses, 3, "{damage:?}: {}", run.steps());
        assert_eq!(fixture.files(&run.built).await.at("copied/a"), "644 0:0 \"a\"");
    }
}

#[tokio::test]
async fn a_damaged_base_of_the_own_registry_is_named() {
    let mut fixture = prepared().await;
    let request = fixture.request(DOCKERFILE);
    let first = fixture.build_request(&request).await.built;
    let layer = &first.layers[0].descriptor.digest;
    for damage in DAMAGES {
        fixture.damage(layer, damage).await;
        fixture.restart().await;
        let error = fixture.error(DOCKERFILE).await;
        let expected = format!(
            "error: image `registry.test/base` is damaged: the store has lost layer {layer} of it"
        );
        assert!(error.starts_with(&expected), "{damage:?}: {error}");
        assert!(error.ends_with("hint: push that image again, or build it again\n"), "{error}");
        // What the hint says helps.
        fixture.put_image("base", &base_files(), &[], media_type::OCI_LAYER_GZIP).await;
        assert_eq!(fixture.build_request(&request).await.built.cost.cache_misses, 0);
    }
}

#[tokio::test]
async fn a_base_that_is_damaged_where_only_unpacking_looks_is_named() {
    let fixture = prepared().await;
    let request = fixture.request("FROM registry.test/base\nCOPY --chown=app b /b");
    fixture.build_request(&request).await;
    let base = fixture.build("FROM registry.test/base").await.built;
    fixture.damage(&base.layers[0].descriptor.digest, Damage::Flipped).await;
    fixture.forget_snapshots();
    // The same process: the layer is trusted until a file is copied from it.
    let copy = |path: &str| format!("FROM scratch\nCOPY --from=registry.test/base {path} /c");
    let built = fixture.build(&copy("/etc/group")).await.built;
    assert!(fixture.files(&built).await.at("c").contains("staff"), "the index has that one");
    let error = fixture.error(&copy("/usr/lib/old")).await;
    assert!(error.contains("image `registry.test/base` is damaged"), "{error}");
}

#[tokio::test]
async fn a_damaged_image_config_or_manifest_is_named() {
    let fixture = Fixture::empty().await;
    let files = base_files();
    for damage in DAMAGES {
        let put = || fixture.put_image("base", &files, &[], media_type::OCI_LAYER_GZIP);
        let manifest = put().await;
        let built = fixture.build("FROM registry.test/base").await.built;
        assert_eq!(built.layers.len(), 1);
        let config = fixture.config_digest("base").await;
        fixture.damage(&config, damage).await;
        let error = fixture.error("FROM registry.test/base").await;
        assert!(error.contains(&format!("has lost image config {config}")), "{error}");
        put().await;
        fixture.damage(&manifest, damage).await;
        let error = fixture.error("FROM registry.test/base").await;
        assert!(error.contains(&format!("has lost manifest {manifest}")), "{error}");
    }
}

#[tokio::test]
async fn a_damaged_index_of_a_layer_is_made_again() {
    let mut fixture = prepared().await;
    let request = fixture.request(DOCKERFILE);
    let first = fixture.build_request(&request).await.built;
    for damage in DAMAGES {
        let layer = &first.layers[0].descriptor.digest;
        let index = fixture.catalog.read_layer(layer).await.unwrap().unwrap().index;
        fixture.damage(&index, damage).await;
        fixture.restart().await;
        assert_eq!(fixture.build_request(&request).await.built.cost.cache_misses, 0);
        assert!(fixture.is_whole(&index).await);
    }
}
