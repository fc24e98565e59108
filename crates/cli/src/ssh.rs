//! `--ssh`: agents of this machine that the `RUN`s of a build may ask, wherever they are executed.
//!
//! Keys stay here. What comes from a build is looked at ([`request`]) before an agent sees it, so
//! that a build can use keys and not change which there are.

mod forward;
mod key_agent;
mod request;

use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

use crate::connection::Connection;
use crate::environment::Environment;
use crate::error::{Error, Result};
pub(crate) use forward::Forwarding;
use key_agent::KeyAgent;

/// What one `--ssh` means.
#[derive(Debug, PartialEq, Eq)]
struct AgentFlag {
    id: String,
    keys: KeySource,
}

#[derive(Debug, PartialEq, Eq)]
enum KeySource {
    /// Of an agent that is there.
    Socket(PathBuf),
    /// Private keys.
    Files(Vec<PathBuf>),
}

/// An agent that can be asked.
struct Agent {
    id: String,
    socket: PathBuf,
    /// The one that was started for it.
    _own: Option<KeyAgent>,
}

/// The agents of one build; those that were started for it end when this is dropped.
pub(crate) struct Agents(Vec<Agent>);

impl Agents {
    /// Finds agents, and starts those that key files need, which may ask for passphrases on the
    /// terminal.
    pub(crate) async fn open(flags: &[String], environment: &Environment) -> Result<Self> {
        let mut agents = Vec::new();
        for AgentFlag { id, keys } in parse(flags, environment.variable("SSH_AUTH_SOCK"))? {
            let (socket, own) = match keys {
                KeySource::Socket(socket) => (socket, None),
                KeySource::Files(files) => {
                    let own = KeyAgent::start(&files).await?;
                    (own.socket(), Some(own))
                }
            };
            // At once, not in the middle of the build.
            connect(&id, &socket).await?;
            agents.push(Agent { id, socket, _own: own });
        }
        Ok(Self(agents))
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.0.iter().map(|agent| agent.id.clone()).collect()
    }

    /// Lets a run use them, until what this gives is dropped.
    pub(crate) fn forward(&self, connection: &Connection, run: &str) -> Result<Forwarding> {
        let mut forwarding = Forwarding::new();
        for Agent { id, socket, .. } in &self.0 {
            forwarding.add(connection.for_upgrades()?, run, id, socket);
        }
        Ok(forwarding)
    }
}

async fn connect(id: &str, socket: &Path) -> Result<UnixStream> {
    UnixStream::connect(socket).await.map_err(|error| {
        let shown = socket.display();
        Error::usage(format!("the ssh agent `{id}` cannot be reached at `{shown}`"))
            .caused_by(&error)
    })
}

/// Understands `ID[=PATH[,PATH…]]`. `default_socket` is the user's own agent.
fn parse(flags: &[String], default_socket: Option<&str>) -> Result<Vec<AgentFlag>> {
    let mut ids = BTreeSet::new();
    let mut parsed = Vec::new();
    for flag in flags {
        let (id, paths) = flag.split_once('=').unwrap_or((flag, ""));
        if id.is_empty() {
            return Err(Error::usage(format!("`--ssh {flag}` has no id"))
                .with_hint("such as `--ssh default` or `--ssh ID=PATH`"));
        }
        if !ids.insert(id) {
            return Err(Error::usage(format!("`--ssh` has the id `{id}` twice"))
                .with_hint("keys of one id are separated by commas: `--ssh ID=KEY,KEY`"));
        }
        let keys = match (paths, default_socket.filter(|socket| !socket.is_empty())) {
            ("", Some(socket)) => KeySource::Socket(socket.into()),
            ("", None) => {
                let message =
                    format!("`--ssh {flag}` needs an agent, and `SSH_AUTH_SOCK` is not set");
                return Err(Error::usage(message).with_hint(format!(
                    "start one, or name its socket or a private key: `--ssh {id}=PATH`"
                )));
            }
            (paths, _) => key_source(flag, paths)?,
        };
        parsed.push(AgentFlag { id: id.to_owned(), keys });
    }
    Ok(parsed)
}

fn key_source(flag: &str, paths: &str) -> Result<KeySource> {
    let paths: Vec<PathBuf> = paths.split(',').map(PathBuf::from).collect();
    let refused = |path: &Path, why: String| {
        Err(Error::usage(format!("`--ssh {flag}`: `{}` {why}", path.display())))
    };
    for path in &paths {
        match std::fs::metadata(path).map(|metadata| metadata.file_type()) {
            Ok(kind) if kind.is_socket() && paths.len() == 1 => {
                return Ok(KeySource::Socket(path.clone()));
            }
            Ok(kind) if kind.is_socket() => {
                return refused(path, "is an agent's socket, which stands alone".to_owned());
            }
            Ok(kind) if kind.is_file() => (),
            Ok(_) => return refused(path, "is neither a socket nor a key".to_owned()),
            Err(error) => return refused(path, format!("cannot be read: {error}")),
        }
    }
    Ok(KeySource::Files(paths))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn parse_one(flag: &str, default_socket: Option<&str>) -> Result<AgentFlag> {
        parse(&[flag.to_owned()], default_socket).map(|mut flags| flags.remove(0))
    }

    #[test]
    fn an_agent_is_that_of_the_user_a_socket_or_keys() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, key) = (folder.path().join("socket"), folder.path().join("key"));
        let _listener = UnixListener::bind(&socket).unwrap();
        std::fs::write(&key, "").unwrap();
        let (socket_text, key_text) = (socket.display(), key.display());
        for (flag, id, keys) in [
            ("default".to_owned(), "default", KeySource::Socket("/agent".into())),
            ("other=".to_owned(), "other", KeySource::Socket("/agent".into())),
            (format!("a={socket_text}"), "a", KeySource::Socket(socket.clone())),
            (format!("a={key_text}"), "a", KeySource::Files(vec![key.clone()])),
            (format!("a={key_text},{key_text}"), "a", KeySource::Files(vec![key.clone(); 2])),
        ] {
            let expected = AgentFlag { id: id.to_owned(), keys };
            assert_eq!(parse_one(&flag, Some("/agent")).unwrap(), expected);
        }
        for (flag, why) in [
            ("default".to_owned(), "`SSH_AUTH_SOCK` is not set"),
            (format!("={key_text}"), "has no id"),
            (format!("a={key_text},{socket_text}"), "stands alone"),
            ("a=/dev/null".to_owned(), "neither a socket nor a key"),
            (format!("a={key_text},"), "cannot be read"),
        ] {
            let error = parse_one(&flag, Some("")).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let twice = ["a".to_owned(), format!("a={key_text}")];
        let error = parse(&twice, Some("/agent")).unwrap_err();
        assert!(error.to_string().contains("twice"), "{error}");
    }
}
