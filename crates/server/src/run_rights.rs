//! What runs may do in their own registry: all, or what the identity may that their task names for it
//! (identity-and-secrets.md section 1).

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use builder::{BaseImage, BaseImages, ImageError, OwnNames};
use control::{
    Area, ChosenIdentity, Granted, Identity, OwnIdentity, Rights, Run, Runs, TaskIdentity, Tasks,
};
use engine::{Engine, RunRights};
use housekeeping::{MayAll, MayUse, Use};
use oci::{Descriptor, Digest, Manifest, Platform, Reference, RegistryName, RepositoryName};

use crate::access::{Principal, failed};
use crate::keys::Keys;

/// Decides what runs may do. Cheap to clone.
#[derive(Clone)]
pub(crate) struct RunAccess {
    /// The registries where a run may do no more than its identity.
    pub(crate) by_identity: Arc<BTreeSet<RegistryName>>,
    pub(crate) runs: Runs,
    pub(crate) tasks: Tasks,
    pub(crate) permissions: control::Access,
    pub(crate) keys: Arc<Keys>,
}

/// What one run may do in the repositories of its registry.
pub(crate) struct OwnRights {
    registry: RegistryName,
    granted: Granted,
    who: Who,
}

/// As whom a run uses its registry, for those who are told that it may not.
enum Who {
    /// Nothing names anybody; with the name of the task.
    Nobody(Option<String>),
    /// Named, and not there any more.
    Gone(String),
    Task(String),
    Account(String),
    Caller(Option<String>),
}

impl RunAccess {
    pub(crate) fn is_by_identity(&self, registry: &RegistryName) -> bool {
        self.by_identity.contains(registry)
    }

    /// What a run may do now; `None`: all that runs may.
    pub(crate) async fn of(&self, run: &Run) -> control::Result<Option<OwnRights>> {
        let registry = run.registry.clone();
        if !self.is_by_identity(&registry) {
            return Ok(None);
        }
        let task = run.task.as_ref().map(ToString::to_string);
        let nothing = Granted::default();
        let (granted, who) = match run.request.logins().own_identity {
            None => (nothing, Who::Nobody(task)),
            Some(OwnIdentity::Caller) => {
                let granted = self.of_caller(run).await?;
                (granted, Who::Caller(run.started_by.clone()))
            }
            Some(named) => {
                let identity = self.identity_of(run).await?;
                let (chosen, name) = match named {
                    OwnIdentity::Of(id) => (identity.chosen(Some(id)), id.to_string()),
                    OwnIdentity::System | OwnIdentity::Caller => {
                        (identity.system.map(ChosenIdentity::System), "[system]".to_owned())
                    }
                };
                match chosen {
                    Some(chosen) => {
                        let who = match chosen {
                            ChosenIdentity::System(_) => Who::Task(task.unwrap_or_default()),
                            ChosenIdentity::Account(account) => {
                                Who::Account(account.name.to_string())
                            }
                        };
                        (self.permissions.granted_to_identity(chosen, &registry).await?, who)
                    }
                    None => (nothing, Who::Gone(name)),
                }
            }
        };
        Ok(Some(OwnRights { registry, granted, who }))
    }

    /// Whom a run can be now. What its task was given or lost meanwhile counts; a task that was made
    /// after the run is another one.
    pub(crate) async fn identity_of(&self, run: &Run) -> control::Result<TaskIdentity> {
        let Some(name) = &run.task else { return Ok(TaskIdentity::default()) };
        let task = self.tasks.get(&run.registry, name).await?;
        let task = task.filter(|task| task.created_at <= run.created_at);
        Ok(task.map(|task| task.definition.identity).unwrap_or_default())
    }

    async fn of_caller(&self, run: &Run) -> control::Result<Granted> {
        match run.started_by.as_deref().and_then(Principal::by_name) {
            Some(Principal::Owner) => Ok(Granted::ALL),
            Some(own @ (Principal::ApiToken | Principal::Admin)) => {
                let is_there = self.keys.fingerprint(&own).is_some();
                Ok(if is_there { Granted::ALL } else { Granted::default() })
            }
            Some(Principal::Known(Identity::Account(name))) => {
                // One that was made after the run is somebody else.
                let account = self.permissions.account(&name).await?;
                let is_they = account
                    .is_some_and(|found| found.enabled && found.created_at <= run.created_at);
                match is_they {
                    true => self.permissions.granted(&Identity::Account(name), &run.registry).await,
                    false => Ok(Granted::default()),
                }
            }
            // Tokens start nothing.
            Some(Principal::Known(Identity::Token { .. }) | Principal::Anonymous) | None => {
                Ok(Granted::default())
            }
        }
    }

