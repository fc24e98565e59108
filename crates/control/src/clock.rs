//! The time, as the edges read it.

use std::sync::Arc;

use store::Millis;

/// Tells the time in milliseconds since 1970. The server hands in the real one, tests
/// their own.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Millis + Send + Sync>);

impl Clock {
    pub fn new(now: impl Fn() -> Millis + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub fn now(&self) -> Millis {
        (self.0)()
    }
}
