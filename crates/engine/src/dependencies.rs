//! Which images an image stands on: said at the end of a run, and kept with it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use builder::{BaseRole, RecordedBase};
use oci::{Digest, Reference};
use serde::Serialize;

use crate::platforms::BuiltImages;

/// What one image was made of, for one of its names (runs.md section 4.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Dependencies {
    /// `None`: it has no name.
    pub image: Option<ImageDependency>,
    /// What it stands on, `scratch:latest` if that is nothing.
    pub runtime_dependency: Option<ImageDependency>,
    /// What only helped to make it, each image once.
    pub buildtime_dependency: Option<Vec<ImageDependency>>,
    pub git: GitDependency,
}

/// An image by its name, and what the name meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageDependency {
    pub registry: String,
    pub repository: String,
    /// Empty if the image was named by its digest alone.
    pub tag: String,
    /// `None`: there is no such image, as for `scratch`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// `host/repository:tag`
    pub reference: String,
    /// The manifests of the platforms that were built, if the name meant an index of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct GitDependency {
    /// Empty if the context was no git repository.
    pub git_head_revision: String,
}

/// How clients of the managed service know Docker Hub.
const DOCKER_HUB: &str = "registry.hub.docker.com";
/// How they know what stands on nothing (triggers.md section 3.3).
const SCRATCH: &str = "scratch:latest";

/// The dependencies of what was built, one entry for each name or one without.
pub(crate) fn dependencies(
    names: &[Reference],
    built: &BuiltImages,
    commit: Option<&str>,
) -> Vec<Dependencies> {
    let bases = || built.images.iter().flat_map(|image| &image.record.bases);
    let with = |role: BaseRole| bases().filter(move |base| base.role == role);
    let runtime = match with(BaseRole::Runtime).next() {
        Some(_) => with(BaseRole::Runtime).find_map(|base| of_base(base, bases())),
        None => Some(scratch()),
    };
    let mut buildtime: Vec<ImageDependency> = Vec::new();
    for dependency in with(BaseRole::Buildtime).filter_map(|base| of_base(base, bases())) {
        if !buildtime.iter().any(|known| known.reference == dependency.reference) {
            buildtime.push(dependency);
        }
    }
    let buildtime = (!buildtime.is_empty()).then_some(buildtime);
    let entry = |image: Option<ImageDependency>| Dependencies {
        image,
        runtime_dependency: runtime.clone(),
        buildtime_dependency: buildtime.clone(),
        git: GitDependency { git_head_revision: commit.unwrap_or_default().to_owned() },
    };
    if names.is_empty() {
        return vec![entry(None)];
    }
    let digest = &built.descriptor().digest;
    names.iter().map(|name| entry(Some(dependency(name, digest)))).collect()
}

/// Images that have a name; those that came along with the request have none. `all` are those of the
/// build: on each platform it was another manifest.
fn of_base<'a>(
    base: &RecordedBase,
    all: impl Iterator<Item = &'a RecordedBase>,
) -> Option<ImageDependency> {
    let reference = base.reference.parse::<Reference>().ok()?;
    let same = all.filter(|other| other.reference == base.reference);
    let manifests: BTreeSet<_> = same.map(|same| &same.manifest).collect();
    let is_index = manifests.iter().any(|manifest| **manifest != base.digest);
    let manifests = manifests.into_iter().filter(|_| is_index).cloned().collect();
    Some(ImageDependency { manifests, ..dependency(&reference, &base.digest) })
}

fn scratch() -> ImageDependency {
    ImageDependency {
        registry: DOCKER_HUB.to_owned(),
        repository: "library/scratch".to_owned(),
        tag: "latest".to_owned(),
        digest: None,
        reference: SCRATCH.to_owned(),
        manifests: Vec::new(),
    }
}

fn dependency(reference: &Reference, digest: &Digest) -> ImageDependency {
    let tag = reference.tag_or_latest();
    let whole = Reference { tag: tag.clone(), ..reference.clone() };
    let is_hub = matches!(reference.host.as_str(), "docker.io" | "index.docker.io");
    ImageDependency {
        registry: if is_hub { DOCKER_HUB.to_owned() } else { reference.host.clone() },
        repository: reference.repository.to_string(),
        tag: tag.map(|tag| tag.to_string()).unwrap_or_default(),
        digest: Some(digest.clone()),
        reference: whole.to_string(),
        manifests: Vec::new(),
    }
}

/// The report of a run, as the log has it.
pub(crate) fn report(all: &[Dependencies]) -> String {
    let mut text = "The following dependencies were found:".to_owned();
    for entry in all {
        match &entry.image {
            Some(image) => write_image(&mut text, "- image:", image),
            None => text.push_str("\n- image: null"),
        }
        if let Some(image) = &entry.runtime_dependency {
            write_image(&mut text, "  runtime-dependency:", image);
        }
        for image in entry.buildtime_dependency.iter().flatten() {
            write_image(&mut text, "  buildtime-dependency:", image);
        }
        let GitDependency { git_head_revision: commit } = &entry.git;
        if !commit.is_empty() {
            // Writing to a string cannot fail.
            let _written = write!(text, "\n  git:\n    git-head-revision: {commit}");
        }
    }
    text
}

fn write_image(text: &mut String, label: &str, image: &ImageDependency) {
    let ImageDependency { registry, repository, tag, digest, .. } = image;
    let _written = write!(
        text,
        "\n{label}\n    registry: {registry}\n    repository: {repository}\n    tag: {tag}"
    );
    if let Some(digest) = digest {
        let _written = write!(text, "\n    digest: {digest}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases_are_named_as_clients_of_the_managed_service_know_them() {
        let digest = Digest::of(b"manifest");
        let hub = DOCKER_HUB;
        let pinned = format!("r.example.com/team/app@{digest}");
        for (case, written, registry, repository, tag) in [
            ("h1", "alpine", hub, "library/alpine", "latest"),
            ("h13", "library/golang", hub, "library/golang", "latest"),
            ("h13", "golang:latest", hub, "library/golang", "latest"),
            ("h14", &pinned, "r.example.com", "team/app", ""),
            ("h15", "localhost:5000/x", "localhost:5000", "x", "latest"),
            ("h16", "org/app:1", hub, "org/app", "1"),
        ] {
            let found = dependency(&written.parse().unwrap(), &digest);
            let ImageDependency { registry: host, repository: path, tag: label, .. } = &found;
            assert_eq!((&**host, &**path, &**label), (registry, repository, tag), "{case}");
            assert_eq!(found.digest.as_ref(), Some(&digest), "{case}");
        }
    }

    #[test]
    fn h12_scratch_has_a_name_and_no_digest() {
        let entry = Dependencies {
            image: None,
            runtime_dependency: Some(scratch()),
            buildtime_dependency: None,
            git: GitDependency { git_head_revision: String::new() },
        };
        let shown = serde_json::to_value(&entry).unwrap();
        let runtime = &shown["runtime-dependency"];
        assert_eq!(runtime["reference"], SCRATCH);
        assert_eq!(runtime["registry"], DOCKER_HUB);
        assert!(runtime.get("digest").is_none());
        assert!(report(&[entry]).ends_with("repository: library/scratch\n    tag: latest"));
    }
}
