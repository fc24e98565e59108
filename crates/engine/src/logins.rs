//! The registries that a run is signed in to (identity-and-secrets.md sections 1 and 2).
//!
//! Steps see them as docker's file in their home folder, and may change that: what is in it when
//! the run pushes or pulls is what counts.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use builder::{BaseImage, BaseImages, ImageError, OwnNames};
use oci::{Descriptor, Digest, Manifest, Platform, Reference};
use remote::{Credentials, RemoteError};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::execute::{Engine, Failure, RunEvents, open_in_folder};
use crate::housekeeper::{AcrCommand, AcrError, Housekeeper, Lines};
use crate::steps::unless_stopped;

/// How docker calls Docker Hub in its file.
pub(crate) const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// How it is called in references.
const DOCKER_HUB_HOST: &str = "docker.io";

/// Docker's file with logins, in a home folder.
const FILE: &str = ".docker/config.json";
/// Bytes of that file, and logins of it that count.
const FILE_SIZE_MAX: u64 = 256 << 10;
const LOGINS_MAX: usize = 100;

/// How often a login is tried (task-yaml.md section 7.1), and how long it may take in all.
const TRIES: u32 = 4;
const TIME_MAX: Duration = Duration::from_secs(5 * 60);
/// How long to wait before the second try; twice as long before each next one.
const DELAY: Duration = Duration::from_millis(250);

/// The registries that a run is signed in to when it begins.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RunLogins {
    pub own: OwnLogin,
    /// Other ones, by host. They count instead of what the settings of the server have for them.
    pub others: BTreeMap<String, Credentials>,
}

/// Whether a run may use its own registry.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum OwnLogin {
    /// It may; its commands have no credentials of their own.
    #[default]
    Implied,
    /// It may, and its commands with these, which end with it.
    With(Credentials),
    /// It may not: neither push to it nor pull from it.
    None,
}

/// Hides all of them but the hosts.
impl fmt::Debug for RunLogins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.others.keys()).finish()
    }
}

impl RunLogins {
    /// The engine for a run with these logins.
    pub(crate) fn engine(&self, engine: &Engine) -> Engine {
        let remote = engine.remote.with_own_logins();
        remote.set_logins(self.others.clone());
        let mut images = (engine.images)(&remote);
        let mut engine = Engine { remote, ..engine.clone() };
        let others = self.others.keys();
        // One of the server's own machine only the operator can have meant.
        let allowed = others
            .filter(|host| !remote::is_loopback(host) || engine.remote.is_declared(host))
            .chain(&*engine.pushes.hosts);
        engine.pushes.hosts = Arc::new(allowed.cloned().collect());
        if self.own == OwnLogin::None {
            let own = engine.own.clone();
            images = Arc::new(OthersOnly { images, own });
            engine.pushes.refused = Arc::new(|_| Some(NOT_LOGGED_IN.to_owned()));
            engine.housekeeper = Arc::new(NoHousekeeper);
        }
        let builder = builder::Builder { images, ..builder::Builder::clone(&engine.builder) };
        engine.builder = Arc::new(builder);
        engine
    }

    /// Asks each registry whether it takes its login.
    pub(crate) async fn check(
        &self,
        engine: &Engine,
        events: &dyn RunEvents,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let all = self.others.keys().map(|host| check(engine, host, events));
        let all = async { futures_util::future::try_join_all(all).await.map(drop) };
        unless_stopped(stop, all).await
    }

    /// Puts them where commands look for them. Nothing is written if there are none.
    pub(crate) fn write_to(&self, home: &Path, engine: &Engine) -> std::io::Result<()> {
        let own = match &self.own {
            OwnLogin::With(login) => Some(login),
            OwnLogin::Implied | OwnLogin::None => None,
        };
        let hosts = engine.own.hosts(&engine.registry);
        let own = hosts.filter_map(|host| Some((host, own?)));
        let others = self.others.iter().map(|(host, login)| (&**host, login));
        let auths = own.chain(others).map(|(host, login)| {
            let name = if host == DOCKER_HUB_HOST { DOCKER_HUB } else { host };
            (name.to_owned(), json!({ "auth": auth(&login.username, &login.password) }))
        });
        let auths: Map<String, Value> = auths.collect();
        if auths.is_empty() {
            return Ok(());
        }
        let file = home.join(FILE);
        let folder = file.parent().unwrap_or(home);
        std::fs::DirBuilder::new().mode(0o755).create(folder)?;
        let mut options = std::fs::OpenOptions::new();
        // Steps may run as any user; who is not in the run cannot reach the folder.
        let mut file = options.write(true).create_new(true).mode(0o644).open(file)?;
        let text = format!("{:#}\n", json!({ "auths": auths }));
        std::io::Write::write_all(&mut file, text.as_bytes())
    }
}

