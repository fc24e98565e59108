//! Go templates: the language by `gotmpl`, the functions of Sprig by [`functions`], and
//! bounds for templates that would not end or grow without one by [`budget`].

mod budget;
mod functions;
mod json;
mod tree;
mod variables;

use std::collections::HashMap;
use std::sync::Arc;

use gotmpl::parse::{DefineNode, Parser};
use gotmpl::{Template, TemplateError, Value};

pub use variables::{RunVariables, Secrets, Values, Variables};

use crate::span::{Span, TaskError};
use budget::{Budget, Output, RENDERED_MAX};
use functions::Functions;
use tree::{Rewriter, UnknownFunction};

/// Bytes of a template.
pub(crate) const TEMPLATE_MAX: usize = 2 << 20;
/// How many actions a text may have. Each takes about a kilobyte once it is parsed.
const ACTIONS_MAX: usize = 50_000;
/// How often all loops of a rendering together may turn.
const TURNS_MAX: u64 = 1_000_000;
/// How often a text may say `else if`: the parser takes each as deeper nesting, and unlike
/// other nesting does not bound it.
const ELSE_IF_MAX: usize = 300;
/// The name of the text itself among the templates it defines.
const MAIN: &str = "\0task file";
/// How a missing value is printed, and then removed.
const NO_VALUE: &str = "<no value>";

/// Renders a text as a Go template.
pub fn render(text: &str, variables: &Variables, secrets: &Secrets) -> Result<String, TaskError> {
    render_text(text, variables, secrets)
        .map_err(|error| error.shown_in(text).masked(&variables.hidden(secrets)))
}

/// Renders a Go template over a JSON value, as `--format` of docker's commands does: there is `json`
/// besides.
pub fn render_json(text: &str, data: &serde_json::Value) -> Result<String, TaskError> {
    let budget = Arc::new(Budget::new());
    let functions = Functions::new(text, Arc::clone(&budget), &Variables::default()).with_json();
    let rendered = execute(text, functions, &budget, &json::from_json(data));
    rendered.map_err(|error| error.shown_in(text))
}

fn render_text(text: &str, variables: &Variables, secrets: &Secrets) -> Result<String, TaskError> {
    if !text.contains("{{") {
        return Ok(text.replace(NO_VALUE, ""));
    }
    let budget = Arc::new(Budget::new());
    let functions = Functions::new(text, Arc::clone(&budget), variables);
    execute(text, functions, &budget, &variables.data(secrets))
}

fn execute(
    text: &str,
    functions: Functions,
    budget: &Arc<Budget>,
    data: &Value,
) -> Result<String, TaskError> {
    if text.len() > TEMPLATE_MAX {
        return Err(TaskError::new(format!("template: it has more than {TEMPLATE_MAX} bytes")));
    }
    let template = prepare(text, &functions)?.funcs(functions.into_map());
    let mut output = Output::new(budget);
    match template.execute_template_fmt(&mut output, MAIN, data) {
        Ok(()) => Ok(output.text.replace(NO_VALUE, "")),
        Err(error) => Err(TaskError::at(action(text, budget.position()), message(&error, &output))),
    }
}

/// Parses a text, with a place and a cost for each node.
fn prepare(text: &str, functions: &Functions) -> Result<Template, TaskError> {
    let syntax = |error: TemplateError| match error {
        TemplateError::Lex { line, col, message, .. }
        | TemplateError::Parse { line, col, message, .. } => {
            let at = Span { line: line.max(1), column: col.max(1), width: 1 };
            TaskError::at(at, format!("template: {message}"))
        }
        error => TaskError::new(format!("template: {error}")),
    };
    if text.matches("{{").count() > ACTIONS_MAX {
        return Err(TaskError::new(format!("template: it has more than {ACTIONS_MAX} actions")));
    }
    if else_ifs(text) > ELSE_IF_MAX {
        let message = format!("template: there is `else if` more than {ELSE_IF_MAX} times");
        return Err(
            TaskError::new(message).with_hint("a dict and `index` choose among many values")
        );
    }
    let (main, defines) = Parser::new(text, "{{", "}}").and_then(Parser::parse).map_err(syntax)?;
    let rewriter = Rewriter { is_function: &|name| functions.has(name) };
    let unknown = |UnknownFunction { name, offset }: UnknownFunction| {
        let at = Span::between(text, offset, offset + name.len());
        TaskError::at(at, format!("template: there is no function `{name}`"))
            .with_nearest(&name, functions.names())
    };
    let mut template = Template::new("").max_range_iters(TURNS_MAX);
    let mut defined: HashMap<_, bool> = HashMap::new();
    for DefineNode { pos, name, body } in defines {
        // As in Go, an empty definition yields to any other, and others must not compete.
        let is_empty = body.is_empty_tree();
        match defined.get(&name) {
            Some(_) if is_empty => continue,
            Some(false) => {
                let at = Span::between(text, pos.offset, pos.offset + "define".len());
                return Err(TaskError::at(at, format!("template: `{name}` is defined twice")));
            }
            _ => (),
        }
        template = template.add_parse_tree(&name, rewriter.list(body).map_err(unknown)?);
        defined.insert(name, is_empty);
    }
    Ok(template.add_parse_tree(MAIN, rewriter.list(main).map_err(unknown)?))
}

/// How often `else` is followed by `if` or `with`, be it in a template or not.
fn else_ifs(text: &str) -> usize {
    let follows = |rest: &&str| {
        let next = rest.trim_start();
        next.len() < rest.len() && (next.starts_with("if") || next.starts_with("with"))
    };
    text.split("else").skip(1).filter(follows).count()
}

/// The action at an offset, to the end of its line.
fn action(text: &str, offset: usize) -> Span {
    let start = text.get(..offset).and_then(|before| before.rfind("{{")).unwrap_or(offset);
    let length = text.get(start..).and_then(|rest| rest.find("}}")).map_or(2, |end| end + 2);
    Span::between(text, start, start + length)
}

fn message(error: &TemplateError, output: &Output<'_>) -> String {
    match error {
        TemplateError::Exec(message) => format!("template: {message}"),
        TemplateError::Write if output.is_full => {
            format!("template: it renders to more than {RENDERED_MAX} bytes")
        }
        TemplateError::RangeIterLimit => {
            format!("template: its loops turn more than {TURNS_MAX} times")
        }
        TemplateError::RecursionLimit => "template: it is nested too deep".to_owned(),
        TemplateError::Write => message(&budget::too_much(), output),
        error => format!("template: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_formatted_as_docker_does() {
        let data = serde_json::json!({
            "Id": "sha256:a", "Size": 7, "Config": {"Env": ["A=b", "C"], "User": null},
        });
        let format = |text: &str| render_json(text, &data).unwrap_or_else(|e| e.to_string());
        assert_eq!(format("{{.Id}} {{.Size}} {{.None}}"), "sha256:a 7 ");
        assert_eq!(format("{{json .Config}}"), r#"{"Env":["A=b","C"],"User":null}"#);
        assert_eq!(format("{{range .Config.Env}}{{.}};{{end}}"), "A=b;C;");
        assert_eq!(format("{{index .Config.Env 1}}"), "C");
        assert!(format("{{nothing}}").contains("there is no function `nothing`"));
        assert!(render("{{json .Run}}", &Variables::default(), &Secrets::new()).is_err());
    }
}
