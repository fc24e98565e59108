//! Commands of `acr`, which need no image: they work on the registry of the run, in this process.

use async_trait::async_trait;
use bytes::Bytes;
use container::{OutputSink as _, Stream};
use housekeeping::acr::{self, OwnRegistry};
use housekeeping::{HousekeepingError, Record, Records, Registry};
use store::Cause;
use task::{BUILT_IN_ACR, Cmd};
use tokio_util::sync::CancellationToken;

use super::TaskContext;
use super::cmd::{Output, first_line};
use crate::execute::Failure;

/// Which registry a command is for if it does not say.
const DEFAULT_REGISTRY: &str = "ACR_DEFAULT_REGISTRY";

/// Whether a step asks for such a command.
pub(crate) fn is_meant(cmd: &Cmd) -> bool {
    cmd.command.split_whitespace().next() == Some(BUILT_IN_ACR)
}

/// The command as its author wrote it.
pub(crate) fn shown(command: &str) -> String {
    let line = first_line(command);
    line.strip_prefix(BUILT_IN_ACR).map_or(line.to_owned(), |rest| format!("acr{rest}"))
}

/// Reads the words behind `acr`. What a container has besides (a user, a folder, a network) does not
/// matter; what asks for another program is refused.
pub(crate) fn prepare(
    context: &TaskContext<'_>,
    cmd: &Cmd,
    words: Vec<String>,
) -> Result<acr::Command, Failure> {
    let asked = [("entryPoint", cmd.entry_point.is_some()), ("detach", cmd.container.detach)];
    if let Some((property, _)) = asked.iter().find(|(_, is_asked)| *is_asked) {
        return Err(Failure::User(format!(
            "error: `acr` runs in no container, and takes no `{property}`\n\
             hint: leave it away, or name an image instead of `acr`"
        )));
    }
    if has_bare_backslash(&cmd.command) {
        return Err(Failure::User(
            "error: a backslash outside of quotes is taken away, and the filter would be another\n\
             hint: put the words of `acr` in single quotes: `--filter 'app:^v\\d+$'`"
                .to_owned(),
        ));
    }
    let engine = &context.engine;
    let hosts: Vec<String> = engine.own.hosts(&engine.registry).map(str::to_owned).collect();
    let mut env = cmd.container.env.iter();
    let default = env.find(|(name, _)| *name == DEFAULT_REGISTRY).map(|(_, value)| value);
    let own = OwnRegistry { name: engine.registry.as_str(), hosts: &hosts, default };
    acr::parse(&words, &own).map_err(|error| Failure::user(&error, error.hint()))
}

/// Whether words are read without something that is meant for a regular expression.
fn has_bare_backslash(command: &str) -> bool {
    let (mut quote, mut chars) = (None, command.chars());
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None) => return true,
            ('\\', Some('"')) => drop(chars.next()),
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            _ => (),
        }
    }
    false
}

/// Carries a command out, once. If it is canceled it ends at the next tag or manifest.
pub(crate) async fn run(
    context: &TaskContext<'_>,
    command: &acr::Command,
    output: &Output<'_>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let engine = &context.engine;
    let login_server = engine.own.host(&engine.registry).unwrap_or(engine.registry.as_str());
    let registry = Registry {
        catalog: engine.catalog.clone(),
        name: engine.registry.clone(),
        login_server: login_server.to_owned(),
        cause: Cause::Purge { run: Some(context.request.run.clone()), principal: None },
        refused: engine.pushes.refused.clone(),
        now: jiff::Timestamp::now().as_millisecond(),
    };
    let lines = Lines { output, login_server };
    match acr::run(&registry, command, &lines, stop).await {
        Ok(()) => Ok(()),
        Err(HousekeepingError::Canceled) => Err(Failure::Canceled),
        Err(error) if error.is_users() => Err(Failure::user(&error, error.hint())),
        Err(error) => Err(Failure::ours(&error)),
    }
}

/// Records as a program would print them.
struct Lines<'a> {
    output: &'a Output<'a>,
    login_server: &'a str,
}

#[async_trait]
impl Records for Lines<'_> {
    async fn take(&self, record: Record) {
        let stream = match record {
            Record::Warning(_) => Stream::Stderr,
            Record::Line(_) | Record::Item { .. } => Stream::Stdout,
        };
        let line = format!("{}\n", record.text(self.login_server));
        self.output.write(stream, Bytes::from(line)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backslash_needs_quotes() {
        for bare in [r"acr purge -f app:\d", r#"acr -f "a" \b"#, r"acr 'a'\b"] {
            assert!(has_bare_backslash(bare), "{bare}");
        }
        for fine in
            [r"acr purge -f 'app:\d'", r#"acr -f "app:\\d""#, r#"acr "a\"b" c"#, "acr -f a:b"]
        {
            assert!(!has_bare_backslash(fine), "{fine}");
        }
    }
}