async fn check(engine: &Engine, host: &str, events: &dyn RunEvents) -> Result<(), Failure> {
    events.message(&format!("Logging in to registry: {host}")).await;
    let all_tries = async {
        let mut delay = DELAY;
        for number in 1.. {
            match engine.remote.check_login(host).await {
                Ok(()) => break,
                Err(error) if number < TRIES => {
                    let text = format!("the login to `{host}` is tried again: {error}");
                    events.warning(&text).await;
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(delay).await;
            delay *= 2;
        }
        Ok(())
    };
    let failed = |error: &RemoteError| {
        Failure::user(error, error.hint()).of(format_args!("could not log in to `{host}`"))
    };
    match tokio::time::timeout(TIME_MAX, all_tries).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => {
            let text = format!("error: could not log in to `{host}`: it takes too long");
            Err(Failure::User(text))
        }
    }
}

/// The logins that a home folder has by now; nothing if what is there is not docker's file, as while
/// it is being written. Those of own registries do not count: the run has its own right there.
pub(crate) fn read_logins(home: &Path, own: &OwnNames) -> Option<BTreeMap<String, Credentials>> {
    let file = match open_in_folder(home, FILE) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Some(BTreeMap::new()),
        Err(_) => return None,
    };
    let mut text = Vec::new();
    file.take(FILE_SIZE_MAX + 1).read_to_end(&mut text).ok()?;
    if text.len() as u64 > FILE_SIZE_MAX {
        return None;
    }
    let Ok(Value::Object(file)) = serde_json::from_slice(&text) else { return None };
    let logins = file.get("auths").and_then(Value::as_object).into_iter().flatten();
    let logins = logins.filter_map(|(server, login)| Some((host_of(server), credentials(login)?)));
    Some(logins.filter(|(host, _)| !is_own(own, host)).take(LOGINS_MAX).collect())
}

fn is_own(own: &OwnNames, host: &str) -> bool {
    // Any image of that host tells.
    let reference = format!("{host}/x").parse::<Reference>();
    reference.is_ok_and(|reference| own.registry(&reference).is_some())
}

fn credentials(login: &Value) -> Option<Credentials> {
    let decoded = BASE64_STANDARD.decode(login.get("auth")?.as_str()?).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (username, password) = decoded.split_once(':')?;
    let password = password.trim_end_matches('\0');
    Some(Credentials { username: username.to_owned(), password: password.to_owned() })
}

/// The host of a server in docker's file, as references have it.
fn host_of(server: &str) -> String {
    let bare = server.trim_start_matches("https://").trim_start_matches("http://");
    let host = bare.split('/').next().unwrap_or_default();
    match host {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB_HOST.to_owned(),
        host => host.to_ascii_lowercase(),
    }
}

/// A user and a password, as docker's file has them.
pub(crate) fn auth(user: &str, password: &str) -> String {
    BASE64_STANDARD.encode(format!("{user}:{password}"))
}

const NOT_LOGGED_IN: &str = "the run is not logged in to its own registry\n\
    hint: it was asked for with `loginMode` `None`; leave that out, or say `Default`";

/// Whether a host is another name of this machine, with a port that an own name has.
pub fn leads_here(own: &OwnNames, host: &str) -> bool {
    let port = |host: &str| host.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    remote::is_loopback(host) && own.all_hosts().any(|own| port(own) == port(host))
}

/// Images of other registries, and none of the own ones.
struct OthersOnly {
    images: Arc<dyn BaseImages>,
    own: OwnNames,
}

