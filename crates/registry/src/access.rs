//! Who asks, what they may do, and whether a request comes from this very machine.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::{BitAnd, BitOr};
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderMap;
use http::header::{HOST, ORIGIN};
use oci::{Digest, RegistryName, RepositoryName};

/// Decides who may do what. Whatever it does not allow is refused.
#[async_trait]
pub trait Access: Send + Sync {
    /// Who presents these credentials to a registry, or `None` if they are wrong. Implementations
    /// compare secrets with [`same_secret`].
    async fn authenticate(
        &self,
        registry: &RegistryName,
        request: &RequestContext<'_>,
        credentials: &Credentials,
    ) -> Result<Option<Proven>, Busy>;

    /// Who a request without credentials is, or `None` if it must present some. See
    /// [`is_local`] for the rule of loopback listeners.
    fn anonymous(&self, request: &RequestContext<'_>) -> Option<Principal>;

    /// Whether what a principal proved itself with is still good. Tokens carry its fingerprint and
    /// end with it: with a new password, or a user switched off. Not asked for anonymous callers,
    /// whose tokens are good where [`Self::anonymous`] lets them in.
    async fn holds(&self, principal: &Principal, credential: &str) -> bool;

    /// Whether one more request of somebody who was let in may be answered now.
    fn admit(&self, principal: &Principal, peer: Peer, class: Class) -> Result<(), Busy> {
        let _ = (principal, peer, class);
        Ok(())
    }

    /// Told of a token that is none of ours: whether it is to be refused as such, or for coming too
    /// often.
    fn wrong_token(&self, peer: Peer) -> Result<(), Busy> {
        let _ = peer;
        Ok(())
    }

    /// Whom a token of another issuer proves somebody to be, and for how long that holds; nobody, where
    /// no issuer is trusted.
    async fn exchange(
        &self,
        registry: &RegistryName,
        peer: Peer,
        token: &str,
    ) -> Result<Option<(Proven, Duration)>, Busy> {
        let _ = (registry, peer, token);
        Ok(None)
    }

    /// Told of each request once it is answered, before the answer goes out.
    async fn note(&self, act: Act<'_>);

    /// Those of `wanted` that the principal may do.
    async fn permitted(
        &self,
        principal: &Principal,
        registry: &RegistryName,
        resource: &Resource,
        wanted: Actions,
    ) -> Actions;
}

/// It was too much at once, or too often; another try after a while may be lucky.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy {
    pub what: &'static str,
    pub retry_after: Duration,
}

/// Requests that are counted together (registry.md section 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    Read,
    Write,
    Delete,
    /// Counted as [`Self::Read`] too.
    Referrers,
    /// Asking for a token.
    Login,
}

impl Class {
    pub fn of(method: &http::Method) -> Self {
        match *method {
            http::Method::GET | http::Method::HEAD | http::Method::OPTIONS => Self::Read,
            http::Method::DELETE => Self::Delete,
            _ => Self::Write,
        }
    }
}

/// What a request was to do, if it was to change something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// A manifest, as `REPOSITORY:TAG` or `REPOSITORY@DIGEST`, and further tags.
    Push(String),
    /// A manifest, a tag, a blob or a repository.
    Delete(String),
    /// Attributes of a repository, a tag or a manifest.
    Update(String),
    /// A manifest that was deleted.
    Restore(String),
    /// To get a token with a user name and password.
    Login,
}

impl Deed {
    /// Adds what only the handler of the request knew.
    pub(crate) fn tell(&mut self, more: &str) {
        match self {
            Self::Update(target) | Self::Restore(target) if !more.is_empty() => {
                target.push_str(&format!(" ({more})"));
            }
            _ => (),
        }
    }
}

/// A request that was answered.
#[derive(Debug, Clone, Copy)]
pub struct Act<'a> {
    /// Nothing, where no registry has the name that was asked for.
    pub registry: Option<&'a RegistryName>,
    /// Nothing, where nobody has proven who they are; so it is when no credentials were shown.
    pub principal: Option<&'a Principal>,
    /// Whether there were credentials.
    pub with_credentials: bool,
    pub deed: Option<&'a Deed>,
    pub peer: Peer,
    pub method: &'a http::Method,
    /// Without its query.
    pub path: &'a str,
    pub status: http::StatusCode,
}

/// A user, a token, a run: whoever acts. The name goes to the tag journal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Principal {
    name: Cow<'static, str>,
}

impl Principal {
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: name.into() }
    }

    /// All requests without credentials are one principal.
    pub fn anonymous() -> Self {
        Self::new("anonymous")
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

/// A principal, and what it has proven itself with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    pub principal: Principal,
    /// A fingerprint of the credential, from which nobody learns it.
    pub credential: String,
}

impl Proven {
    /// Whoever needs no credential.
    pub fn anonymous() -> Self {
        Self { principal: Principal::anonymous(), credential: String::new() }
    }
}

/// A user name and its password, as basic authentication or a form brings them.
#[derive(Clone)]
pub struct Credentials {
    pub user: String,
    pub password: String,
}

