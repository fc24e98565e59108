//! Who may do what in the registries.

use std::sync::Arc;

use async_trait::async_trait;
use oci::RegistryName;
use registry::{Access, Actions, Credentials, Peer, Principal, RequestContext, Resource, is_local};

use crate::keys::Keys;

/// A server's own credentials may do all; requests without any may come from this machine
/// only (architecture.md, *Safe by default*).
pub(crate) struct ServerAccess {
    pub(crate) keys: Arc<Keys>,
    pub(crate) anonymous_loopback: bool,
}

#[async_trait]
impl Access for ServerAccess {
    async fn authenticate(
        &self,
        _: &RequestContext<'_>,
        credentials: &Credentials,
    ) -> Option<Principal> {
        let found = self.keys.by_password(&credentials.user, &credentials.password)?;
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
        self.keys.fingerprint(principal.name())
    }

    async fn permitted(
        &self,
        principal: &Principal,
        _: &RegistryName,
        resource: &Resource,
        wanted: Actions,
    ) -> Actions {
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
