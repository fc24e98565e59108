//! What docker's commands print about images and containers.

use builder::BaseImage;
use oci::{Manifest, Reference};
use serde_json::{Value, json};

use crate::execute::Failure;
use crate::steps::containers::{Shown, State};
use crate::steps::images::RunImage;

/// `docker inspect` of an image.
pub(super) fn describe(
    name: &Reference,
    image: &BaseImage,
    names: &[(Reference, RunImage)],
) -> Value {
    let same = names.iter().filter(|(_, other)| other.digest() == Some(&image.top));
    let all = same.map(|(name, _)| name).chain([name]);
    let mut tags: Vec<_> = all
        .filter_map(|name| Some(format!("{}:{}", name_of(name), name.tag_or_latest()?)))
        .collect();
    tags.sort();
    tags.dedup();
    let config = &image.config;
    json!({
        "Id": image.manifest.config.digest,
        "RepoTags": tags,
        "RepoDigests": [format!("{}@{}", name_of(name), image.top)],
        "Created": config.created,
        "Architecture": config.architecture,
        "Os": config.os,
        "Size": image.manifest.layers.iter().map(|layer| layer.size).sum::<u64>(),
        "Config": config.config,
        "RootFS": { "Type": "layers", "Layers": config.rootfs.diff_ids },
    })
}

/// `docker inspect` of a container.
pub(super) fn describe_container(container: &Shown) -> Value {
    let (status, code) = match container.state {
        State::Up(_) => ("running", 0),
        State::Exited { code, .. } => ("exited", code),
    };
    json!({
        "Id": container.name,
        "Name": format!("/{}", container.name),
        "State": { "Status": status, "Running": status == "running", "ExitCode": code },
        "Image": container.image,
        "Config": { "Image": container.image },
    })
}

/// As JSON, or each through a template.
pub(super) fn show(images: Vec<Value>, format: Option<&str>) -> Result<String, Failure> {
    let Some(format) = format.filter(|format| *format != "json") else {
        return Ok(format!("{:#}\n", Value::Array(images)));
    };
    let mut text = String::new();
    for image in &images {
        let shown = task::render_json(format, image);
        text += &shown.map_err(|error| Failure::User(error.render("the format", format)))?;
        text.push('\n');
    }
    Ok(text)
}

pub(super) fn show_manifest(manifest: &Manifest) -> Result<String, Failure> {
    let json = match manifest {
        Manifest::Image(image) => serde_json::to_value(image),
        Manifest::Index(index) => serde_json::to_value(index),
        _ => return Err(Failure::User("error: it is neither an image nor an index".to_owned())),
    };
    json.map(|json| format!("{json:#}\n")).map_err(|error| Failure::ours(&error))
}

/// `docker images`, of the names that the run has given.
pub(super) fn list(names: &[(Reference, RunImage)], quiet: bool) -> String {
    let rows = names.iter().filter_map(|(name, image)| {
        let digest = image.digest()?.to_string();
        Some(match quiet {
            true => vec![digest],
            false => vec![name_of(name), name.tag_or_latest()?.to_string(), digest],
        })
    });
    table(if quiet { None } else { Some(&["REPOSITORY", "TAG", "DIGEST"]) }, rows.collect())
}

/// `docker ps`.
pub(super) fn list_containers(containers: &[Shown], quiet: bool) -> String {
    let rows = containers.iter().map(|shown| match quiet {
        true => vec![shown.name.clone()],
        false => {
            let status = match shown.state {
                State::Up(age) => format!("Up {} seconds", age.as_secs()),
                State::Exited { code, ago } => {
                    format!("Exited ({code}) {} seconds ago", ago.as_secs())
                }
            };
            vec![shown.name.clone(), shown.image.clone(), status]
        }
    });
    table(if quiet { None } else { Some(&["NAMES", "IMAGE", "STATUS"]) }, rows.collect())
}

/// The name without tag and digest, as a person writes it.
fn name_of(reference: &Reference) -> String {
    Reference { tag: None, digest: None, ..reference.clone() }.familiar()
}

/// A longer cell moves the ones behind it.
const WIDTH_MAX: usize = 200;

fn table(head: Option<&[&str]>, rows: Vec<Vec<String>>) -> String {
    let head = head.map(|head| head.iter().map(|cell| (*cell).to_owned()).collect());
    let rows: Vec<Vec<String>> = head.into_iter().chain(rows).collect();
    let columns = rows.first().map_or(0, Vec::len);
    let length = |row: &Vec<String>, column: usize| row[column].chars().count().min(WIDTH_MAX);
    let width = |column: usize| rows.iter().map(|row| length(row, column)).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("   ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_columns_of_equal_width() {
        let image = |name: &str| {
            let reference: Reference = name.parse().unwrap();
            let digest = oci::Digest::of(b"x");
            let other = Reference { digest: Some(digest), ..reference.clone() };
            (reference, RunImage::Other(Box::new(other)))
        };
        let names = [image("r.example.com/a:1"), image("busybox")];
        let listed = list(&names, false);
        let lines: Vec<_> = listed.lines().collect();
        assert_eq!(lines[0], "REPOSITORY        TAG      DIGEST");
        assert!(lines[1].starts_with("r.example.com/a   1        sha256:"), "{listed}");
        assert!(lines[2].starts_with("busybox           latest   sha256:"), "{listed}");
        assert_eq!(list(&[], true), "");
    }

    #[test]
    fn images_are_shown_as_json_or_through_a_template() {
        let image = json!({"Id": "sha256:a", "Config": {"Env": ["A=b"]}});
        assert!(show(vec![image.clone()], None).unwrap().starts_with("[\n  {\n    \"Id\""));
        let format = |text: &str| show(vec![image.clone(), image.clone()], Some(text));
        assert_eq!(format("{{.Id}}").unwrap(), "sha256:a\nsha256:a\n");
        assert_eq!(format("{{json .Config.Env}}").unwrap(), "[\"A=b\"]\n[\"A=b\"]\n");
        assert!(matches!(format("{{nothing}}"), Err(Failure::User(_))));
    }
}
