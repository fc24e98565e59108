//! Who owns the data folder, in words.
//!
//! The lock of [`store::DataDir`] decides; what its owner writes into a file beside it is
//! only told to those who find the folder owned.

use std::path::Path;

use store::{DataDir, DataDirError, Locked};

/// What an owner is for, which tells whether it will leave by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OwnerKind {
    Server,
    Command,
}

/// Somebody else has the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OtherOwner {
    pub(crate) kind: OwnerKind,
    process: Option<u32>,
}

impl std::fmt::Display for OtherOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            OwnerKind::Server => f.write_str("a server")?,
            OwnerKind::Command => f.write_str("a command")?,
        }
        match self.process {
            Some(process) => write!(f, ", process {process}"),
            None => Ok(()),
        }
    }
}

const KIND_FILE: &str = "owner";

/// Tries to own a folder, making it if needed.
pub(crate) fn acquire(
    data: &Path,
    kind: OwnerKind,
) -> Result<Result<DataDir, OtherOwner>, DataDirError> {
    let file = data.join(KIND_FILE);
    match DataDir::try_lock(data)? {
        Locked::Ours(folder) => {
            let text = match kind {
                OwnerKind::Server => "server\n",
                OwnerKind::Command => "command\n",
            };
            // Only told to people; without it a server counts as a command that will leave.
            let _ = std::fs::write(file, text);
            Ok(Ok(folder))
        }
        Locked::Theirs { process } => {
            let kind = match std::fs::read_to_string(file) {
                Ok(text) if text.trim() == "server" => OwnerKind::Server,
                _ => OwnerKind::Command,
            };
            Ok(Err(OtherOwner { kind, process }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_a_folder_owned_learns_by_whom() {
        let data = tempfile::tempdir().unwrap();
        let data = data.path().join("new/data");
        let first = acquire(&data, OwnerKind::Server).unwrap().unwrap();
        let other = acquire(&data, OwnerKind::Command).unwrap().unwrap_err();
        assert_eq!(other.to_string(), format!("a server, process {}", std::process::id()));
        drop(first);
        assert!(acquire(&data, OwnerKind::Command).unwrap().is_ok());
    }
}
