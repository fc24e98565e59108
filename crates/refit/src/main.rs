//! Refit: the container registry that builds and patches its own images.
//!
//! This program is what its first argument says: a server, an agent of one, a client, the helper that
//! becomes a container, or a command of the shell that carries out steps of tasks. A client without a
//! server runs one in its own process (*embedded*),
//! so that there is one way to do each thing.

mod agent;
mod allocator;
mod arguments;
mod client;
mod doctor;
mod serve;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use cli::{Environment, Error, Printer, Result};

use arguments::{Arguments, Command};

fn main() -> ExitCode {
    // Before all else: the helper stays single-threaded and starts in an instant.
    let mut words = std::env::args_os().skip(1);
    match words.next() {
        Some(word) if word == container::HELPER_ARG => {
            container::helper_main(&words.collect::<Vec<_>>());
        }
        Some(word) if word == engine::SHELL_CLIENT_ARG => {
            return ExitCode::from(engine::shell_client(&words.collect::<Vec<_>>()));
        }
        _ => (),
    }
    allocator::give_back_large_allocations();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help goes to stdout and is a success, errors go to stderr with code 2.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let environment = Environment::from_process();
    let printer = Printer::new(arguments.global.format(), environment.colors());
    match run(arguments, printer, &environment) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            printer.error(&error);
            ExitCode::from(error.kind().exit_code())
        }
    }
}

fn run(arguments: Arguments, printer: Printer, environment: &Environment) -> Result<()> {
    let Arguments { global, command } = arguments;
    if !matches!(command, Command::Client(cli::Command::Build(_))) {
        global.refuse_exports()?;
    }
    match command {
        Command::Serve(args) => serve::run(args, &global, printer),
        Command::Agent(args) => agent::run(args, &global, printer, environment),
        Command::Doctor => doctor::run(&global, printer),
        Command::Client(command) => client::run(command, &global, printer, environment),
    }
}

/// Diagnostics on stderr: what `REFIT_LOG` asks for.
fn trace(otherwise: &str) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("REFIT_LOG").unwrap_or_else(|_| EnvFilter::new(otherwise));
    let stderr = std::io::stderr;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(stderr().is_terminal())
        .with_writer(stderr)
        .init();
}

/// Threads for requests; work that blocks has its own.
fn runtime(threads: usize) -> Result<tokio::runtime::Runtime> {
    let built = match threads {
        0 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        threads => {
            tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()
        }
    };
    built.map_err(|error| Error::failed("could not start").caused_by(&error))
}

/// An error of the server's start, in the client's words.
fn server_error(error: &server::ServeError) -> Error {
    let kind = match error {
        server::ServeError::Owned { .. } => cli::ErrorKind::Conflict,
        _ => cli::ErrorKind::Failed,
    };
    let told = Error::new(kind, error.to_string());
    let told = match std::error::Error::source(error) {
        Some(source) => told.caused_by(source),
        None => told,
    };
    match error.hint() {
        Some(hint) => told.with_hint(hint),
        None => told,
    }
}
