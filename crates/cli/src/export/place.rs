//! Where something is written, and that it is there only when it is whole.

use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use tokio::fs::File;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use crate::error::{Error, Result, could_not};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Stdout,
    File(PathBuf),
    Folder(PathBuf),
}

impl Place {
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Stdout => "to standard output".to_owned(),
            Self::File(path) | Self::Folder(path) => format!("`{}`", path.display()),
        }
    }

    /// Finds out before the build whether it can be written after it.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Self::Stdout if io::stdout().is_terminal() => {
                Err(Error::usage("an archive is not written to a terminal")
                    .with_hint("name a file with `dest=FILE`, or redirect the output"))
            }
            Self::Stdout => Ok(()),
            Self::File(file) if is_special(file) => Ok(()),
            Self::File(file) => can_write(file),
            Self::Folder(folder) => match std::fs::metadata(folder) {
                Ok(found) if found.is_dir() => Ok(()),
                Ok(_) => Err(Error::usage(format!("`{}` is not a folder", folder.display()))),
                Err(_) => Ok(()),
            },
        }
    }
}

/// Finds out whether a file can be written.
pub(crate) fn can_write(file: &Path) -> Result<()> {
    let was_there = file.exists();
    let opened = std::fs::File::options().append(true).create(true).open(file);
    opened.map_err(|error| {
        Error::usage(format!("could not write `{}`", file.display())).caused_by(&error)
    })?;
    if !was_there {
        // A build that fails leaves no empty file; what cannot be removed can be written.
        let _ = std::fs::remove_file(file);
    }
    Ok(())
}

/// A pipe or a device: it cannot be replaced by a file.
fn is_special(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// A file under way. It gets its name at the end, and is removed if that never comes.
pub(super) struct Whole {
    out: Box<dyn AsyncWrite + Send + Unpin>,
    /// Its name until then, and its name.
    names: Option<(PathBuf, PathBuf)>,
    shown: String,
}

impl Whole {
    pub(super) fn stdout() -> Result<Self> {
        let shown = "standard output".to_owned();
        let owned = io::stdout().as_fd().try_clone_to_owned();
        let owned = owned.map_err(could_not(format_args!("write {shown}")))?;
        let out = Box::new(File::from_std(std::fs::File::from(owned)));
        Ok(Self { out, names: None, shown })
    }

    pub(super) async fn begin(file: &Path) -> Result<Self> {
        let shown = format!("`{}`", file.display());
        let doing = || format!("write {shown}");
        if is_special(file) {
            let opened = File::options().write(true).open(file).await;
            let out = Box::new(opened.map_err(could_not(doing()))?);
            return Ok(Self { out, names: None, shown });
        }
        // What a link names is replaced, and not the link.
        let target = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
        let name = format!(".refit-{}", uuid::Uuid::new_v4().simple());
        let partial = target.with_file_name(name);
        let opened = File::options().write(true).create_new(true).open(&partial).await;
        let out = Box::new(opened.map_err(could_not(doing()))?);
        Ok(Self { out, names: Some((partial, target)), shown })
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.out.write_all(bytes).await;
        written.map_err(could_not(format_args!("write {}", self.shown)))
    }

    pub(super) async fn finish(mut self) -> Result<()> {
        // Writing may go on in the background: only now its errors are known.
        self.out.flush().await.map_err(could_not(format_args!("write {}", self.shown)))?;
        if let Some((partial, target)) = &self.names {
            let renamed = std::fs::rename(partial, target);
            renamed.map_err(could_not(format_args!("write {}", self.shown)))?;
            self.names = None;
        }
        Ok(())
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        if let Some((partial, _)) = &self.names {
            let _ = std::fs::remove_file(partial);
        }
    }
}
