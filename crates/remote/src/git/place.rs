//! Where a repository is, by its address.

use std::fmt;

use url::{Host, Url};

use crate::download::{DownloadError, Target, bad_address, percent_decoded};

/// Where git's own protocol is spoken, unless an address says otherwise.
pub(super) const GIT_PORT: u16 = 9418;

#[derive(Debug, Clone)]
pub(super) enum Place {
    Http(Target),
    /// By git's own protocol, which is neither encrypted nor knows who asks.
    Git(Server),
    Ssh {
        user: String,
        server: Server,
    },
}

/// The user of an address that names none.
const SSH_USER: &str = "git";

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
            Some(("ssh", _)) => Self::parse_ssh(address),
            None if address.contains('@') => Self::parse_short(address),
            _ => Target::of_git(address).map(Self::Http),
        }
    }

    /// `ssh://[USER@]HOST[:PORT]/PATH`.
    fn parse_ssh(address: &str) -> Result<Self, DownloadError> {
        let url = Url::parse(address).map_err(|error| bad_address(&error.to_string()))?;
        if url.password().is_some() {
            return Err(bad_address("over SSH there are no passwords"));
        }
        let user = match url.username() {
            "" => SSH_USER.to_owned(),
            user => percent_decoded(user),
        };
        let path = percent_decoded(url.path());
        // The folder of a user.
        let path = if path.starts_with("/~") { path[1..].to_owned() } else { path };
        Self::ssh(user, url.host_str().unwrap_or_default(), url.port(), path)
    }

    /// `USER@HOST:PATH`: the path begins in the folder of the user.
    fn parse_short(address: &str) -> Result<Self, DownloadError> {
        let (user, rest) = address.split_once('@').unwrap_or_default();
        let end =
            if rest.starts_with('[') { rest.find("]:").map(|at| at + 1) } else { rest.find(':') };
        let end = end.ok_or_else(|| bad_address("there is no `:` between host and path"))?;
        Self::ssh(user.to_owned(), &rest[..end], None, rest[end + 1..].to_owned())
    }

    /// What goes to a program, and to a shell at the server, has nothing that means something
    /// there.
    fn ssh(
        user: String,
        host: &str,
        port: Option<u16>,
        path: String,
    ) -> Result<Self, DownloadError> {
        let is_plain = |text: &str, more: &str| {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
            !text.is_empty() && !text.starts_with('-') && text.chars().all(is_plain)
        };
        if !is_plain(&user, "-._+") {
            return Err(bad_address("its user has characters that cannot be used"));
        }
        let host = Host::parse(host).map_err(|error| bad_address(&error.to_string()))?;
        if matches!(&host, Host::Domain(name) if !is_plain(name, "-._")) {
            return Err(bad_address("its host has characters that cannot be used"));
        }
        let server = Server { host, port, path };
        match server.has_plain_path() {
            true => Ok(Self::Ssh { user, server }),
            false => Err(bad_address("its path has characters that cannot be used")),
        }
    }

    /// Another repository as `.gitmodules` of this one names it.
    pub(super) fn submodule(&self, url: &str) -> Option<Self> {
        let is_relative = url.starts_with("./") || url.starts_with("../");
        match self {
            Self::Git(server) if is_relative => server.beside(url).map(Self::Git),
            Self::Ssh { user, server } if is_relative => {
                let server = server.beside(url).filter(Server::has_plain_path)?;
                Some(Self::Ssh { user: user.clone(), server })
            }
            Self::Http(target) => match Self::parse(url) {
                Ok(other @ (Self::Git(_) | Self::Ssh { .. })) if !is_relative => Some(other),
                _ => target.submodule(url).map(Self::Http),
            },
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

    pub(super) fn port_or(&self, default: u16) -> u16 {
        self.port.unwrap_or(default)
    }

    /// Whether nothing in the path can be taken for an option or the end of a quoted text.
    fn has_plain_path(&self) -> bool {
        let is_odd = |c: char| c.is_control() || matches!(c, '\'' | '"' | '\\' | '!');
        !self.path.is_empty() && !self.path.starts_with('-') && !self.path.contains(is_odd)
    }

    /// What the server is called when it is asked.
    pub(super) fn name(&self) -> (String, Option<u16>) {
        (self.host.to_string(), self.port)
    }

    /// A repository whose path is relative to this one's.
    fn beside(&self, url: &str) -> Option<Self> {
        let mut parts: Vec<&str> = self.path.split('/').filter(|part| !part.is_empty()).collect();
        for part in url.split('/') {
            match part {
                "" | "." => (),
                ".." => drop(parts.pop()?),
                part => parts.push(part),
            }
        }
        let root = if self.path.starts_with('/') { "/" } else { "" };
        let path = format!("{root}{}", parts.join("/"));
        let is_fine = !path.is_empty() && !path.chars().any(char::is_control);
        is_fine.then(|| Self { path, ..self.clone() })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = |server: &Server| server.port.map(|port| format!(":{port}")).unwrap_or_default();
        match self {
            Self::Http(target) => target.fmt(f),
            Self::Git(server) => {
                write!(f, "git://{}{}{}", server.host, port(server), server.path)
            }
            Self::Ssh { user, server: server @ Server { host, path, .. } } => {
                match path.starts_with(['/', '~']) {
                    true => {
                        let slash = if path.starts_with('~') { "/" } else { "" };
                        write!(f, "ssh://{user}@{host}{}{slash}{path}", port(server))
                    }
                    false => write!(f, "{user}@{host}:{path}"),
                }
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
                    assert_eq!(
                        (server.port_or(GIT_PORT), &*server.path),
                        (port, path),
                        "{address}"
                    );
                }
                (Err(_), Err(_)) => (),
                (found, _) => panic!("{address}: {found:?}"),
            }
        }
    }

    #[test]
    fn i5_addresses_of_ssh_are_read_and_nothing_in_them_is_an_option() {
        let shown = |address: &str| match Place::parse(address) {
            Ok(Place::Ssh { user, server: Server { host, port, path } }) => {
                Some((user, host.to_string(), port, path))
            }
            Ok(other) => panic!("{address}: {other}"),
            Err(_) => None,
        };
        for (address, user, host, port, path) in [
            ("git@h.example:u/r.git", "git", "h.example", None, "u/r.git"),
            ("git@[::1]:u/r.git", "git", "[::1]", None, "u/r.git"),
            ("git@h:/srv/r:1", "git", "h", None, "/srv/r:1"),
            ("ssh://h/u/r.git", "git", "h", None, "/u/r.git"),
            ("ssh://me@127.1:2222/a%20b", "me", "127.0.0.1", Some(2222), "/a b"),
            ("ssh://me@[::1]:2222/~/r", "me", "[::1]", Some(2222), "~/r"),
        ] {
            let expected = (user.to_owned(), host.to_owned(), port, path.to_owned());
            assert_eq!(shown(address), Some(expected), "{address}");
            let place = Place::parse(address).unwrap().to_string();
            assert_eq!(shown(&place), shown(address), "{place}");
        }
        for refused in [
            "git@-oProxyCommand=x:r",
            "git@-h:r",
            "ssh://-oProxyCommand=x/r",
            "ssh://-l@h/r",
            "ssh://%2doProxyCommand=x@h/r",
            "ssh://git:pw@h/r",
            "ssh://me%20you@h/r",
            "ssh:///r",
            "git@h:",
            "git@h/r",
            "git@h:-r",
            "git@h:r'$(x)'",
            "git@h:a!b",
            "ssh://h/r%27",
            "ssh://h/r%0a",
            "ssh://h/r%5c",
        ] {
            assert_eq!(shown(refused), None, "{refused}");
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
            ("https://h/team/app.git", "git@h:x.git", Some("git@h:x.git")),
            ("git@h:app.git", "../x.git", Some("git@h:x.git")),
            ("git@h:app.git", "../../x.git", None),
            ("git@h:app.git", "../-x.git", None),
            ("git@h:app.git", "../it's.git", None),
            ("ssh://h:7/team/app.git", "../x.git", Some("ssh://git@h:7/team/x.git")),
            ("ssh://h:7/team/app.git", "https://h/x.git", Some("https://h/x.git")),
        ] {
            assert_eq!(shown(base, url).as_deref(), expected, "{base} {url}");
        }
    }
}
