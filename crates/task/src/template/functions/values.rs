//! Functions of any value: defaults, choices, types, JSON.

use gotmpl::Value;

use super::{ANY, Call, Function, Result, function};
use crate::template::json::json;

pub(super) const FUNCTIONS: &[Function] = &[
    function("default", 1, 2, |call| {
        let given = call.value(1);
        Ok(if given.is_truthy() { given } else { call.value(0) }.clone())
    }),
    function("empty", 1, 1, |call| Ok(Value::Bool(!call.value(0).is_truthy()))),
    function("coalesce", 0, ANY, |call| {
        Ok(call.args.iter().find(|value| value.is_truthy()).cloned().unwrap_or(Value::Nil))
    }),
    function("ternary", 3, 3, |call| Ok(call.value(if call.flag(2)? { 0 } else { 1 }).clone())),
    function("fail", 1, 1, |call| Err(call.fails(call.text(0)?))),
    function("toJson", 1, 1, |call| to_json(call, false)),
    function("toPrettyJson", 1, 1, |call| to_json(call, true)),
    function("typeOf", 1, 1, |call| call.give(type_of(call.value(0)))),
    function("typeIs", 2, 2, is_type),
    function("typeIsLike", 2, 2, is_type),
    function("kindOf", 1, 1, |call| call.give(kind_of(call.value(0)))),
    function("kindIs", 2, 2, |call| Ok(Value::Bool(call.text(0)? == kind_of(call.value(1))))),
    function("deepEqual", 2, 2, |call| {
        call.budget().weigh(call.value(0))?;
        Ok(Value::Bool(call.value(0) == call.value(1)))
    }),
];

fn to_json(call: &Call<'_>, pretty: bool) -> Result {
    let weight = call.budget().weigh(call.value(0))?;
    call.budget().check(weight)?;
    call.give(json(call.value(0), pretty))
}

fn is_type(call: &Call<'_>) -> Result {
    Ok(Value::Bool(call.text(0)? == type_of(call.value(1))))
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Nil => "<nil>",
        Value::Bool(_) => "bool",
        Value::Int(_) => "int",
        Value::Uint(_) => "uint",
        Value::Float(_) => "float64",
        Value::String(_) => "string",
        Value::List(_) => "[]interface {}",
        Value::Map(_) => "map[string]interface {}",
        Value::Function(_) => "func()",
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Nil => "invalid",
        Value::List(_) => "slice",
        Value::Map(_) => "map",
        Value::Function(_) => "func",
        value => type_of(value),
    }
}
