//! The context of a build: which files of this machine go to the server, and how, or the
//! address from which the server fetches them itself.
//!
//! What leaves this machine is decided here (contexts.md section 5): the ignore file, the
//! names that never travel, and the Dockerfile, which travels under a name of its own and so
//! may lie anywhere.

mod file;
mod files;
mod index;
mod key;
mod layout;
mod listing;
mod named;
mod packs;
mod records;
mod spool;
mod upload;
mod walk;
mod workspace;

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use dockerfile::ContextAddress;
use dockerfile::ignore::IgnoreFile;

pub(crate) use file::file_header;
pub(crate) use layout::Layout;
pub(crate) use named::{NamedContent, NamedContext};
pub(crate) use upload::{Content, Summary, Upload, upload};
pub(crate) use workspace::Workspace;

use crate::error::{Error, Result, could_not};

/// Left out by name at any depth, unless the ignore file takes it back: what version control
/// keeps for itself.
const NEVER_SENT: &str = "\
**/.git
**/.gitignore
**/.bzr
**/bzrignore
**/.hg
**/.hgignore
**/.svn
";

/// Folders that are not even looked into.
const NEVER_ENTERED: &str = ".venv";

/// An ignore file or a Dockerfile is not larger than this.
const TEXT_SIZE_MAX: u64 = 4 << 20;

/// Where a build's files are.
pub(crate) enum Context {
    Local(Source),
    Remote(RemoteContext),
}

/// A context that the server fetches.
pub(crate) struct RemoteContext {
    /// With the credentials that may be in it.
    pub(crate) address: String,
    /// Where in it the Dockerfile is.
    pub(crate) dockerfile_path: String,
}

impl Context {
    /// Finds the parts. `file` is `--file`: relative to the working directory, or to the root of
    /// a context that is elsewhere.
    pub(crate) fn find(context: &str, file: Option<&Path>) -> Result<Self> {
        let Some(address) = remote_address(context)? else {
            return Ok(Self::Local(Source::find(context, file)?));
        };
        let file = file.unwrap_or(Path::new("Dockerfile")).to_string_lossy();
        let is_inside = !file.starts_with('/') && file.split('/').all(|part| part != "..");
        if !is_inside {
            let message = format!("`--file {file}` is not in the context, which is remote");
            return Err(Error::usage(message).with_hint("give the path inside of it"));
        }
        Ok(Self::Remote(RemoteContext { address, dockerfile_path: file.into_owned() }))
    }

    /// The context, for what needs its files here.
    pub(crate) fn local(self) -> Result<Source> {
        match self {
            Self::Local(source) => Ok(source),
            Self::Remote(_) => Err(Error::usage("a context that is remote cannot be checked")
                .with_hint("fetch it, and check the local folder")),
        }
    }
}

/// The address of a context that is elsewhere; nothing if it is here. What is a folder here is
/// one, whatever it is called.
fn remote_address(context: &str) -> Result<Option<String>> {
    if Path::new(context).exists() {
        return Ok(None);
    }
    match ContextAddress::of(context) {
        ContextAddress::Git(Ok(_))
        | ContextAddress::Archive(_)
        | ContextAddress::Artifact(Ok(_)) => Ok(Some(context.to_owned())),
        ContextAddress::Git(Err(error)) => Err(Error::usage(error.to_string())),
        ContextAddress::Artifact(Err(error)) => {
            Err(Error::usage(error.to_string()).with_hint(error.hint()))
        }
        ContextAddress::Nothing | ContextAddress::Local => Ok(None),
    }
}

/// What to send.
pub(crate) struct Source {
    /// The context's folder; absent for `/dev/null`.
    pub(crate) folder: Option<PathBuf>,
    patterns: IgnoreFile,
    /// `.dockerignore` does not travel when another ignore file took its place: the server
    /// would apply it.
    leaves_out_usual_ignore_file: bool,
    /// A named context has none.
    dockerfile: Option<Vec<u8>>,
    /// The Dockerfile's name where it travels.
    pub(crate) dockerfile_path: String,
    /// Its name as the user knows it.
    pub(crate) dockerfile_name: String,
}

impl Source {
    /// Finds the parts. `file` is `--file`, relative to the working directory.
    pub(crate) fn find(context: &str, file: Option<&Path>) -> Result<Self> {
        let folder = local_folder(context)?;
        let dockerfile_file = match (file, &folder) {
            (Some(file), _) => file.to_owned(),
            (None, Some(folder)) => folder.join("Dockerfile"),
            (None, None) => {
                return Err(Error::usage("a build without context needs a Dockerfile")
                    .with_hint("name it with `--file`"));
            }
        };
        let dockerfile = read_dockerfile(&dockerfile_file, folder.as_deref())?;
        let ignore = IgnoreText::find(Some(&dockerfile_file), folder.as_deref())?;
        Ok(Self {
            patterns: ignore.patterns()?,
            leaves_out_usual_ignore_file: ignore.is_dockerfiles_own,
            dockerfile_path: hidden_name(&dockerfile),
            dockerfile: Some(dockerfile),
            dockerfile_name: shown_name(&dockerfile_file, folder.as_deref()),
            folder,
        })
    }

    /// A folder without a Dockerfile, with its own ignore file.
    pub(crate) fn of_folder(folder: &Path) -> Result<Self> {
        let ignore = IgnoreText::find(None, Some(folder))?;
        Ok(Self {
            folder: Some(folder.to_owned()),
            patterns: ignore.patterns()?,
            leaves_out_usual_ignore_file: false,
            dockerfile: None,
            dockerfile_path: String::new(),
            dockerfile_name: String::new(),
        })
    }

