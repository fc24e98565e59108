//! How commands name a stored task.

/// A name given as an argument or, as `az acr` has it, by a flag.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct TaskArg {
    /// Task
    #[arg(value_name = "TASK")]
    task: Option<String>,
    #[arg(long = "name", short, hide = true)]
    name_flag: Option<String>,
}

impl TaskArg {
    pub(super) fn name(&self) -> &str {
        self.task.as_deref().or(self.name_flag.as_deref()).unwrap_or_default()
    }
}
