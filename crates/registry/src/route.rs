//! Which endpoint a path means. Repository names contain slashes, so paths are read from
//! their end.

use std::borrow::Cow;

use oci::RepositoryName;

use crate::error::{ApiError, Code};

/// An endpoint of distribution-spec 1.1, *Endpoints*. Digests and tags stay text: what a
/// malformed one means depends on the method.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    Base,
    Catalog,
    Tags(RepositoryName),
    Manifest(RepositoryName, Cow<'a, str>),
    Blob(RepositoryName, Cow<'a, str>),
    Uploads(RepositoryName),
    Upload(RepositoryName, Cow<'a, str>),
    Referrers(RepositoryName, Cow<'a, str>),
    Metadata(RepositoryName, Metadata<'a>),
    DeletedCatalog,
}

/// What of a repository is asked for below `/acr/v1/` (registry.md section 2).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Metadata<'a> {
    Repository,
    Tags,
    Tag(Cow<'a, str>),
    Manifests,
    Manifest(Cow<'a, str>),
    DeletedTags,
    DeletedManifests,
    DeletedManifest(Cow<'a, str>),
}

impl Metadata<'_> {
    /// What it is about, of a repository of this name.
    pub(crate) fn target(&self, name: &RepositoryName) -> String {
        match self {
            Self::Tag(tag) => format!("{name}:{tag}"),
            Self::Manifest(digest) | Self::DeletedManifest(digest) => format!("{name}@{digest}"),
            Self::Repository
            | Self::Tags
            | Self::Manifests
            | Self::DeletedTags
            | Self::DeletedManifests => name.to_string(),
        }
    }
}

/// Longer paths are nobody's: name, digest and words together are shorter.
const PATH_LEN_MAX: usize = 1024;

impl<'a> Route<'a> {
    /// Reads the path of a request, starting with `/v2` or `/acr/v1/`.
    pub(crate) fn parse(path: &'a str) -> Result<Self, ApiError> {
        let unknown = || {
            ApiError::new(Code::Unsupported, "no such endpoint").status(http::StatusCode::NOT_FOUND)
        };
        if path.len() > PATH_LEN_MAX {
            return Err(ApiError::new(Code::NameInvalid, "path is too long")
                .status(http::StatusCode::URI_TOO_LONG));
        }
        if let Some(rest) = path.strip_prefix("/acr/v1/") {
            return Self::metadata(rest)?.ok_or_else(unknown);
        }
        let rest = path.strip_prefix("/v2").ok_or_else(unknown)?;
        match rest.strip_prefix('/') {
            Some("") => Ok(Self::Base),
            None if rest.is_empty() => Ok(Self::Base),
            Some("_catalog") => Ok(Self::Catalog),
            Some(rest) => Self::in_repository(rest)?.ok_or_else(unknown),
            None => Err(unknown()),
        }
    }

    /// The repository that it is about.
    pub(crate) fn name_mut(&mut self) -> Option<&mut RepositoryName> {
        match self {
            Self::Base | Self::Catalog | Self::DeletedCatalog => None,
            Self::Tags(name)
            | Self::Manifest(name, _)
            | Self::Blob(name, _)
            | Self::Uploads(name)
            | Self::Upload(name, _)
            | Self::Referrers(name, _)
            | Self::Metadata(name, _) => Some(name),
        }
    }

    fn in_repository(path: &'a str) -> Result<Option<Self>, ApiError> {
        let Some((front, last)) = path.rsplit_once('/') else { return Ok(None) };
        let last = decode(last);
        if let Some(name) = front.strip_suffix("/blobs/uploads") {
            let name = name_of(name)?;
            return Ok(Some(match last.is_empty() {
                true => Self::Uploads(name),
                false => Self::Upload(name, last),
            }));
        }
        let Some((name, kind)) = front.rsplit_once('/') else { return Ok(None) };
        Ok(Some(match kind {
            "blobs" if last == "uploads" => Self::Uploads(name_of(name)?),
            "blobs" => Self::Blob(name_of(name)?, last),
            "manifests" => Self::Manifest(name_of(name)?, last),
            "referrers" => Self::Referrers(name_of(name)?, last),
            "tags" if last == "list" => Self::Tags(name_of(name)?),
            _ => return Ok(None),
        }))
    }
}

impl<'a> Route<'a> {
    /// Reads what follows `/acr/v1/`. No part of a repository's name begins with an underscore, so that
    /// the first one ends the name.
    fn metadata(path: &'a str) -> Result<Option<Self>, ApiError> {
        match path {
            "_catalog" => return Ok(Some(Self::Catalog)),
            "_deleted/_catalog" => return Ok(Some(Self::DeletedCatalog)),
            _ => (),
        }
        let (path, is_deleted) = match path.strip_prefix("_deleted/") {
            Some(rest) => (rest, true),
            None => (path, false),
        };
        let (name, rest) = match path.split_once("/_") {
            Some((name, rest)) => (name, Some(rest)),
            None => (path, None),
        };
        let (kind, item) = match rest.map(|rest| rest.split_once('/').ok_or(rest)) {
            None => (None, None),
            Some(Ok((kind, item))) => (Some(kind), Some(decode(item))),
            Some(Err(kind)) => (Some(kind), None),
        };
        let what = match (is_deleted, kind, item) {
            (false, None, None) => Metadata::Repository,
            (false, Some("tags"), None) => Metadata::Tags,
            (false, Some("tags"), Some(tag)) => Metadata::Tag(tag),
            (false, Some("manifests"), None) => Metadata::Manifests,
            (false, Some("manifests"), Some(digest)) => Metadata::Manifest(digest),
            (true, Some("tags"), None) => Metadata::DeletedTags,
            (true, Some("manifests"), None) => Metadata::DeletedManifests,
            (true, Some("manifests"), Some(digest)) => Metadata::DeletedManifest(digest),
            _ => return Ok(None),
        };
        Ok(Some(Self::Metadata(name_of(name)?, what)))
    }
}

fn name_of(text: &str) -> Result<RepositoryName, ApiError> {
    Ok(decode(text).parse()?)
}

/// Undoes percent-encoding; some clients write the colon of a digest so. What does not
/// decode stays as it is, and no grammar takes a percent sign.
fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let pair = after.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        let decoded =
            pair.filter(|_| byte == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(decoded.unwrap_or(byte));
        rest = if decoded.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).map_or(Cow::Borrowed(text), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_path_is_read_or_refused(path in "/v2/[a-z0-9/%._:-]{0,80}", other in "\\PC*") {
            let _ = Route::parse(&path);
            let _ = Route::parse(&other);
        }

        #[test]
        fn a_name_may_hold_the_words_of_endpoints(
            parts in prop::collection::vec("blobs|uploads|manifests|tags|list|referrers|a", 1..6),
        ) {
            let name: RepositoryName = parts.join("/").parse().unwrap();
            let path = format!("/v2/{name}/manifests/latest");
            prop_assert_eq!(
                Route::parse(&path).unwrap(),
                Route::Manifest(name.clone(), Cow::Borrowed("latest"))
            );
            let path = format!("/v2/{name}/blobs/uploads/id");
            prop_assert_eq!(Route::parse(&path).unwrap(), Route::Upload(name, Cow::Borrowed("id")));
        }
    }

    fn check(paths: &[&str], expected: Expect) {
        let line = |path: &&str| match Route::parse(path) {
            Ok(route) => format!("{path} -> {route:?}\n"),
            Err(_) => format!("{path} -> refused\n"),
        };
        expected.assert_eq(&paths.iter().map(line).collect::<String>());
    }

    #[test]
    fn endpoints_are_read_from_their_end() {
        check(
            &[
                "/v2",
                "/v2/",
                "/v2/_catalog",
                "/v2/app/tags/list",
                "/v2/a/b/c/manifests/latest",
                "/v2/a/manifests/manifests/latest",
                "/v2/app/blobs/sha256%3Aab",
                "/v2/app/blobs/uploads",
                "/v2/app/blobs/uploads/",
                "/v2/app/blobs/uploads/id",
                "/v2/a/blobs/uploads/blobs/uploads/id",
                "/v2/app/referrers/sha256:ab",
                "/acr/v1/_catalog",
                "/acr/v1/team/app",
                "/acr/v1/team%2Fapp/_tags",
                "/acr/v1/app/_tags/_tags",
                "/acr/v1/app/_manifests",
                "/acr/v1/app/_manifests/sha256:ab",
                "/acr/v1/_deleted/_catalog",
                "/acr/v1/_deleted/team/app/_tags",
                "/acr/v1/_deleted/app/_manifests/sha256:ab",
            ],
            expect![[r#"
                /v2 -> Base
                /v2/ -> Base
                /v2/_catalog -> Catalog
                /v2/app/tags/list -> Tags(RepositoryName("app"))
                /v2/a/b/c/manifests/latest -> Manifest(RepositoryName("a/b/c"), "latest")
                /v2/a/manifests/manifests/latest -> Manifest(RepositoryName("a/manifests"), "latest")
                /v2/app/blobs/sha256%3Aab -> Blob(RepositoryName("app"), "sha256:ab")
                /v2/app/blobs/uploads -> Uploads(RepositoryName("app"))
                /v2/app/blobs/uploads/ -> Uploads(RepositoryName("app"))
                /v2/app/blobs/uploads/id -> Upload(RepositoryName("app"), "id")
                /v2/a/blobs/uploads/blobs/uploads/id -> Upload(RepositoryName("a/blobs/uploads"), "id")
                /v2/app/referrers/sha256:ab -> Referrers(RepositoryName("app"), "sha256:ab")
                /acr/v1/_catalog -> Catalog
                /acr/v1/team/app -> Metadata(RepositoryName("team/app"), Repository)
                /acr/v1/team%2Fapp/_tags -> Metadata(RepositoryName("team/app"), Tags)
                /acr/v1/app/_tags/_tags -> Metadata(RepositoryName("app"), Tag("_tags"))
                /acr/v1/app/_manifests -> Metadata(RepositoryName("app"), Manifests)
                /acr/v1/app/_manifests/sha256:ab -> Metadata(RepositoryName("app"), Manifest("sha256:ab"))
                /acr/v1/_deleted/_catalog -> DeletedCatalog
                /acr/v1/_deleted/team/app/_tags -> Metadata(RepositoryName("team/app"), DeletedTags)
                /acr/v1/_deleted/app/_manifests/sha256:ab -> Metadata(RepositoryName("app"), DeletedManifest("sha256:ab"))
            "#]],
        );
    }

    #[test]
    fn everything_else_is_refused() {
        check(
            &[
                "/v3/",
                "/v2x",
                "/v2/app",
                "/v2/app/",
                "/v2/app/tags",
                "/v2//manifests/latest",
                "/v2/../manifests/latest",
                "/v2/a/../b/manifests/latest",
                "/v2/a/%2e%2e/manifests/latest",
                "/v2/App/manifests/latest",
                "/v2/a%/manifests/latest",
                "/v2/manifests/latest",
                "/acr/v1",
                "/acr/v1/",
                "/acr/v1/App",
                "/acr/v1/app/_blobs",
                "/acr/v1/_deleted/app",
                "/acr/v1/_deleted/app/_tags/1",
            ],
            expect![[r#"
                /v3/ -> refused
                /v2x -> refused
                /v2/app -> refused
                /v2/app/ -> refused
                /v2/app/tags -> refused
                /v2//manifests/latest -> refused
                /v2/../manifests/latest -> refused
                /v2/a/../b/manifests/latest -> refused
                /v2/a/%2e%2e/manifests/latest -> refused
                /v2/App/manifests/latest -> refused
                /v2/a%/manifests/latest -> refused
                /v2/manifests/latest -> refused
                /acr/v1 -> refused
                /acr/v1/ -> refused
                /acr/v1/App -> refused
                /acr/v1/app/_blobs -> refused
                /acr/v1/_deleted/app -> refused
                /acr/v1/_deleted/app/_tags/1 -> refused
            "#]],
        );
        assert!(Route::parse(&format!("/v2/{}/tags/list", "a".repeat(256))).is_err());
        assert!(Route::parse(&format!("/v2/{}/tags/list", "a".repeat(5000))).is_err());
    }
}
