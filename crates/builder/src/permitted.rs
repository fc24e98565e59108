//! Which images a server lets runs use, whatever they name.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use oci::{Descriptor, Digest, Manifest, Platform, Reference};
use store::BlobStore;

use crate::image::{BaseImage, BaseImages, ImageError, OwnNames};
use crate::image_key::ImageKey;
use crate::signatures::Signatures;

/// Any image of the server's own registries.
const REGISTRY: &str = "registry";
/// What comes between the images of a pattern and the key that has signed them.
const SIGNED_BY: &str = " signed-by ";

/// The images that runs may use: bases, images of steps, and those that files are copied from.
/// Without any pattern there is no bound.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImagePolicy {
    patterns: Vec<ImagePattern>,
    /// By name.
    keys: BTreeMap<String, ImageKey>,
}

/// Some images: `registry`, or `HOST/REPOSITORY`, with `:TAG` and `@DIGEST` if they matter, where
/// `*` stands for any text, such as `docker.io/library/*`, `ghcr.io/acme/*:1.*` or `*@sha256:…`;
/// behind ` signed-by `, the name of the key that has signed them, if they have to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePattern {
    /// Absent: of the server's own registries.
    name: Option<String>,
    tag: Option<String>,
    digest: Option<Digest>,
    /// The name of a key.
    signer: Option<String>,
}

impl ImagePolicy {
    /// A pattern whose key is not among these has no images.
    pub fn new(patterns: Vec<ImagePattern>, keys: BTreeMap<String, ImageKey>) -> Self {
        Self { patterns, keys }
    }

    /// Whether there is no bound.
    pub fn is_open(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Refuses an image that no pattern has by its name. `Some`: it has to be as one of these asks.
    fn check(
        &self,
        reference: &Reference,
        own: &OwnNames,
    ) -> Result<Option<Vec<&ImagePattern>>, ImageError> {
        if self.is_open() {
            return Ok(None);
        }
        let wanted: Vec<_> =
            self.patterns.iter().filter(|pattern| pattern.has(reference, own)).collect();
        match &wanted[..] {
            [] => Err(self.refuse(reference)),
            wanted if wanted.iter().any(|pattern| pattern.asks_for_nothing()) => Ok(None),
            _ => Ok(Some(wanted)),
        }
    }

    fn refuse(&self, reference: &Reference) -> ImageError {
        let allowed = self.patterns.iter().map(ToString::to_string).collect();
        ImageError::NotAllowed { reference: reference.familiar(), allowed }
    }
}

impl ImagePattern {
    /// The name of the key that has to have signed the images.
    pub fn signer(&self) -> Option<&str> {
        self.signer.as_deref()
    }

    /// Whether a name says all.
    fn asks_for_nothing(&self) -> bool {
        self.digest.is_none() && self.signer.is_none()
    }

