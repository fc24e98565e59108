//! `refit agent`.

use std::path::PathBuf;

use cli::{AGENT_TOKEN_VARIABLE, Environment, Error, GlobalArgs, Printer, Result};
use server::{AgentSettings, Secret};
use tokio_util::sync::CancellationToken;

use crate::arguments::agent_settings;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// File with the token of the agent pool, as `refit agentpool token` prints it
    /// [env: REFIT_AGENT_TOKEN has the token itself]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// What the server knows this agent by [default: the name of this machine]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Runs to execute at once
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1000))]
    concurrency: u32,
    /// Settings file of this machine: sections build, limits, network, store, upstream
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(crate) fn run(
    args: Args,
    global: &GlobalArgs,
    printer: Printer,
    environment: &Environment,
) -> Result<()> {
    let settings = agent_settings(args.config.clone(), global)?;
    let place = cli::agent_server(global, environment)?;
    let agent = AgentSettings {
        server: place.url,
        ca_pem: place.ca_pem,
        token: token(&args, place.token)?,
        name: args.name.clone().unwrap_or_else(machine_name),
        concurrency: args.concurrency,
        settings,
    };
    crate::trace("info");
    container::enter();
    let runtime = crate::runtime(agent.settings.server.worker_threads)?;
    runtime.block_on(crate::serve::until_interrupted(printer, |shutdown: CancellationToken| {
        server::agent(agent, shutdown, |text| printer.note(text))
    }))
}

/// Never from the command line, which everybody on the machine can read.
fn token(args: &Args, of_environment: Option<String>) -> Result<Secret> {
    let text = match &args.token_file {
        Some(file) => std::fs::read_to_string(file).map_err(|error| {
            Error::usage(format!("cannot read `{}`", file.display())).caused_by(&error)
        })?,
        None => of_environment.unwrap_or_default(),
    };
    match text.trim() {
        "" => Err(Error::usage("an agent needs the token of its pool").with_hint(format!(
            "give the file that has it with `--token-file`, or set `{AGENT_TOKEN_VARIABLE}`; \
             `refit agentpool token POOL` prints it"
        ))),
        token => Ok(Secret::new(token)),
    }
}

fn machine_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "agent".to_owned() } else { name }
}
