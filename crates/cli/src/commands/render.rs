//! `refit render`: what a task file comes to, and the graph of its steps, without a server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use jiff::Timestamp;
use serde::Serialize;
use task::{
    Action, AliasImages, AliasSource, RunDefaults, RunVariables, SecretText, Secrets, Task,
    TaskError, TaskFile, Values, Variables,
};

use super::Session;
use super::task_input::{ValueArgs, is_stdin, read_alias_file, read_task_file, read_values_file};
use crate::error::{Error, Result};
use crate::printer::Table;
use crate::sanitize::sanitize_text;

/// Shown in the place of a secret value.
const HIDDEN: &str = "***";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Task file; - reads it from standard input
    #[arg(long, short, value_name = "FILE", default_value = task::DEFAULT_FILE)]
    file: PathBuf,

    #[command(flatten)]
    values: ValueArgs,

    /// File with values
    #[arg(long = "values", value_name = "FILE")]
    values_file: Option<PathBuf>,
}

/// What a file comes to, for programs.
#[derive(Debug, Serialize)]
struct Rendered {
    text: String,
    steps: Vec<Step>,
}

#[derive(Debug, Serialize)]
struct Step {
    id: String,
    kind: &'static str,
    /// The steps that it waits for.
    after: Vec<String>,
}

pub(super) async fn run(session: &Session<'_>, args: Args) -> Result<()> {
    let source = read_task_file(&args.file).await?;
    let name = match is_stdin(&args.file) {
        true => "standard input".to_owned(),
        false => args.file.display().to_string(),
    };
    let refused = |error: TaskError| refused(&error, &name, &source);
    let variables = variables(&args)?;
    let file = TaskFile::read(&source, &variables).map_err(refused)?;
    let sources = alias_sources(file.alias_sources())?;
    let file = file.expand(&sources, &images(), &variables).map_err(refused)?;
    let mut secrets = Secrets::new();
    for secret in file.secrets(&variables).map_err(refused)? {
        let (id, vault) = (&secret.id, &secret.address);
        session.printer.note(&format!("The secret `{id}` of {vault} is shown empty"));
        secrets.insert(secret.id, SecretText::new(""));
    }
    let file = file.render(&variables, &secrets).map_err(refused)?;
    let text = without_secrets(file.text(), &args.values)?;
    let (task, warnings) = file.task(&RunDefaults::default()).map_err(refused)?;
    for warning in warnings {
        let shown = warning.render_warning(&name, &source);
        session.printer.warning(shown.strip_prefix("warning: ").unwrap_or(&shown).trim_end());
    }
    let rendered = Rendered { text, steps: steps(&task) };
    session.printer.text(&rendered, &shown(&rendered))
}

/// The error with its line. Its label is the printer's.
fn refused(error: &TaskError, name: &str, source: &str) -> Error {
    let shown = error.render(name, source);
    Error::failed(shown.strip_prefix("error: ").unwrap_or(&shown))
}

/// Samples of what only a run knows, and the values that were given.
fn variables(args: &Args) -> Result<Variables> {
    let now = Timestamp::now();
    let run = RunVariables {
        id: "ca1".to_owned(),
        registry: "local".to_owned(),
        started: now,
        os: "linux".to_owned(),
        architecture: "amd64".to_owned(),
        ..RunVariables::default()
    };
    Ok(Variables { run, values: values(args)?, now, ..Variables::default() })
}

/// The values as a run has them: those that are set over those of the file.
fn values(args: &Args) -> Result<Values> {
    let mut values = match &args.values_file {
        None => Values::default(),
        Some(file) => {
            let text = read_values_file(file)?;
            let values = Values::from_file(&text);
            values.map_err(|error| refused(&error, &file.display().to_string(), &text))?
        }
    };
    for api::SetValue { name, value, is_secret } in args.values.values()? {
        let value = value.unwrap_or_default();
        let set = match is_secret {
            true => values.set_secret(&name, &SecretText::new(value)),
            false => values.set_value(&name, &value),
        };
        set.map_err(|error| {
            let told = Error::usage(error.to_string());
            match error.hint {
                Some(hint) => told.with_hint(hint),
                None => told,
            }
        })?;
    }
    Ok(values)
}

/// The server says which images the names of tools stand for: they stand for themselves here.
fn images() -> AliasImages {
    let name = |name: &str| name.to_owned();
    AliasImages {
        acr: name("acr"),
        az: name("az"),
        bash: name("bash"),
        curl: name("curl"),
        cssc: name("cssc"),
    }
}

/// Files with more aliases, from here.
fn alias_sources(wanted: &[AliasSource]) -> Result<BTreeMap<AliasSource, String>> {
    let mut sources = BTreeMap::new();
    for source in wanted {
        let text = match source {
            AliasSource::File(file) => read_alias_file(Path::new(file))?,
            AliasSource::Url(address) => {
                let message = format!(
                    "the alias source `{address}` is an address, which is fetched only by a run"
                );
                return Err(Error::failed(message)
                    .with_hint("save it to a file, and name that in `src` of `alias`"));
            }
        };
        sources.insert(source.clone(), text);
    }
    Ok(sources)
}

/// A text without the values of `--set-secret`, as they are and in Base64.
fn without_secrets(text: &str, values: &ValueArgs) -> Result<String> {
    let mut hidden = Vec::new();
    for value in values.values()?.into_iter().filter(|value| value.is_secret) {
        let value = value.value.unwrap_or_default();
        hidden.push(base64::engine::general_purpose::STANDARD.encode(&value));
        hidden.push(value);
    }
    hidden.retain(|value| !value.is_empty());
    // The longest first, so that no part of one stays.
    hidden.sort_by_key(|value| std::cmp::Reverse(value.len()));
    Ok(hidden.iter().fold(text.to_owned(), |text, value| text.replace(value, HIDDEN)))
}

fn steps(task: &Task) -> Vec<Step> {
    let id = |number: usize| task.steps[number].id.clone();
    let step = |(number, step): (usize, &task::Step)| Step {
        id: step.id.clone(),
        kind: match step.action {
            Action::Cmd(_) => "cmd",
            Action::Build(_) => "build",
            Action::Push(_) => "push",
        },
        after: task.graph.predecessors(number).map(id).collect(),
    };
    task.steps.iter().enumerate().map(step).collect()
}

/// The text, then a line for each step.
fn shown(rendered: &Rendered) -> String {
    let text = sanitize_text(rendered.text.trim_end());
    let mut table = Table::new(["STEP", "KIND", "STARTS"]);
    for Step { id, kind, after } in &rendered.steps {
        let starts = match after.is_empty() {
            true => "at once".to_owned(),
            false => format!("after {}", after.join(", ")),
        };
        table.row([id.clone(), (*kind).to_owned(), starts]);
    }
    let parts = [text, table.render()];
    let parts: Vec<&str> =
        parts.iter().map(|part| part.trim_end()).filter(|part| !part.is_empty()).collect();
    match parts.is_empty() {
        true => String::new(),
        false => parts.join("\n\n") + "\n",
    }
}
