//! `refit login`: credentials are proven to the server, then remembered.

use api::{SignInOffer, SignInRequest, SignedIn};
use url::Url;

use super::Session;
use crate::error::{Error, Result};
use crate::logins::{Credential, Logins};
use crate::prompt;
use crate::select::{ca_file, connect_as, parse_server};
use crate::sign_in::{Browser, id_token};

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
    /// Sign in with the provider of the server, in a browser of this machine
    #[arg(long, conflicts_with_all = ["username", "password_stdin"])]
    oidc: bool,
    /// The same in a browser of another machine, by a code
    #[arg(long, conflicts_with_all = ["username", "password_stdin"])]
    device: bool,
}

pub(super) async fn run(session: &Session<'_>, args: Args) -> Result<()> {
    let address = args.address.as_deref().or(session.global.server.as_deref());
    let address = address.or(session.environment.variable("REFIT_SERVER"));
    let address = address.ok_or_else(|| {
        Error::usage("there is no server to log in to")
            .with_hint("`refit login https://registry.example`")
    })?;
    let server = parse_server(address)?;
    let browser = match (args.device, args.oidc) {
        (true, _) => Some(Browser::Elsewhere),
        (false, true) => Some(Browser::Here),
        (false, false) => None,
    };
    let credential = match browser {
        Some(browser) => sign_in(session, &server, browser).await?,
        None => by_password(&server, args).await?,
    };

    // Whoever has a role may ask for this listing, and who has none is told so.
    let connection =
        connect_as(&server, session.global, session.environment, Some(credential.clone()))?;
    let mut probe = connection.route(&["runs"]);
    probe.query_pairs_mut().append_pair("$top", "1");
    connection.prove(probe).await?;

    let mut logins = Logins::load(session.environment)?;
    logins.servers.insert(server.clone(), credential);
    logins.current = Some(server.clone());
    logins.save(session.environment)?;
    session.printer.note(&format!("Logged in to {server}; commands use it from now on"));
    Ok(())
}

/// A session of whoever signs in with the server's provider.
async fn sign_in(session: &Session<'_>, server: &Url, browser: Browser) -> Result<Credential> {
    let connection = connect_as(server, session.global, session.environment, None)?;
    let offer: SignInOffer = connection.get(connection.server_route(&["signIn"])).await?;
    let ca_file = ca_file(session.global, session.environment);
    let id_token = id_token(&offer, browser, ca_file, session.printer).await?;
    let request = SignInRequest { id_token };
    let SignedIn { account, token, expires_at } =
        connection.post(connection.server_route(&["signIn"]), &request).await?;
    session.printer.note(&format!("You are `{account}` until {expires_at}"));
    Ok(Credential { username: Some(account), secret: token })
}

async fn by_password(server: &Url, args: Args) -> Result<Credential> {
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
    Ok(Credential { username: args.username, secret })
}
