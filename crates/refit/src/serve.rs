//! `refit serve`.

use cli::{GlobalArgs, Interrupts, Printer, Result};
use server::ServeError;
use tokio_util::sync::CancellationToken;

use crate::arguments::ServeArgs;

pub(crate) fn run(args: ServeArgs, global: &GlobalArgs, printer: Printer) -> Result<()> {
    let settings = args.settings(global)?;
    if args.check {
        return printer.text(&settings.to_json(), settings.render());
    }
    crate::trace("info");
    container::enter();
    let runtime = crate::runtime(settings.server.worker_threads)?;
    runtime.block_on(until_interrupted(printer, |shutdown| {
        server::serve(settings, shutdown, |text| printer.note(text))
    }))
}

/// Serves until the first interrupt asks it to end, and no longer than to a second one.
pub(crate) async fn until_interrupted<F>(
    printer: Printer,
    serve: impl FnOnce(CancellationToken) -> F,
) -> Result<()>
where
    F: Future<Output = Result<(), ServeError>>,
{
    let shutdown = CancellationToken::new();
    let mut interrupts = Interrupts::catch()?;
    let serving = serve(shutdown.clone());
    tokio::pin!(serving);
    let served = tokio::select! {
        served = &mut serving => served,
        () = interrupts.next() => {
            printer.note("stopping; interrupt again to leave at once");
            shutdown.cancel();
            tokio::select! {
                served = &mut serving => served,
                () = interrupts.next() => return Err(cli::Error::interrupted()),
            }
        }
    };
    served.map_err(|error| crate::server_error(&error))
}
