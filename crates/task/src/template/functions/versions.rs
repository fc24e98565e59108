//! Versions, and constraints as Masterminds/semver 1 has them, which Sprig 2.22 uses.
//!
//! The crate `semver` orders versions. Its own constraints would not do: here a bare version
//! means exactly that one, `^` looks at the major number only, `||` is an alternative, and a
//! pre-release is admitted only by a constraint that names one.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use gotmpl::Value;
use semver::{BuildMetadata, Prerelease, Version};

use super::{Call, Function, function};

pub(super) const FUNCTIONS: &[Function] = &[
    function("semver", 1, 1, |call| {
        let text = call.text(0)?;
        let version = version(text).ok_or_else(|| not_a_version(call, text))?;
        let number = |number: u64| Value::Int(i64::try_from(number).unwrap_or(i64::MAX));
        let text = |text: &str| Value::String(text.into());
        call.give_dict(BTreeMap::from([
            ("Major".into(), number(version.major)),
            ("Minor".into(), number(version.minor)),
            ("Patch".into(), number(version.patch)),
            ("Prerelease".into(), text(version.pre.as_str())),
            ("Metadata".into(), text(version.build.as_str())),
            ("Original".into(), text(call.text(0)?)),
            ("String".into(), text(&version.to_string())),
        ]))
    }),
    function("semverCompare", 2, 2, |call| {
        let (constraint, text) = (call.text(0)?, call.text(1)?);
        let version = version(text).ok_or_else(|| not_a_version(call, text))?;
        let satisfied = satisfies(&version, constraint);
        let satisfied = satisfied
            .ok_or_else(|| call.fails(format!("`{constraint}` is not a constraint of versions")))?;
        Ok(Value::Bool(satisfied))
    }),
];

fn not_a_version(call: &Call<'_>, text: &str) -> gotmpl::TemplateError {
    call.fails(format!("`{text}` is not a version"))
}

/// Reads `v1.2` as `1.2.0`.
fn version(text: &str) -> Option<Version> {
    let Pattern { version, has_wildcard, .. } = Pattern::parse(text)?;
    (!has_wildcard).then_some(version)
}

/// A version whose last numbers may be missing, or `x`.
struct Pattern {
    /// With zeros for what is missing.
    version: Version,
    /// How many numbers are there.
    numbers: usize,
    has_wildcard: bool,
}

impl Pattern {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_prefix('v').unwrap_or(text);
        let (text, build) = text.split_once('+').unwrap_or((text, ""));
        let (text, pre) = text.split_once('-').unwrap_or((text, ""));
        let mut numbers = Vec::new();
        let mut has_wildcard = false;
        for part in text.split('.') {
            match part {
                "x" | "X" | "*" => has_wildcard = true,
                _ if has_wildcard || !part.bytes().all(|byte| byte.is_ascii_digit()) => {
                    return None;
                }
                _ => numbers.push(part.parse().ok()?),
            }
        }
        let number = |index: usize| numbers.get(index).copied().unwrap_or(0);
        let mut version = Version::new(number(0), number(1), number(2));
        version.pre = Prerelease::new(pre).ok()?;
        version.build = BuildMetadata::new(build).ok()?;
        let numbers = numbers.len();
        (text.split('.').count() <= 3).then_some(Self { version, numbers, has_wildcard })
    }
}

/// Whether a version satisfies a constraint; nothing if that is none.
fn satisfies(version: &Version, constraint: &str) -> Option<bool> {
    let mut any = false;
    for alternative in constraint.split("||") {
        let comparisons = match alternative.split_once(" - ") {
            Some((from, to)) => vec![format!(">={from}"), format!("<={to}")],
            None => alternative.split(',').map(str::to_owned).collect(),
        };
        let mut all = true;
        for comparison in comparisons {
            let comparison = comparison.trim();
            let operator = comparison.find(|c: char| !"=!<>~^".contains(c))?;
            let (operator, pattern) = comparison.split_at(operator);
            all &= admits(operator, &Pattern::parse(pattern)?, version)?;
        }
        any |= all;
    }
    Some(any)
}

fn admits(operator: &str, pattern: &Pattern, version: &Version) -> Option<bool> {
    let Pattern { version: bound, numbers, .. } = pattern;
    let order = version.cmp_precedence(bound);
    let same_major = *numbers == 0 || version.major == bound.major;
    let same_minor = *numbers < 2 || version.minor == bound.minor;
    let is_exact = *numbers == 3;
    // Whether the version begins with the numbers that are there, patch aside.
    let begins_alike = order.is_ge() && same_major && same_minor;
    let is_equal = if is_exact { order == Ordering::Equal } else { begins_alike };
    let admitted = match operator {
        "" | "=" => is_equal,
        "!=" => !is_equal,
        ">" => order.is_gt(),
        ">=" | "=>" => order.is_ge(),
        "<" if is_exact => order.is_lt(),
        "<=" | "=<" if is_exact => order.is_le(),
        "<" | "<=" | "=<" => order.is_lt() || begins_alike,
        "~" | "~>" => begins_alike || *bound == Version::new(0, 0, 0),
        "^" => order.is_ge() && same_major,
        _ => return None,
    };
    Some(admitted && (version.pre.is_empty() || !bound.pre.is_empty()))
}