impl OthersOnly {
    fn check_host(&self, reference: &Reference) -> Result<(), ImageError> {
        match self.own.registry(reference).is_some() || leads_here(&self.own, &reference.host) {
            false => Ok(()),
            true => Err(ImageError::Pull {
                reference: reference.familiar(),
                reason: "the run is not logged in to its own registry".to_owned(),
                hint: Some("leave `loginMode` out, or say `Default`".to_owned()),
                refused: true,
            }),
        }
    }
}

#[async_trait]
impl BaseImages for OthersOnly {
    async fn check(&self, reference: &Reference) -> Result<(), ImageError> {
        self.check_host(reference)?;
        self.images.check(reference).await
    }

    async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<BaseImage, ImageError> {
        self.check_host(reference)?;
        self.images.resolve(reference, platform, progress).await
    }

    async fn manifest(&self, reference: &Reference) -> Result<(Digest, Manifest), ImageError> {
        self.check_host(reference)?;
        self.images.manifest(reference).await
    }

    async fn fetch(
        &self,
        reference: &Reference,
        blob: &Descriptor,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ImageError> {
        self.check_host(reference)?;
        self.images.fetch(reference, blob, progress).await
    }
}

/// Works on no registry.
struct NoHousekeeper;

#[async_trait]
impl Housekeeper for NoHousekeeper {
    async fn run(
        &self,
        _: &str,
        _: &AcrCommand,
        _: &dyn Lines,
        _: &CancellationToken,
    ) -> Result<(), AcrError> {
        let (message, hint) = NOT_LOGGED_IN.split_once("\nhint: ").unwrap_or((NOT_LOGGED_IN, ""));
        Err(AcrError::Refused { message: message.to_owned(), hint: Some(hint.to_owned()) })
    }
}

#[cfg(test)]
mod tests {
    use oci::RegistryName;

    use super::*;

    fn read(file: &str) -> Option<BTreeMap<String, Credentials>> {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".docker")).unwrap();
        std::fs::write(home.path().join(FILE), file).unwrap();
        let own = OwnNames::new([("localhost:5000".to_owned(), RegistryName::default())]);
        read_logins(home.path(), &own)
    }

    fn login(username: &str, password: &str) -> Credentials {
        Credentials { username: username.to_owned(), password: password.to_owned() }
    }

    #[test]
    fn logins_are_read_as_docker_keeps_them() {
        let file = json!({
            "credsStore": "desktop",
            "auths": {
                DOCKER_HUB: { "auth": auth("me", "a:b") },
                "R.example.com": { "auth": auth("00-00", "token") },
                "https://old.example.com/v1/": { "auth": auth("u", "p") },
                "localhost:5000": { "auth": auth("run/local/c1/1", "own") },
                "elsewhere.example.com": {},
                "bad.example.com": { "auth": "%" },
            },
        });
        let expected = [
            ("docker.io", login("me", "a:b")),
            ("old.example.com", login("u", "p")),
            ("r.example.com", login("00-00", "token")),
        ];
        let expected = expected.map(|(host, login)| (host.to_owned(), login));
        assert_eq!(read(&file.to_string()), Some(BTreeMap::from(expected)));
    }

    #[test]
    fn what_is_not_dockers_file_has_no_logins() {
        let long = format!("{{\"auths\":{{}}}}{}", " ".repeat(300 << 10));
        for file in ["", "[]", "{", &long] {
            assert_eq!(read(file), None, "{file:.20}");
        }
        for file in ["{}", "{\"auths\":1}", "{\"auths\":{\"a\":1}}"] {
            assert_eq!(read(file), Some(BTreeMap::new()), "{file:.20}");
        }
        let own = OwnNames::new([]);
        let home = tempfile::tempdir().unwrap();
        assert_eq!(read_logins(home.path(), &own), Some(BTreeMap::new()));
        std::fs::create_dir_all(home.path().join(FILE)).unwrap();
        assert_eq!(read_logins(home.path(), &own), None);
    }

    #[test]
    fn logins_do_not_print() {
        let logins = RunLogins {
            own: OwnLogin::With(login("run", "hunter2")),
            others: BTreeMap::from([("r.example".to_owned(), login("me", "hunter2"))]),
        };
        assert_eq!(format!("{logins:?}"), "{\"r.example\"}");
    }
}
