//! Secrets, from the wire.

use control::{BadSecretName, SecretChange, SecretName, SecretRuns, TaskName};
use task::SecretText;

use super::tasks::task_name;
use crate::error::ApiError;

pub(crate) fn secret_name(text: &str) -> Result<SecretName, ApiError> {
    text.parse().map_err(|error: BadSecretName| ApiError::invalid(error.to_string()))
}

/// What is to be changed. Who may have a secret is said, never guessed.
pub(crate) fn secret(body: api::Secret) -> Result<SecretChange, ApiError> {
    let api::SecretProperties { description, tasks, all_runs, value, .. } = body.properties;
    let names = |tasks: Vec<String>| tasks.iter().map(|task| task_name(task)).collect();
    let runs = match (tasks, all_runs.unwrap_or_default()) {
        (None, false) => None,
        (None, true) => Some(SecretRuns::All),
        (Some(tasks), false) => {
            let names: Result<Vec<TaskName>, ApiError> = names(tasks);
            Some(SecretRuns::Of(names.map_err(|error| error.at("properties.tasks"))?))
        }
        (Some(_), true) => {
            let error = ApiError::invalid("a secret is for some tasks or for all runs, not both");
            return Err(error.at("properties.allRuns"));
        }
    };
    let value = value.map(|value| SecretText::new(value.0));
    Ok(SecretChange { description, runs, value })
}
