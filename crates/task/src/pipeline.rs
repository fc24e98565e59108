//! The way of a task file from text to task, step by step (task-yaml.md section 2).

use std::collections::BTreeMap;

use crate::alias::{AliasImages, AliasSection, AliasSource, Aliases};
use crate::schema;
use crate::span::{TaskError, Warning, Warnings};
use crate::task::{self, Action, RunDefaults, Secret, Task};
use crate::template::{self, Secrets, Variables};
use crate::text::{Sections, has_aliases, split_aliases, strip_comments};
use crate::yaml;

/// Bytes of a task file.
const TASK_FILE_MAX: usize = 1 << 20;
/// Without this in its text, a file has no secrets to fetch.
const SECRETS: &str = "secrets";

/// A task file without its comments, its alias section read.
///
/// None of the forms of a file can be printed for debugging: values may be secret.
pub struct TaskFile {
    body: String,
    /// Nothing if the version has no aliases.
    aliases: Option<AliasSection>,
    warnings: Vec<Warning>,
}

impl TaskFile {
    /// Reads the text of a task file as far as that is possible without other files.
    pub fn read(text: &str, variables: &Variables) -> Result<Self, TaskError> {
        if text.len() > TASK_FILE_MAX {
            return Err(TaskError::new(format!(
                "the task file has more than {TASK_FILE_MAX} bytes"
            ))
            .with_hint("move scripts and data into files of the context"));
        }
        let text = strip_comments(text.strip_prefix('\u{feff}').unwrap_or(text));
        if !has_aliases(&text) {
            return Ok(Self { body: text, aliases: None, warnings: Vec::new() });
        }
        let Sections { body, aliases } = split_aliases(&text);
        let none = Secrets::new();
        let rendered = template::render(&aliases, variables, &none)?;
        let mut warnings = Warnings::default();
        let hidden = variables.hidden(&none);
        let show = |error| shown(error, &rendered, &aliases, &hidden);
        let section = AliasSection::parse(&rendered, &mut warnings).map_err(show)?;
        let warnings = warnings.shown(show);
        Ok(Self { body, aliases: Some(section), warnings })
    }

    /// Whether its version has aliases.
    pub fn has_aliases(&self) -> bool {
        self.aliases.is_some()
    }

    /// The files and addresses with more aliases that [`Self::expand`] needs.
    pub fn alias_sources(&self) -> &[AliasSource] {
        self.aliases.as_ref().map_or(&[], |section| &section.sources)
    }

    /// Replaces aliases in the text.
    pub fn expand(
        self,
        sources: &BTreeMap<AliasSource, String>,
        images: &AliasImages,
        variables: &Variables,
    ) -> Result<ExpandedFile, TaskError> {
        let Self { body, aliases, warnings } = self;
        let Some(section) = aliases else {
            return Ok(ExpandedFile { text: body, aliases: None, warnings });
        };
        let aliases = section.aliases(sources, images, &variables.run)?;
        Ok(ExpandedFile { text: aliases.expand(&body)?, aliases: Some(aliases), warnings })
    }
}

/// A task file with its aliases replaced: a template.
pub struct ExpandedFile {
    text: String,
    aliases: Option<Aliases>,
    warnings: Vec<Warning>,
}

impl ExpandedFile {
    /// The secrets to fetch before [`Self::render`], found by a first rendering without any.
    pub fn secrets(&self, variables: &Variables) -> Result<Vec<Secret>, TaskError> {
        if !self.text.contains(SECRETS) {
            return Ok(Vec::new());
        }
        let none = Secrets::new();
        let text = template::render(&self.text, variables, &none)?;
        let read = parse(&text, &mut Warnings::default()).and_then(|file| task::secrets(&file));
        read.map_err(|error| shown(error, &text, &self.text, &variables.hidden(&none)))
    }

    /// Renders the template. A text that has something must not come to nothing.
    pub fn render(
        self,
        variables: &Variables,
        secrets: &Secrets,
    ) -> Result<RenderedFile, TaskError> {
        let text = template::render(&self.text, variables, secrets)?;
        if text.trim().is_empty() && !self.text.trim().is_empty() {
            return Err(TaskError::new("the task file renders to nothing")
                .with_hint("a file without steps is `steps: []`"));
        }
        let hidden = variables.hidden(secrets);
        let Self { text: template, aliases, warnings } = self;
        Ok(RenderedFile { text, template, aliases, warnings, hidden })
    }
}

/// A task file as YAML.
pub struct RenderedFile {
    text: String,
    /// What the text was made of, without the values of secrets.
    template: String,
    aliases: Option<Aliases>,
    warnings: Vec<Warning>,
    /// What errors must not show.
    hidden: Vec<String>,
}

impl RenderedFile {
    /// The text, with all aliases and templates expanded. It may have secrets in it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The task, and what is odd about the file.
    pub fn task(self, run: &RunDefaults) -> Result<(Task, Vec<Warning>), TaskError> {
        let Self { text, template, aliases, mut warnings, hidden } = self;
        let show = |error| shown(error, &text, &template, &hidden);
        let mut more = Warnings::default();
        let task = parse(&text, &mut more).and_then(|file| task::task(&file, run));
        let mut task = task.map_err(show)?;
        warnings.extend(more.shown(show));
        for step in &mut task.steps {
            if let (Action::Cmd(cmd), Some(aliases)) = (&mut step.action, &aliases) {
                cmd.command = aliases.replace_command(&cmd.command);
            }
        }
        Ok((task, warnings))
    }
}

fn parse(text: &str, warnings: &mut Warnings) -> Result<schema::Task, TaskError> {
    let root = yaml::parse(text, warnings)?;
    schema::Task::read(root.as_ref(), warnings)
}

/// An error with the line it is about, and without what must be hidden. If there are secrets,
/// a line that a template made may have them in some other form, and is not shown at all.
fn shown(error: TaskError, text: &str, template: &str, hidden: &[String]) -> TaskError {
    let error = error.shown_in(text);
    let error = match hidden.is_empty() {
        true => error,
        false => error.shown_only_from(template),
    };
    error.masked(hidden)
}
