//! `refit logout`: forgets.

use super::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::logins::Logins;
use crate::select::parse_server;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Server to forget [default: --server, else the current login's]
    #[arg(value_name = "SERVER")]
    address: Option<String>,
}

pub(super) fn run(session: &Session<'_>, args: Args) -> Result<()> {
    let mut logins = Logins::load(session.environment)?;
    let address = args.address.as_deref().or(session.global.server.as_deref());
    let server = match address {
        Some(address) => parse_server(address)?,
        None => logins.current.clone().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "you are not logged in to any server")
        })?,
    };
    if logins.servers.remove(&server).is_none() {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no login for {server}")));
    }
    if logins.current.as_ref() == Some(&server) {
        logins.current = None;
    }
    logins.save(session.environment)?;
    session.printer.note(&format!("Logged out of {server}"));
    Ok(())
}
