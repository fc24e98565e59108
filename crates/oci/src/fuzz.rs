//! Entry points for fuzzers; the property tests drive them too.

use crate::{Manifest, Reference};

/// Takes any bytes as what a person types; a reference must survive its own text.
pub fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(reference) = text.parse::<Reference>() else { return };
    let shown = reference.to_string();
    let again: Reference = shown.parse().expect("what is shown can be read");
    assert_eq!(again.to_string(), shown, "{text:?}");
}

/// Takes any bytes as a manifest, whatever media type it came with.
pub fn manifest(bytes: &[u8]) {
    for content_type in [None, Some(crate::media_type::OCI_INDEX), Some("text/plain")] {
        let Ok(manifest) = Manifest::parse(bytes, content_type) else { continue };
        assert!(bytes.len() <= crate::MANIFEST_SIZE_MAX);
        let references = manifest.references();
        let described = references.blobs.len() + references.manifests.len();
        // A descriptor takes more bytes than this, so that a manifest cannot name more than it has.
        assert!(described <= bytes.len() / 8, "{described} references in {} bytes", bytes.len());
        let _ = (manifest.artifact_type(), manifest.annotations(), manifest.media_type());
    }
}