    async fn find(&self, registry: &RegistryName, run: &str) -> control::Result<Option<Run>> {
        match run.parse() {
            Ok(id) => self.runs.get(registry, id).await,
            Err(_) => Ok(None),
        }
    }
}

impl OwnRights {
    pub(crate) fn rights(&self, area: Area<'_>) -> Rights {
        self.granted.rights(area)
    }
}

impl MayUse for OwnRights {
    fn refused(&self, repository: &RepositoryName, wanted: Use) -> Option<String> {
        let (needed, verb) = match wanted {
            Use::List => (Rights::METADATA_READ, "see what is in"),
            Use::Pull => (Rights::CONTENT_READ, "pull from"),
            // Who pushes reads (registry.md section 4.1).
            Use::Push => (Rights::CONTENT_READ | Rights::CONTENT_WRITE, "push to"),
            Use::Delete => (Rights::CONTENT_DELETE, "delete from"),
        };
        if self.rights(Area::Repository(repository)).contains(needed) {
            return None;
        }
        let registry = &self.registry;
        let rule = format!("a run may do in registry `{registry}` what its identity may");
        let (who, hint) = match &self.who {
            Who::Nobody(Some(task)) => (
                format!("task `{task}` names none"),
                format!(
                    "`refit task update {task} --source-acr-auth-id [system]` names the task itself"
                ),
            ),
            Who::Nobody(None) => (
                "this one names none".to_owned(),
                "`--source-acr-auth-id [caller]` starts it with your rights".to_owned(),
            ),
            Who::Gone(identity) => (
                format!("its task has not the identity `{identity}` any more"),
                "`refit task identity show` lists those that it has".to_owned(),
            ),
            Who::Task(task) => (
                format!("task `{task}` may not"),
                format!("`refit scope-map assign MAP --task {task}` gives it a scope map"),
            ),
            Who::Account(account) => (
                format!("account `{account}` may not"),
                format!("`refit scope-map assign MAP --account {account}` gives it a scope map"),
            ),
            Who::Caller(Some(caller)) => (
                format!("`{caller}`, who started it, may not"),
                "a role or a scope map lets somebody".to_owned(),
            ),
            Who::Caller(None) => (
                "nobody is known to have started it".to_owned(),
                "a stored task can have an identity of its own".to_owned(),
            ),
        };
        Some(format!("the run may not {verb} `{repository}`: {rule}, and {who}\nhint: {hint}"))
    }
}

#[async_trait]
impl RunRights for RunAccess {
    /// If its identity may, where that counts; else if whoever started it may.
    async fn may_unlock(&self, registry: &RegistryName, run: &str) -> bool {
        let run = self.find(registry, run).await.inspect_err(failed).unwrap_or_default();
        let Some(run) = run else { return false };
        let granted = match self.of(&run).await {
            Ok(Some(own)) => Ok(own.granted),
            Ok(None) => self.of_caller(&run).await,
            Err(error) => Err(error),
        };
        let granted = granted.inspect_err(failed).unwrap_or_default();
        granted.rights(Area::AllRepositories).contains(Rights::METADATA_WRITE)
    }

    async fn repositories(
        &self,
        registry: &RegistryName,
        run: &str,
    ) -> Result<Arc<dyn MayUse>, String> {
        if !self.is_by_identity(registry) {
            return Ok(Arc::new(MayAll));
        }
        let unknown = |error: control::ControlError| {
            failed(&error);
            "what the run may do in its registry cannot be looked up".to_owned()
        };
        let found = self.find(registry, run).await.map_err(unknown)?;
        let Some(run) = found else { return Err(format!("there is no run `{run}`")) };
        Ok(match self.of(&run).await.map_err(unknown)? {
            Some(rights) => Arc::new(rights),
            None => Arc::new(MayAll),
        })
    }
}

