//! Commands of `acr`, which work on the run's registry, wherever that is.

use std::sync::Arc;

use async_trait::async_trait;
use builder::OwnNames;
use container::Stream;
use housekeeping::acr::{self, OwnRegistry, Previews};
use housekeeping::{HousekeepingError, MayUse, Record, Records, Registry};
use oci::RegistryName;
use serde::{Deserialize, Serialize};
use store::{Catalog, Cause};
use tokio_util::sync::CancellationToken;

use crate::PushPolicy;

/// A command, by the words that follow `acr`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcrCommand {
    pub words: Vec<String>,
    /// Which registry it is for if the words do not say; `None`: that of the run.
    pub default_registry: Option<String>,
    /// Whether `annotate` is a command.
    #[serde(default)]
    pub annotate: bool,
}

/// Receives what a command prints, line by line.
#[async_trait]
pub trait Lines: Send + Sync {
    async fn line(&self, stream: Stream, text: &str);
}

/// Why a command did not come to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcrError {
    #[error("it was canceled")]
    Canceled,
    /// The user's to mend.
    #[error("{message}")]
    Refused { message: String, hint: Option<String> },
    /// Ours.
    #[error("{0}")]
    Failed(String),
}

/// Carries out commands on a registry.
#[async_trait]
pub trait Housekeeper: Send + Sync {
    /// Does so once, for a run. If it is canceled it ends at the next tag or manifest.
    async fn run(
        &self,
        run: &str,
        command: &AcrCommand,
        lines: &dyn Lines,
        stop: &CancellationToken,
    ) -> Result<(), AcrError>;
}

/// The registry is in this catalog.
pub struct LocalHousekeeper {
    pub catalog: Catalog,
    pub registry: RegistryName,
    pub own: OwnNames,
    pub pushes: PushPolicy,
    pub rights: Arc<dyn RunRights>,
}

/// Says what runs may do in their own registry.
#[async_trait]
pub trait RunRights: Send + Sync {
    /// Whether it may lift locks.
    async fn may_unlock(&self, registry: &RegistryName, run: &str) -> bool;

    /// What it may do in which repositories, now; or why that cannot be told.
    async fn repositories(
        &self,
        registry: &RegistryName,
        run: &str,
    ) -> Result<Arc<dyn MayUse>, String>;
}

#[async_trait]
impl Housekeeper for LocalHousekeeper {
    async fn run(
        &self,
        run: &str,
        command: &AcrCommand,
        lines: &dyn Lines,
        stop: &CancellationToken,
    ) -> Result<(), AcrError> {
        let parsed = parse(command, &self.registry, &self.own)?;
        let login_server = self.own.host(&self.registry).unwrap_or(self.registry.as_str());
        let may = self.rights.repositories(&self.registry, run).await.map_err(AcrError::Failed)?;
        let registry = Registry {
            catalog: self.catalog.clone(),
            name: self.registry.clone(),
            login_server: login_server.to_owned(),
            cause: Cause::Purge { run: Some(run.to_owned()), principal: None },
            may_unlock: self.rights.may_unlock(&self.registry, run).await,
            refused: Arc::clone(&self.pushes.refused) as _,
            may,
            now: jiff::Timestamp::now().as_millisecond(),
        };
        let records = Printed { lines, login_server };
        acr::run(&registry, &parsed, &records, stop).await.map_err(|error| match error {
            HousekeepingError::Canceled => AcrError::Canceled,
            error if error.is_users() => {
                AcrError::Refused { message: error.to_string(), hint: error.hint() }
            }
            error => AcrError::Failed(crate::execute::with_hint(&error, None)),
        })
    }
}

/// Reads the words of a command.
pub(crate) fn parse(
    command: &AcrCommand,
    registry: &RegistryName,
    own: &OwnNames,
) -> Result<acr::Command, AcrError> {
    let hosts: Vec<String> = own.hosts(registry).map(str::to_owned).collect();
    let default = command.default_registry.as_deref();
    let own = OwnRegistry { name: registry.as_str(), hosts: &hosts, default };
    acr::parse(&command.words, &own, Previews { annotate: command.annotate })
        .map_err(|error| AcrError::Refused { message: error.to_string(), hint: error.hint() })
}

/// Records as a program would print them.
struct Printed<'a> {
    lines: &'a dyn Lines,
    login_server: &'a str,
}

#[async_trait]
impl Records for Printed<'_> {
    async fn take(&self, record: Record) {
        let stream = match record {
            Record::Warning(_) => Stream::Stderr,
            Record::Line(_) | Record::Item { .. } => Stream::Stdout,
        };
        self.lines.line(stream, &record.text(self.login_server)).await;
    }
}
