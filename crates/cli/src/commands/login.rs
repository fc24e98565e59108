//! `refit login`: credentials are proven to the server, then remembered.

use super::Session;
use crate::error::{Error, Result};
use crate::logins::{Credential, Logins};
use crate::prompt;
use crate::select::{connect_as, parse_server};

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
        true => prompt::all_input().await?,
        false if prompt::is_possible() => {
            prompt::ask_hidden(&format!("The {what} for {server}: ")).await?
        }
        false => {
            return Err(Error::usage("nobody is there to ask for the password")
                .with_hint("add `--password-stdin`"));
        }
    };
    if secret.is_empty() {
        return Err(Error::usage(format!("the {what} is empty")));
    }
    let credential = Credential { username: args.username, secret };

    // A listing is what every principal of a registry may ask for.
    let connection =
        connect_as(&server, session.global, session.environment, Some(credential.clone()))?;
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