    fn has(&self, reference: &Reference, own: &OwnNames) -> bool {
        let Some(name) = &self.name else { return own.registry(reference).is_some() };
        // A host's pattern has hosts only, and not folders that look like one.
        let (host, repository) = name.split_once('/').unwrap_or((name, "*"));
        is_like(&reference.host.to_ascii_lowercase(), host)
            && is_like(reference.repository.as_str(), repository)
            && self.tag.as_deref().is_none_or(|wanted| has_tag(reference, wanted))
    }
}

/// Whether a reference means what a tag does: with a digest besides it means that alone.
fn has_tag(reference: &Reference, wanted: &str) -> bool {
    let tag = reference.tag_or_latest().filter(|_| reference.digest.is_none());
    tag.is_some_and(|tag| is_like(tag.as_str(), wanted))
}

/// Whether a text is a pattern, in which `*` stands for any text.
fn is_like(text: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let (first, last) = (parts.next().unwrap_or_default(), parts.next_back());
    let Some(last) = last else { return text == first };
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

impl FromStr for ImagePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (images, signer) = match text.split_once(SIGNED_BY) {
            Some((images, signer)) => (images.trim_end(), Some(signer.trim().to_owned())),
            None => (text, None),
        };
        if images == REGISTRY {
            return Ok(Self { name: None, tag: None, digest: None, signer });
        }
        let wrong = || {
            format!(
                "`{}` is neither `{REGISTRY}` nor a pattern such as `docker.io/library/*` or `ghcr.io/acme/base:1.*`",
                text.chars().take(300).collect::<String>().escape_debug()
            )
        };
        let (name, digest) = match images.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse().map_err(|_| wrong())?)),
            None => (images, None),
        };
        let name_at = name.rfind('/').map_or(0, |slash| slash + 1);
        let tag_at = name[name_at..].find(':').map_or(name.len(), |colon| name_at + colon);
        let (name, tag) = (&name[..tag_at], name.get(tag_at + 1..));
        let is_fine = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"*._-/:".contains(&byte))
        };
        // A name without a host would be of Docker Hub: that has to be said.
        let parts = name.split_once('/');
        let is_whole = name == "*"
            || parts.is_some_and(|(host, repository)| !host.is_empty() && !repository.is_empty());
        if !is_fine(name) || !is_whole || tag.is_some_and(|tag| !is_fine(tag)) {
            return Err(wrong());
        }
        let tag = tag.map(str::to_owned);
        Ok(Self { name: Some(name.to_ascii_lowercase()), tag, digest, signer })
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name.as_deref().unwrap_or(REGISTRY))?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))?;
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))?;
        self.signer.as_ref().map_or(Ok(()), |signer| write!(f, "{SIGNED_BY}{signer}"))
    }
}

/// Images, of which some are refused.
pub struct PermittedImages {
    pub images: Arc<dyn BaseImages>,
    pub policy: Arc<ImagePolicy>,
    pub own: OwnNames,
    /// Where images bring their blobs.
    pub blobs: Arc<dyn BlobStore>,
}

impl PermittedImages {
    /// Refuses an image for what it has turned out to be.
    async fn check_found(
        &self,
        reference: &Reference,
        wanted: &[&ImagePattern],
        found: &Digest,
    ) -> Result<(), ImageError> {
        let is_found =
            |pattern: &&&ImagePattern| pattern.digest.as_ref().is_none_or(|digest| digest == found);
        let mut keys = BTreeMap::new();
        for pattern in wanted.iter().filter(is_found) {
            let Some(signer) = pattern.signer() else { return Ok(()) };
            keys.extend(self.policy.keys.get(signer).map(|key| (signer, key)));
        }
        if keys.is_empty() {
            return Err(self.policy.refuse(reference));
        }
        let signatures = Signatures { images: &*self.images, blobs: &*self.blobs, keys };
        signatures.check(reference, found).await
    }
}

