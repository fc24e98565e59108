//! The build checks of one build: told as soon as they can be.
//!
//! What the Dockerfile says by itself is told before anything is executed; what depends on an
//! image that it names, once that image is known.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use dockerfile::lint::{Finding, KnownImage, LintOptions, lint};
use dockerfile::{Dockerfile, DockerfileError, PlanOptions, Span};
use oci::Platform;

use crate::error::BuildError;
use crate::event::BuildEvents;
use crate::image::BaseImage;

/// What is told of one Dockerfile, once.
pub(crate) struct Checks<'a> {
    dockerfile: &'a Dockerfile,
    /// The Dockerfile's name in messages.
    name: &'a str,
    plan: PlanOptions,
    events: &'a dyn BuildEvents,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By line and column of what names them.
    images: BTreeMap<(u32, u32), KnownImage>,
    told: Vec<Finding>,
}

impl<'a> Checks<'a> {
    pub(crate) fn new(
        dockerfile: &'a Dockerfile,
        name: &'a str,
        plan: PlanOptions,
        events: &'a dyn BuildEvents,
    ) -> Self {
        Self { dockerfile, name, plan, events, state: Mutex::default() }
    }

    /// Tells what is found and was not told before. That there is anything is an error if the
    /// Dockerfile says so. What the ignore file excludes is not known here.
    pub(crate) async fn tell(&self) -> Result<(), BuildError> {
        let (new, error) = self.find()?;
        for finding in &new {
            let (file, line) = (self.name, finding.at.line);
            let text = format!("{file}:{line}: {} ({})", finding.message, finding.rule);
            self.events.warning(&text).await;
        }
        match error {
            Some(first) => {
                let message = format!("{} ({})", first.message, first.rule);
                let hint = "`# check=error=true` makes an error of every warning".to_owned();
                Err(DockerfileError { message, at: first.at, hint: Some(hint) }.into())
            }
            None => Ok(()),
        }
    }

    /// Takes note of an image that the instruction or mount at a place names, and tells what that
    /// gives. Triggers have the place of their `FROM`: only its own image counts there.
    pub(crate) async fn image_is_known(
        &self,
        at: Span,
        image: &BaseImage,
    ) -> Result<(), BuildError> {
        let config = &image.config;
        let platform = (!config.architecture.is_empty())
            .then(|| Platform::new(&config.os, &config.architecture, config.variant.as_deref()));
        let env = config.config.on_build.is_empty().then(|| config.config.env.clone());
        let known = KnownImage { env, platform };
        self.state().images.entry((at.line, at.column)).or_insert(known);
        self.tell().await
    }

    /// The findings that are new, and the first of all if they are errors.
    fn find(&self) -> Result<(Vec<Finding>, Option<Finding>), DockerfileError> {
        let mut state = self.state();
        let image = |at: Span| state.images.get(&(at.line, at.column)).cloned();
        let options = LintOptions { plan: &self.plan, image: &image, ignore: None };
        let found = lint(self.dockerfile, &options)?;
        let error = found.findings.first().cloned().filter(|_| found.is_error);
        let mut new = found.findings;
        new.retain(|finding| !state.told.contains(finding));
        state.told.extend(new.iter().cloned());
        Ok((new, error))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
