//! `null` where a list or a map belongs.

use serde::{Deserialize, Deserializer};

/// Reads `null` as the empty value: Docker writes it where OCI has nothing, and so do Go
/// programs for a list that was never filled.
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
