//! Functions of dicts, the maps of templates.

use std::collections::BTreeMap;
use std::sync::Arc;

use gotmpl::Value;

use super::{ANY, Call, Function, Result, function};

pub(super) const FUNCTIONS: &[Function] = &[
    function("dict", 0, ANY, |call| {
        let mut entries = BTreeMap::new();
        for pair in call.args.chunks(2) {
            let value = pair.get(1).cloned().unwrap_or_else(|| Value::String("".into()));
            entries.insert(call.display(&pair[0])?.into(), value);
        }
        call.give_dict(entries)
    }),
    function("set", 3, 3, |call| {
        let mut entries = call.dict(0)?.clone();
        entries.insert(call.text(1)?.into(), call.value(2).clone());
        call.give_dict(entries)
    }),
    function("unset", 2, 2, |call| {
        let mut entries = call.dict(0)?.clone();
        entries.remove(call.text(1)?);
        call.give_dict(entries)
    }),
    function("hasKey", 2, 2, |call| Ok(Value::Bool(call.dict(0)?.contains_key(call.text(1)?)))),
    function("pluck", 1, ANY, |call| {
        let name = call.text(0)?;
        let mut values = Vec::new();
        for index in 1..call.args.len() {
            values.extend(call.dict(index)?.get(name).cloned());
        }
        call.give_list(values)
    }),
    function("keys", 0, ANY, |call| {
        let mut names = Vec::new();
        for index in 0..call.args.len() {
            names.extend(call.dict(index)?.keys().map(|name| &**name));
        }
        call.give_texts(names)
    }),
    function("values", 1, 1, |call| call.give_list(call.dict(0)?.values().cloned().collect())),
    function("pick", 1, ANY, |call| {
        let dict = call.dict(0)?;
        let mut entries = BTreeMap::new();
        for index in 1..call.args.len() {
            let picked = dict.get_key_value(call.text(index)?);
            entries.extend(picked.map(|(name, value)| (Arc::clone(name), value.clone())));
        }
        call.give_dict(entries)
    }),
    function("omit", 1, ANY, |call| {
        let mut entries = call.dict(0)?.clone();
        for index in 1..call.args.len() {
            entries.remove(call.text(index)?);
        }
        call.give_dict(entries)
    }),
    function("merge", 1, ANY, |call| merged(call, false)),
    function("mergeOverwrite", 1, ANY, |call| merged(call, true)),
    // Values never change, so that a copy is as good as the value.
    function("deepCopy", 1, 1, |call| Ok(call.value(0).clone())),
];

fn merged(call: &Call<'_>, overwrite: bool) -> Result {
    let mut entries = call.dict(0)?.clone();
    for index in 1..call.args.len() {
        // Merging is as deep as its sources.
        call.budget().weigh(call.value(index))?;
        merge(&mut entries, call.dict(index)?, overwrite);
    }
    call.give_dict(entries)
}

/// Adds what is missing or empty, or replaces what the other has; dicts in dicts are merged.
fn merge(into: &mut BTreeMap<Arc<str>, Value>, from: &BTreeMap<Arc<str>, Value>, overwrite: bool) {
    for (name, value) in from {
        match (into.get_mut(name), value) {
            (Some(Value::Map(inner)), Value::Map(value)) => {
                merge(Arc::make_mut(inner), value, overwrite);
            }
            (Some(old), value) if old.is_truthy() && !(overwrite && value.is_truthy()) => (),
            _ => {
                into.insert(Arc::clone(name), value.clone());
            }
        }
    }
}
