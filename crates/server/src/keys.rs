//! The server's own secrets, in `keys/` of the data folder, and what they prove.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use control::{Pool, Run, SecretKeys};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use oci::Digest;
use registry::same_secret;
use ring::rand::SecureRandom;
use task::Seed;

use crate::access::Principal;

/// User name of the credential that the first start makes.
pub(crate) const ADMIN: &str = "admin";

/// What a request shows to prove who makes it. It does not print.
#[derive(PartialEq, Eq)]
pub(crate) enum Presented {
    Nothing,
    Bearer(String),
    /// User name and password.
    Basic(String, String),
}

impl Presented {
    pub(crate) fn read(headers: &HeaderMap) -> Result<Self, BadCredential> {
        let Some(header) = headers.get(AUTHORIZATION) else { return Ok(Self::Nothing) };
        let text = header.to_str().map_err(|_| BadCredential)?;
        let (scheme, value) = text.split_once(' ').ok_or(BadCredential)?;
        match scheme.to_ascii_lowercase().as_str() {
            "bearer" => Ok(Self::Bearer(value.trim().to_owned())),
            "basic" => {
                let (user, password) = basic(value.trim()).ok_or(BadCredential)?;
                Ok(Self::Basic(user, password))
            }
            _ => Err(BadCredential),
        }
    }
}

/// A credential that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadCredential;

/// Fingerprints of the secrets. They are random and long, so a plain digest hides them.
pub(crate) struct Keys {
    token: String,
    token_digest: Digest,
    admin_digest: Option<Digest>,
    /// Signs what the server gives out and takes back, such as registry tokens.
    signing: [u8; 32],
    /// Where the first start put the admin's password.
    pub(crate) new_admin: Option<PathBuf>,
}

impl Keys {
    /// Reads the keys of a data folder, making those that are missing.
    pub(crate) fn open(data: &Path, with_admin: bool) -> io::Result<Self> {
        let folder = data.join("keys");
        private_folder(&folder)?;
        let token = match read(&folder.join("api-token"))? {
            Some(token) => token,
            None => write_new(&folder.join("api-token"), &random_secret()?)?,
        };
        let signing = match read(&folder.join("signing"))? {
            Some(signing) => signing,
            None => write_new(&folder.join("signing"), &random_secret()?)?,
        };
        let mut keys = Self {
            token_digest: Digest::of(token.as_bytes()),
            token,
            admin_digest: None,
            signing: *ring_sha256(signing.as_bytes()),
            new_admin: None,
        };
        if with_admin {
            keys.open_admin(&folder)?;
        }
        Ok(keys)
    }

    /// The password lies beside its digest until the user takes it away.
    fn open_admin(&mut self, folder: &Path) -> io::Result<()> {
        let digest_file = folder.join("admin.digest");
        if let Some(digest) = read(&digest_file)? {
            let digest = digest.parse().map_err(|_| damaged(&digest_file))?;
            self.admin_digest = Some(digest);
            return Ok(());
        }
        let password_file = folder.join("admin-password");
        // A crash may have left the password alone.
        let password = match read(&password_file)? {
            Some(password) => password,
            None => write_new(&password_file, &random_secret()?)?,
        };
        let digest = Digest::of(password.as_bytes());
        write_new(&digest_file, &digest.to_string())?;
        self.admin_digest = Some(digest);
        self.new_admin = Some(password_file);
        Ok(())
    }

    /// The token for clients of this user.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// The key for tokens that the server gives out itself.
    pub(crate) fn signing(&self) -> &[u8; 32] {
        &self.signing
    }

    /// Which of the server's own a user name and password prove to be. The token is accepted as a
    /// password too, so that clients of the registry protocol can use it.
    pub(crate) fn by_password(&self, user: &str, password: &str) -> Option<Principal> {
        let digest = Digest::of(password.as_bytes());
        if user == ADMIN && self.admin_digest.as_ref() == Some(&digest) {
            return Some(Principal::Admin);
        }
        (digest == self.token_digest).then_some(Principal::ApiToken)
    }

