//! Addresses of git repositories and of other contexts.
//!
//! One parser for all places where a repository can be named: the context of a build, a named
//! context, and `ADD` (contexts.md sections 1 and 2). An address may hold a token: it shows
//! itself without.

use std::fmt;

use oci::Reference;

use crate::address::{Address, percent_decoded, secret_of, without_credentials};

/// What a build is made from, told by how it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextAddress {
    /// `/dev/null`.
    Nothing,
    Git(Result<GitAddress, GitAddressError>),
    /// An archive at an `http://` or `https://` address.
    Archive(Address),
    /// `oci://`: an artifact of a registry.
    Artifact(Result<Reference, ArtifactAddressError>),
    /// Everything else: a folder, or the name of an upload.
    Local,
}

impl ContextAddress {
    pub fn of(text: &str) -> Self {
        if text.eq_ignore_ascii_case("/dev/null") {
            return Self::Nothing;
        }
        if is_git_context(text) {
            return Self::Git(GitAddress::parse(text));
        }
        match Address::new(text) {
            Some(address) => Self::Archive(address),
            None => match text.split_at_checked("oci://".len()) {
                Some((start, name)) if start.eq_ignore_ascii_case("oci://") => {
                    Self::Artifact(artifact(name))
                }
                _ => Self::Local,
            },
        }
    }
}

/// Why the address of an artifact cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the address `{address}` of an artifact cannot be used: {reason}")]
pub struct ArtifactAddressError {
    address: String,
    reason: String,
}

impl ArtifactAddressError {
    /// What the user can do about it.
    pub fn hint(&self) -> String {
        "write it like `oci://REGISTRY/REPOSITORY:TAG`; the login is that of the registry"
            .to_owned()
    }
}

fn artifact(name: &str) -> Result<Reference, ArtifactAddressError> {
    let refuse = |reason: String| ArtifactAddressError {
        address: without_credentials(&format!("oci://{name}")),
        reason,
    };
    if name.split('/').next().is_some_and(|host| host.contains('@')) {
        return Err(refuse("it has a user".to_owned()));
    }
    match name.parse::<Reference>() {
        Ok(reference) if reference.has_host => Ok(reference),
        Ok(_) => Err(refuse("it names no registry".to_owned())),
        Err(error) => Err(refuse(error.to_string())),
    }
}

/// A git repository, and what is wanted of it. Shows itself without what is secret in it.
#[derive(Clone, PartialEq, Eq)]
pub struct GitAddress {
    url: String,
    /// A branch, a tag, a commit or a `pull/N/head`; none: what the server calls `HEAD`.
    pub reference: Option<String>,
    /// The folder that stands for the whole, relative and without dots at its ends.
    pub folder: Option<String>,
    /// What the commit must be, or begin with.
    pub commit: Option<String>,
    /// The branch that the commit is of, where others know it; no part of the address.
    pub branch: Option<String>,
    /// Whether the address itself says that `.git` stays.
    pub keep_git_dir: Option<bool>,
    /// Whether other repositories that it names come along.
    pub submodules: bool,
}

/// Why the address of a git repository cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the git address `{address}` cannot be used: {reason}")]
pub struct GitAddressError {
    address: String,
    reason: String,
}

impl GitAddress {
    /// Takes a source of `ADD` if it is a git repository, by the rules of BuildKit's frontend.
    pub fn of_add(source: &str) -> Option<Result<Self, GitAddressError>> {
        let is_other = ["git@", "git://", "ssh://"].iter().any(|start| source.starts_with(start));
        let is_one = is_other || is_http(source) && path_end(source).ends_with(".git");
        is_one.then(|| Self::parse(source))
    }

    /// The repository's own address, for whoever fetches it.
    pub fn reveal(&self) -> &str {
        &self.url
    }

    /// What must not be seen: the user and password of the address.
    pub fn secret(&self) -> Option<&str> {
        secret_of(&self.url).filter(|_| !self.is_ssh())
    }

    /// Whether it is reached over SSH, where an agent proves who asks.
    pub fn is_ssh(&self) -> bool {
        ["git@", "ssh://"].iter().any(|start| self.url.starts_with(start))
    }

    /// Whether a token can be given for it.
    pub fn takes_token(&self) -> bool {
        is_http(&self.url)
    }

