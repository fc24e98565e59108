//! `docker` and `acr` in the agent shell: they ask the engine and pass on what it says.
//!
//! The engine closes the connection of a client that is gone, and what it did for it ends; so
//! nothing here handles signals.

use std::ffi::OsString;
use std::fs::{DirBuilder, OpenOptions};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use bytes::Bytes;

use super::protocol::{MESSAGE_SIZE_MAX, Message, Program, Request, SOCKET};

/// First argument that makes the binary such a client.
pub const SHELL_CLIENT_ARG: &str = "shell-client";

/// What a command of docker ends with that did not do what it is there for.
const REFUSED: u8 = 125;
/// What a shell says of a process that SIGPIPE has ended, and of one that was killed.
const NOBODY_LISTENS: u8 = 141;
const KILLED: u8 = 137;
/// Standard input of a command, in bytes.
const INPUT_SIZE_MAX: u64 = 64 << 10;

/// Does what the shell asked for: the first argument is the command's name, then come its own.
/// Gives the exit code.
pub fn shell_client(arguments: &[OsString]) -> u8 {
    let result = match arguments.split_first() {
        Some((name, arguments)) => ask(name, arguments),
        None => Err(io::Error::other("this is a part of the agent shell")),
    };
    result.unwrap_or_else(|error| match error.kind() {
        // As if the signal had come that says so.
        io::ErrorKind::BrokenPipe => NOBODY_LISTENS,
        io::ErrorKind::UnexpectedEof => KILLED,
        _ => {
            let _nobody_listens = writeln!(io::stderr(), "error: {error}");
            REFUSED
        }
    })
}

fn ask(name: &OsString, arguments: &[OsString]) -> io::Result<u8> {
    let program = Program::ALL.into_iter().find(|program| name == program.name());
    let program = program.ok_or_else(|| io::Error::other("this is a part of the agent shell"))?;
    let text = |argument: &OsString| argument.to_str().map(str::to_owned);
    let arguments = arguments.iter().map(text).collect::<Option<Vec<_>>>();
    let arguments = arguments.ok_or_else(|| io::Error::other("an argument is not UTF-8 text"))?;
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let request = Request { program, arguments, environment: environment.collect() };
    let request = serde_json::to_vec(&request)?;
    if request.len() > MESSAGE_SIZE_MAX {
        return Err(io::Error::other("arguments and variables are more than 1 MiB"));
    }
    let mut engine = UnixStream::connect(SOCKET)
        .map_err(|error| io::Error::other(format!("the run cannot be reached: {error}")))?;
    Message::Request(request.into()).write(&engine)?;
    loop {
        let answer = match Message::read(&engine)? {
            Message::Stdout(bytes) => {
                pass_on(io::stdout(), &bytes)?;
                continue;
            }
            Message::Stderr(bytes) => {
                pass_on(io::stderr(), &bytes)?;
                continue;
            }
            Message::AskInput => bounded(io::stdin()),
            Message::AskLogins => read_logins(),
            Message::KeepLogins(bytes) => keep_logins(&bytes).map(|()| Bytes::new()),
            Message::Exit(code) => return Ok(code),
            Message::Request(_) | Message::Answer(_) | Message::Refusal(_) => {
                return Err(io::Error::other("the run says what only a client says"));
            }
        };
        let answer =
            answer.map_or_else(|error| Message::Refusal(error.to_string().into()), Message::Answer);
        answer.write(&mut engine)?;
    }
}

fn pass_on(mut to: impl io::Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

fn bounded(from: impl Read) -> io::Result<Bytes> {
    let mut bytes = Vec::new();
    from.take(INPUT_SIZE_MAX + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 <= INPUT_SIZE_MAX {
        true => Ok(bytes.into()),
        false => Err(io::Error::other(format!("there are more than {INPUT_SIZE_MAX} bytes"))),
    }
}

/// Where docker keeps logins.
#[expect(clippy::disallowed_methods, reason = "the client is a program of its own in a container")]
fn logins_folder() -> io::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()) {
        return Ok(folder.into());
    }
    match std::env::var_os("HOME") {
        Some(home) => Ok(PathBuf::from(home).join(".docker")),
        None => Err(io::Error::other("there is no `HOME` to keep logins in")),
    }
}

fn read_logins() -> io::Result<Bytes> {
    match std::fs::File::open(logins_folder()?.join("config.json")) {
        Ok(file) => bounded(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Bytes::new()),
        Err(error) => Err(error),
    }
}

/// Replaces the file with logins as a whole; only its owner may read it.
fn keep_logins(bytes: &[u8]) -> io::Result<()> {
    let folder = logins_folder()?;
    DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    // Other shells have processes of the same numbers.
    let random = RandomState::new().build_hasher().finish();
    let new = folder.join(format!("config.json.{random:x}"));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let kept =
        file.write_all(bytes).and_then(|()| std::fs::rename(&new, folder.join("config.json")));
    if kept.is_err() {
        // It has a password in it.
        let _ = std::fs::remove_file(&new);
    }
    kept
}
