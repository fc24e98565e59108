//! JSON values as YAML.
//!
//! Writing the plain subset that JSON needs is a page of code; a serializer crate would cost
//! more than it saves. A scalar that could be read as something else is written as a JSON
//! string, which is valid YAML.

use serde_json::Value;

pub(super) fn render(value: &Value) -> String {
    let mut out = String::new();
    block(value, 0, &mut out);
    out
}

/// A value that starts on a line of its own.
fn block(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, value) in members {
                out.push_str(&" ".repeat(indent));
                member(name, value, indent, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                out.push_str(&" ".repeat(indent));
                list_item(item, indent, out);
            }
        }
        scalar => {
            out.push_str(&" ".repeat(indent));
            out.push_str(&inline(scalar));
            out.push('\n');
        }
    }
}

fn member(name: &str, value: &Value, indent: usize, out: &mut String) {
    out.push_str(&text(name));
    out.push(':');
    match value {
        Value::Object(members) if !members.is_empty() => {
            out.push('\n');
            block(value, indent + 2, out);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            block(value, indent, out);
        }
        scalar => {
            out.push(' ');
            out.push_str(&inline(scalar));
            out.push('\n');
        }
    }
}

/// `- ` and the item; the first member of an object shares the line.
fn list_item(item: &Value, indent: usize, out: &mut String) {
    match item {
        Value::Object(_) | Value::Array(_) => {
            let mut nested = String::new();
            block(item, indent + 2, &mut nested);
            out.push_str("- ");
            out.push_str(nested.trim_start_matches(' '));
        }
        scalar => {
            out.push_str("- ");
            out.push_str(&inline(scalar));
            out.push('\n');
        }
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(string) => text(string),
        Value::Array(_) => "[]".into(),
        Value::Object(_) => "{}".into(),
        other => other.to_string(),
    }
}

fn text(string: &str) -> String {
    match is_plain(string) {
        true => string.to_owned(),
        false => Value::from(string).to_string(),
    }
}

/// Whether YAML reads the text as itself: it starts like a word and holds nothing special.
fn is_plain(string: &str) -> bool {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-');
    let word = |c: char| c.is_ascii_alphabetic();
    let reserved = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    string.starts_with(word)
        && string.split(':').all(|part| !part.is_empty() && part.chars().all(safe))
        && !reserved.contains(&string.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn values_nest_and_doubtful_text_is_quoted() {
        let value = json!([
            {"name": "app", "tags": ["v1", "1.0", "no"], "empty": [], "none": null, "size": 7},
            {"digest": "sha256:ab", "time": "2026-01-01T00:00:00Z", "inner": {"a: b": "x\ny", "deep": [[1, 2]]}},
        ]);
        expect![[r#"
            - name: app
              tags:
              - v1
              - "1.0"
              - "no"
              empty: []
              none: null
              size: 7
            - digest: sha256:ab
              time: "2026-01-01T00:00:00Z"
              inner:
                "a: b": "x\ny"
                deep:
                - - 1
                  - 2
        "#]]
        .assert_eq(&render(&value));
        assert_eq!(render(&json!([])), "[]\n");
        assert_eq!(render(&json!("")), "\"\"\n");
    }
}
