//! Which server a command talks to.

use std::path::{Path, PathBuf};

use url::{Host, Url};

use crate::connection::Connection;
use crate::environment::Environment;
use crate::error::{Error, Result, could_not};
use crate::export::Export;
use crate::logins::{Credential, Logins, token_left_by_server};
use crate::printer::{Output, OutputFormat, OutputParser};

const HEADING: &str = "Global options";

/// Flags that every command knows.
#[derive(Debug, Clone, clap::Args)]
pub struct GlobalArgs {
    /// Server to use [env: REFIT_SERVER; default: the current login's, else none: the command
    /// works on the data folder itself]
    #[arg(long, global = true, value_name = "URL", help_heading = HEADING)]
    pub server: Option<String>,

    /// Data folder to work on without a server [env: REFIT_DATA]
    #[arg(long, global = true, value_name = "DIR", help_heading = HEADING)]
    pub data: Option<PathBuf>,

    /// Name of the registry on the server
    #[arg(long, short, global = true, default_value = "local", value_name = "NAME", help_heading = HEADING)]
    pub registry: String,

    /// Form of results: json, yaml, tsv, table or none; of a build also where to write to
    /// (type=TYPE,dest=PLACE)
    #[arg(long, short, global = true, default_value = "table", value_name = "FORMAT", help_heading = HEADING, hide_possible_values = true, value_parser = OutputParser)]
    pub output: Vec<Output>,

    /// File with certificates to trust besides the system's (PEM) [env: REFIT_CA_FILE]
    #[arg(long, global = true, value_name = "FILE", help_heading = HEADING)]
    pub ca_file: Option<PathBuf>,

    /// Send credentials without TLS to a server that is not on this machine
    /// [env: REFIT_ALLOW_HTTP]
    #[arg(long, global = true, help_heading = HEADING)]
    pub allow_http: bool,
}

impl GlobalArgs {
    /// The form of results; the last one given counts.
    pub fn format(&self) -> OutputFormat {
        let mut formats = self.output.iter().filter_map(|output| match output {
            Output::Format(format) => Some(*format),
            Output::Export(_) => None,
        });
        formats.next_back().unwrap_or_default()
    }

    pub(crate) fn exports(&self) -> Vec<Export> {
        let exports = self.output.iter().filter_map(|output| match output {
            Output::Format(_) => None,
            Output::Export(export) => Some(export.clone()),
        });
        exports.collect()
    }

    /// For commands that build nothing.
    pub fn refuse_exports(&self) -> Result<()> {
        match self.exports().is_empty() {
            true => Ok(()),
            false => Err(Error::usage("only a build can be written elsewhere with `--output`")
                .with_hint("for other commands it is `json`, `yaml`, `tsv`, `table` or `none`")),
        }
    }
}

/// Where the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selected {
    Url(Url),
    /// In this process, on the data folder.
    Embedded,
}

/// A flag, else `REFIT_SERVER`, else the current login, else the data folder. A flag is what
/// this one command was told, so `--data` wins over what was told for all.
pub fn select(args: &GlobalArgs, environment: &Environment) -> Result<Selected> {
    let variable = environment.variable("REFIT_SERVER").filter(|server| !server.is_empty());
    let server = match (&args.server, &args.data) {
        (Some(_), Some(_)) => {
            return Err(Error::usage("`--server` and `--data` are two places to work on")
                .with_hint("leave one of them away"));
        }
        (Some(server), None) => Some(server.as_str()),
        (None, Some(_)) => return Ok(Selected::Embedded),
        (None, None) => variable,
    };
    if let Some(server) = server {
        return Ok(Selected::Url(parse_server(server)?));
    }
    match Logins::load(environment)?.current {
        Some(server) => Ok(Selected::Url(server)),
        None => Ok(Selected::Embedded),
    }
}

/// A connection to a server with what proves who asks: `REFIT_TOKEN`, the login for that
/// server, or the token that the server left on this machine.
pub fn connect(server: &Url, args: &GlobalArgs, environment: &Environment) -> Result<Connection> {
    let credential = match environment.token.as_deref() {
        Some(token) => Some(Credential::token(token)),
        None => match Logins::load(environment)?.servers.get(server) {
            Some(credential) => Some(credential.clone()),
            None => token_left_by_server(environment, server),
        },
    };
    connect_as(server, args, environment, credential)
}