    /// Tells one credential of a principal from the next, and nothing else of it: keyed, so
    /// that nobody can try passwords on it. `None` if the principal has none.
    pub(crate) fn fingerprint(&self, principal: &Principal) -> Option<String> {
        let digest = match principal {
            Principal::Admin => self.admin_digest.as_ref()?,
            Principal::ApiToken => &self.token_digest,
            Principal::Owner | Principal::Anonymous | Principal::Known(_) => return None,
        };
        let principal = principal.name();
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &self.signing);
        let tag = ring::hmac::sign(&key, format!("credential of {principal}: {digest}").as_bytes());
        Some(hexadecimal(&tag.as_ref()[..16]))
    }

    /// What agents join a pool with, until its serial changes or another pool has its name.
    pub(crate) fn pool_token(&self, pool: &Pool) -> String {
        let Pool { registry, name, .. } = pool;
        format!("{registry}/{name}/{}", self.signed(&pool_secret(pool)))
    }

    /// Whether a token is that of a pool.
    pub(crate) fn is_pool_token(&self, pool: &Pool, token: &str) -> bool {
        let code = token.rsplit_once('/').map_or("", |(_, code)| code);
        self.is_signed(&pool_secret(pool), code)
    }

    /// What the agent of an attempt proves itself with. Steps do not get it.
    pub(crate) fn attempt_token(&self, user: &str) -> String {
        self.signed(&format!("agent of {user}"))
    }

    pub(crate) fn is_attempt_token(&self, user: &str, token: &str) -> bool {
        self.is_signed(&format!("agent of {user}"), token)
    }

    /// The password of an attempt for its own registry; the user is [`control::run_user`].
    pub(crate) fn run_password(&self, user: &str) -> String {
        self.signed(&format!("password of {user}"))
    }

    pub(crate) fn is_run_password(&self, user: &str, password: &str) -> bool {
        self.is_signed(&format!("password of {user}"), password)
    }

    /// The key that sessions of people are signed with.
    pub(crate) fn sessions(&self) -> String {
        self.signed("sessions of people who have signed in")
    }

    /// What random texts of a run's task file begin from: the same in each attempt, and nobody
    /// else's to guess.
    pub(crate) fn seed(&self, run: &Run) -> Seed {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &self.signing);
        // A key of its own, so that nothing else is signed with it.
        let key = ring::hmac::sign(&key, b"random texts of task files");
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key.as_ref());
        let name = format!("{}/{}/{}", run.registry, run.id, run.created_at);
        let mut seed = Seed::default();
        seed.0.copy_from_slice(ring::hmac::sign(&key, name.as_bytes()).as_ref());
        seed
    }

    fn signed(&self, text: &str) -> String {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &self.signing);
        hexadecimal(ring::hmac::sign(&key, text.as_bytes()).as_ref())
    }

    fn is_signed(&self, text: &str, code: &str) -> bool {
        same_secret(&self.signed(text), code)
    }

    /// Whether a text is the token of the data folder.
    pub(crate) fn is_token(&self, text: &str) -> bool {
        Digest::of(text.as_bytes()) == self.token_digest
    }
}

/// Reads the keys that seal secrets in the database, making the first one: lines of 64 hexadecimal
/// digits. The first one seals; more are those of before, until nothing is sealed with them.
pub(crate) fn secret_keys(data: &Path) -> io::Result<SecretKeys> {
    let folder = data.join("keys");
    private_folder(&folder)?;
    let file = folder.join("secrets");
    let text = match read(&file)? {
        Some(text) => text,
        None => write_new(&file, &random_secret()?)?,
    };
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let keys: Option<Vec<_>> = lines.map(key_of_line).collect();
    match keys.as_deref() {
        Some([first, older @ ..]) => Ok(SecretKeys::new(*first, older.iter().copied())),
        _ => {
            let file = file.display();
            let message = format!(
                "`{file}` is damaged: each line is a key of 64 hexadecimal digits. Without its \
                 keys, secrets of tasks and of waiting runs cannot be read"
            );
            Err(io::Error::other(message))
        }
    }
}

