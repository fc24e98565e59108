//! What is shipped is what was tested: cargo gives a crate the features that anything in the same
//! build asks of it, so the tests, built with all that they need, may run code that the program
//! does not have.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use crate::tidy::output;

/// Features that the tests have and the program does not: crate, feature, and why that changes
/// nothing of what is tested.
const TESTED_ONLY: [(&str, &str, &str); 11] = [
    ("data-encoding", "default", "a name for another feature, which the program has"),
    ("getrandom", "std", "an error type"),
    ("getrandom", "sys_rng", "a generator that only proptest uses"),
    ("idna", "default", "a name for other features, which the program has"),
    ("num-integer", "std", "a name for a feature of num-traits, which the program has"),
    ("num-iter", "i128", "a feature without code"),
    ("num-iter", "std", "a name for features of num-integer and num-traits"),
    ("num-traits", "default", "a name for another feature, which the program has"),
    ("regex", "default", "a name for other features, which the program has"),
    ("regex-syntax", "default", "a name for other features, which the program has"),
    ("rustix", "pty", "a module that only tests of terminals use"),
];

/// Crates by name and version, with their features.
type Features = BTreeMap<String, BTreeSet<String>>;

pub(crate) fn problems() -> Result<Vec<String>> {
    let shipped = features(&["--package", "refit", "--edges", "normal,build"])?;
    let tested = features(&["--workspace", "--edges", "normal,build,dev"])?;
    Ok(differences(&shipped, &tested))
}

fn features(what: &[&str]) -> Result<Features> {
    let form = ["tree", "--locked", "--prefix", "none", "--format", "{p}|{f}"];
    let tree = output("cargo", &[&form, what].concat())?;
    Ok(parse(&tree))
}

/// Lines of `NAME VERSION ...|FEATURE,FEATURE`, with ` (*)` behind those that came before.
fn parse(tree: &str) -> Features {
    let mut all = Features::new();
    for (package, features) in tree.lines().filter_map(|line| line.split_once('|')) {
        let package: Vec<&str> = package.split(' ').take(2).collect();
        let features = features.trim_end_matches(" (*)").split(',');
        let features = features.filter(|feature| !feature.is_empty()).map(str::to_owned);
        all.entry(package.join(" ")).or_default().extend(features);
    }
    all
}

fn differences(shipped: &Features, tested: &Features) -> Vec<String> {
    let mut problems = Vec::new();
    for (package, features) in shipped {
        let name = package.split(' ').next().unwrap_or_default();
        let only_tested = tested.get(package).into_iter().flatten().filter(|feature| {
            let known = |(of, one, _): &(&str, &str, &str)| (*of, *one) == (name, feature.as_str());
            !features.contains(*feature) && !TESTED_ONLY.iter().any(known)
        });
        problems.extend(only_tested.map(|feature| {
            format!(
                "the tests run `{package}` with the feature `{feature}`, the program has it \
                 without: ask for it in Cargo.toml, or say in xtask/src/features.rs why not"
            )
        }));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_that_only_the_tests_have_is_found() {
        let shipped = parse("a v1.0.0 (proc-macro)|std\nb v2.0.0|\nrustix v1.0.0|fs\n");
        let tested = parse("a v1.0.0|std (*)\na v1.0.0|extra\nb v1.0.0|x\nrustix v1.0.0|fs,pty\n");
        let found = differences(&shipped, &tested);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("the tests run `a v1.0.0` with the feature `extra`"));
    }
}
