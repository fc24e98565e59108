//! Where a repository is, by its address.

use std::fmt;

use url::{Host, Url};

use crate::download::{DownloadError, Target, bad_address, percent_decoded};

/// Where git's own protocol is spoken, unless an address says otherwise.
const GIT_PORT: u16 = 9418;

#[derive(Debug, Clone)]
pub(super) enum Place {
    Http(Target),
    /// By git's own protocol, which is neither encrypted nor knows who asks.
    Git(Server),
}

/// A server that gives its connections to git.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) host: Host,
    /// If the address has one.
    port: Option<u16>,
    /// As git has it there.
    pub(super) path: String,
}

impl Place {
    pub(super) fn parse(address: &str) -> Result<Self, DownloadError> {
        match address.split_once("://") {
            Some(("git", _)) => Server::parse(address).map(Self::Git),
            _ => Target::of_git(address).map(Self::Http),
        }
    }

    /// Another repository as `.gitmodules` of this one names it.
    pub(super) fn submodule(&self, url: &str) -> Option<Self> {
        let is_relative = url.starts_with("./") || url.starts_with("../");
        match self {
            Self::Git(server) if is_relative => server.beside(url).map(Self::Git),
            Self::Http(target) if !url.starts_with("git://") => {
                target.submodule(url).map(Self::Http)
            }
            _ => Self::parse(url).ok(),
        }
    }
}

impl Server {
    fn parse(address: &str) -> Result<Self, DownloadError> {
        let url = Url::parse(address).map_err(|error| bad_address(&error.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad_address("git's own protocol has no users and passwords"));
        }
        let host = Host::parse(url.host_str().unwrap_or_default());
        let host = host.map_err(|error| bad_address(&error.to_string()))?;
        let path = percent_decoded(url.path());
        if path.chars().any(char::is_control) {
            return Err(bad_address("its path has control characters"));
        }
        Ok(Self { host, port: url.port(), path })
    }

    pub(super) fn port(&self) -> u16 {
        self.port.unwrap_or(GIT_PORT)
    }

    /// What the server is called when it is asked.
    pub(super) fn name(&self) -> (String, Option<u16>) {
        (self.host.to_string(), self.port)
    }

    /// A repository whose path is relative to this one's.
    fn beside(&self, url: &str) -> Option<Self> {
        let mut parts: Vec<&str> = self.path.trim_end_matches('/').split('/').collect();
        for part in url.split('/') {
            match part {
                "" | "." => (),
                // The first is what is in front of the path.
                ".." if parts.len() > 1 => drop(parts.pop()),
                ".." => return None,
                part => parts.push(part),
            }
        }
        let path = parts.join("/");
        let is_fine = !path.is_empty() && !path.chars().any(char::is_control);
        is_fine.then(|| Self { path, ..self.clone() })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(target) => target.fmt(f),
            Self::Git(server) => {
                write!(f, "git://{}", server.host)?;
                if let Some(port) = server.port {
                    write!(f, ":{port}")?;
                }
                f.write_str(&server.path)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_gits_own_protocol_are_read() {
        for (address, expected) in [
            ("git://h.example/u/r.git", Ok(("h.example", 9418, "/u/r.git"))),
            ("git://h:7/a%20b", Ok(("h", 7, "/a b"))),
            ("git://127.1/r", Ok(("127.0.0.1", 9418, "/r"))),
            ("git://[::1]:7/r", Ok(("[::1]", 7, "/r"))),
            ("git://me@h/r", Err("it has users")),
            ("git://h/a%0ab", Err("it has a line break")),
            ("git:///r", Err("it has no host")),
        ] {
            match (Server::parse(address), expected) {
                (Ok(server), Ok((host, port, path))) => {
                    assert_eq!(server.host.to_string(), host, "{address}");
                    assert_eq!((server.port(), &*server.path), (port, path), "{address}");
                }
                (Err(_), Err(_)) => (),
                (found, _) => panic!("{address}: {found:?}"),
            }
        }
    }

    #[test]
    fn submodules_are_beside_their_repository_or_elsewhere() {
        let shown =
            |base: &str, url: &str| Some(Place::parse(base).unwrap().submodule(url)?.to_string());
        for (base, url, expected) in [
            ("git://h:7/team/app.git", "../lib.git", Some("git://h:7/team/lib.git")),
            ("git://h/team/app.git", "./lib.git", Some("git://h/team/app.git/lib.git")),
            ("git://h/team/app.git", "../../../lib.git", None),
            ("git://h/team/app.git", "https://h/x.git", Some("https://h/x.git")),
            ("git://h/team/app.git", "file:///etc", None),
            ("git://h/team/app.git", "/etc", None),
            ("https://h/team/app.git", "git://h/x.git", Some("git://h/x.git")),
            ("https://h/team/app.git", "../x.git", Some("https://h/team/x.git")),
        ] {
            assert_eq!(shown(base, url).as_deref(), expected, "{base} {url}");
        }
    }
}
