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
    Agent,
}

impl OwnerKind {
    fn word(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Command => "command",
            Self::Agent => "agent",
        }
    }
}

/// Somebody else has the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OtherOwner {
    pub(crate) kind: OwnerKind,
    /// It was told to stop, and takes no more work.
    pub(crate) is_leaving: bool,
    process: Option<u32>,
}

impl std::fmt::Display for OtherOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let article = if self.kind == OwnerKind::Agent { "an" } else { "a" };
        write!(f, "{article} {}", self.kind.word())?;
        if self.is_leaving {
            f.write_str(" that is stopping")?;
        }
        match self.process {
            Some(process) => write!(f, ", process {process}"),
            None => Ok(()),
        }
    }
}

const KIND_FILE: &str = "owner";
/// Follows the kind once its owner was told to stop.
const LEAVING: &str = "leaving";

/// Tries to own a folder, making it if needed.
pub(crate) fn acquire(
    data: &Path,
    kind: OwnerKind,
) -> Result<Result<DataDir, OtherOwner>, DataDirError> {
    let file = data.join(KIND_FILE);
    match DataDir::try_lock(data)? {
        Locked::Ours(folder) => {
            // Only told to others; without it a server counts as a command that will leave.
            let _ = std::fs::write(file, format!("{}\n", kind.word()));
            Ok(Ok(folder))
        }
        Locked::Theirs { process } => {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let mut words = text.split_whitespace();
            let kind = match words.next() {
                Some("server") => OwnerKind::Server,
                Some("agent") => OwnerKind::Agent,
                _ => OwnerKind::Command,
            };
            Ok(Err(OtherOwner { kind, is_leaving: words.next() == Some(LEAVING), process }))
        }
    }
}

/// Tells those who wait for the folder that its owner, this process, will soon be gone.
pub(crate) fn leave(folder: &DataDir, kind: OwnerKind) {
    // Without it they wait a little, and then give up.
    let _ = std::fs::write(folder.path().join(KIND_FILE), format!("{} {LEAVING}\n", kind.word()));
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
        leave(&first, OwnerKind::Server);
        let other = acquire(&data, OwnerKind::Command).unwrap().unwrap_err();
        let expected = format!("a server that is stopping, process {}", std::process::id());
        assert_eq!((other.is_leaving, other.to_string()), (true, expected));
        drop(first);
        assert!(acquire(&data, OwnerKind::Command).unwrap().is_ok());
    }
}
