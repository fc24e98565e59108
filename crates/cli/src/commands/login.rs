//! `refit login`: credentials are proven to the server, then remembered.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use super::Session;
use crate::error::{Error, Result, could_not};
use crate::logins::{Credential, Logins};
use crate::select::{connect_as, parse_server};

/// A password is not longer than this.
const PASSWORD_LEN_MAX: u64 = 64 << 10;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Server to log in to [default: --server]
    #[arg(value_name = "SERVER")]
    address: Option<String>,
    /// User name; without one, the password is a token
    #[arg(long, short, value_name = "NAME")]
    username: Option<String>,
    /// Read the password or token from standard input
    #[arg(long)]
    password_stdin: bool,
}

pub(super) async fn run(session: &Session<'_>, args: Args) -> Result<()> {
    let address = args.address.as_deref().or(session.global.server.as_deref());
    let address = address.or(session.environment.variable("REFIT_SERVER"));
    let address = address.ok_or_else(|| {
        Error::usage("there is no server to log in to")
            .with_hint("`refit login https://registry.example`")
    })?;
    let server = parse_server(address)?;
    let what = if args.username.is_some() { "password" } else { "token" };
    let secret = match args.password_stdin {
        true => secret_from_stdin()?,
        false => ask(&format!("The {what} for {server}: "))?,
    };
    if secret.is_empty() {
        return Err(Error::usage(format!("the {what} is empty")));
    }
    let credential = Credential { username: args.username, secret };

    // A listing is what every principal of a registry may ask for.
    let connection = connect_as(&server, session.global, Some(credential.clone()))?;
    let mut probe = connection.route(&["runs"]);
    probe.query_pairs_mut().append_pair("$top", "1");
    connection.get::<serde_json::Value>(probe).await?;

    let mut logins = Logins::load(session.environment)?;
    logins.servers.insert(server.clone(), credential);
    logins.current = Some(server.clone());
    logins.save(session.environment)?;
    session.printer.note(&format!("Logged in to {server}; commands use it from now on"));
    Ok(())
}

fn secret_from_stdin() -> Result<String> {
    let mut text = String::new();
    io::stdin()
        .lock()
        .take(PASSWORD_LEN_MAX)
        .read_to_string(&mut text)
        .map_err(could_not("read standard input"))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks on the terminal, which does not show what is typed.
fn ask(question: &str) -> Result<String> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(Error::usage("nobody is there to ask for the password")
            .with_hint("add `--password-stdin`"));
    }
    let mut stderr = io::stderr().lock();
    let _ = write!(stderr, "{question}").and_then(|()| stderr.flush());
    let hidden = Hidden::begin()?;
    let mut line = String::new();
    let read = stdin.lock().take(PASSWORD_LEN_MAX).read_line(&mut line);
    drop(hidden);
    let _ = writeln!(stderr);
    read.map_err(could_not("read the password"))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// The terminal does not echo until this is dropped.
struct Hidden {
    before: rustix::termios::Termios,
}

impl Hidden {
    fn begin() -> Result<Self> {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let before = tcgetattr(io::stdin()).map_err(could_not("hide the password"))?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &hidden)
            .map_err(could_not("hide the password"))?;
        Ok(Self { before })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        use rustix::termios::{OptionalActions, tcsetattr};
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}
