//! `refit completions`: what a shell needs to complete our command line.

use super::Session;
use crate::error::{Error, Result};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Shell to print them for: bash, zsh, fish, elvish or powershell
    #[arg(value_enum, value_name = "SHELL", hide_possible_values = true)]
    shell: clap_complete::Shell,
}

pub(super) fn run(session: &Session<'_>, args: Args, mut program: clap::Command) -> Result<()> {
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, name, &mut script);
    match script.is_empty() {
        true => Err(Error::failed("there are no completions for this shell")),
        false => session.printer.out(&script),
    }
}
