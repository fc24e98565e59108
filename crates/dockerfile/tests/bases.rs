//! What `FROM` comes to: section H of the specification's cases, as far as the text decides.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use dockerfile::{PlanOptions, Source, StageId, parse, plan};
use oci::Platform;

/// The image that the result stands on, or why there is none. Lines are separated by ` / `.
fn base(text: &str, args: &[(&str, &str)], target: Option<&str>) -> Result<String, String> {
    let options = PlanOptions {
        build_args: args.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        target: target.map(str::to_owned),
        platform: Platform::new("linux", "amd64", None),
        build_platform: Platform::new("linux", "amd64", None),
        contexts: BTreeMap::new(),
        also: BTreeSet::new(),
    };
    let dockerfile = parse(&text.replace(" / ", "\n")).map_err(|error| error.message)?;
    let plan = plan(&dockerfile, &options).map_err(|error| error.message)?;
    let below: Vec<_> = (0..plan.stages.len()).map(StageId).collect();
    let below = below.into_iter().filter(|stage| plan.result_stands_on(*stage));
    let mut bases = below.filter_map(|stage| match &plan.stages[stage.0].base {
        Source::Stage(_) => None,
        Source::Scratch => Some("scratch".to_owned()),
        Source::Image { reference, .. } => {
            let tag = reference.tag_or_latest();
            Some(oci::Reference { tag, ..reference.clone() }.to_string())
        }
        Source::Context { name, .. } => panic!("there is no context `{name}`"),
    });
    let only = bases.next().unwrap();
    assert_eq!(bases.next(), None, "{text}");
    Ok(only)
}

#[test]
fn from_names_the_image_below_the_result() {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let pinned = format!("FROM r.example.com/team/app@{digest}");
    let by_digest = format!("r.example.com/team/app@{digest}");
    let hub = |name: &str| format!("docker.io/{name}");
    let two: &[_] = &[("V", "2")];
    for (case, text, args, target, expected) in [
        ("h1", "FROM alpine", &[][..], None, hub("library/alpine:latest")),
        ("h2", "FROM golang:1 AS b / FROM alpine:3", &[], None, hub("library/alpine:3")),
        ("h3", "FROM a AS x / FROM x AS y / FROM y", &[], None, hub("library/a:latest")),
        ("h4", "ARG V=1 / FROM n:$V", &[], None, hub("library/n:1")),
        ("h5", "ARG V=1 / FROM n:$V", two, None, hub("library/n:2")),
        ("h7", "FROM --platform=linux/amd64 n:1 AS b / FROM b", &[], None, hub("library/n:1")),
        ("h8", "ARG V / FROM n:${V:-9}", &[], None, hub("library/n:9")),
        ("h9", "FROM a AS b / FROM c AS d", &[], Some("b"), hub("library/a:latest")),
        ("h12", "FROM scratch", &[], None, "scratch".into()),
        ("h14", &pinned, &[], None, by_digest),
        ("h15", "FROM localhost:5000/x", &[], None, "localhost:5000/x:latest".into()),
        ("h16", "FROM org/app:1", &[], None, hub("org/app:1")),
        ("h17", "FROM \"alpine:3\"", &[], None, hub("library/alpine:3")),
        ("h18", "\u{feff}FROM alpine", &[], None, hub("library/alpine:latest")),
    ] {
        assert_eq!(base(text, args, target), Ok(expected), "{case}");
    }
}

#[test]
fn from_that_names_no_image_is_refused() {
    for (case, text, expected) in [
        ("h10", "FROM Alpine", "repository name `Alpine` may have only lower-case letters"),
        ("h11", "RUN x", "no stage has begun before this instruction"),
        ("h19", "FROM a b", "`FROM` takes an image, and optionally `AS` and a name"),
    ] {
        let error = base(text, &[], None).unwrap_err();
        assert!(error.starts_with(expected), "{case}: {error}");
    }
}
