//! A context that is an artifact of a registry (contexts.md section 4).
//!
//! The files of an artifact are its layers, by the names in their annotations, as ORAS and its
//! like push them.

use builder::ContextLimits;
use futures_util::{StreamExt as _, TryStreamExt as _};
use oci::{Descriptor, Digest, Manifest, Reference};

use crate::context::{ContextLoader, Loaded};
use crate::execute::{Failure, blocking, image_failure, open_source, unpack_failure};
use crate::unpack::{UnpackError, Unpacker};

/// The path of the file, or the name of the folder that an archive holds.
const TITLE: &str = "org.opencontainers.image.title";
/// `true` for an archive of a folder.
const UNPACK: &str = "io.deis.oras.content.unpack";
/// So many blobs are fetched at once.
const FETCHES: usize = 4;

/// Brings the files of an artifact into an empty folder.
pub(crate) async fn load(
    loader: &ContextLoader<'_>,
    reference: &Reference,
    folder: std::path::PathBuf,
    limits: ContextLimits,
) -> Result<Loaded, Failure> {
    let engine = loader.engine;
    let images = &engine.builder.images;
    let (digest, manifest) =
        images.manifest(reference).await.map_err(|error| image_failure(&error))?;
    let layers = layers(reference, manifest)?;
    let all = engine.context_limits;
    let size = layers.iter().fold(0_u64, |size, layer| size.saturating_add(layer.size));
    if size > limits.bytes_max {
        return Err(unpack_failure(UnpackError::TooLarge { max: limits.bytes_max }, all));
    }
    // What the tag means may change meanwhile.
    let pinned = Reference { digest: Some(digest.clone()), ..reference.clone() };
    let fetch = async |layer: &Descriptor| images.fetch(&pinned, layer, &|_| ()).await;
    let fetched = futures_util::stream::iter(&layers).map(fetch).buffer_unordered(FETCHES);
    fetched.try_collect::<()>().await.map_err(|error| image_failure(&error))?;
    let mut unpacker = Unpacker::new(&folder, limits, loader.stop.clone())
        .map_err(|error| unpack_failure(error, all))?;
    for layer in &layers {
        let content = open_source(engine, &layer.digest).await?;
        let title = (!is_archive(layer)).then(|| layer.annotations[TITLE].clone());
        let size = layer.size;
        let unpacked = blocking(move || {
            match title {
                Some(title) => unpacker.add_file(&title, size, content)?,
                None => unpacker.add_archive(content)?,
            }
            Ok(unpacker)
        });
        unpacker = unpacked.await?.map_err(|error| unpack_failure(error, all))?;
    }
    let unpacked = blocking(move || unpacker.finish()).await?;
    let unpacked = unpacked.map_err(|error| unpack_failure(error, all))?;
    tell(loader, reference, &digest, layers.len()).await;
    Ok(Loaded::unpacked(folder, unpacked))
}

async fn tell(loader: &ContextLoader<'_>, reference: &Reference, digest: &Digest, count: usize) {
    let name = Reference { digest: None, ..reference.clone() };
    let files = if count == 1 { "file" } else { "files" };
    loader.events.message(&format!("Fetched `oci://{name}@{digest}`: {count} {files}")).await;
}

fn is_archive(layer: &Descriptor) -> bool {
    layer.annotations.get(UNPACK).is_some_and(|value| value == "true")
}

/// The layers that are files or archives of folders.
fn layers(reference: &Reference, manifest: Manifest) -> Result<Vec<Descriptor>, Failure> {
    let refuse = |reason: &str, hint: &str| {
        Err(Failure::User(format!("error: the context `oci://{reference}` {reason}\nhint: {hint}")))
    };
    let all = match manifest {
        Manifest::Image(image) => image.layers,
        Manifest::Artifact(artifact) => artifact.blobs,
        Manifest::Index(_) => {
            return refuse("is a list of manifests", "give the digest of one of them: `@sha256:…`");
        }
    };
    let named: Vec<_> =
        all.into_iter().filter(|layer| layer.annotations.contains_key(TITLE)).collect();
    match named.is_empty() {
        false => Ok(named),
        true => refuse(
            "has no files",
            "they are layers with the annotation `org.opencontainers.image.title`, as \
             `oras push` makes them",
        ),
    }
}
