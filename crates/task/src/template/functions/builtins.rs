//! Go's own functions that make texts or compare them, at their cost.

use gotmpl::{Template, Value};

use super::{ANY, Call, Function, Result, VALUE_COST, function};

pub(super) const FUNCTIONS: &[Function] = &[
    function("print", 0, ANY, printed),
    function("println", 0, ANY, printed),
    function("printf", 1, ANY, printf),
    function("html", 1, 1, printed),
    function("js", 1, 1, printed),
    function("urlquery", 1, 1, printed),
    function("eq", 2, ANY, compared),
    function("ne", 2, 2, compared),
    function("lt", 2, 2, compared),
    function("le", 2, 2, compared),
    function("gt", 2, 2, compared),
    function("ge", 2, 2, compared),
];

/// What a width in a format may come to in the engine.
const WIDTH_MAX: usize = 65_535;
/// What one character becomes at most when it is escaped or written in hex.
const ESCAPED_MAX: usize = 10;

/// The function of the engine by the same name.
pub(super) fn builtin(name: &str, args: &[Value]) -> Result<String> {
    let operands: String = (0..args.len()).map(|index| format!(" (index . {index})")).collect();
    let template = Template::new("").parse(&format!("{{{{{name}{operands}}}}}"))?;
    template.execute_to_string(&Value::List(args.into()))
}

fn printed(call: &Call<'_>) -> Result {
    let mut length = 0;
    for value in call.args {
        length += call.display(value)?.len();
    }
    call.budget().check(length.saturating_mul(ESCAPED_MAX))?;
    call.give(builtin(call.name, call.args)?)
}

fn printf(call: &Call<'_>) -> Result {
    let format = call.text(0)?;
    let mut longest = 0;
    for value in call.rest(1) {
        longest = longest.max(call.display(value)?.len());
    }
    let has_width = format.contains(|c: char| c == '*' || c.is_ascii_digit());
    let each = longest.saturating_mul(ESCAPED_MAX) + if has_width { WIDTH_MAX } else { 0 };
    call.budget().check(format.matches('%').count().saturating_mul(each))?;
    call.give(builtin(call.name, call.args)?)
}

fn compared(call: &Call<'_>) -> Result {
    let length: usize = call.args.iter().filter_map(Value::as_str).map(str::len).sum();
    call.budget().spend(length / VALUE_COST)?;
    Ok(Value::Bool(builtin(call.name, call.args)? == "true"))
}