/// Bounds what an engine does for a run in its registry. What the run lacks when it begins, it is told
/// before it builds; what it lacks later, when it comes to that.
pub(crate) async fn bound(
    engine: &mut Engine,
    access: &RunAccess,
    run: &Run,
) -> Result<(), String> {
    if !access.is_by_identity(&run.registry) {
        return Ok(());
    }
    let may = access.repositories(&run.registry, &run.id.to_string()).await?;
    let (copies, pushes) = (Arc::clone(&engine.pushes.refused), Arc::clone(&may));
    engine.pushes.refused =
        Arc::new(move |name| copies(name).or_else(|| pushes.refused(name, Use::Push)));
    let (all, own) = (Arc::clone(&engine.images), engine.own.clone());
    let access: Arc<dyn RunRights> = Arc::new(access.clone());
    let (registry, run) = (run.registry.clone(), run.id.to_string());
    engine.images = Arc::new(move |remote| {
        Arc::new(PermittedOwn {
            images: all(remote),
            own: own.clone(),
            access: Arc::clone(&access),
            registry: registry.clone(),
            run: run.clone(),
            began: Arc::clone(&may),
        })
    });
    Ok(())
}

/// Images of everywhere, and of the own registry those that a run may pull.
struct PermittedOwn {
    images: Arc<dyn BaseImages>,
    own: OwnNames,
    access: Arc<dyn RunRights>,
    registry: RegistryName,
    run: String,
    /// What it could do when it began.
    began: Arc<dyn MayUse>,
}

impl PermittedOwn {
    /// Whether a reference names the registry of the run. Images of the server's other registries are
    /// not there for it anyhow.
    fn is_own(&self, reference: &Reference) -> bool {
        self.own.registry(reference) == Some(&self.registry)
    }

    fn check_with(&self, may: &dyn MayUse, reference: &Reference) -> Result<(), ImageError> {
        if self.own.registry(reference).is_none() && engine::leads_here(&self.own, &reference.host)
        {
            return Err(ImageError::Pull {
                reference: reference.familiar(),
                reason: "that is another name of this server".to_owned(),
                hint: Some("name its registry as the server does".to_owned()),
                refused: true,
            });
        }
        if !self.is_own(reference) {
            return Ok(());
        }
        match may.refused(&reference.repository, Use::Pull) {
            None => Ok(()),
            Some(refused) => {
                let (reason, hint) = refused.split_once("\nhint: ").unwrap_or((&refused, ""));
                Err(ImageError::Pull {
                    reference: reference.familiar(),
                    reason: reason.to_owned(),
                    hint: Some(hint.to_owned()),
                    refused: true,
                })
            }
        }
    }

    /// That the registry has an image of that name as well is not told to who may not see it.
    fn without_namesake(&self, error: ImageError) -> ImageError {
        match error {
            ImageError::Pull { reference, reason, hint: Some(hint), refused }
                if self.own.hosts(&self.registry).any(|host| hint.contains(host)) =>
            {
                ImageError::Pull { reference, reason, hint: None, refused }
            }
            error => error,
        }
    }

    async fn check_now(&self, reference: &Reference) -> Result<(), ImageError> {
        if !self.is_own(reference) {
            return self.check_with(&*self.began, reference);
        }
        let may = self.access.repositories(&self.registry, &self.run).await;
        let may = may.map_err(|reason| ImageError::Pull {
            reference: reference.familiar(),
            reason,
            hint: None,
            refused: false,
        })?;
        self.check_with(&*may, reference)
    }
}

#[async_trait]
impl BaseImages for PermittedOwn {
    async fn check(&self, reference: &Reference) -> Result<(), ImageError> {
        self.check_with(&*self.began, reference)?;
        self.images.check(reference).await
    }

    async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<BaseImage, ImageError> {
        self.check_now(reference).await?;
        let resolved = self.images.resolve(reference, platform, progress).await;
        resolved.map_err(|error| self.without_namesake(error))
    }

