//! Room in memory for what is received whole.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

/// Up to this size manifests are small, as nearly all are.
const SMALL: usize = 64 << 10;

/// Room for manifests from their first byte until they are stored. Small and large ones have
/// one half each, so that large ones which come slowly cannot keep the small waiting.
pub(crate) struct Room {
    small: Semaphore,
    large: Semaphore,
    half: usize,
}

impl Room {
    pub(crate) fn new(bytes_max: usize) -> Self {
        let half = (bytes_max / 2).min(Semaphore::MAX_PERMITS);
        Self { small: Semaphore::new(half), large: Semaphore::new(half), half }
    }

    /// Waits until there is room for so many bytes; what is larger than all of it waits for
    /// all of it. `None` if that takes longer than `patience`.
    pub(crate) async fn take(
        &self,
        bytes: usize,
        patience: Duration,
    ) -> Option<SemaphorePermit<'_>> {
        let part = if bytes <= SMALL { &self.small } else { &self.large };
        let permits = u32::try_from(bytes.min(self.half)).unwrap_or(u32::MAX);
        tokio::time::timeout(patience, part.acquire_many(permits)).await.ok()?.ok()
    }
}
