//! Annotations that a build is asked for, and which part of an image each is for.

use std::collections::BTreeMap;

use crate::Platform;

/// What an annotation can be put on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Manifest,
    /// The manifest's descriptor in the index.
    ManifestDescriptor,
    Index,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Annotation {
    place: Place,
    /// Of this platform only.
    platform: Option<Platform>,
    name: String,
    value: String,
}

/// Annotations by where they go, as BuildKit's `--annotation [TYPE[PLATFORM],…:]NAME=VALUE` has
/// them: `manifest` if there is no type, `index`, `manifest-descriptor`, and of one platform
/// `manifest[linux/arm64]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations(Vec<Annotation>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    #[error(
        "annotation `{key}`: `{kind}` is not one of `manifest`, `manifest-descriptor`, `index`"
    )]
    UnknownType { key: String, kind: String },
    #[error("annotation `{key}`: `{platform}` is not a platform")]
    BadPlatform { key: String, platform: String },
    #[error("annotation `{key}`: an index is of all platforms")]
    IndexOfOne { key: String },
    #[error("annotation `{key}` has no name")]
    NoName { key: String },
}

impl Annotations {
    /// Reads keys with their types, and values.
    pub fn parse(texts: &BTreeMap<String, String>) -> Result<Self, AnnotationError> {
        let mut annotations = Vec::new();
        for (key, value) in texts {
            let (kinds, name) = key.split_once(':').unwrap_or(("manifest", key));
            if name.is_empty() {
                return Err(AnnotationError::NoName { key: crate::digest::quoted(key) });
            }
            for kind in kinds.split(',') {
                let (place, platform) = target(key, kind)?;
                let (name, value) = (name.to_owned(), value.clone());
                annotations.push(Annotation { place, platform, name, value });
            }
        }
        Ok(Self(annotations))
    }

    /// Those of the manifest for a platform.
    pub fn of_manifest(&self, platform: &Platform) -> BTreeMap<String, String> {
        self.at(Place::Manifest, Some(platform))
    }

    /// Those of that manifest's descriptor in an index.
    pub fn of_descriptor(&self, platform: &Platform) -> BTreeMap<String, String> {
        self.at(Place::ManifestDescriptor, Some(platform))
    }

    pub fn of_index(&self) -> BTreeMap<String, String> {
        self.at(Place::Index, None)
    }

    /// Whether some have a place only where there is an index.
    pub fn need_index(&self) -> bool {
        self.0.iter().any(|annotation| annotation.place != Place::Manifest)
    }

    /// What is said of one platform comes after what is said of all.
    fn at(&self, place: Place, platform: Option<&Platform>) -> BTreeMap<String, String> {
        let here = self.0.iter().filter(|annotation| annotation.place == place);
        let (of_one, of_all): (Vec<_>, Vec<_>) = here.partition(|one| one.platform.is_some());
        let is_meant = |annotation: &&&Annotation| annotation.platform.as_ref() == platform;
        let of_one = of_one.iter().filter(is_meant);
        let pair = |annotation: &&Annotation| (annotation.name.clone(), annotation.value.clone());
        of_all.iter().chain(of_one).map(pair).collect()
    }
}

/// Reads `TYPE` or `TYPE[PLATFORM]`.
fn target(key: &str, kind: &str) -> Result<(Place, Option<Platform>), AnnotationError> {
    let shown = || crate::digest::quoted(key);
    let (name, platform) = match kind.strip_suffix(']').and_then(|kind| kind.split_once('[')) {
        Some((name, platform)) => (name, Some(platform)),
        None => (kind, None),
    };
    let platform = platform.map(|text| {
        let platform = crate::digest::quoted(text);
        text.parse().map_err(|_| AnnotationError::BadPlatform { key: shown(), platform })
    });
    let platform = platform.transpose()?;
    match (name, platform) {
        ("manifest", platform) => Ok((Place::Manifest, platform)),
        ("manifest-descriptor", platform) => Ok((Place::ManifestDescriptor, platform)),
        ("index", None) => Ok((Place::Index, None)),
        ("index", Some(_)) => Err(AnnotationError::IndexOfOne { key: shown() }),
        _ => Err(AnnotationError::UnknownType { key: shown(), kind: crate::digest::quoted(kind) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[(&str, &str)]) -> Result<Annotations, AnnotationError> {
        let texts = texts.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Annotations::parse(&texts.collect())
    }

    fn shown(annotations: BTreeMap<String, String>) -> String {
        let pairs = annotations.iter().map(|(name, value)| format!("{name}={value}"));
        pairs.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_goes_where_its_type_says() {
        let annotations = parse(&[
            ("a", "1"),
            ("manifest:b", "2"),
            ("manifest[linux/arm64]:a", "3"),
            ("index,manifest-descriptor[linux/amd64]:c", "4"),
            ("index:d:e", "5"),
        ])
        .unwrap();
        let (amd64, arm64) = ("linux/amd64".parse().unwrap(), "linux/arm64".parse().unwrap());
        assert_eq!(shown(annotations.of_manifest(&amd64)), "a=1 b=2");
        assert_eq!(shown(annotations.of_manifest(&arm64)), "a=3 b=2");
        assert_eq!(shown(annotations.of_descriptor(&amd64)), "c=4");
        assert_eq!(shown(annotations.of_descriptor(&arm64)), "");
        assert_eq!(shown(annotations.of_index()), "c=4 d:e=5");
        assert!(annotations.need_index());
        assert!(!parse(&[("a", "1"), ("manifest[linux]:b", "2")]).unwrap().need_index());
    }

    #[test]
    fn what_has_no_place_is_refused() {
        for (key, why) in [
            ("index-descriptor:a", "`index-descriptor` is not one of `manifest`"),
            ("a:b", "`a` is not one of"),
            ("manifest[:a", "`manifest[` is not one of"),
            ("manifest[a/b/c/d]:a", "`a/b/c/d` is not a platform"),
            ("index[linux/amd64]:a", "of all platforms"),
            ("manifest:", "has no name"),
            ("", "has no name"),
        ] {
            let told = parse(&[(key, "1")]).unwrap_err().to_string();
            assert!(told.contains(why) && told.contains(&format!("`{key}`")), "{key}: {told}");
        }
    }
}