    fn parse(text: &str) -> Result<Self, GitAddressError> {
        // A query that is not known may be a signature.
        let address = without_credentials(path_end(text));
        let invalid = |reason| GitAddressError { address: address.clone(), reason };
        if text.chars().any(char::is_control) {
            return Err(invalid("it has control characters".to_owned()));
        }
        if text.starts_with("ssh://") && secret_of(text).is_some_and(|user| user.contains(':')) {
            return Err(invalid("over SSH there are no passwords".to_owned()));
        }
        if text.starts_with("git://") && secret_of(text).is_some() {
            return Err(invalid("git's own protocol has no users and passwords".to_owned()));
        }
        let text = match text.starts_with("github.com/") {
            true => format!("https://{text}"),
            false => text.to_owned(),
        };
        let (url, fragment) = text.split_once('#').unwrap_or((&text, ""));
        let (url, query) = url.split_once('?').unwrap_or((url, ""));
        let (reference, folder) = fragment.split_once(':').unwrap_or((fragment, ""));
        let mut parsed = Self {
            url: url.to_owned(),
            reference: Some(reference).filter(|text| !text.is_empty()).map(str::to_owned),
            folder: clean_folder(folder),
            commit: None,
            branch: None,
            keep_git_dir: None,
            submodules: true,
        };
        parsed.take_query(query).map_err(invalid)?;
        if let Some(commit) = &mut parsed.commit {
            *commit = commit_id(commit).map_err(invalid)?;
        }
        Ok(parsed)
    }

    /// The form `?ref=main&subdir=app`.
    fn take_query(&mut self, query: &str) -> Result<(), String> {
        let mut seen = Vec::new();
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        for pair in pairs {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decoded(value).into_owned();
            if seen.contains(&key) {
                return Err(format!("its query has `{key}` twice"));
            }
            seen.push(key);
            let flag = || match value.as_str() {
                "" | "1" | "true" => Ok(true),
                "0" | "false" => Ok(false),
                _ => Err(format!("`{key}` of its query is neither `true` nor `false`")),
            };
            match key {
                "keep-git-dir" => self.keep_git_dir = Some(flag()?),
                "submodules" => self.submodules = flag()?,
                _ if value.is_empty() => return Err(format!("`{key}` of its query has no value")),
                "ref" => self.take_reference(value)?,
                "branch" => self.take_reference(format!("refs/heads/{value}"))?,
                "tag" => self.take_reference(format!("refs/tags/{value}"))?,
                "subdir" if self.folder.is_some() => {
                    return Err("it names two folders".to_owned());
                }
                "subdir" => self.folder = clean_folder(&value),
                "commit" | "checksum" if self.commit.is_some() => {
                    return Err("it names two commits".to_owned());
                }
                "commit" | "checksum" => self.commit = Some(value),
                _ => return Err(format!("its query has `{key}`, which is not known")),
            }
        }
        Ok(())
    }

    fn take_reference(&mut self, reference: String) -> Result<(), String> {
        match self.reference.replace(reference) {
            Some(_) => Err("it names two branches, tags or commits".to_owned()),
            None => Ok(()),
        }
    }
}

impl fmt::Display for GitAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_ssh() {
            // A user is part of the place there.
            true => f.write_str(&self.url)?,
            false => f.write_str(&without_credentials(&self.url))?,
        }
        match (&self.reference, &self.folder) {
            (None, None) => Ok(()),
            (reference, None) => write!(f, "#{}", reference.as_deref().unwrap_or_default()),
            (reference, Some(folder)) => {
                write!(f, "#{}:{folder}", reference.as_deref().unwrap_or_default())
            }
        }
    }
}

impl fmt::Debug for GitAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

/// The id of a commit, or its beginning: 7 to 40 hexadecimal digits.
pub(crate) fn commit_id(text: &str) -> Result<String, String> {
    let is_id = (7..=40).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    match is_id {
        true => Ok(text.to_ascii_lowercase()),
        false => Err(format!("`{text}` is no commit, which has 40 hexadecimal digits")),
    }
}

fn is_git_context(text: &str) -> bool {
    if ["git://", "git@", "ssh://", "github.com/"].iter().any(|start| text.starts_with(start)) {
        return true;
    }
    if is_http(text) {
        let ends = text.ends_with(".git");
        let with_fragment = text.split_once(".git#").is_some_and(|(_, rest)| !rest.is_empty());
        // BuildKit's form, which no server of archives has.
        let with_query = path_end(text).ends_with(".git") && has_known_query(text);
        if ends || with_fragment || with_query {
            return true;
        }
    }
    is_azure_repository(&text.to_lowercase())
}

