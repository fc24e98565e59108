//! The whole command line.

use std::path::PathBuf;

use cli::{Error, GlobalArgs, Result};
use server::{Settings, Sources};

/// The container registry that builds and patches its own images
#[derive(Debug, clap::Parser)]
#[command(name = "refit", version, max_term_width = 100, propagate_version = false)]
#[command(disable_help_subcommand = true, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Run the server: registry, builder and API
    Serve(ServeArgs),
    /// Execute the runs of an agent pool for a server on another machine
    Agent(crate::agent::Args),
    #[command(flatten)]
    Client(cli::Command),
    /// Tell what this machine allows, and what to change
    Doctor,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// Address to serve in the clear [default: 127.0.0.1:5000]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Address to serve with TLS
    #[arg(long, value_name = "ADDRESS")]
    tls_listen: Option<String>,
    /// Certificate chain for it (PEM)
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<String>,
    /// Private key for it (PEM)
    #[arg(long, value_name = "FILE")]
    tls_key: Option<String>,
    /// Settings file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the settings that result, secrets hidden, and leave
    #[arg(long)]
    pub(crate) check: bool,
}

impl ServeArgs {
    pub(crate) fn settings(&self, global: &GlobalArgs) -> Result<Settings> {
        let given = [
            ("server.listen", &self.listen),
            ("server.tls_listen", &self.tls_listen),
            ("server.tls_cert", &self.tls_cert),
            ("server.tls_key", &self.tls_key),
        ];
        let flags = given.into_iter().filter_map(|(key, value)| Some((key, value.clone()?)));
        settings(self.config.clone(), flags, global)
    }
}

/// Settings of a server in this process without flags of its own.
pub(crate) fn embedded_settings(global: &GlobalArgs) -> Result<Settings> {
    settings(None, [], global)
}

/// Settings of an agent, whose data folder is another than that of a server.
pub(crate) fn agent_settings(file: Option<PathBuf>, global: &GlobalArgs) -> Result<Settings> {
    let sources = sources(file, [("server.listen", String::new())], global);
    resolved(&Sources { folder_name: "refit-agent", ..sources })
}

fn settings(
    file: Option<PathBuf>,
    flags: impl IntoIterator<Item = (&'static str, String)>,
    global: &GlobalArgs,
) -> Result<Settings> {
    resolved(&sources(file, flags, global))
}

fn sources(
    file: Option<PathBuf>,
    flags: impl IntoIterator<Item = (&'static str, String)>,
    global: &GlobalArgs,
) -> Sources {
    let data = global.data.as_ref().map(|data| ("server.data", data.display().to_string()));
    let flags = flags.into_iter().chain(data).map(|(key, value)| (key.to_owned(), value));
    Sources::from_process(file, flags.collect())
}

fn resolved(sources: &Sources) -> Result<Settings> {
    // All that is wrong is told at once; each problem has its own hint.
    Settings::resolve(sources).map_err(|error| Error::usage(error.to_string()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Arguments::command().debug_assert();
    }
}