fn key_of_line(line: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    if line.len() != 64 || !line.is_ascii() {
        return None;
    }
    for (at, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&line[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(key)
}

fn pool_secret(pool: &Pool) -> String {
    let Pool { registry, name, created_at, token_serial, .. } = pool;
    let name = name.as_str().to_ascii_lowercase();
    format!("token of agent pool {registry}/{name} of {created_at}, number {token_serial}")
}

fn basic(value: &str) -> Option<(String, String)> {
    let decoded = String::from_utf8(BASE64.decode(value).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

fn ring_sha256(bytes: &[u8]) -> Box<[u8; 32]> {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let mut out = Box::new([0; 32]);
    out.copy_from_slice(digest.as_ref());
    out
}

/// 256 random bits as hexadecimal text.
pub(crate) fn random_secret() -> io::Result<String> {
    let mut bytes = [0u8; 32];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("the system gives no random numbers"))?;
    Ok(hexadecimal(&bytes))
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Puts the token where this user's clients look for it, by the addresses of the server.
/// Returns the files, to be removed at the end.
pub(crate) fn publish_token(
    folder: &Path,
    hosts: impl IntoIterator<Item = String>,
    token: &str,
) -> io::Result<Vec<PathBuf>> {
    private_folder(folder)?;
    let mut files = Vec::new();
    for host in hosts {
        let file = folder.join(api::token_file_name(&host));
        replace(&file, token)?;
        files.push(file);
    }
    Ok(files)
}

/// Makes a folder that only its owner may enter, or checks that it is one: whoever could
/// put it there before us could read what we put into it.
pub(crate) fn private_folder(folder: &Path) -> io::Result<()> {
    if let Some(parent) = folder.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
        Ok(()) => return folder.parent().map_or(Ok(()), sync),
        result => return result,
    }
    let found = std::fs::symlink_metadata(folder)?;
    let own = std::os::unix::fs::MetadataExt::uid(&found) == rustix::process::geteuid().as_raw();
    if !found.is_dir() || !own {
        let message = format!("`{}` is not a folder of this user", folder.display());
        return Err(io::Error::other(message));
    }
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
}

/// What is in a folder stays in it when power fails.
fn sync(folder: &Path) -> io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

fn read(file: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(file) {
        Ok(text) if text.trim().is_empty() => Err(damaged(file)),
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn damaged(file: &Path) -> io::Error {
    io::Error::other(format!("`{}` is damaged; remove it to get a new one", file.display()))
}

/// Writes a secret so that it is whole or not there.
fn write_new(file: &Path, secret: &str) -> io::Result<String> {
    replace(file, secret)?;
    Ok(secret.to_owned())
}

/// Writes a secret in the place of what is there, so that it is whole or as before.
pub(crate) fn replace(file: &Path, secret: &str) -> io::Result<()> {
    let unfinished = file.with_extension("part");
    let _ = std::fs::remove_file(&unfinished);
    let mut out =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    out.write_all(secret.as_bytes())?;
    out.write_all(b"\n")?;
    out.sync_all()?;
    std::fs::rename(&unfinished, file)?;
    // Something may be sealed with it next.
    file.parent().map_or(Ok(()), sync)
}

#[cfg(test)]
mod tests {
    use control::run_user;
    use oci::RegistryName;

    use super::*;

    fn header(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().unwrap());
        headers
    }

    #[test]
    fn keys_survive_a_restart_and_are_private() {
        let data = tempfile::tempdir().unwrap();
        let first = Keys::open(data.path(), true).unwrap();
        let password_file = first.new_admin.clone().unwrap();
        let password = std::fs::read_to_string(&password_file).unwrap();
        let password = password.trim();
        assert_eq!(password.len(), 64);
        for file in ["api-token", "signing", "admin-password", "admin.digest"] {
            let metadata = std::fs::metadata(data.path().join("keys").join(file)).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{file}");
        }
        std::fs::remove_file(&password_file).unwrap();
        let again = Keys::open(data.path(), true).unwrap();
        assert_eq!(again.new_admin, None);
        assert_eq!(again.token(), first.token());
        assert_eq!(again.by_password("admin", password), Some(Principal::Admin));
        assert_eq!(again.by_password("anybody", again.token()), Some(Principal::ApiToken));
        assert_eq!(again.by_password("admin", "x"), None);
        assert!(again.is_token(first.token()) && !again.is_token("x"));
    }

    #[test]
    fn keys_of_secrets_are_made_once_and_may_be_several() {
        let data = tempfile::tempdir().unwrap();
        let first = format!("{:?}", secret_keys(data.path()).unwrap());
        assert_eq!(format!("{:?}", secret_keys(data.path()).unwrap()), first);
        let file = data.path().join("keys/secrets");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let older = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("{}\n\n{older}\n", "ab".repeat(32))).unwrap();
        let both = format!("{:?}", secret_keys(data.path()).unwrap());
        assert!(both.contains(first.trim_matches(['[', ']'])), "{both} {first}");
        for bad in ["", "abc", &"x".repeat(64), &format!("{}\nabc", "ab".repeat(32))] {
            std::fs::write(&file, bad).unwrap();
            assert!(secret_keys(data.path()).is_err(), "{bad}");
        }
    }

    #[test]
    fn headers_are_read_or_refused() {
        let read = |value: &str| Presented::read(&header(value));
        assert!(matches!(Presented::read(&HeaderMap::new()), Ok(Presented::Nothing)));
        assert!(matches!(read("bearer  x"), Ok(Presented::Bearer(token)) if token == "x"));
        let basic = read("Basic YWRtaW46eDp5");
        assert!(
            matches!(basic, Ok(Presented::Basic(user, password)) if user == "admin" && password == "x:y")
        );
        for bad in ["Basic !", "Basic YWRtaW4=", "Digest x", "Bearer"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_fingerprint_changes_with_the_credential() {
        let data = tempfile::tempdir().unwrap();
        let first = Keys::open(data.path(), true).unwrap();
        let again = Keys::open(data.path(), true).unwrap();
        let (admin, token) = (Principal::Admin, Principal::ApiToken);
        assert!(first.fingerprint(&admin).is_some());
        assert_eq!(first.fingerprint(&admin), again.fingerprint(&admin));
        assert_ne!(first.fingerprint(&admin), first.fingerprint(&token));
        assert_eq!(first.fingerprint(&Principal::Anonymous), None);
        assert_eq!(Keys::open(data.path(), false).unwrap().fingerprint(&admin), None);
        for file in ["admin-password", "admin.digest"] {
            std::fs::remove_file(data.path().join("keys").join(file)).unwrap();
        }
        let rotated = Keys::open(data.path(), true).unwrap();
        assert_ne!(first.fingerprint(&admin), rotated.fingerprint(&admin));
        assert_eq!(first.fingerprint(&token), rotated.fingerprint(&token));
    }

    #[test]
    fn steps_of_a_run_cannot_speak_for_its_agent() {
        let data = tempfile::tempdir().unwrap();
        let keys = Keys::open(data.path(), true).unwrap();
        let user = run_user(&RegistryName::default(), "c01".parse().unwrap(), 1);
        let (token, password) = (keys.attempt_token(&user), keys.run_password(&user));
        assert!(keys.is_attempt_token(&user, &token) && keys.is_run_password(&user, &password));
        assert!(!keys.is_attempt_token(&user, &password) && !keys.is_run_password(&user, &token));
        let other = run_user(&RegistryName::default(), "c01".parse().unwrap(), 2);
        assert!(!keys.is_attempt_token(&other, &token));
    }

    #[test]
    fn a_token_is_published_per_address() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("refit");
        let hosts = ["127.0.0.1:5000".to_owned(), "localhost:5000".to_owned()];
        let files = publish_token(&folder, hosts, "secret").unwrap();
        let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap()).collect();
        assert_eq!(names, ["127.0.0.1_5000.token", "localhost_5000.token"]);
        assert_eq!(std::fs::read_to_string(&files[0]).unwrap().trim(), "secret");
    }
}