pub(crate) fn connect_as(
    server: &Url,
    args: &GlobalArgs,
    environment: &Environment,
    credential: Option<Credential>,
) -> Result<Connection> {
    if credential.is_some() {
        check_clear(server, args, environment)?;
    }
    let ca_file = ca_file(args, environment);
    Connection::to_url(server.clone(), ca_file, &args.registry, credential)
}

/// The server of an agent.
pub struct AgentServer {
    pub url: Url,
    /// Certificates to trust besides the system's, PEM.
    pub ca_pem: Option<Vec<u8>>,
    /// The token of the agent pool, if the environment has it.
    pub token: Option<String>,
}

/// Has the token of an agent pool.
pub const AGENT_TOKEN_VARIABLE: &str = "REFIT_AGENT_TOKEN";

/// Where an agent finds its server: a flag, else `REFIT_SERVER`. Its token does not travel in the
/// clear unless told so.
pub fn agent_server(args: &GlobalArgs, environment: &Environment) -> Result<AgentServer> {
    let variable = environment.variable("REFIT_SERVER").filter(|server| !server.is_empty());
    let Some(server) = args.server.as_deref().or(variable) else {
        return Err(Error::usage("an agent needs a server")
            .with_hint("give its address with `--server`, or set `REFIT_SERVER`"));
    };
    let url = parse_server(server)?;
    check_clear(&url, args, environment)?;
    let ca_pem = ca_file(args, environment)
        .map(|file| std::fs::read(file).map_err(could_not(format!("read `{}`", file.display()))));
    let token = environment.variable(AGENT_TOKEN_VARIABLE).map(str::to_owned);
    Ok(AgentServer { url, ca_pem: ca_pem.transpose()?, token })
}

/// Credentials go in the clear only over this machine, or where the user says so.
fn check_clear(server: &Url, args: &GlobalArgs, environment: &Environment) -> Result<()> {
    let allow_http = args.allow_http || environment.flag("REFIT_ALLOW_HTTP")?;
    match server.scheme() == "http" && !is_loopback(server) && !allow_http {
        false => Ok(()),
        true => {
            let host = server.host_str().unwrap_or_default();
            Err(Error::usage(format!("credentials would travel to `{host}` in the clear"))
                .with_hint("use an `https://` address, or `--allow-http` if the network is yours"))
        }
    }
}

pub(crate) fn ca_file<'a>(args: &'a GlobalArgs, environment: &'a Environment) -> Option<&'a Path> {
    let variable = environment.variable("REFIT_CA_FILE").filter(|file| !file.is_empty());
    args.ca_file.as_deref().or(variable.map(Path::new))
}

/// A server as people write it: a URL, or a host with TLS.
pub(crate) fn parse_server(text: &str) -> Result<Url> {
    let text = text.trim();
    let full = match text.contains("://") {
        true => text.to_owned(),
        false => format!("https://{text}"),
    };
    let mut url = Url::parse(&full)
        .map_err(could_not(format!("understand the server `{text}`")))
        .map_err(|error| Error::usage(error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(Error::usage(format!("`{text}` is not the address of a server"))
            .with_hint("it looks like `https://registry.example` or `http://127.0.0.1:5000`"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::usage("the address of a server holds no credentials")
            .with_hint("use `refit login` or `REFIT_TOKEN`"));
    }
    url.set_query(None);
    url.set_fragment(None);
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

/// Whether a server is on this machine.
pub(crate) fn is_loopback(server: &Url) -> bool {
    match server.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_url_or_a_host() {
        for (text, expected) in [
            ("registry.example", "https://registry.example/"),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5000/"),
            (" https://h/base?x#y", "https://h/base/"),
        ] {
            assert_eq!(parse_server(text).unwrap().as_str(), expected);
        }
        for text in ["ftp://h", "http://", "https://user:secret@h", "a b"] {
            let error = parse_server(text).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Usage, "{text}");
            assert!(!error.to_string().contains("secret"));
        }
    }

    #[test]
    fn loopback_is_told_from_the_rest() {
        for (url, expected) in [
            ("http://127.0.0.5", true),
            ("http://[::1]:5000", true),
            ("http://localhost:5000", true),
            ("http://10.0.0.1", false),
            ("http://localhost.example", false),
        ] {
            assert_eq!(is_loopback(&Url::parse(url).unwrap()), expected, "{url}");
        }
    }
}
