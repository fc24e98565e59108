//! Secrets, to the wire.

use control::{SecretRuns, StoredSecret};

use super::time;

pub(crate) fn secret(secret: &StoredSecret) -> api::Secret {
    let (tasks, all_runs) = match &secret.runs {
        SecretRuns::All => (None, true),
        SecretRuns::Of(tasks) => (Some(tasks.iter().map(ToString::to_string).collect()), false),
    };
    api::Secret {
        id: format!("/api/v1/registries/{}/secrets/{}", secret.registry, secret.name),
        name: secret.name.to_string(),
        properties: api::SecretProperties {
            description: Some(secret.description.clone()),
            tasks,
            all_runs: Some(all_runs),
            value: None,
            creation_date: Some(time(secret.created_at)),
            last_update_date: Some(time(secret.updated_at)),
        },
    }
}
