//! Entry points for fuzzers; the property tests drive them too.

use std::collections::BTreeMap;

use crate::{AliasImages, BuildArguments, RunDefaults, Secrets, TaskError, TaskFile, Variables};

/// Takes any bytes as a task file, as far as they go.
pub fn task_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(error) = run(text) {
        let rendered = error.render("acb.yaml", text);
        assert!(rendered.starts_with("error: "), "{rendered}");
    }
}

fn run(text: &str) -> Result<(), TaskError> {
    let variables = Variables::default();
    let image = || "image".to_owned();
    let images =
        AliasImages { acr: image(), az: image(), bash: image(), curl: image(), cssc: image() };
    let file = TaskFile::read(text, &variables)?;
    let sources = file.alias_sources().iter().map(|source| (source.clone(), String::new()));
    let sources: BTreeMap<_, _> = sources.collect();
    let file = file.expand(&sources, &images, &variables)?;
    file.secrets(&variables)?;
    let (task, _) = file.render(&variables, &Secrets::new())?.task(&RunDefaults::default())?;
    assert_eq!(task.graph.len(), task.steps.len());
    for step in 0..task.graph.len() {
        assert!(task.graph.predecessors(step).all(|before| before < step));
    }
    Ok(())
}

/// Takes any bytes as the text of a `build` step.
pub fn build_arguments(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = BuildArguments::parse(text);
    }
}