/// `https://dev.azure.com/.../_git/...`, or the same at an old `visualstudio.com` host.
fn is_azure_repository(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("https://") else { return false };
    let address = rest.split('#').next().unwrap_or_default();
    let Some((authority, path)) = address.split_once('/') else { return false };
    let host = authority.rsplit('@').next().unwrap_or_default();
    let is_host = host == "dev.azure.com" || host.ends_with(".visualstudio.com");
    is_host && !address.contains('?') && format!("/{path}").contains("/_git/")
}

fn has_known_query(text: &str) -> bool {
    let text = text.split('#').next().unwrap_or_default();
    let query = text.split_once('?').map_or("", |(_, query)| query);
    let known = ["ref", "branch", "tag", "subdir", "commit", "checksum"];
    let known = |key: &str| known.contains(&key) || matches!(key, "keep-git-dir" | "submodules");
    !query.is_empty() && query.split('&').all(|pair| known(pair.split('=').next().unwrap_or("")))
}

fn is_http(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// An address up to the end of its path.
fn path_end(text: &str) -> &str {
    &text[..text.find(['?', '#']).unwrap_or(text.len())]
}

fn clean_folder(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    Some(parts.join("/")).filter(|folder| !folder.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a context is, with the parts of a repository.
    fn kind(text: &str) -> String {
        match ContextAddress::of(text) {
            ContextAddress::Nothing => "nothing".into(),
            ContextAddress::Archive(address) => format!("archive {address}"),
            ContextAddress::Artifact(Ok(reference)) => format!("artifact {reference}"),
            ContextAddress::Artifact(Err(error)) => format!("error: {error}"),
            ContextAddress::Local => "local".into(),
            ContextAddress::Git(Err(error)) => format!("error: {error}"),
            ContextAddress::Git(Ok(address)) => {
                let text = |text: Option<String>| text.unwrap_or_else(|| "-".into());
                let (reference, folder) = (text(address.reference), text(address.folder));
                format!("git {} {reference} {folder}", address.url)
            }
        }
    }

    #[test]
    fn contexts_of_the_specification_are_told_apart() {
        let archive = |address: &str| format!("archive {address}");
        for (case, text, expected) in [
            ("i1", "https://github.com/u/r.git", "git https://github.com/u/r.git - -".into()),
            ("i2", "https://github.com/u/r.git#", archive("https://github.com/u/r.git#")),
            ("i3", "https://github.com/u/r", archive("https://github.com/u/r")),
            ("i4", "github.com/u/r", "git https://github.com/u/r - -".into()),
            ("i5", "git@h:u/r.git#b:d", "git git@h:u/r.git b d".into()),
            (
                "i6",
                "https://dev.azure.com/o/p/_git/r",
                "git https://dev.azure.com/o/p/_git/r - -".into(),
            ),
            (
                "i7",
                "https://dev.azure.com/o/p/_git/r?x=1",
                archive("https://dev.azure.com/o/p/_git/r?x=1"),
            ),
            (
                "i8",
                "HTTPS://DEV.AZURE.COM/o/_git/r",
                "git HTTPS://DEV.AZURE.COM/o/_git/r - -".into(),
            ),
            (
                "i9",
                "https://o.visualstudio.com/p/_git/r#m:d",
                "git https://o.visualstudio.com/p/_git/r m d".into(),
            ),
            ("i11", "src/app", "local".into()),
        ] {
            assert_eq!(kind(text), expected, "{case}");
        }
    }

    #[test]
    fn contexts_are_told_by_how_they_are_written() {
        let commit = "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567";
        for (text, expected) in [
            ("https://h/u/r.git", "git https://h/u/r.git - -"),
            ("http://h/u/r.git", "git http://h/u/r.git - -"),
            ("https://h/u/r.git#dev", "git https://h/u/r.git dev -"),
            ("https://h/u/r.git#:app", "git https://h/u/r.git - app"),
            ("https://h/u/r.git#dev:app/x/", "git https://h/u/r.git dev app/x"),
            ("https://h/u/r.git#dev:a:b", "git https://h/u/r.git dev a:b"),
            ("https://h/u/r.git#pull/7/head", "git https://h/u/r.git pull/7/head -"),
            (&format!("https://h/r.git#{commit}"), &format!("git https://h/r.git {commit} -")),
            ("https://h/r.git?ref=v1&subdir=a%2Fb", "git https://h/r.git v1 a/b"),
            ("https://h/r.git?branch=x#:app", "git https://h/r.git refs/heads/x app"),
            ("github.com/u/r#dev:app", "git https://github.com/u/r dev app"),
            (
                "https://dev.azure.com/o/p/_git/r#dev:app",
                "git https://dev.azure.com/o/p/_git/r dev app",
            ),
            ("https://me@Dev.Azure.com/o/p/_git/r", "git https://me@Dev.Azure.com/o/p/_git/r - -"),
            (
                "https://dev.azure.com/o/p/_git/r?path=x",
                "archive https://dev.azure.com/o/p/_git/r?path=x",
            ),
            ("http://dev.azure.com/o/p/_git/r", "archive http://dev.azure.com/o/p/_git/r"),
            (
                "https://evil.com/dev.azure.com/_git/r",
                "archive https://evil.com/dev.azure.com/_git/r",
            ),
            (" https://dev.azure.com/o/p/_git/r", "local"),
            ("https://h/r.git?token=x", "archive https://h/r.git?token=x"),
            ("https://u:p@h/c.tar.gz", "archive https://***@h/c.tar.gz"),
            ("HTTPS://h/r.git", "local"),
            ("OCI://h.x/r", "artifact h.x/r"),
            ("oci://contoso.azurecr.io/a:1", "artifact contoso.azurecr.io/a:1"),
            (
                "oci://app",
                "error: the address `oci://app` of an artifact cannot be used: it names no registry",
            ),
            (
                "oci://u:secret@h.x/app",
                "error: the address `oci://***@h.x/app` of an artifact cannot be used: it has a user",
            ),
            ("/DEV/null", "nothing"),
            (".", "local"),
            ("source/0123.tar.gz", "local"),
            ("git@h:u/r.git#dev", "git git@h:u/r.git dev -"),
            ("ssh://me@h:7/r#:d", "git ssh://me@h:7/r - d"),
            (
                "ssh://git:pw@h/r",
                "error: the git address `ssh://***@h/r` cannot be used: over SSH there are no passwords",
            ),
            ("git://h/r#dev:app", "git git://h/r dev app"),
            (
                "git://me:secret@h/r",
                "error: the git address `git://***@h/r` cannot be used: git's own protocol has no users and passwords",
            ),
        ] {
            assert_eq!(kind(text), expected, "{text}");
        }
    }

    #[test]
    fn a_query_says_what_is_wanted() {
        let add = |query: &str| GitAddress::of_add(&format!("https://h/r.git{query}")).unwrap();
        let address = add("?tag=v1&commit=ABCDEF0&keep-git-dir=1&submodules=false").unwrap();
        assert_eq!(address.reference.as_deref(), Some("refs/tags/v1"));
        assert_eq!(address.commit.as_deref(), Some("abcdef0"));
        assert_eq!((address.keep_git_dir, address.submodules), (Some(true), false));
        for (query, expected) in [
            ("?depth=1", "its query has `depth`, which is not known"),
            ("?ref=a&ref=b", "its query has `ref` twice"),
            ("?ref=a#b", "it names two branches, tags or commits"),
            ("?tag=a&branch=b", "it names two branches, tags or commits"),
            ("?subdir=a#:b", "it names two folders"),
            ("?ref", "`ref` of its query has no value"),
            ("?submodules=maybe", "`submodules` of its query is neither `true` nor `false`"),
            ("?commit=xyz", "`xyz` is no commit, which has 40 hexadecimal digits"),
            ("?commit=1234567&checksum=1234567", "it names two commits"),
        ] {
            let error = add(query).unwrap_err().to_string();
            assert!(error.ends_with(expected), "{query}: {error}");
        }
    }

    #[test]
    fn add_takes_repositories_by_the_end_of_the_path() {
        for (source, is_git) in [
            ("https://h/r.git", true),
            ("https://h/r.git#", true),
            ("https://h/r.git/", false),
            ("https://h/x?y=.git", false),
            ("git@h:r", true),
            ("github.com/u/r", false),
            ("r.git", false),
        ] {
            assert_eq!(GitAddress::of_add(source).is_some(), is_git, "{source}");
        }
    }

    #[test]
    fn tokens_are_not_shown() {
        let address = GitAddress::of_add("https://u:secret@h/r.git#dev:app").unwrap().unwrap();
        assert_eq!(
            format!("{address} {address:?}"),
            "https://***@h/r.git#dev:app \"https://***@h/r.git#dev:app\""
        );
        assert_eq!(address.secret(), Some("u:secret"));
        let error = GitAddress::of_add("https://secret@h/r.git?x=1").unwrap().unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
        assert_eq!(GitAddress::of_add("https://h/r.git").unwrap().unwrap().secret(), None);
        // A user is no secret over SSH.
        let address = GitAddress::of_add("ssh://me@h/r#dev").unwrap().unwrap();
        assert_eq!((address.to_string().as_str(), address.secret()), ("ssh://me@h/r#dev", None));
    }
}
