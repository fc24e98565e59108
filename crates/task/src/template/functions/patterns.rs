//! Regular expressions. Syntax and meaning are those of Go, but that `\w`, `\d` and `\s`
//! know all scripts.

use gotmpl::Value;
use regex::{Regex, RegexBuilder};

use super::{ANY, Call, Function, Result, function};

/// What a compiled pattern may take.
const PROGRAM_MAX: usize = 1 << 20;
/// What compiling a pattern costs, and what each byte it is held against.
const COMPILE_COST: usize = 100_000;
const MATCH_COST: usize = 32;

pub(super) const FUNCTIONS: &[Function] = &[
    function("regexMatch", 2, 2, |call| Ok(Value::Bool(pattern(call)?.is_match(call.text(1)?)))),
    function("regexFind", 2, 2, |call| {
        let found = pattern(call)?.find(call.text(1)?);
        call.give(found.map_or("", |found| found.as_str()))
    }),
    function("regexFindAll", 3, 3, |call| {
        let count = usize::try_from(call.int(2)?).unwrap_or(ANY);
        let pattern = pattern(call)?;
        let found = pattern.find_iter(call.text(1)?).take(count);
        call.give_texts(found.map(|found| found.as_str()))
    }),
    function("regexReplaceAll", 3, 3, |call| {
        let (pattern, text, with) = (pattern(call)?, call.text(1)?, call.text(2)?);
        // Each group that is named may come to the whole text.
        let groups = with.matches('$').count();
        let each = with.len().saturating_add(groups.saturating_mul(text.len()));
        call.budget().check(pattern.find_iter(text).count().saturating_mul(each))?;
        call.give(pattern.replace_all(text, with))
    }),
    function("regexReplaceAllLiteral", 3, 3, |call| {
        let (pattern, text, with) = (pattern(call)?, call.text(1)?, call.text(2)?);
        call.budget().check(pattern.find_iter(text).count().saturating_mul(with.len()))?;
        call.give(pattern.replace_all(text, regex::NoExpand(with)))
    }),
    function("regexSplit", 3, 3, split),
];

/// The pattern that is the first argument, to be held against the second one.
fn pattern(call: &Call<'_>) -> Result<Regex> {
    let (pattern, text) = (call.text(0)?, call.text(1)?);
    call.budget().spend(COMPILE_COST.saturating_add(text.len().saturating_mul(MATCH_COST)))?;
    RegexBuilder::new(pattern).size_limit(PROGRAM_MAX).build().map_err(|_| {
        call.fails(format!("`{pattern}` is not a regular expression, or too large a one"))
    })
}

/// Parts between matches, `count` of them at most, all if it is negative.
fn split(call: &Call<'_>) -> Result {
    let (pattern, text, count) = (pattern(call)?, call.text(1)?, call.int(2)?);
    let count = usize::try_from(count).unwrap_or(ANY);
    if count == 0 {
        return call.give_list(Vec::new());
    }
    if text.is_empty() && !call.text(0)?.is_empty() {
        return call.give_texts([""]);
    }
    let mut parts = Vec::new();
    let (mut start, mut end) = (0, 0);
    for found in pattern.find_iter(text) {
        if parts.len() + 1 == count {
            break;
        }
        end = found.start();
        if found.end() != 0 {
            parts.push(&text[start..end]);
        }
        start = found.end();
    }
    if end != text.len() {
        parts.push(&text[start..]);
    }
    call.give_texts(parts)
}
