//! The words of the OCI image and distribution specifications, and how to check them.
//!
//! Everything here is a value: parsed once, valid ever after. [`Digest`] names bytes,
//! [`Descriptor`] points at them, [`Manifest`] says what an image is made of, and
//! [`Reference`] is what a person types.
//!
//! Invariants:
//! - Pure: no files, sockets, clock or async.
//! - A manifest is never serialised again after it was received: its bytes are its
//!   identity. These types read it; only the builder writes new ones.
//! - Parsers are total: any input gives a value or an error, never a panic.

mod annotation;
mod compression;
mod descriptor;
mod digest;
#[doc(hidden)]
pub mod fuzz;
mod image_config;
mod manifest;
pub mod media_type;
mod null;
mod platform;
mod reference;
mod validate;

pub use annotation::{AnnotationError, Annotations};
pub use compression::{Compression, CompressionError, CompressionFormat};
pub use descriptor::Descriptor;
pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use image_config::{ContainerConfig, Healthcheck, History, ImageConfig, RootFs};
pub use manifest::{
    ArtifactManifest, ImageIndex, ImageManifest, MANIFEST_SIZE_MAX, Manifest, ManifestError,
    References,
};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError, RegistryName, RepositoryName, Tag};
pub use validate::{ImageProblem, check_blob, check_image_config, check_layer_count};
