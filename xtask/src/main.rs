//! Project chores: `cargo xtask ci` runs what CI runs, `cargo xtask tidy` checks the habits
//! that no compiler checks.

mod ci;
mod features;
mod tidy;

use anyhow::{Result, bail};

const HELP: &str = "usage: cargo xtask COMMAND

  ci      format, lints, tests, docs and tidy, in that order
  tidy    dependency table, features, words we do not use, unfinished code
";

#[expect(clippy::print_stdout, reason = "this program's output is its purpose")]
fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("ci") => ci::run(),
        Some("tidy") => tidy::run(),
        Some("help" | "--help" | "-h") | None => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => bail!("unknown command `{other}`\n\n{HELP}"),
    }
}
