//! Everything that must hold before a change lands, cheapest first.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

const STEPS: [(&str, &[&str]); 5] = [
    ("format", &["fmt", "--all", "--check"]),
    ("lints", &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]),
    ("tidy", &["xtask", "tidy"]),
    ("tests", &["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]),
    ("docs", &["doc", "--workspace", "--no-deps", "--locked", "--document-private-items"]),
];

#[expect(clippy::print_stdout, reason = "this program's output is its purpose")]
pub(crate) fn run() -> Result<()> {
    for (name, arguments) in STEPS {
        println!("==> {name}: cargo {}", arguments.join(" "));
        let start = Instant::now();
        cargo(arguments).with_context(|| format!("{name} failed"))?;
        println!("==> {name}: {:.0} s", start.elapsed().as_secs_f64());
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a chore that runs cargo, no untrusted code")]
fn cargo(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("cargo");
    command.args(arguments).env("RUSTDOCFLAGS", "-D warnings");
    match command.status()?.success() {
        true => Ok(()),
        false => bail!("`cargo {}` did not succeed", arguments.join(" ")),
    }
}
