//! Functions of numbers. What is no number counts as zero, as in Sprig.

use gotmpl::Value;

use super::{ANY, Call, Function, Result, function};

pub(super) const FUNCTIONS: &[Function] = &[
    function("atoi", 1, 1, |call| Ok(Value::Int(call.text(0)?.parse().unwrap_or(0)))),
    function("int", 1, 1, |call| Ok(Value::Int(int(call.value(0))))),
    function("int64", 1, 1, |call| Ok(Value::Int(int(call.value(0))))),
    function("float64", 1, 1, |call| Ok(Value::Float(float(call.value(0))))),
    function("toDecimal", 1, 1, |call| {
        let text = call.display(call.value(0))?;
        Ok(Value::Int(i64::from_str_radix(&text, 8).unwrap_or(0)))
    }),
    function("add", 0, ANY, |call| Ok(folded(call, 0, i64::wrapping_add))),
    function("add1", 1, 1, |call| Ok(Value::Int(int(call.value(0)).wrapping_add(1)))),
    function("sub", 2, 2, |call| {
        Ok(Value::Int(int(call.value(0)).wrapping_sub(int(call.value(1)))))
    }),
    function("mul", 1, ANY, |call| Ok(folded(call, 1, i64::wrapping_mul))),
    function("div", 2, 2, |call| divided(call, i64::wrapping_div)),
    function("mod", 2, 2, |call| divided(call, i64::wrapping_rem)),
    function("max", 1, ANY, |call| Ok(folded(call, i64::MIN, i64::max))),
    function("biggest", 1, ANY, |call| Ok(folded(call, i64::MIN, i64::max))),
    function("min", 1, ANY, |call| Ok(folded(call, i64::MAX, i64::min))),
    function("ceil", 1, 1, |call| Ok(Value::Float(float(call.value(0)).ceil()))),
    function("floor", 1, 1, |call| Ok(Value::Float(float(call.value(0)).floor()))),
    function("round", 2, 3, round),
];

/// A value as an integer.
#[expect(clippy::cast_possible_truncation, reason = "Go truncates too")]
pub(super) fn int(value: &Value) -> i64 {
    match value {
        Value::Bool(value) => i64::from(*value),
        Value::Int(number) => *number,
        Value::Uint(number) => i64::try_from(*number).unwrap_or(i64::MAX),
        Value::Float(number) => *number as i64,
        Value::String(text) => text.parse().unwrap_or(0),
        _ => 0,
    }
}

fn float(value: &Value) -> f64 {
    match value {
        Value::Bool(value) => f64::from(u8::from(*value)),
        Value::String(text) => text.parse().unwrap_or(0.0),
        value => value.as_float().unwrap_or(0.0),
    }
}

fn folded(call: &Call<'_>, start: i64, join: fn(i64, i64) -> i64) -> Value {
    Value::Int(call.args.iter().map(int).fold(start, join))
}

fn divided(call: &Call<'_>, divide: fn(i64, i64) -> i64) -> Result {
    match int(call.value(1)) {
        0 => Err(call.fails("division by zero")),
        divisor => Ok(Value::Int(divide(int(call.value(0)), divisor))),
    }
}

fn round(call: &Call<'_>) -> Result {
    let places = i32::try_from(call.int(1)?).unwrap_or(i32::MAX);
    let threshold = call.args.get(2).map_or(0.5, float);
    let power = 10_f64.powi(places);
    let digit = power * float(call.value(0));
    let rounded = if digit.fract() >= threshold { digit.ceil() } else { digit.floor() };
    Ok(Value::Float(rounded / power))
}
