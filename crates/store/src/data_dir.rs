//! The data folder: its layout, and who owns it.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

/// A data folder that this process owns until the value is dropped. The lock decides, never
/// a file's content.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// What became of trying to own a folder.
#[derive(Debug)]
pub enum Locked {
    Ours(DataDir),
    /// Another process owns it; its id, as far as it says.
    Theirs {
        process: Option<u32>,
    },
}

/// Why a folder cannot be a data folder.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("data folder `{path}` cannot be used")]
    Io {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("data folder `{path}` is on a {kind} file system, which does not keep locks and syncs")]
    Network { path: String, kind: &'static str },
}

impl DataDirError {
    /// What the user can do about it, when we know.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("choose a folder of your own with `--data`".to_owned())
            }
            Self::Io { .. } => None,
            Self::Network { .. } => Some("choose a folder on a local disk".to_owned()),
        }
    }
}

/// File systems whose locks or syncs cannot be trusted, by their magic number in statfs(2).
const NETWORK: [(u32, &str); 6] = [
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "Ceph"),
    (0x6573_5546, "FUSE"),
];

/// What lies in a data folder. Each is private of its own, since the data folder itself may be
/// one that was there, and that others may enter.
const FOLDERS: [&str; 7] =
    ["blobs", "uploads", "snapshots", "logs", "keys", "containers", "workspaces"];

fn private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    match std::fs::metadata(path)?.mode() & 0o077 {
        0 => Ok(()),
        _ => std::fs::set_permissions(path, Permissions::from_mode(0o700)),
    }
}

impl DataDir {
    /// Creates the folder and tries to become its owner, without waiting.
    pub fn try_lock(path: &Path) -> Result<Locked, DataDirError> {
        let failed = |source| DataDirError::Io { path: path.display().to_string(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let stat = rustix::fs::statfs(path).map_err(|error| failed(error.into()))?;
        // Magic numbers are 32 bits wide, whatever the field's type.
        let magic = stat.f_type as u32;
        if let Some((_, kind)) = NETWORK.iter().find(|(number, _)| *number == magic) {
            return Err(DataDirError::Network { path: path.display().to_string(), kind });
        }
        let lock = path.join("lock");
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(lock)
            .map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => (),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let read = (&mut file).take(32).read_to_string(&mut text);
                let process = read.ok().and_then(|_| text.trim().parse().ok());
                return Ok(Locked::Theirs { process });
            }
            Err(error) => return Err(failed(error.into())),
        }
        // For people and messages; the lock is what counts.
        file.set_len(0).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        for name in FOLDERS {
            private_folder(&path.join(name)).map_err(failed)?;
        }
        Ok(Locked::Ours(Self { path: path.to_owned(), _lock: file }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn database(&self) -> PathBuf {
        self.path.join("refit.db")
    }

    pub fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// Server keys and credentials, mode 0700.
    pub fn keys(&self) -> PathBuf {
        self.path.join("keys")
    }
}

/// Where the owner of a data folder serves its API.
pub fn socket_path(folder: &Path) -> PathBuf {
    folder.join("refit.sock")
}
