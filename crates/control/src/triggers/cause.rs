//! Why there is a run that nobody asked for.

use oci::{Digest, RegistryName};
use serde::{Deserialize, Serialize};
use store::Millis;
use uuid::Uuid;

use super::SourceHost;
use crate::{RunId, TaskName};

/// What has started a run (runs.md section 4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum RunCause {
    Timer {
        name: String,
        /// The time of the schedule, whenever the run was queued.
        occurrence: Millis,
        /// Earlier ones that no run was queued for.
        #[serde(default, skip_serializing_if = "is_zero")]
        missed: usize,
    },
    BaseImages {
        id: Uuid,
        /// When the first of them moved.
        at: Millis,
        /// Each tag once, with what it is now.
        images: Vec<MovedBase>,
        /// The runs that they follow from, the last one of each task.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        chain: Vec<Link>,
        /// How many of them followed from each other.
        #[serde(default)]
        depth: usize,
    },
    Source(SourceCause),
    /// A [plan](super::Plan) that is carried out.
    Plan {
        plan: String,
        /// Who has asked for that.
        by: String,
    },
    /// A [promotion](super::Promotion) that depends on it.
    Check {
        promotion: String,
        /// Who has asked for that.
        by: String,
    },
}

/// The commit or the pull request that has started a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCause {
    pub id: Uuid,
    /// Of the trigger.
    pub name: String,
    /// Who has told it; nothing if the repository was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<SourceHost>,
    /// Without credentials.
    pub repository: String,
    /// The branch that is followed.
    pub branch: String,
    /// Of a pull request as the host tells it: some cut it short.
    pub commit: String,
    /// The number of the pull request, if it is none of the branch itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_request: Option<u64>,
}

/// A base that is another image now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedBase {
    /// Host of the registry, as the task calls it.
    pub registry: String,
    pub repository: String,
    pub tag: String,
    pub digest: Digest,
}

impl MovedBase {
    pub(super) fn is_same_tag(&self, other: &Self) -> bool {
        self.registry == other.registry
            && self.repository == other.repository
            && self.tag == other.tag
    }
}

/// The links of two chains, of each task its last run.
pub(super) fn united(chain: &[Link], other: &[Link]) -> Vec<Link> {
    let mut all: Vec<Link> = Vec::new();
    for link in chain.iter().chain(other) {
        match all.iter_mut().find(|known| known.is_same_task(link)) {
            Some(known) if known.run < link.run => known.run = link.run,
            Some(_) => (),
            None => all.push(link.clone()),
        }
    }
    all
}

impl Link {
    fn is_same_task(&self, other: &Self) -> bool {
        self.registry == other.registry && self.task == other.task
    }
}

/// A run of a task that others follow from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub registry: RegistryName,
    pub task: TaskName,
    pub run: RunId,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}
