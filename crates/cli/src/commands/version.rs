//! `refit version`: of this program, and of the server if one is named.

use super::Session;
use crate::error::Result;
use crate::printer::Table;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Ask the server for its version too
    #[arg(long)]
    with_server: bool,
}

impl Args {
    pub(super) fn needs_server(&self) -> bool {
        self.with_server
    }
}

pub(super) async fn run(session: &Session<'_>, args: Args) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    // Set by who builds a release; a plain `cargo build` need not know.
    let commit = option_env!("REFIT_COMMIT");
    let mut value = serde_json::json!({ "version": version, "commit": commit });
    let commit = commit.map(|commit| format!(" ({commit})")).unwrap_or_default();
    let mut lines = vec![format!("refit {version}{commit}")];
    if args.with_server {
        let connection = session.connection()?;
        let server: api::Version = connection.get(connection.server_route(&["version"])).await?;
        lines.push(format!("server {}", server.version));
        value["server"] = serde_json::json!(server);
    }
    session.printer.result(&value, &Table::lines(lines))
}
