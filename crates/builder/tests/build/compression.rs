//! How layers are compressed, and what that leaves as it is.

use builder::{BuildRequest, Built};
use oci::{Compression, CompressionFormat, Digest, media_type};

use crate::support::*;

const DOCKERFILE: &str = "FROM registry.test/base\nCOPY src /src\n";

fn compressed(fixture: &Fixture, format: CompressionFormat, level: u32) -> BuildRequest {
    let mut request = fixture.request(DOCKERFILE);
    request.compression = Compression { format, level };
    request
}

fn media_types(built: &Built) -> Vec<&str> {
    built.layers.iter().map(|layer| layer.descriptor.media_type.as_str()).collect()
}

fn diff_ids(built: &Built) -> Vec<&Digest> {
    built.layers.iter().map(|layer| &layer.diff_id).collect()
}

async fn prepared() -> Fixture {
    let fixture = Fixture::with_base().await;
    fixture.write("src/a", &"all work and no play ".repeat(1000));
    fixture
}

#[tokio::test]
async fn each_compression_is_a_result_of_its_own() {
    let fixture = prepared().await;
    let build = async |format, level| {
        fixture.build_request(&compressed(&fixture, format, level)).await.built
    };
    let gzip = build(CompressionFormat::Gzip, 6).await;
    for (format, level) in [
        (CompressionFormat::Gzip, 1),
        (CompressionFormat::Zstd, 3),
        (CompressionFormat::Zstd, 19),
        (CompressionFormat::Uncompressed, 0),
    ] {
        let built = build(format, level).await;
        assert_eq!((built.cost.cache_misses, built.cost.cache_hits), (1, 0), "{format} {level}");
        // The base stays as it was.
        assert_eq!(media_types(&built), [media_type::OCI_LAYER_GZIP, format.media_type()]);
        assert_eq!(built.layers[0], gzip.layers[0]);
        assert_eq!(diff_ids(&built), diff_ids(&gzip));
        let again = build(format, level).await;
        assert_eq!(again.cost.cache_misses, 0);
        assert_eq!(again.descriptor, built.descriptor);
    }
    assert_eq!(build(CompressionFormat::Gzip, 6).await.descriptor, gzip.descriptor);
}

#[tokio::test]
async fn base_layers_are_compressed_otherwise_by_force_and_once() {
    let fixture = prepared().await;
    let plain = fixture.build(DOCKERFILE).await.built;
    for format in [CompressionFormat::Zstd, CompressionFormat::Uncompressed] {
        let level = if format == CompressionFormat::Zstd { 3 } else { 0 };
        let mut request = compressed(&fixture, format, level);
        request.force_compression = true;
        let run = fixture.build_request(&request).await;
        assert_eq!(media_types(&run.built), [format.media_type(); 2]);
        assert_eq!(diff_ids(&run.built), diff_ids(&plain));
        assert!(run.events.render().contains("compress layer"), "{}", run.events.render());
        let again = fixture.build_request(&request).await.built;
        assert_eq!((again.cost.written, &again.descriptor), (0, &run.built.descriptor));
    }
    let mut request = fixture.request(DOCKERFILE);
    request.force_compression = true;
    // They are gzip already.
    assert_eq!(fixture.build_request(&request).await.built.descriptor, plain.descriptor);
}