#[async_trait]
impl BaseImages for PermittedImages {
    async fn check(&self, reference: &Reference) -> Result<(), ImageError> {
        let wanted = self.policy.check(reference, &self.own)?;
        self.images.check(reference).await?;
        let Some(wanted) = wanted else { return Ok(()) };
        // It may be pushed by then.
        let Ok((digest, _)) = self.images.manifest(reference).await else { return Ok(()) };
        match self.check_found(reference, &wanted, &digest).await {
            Err(error @ (ImageError::NotAllowed { .. } | ImageError::NotSigned { .. })) => {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<BaseImage, ImageError> {
        let wanted = self.policy.check(reference, &self.own)?;
        // Nothing is fetched of an image that is refused for its digest or its signatures.
        if let Some(wanted) = wanted {
            let (digest, _) = self.images.manifest(reference).await?;
            self.check_found(reference, &wanted, &digest).await?;
            let pinned = Reference { digest: Some(digest), ..reference.clone() };
            return self.images.resolve(&pinned, platform, progress).await;
        }
        self.images.resolve(reference, platform, progress).await
    }

    async fn manifest(&self, reference: &Reference) -> Result<(Digest, Manifest), ImageError> {
        let wanted = self.policy.check(reference, &self.own)?;
        let (digest, manifest) = self.images.manifest(reference).await?;
        if let Some(wanted) = wanted {
            self.check_found(reference, &wanted, &digest).await?;
        }
        Ok((digest, manifest))
    }

    async fn fetch(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ImageError> {
        self.policy.check(reference, &self.own)?;
        self.images.fetch(reference, blob, progress).await
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(text: &str) -> ImagePolicy {
        let patterns = text.split_whitespace().map(|text| text.parse().unwrap()).collect();
        ImagePolicy::new(patterns, BTreeMap::new())
    }

    fn permits(policy: &ImagePolicy, reference: &str) -> bool {
        let own = OwnNames::new([("refit.example.com".to_owned(), "local".parse().unwrap())]);
        policy.check(&reference.parse().unwrap(), &own).is_ok()
    }

    #[test]
    fn images_are_permitted_by_their_whole_names() {
        let all = policy("");
        assert!(permits(&all, "debian") && permits(&all, "ghcr.io/x/y"));
        let some = policy("registry docker.io/library/* ghcr.io/acme/base:1.* *.corp/tools/*");
        for name in [
            "debian",
            "debian:12",
            "docker.io/library/alpine",
            "refit.example.com/any/thing:1",
            "ghcr.io/acme/base:1.2",
            "GHCR.IO/acme/base:1.2",
            "a.b.corp/tools/x/y",
        ] {
            assert!(permits(&some, name), "{name}");
        }
        let pinned = format!("ghcr.io/acme/base:1.2@{}", Digest::of(b"old"));
        for name in [
            "someone/debian",
            "ghcr.io/acme/base",
            "ghcr.io/acme/base:2",
            "ghcr.io/acme/other:1.1",
            "other.example.com/any",
            "corp/tools/x",
            "docker.io.evil.example/library/debian",
            "evil.example/docker.io/library/debian",
            "evil.example/a.corp/tools/x",
            &pinned,
        ] {
            assert!(!permits(&some, name), "{name}");
        }
    }

    #[test]
    fn an_image_may_have_to_have_a_digest() {
        let (good, other) = (Digest::of(b"good"), Digest::of(b"other"));
        let pinned = policy(&format!("docker.io/library/debian@{good} *@{other}"));
        let own = OwnNames::default();
        let wanted = |name: &str| {
            let wanted = pinned.check(&name.parse().unwrap(), &own).unwrap().unwrap();
            wanted.iter().map(|pattern| pattern.digest.clone().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(wanted("debian:12"), [good, other.clone()]);
        assert_eq!(wanted("alpine"), [other]);
    }

    #[test]
    fn patterns_are_read_and_shown() {
        let digest = format!("*@{}", Digest::of(b""));
        let signed = format!("{digest} signed-by acme");
        for text in ["registry", "docker.io/*", "localhost:5000/a:1", "*", &*digest, &*signed] {
            assert_eq!(text.parse::<ImagePattern>().unwrap().to_string(), text);
        }
        let signed: ImagePattern = "registry  signed-by  acme".parse().unwrap();
        assert_eq!(
            (signed.to_string().as_str(), signed.signer()),
            ("registry signed-by acme", Some("acme"))
        );
        for text in [
            "",
            "debian",
            "a/b:",
            "a/b@sha256:1",
            "a b/c",
            "https://a/b?x",
            "/",
            "* signed-by",
            "* signed by a",
            " signed-by a",
        ] {
            assert!(text.parse::<ImagePattern>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_pattern_has_what_it_was_made_of(parts in prop::collection::vec("[a-c]{0,3}", 1..5), between in "[a-c]{0,3}") {
            prop_assert!(is_like(&parts.join(&between), &parts.join("*")));
        }

        #[test]
        fn stars_are_like_the_usual_expression(text in "[ab]{0,8}", pattern in "[ab*]{0,6}") {
            // Told by trying every way.
            fn tried(text: &[u8], pattern: &[u8]) -> bool {
                match pattern.split_first() {
                    None => text.is_empty(),
                    Some((b'*', rest)) => (0..=text.len()).any(|at| tried(&text[at..], rest)),
                    Some((byte, rest)) => text.first() == Some(byte) && tried(&text[1..], rest),
                }
            }
            prop_assert_eq!(is_like(&text, &pattern), tried(text.as_bytes(), pattern.as_bytes()));
        }
    }
}
