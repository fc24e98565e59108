//! What a registry does by itself: its policies, of which not all are enabled together.

use oci::RegistryName;
use sqlx::SqliteConnection;

use super::{Catalog, retention, soft_delete};
use crate::error::database;
use crate::model::{Policies, PoliciesChange, Policy};
use crate::{Result, StoreError};

impl Catalog {
    /// What a registry does by itself.
    pub async fn policies(&self, registry: &RegistryName) -> Result<Policies> {
        let connection = self.db.reads().acquire().await;
        let mut connection = connection.map_err(database("look up policies"))?;
        of(&mut connection, registry).await
    }

    /// Changes it, all or nothing; gives what it does from now on. `Exclusive` if both were enabled
    /// then: what may be restored is not what goes by itself (registry.md section 7).
    ///
    /// Retention that is switched off forgets what was to go; switched on, it begins with what loses
    /// its last tag from then on, and so it is with other days. Soft delete that is switched off leaves
    /// what can be restored as it is; other days count for all of that.
    pub async fn change_policies(
        &self,
        registry: &RegistryName,
        change: PoliciesChange,
    ) -> Result<Policies> {
        let registry = registry.clone();
        self.write(move |connection| {
            Box::pin(async move {
                let old = of(connection, &registry).await?;
                let new = Policies {
                    retention: change
                        .retention
                        .map_or(old.retention, |change| change.of(old.retention)),
                    soft_delete: change
                        .soft_delete
                        .map_or(old.soft_delete, |change| change.of(old.soft_delete)),
                };
                if new.retention.enabled && new.soft_delete.enabled {
                    return Err(match old.soft_delete.enabled {
                        true => StoreError::Exclusive {
                            wanted: Policy::Retention,
                            enabled: Policy::SoftDelete,
                        },
                        false => StoreError::Exclusive {
                            wanted: Policy::SoftDelete,
                            enabled: Policy::Retention,
                        },
                    });
                }
                if change.retention.is_some() {
                    retention::write(connection, &registry, new.retention).await?;
                }
                if change.soft_delete.is_some() {
                    soft_delete::write(connection, &registry, new.soft_delete).await?;
                }
                Ok(new)
            })
        })
        .await
    }
}

async fn of(connection: &mut SqliteConnection, registry: &RegistryName) -> Result<Policies> {
    Ok(Policies {
        retention: retention::of(connection, registry).await?,
        soft_delete: soft_delete::of(connection, registry).await?,
    })
}
