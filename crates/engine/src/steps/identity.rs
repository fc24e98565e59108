//! Where the commands of a run ask for tokens of their identities (identity-and-secrets.md section 3).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use container::{LocalServer, LocalService, Network};

use super::TaskContext;

/// Where clouds have their metadata services, and where their clients look.
const ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(169, 254, 169, 254), 80);

/// Names the address for clients that have no other way to find it.
const VARIABLE: (&str, &str) =
    ("MSI_ENDPOINT", "http://169.254.169.254/metadata/identity/oauth2/token");

/// Gives the commands of one run tokens that say who they are.
pub trait Identities: Send + Sync + std::fmt::Debug {
    /// What answers them; `commit` is that of the git repository that they work on.
    fn server(&self, commit: Option<&str>) -> Arc<dyn LocalServer>;
}

/// What a container of the run reaches, if its network is its own.
pub(super) fn service(context: &TaskContext<'_>, network: Network) -> Option<LocalService> {
    let identities = context.request.identities.as_ref();
    let identities = identities.filter(|_| network == Network::Isolated)?;
    Some(LocalService { address: ADDRESS, server: identities.server(context.commit) })
}

pub(super) fn variable(context: &TaskContext<'_>) -> Option<(&'static str, &'static str)> {
    context.request.identities.as_ref().map(|_| VARIABLE)
}
