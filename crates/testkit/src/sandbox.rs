//! A folder of its own for one test.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::{Invocation, Server, UserMachine, user};

/// Everything that a test writes lies here, and is gone with it.
pub struct Sandbox {
    folder: TempDir,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Sandbox {
    /// One of root, or of an ordinary user if `REFIT_TEST_USER` says that this run of the tests is
    /// for those.
    #[expect(clippy::disallowed_methods, reason = "it belongs to the tests")]
    pub fn new() -> Self {
        match std::env::var_os("REFIT_TEST_USER") {
            Some(_) => {
                Self::of_user(UserMachine { uplink: Some("slirp4netns"), ..Default::default() })
            }
            None => Self::of_root(),
        }
    }

    pub fn of_root() -> Self {
        let folder = tempfile::Builder::new().prefix("refit-test-").tempdir();
        Self { folder: folder.expect("a temporary folder can be made") }
    }

    /// One whose programs are run by an ordinary user, whose folder it is.
    #[track_caller]
    pub fn of_user(machine: UserMachine) -> Self {
        let sandbox = Self::of_root();
        user::give(sandbox.root(), machine);
        sandbox
    }

    /// The number of the user whose folder it is.
    pub fn user(&self) -> u32 {
        user::USER
    }

    /// From now on the user has other subordinate ids.
    #[track_caller]
    pub fn change_ids(&self) {
        user::change_ids(self.root());
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The data folder of embedded commands and of [`Sandbox::server`].
    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    pub(crate) fn root(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file, and the folders it lies in.
    #[track_caller]
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> &Self {
        let file = self.path(name);
        let folder = file.parent().expect("a file lies in a folder");
        fs::create_dir_all(folder).expect("the sandbox can be written");
        fs::write(file, text).expect("the sandbox can be written");
        self
    }

    #[track_caller]
    pub fn write_executable(&self, name: &str, text: impl AsRef<[u8]>) -> &Self {
        self.write(name, text);
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755))
            .expect("modes can be set");
        self
    }

    /// A command on the sandbox's data folder, without a server.
    pub fn refit<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Invocation {
        Invocation::new(self.root(), args).env("REFIT_DATA", self.data().display())
    }

    /// Starts a server on the sandbox's data folder and waits until it is ready.
    #[track_caller]
    pub fn server(&self) -> Server {
        Server::start_in(self.root(), &[])
    }

    /// One whose users may have other servers of this machine asked, as those of a laptop want it.
    #[track_caller]
    pub fn server_beside_others(&self) -> Server {
        self.write("beside.toml", "[build]\nallow_addresses = [\"127.0.0.1\"]\n");
        self.server_with(&["--config", "beside.toml"])
    }

    #[track_caller]
    pub fn server_with(&self, args: &[&str]) -> Server {
        Server::start_in(self.root(), args)
    }
}

/// The program under test, which Cargo puts beside the folder of the tests' own binaries. It
/// is built for the tests of the crate `refit`, so only they can use it.
pub(crate) fn program() -> PathBuf {
    let tests = std::env::current_exe().expect("a test knows its own binary");
    let program = tests.parent().and_then(Path::parent).map(|folder| folder.join("refit"));
    program.filter(|program| program.exists()).expect("the binary `refit` is built")
}
