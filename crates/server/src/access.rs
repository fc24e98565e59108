//! Who may do what in the registries.

use std::sync::Arc;

use async_trait::async_trait;
use control::Runs;
use oci::RegistryName;
use registry::{Access, Actions, Credentials, Peer, Principal, RequestContext, Resource, is_local};

use crate::keys::{Keys, attempt_of_user};

/// A server's own credentials may do all; requests without any may come from this machine
/// only (architecture.md, *Safe by default*).
pub(crate) struct ServerAccess {
    pub(crate) keys: Arc<Keys>,
    pub(crate) anonymous_loopback: bool,
    /// An attempt may use its registry while it holds its run.
    pub(crate) runs: Runs,
}

#[async_trait]
impl Access for ServerAccess {
    async fn authenticate(
        &self,
        _: &RequestContext<'_>,
        credentials: &Credentials,
    ) -> Option<Principal> {
        let Credentials { user, password } = credentials;
        if attempt_of_user(user).is_some() && self.keys.is_run_password(user, password) {
            return Some(Principal::new(user.clone()));
        }
        let found = self.keys.by_password(user, password)?;
        Some(Principal::new(found.name()))
    }

    fn anonymous(&self, request: &RequestContext<'_>) -> Option<Principal> {
        let allowed = match request.peer {
            // Only its owner can open the socket, and no web page.
            Peer::Unix => true,
            Peer::Tcp(_) => self.anonymous_loopback && is_local(request),
            Peer::Unknown => false,
        };
        allowed.then(Principal::anonymous)
    }

    fn fingerprint(&self, principal: &Principal) -> Option<String> {
        if attempt_of_user(principal.name()).is_some() {
            // Whether it still holds its run is asked with every request.
            return Some(self.keys.run_password(principal.name())[..32].to_owned());
        }
        self.keys.fingerprint(principal.name())
    }

    async fn permitted(
        &self,
        principal: &Principal,
        registry: &RegistryName,
        resource: &Resource,
        wanted: Actions,
    ) -> Actions {
        if let Some((own, run, epoch)) = attempt_of_user(principal.name()) {
            let held = own == *registry
                && self.runs.holds_lease(&own, run, epoch).await.unwrap_or_default();
            let allowed = Actions::PULL | Actions::PUSH | Actions::DELETE | Actions::METADATA_READ;
            return if held { wanted & allowed } else { Actions::NONE };
        }
        if *principal != Principal::anonymous() {
            let is_known = self.keys.fingerprint(principal.name()).is_some();
            return if is_known { wanted } else { Actions::NONE };
        }
        match resource {
            Resource::Catalog => wanted,
            Resource::Repository(_) | Resource::AllRepositories => {
                wanted & (Actions::PULL | Actions::PUSH | Actions::DELETE | Actions::METADATA_READ)
            }
        }
    }
}
