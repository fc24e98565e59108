//! Values that builds may use and nobody may see.

use std::collections::BTreeMap;
use std::fmt;

/// Bytes that are not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    pub fn new(value: impl Into<Vec<u8>>) -> Self {
        Self(value.into())
    }

    pub(crate) fn value(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

/// Secrets by the ids that `RUN --mount=type=secret` names.
pub type Secrets = BTreeMap<String, Secret>;
