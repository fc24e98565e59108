//! Other servers: resolving references, copying images and files into the store, and images out
//! of it; and telling them something.
//!
//! Start with [`Remote::pull`] and [`Remote::push`], with [`Remote::fetch_manifest`] and
//! [`Remote::open_blob`] for what an image is made of, with [`Remote::ask_tag`] for what a tag is, with [`Downloads::fetch`] for files by
//! address, or with [`Poster::post`] to tell a server something. Whatever a registry answers is
//! checked: a manifest against the digest that named it, a blob against size and digest while it
//! streams, so a lying or broken peer costs an error and never a wrong byte in the store.
//!
//! Invariants:
//! - Plain HTTP only to loopback addresses and to hosts that the settings declare.
//! - No server is asked that users may not [reach](Reach), whatever an address, a redirect, a token
//!   service or a name server says: for files by address and posts never, for registries unless the
//!   operator has named it.
//! - Every body has a bound, every wait a time-out, every retry a count.
//! - What is pushed goes where the registry says, by plain HTTP no more than anything else; a tag
//!   moves there only after all that it names.
//! - Credentials go only to the host they are for and to the token service that this host
//!   names over HTTPS (or loopback); they never appear in an error.

mod auth;
mod blob;
mod client;
mod download;
mod error;
mod git;
mod lists;
mod post;
mod pull;
mod push;
mod reach;
mod tag;

pub use blob::{IncomingBlob, SizeRule};
pub use client::{Access, Credentials, Remote, RemoteSettings, Upstream, is_loopback};
pub use download::{Download, DownloadError, DownloadSettings, Downloaded, Downloads, Validators};
pub use error::RemoteError;
pub use git::{
    GitError, GitFetched, GitHead, GitLimits, GitSource, HostKey, LfsMissing, ssh_program,
};
pub use post::{Post, PostAnswer, PostError, Poster, PosterSettings};
pub use pull::{Pulled, RemoteManifest, Resolved};
pub use push::{ManifestToPush, Push, Pushed};
pub use reach::{BadNetwork, Network, Reach};
pub use tag::{AskedTag, NotTold, TagImage};
