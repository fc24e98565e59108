//! `refit completions`: what a shell needs to complete our command line.

use clap::Arg;

use super::Session;
use crate::error::{Error, Result};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Shell to print them for: bash, zsh, fish, elvish or powershell
    #[arg(value_enum, value_name = "SHELL", hide_possible_values = true)]
    shell: clap_complete::Shell,
}

pub(super) fn run(session: &Session<'_>, args: Args, program: clap::Command) -> Result<()> {
    let mut program = visible(&program);
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, name, &mut script);
    match script.is_empty() {
        true => Err(Error::failed("there are no completions for this shell")),
        false => session.printer.out(&script),
    }
}

/// The same program without what is hidden, which the scripts would offer.
fn visible(program: &clap::Command) -> clap::Command {
    let mut shown = clap::Command::new(program.get_name().to_owned())
        .disable_help_subcommand(program.is_disable_help_subcommand_set())
        .args(program.get_arguments().filter(|arg| !arg.is_hide_set()).map(visible_arg))
        .subcommands(program.get_subcommands().filter(|one| !one.is_hide_set()).map(visible));
    if let Some(about) = program.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(version) = program.get_version() {
        shown = shown.version(version.to_owned());
    }
    shown
}

/// What completions want to know of an argument, and not how it goes with others, which may be
/// hidden.
fn visible_arg(arg: &Arg) -> Arg {
    let mut shown = Arg::new(arg.get_id().clone())
        .action(arg.get_action().clone())
        .global(arg.is_global_set())
        .value_hint(arg.get_value_hint())
        .short(arg.get_short())
        .visible_aliases(
            arg.get_visible_aliases().unwrap_or_default().into_iter().map(str::to_owned),
        )
        .visible_short_aliases(arg.get_visible_short_aliases().unwrap_or_default());
    if let Some(help) = arg.get_help() {
        shown = shown.help(help.clone());
    }
    if let Some(long) = arg.get_long() {
        shown = shown.long(long.to_owned());
    }
    if let Some(names) = arg.get_value_names() {
        shown = shown.value_names(names.to_vec());
    }
    if let Some(count) = arg.get_num_args() {
        shown = shown.num_args(count);
    }
    if arg.get_action().takes_values() {
        shown = shown.value_parser(arg.get_value_parser().clone());
    }
    shown
}
