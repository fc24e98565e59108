//! What templates know of a run (task-yaml.md section 6.2).

use builder::RecordedRepository;
use oci::Platform;
use task::{RunVariables, Secrets, Values, Variables};

use crate::execute::{BuildStep, Failure};
use crate::{Engine, RunRequest};

/// What a run is, as far as it is known by now.
pub(crate) struct RunFacts<'a> {
    pub(crate) run: &'a str,
    /// Empty: it is no run of a stored task.
    pub(crate) task_name: &'a str,
    pub(crate) platform: &'a Platform,
    /// Seconds since 1970.
    pub(crate) now: i64,
    /// The git repository that is the context.
    pub(crate) repository: Option<&'a RecordedRepository>,
}

impl RunFacts<'_> {
    pub(crate) fn variables(&self, engine: &Engine) -> RunVariables {
        RunVariables {
            id: self.run.to_owned(),
            registry: engine.own.host(&engine.registry).unwrap_or_default().to_owned(),
            started: jiff::Timestamp::from_second(self.now).unwrap_or_default(),
            commit: self.repository.map(|from| from.commit.clone()).unwrap_or_default(),
            branch: self.repository.map(branch).unwrap_or_default(),
            task_name: self.task_name.to_owned(),
            shared_volume: format!("workspace_{}", self.run),
            os: self.platform.os.clone(),
            architecture: self.platform.architecture.clone(),
            ..RunVariables::default()
        }
    }
}

/// As `git rev-parse --abbrev-ref HEAD` has it (contexts.md section 2.1).
fn branch(repository: &RecordedRepository) -> String {
    repository.branch.clone().unwrap_or_else(|| "HEAD".to_owned())
}

/// Whether the names or arguments of a build say something that is known only in its run.
pub(crate) fn has_variables(step: &BuildStep) -> bool {
    let exports = step.options.cache_to.iter().map(|export| &export.image_name);
    step.image_names.iter().chain(exports).any(|name| name.contains("{{"))
        || step.arguments.iter().any(|argument| !argument.secret && is_of_run(&argument.value))
}

/// What an argument says in braces is otherwise meant for somebody else: it is `docker`'s form too.
fn is_of_run(value: &str) -> bool {
    value.contains("{{") && value.contains(".Run.")
}

/// What errors call the name of an image or of a cache.
const IMAGE_NAME: &str = "the image name";

/// The step with what is known of the run in its names and arguments.
pub(crate) fn render(
    engine: &Engine,
    request: &RunRequest,
    repository: Option<&RecordedRepository>,
) -> Result<BuildStep, Failure> {
    let mut step = request.step.clone();
    let platform = step.platforms.first().cloned().unwrap_or_else(Platform::host);
    let (run, task_name, now) = (request.run.as_str(), request.task_name.as_str(), request.now);
    let facts = RunFacts { run, task_name, platform: &platform, now, repository };
    let run = facts.variables(engine);
    let variables =
        Variables { now: run.started, run, values: Values::default(), ..Variables::default() };
    let render = |what: &str, text: &mut String| {
        let rendered = task::render(text, &variables, &Secrets::new());
        let rendered = rendered.map_err(|error| Failure::User(error.render(what, text)))?;
        if rendered.is_empty() && what == IMAGE_NAME {
            return Err(Failure::User(format!(
                "error: {what} `{text}` comes to nothing in this run"
            )));
        }
        *text = rendered;
        Ok(())
    };
    for name in &mut step.image_names {
        render(IMAGE_NAME, name)?;
    }
    for export in &mut step.options.cache_to {
        render(IMAGE_NAME, &mut export.image_name)?;
    }
    for argument in &mut step.arguments {
        if !argument.secret && is_of_run(&argument.value) {
            render(&format!("build argument `{}`", argument.name), &mut argument.value)?;
        }
    }
    Ok(step)
}
