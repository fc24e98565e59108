//! The door between the agent shell and the engine: a socket, and the commands that use it.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use container::{Mount, MountKind, Private, ProgramFiles};
use rustix::fs::{Mode, OFlags};
use tokio::net::UnixListener;

use super::client::SHELL_CLIENT_ARG;
use super::protocol::{Program, SOCKET};

/// The step's own command in the shell.
pub(super) const STEP_COMMAND: &str = "/.refit/step";
/// Where its other commands are.
pub(super) const COMMANDS: &str = "/.refit/bin";

const PROGRAM: &str = "/.refit/refit";
const LOADER: &str = "/.refit/loader";
const LIBRARIES: &str = "/.refit/lib";
const SOCKET_FILE: &str = "run.sock";

/// A socket in a folder that only the shell's container sees; gone when dropped.
pub(super) struct Door {
    folder: PathBuf,
    pub(super) listener: UnixListener,
}

impl Door {
    /// Makes the folder and opens the socket in it.
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        std::fs::create_dir(&folder)?;
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&folder, flags, Mode::empty())?;
        // The address of a socket is short, and the path of a folder may be long.
        let address = format!("/proc/self/fd/{}/{SOCKET_FILE}", opened.as_raw_fd());
        Ok(Self { folder, listener: UnixListener::bind(address)? })
    }

    /// What the shell's container needs to use it.
    pub(super) fn mounts(&self, files: &ProgramFiles) -> Vec<Mount> {
        let mount = |target: &str, kind| Mount { target: target.to_owned(), read_only: true, kind };
        let shared = |target: &str, source: &Path| {
            mount(target, MountKind::Shared { source: source.to_owned() })
        };
        let socket = MountKind::Bind { source: self.folder.join(SOCKET_FILE) };
        let mut mounts = vec![mount(SOCKET, socket), shared(PROGRAM, &files.program)];
        if let Some(loader) = &files.loader {
            mounts.push(shared(LOADER, loader));
            for library in &files.libraries {
                let name = library.file_name().unwrap_or_default().to_string_lossy();
                mounts.push(shared(&format!("{LIBRARIES}/{name}"), library));
            }
        }
        for program in Program::ALL {
            let target = match program {
                Program::Step => STEP_COMMAND.to_owned(),
                Program::Docker | Program::Acr => format!("{COMMANDS}/{}", program.name()),
            };
            let content = Private::new(script(program, files.loader.is_some()).as_bytes());
            mounts.push(mount(&target, MountKind::File { content, uid: 0, gid: 0, mode: 0o755 }));
        }
        mounts
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Else it goes with the workspace.
        let _kept = std::fs::remove_dir_all(&self.folder);
    }
}

/// Starts the client, with its own libraries: the image may have others.
fn script(program: Program, has_loader: bool) -> String {
    let start = match has_loader {
        true => format!("{LOADER} --library-path {LIBRARIES} {PROGRAM}"),
        false => PROGRAM.to_owned(),
    };
    format!("#!/bin/sh\nexec {start} {SHELL_CLIENT_ARG} {} \"$@\"\n", program.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_start_the_client_with_its_own_libraries() {
        assert_eq!(
            script(Program::Docker, true),
            "#!/bin/sh\nexec /.refit/loader --library-path /.refit/lib /.refit/refit \
             shell-client docker \"$@\"\n"
        );
        assert!(script(Program::Step, false).contains("exec /.refit/refit shell-client step"));
    }

    #[tokio::test]
    async fn a_socket_may_be_deep_and_is_gone_with_the_door() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        let door = Door::open(deep.join("door")).unwrap();
        assert!(deep.join("door/run.sock").exists());
        drop(door);
        assert!(!deep.join("door").exists());
    }
}
