//! `refit build --check`: what the Dockerfile says that is allowed and seldom meant. Nothing
//! is sent and nothing is built.

use std::collections::{BTreeMap, BTreeSet};

use dockerfile::lint::{Finding, LintOptions, lint};
use dockerfile::{DockerfileError, PlanOptions, Platform, parse};
use serde::Serialize;

use super::{Args, arguments, platforms};
use crate::commands::Session;
use crate::context::{Context, NamedContext};
use crate::error::{Error, Result};
use crate::sanitize::sanitize_text;

/// Checks need no more of a named context than that there is one.
fn contexts(flags: &[String]) -> Result<BTreeMap<String, dockerfile::NamedContext>> {
    let all = NamedContext::find_all(flags)?.into_iter();
    Ok(all.map(|context| (context.name, dockerfile::NamedContext::Own)).collect())
}

/// A finding, for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Warning {
    rule: &'static str,
    message: String,
    url: String,
    file: String,
    line: u32,
    column: u32,
}

pub(super) fn run(session: &Session<'_>, args: &Args) -> Result<()> {
    let source = Context::find(&args.context, args.file.as_deref())?.local()?;
    let (file, text) = (source.dockerfile_name.as_str(), source.dockerfile()?);
    let refused = |error: DockerfileError| {
        let shown = error.render(file, text);
        Error::failed(shown.strip_prefix("error: ").unwrap_or(&shown))
    };
    // What is found does not depend on it, but for the values of its arguments.
    let asked = platforms(args)?.swap_remove(0);
    let host = Platform::host();
    let architecture = asked.architecture.as_deref().unwrap_or(&host.architecture);
    let arguments = arguments(args, session)?;
    let plan = PlanOptions {
        build_args: arguments.into_iter().map(|one| (one.name, one.value)).collect(),
        target: args.target.clone(),
        platform: Platform::new(&asked.os, architecture, asked.variant.as_deref()),
        build_platform: host,
        contexts: contexts(&args.build_contexts)?,
        also: BTreeSet::new(),
    };
    // Images are known to the registry only.
    let options = LintOptions { plan: &plan, image: &|_| None, ignore: Some(source.patterns()) };
    let found = lint(&parse(text).map_err(refused)?, &options).map_err(refused)?;
    let warning = |finding: &Finding| Warning {
        rule: finding.rule,
        message: finding.message.clone(),
        url: finding.url(),
        file: file.to_owned(),
        line: finding.at.line,
        column: finding.at.column,
    };
    let warnings: Vec<Warning> = found.findings.iter().map(warning).collect();
    let show = |finding: &Finding| sanitize_text(&finding.render(file, text)) + "\n";
    let shown: String = found.findings.iter().map(show).collect();
    session.printer.text(&warnings, &shown)?;
    match (found.failure, warnings.len()) {
        (Some(failure), _) => Err(refused(failure)),
        (None, 0) => {
            session.printer.note("No warnings");
            Ok(())
        }
        (None, 1) => Err(Error::failed("1 warning")),
        (None, count) => Err(Error::failed(format!("{count} warnings"))),
    }
}
