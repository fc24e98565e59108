//! Client commands, with the server they need.

use clap::CommandFactory as _;
use cli::{Command, Connection, Environment, GlobalArgs, Interrupts, Printer, Result, Selected};

use crate::arguments::{Arguments, embedded_settings};

pub(crate) fn run(
    command: Command,
    global: &GlobalArgs,
    printer: Printer,
    environment: &Environment,
) -> Result<()> {
    crate::trace("off");
    let session = Session { global, printer, environment };
    if !command.needs_server() {
        return crate::runtime(0)?.block_on(session.run(command, None));
    }
    match cli::select(global, environment)? {
        Selected::Url(server) => {
            let connection = cli::connect(&server, global, environment)?;
            crate::runtime(0)?.block_on(session.run(command, Some(connection)))
        }
        Selected::Embedded => {
            let settings = embedded_settings(global)?;
            // After the settings, some of which depend on the user.
            container::enter();
            let runtime = crate::runtime(settings.server.worker_threads)?;
            let result = runtime.block_on(session.run_embedded(command, settings));
            // Work that blocks and was given up must not keep the program.
            runtime.shutdown_background();
            result
        }
    }
}

struct Session<'a> {
    global: &'a GlobalArgs,
    printer: Printer,
    environment: &'a Environment,
}

impl Session<'_> {
    async fn run(&self, command: Command, connection: Option<Connection>) -> Result<()> {
        let mut interrupts = Interrupts::catch()?;
        self.run_until(command, connection, &mut interrupts).await
    }

    async fn run_until(
        &self,
        command: Command,
        connection: Option<Connection>,
        interrupts: &mut Interrupts,
    ) -> Result<()> {
        let Self { global, printer, environment } = *self;
        let program = Arguments::command();
        cli::run(command, connection, printer, environment, global, interrupts, program).await
    }

    /// Becomes the owner of the data folder for as long as the command takes, or the client
    /// of its owner.
    async fn run_embedded(&self, command: Command, settings: server::Settings) -> Result<()> {
        let mut interrupts = Interrupts::catch()?;
        let starting = server::embedded(settings, |text| self.printer.note(text));
        let server = tokio::select! {
            started = starting => started.map_err(|error| crate::server_error(&error))?,
            () = interrupts.next() => return Err(cli::Error::interrupted()),
        };
        for notice in server.notices() {
            self.printer.note(notice);
        }
        let connection = Connection::to_socket(server.socket(), &self.global.registry)?;
        let result = self.run_until(command, Some(connection), &mut interrupts).await;
        // Who asks once gives up what is their own; what others have started is finished.
        let now = interrupts.count() > 1;
        let leaving = server.leave(now, |text| self.printer.note(text));
        let left = tokio::select! {
            left = leaving => left.map_err(|error| crate::server_error(&error)),
            () = interrupts.next() => Err(cli::Error::interrupted()),
        };
        result.and(left)
    }
}
