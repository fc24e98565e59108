//! Why there is a run that nobody asked for.

use serde::{Deserialize, Serialize};
use store::Millis;

/// What has started a run (runs.md section 4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum RunCause {
    #[serde(rename_all = "camelCase")]
    Timer {
        name: String,
        /// The time of the schedule, whenever the run was queued.
        occurrence: Millis,
        /// Earlier ones that no run was queued for.
        #[serde(default, skip_serializing_if = "is_zero")]
        missed: usize,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}
