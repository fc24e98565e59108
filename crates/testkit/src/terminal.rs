//! A terminal, as far as a program can tell.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

/// Both ends of a pseudo terminal: the user's, and the program's.
pub struct Terminal {
    user: File,
    program: OwnedFd,
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Terminal {
    #[track_caller]
    pub fn new() -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let user = openpt(flags).expect("there are terminals");
        grantpt(&user).and_then(|()| unlockpt(&user)).expect("the terminal can be used");
        let name = ptsname(&user, Vec::new()).expect("it has a name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let program = rustix::fs::open(name, flags, Mode::empty()).expect("it can be opened");
        Self { user: user.into(), program }
    }

    #[track_caller]
    pub(crate) fn for_program(&self) -> OwnedFd {
        self.program.try_clone().expect("a descriptor can be duplicated")
    }

    /// Types, as the user.
    #[track_caller]
    pub fn write(&self, text: &str) {
        (&self.user).write_all(text.as_bytes()).expect("the terminal takes it");
    }

    /// Whether it shows what is typed.
    #[track_caller]
    pub fn echoes(&self) -> bool {
        let modes = tcgetattr(&self.program).expect("it is a terminal").local_modes;
        modes.contains(LocalModes::ECHO)
    }
}