/// The password does not print.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Whether two secrets are equal, in a time that does not depend on where they differ:
/// their digests are compared, all bytes of them.
pub fn same_secret(left: &str, right: &str) -> bool {
    let (left, right) = (Digest::of(left.as_bytes()), Digest::of(right.as_bytes()));
    let pairs = left.hex().bytes().zip(right.hex().bytes());
    let difference = pairs.fold(0u8, |seen, (a, b)| std::hint::black_box(seen | (a ^ b)));
    difference == 0
}

/// What a scope is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Resource {
    Repository(RepositoryName),
    /// `repository:*`: every repository, also those that do not exist yet.
    AllRepositories,
    /// `registry:catalog`: the list of repositories. Reading it is [`Actions::PULL`].
    Catalog,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repository(name) => write!(f, "repository:{name}"),
            Self::AllRepositories => f.write_str("repository:*"),
            Self::Catalog => f.write_str("registry:catalog"),
        }
    }
}

/// A set of things to do with a [`Resource`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Actions(u8);

impl Actions {
    pub const NONE: Self = Self(0);
    pub const PULL: Self = Self(1);
    pub const PUSH: Self = Self(1 << 1);
    pub const DELETE: Self = Self(1 << 2);
    pub const METADATA_READ: Self = Self(1 << 3);
    pub const METADATA_WRITE: Self = Self(1 << 4);
    pub const ALL: Self = Self((1 << 5) - 1);

    const NAMES: [(&'static str, Self); 5] = [
        ("pull", Self::PULL),
        ("push", Self::PUSH),
        ("delete", Self::DELETE),
        ("metadata_read", Self::METADATA_READ),
        ("metadata_write", Self::METADATA_WRITE),
    ];

    /// Reads `pull,push` or `*`; names that we do not know grant nothing.
    pub fn parse(text: &str) -> Self {
        text.split(',').fold(Self::NONE, |actions, name| actions | Self::named(name.trim()))
    }

    /// One action by its name in lower or upper case, `*` for all, or none.
    pub fn named(name: &str) -> Self {
        match name {
            "*" => return Self::ALL,
            // As clients of the managed service ask for it.
            "deleted_read" => return Self::METADATA_READ,
            "deleted_restore" => return Self::PUSH | Self::DELETE,
            _ => (),
        }
        let known = Self::NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        known.map_or(Self::NONE, |(_, action)| *action)
    }

    /// The names of the actions in the set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.iter().filter(move |(_, action)| self.contains(*action)).map(|(name, _)| *name)
    }

    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for Actions {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Actions {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Display for Actions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.names().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{name}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Actions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Actions({self})")
    }
}

/// The other end of a connection. The server puts one into the extensions of each request;
/// a request without one comes from nobody we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Peer {
    Tcp(SocketAddr),
    /// The Unix socket in the data folder, which only its owner can open.
    Unix,
    #[default]
    Unknown,
}

/// In the extensions of a request that came over TLS: tokens are then asked for over TLS too.
#[derive(Debug, Clone, Copy)]
pub struct Secure;

/// What [`Access`] may want to know of a request besides its credentials.
#[derive(Debug, Clone, Copy)]
pub struct RequestContext<'a> {
    pub peer: Peer,
    /// The `Host` header, empty if there is none.
    pub host: &'a str,
    /// The web page that made the request, if a browser says so.
    pub origin: Option<&'a str>,
    /// `Sec-Fetch-Site`, which browsers send also where they send no origin.
    pub fetch_site: Option<&'a str>,
    /// Whether a proxy says that it passes the request on for somebody.
    pub forwarded: bool,
}

impl<'a> RequestContext<'a> {
    pub(crate) fn new(peer: Peer, uri: &'a http::Uri, headers: &'a HeaderMap) -> Self {
        let text =
            |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
        Self {
            peer,
            host: uri.authority().map(|host| host.as_str()).or(text(HOST.as_str())).unwrap_or(""),
            origin: headers.get(ORIGIN).map(|origin| origin.to_str().unwrap_or("opaque")),
            fetch_site: text("sec-fetch-site"),
            forwarded: headers.keys().any(is_of_proxy),
        }
    }
}

/// Whether a header tells that a proxy is between us and the client.
fn is_of_proxy(name: &http::HeaderName) -> bool {
    matches!(name.as_str(), "forwarded" | "via" | "x-real-ip")
        || name.as_str().starts_with("x-forwarded-")
}

/// Whether a request comes from a program on this machine that means to reach us: over
/// loopback or the Unix socket, to a loopback name, not from a web page of somebody else, and
/// not through a proxy. The `Host` rule is what stops DNS rebinding, the origin rule what
/// stops pages. A proxy on this machine that neither keeps `Host` nor says what it is cannot
/// be told from a program.
pub fn is_local(request: &RequestContext<'_>) -> bool {
    let from_here = match request.peer {
        Peer::Tcp(address) => address.ip().to_canonical().is_loopback(),
        Peer::Unix => true,
        Peer::Unknown => false,
    };
    from_here && is_loopback_host(request.host) && !is_foreign_page(request) && !request.forwarded
}

