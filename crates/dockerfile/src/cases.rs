//! The inner steps by themselves, for the tests that hold them to BuildKit's own tables.

use crate::heredoc;
use crate::operation;
use crate::scan::scan;
use crate::span::Text;
use crate::statement::split;
use crate::word::{self, Variables};
use crate::{DockerfileError, HereDocument};

pub use crate::statement::{Arguments, Statement};

struct Environment<'a>(&'a [(String, String)]);

impl Variables for Environment<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The instructions of a text as written, and its escape character.
pub fn statements(source: &str) -> Result<(Vec<Statement>, char), DockerfileError> {
    let source = &Text::new(source);
    let scanned = scan(source)?;
    let escape = scanned.directives.escape;
    let statements: Result<_, _> =
        scanned.lines.iter().map(|line| split(source, line, escape)).collect();
    Ok((statements?, escape))
}

pub fn here_document(word: &str) -> Result<Option<HereDocument>, String> {
    heredoc::marker(word)
}

pub fn here_documents(line: &str) -> Result<Vec<HereDocument>, String> {
    heredoc::markers(line)
}

pub fn expand(text: &str, env: &[(String, String)]) -> Result<String, String> {
    word::expand(text, '\\', &Environment(env))
}

pub fn expand_words(text: &str, env: &[(String, String)]) -> Result<Vec<String>, String> {
    word::expand_words(text, '\\', &Environment(env))
}

/// The regular expression of a pattern in `${name#pattern}`.
pub fn pattern(pattern: &str) -> Result<String, String> {
    word::pattern(pattern)
}

pub fn ports(spec: &str) -> Result<Vec<String>, String> {
    operation::ports(spec)
}
