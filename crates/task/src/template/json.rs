//! Values as JSON the way Go writes it, and JSON as a word of a shell.

use std::sync::Arc;

use gotmpl::Value;
use serde_json::{Map, Number, Value as Json};

/// The JSON of a value: keys sorted, `<`, `>` and `&` escaped.
///
/// The caller has weighed the value.
pub(super) fn json(value: &Value, pretty: bool) -> String {
    let json = to_json(value);
    let text = if pretty { format!("{json:#}") } else { json.to_string() };
    // These stand only inside texts.
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

fn to_json(value: &Value) -> Json {
    match value {
        Value::Nil | Value::Function(_) => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Int(number) => Json::from(*number),
        Value::Uint(number) => Json::from(*number),
        Value::Float(number) => float(*number),
        Value::String(text) => Json::from(&**text),
        Value::List(items) => Json::Array(items.iter().map(to_json).collect()),
        Value::Map(entries) => {
            let entries = entries.iter().map(|(name, value)| (name.to_string(), to_json(value)));
            Json::Object(entries.collect::<Map<_, _>>())
        }
    }
}

/// A value of JSON.
pub(super) fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::Nil,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Int(number),
            None => Value::Float(number.as_f64().unwrap_or_default()),
        },
        Json::String(text) => Value::String(text.as_str().into()),
        Json::Array(items) => Value::List(items.iter().map(from_json).collect()),
        Json::Object(members) => {
            let members =
                members.iter().map(|(name, value)| (name.as_str().into(), from_json(value)));
            Value::Map(Arc::new(members.collect()))
        }
    }
}

/// Go writes a float without fraction like an integer.
fn float(number: f64) -> Json {
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
    match number.fract() == 0.0 && number.abs() < 1e15 {
        true => Json::from(number as i64),
        false => Number::from_f64(number).map_or(Json::Null, Json::Number),
    }
}

/// A text as one word of a shell (task-yaml.md section 6.2).
pub(super) fn shell_quoted(text: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "_^@=+%,:./-".contains(c);
    match text.is_empty() || !text.chars().all(safe) {
        true => format!("'{}'", text.replace('\'', "'\"'\"'")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_quoted_only_if_they_must_be() {
        let cases = [("", "''"), ("a_^@=+%,:./-Z9", "a_^@=+%,:./-Z9"), ("a b", "'a b'")];
        for (text, expected) in cases {
            assert_eq!(shell_quoted(text), expected);
        }
        assert_eq!(shell_quoted("it's"), "'it'\"'\"'s'");
    }

    proptest! {
        #[test]
        fn a_shell_reads_a_quoted_word_as_it_was(text in "[^\0]*") {
            prop_assert_eq!(shlex::split(&shell_quoted(&text)), Some(vec![text]));
        }
    }
}
