//! The `/v2/` protocol: OCI distribution-spec 1.1 over the content store; and what there is to say of
//! it, `/acr/v1/`, as clients of the managed service ask for it.
//!
//! [`router()`] is the whole crate seen from outside: it takes a [`RegistryState`] and serves
//! `/v2/...`, `/acr/v1/...` and `/oauth2/token`. A request passes four stations, each a module: `route`
//! reads its path, `auth` finds out who asks and whether they may, a handler (`blobs`,
//! `uploads`, `manifests`, `listings`, `referrers`, `metadata`) translates between HTTP and
//! [`store::Catalog`], and `error` turns what went wrong into the codes of the specification.
//!
//! Invariants:
//! - No accounts: who may do what is the [`Access`] trait's to say, and nothing is allowed
//!   that it did not allow. A token carries only scopes that `Access` granted.
//! - Blobs are not a commons: one is served, mounted or found only through a repository
//!   that has it and that the principal may pull.
//! - Bodies stream: memory per request does not grow with the size of a blob. What is
//!   received whole, a manifest, waits until there is room for it.
//! - What another registry sends is served only after it was checked against its digest, but for
//!   a blob on its way, which nobody gets to its end before.
//! - Manifests are served byte for byte as they came.

mod access;
mod auth;
mod blobs;
mod body;
mod error;
mod hosts;
mod listings;
mod manifests;
mod metadata;
mod pull_through;
mod range;
mod referrers;
mod room;
mod route;
mod router;
mod token;
mod uploads;

pub use access::{
    Access, Act, Actions, Busy, Class, Credentials, Deed, Peer, Principal, Proven, RequestContext,
    Resource, Secure, is_local, same_secret,
};
pub use hosts::Hosts;
pub use pull_through::{PullThrough, PullThroughSettings, Upstream};
pub use router::{Limits, RegistryState, router};
pub use token::{Grant, Scope, TokenError, TokenKind, TokenSigner};
