//! Commands of `acr`, which need no image: they work on the registry of the run, in this process.

use async_trait::async_trait;
use bytes::Bytes;
use container::{OutputSink, Stream};
use task::{BUILT_IN_ACR, Cmd};
use tokio_util::sync::CancellationToken;

use super::TaskContext;
use super::cmd::first_word;
use crate::execute::Failure;
use crate::housekeeper::{self, AcrCommand, AcrError, Lines};

/// Which registry a command is for if it does not say.
pub(crate) const DEFAULT_REGISTRY: &str = "ACR_DEFAULT_REGISTRY";
/// Makes `acr annotate` a command if it is `true`.
const ANNOTATE: &str = "ACR_EXPERIMENTAL_ANNOTATE";

/// Whether a step asks for such a command.
pub(crate) fn is_meant(cmd: &Cmd) -> bool {
    first_word(&cmd.command) == BUILT_IN_ACR
}

/// The text as its author wrote it.
pub(crate) fn plain(command: &str) -> String {
    let text = command.trim();
    text.strip_prefix(BUILT_IN_ACR).map_or(text.to_owned(), |rest| format!("acr{rest}"))
}

/// Refuses what asks for another program, or would be another filter. What a container has besides (a user, a folder, a network)
/// does not matter.
pub(crate) fn check(cmd: &Cmd) -> Result<(), Failure> {
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
    Ok(())
}

/// Reads the words behind `acr`.
pub(crate) fn prepare(
    context: &TaskContext<'_>,
    cmd: &Cmd,
    words: &[String],
) -> Result<AcrCommand, Failure> {
    check(cmd)?;
    parse(context, cmd, words)
}

/// Reads the words behind `acr`, as they are.
pub(crate) fn parse(
    context: &TaskContext<'_>,
    cmd: &Cmd,
    words: &[String],
) -> Result<AcrCommand, Failure> {
    let engine = &context.engine;
    let variable = |wanted: &str| {
        let mut env = cmd.container.env.iter();
        env.find(|(name, _)| *name == wanted).map(|(_, value)| (*value).to_owned())
    };
    let command = AcrCommand {
        words: words.to_vec(),
        default_registry: variable(DEFAULT_REGISTRY),
        annotate: variable(ANNOTATE).is_some_and(|value| value.eq_ignore_ascii_case("true")),
    };
    housekeeper::parse(&command, &engine.registry, &engine.own).map_err(failure)?;
    Ok(command)
}

fn failure(error: AcrError) -> Failure {
    match error {
        AcrError::Canceled => Failure::Canceled,
        AcrError::Refused { ref hint, .. } => Failure::user(&error, hint.clone()),
        AcrError::Failed(text) => Failure::Ours(text),
    }
}

/// Whether words are read without something that is meant for a regular expression.
fn has_bare_backslash(command: &str) -> bool {
    let (mut quote, mut chars) = (None, command.chars().peekable());
    while let Some(c) = chars.next() {
        match (c, quote) {
            // The line goes on.
            ('\\', None) if chars.next_if_eq(&'\n').is_some() => (),
            ('\\', None) => return true,
            // What follows is another command.
            ('|' | '&' | ';' | '<' | '>' | '(' | '\n', None) => return false,
            ('\\', Some('"')) => drop(chars.next()),
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            _ => (),
        }
    }
    false
}

/// Carries a command out, once.
pub(crate) async fn run(
    context: &TaskContext<'_>,
    command: &AcrCommand,
    output: &dyn OutputSink,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let run = &context.request.run;
    context.engine.housekeeper.run(run, command, &Printed(output), stop).await.map_err(failure)
}

/// Lines as a program would print them.
struct Printed<'a>(&'a dyn OutputSink);

#[async_trait]
impl Lines for Printed<'_> {
    async fn line(&self, stream: Stream, text: &str) {
        self.0.write(stream, Bytes::from(format!("{text}\n"))).await;
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
        for fine in ["acr tag list | grep a\\.b", "acr version\nprintf a\\ b"] {
            assert!(!has_bare_backslash(fine), "{fine}");
        }
        for fine in
            [r"acr purge -f 'app:\d'", r#"acr -f "app:\\d""#, r#"acr "a\"b" c"#, "acr -f \\\n a:b"]
        {
            assert!(!has_bare_backslash(fine), "{fine}");
        }
    }
}