    /// The Dockerfile's text.
    pub(crate) fn dockerfile(&self) -> Result<&str> {
        std::str::from_utf8(self.dockerfile.as_deref().unwrap_or_default())
            .map_err(could_not(format!("read the Dockerfile `{}`", self.dockerfile_name)))
    }

    pub(crate) fn patterns(&self) -> &IgnoreFile {
        &self.patterns
    }

    /// Whether a path of the context stays here.
    fn is_excluded(&self, path: &str) -> bool {
        let replaced = self.leaves_out_usual_ignore_file && path == ".dockerignore";
        // Nobody else gives files this name.
        replaced || path == self.dockerfile_path || self.patterns.is_excluded(path)
    }

    /// Whether something below an excluded folder may still travel.
    fn may_hold_exceptions(&self, folder: &str) -> bool {
        self.patterns.may_keep_below(folder)
    }
}

/// The context's folder, or none for `/dev/null`.
fn local_folder(context: &str) -> Result<Option<PathBuf>> {
    if context.eq_ignore_ascii_case("/dev/null") {
        return Ok(None);
    }
    let folder = Path::new(context);
    match fs::metadata(folder) {
        Ok(found) if found.is_dir() => Ok(Some(folder.to_owned())),
        Ok(_) => Err(Error::usage(format!("the context `{context}` is not a folder"))
            .with_hint("name a file with `--file`, and the folder that it belongs to")),
        Err(error) => {
            Err(Error::usage(format!("the context `{context}` cannot be used")).caused_by(&error))
        }
    }
}

fn read_dockerfile(file: &Path, folder: Option<&Path>) -> Result<Vec<u8>> {
    let shown = file.display();
    let error = match read_bounded(file) {
        Ok(text) if text.len() as u64 > TEXT_SIZE_MAX => {
            return Err(Error::usage(format!("the Dockerfile `{shown}` is larger than 4 MiB")));
        }
        Ok(text) => return Ok(text),
        Err(error) => error,
    };
    let told = Error::usage(format!("the Dockerfile `{shown}` cannot be read")).caused_by(&error);
    let in_context = folder.map(|folder| folder.join(file)).filter(|_| file.is_relative());
    Err(match in_context {
        Some(other) if other.is_file() => {
            let other = other.display();
            told.with_hint(format!("`--file` is relative to here: did you mean `{other}`?"))
        }
        _ => told,
    })
}

/// One byte more than the bound shows that it was met.
fn read_bounded(file: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(file)?.take(TEXT_SIZE_MAX + 1).read_to_end(&mut text)?;
    Ok(text)
}

/// A name that no file of a context has; the same for the same text, so that a context that has
/// not changed has the same list.
fn hidden_name(text: &[u8]) -> String {
    format!("{}{}", api::HIDDEN_DOCKERFILE_PREFIX, &oci::Digest::of(text).hex()[..32])
}

/// `Dockerfile` or `sub/Dockerfile` inside the context, else as the user wrote it.
fn shown_name(file: &Path, folder: Option<&Path>) -> String {
    let inside = folder.and_then(|folder| file.strip_prefix(folder).ok());
    inside.unwrap_or(file).to_string_lossy().into_owned()
}

/// An ignore file, not parsed yet.
#[derive(Default)]
struct IgnoreText {
    file: PathBuf,
    text: String,
    /// It is the Dockerfile's own, in the place of the context's.
    is_dockerfiles_own: bool,
}

impl IgnoreText {
    fn find(dockerfile: Option<&Path>, folder: Option<&Path>) -> Result<Self> {
        let Some(folder) = folder else { return Ok(Self::default()) };
        let own = dockerfile.map(|dockerfile| {
            let mut own = dockerfile.as_os_str().to_owned();
            own.push(".dockerignore");
            (PathBuf::from(own), true)
        });
        for (file, is_own) in own.into_iter().chain([(folder.join(".dockerignore"), false)]) {
            match read_bounded(&file) {
                Ok(text) if text.len() as u64 > TEXT_SIZE_MAX => {
                    return Err(Error::usage(format!("`{}` is larger than 4 MiB", file.display())));
                }
                Ok(text) => {
                    let text = String::from_utf8(text)
                        .map_err(could_not(format!("read `{}`", file.display())))?;
                    let text = text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned();
                    return Ok(Self { file, text, is_dockerfiles_own: is_own });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => (),
                Err(error) => return Err(could_not(format!("read `{}`", file.display()))(error)),
            }
        }
        Ok(Self::default())
    }

    /// The user's rules come after ours: the last that matches decides.
    fn patterns(&self) -> Result<IgnoreFile> {
        self.patterns_keeping(&[])
    }

    /// The same, but these paths are never left out.
    fn patterns_keeping(&self, kept: &[&str]) -> Result<IgnoreFile> {
        let parse = |text: &str| {
            IgnoreFile::parse(text).map_err(could_not(format!("use `{}`", self.file.display())))
        };
        // By itself first, so that an error names the user's line.
        parse(&self.text)?;
        let kept: String =
            kept.iter().map(|path| format!("\n!{}", literal_pattern(path))).collect();
        parse(&format!("{NEVER_SENT}{}{kept}", self.text))
    }
}

/// The pattern that matches a path and nothing else.
fn literal_pattern(path: &str) -> String {
    let special = |c: char| matches!(c, '\\' | '*' | '?' | '[');
    path.chars().fold(String::new(), |mut pattern, c| {
        if special(c) {
            pattern.push('\\');
        }
        pattern.push(c);
        pattern
    })
}

#[cfg(test)]
mod tests;
