//! One build for several platforms: what was built, and what is told of it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use builder::{
    BuildCost, BuildEvents, Built, CacheExplanation, ImageIndexBytes, StepEnd, StepNumber,
};
use bytes::Bytes;
use container::Stream;
use oci::{Descriptor, Digest, Platform};

/// An image, or one for each platform with the index over them.
#[derive(Debug)]
pub struct BuiltImages {
    /// At least one, in the order that was asked for.
    pub images: Vec<Built>,
    /// There if several platforms were asked for.
    pub index: Option<ImageIndexBytes>,
}

impl BuiltImages {
    /// What names point at.
    pub fn descriptor(&self) -> &Descriptor {
        match (&self.index, self.images.as_slice()) {
            (Some(index), _) => &index.descriptor,
            (None, images) => &images[0].descriptor,
        }
    }

    /// What its manifests name.
    pub(crate) fn blobs(&self) -> BTreeSet<Digest> {
        let of = |image: &Built| {
            let layers = image.layers.iter().map(|layer| layer.descriptor.digest.clone());
            layers.chain([image.record.output.config.clone()]).collect::<Vec<_>>()
        };
        self.images.iter().flat_map(of).collect()
    }

    /// What all of it cost together.
    pub fn cost(&self) -> BuildCost {
        let mut sum = BuildCost::default();
        for image in &self.images {
            let mut cost = image.cost.clone();
            if self.index.is_some() {
                for step in &mut cost.steps {
                    step.name = named(&step.name, &image.platform);
                }
            }
            sum.add_concurrent(cost);
        }
        sum
    }
}

/// The name of a step with what it is for, such as a platform: `[linux/arm64 build 2/5] RUN make`.
pub(crate) fn named(name: &str, of: &impl std::fmt::Display) -> String {
    match name.strip_prefix('[') {
        Some(rest) => format!("[{of} {rest}"),
        None => format!("[{of}] {name}"),
    }
}

/// Warnings that were told already: those of the Dockerfile are the same for every platform.
pub(crate) type ToldWarnings = Mutex<BTreeSet<String>>;

/// Tells the events of one platform's build among those of the others.
pub(crate) struct PlatformEvents<'a> {
    pub(crate) events: &'a dyn BuildEvents,
    pub(crate) platform: &'a Platform,
    /// Which of them it is, from 0, and how many there are.
    pub(crate) place: (u32, u32),
    pub(crate) told: &'a ToldWarnings,
}

impl PlatformEvents<'_> {
    /// Numbers that no other platform uses.
    fn number(&self, step: StepNumber) -> StepNumber {
        let (place, count) = self.place;
        StepNumber(step.0.saturating_sub(1).saturating_mul(count).saturating_add(place + 1))
    }
}

#[async_trait]
impl BuildEvents for PlatformEvents<'_> {
    async fn step_started(&self, step: StepNumber, name: &str) {
        let name = named(name, self.platform);
        self.events.step_started(self.number(step), &name).await;
    }

    async fn output(&self, step: StepNumber, stream: Stream, bytes: Bytes) {
        self.events.output(self.number(step), stream, bytes).await;
    }

    async fn progress(&self, step: StepNumber, current: u64, total: Option<u64>) {
        self.events.progress(self.number(step), current, total).await;
    }

    async fn explained(&self, step: StepNumber, explanation: &CacheExplanation) {
        self.events.explained(self.number(step), explanation).await;
    }

    async fn step_finished(&self, step: StepNumber, end: StepEnd) {
        self.events.step_finished(self.number(step), end).await;
    }

    async fn warning(&self, text: &str) {
        let is_new =
            self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(text.to_owned());
        if is_new {
            self.events.warning(text).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Told(Mutex<Vec<String>>);

    impl Told {
        fn tell(&self, text: String) {
            self.0.lock().unwrap().push(text);
        }
    }

    #[async_trait]
    impl BuildEvents for Told {
        async fn step_started(&self, step: StepNumber, name: &str) {
            self.tell(format!("{} {name}", step.0));
        }
        async fn output(&self, _: StepNumber, _: Stream, _: Bytes) {}
        async fn progress(&self, _: StepNumber, _: u64, _: Option<u64>) {}
        async fn explained(&self, _: StepNumber, _: &CacheExplanation) {}
        async fn step_finished(&self, step: StepNumber, _: StepEnd) {
            self.tell(format!("{} finished", step.0));
        }
        async fn warning(&self, text: &str) {
            self.tell(text.to_owned());
        }
    }

    #[tokio::test]
    async fn steps_of_platforms_are_told_apart() {
        let (told, warnings) = (Told::default(), ToldWarnings::default());
        for (place, platform) in ["linux/amd64", "linux/arm/v7"].into_iter().enumerate() {
            let platform: Platform = platform.parse().unwrap();
            let place = (place as u32, 2);
            let events =
                PlatformEvents { events: &told, platform: &platform, place, told: &warnings };
            events.warning("line 1").await;
            events.step_started(StepNumber(1), "load build context").await;
            events.step_started(StepNumber(2), "[build 1/2] FROM a").await;
            events.step_finished(StepNumber(2), StepEnd::Done).await;
        }
        assert_eq!(
            *told.0.lock().unwrap(),
            [
                "line 1",
                "1 [linux/amd64] load build context",
                "3 [linux/amd64 build 1/2] FROM a",
                "3 finished",
                "2 [linux/arm/v7] load build context",
                "4 [linux/arm/v7 build 1/2] FROM a",
                "4 finished",
            ]
        );
    }
}