fn is_foreign_page(request: &RequestContext<'_>) -> bool {
    let foreign_origin = request.origin.is_some_and(|origin| {
        let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        host.is_none_or(|host| !host.eq_ignore_ascii_case(request.host))
    });
    let foreign_site =
        request.fetch_site.is_some_and(|site| !matches!(site, "same-origin" | "none"));
    foreign_origin || foreign_site
}

/// `localhost`, a name below it, `127.0.0.0/8` or `[::1]`, with or without a port.
fn is_loopback_host(host: &str) -> bool {
    let name = host_name(host);
    let name = name.strip_suffix('.').unwrap_or(name);
    if let Some(address) = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        return address.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    }
    if let Ok(address) = name.parse::<std::net::Ipv4Addr>() {
        return address.is_loopback();
    }
    let name = name.to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

/// A `Host` header without its port.
pub(crate) fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(peer: &str, host: &str, origin: Option<&str>) -> bool {
        let peer = match peer {
            "unix" => Peer::Unix,
            "" => Peer::Unknown,
            address => Peer::Tcp(address.parse().unwrap()),
        };
        is_local(&RequestContext { peer, host, origin, fetch_site: None, forwarded: false })
    }

    #[test]
    fn programs_on_this_machine_are_local() {
        for (peer, host) in [
            ("127.0.0.1:4000", "127.0.0.1:5000"),
            ("127.0.0.1:4000", "localhost:5000"),
            ("127.0.0.1:4000", "LOCALHOST"),
            ("127.0.0.1:4000", "refit.localhost:5000"),
            ("[::1]:4000", "[::1]:5000"),
            ("[::1]:4000", "[::1]"),
            ("[::ffff:127.0.0.1]:4000", "localhost"),
            ("unix", "localhost"),
        ] {
            assert!(from(peer, host, None), "{peer} {host}");
        }
        assert!(from("127.0.0.1:1", "localhost:5000", Some("http://localhost:5000")));
    }

    #[test]
    fn everybody_else_is_not() {
        for (peer, host, origin) in [
            ("10.0.0.1:4000", "localhost:5000", None),
            ("127.0.0.1:4000", "evil.example:5000", None), // DNS rebinding
            ("127.0.0.1:4000", "", None),
            ("127.0.0.1:4000", "localhost.evil.example", None),
            ("127.0.0.1:4000", "127.0.0.1.evil.example", None),
            ("127.0.0.1:4000", "notlocalhost", None),
            ("127.0.0.1:4000", "localhost:5000", Some("http://evil.example")),
            ("127.0.0.1:4000", "localhost:5000", Some("http://localhost:6000")),
            ("127.0.0.1:4000", "localhost:5000", Some("null")),
            ("unix", "evil.example", None),
            ("", "localhost", None),
        ] {
            assert!(!from(peer, host, origin), "{peer} {host} {origin:?}");
        }
    }

    #[test]
    fn a_page_that_hides_its_origin_is_still_foreign() {
        let peer = Peer::Tcp("127.0.0.1:1".parse().unwrap());
        let request = |fetch_site| RequestContext {
            peer,
            host: "localhost",
            origin: None,
            fetch_site,
            forwarded: false,
        };
        assert!(!is_local(&request(Some("cross-site"))));
        assert!(!is_local(&request(Some("same-site"))));
        assert!(is_local(&request(Some("none"))));
    }

    #[test]
    fn what_a_proxy_passes_on_is_not_local() {
        let peer = Peer::Tcp("127.0.0.1:1".parse().unwrap());
        let uri = http::Uri::from_static("/v2/");
        for (name, expected) in [
            ("Accept", true),
            ("X-Forward", true),
            ("Forwarded", false),
            ("Via", false),
            ("X-Real-IP", false),
            ("X-Forwarded-For", false),
            ("X-Forwarded-Proto", false),
            ("x-forwarded-anything", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, "localhost:5000".parse().unwrap());
            headers.insert(http::HeaderName::try_from(name).unwrap(), "".parse().unwrap());
            let request = RequestContext::new(peer, &uri, &headers);
            assert_eq!(is_local(&request), expected, "{name}");
        }
    }

    #[test]
    fn secrets_are_equal_or_not() {
        assert!(same_secret("", ""));
        assert!(same_secret("correct horse", "correct horse"));
        assert!(!same_secret("correct horse", "correct horsf"));
        assert!(!same_secret("correct horse", "correct hors"));
    }

    #[test]
    fn actions_read_and_write_their_names() {
        assert_eq!(Actions::parse("pull,push,fly").to_string(), "pull,push");
        assert_eq!(Actions::parse("*"), Actions::ALL);
        assert_eq!(Actions::parse(""), Actions::NONE);
        assert!(!Actions::PULL.contains(Actions::PULL | Actions::PUSH));
    }
}
