//! Habits as a test: which crate may use which, words we do not use, unfinished code.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::features;

/// Which of our crates a crate may use. An arrow that is not here is a decision: make it in
/// a commit of its own, with the reason, and change ARCHITECTURE.md too.
const MAY_USE: [(&str, &[&str]); 18] = [
    ("oci", &[]),
    ("dockerfile", &["oci"]),
    ("task", &["oci"]),
    ("api", &[]),
    ("db", &[]),
    ("store", &["oci", "db"]),
    ("remote", &["oci", "store"]),
    ("container", &[]),
    ("builder", &["oci", "dockerfile", "store", "remote", "container"]),
    ("housekeeping", &["oci", "store"]),
    ("engine", &["oci", "task", "store", "remote", "container", "builder", "housekeeping"]),
    ("control", &["oci", "task", "db", "store", "remote", "engine"]),
    ("registry", &["oci", "store", "remote"]),
    (
        "server",
        &[
            "oci",
            "dockerfile",
            "task",
            "api",
            "db",
            "store",
            "remote",
            "container",
            "builder",
            "housekeeping",
            "engine",
            "control",
            "registry",
        ],
    ),
    ("cli", &["oci", "api", "dockerfile", "task"]),
    ("refit", &["cli", "server", "engine", "api", "container"]),
    ("testkit", &["oci", "api"]),
    ("xtask", &[]),
];

/// Crates that do no I/O and know no async.
const PURE: [&str; 4] = ["oci", "dockerfile", "task", "api"];
/// What a pure crate must not use.
const IMPURE: [&str; 5] = ["tokio", "reqwest", "sqlx", "axum", "hyper"];

/// Only these may end in a commit with a note to finish later, and none does.
const UNFINISHED: [&str; 5] = ["todo!(", "unimplemented!(", "FIXME", "XXX:", "dbg!("];

/// Names that a glossary word replaces (style.md section 4), where they would be a type or
/// a module of ours.
const WORDS: [(&str, &str); 6] = [
    ("mod utils", "a module named for its idea"),
    ("mod helpers", "a module named for its idea"),
    ("mod common", "a module named for its idea"),
    ("struct ImageRef", "`Reference`"),
    ("struct ImageName", "`Reference`"),
    ("fn prune", "`collect_garbage` or `purge`"),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

pub(crate) fn run() -> Result<()> {
    let mut problems = dependency_problems(&metadata()?);
    problems.extend(features::problems()?);
    for file in tracked_sources()? {
        let text = std::fs::read_to_string(&file).with_context(|| file.clone())?;
        problems.extend(text_problems(&file, &text));
    }
    match problems.is_empty() {
        true => Ok(()),
        false => bail!("{}", problems.join("\n")),
    }
}

fn dependency_problems(metadata: &Metadata) -> Vec<String> {
    let table: BTreeMap<&str, &[&str]> = MAY_USE.into_iter().collect();
    let mut problems = Vec::new();
    for package in &metadata.packages {
        let name = package.name.as_str();
        let Some(allowed) = table.get(name) else {
            problems.push(format!("crate `{name}` is not in the table of xtask/src/tidy.rs"));
            continue;
        };
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        for dependency in &package.dependencies {
            let used = dependency.name.as_str();
            if dependency.kind.as_deref() == Some("dev") {
                continue;
            }
            if used == "testkit" {
                problems.push(format!("`{name}` uses `testkit` outside of tests"));
            } else if table.contains_key(used) && !allowed.contains(used) {
                problems.push(format!("crate `{name}` must not use crate `{used}`"));
            } else if PURE.contains(&name) && IMPURE.contains(&used) {
                problems.push(format!("pure crate `{name}` must not use `{used}`"));
            }
        }
    }
    problems
}

fn text_problems(file: &str, text: &str) -> Vec<String> {
    // This file names what it looks for.
    if Path::new(file).ends_with("xtask/src/tidy.rs") {
        return Vec::new();
    }
    let mut problems = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let at = format!("{file}:{}", index + 1);
        for mark in UNFINISHED.iter().filter(|mark| line.contains(**mark)) {
            problems.push(format!("{at}: `{mark}` is left in the code"));
        }
        for (word, instead) in WORDS.iter().filter(|(word, _)| has_word(line, word)) {
            problems.push(format!("{at}: `{word}` should be {instead}"));
        }
        if line.trim_start().starts_with("#[ignore") {
            problems.push(format!("{at}: an ignored test is no test"));
        }
    }
    problems
}

/// Whether `line` has `word` with no letter after it.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        !line[at + word.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
    })
}

fn metadata() -> Result<Metadata> {
    let output = output("cargo", &["metadata", "--no-deps", "--format-version", "1"])?;
    Ok(serde_json::from_str(&output)?)
}

fn tracked_sources() -> Result<Vec<String>> {
    let files = output("git", &["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])?;
    Ok(files.lines().filter(|file| Path::new(file).exists()).map(str::to_owned).collect())
}

#[expect(clippy::disallowed_methods, reason = "a chore that runs cargo and git")]
pub(crate) fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output()?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout)?),
        false => bail!("`{program} {}` failed", arguments.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(name: &str, uses: &[(&str, Option<&str>)]) -> Metadata {
        let dependency = |(name, kind): &(&str, Option<&str>)| Dependency {
            name: (*name).to_owned(),
            kind: kind.map(str::to_owned),
        };
        let dependencies = uses.iter().map(dependency).collect();
        Metadata { packages: vec![Package { name: name.to_owned(), dependencies }] }
    }

    #[test]
    fn a_forbidden_arrow_is_found() {
        let problems = dependency_problems(&metadata("store", &[("registry", None)]));
        assert_eq!(problems, ["crate `store` must not use crate `registry`"]);
        let problems = dependency_problems(&metadata("oci", &[("tokio", None)]));
        assert_eq!(problems, ["pure crate `oci` must not use `tokio`"]);
        let problems = dependency_problems(&metadata("cli", &[("testkit", None)]));
        assert_eq!(problems, ["`cli` uses `testkit` outside of tests"]);
        assert!(dependency_problems(&metadata("cli", &[("testkit", Some("dev"))])).is_empty());
        assert!(!dependency_problems(&metadata("novel", &[])).is_empty());
    }

    #[test]
    fn unfinished_code_and_wrong_words_are_found() {
        assert_eq!(text_problems("a.rs", "fn f() { todo!() }").len(), 1);
        assert_eq!(text_problems("a.rs", "mod utils;").len(), 1);
        assert_eq!(text_problems("a.rs", "mod utils_of_war;").len(), 0);
        assert_eq!(text_problems("a.rs", "    #[ignore = \"later\"]").len(), 1);
    }
}