    async fn manifest(&self, reference: &Reference) -> Result<(Digest, Manifest), ImageError> {
        self.check_now(reference).await?;
        let manifest = self.images.manifest(reference).await;
        manifest.map_err(|error| self.without_namesake(error))
    }

    async fn fetch(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ImageError> {
        self.check_now(reference).await?;
        self.images.fetch(reference, blob, progress).await
    }
}

#[cfg(test)]
mod tests {
    use builder::CatalogImages;
    use store::memory::MemoryStore;
    use store::{Catalog, Cause, Expected, NewArtifact};

    use super::*;

    /// Another registry, which gives nobody anything, and the rights of who may do nothing here.
    struct Nothing;

    impl Nothing {
        fn refusal(reference: &Reference) -> ImageError {
            ImageError::Pull {
                reference: reference.familiar(),
                reason: "it is not there".to_owned(),
                hint: None,
                refused: true,
            }
        }
    }

    #[async_trait]
    impl BaseImages for Nothing {
        async fn resolve(
            &self,
            reference: &Reference,
            _: &Platform,
            _: &(dyn Fn(u64) + Send + Sync),
        ) -> Result<BaseImage, ImageError> {
            Err(Self::refusal(reference))
        }

        async fn manifest(&self, reference: &Reference) -> Result<(Digest, Manifest), ImageError> {
            Err(Self::refusal(reference))
        }

        async fn fetch(
            &self,
            reference: &Reference,
            _: &Descriptor,
            _: &(dyn Fn(u64) + Send + Sync),
        ) -> Result<(), ImageError> {
            Err(Self::refusal(reference))
        }
    }

    #[async_trait]
    impl RunRights for Nothing {
        async fn may_unlock(&self, _: &RegistryName, _: &str) -> bool {
            false
        }

        async fn repositories(
            &self,
            registry: &RegistryName,
            _: &str,
        ) -> Result<Arc<dyn MayUse>, String> {
            let (registry, granted) = (registry.clone(), Granted::default());
            Ok(Arc::new(OwnRights { registry, granted, who: Who::Nobody(None) }))
        }
    }

    #[tokio::test]
    async fn a_bare_name_does_not_tell_what_the_registry_has() {
        let db = db::Db::in_memory().await.unwrap();
        let memory = MemoryStore::open(db.clone()).await.unwrap();
        let catalog = Catalog::open(db, Arc::new(memory)).await.unwrap();
        let registry = RegistryName::default();
        let own = OwnNames::new([("registry.test".to_owned(), registry.clone())]);
        let new = NewArtifact {
            artifact_type: "application/x".to_owned(),
            layers: Vec::new(),
            subject: None,
            annotations: Default::default(),
        };
        let (tags, cause) =
            ([(oci::Tag::latest(), Expected::Any)], Cause::Import { source: "test".to_owned() });
        let name = "team/base".parse().unwrap();
        catalog.put_artifact(&registry, &name, new, &tags, &cause).await.unwrap();
        let images =
            CatalogImages::new(catalog, registry.clone(), own.clone(), Some(Arc::new(Nothing)));
        let images: Arc<dyn BaseImages> = Arc::new(images);
        let began = Nothing.repositories(&registry, "c1").await.unwrap();
        let permitted = PermittedOwn {
            images: Arc::clone(&images),
            own,
            access: Arc::new(Nothing),
            registry,
            run: "c1".to_owned(),
            began,
        };
        let (bare, platform) = ("team/base".parse().unwrap(), Platform::host());
        let of = async |images: &dyn BaseImages| {
            let resolved = images.resolve(&bare, &platform, &|_| ()).await.unwrap_err();
            let read = images.manifest(&bare).await.unwrap_err();
            [resolved, read].map(|error| (error.to_string(), error.hint()))
        };
        let (told, all) = (of(&permitted).await, of(&*images).await);
        for ((message, hint), (same, hint_of_all)) in told.into_iter().zip(all) {
            assert_eq!((message, hint), (same, None));
            assert!(hint_of_all.unwrap().contains("`registry.test/team/base`"));
        }
        let own: Reference = "registry.test/team/base".parse().unwrap();
        let refused = permitted.manifest(&own).await.unwrap_err();
        assert!(refused.to_string().contains("the run may not pull from `team/base`"), "{refused}");
    }
}
