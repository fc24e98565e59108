//! The context of a task: the files that its steps find in their workspace.

use std::path::{Path, PathBuf};

use super::{IgnoreText, Source, local_folder, remote_address};
use crate::error::{Error, Result};

/// Where the files of a task's workspace come from.
pub(crate) enum Workspace {
    /// `/dev/null`.
    Empty,
    Folder(PathBuf),
    /// The address of a git repository or an archive; the server fetches it.
    Remote(String),
}

impl Workspace {
    pub(crate) fn find(context: &str) -> Result<Self> {
        if let Some(address) = remote_address(context)? {
            return Ok(Self::Remote(address));
        }
        Ok(local_folder(context)?.map_or(Self::Empty, Self::Folder))
    }

    /// The path from the root of the context to a file that the server is to read there. `file`
    /// is what `flag` says; nothing if there is no context.
    pub(crate) fn path_of(&self, flag: &str, file: &Path) -> Result<Option<String>> {
        match self {
            Self::Empty => Ok(None),
            Self::Folder(folder) => path_in_folder(folder, flag, file).map(Some),
            Self::Remote(_) => {
                let shown = file.to_string_lossy();
                let is_inside =
                    !shown.starts_with('/') && shown.split('/').all(|part| part != "..");
                if !is_inside {
                    let message =
                        format!("`{flag} {shown}` is not in the context, which is remote");
                    return Err(Error::usage(message).with_hint("give the path inside of it"));
                }
                Ok(Some(shown.into_owned()))
            }
        }
    }
}

impl Source {
    /// A folder with its own ignore file, in spite of which travels what a task is made of: the
    /// files that are named, and the Dockerfile at the root, which a step may build.
    pub(crate) fn of_workspace(folder: &Path, named: &[&str]) -> Result<Self> {
        let ignore = IgnoreText::find(None, Some(folder))?;
        let kept: Vec<&str> = ["Dockerfile"].iter().chain(named).copied().collect();
        let patterns = ignore.patterns_keeping(&kept)?;
        Ok(Self { patterns, ..Self::of_folder(folder)? })
    }
}

/// A file is named from the root of the context; a path from here that leads into the context is
/// understood too.
fn path_in_folder(folder: &Path, flag: &str, file: &Path) -> Result<String> {
    let places = [folder.join(file), file.to_owned()];
    if let Some(path) = places.iter().find_map(|place| path_inside(folder, place)) {
        return Ok(path);
    }
    let (shown, context) = (file.display(), folder.display());
    let error = Error::usage(format!("`{flag} {shown}` is not in the context `{context}`"));
    Err(match places.iter().any(|place| place.is_file()) {
        true => error.with_hint(
            "the server reads it there; with `/dev/null` as context a file from elsewhere is sent \
             by itself",
        ),
        false => error.with_hint("there is no such file; its path begins at the context"),
    })
}

/// The path of a file from a folder that it is in. Links lead where they lead: a file that is
/// outside and linked into the folder would not be there for the server.
fn path_inside(folder: &Path, file: &Path) -> Option<String> {
    let root = folder.canonicalize().ok()?;
    let real = file.canonicalize().ok()?;
    if !real.is_file() || !real.starts_with(&root) {
        return None;
    }
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let place = parent.unwrap_or(Path::new(".")).canonicalize().ok()?.join(file.file_name()?);
    place.strip_prefix(&root).ok()?.to_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_task_file_is_named_from_the_context_or_from_here() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("app");
        fs::create_dir_all(root.join("sub")).unwrap();
        for file in ["app/acb.yaml", "app/sub/acb.yaml", "outside.yaml"] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        symlink("sub/acb.yaml", root.join("link.yaml")).unwrap();
        symlink("../outside.yaml", root.join("lost.yaml")).unwrap();
        let path = |file: &str| path_in_folder(&root, "--file", Path::new(file));
        assert_eq!(path("acb.yaml").unwrap(), "acb.yaml");
        assert_eq!(path("sub/../sub/./acb.yaml").unwrap(), "sub/acb.yaml");
        assert_eq!(path("link.yaml").unwrap(), "link.yaml");
        let from_here = root.join("sub/acb.yaml");
        assert_eq!(path(from_here.to_str().unwrap()).unwrap(), "sub/acb.yaml");
        let outside = path("../outside.yaml").unwrap_err();
        assert!(outside.to_string().starts_with("`--file ../outside.yaml` is not in the context"));
        assert!(outside.hint().unwrap().contains("/dev/null"), "{outside:?}");
        assert!(path("lost.yaml").unwrap_err().hint().unwrap().contains("/dev/null"));
        assert!(path("none.yaml").unwrap_err().hint().unwrap().contains("no such file"));
        assert!(path("sub").is_err());
    }

    #[test]
    fn a_task_file_of_a_remote_context_is_inside_of_it() {
        let remote = Workspace::Remote("https://example.com/app.git".into());
        let path = |file: &str| remote.path_of("--file", Path::new(file));
        assert_eq!(path("ci/acb.yaml").unwrap().as_deref(), Some("ci/acb.yaml"));
        for outside in ["/acb.yaml", "../acb.yaml", "ci/../../acb.yaml"] {
            assert!(path(outside).is_err(), "{outside}");
        }
        assert_eq!(Workspace::Empty.path_of("--file", Path::new("acb.yaml")).unwrap(), None);
    }

    #[test]
    fn what_a_task_is_made_of_travels_whatever_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".dockerignore"), "*\n").unwrap();
        let source = Source::of_workspace(folder.path(), &["ci/[1]*.yaml"]).unwrap();
        for (path, excluded) in
            [("Dockerfile", false), ("ci/[1]*.yaml", false), ("ci/1x.yaml", true), ("main.c", true)]
        {
            assert_eq!(source.is_excluded(path), excluded, "{path}");
        }
        assert!(source.may_hold_exceptions("ci") && !source.may_hold_exceptions("src"));
    }
}
