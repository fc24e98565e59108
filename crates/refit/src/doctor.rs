//! `refit doctor`: what this machine allows, and what to change.

use std::path::Path;

use cli::{Error, GlobalArgs, Printer, Result};
use container::{Limits, RuntimeSettings};
use serde::Serialize;
use server::Settings;

use crate::arguments::embedded_settings;

/// With less than this, builds soon fail.
const FREE_MIN: u64 = 2 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Builds work, something does not.
    Warning,
    /// Builds do not work.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Check {
    fn new(name: &str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self { name: name.into(), verdict, found: found.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

pub(crate) fn run(global: &GlobalArgs, printer: Printer) -> Result<()> {
    let settings = embedded_settings(global)?;
    container::enter();
    let mut checks = vec![folder(&settings.server.data), free_space(&settings.server.data)];
    checks.extend(container_checks(&settings)?);
    checks.push(ssh());
    print(printer, &checks)?;
    match checks.iter().any(|check| check.verdict == Verdict::Problem) {
        true => Err(Error::failed("builds cannot work on this machine as it is")),
        false => Ok(()),
    }
}

/// What containers need, as the server here would run them.
fn container_checks(settings: &Settings) -> Result<Vec<Check>> {
    let helper = container::program()
        .map_err(|error| Error::failed("this program does not know itself").caused_by(&error))?;
    let (memory, pids, cpus) = (settings.build.memory, settings.build.pids, settings.build.cpus);
    let limits = Limits { memory, pids, cpus, ..Limits::default() };
    let settings = RuntimeSettings {
        external: settings.build.runtime.clone(),
        helper,
        // The folder that is, or would be made in: nothing is changed by looking.
        state_dir: existing(&settings.server.data).to_owned(),
        subnet: settings.network.subnet.clone(),
        user_namespaces: settings.build.user_namespaces,
        disk_reserve: settings.build.disk_reserve,
    };
    let found = crate::runtime(0)?.block_on(container::diagnose(&settings, &limits));
    Ok(found.into_iter().map(Check::from).collect())
}

impl From<container::Check> for Check {
    fn from(found: container::Check) -> Self {
        let verdict = match found.verdict {
            container::Verdict::Ok => Verdict::Ok,
            container::Verdict::Warning => Verdict::Warning,
            container::Verdict::Failed => Verdict::Problem,
        };
        Self { name: found.name.into(), verdict, found: found.meaning, hint: found.advice }
    }
}

/// A folder, or the nearest one around it that exists.
fn existing(folder: &Path) -> &Path {
    folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"))
}

fn folder(data: &Path) -> Check {
    let shown = data.display();
    let name = "data folder";
    let existing = existing(data);
    if !existing.is_dir() {
        let found = format!("`{}` is not a folder", existing.display());
        return Check::new(name, Verdict::Problem, found).hint("give another with `--data`");
    }
    match rustix::fs::access(existing, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK) {
        Ok(()) if existing == data => {
            Check::new(name, Verdict::Ok, format!("`{shown}` can be written"))
        }
        Ok(()) => Check::new(name, Verdict::Ok, format!("`{shown}` can be made")),
        Err(error) => {
            Check::new(name, Verdict::Problem, format!("`{shown}` cannot be written: {error}"))
                .hint("give another with `--data`, or change its owner")
        }
    }
}

/// Few need it: nothing is wrong without.
fn ssh() -> Check {
    let check = |found| Check::new("git over SSH", Verdict::Ok, found);
    match server::ssh_program() {
        Some(program) => check(format!("by `{}`", program.display())),
        None => check("not possible: there is no program `ssh`".to_owned())
            .hint("repositories such as `git@HOST:PATH` need the package `openssh-client`"),
    }
}

fn free_space(data: &Path) -> Check {
    let name = "free space";
    let existing = existing(data);
    let found = match rustix::fs::statvfs(existing) {
        Ok(found) => found,
        Err(error) => return Check::new(name, Verdict::Warning, format!("not known: {error}")),
    };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let told = format!("{}.{} GB", free / 1_000_000_000, free / 100_000_000 % 10);
    match free < FREE_MIN {
        true => Check::new(name, Verdict::Warning, told)
            .hint("`refit gc` deletes what nothing refers to"),
        false => Check::new(name, Verdict::Ok, told),
    }
}

fn print(printer: Printer, checks: &[Check]) -> Result<()> {
    printer.rows(
        &checks,
        ["CHECK", "VERDICT", "FOUND"],
        checks.iter().map(|check| {
            let verdict = match check.verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "warning",
                Verdict::Problem => "PROBLEM",
            };
            [check.name.clone(), verdict.to_owned(), check.found.clone()]
        }),
    )?;
    for check in checks {
        if let Some(hint) = &check.hint {
            printer.note(&format!("{}: {hint}", check.name));
        }
    }
    Ok(())
}
