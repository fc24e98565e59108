//! Credentials of servers: the file of `refit login`, and what else a client may find.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use url::Url;

use crate::environment::Environment;
use crate::error::{Error, Result, could_not};

/// A token file or a file of logins is not larger than this.
const FILE_SIZE_MAX: u64 = 1 << 20;

/// What proves to a server who asks.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Credential {
    /// Absent: the secret is a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) username: Option<String>,
    pub(crate) secret: String,
}

impl Credential {
    pub(crate) fn token(secret: impl Into<String>) -> Self {
        Self { username: None, secret: secret.into() }
    }

    pub(crate) fn apply(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.username {
            Some(username) => request.basic_auth(username, Some(&self.secret)),
            None => request.bearer_auth(&self.secret),
        }
    }
}

/// Never shows the secret.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({:?})", self.username)
    }
}

/// The servers that the user has logged in to.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Logins {
    /// The server of commands that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<Url>,
    #[serde(default)]
    pub(crate) servers: BTreeMap<Url, Credential>,
}

impl Logins {
    pub(crate) fn load(environment: &Environment) -> Result<Self> {
        let Some(file) = file(environment) else { return Ok(Self::default()) };
        let doing = || format!("read the logins in `{}`", file.display());
        match read_bounded(&file) {
            Ok(text) => serde_json::from_str(&text).map_err(could_not(doing())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(could_not(doing())(error)),
        }
    }

    pub(crate) fn save(&self, environment: &Environment) -> Result<()> {
        let file = file(environment).ok_or_else(|| {
            Error::failed("there is no folder for logins")
                .with_hint("set `HOME` or `XDG_CONFIG_HOME`")
        })?;
        write_private(&file, &serde_json::json!(self).to_string())
            .map_err(could_not(format!("write the logins to `{}`", file.display())))
    }
}

fn file(environment: &Environment) -> Option<PathBuf> {
    Some(environment.config_folder.as_ref()?.join("logins.json"))
}

/// Replaces a file that only the user may read, whole or not at all.
fn write_private(file: &Path, text: &str) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let temporary = file.with_extension(format!("{}.tmp", std::process::id()));
    let mut options = File::options();
    let mut out = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    out.write_all(text.as_bytes())?;
    out.sync_all()?;
    fs::rename(&temporary, file)
}

/// The token that a server on this machine left for its user's clients.
pub(crate) fn token_left_by_server(environment: &Environment, server: &Url) -> Option<Credential> {
    let host = server.host_str()?;
    let port = server.port_or_known_default()?;
    let folder = environment.runtime_folder.as_ref()?;
    let file = folder.join(api::token_file_name(&format!("{host}:{port}")));
    // In a folder that all may write to, a file could be anybody's.
    let owner = fs::symlink_metadata(&file).ok()?.uid();
    if owner != environment.user && owner != 0 {
        return None;
    }
    let token = read_bounded(&file).ok()?;
    let token = token.trim();
    (!token.is_empty()).then(|| Credential::token(token))
}

fn read_bounded(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(file)?.take(FILE_SIZE_MAX).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn logins_are_kept_in_a_file_that_only_the_user_may_read() {
        let folder = tempfile::tempdir().unwrap();
        let environment = Environment {
            config_folder: Some(folder.path().join("refit")),
            ..Environment::default()
        };
        assert!(Logins::load(&environment).unwrap().servers.is_empty());

        let server = Url::parse("https://registry.example/").unwrap();
        let mut logins = Logins { current: Some(server.clone()), ..Logins::default() };
        logins.servers.insert(server.clone(), Credential::token("secret"));
        logins.save(&environment).unwrap();

        let file = folder.path().join("refit/logins.json");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let read = Logins::load(&environment).unwrap();
        assert_eq!(read.current, Some(server.clone()));
        assert_eq!(read.servers[&server], Credential::token("secret"));
        assert!(!format!("{read:?}").contains("secret"));
    }

    #[test]
    fn a_server_leaves_its_token_per_address() {
        let folder = tempfile::tempdir().unwrap();
        let environment = Environment {
            runtime_folder: Some(folder.path().into()),
            user: fs::metadata(folder.path()).unwrap().uid(),
            ..Environment::default()
        };
        fs::write(folder.path().join("127.0.0.1_5000.token"), "abc\n").unwrap();
        let find = |url: &str| token_left_by_server(&environment, &Url::parse(url).unwrap());
        assert_eq!(find("http://127.0.0.1:5000"), Some(Credential::token("abc")));
        assert_eq!(find("http://127.0.0.1:5001"), None);
    }
}
