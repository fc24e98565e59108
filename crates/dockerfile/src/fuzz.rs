//! Entry points for fuzzers; the property tests drive them too.

use std::collections::{BTreeMap, BTreeSet};

use oci::{ImageConfig, Platform};

use crate::{OperationsError, PlanOptions, ignore::IgnoreFile, parse, plan};

/// Takes any bytes as a Dockerfile as far as they go; a position must lie in the source.
pub fn dockerfile(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let checked = |error: crate::DockerfileError| {
        assert!(error.at.start <= error.at.end && error.at.end <= text.len(), "{error:?}");
        let rendered = error.render("Dockerfile", text);
        assert!(rendered.starts_with("error: "), "{rendered}");
    };
    let dockerfile = match parse(text) {
        Ok(dockerfile) => dockerfile,
        Err(error) => return checked(error),
    };
    let platform = Platform::new("linux", "amd64", None);
    let options = PlanOptions {
        build_args: BTreeMap::from([("A".to_owned(), "value".to_owned())]),
        target: None,
        platform: platform.clone(),
        build_platform: platform,
        contexts: BTreeMap::new(),
        also: BTreeSet::new(),
    };
    let plan = match plan(&dockerfile, &options) {
        Ok(plan) => plan,
        Err(error) => return checked(error),
    };
    for stage in &plan.stages {
        match stage.operations(&ImageConfig::default(), &[]) {
            Err(OperationsError::Dockerfile(error)) => checked(error),
            // A base without triggers needs no more stages.
            Err(OperationsError::NeedsStage(number)) => panic!("stage {number} is needed"),
            Ok(_) => (),
        }
    }
}

/// Takes any bytes as an ignore file and as a path.
pub fn ignore_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (patterns, path) = text.split_once('\0').unwrap_or((text, "a/b"));
    if let Ok(file) = IgnoreFile::parse(patterns) {
        file.is_excluded(path);
    }
}
