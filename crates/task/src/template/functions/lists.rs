//! Functions of lists.

use gotmpl::Value;

use super::numbers::int;
use super::{ANY, Call, Function, Result, VALUE_COST, function};

pub(super) const FUNCTIONS: &[Function] = &[
    function("list", 0, ANY, |call| call.give_list(call.args.to_vec())),
    function("tuple", 0, ANY, |call| call.give_list(call.args.to_vec())),
    function("first", 1, 1, |call| Ok(call.list(0)?.first().cloned().unwrap_or(Value::Nil))),
    function("last", 1, 1, |call| Ok(call.list(0)?.last().cloned().unwrap_or(Value::Nil))),
    function("rest", 1, 1, |call| {
        call.give_list(call.list(0)?.get(1..).unwrap_or_default().to_vec())
    }),
    function("initial", 1, 1, |call| {
        let items = call.list(0)?;
        call.give_list(items[..items.len().saturating_sub(1)].to_vec())
    }),
    function("append", 2, 2, append),
    function("push", 2, 2, append),
    function("prepend", 2, 2, |call| call.give_list([call.rest(1), call.list(0)?].concat())),
    function("concat", 0, ANY, |call| {
        let lists = (0..call.args.len()).map(|index| call.list(index));
        call.give_list(lists.collect::<Result<Vec<_>>>()?.concat())
    }),
    function("reverse", 1, 1, |call| call.give_list(call.list(0)?.iter().rev().cloned().collect())),
    function("compact", 1, 1, |call| {
        call.give_list(call.list(0)?.iter().filter(|item| item.is_truthy()).cloned().collect())
    }),
    function("uniq", 1, 1, |call| {
        let mut found: Vec<Value> = Vec::new();
        for item in call.list(0)? {
            if !is_in(call, item, &found)? {
                found.push(item.clone());
            }
        }
        call.give_list(found)
    }),
    function("without", 1, ANY, |call| {
        let mut kept = Vec::new();
        for item in call.list(0)? {
            if !is_in(call, item, call.rest(1))? {
                kept.push(item.clone());
            }
        }
        call.give_list(kept)
    }),
    function("has", 2, 2, |call| match call.value(1) {
        Value::Nil => Ok(Value::Bool(false)),
        _ => Ok(Value::Bool(is_in(call, call.value(0), call.list(1)?)?)),
    }),
    function("slice", 1, 3, slice),
    function("sortAlpha", 1, 1, |call| {
        let mut texts = strings(call, call.value(0))?;
        texts.sort();
        call.give_texts(texts.iter().map(String::as_str))
    }),
    function("toStrings", 1, 1, |call| {
        let texts = strings(call, call.value(0))?;
        call.give_texts(texts.iter().map(String::as_str))
    }),
    function("splitList", 2, 2, |call| call.give_texts(split(call.text(1)?, call.text(0)?, ANY))),
    function("split", 2, 2, |call| numbered(call, split(call.text(1)?, call.text(0)?, ANY))),
    function("splitn", 3, 3, |call| {
        let parts = match call.int(1)? {
            0 => Vec::new(),
            count => split(call.text(2)?, call.text(0)?, usize::try_from(count).unwrap_or(ANY)),
        };
        numbered(call, parts)
    }),
    function("until", 1, 1, |call| {
        let stop = call.int(0)?;
        numbers(call, 0, stop, if stop < 0 { -1 } else { 1 })
    }),
    function("untilStep", 3, 3, |call| numbers(call, call.int(0)?, call.int(1)?, call.int(2)?)),
];

fn append(call: &Call<'_>) -> Result {
    call.give_list([call.list(0)?, call.rest(1)].concat())
}

/// Whether a list has a value that is deeply the same.
pub(super) fn is_in(call: &Call<'_>, value: &Value, list: &[Value]) -> Result<bool> {
    let weight = call.budget().weigh(value)?;
    call.budget().spend(weight.saturating_mul(list.len()))?;
    Ok(list.contains(value))
}

/// A part of a list, or, as Go has it, of a text.
fn slice(call: &Call<'_>) -> Result {
    let length = match call.value(0) {
        Value::String(text) => text.len(),
        _ => call.list(0)?.len(),
    };
    let bound = |index: usize, default: usize| match call.args.get(index) {
        Some(value) => usize::try_from(int(value)).ok(),
        None => Some(default),
    };
    let outside = || call.fails(format!("there are only {length} elements"));
    let range = bound(1, 0).zip(bound(2, length)).ok_or_else(outside)?;
    match call.value(0) {
        Value::String(text) => call.give(text.get(range.0..range.1).ok_or_else(outside)?),
        _ => call.give_list(call.list(0)?.get(range.0..range.1).ok_or_else(outside)?.to_vec()),
    }
}

/// The items of a list as texts, without those that are nothing; one text of anything else.
pub(super) fn strings(call: &Call<'_>, value: &Value) -> Result<Vec<String>> {
    match value {
        Value::List(items) => {
            let there = items.iter().filter(|item| !matches!(item, Value::Nil));
            there
                .map(|item| {
                    call.budget().spend(VALUE_COST)?;
                    call.display(item)
                })
                .collect()
        }
        Value::Nil => Ok(Vec::new()),
        other => Ok(vec![call.display(other)?]),
    }
}

/// Parts of a text; characters if there is no separator.
fn split<'t>(text: &'t str, separator: &str, count: usize) -> Vec<&'t str> {
    if !separator.is_empty() {
        return text.splitn(count, separator).collect();
    }
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if parts.len() + 1 == count {
            parts.push(rest);
            break;
        }
        let (first, after) = rest.split_at(c.len_utf8());
        parts.push(first);
        rest = after;
    }
    parts
}

/// Parts as members `_0`, `_1` and so on.
fn numbered(call: &Call<'_>, parts: Vec<&str>) -> Result {
    let entries = parts.into_iter().enumerate();
    call.give_dict(
        entries
            .map(|(index, part)| (format!("_{index}").into(), Value::String(part.into())))
            .collect(),
    )
}

fn numbers(call: &Call<'_>, start: i64, stop: i64, step: i64) -> Result {
    let distance = start.abs_diff(stop);
    let towards = if stop < start { step < 0 } else { step > 0 };
    if !towards || distance == 0 {
        return call.give_list(Vec::new());
    }
    let count = distance.div_ceil(step.unsigned_abs());
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    call.budget().check(count.saturating_mul(VALUE_COST))?;
    // The product alone may be out of range, the sum is not.
    let number = |index: i64| Value::Int(start.wrapping_add(index.wrapping_mul(step)));
    let numbers = (0..).take(count).map(number);
    call.give_list(numbers.collect())
}
