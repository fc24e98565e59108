//! The text of a `cmd` step: an image and arguments, read as a shell reads words.

/// What a `cmd` is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CommandLine {
    /// Words for one process: an image, and what it gets as arguments.
    Words(Vec<String>),
    /// What only a shell can make sense of; the first thing that says so.
    Script(Operator),
}

/// What makes a line more than a list of words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operator {
    /// One of the shell's own characters, outside of quotes.
    Character(char),
    /// There is a second line.
    Line,
}

impl std::fmt::Display for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Character(character) => write!(f, "`{character}`"),
            Self::Line => f.write_str("more than one line"),
        }
    }
}

/// A quote or a backslash that nothing ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it has a quote or a backslash that nothing ends")]
pub(crate) struct Unfinished;

impl CommandLine {
    /// Reads a command. A line that any shell takes as these very words is words; whatever a
    /// shell would expand, redirect or join is a script.
    pub(crate) fn parse(text: &str) -> Result<Self, Unfinished> {
        let text = text.trim();
        if let Some(operator) = operator(text) {
            return Ok(Self::Script(operator));
        }
        shlex::split(text).map(Self::Words).ok_or(Unfinished)
    }
}

/// The first character of a text that has a meaning to a shell beyond words.
fn operator(text: &str) -> Option<Operator> {
    let (mut single, mut double, mut at_word) = (false, false, true);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let is_first = std::mem::replace(&mut at_word, false);
        match character {
            '\'' if !double => single = !single,
            _ if single => (),
            '"' => double = !double,
            '\\' if characters.peek() == Some(&'\n') => return Some(Operator::Line),
            '\\' => drop(characters.next()),
            '$' | '`' => return Some(Operator::Character(character)),
            _ if double => (),
            '\n' => return Some(Operator::Line),
            '|' | '&' | ';' | '<' | '>' | '(' | ')' | '*' | '?' | '[' => {
                return Some(Operator::Character(character));
            }
            '~' | '#' if is_first => return Some(Operator::Character(character)),
            ' ' | '\t' => at_word = true,
            _ => (),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        match CommandLine::parse(text).unwrap() {
            CommandLine::Words(words) => words,
            script => panic!("{text}: {script:?}"),
        }
    }

    fn script(text: &str) -> String {
        match CommandLine::parse(text).unwrap() {
            CommandLine::Script(operator) => operator.to_string(),
            words => panic!("{text}: {words:?}"),
        }
    }

    #[test]
    fn quotes_and_backslashes_make_words_as_in_a_shell() {
        assert_eq!(
            words(r#"bash -c 'a | b > $c' "d e" f\ g"#),
            ["bash", "-c", "a | b > $c", "d e", "f g"]
        );
        assert_eq!(
            words("\n  app --flag=x~y a#b {a,b} !  \n"),
            ["app", "--flag=x~y", "a#b", "{a,b}", "!"]
        );
        assert_eq!(words(r#"a "x\$y" 'it''s' ''"#), ["a", "x$y", "its", ""]);
        assert_eq!(words("a 'two\nlines'"), ["a", "two\nlines"]);
    }

    #[test]
    fn what_a_shell_would_act_on_is_a_script() {
        for (text, operator) in [
            ("bash echo hi > out.txt", "`>`"),
            ("a | b", "`|`"),
            ("a && b", "`&`"),
            ("a; b", "`;`"),
            ("a $HOME", "`$`"),
            (r#"a "$HOME""#, "`$`"),
            ("a \"`b`\"", "``"),
            ("a *.txt", "`*`"),
            ("a ~/x", "`~`"),
            ("a # not said", "`#`"),
            ("a (b)", "`(`"),
            ("a\nb", "more than one line"),
            ("a \\\n b", "more than one line"),
        ] {
            let shown = script(text);
            assert!(shown == operator || operator == "``" && shown == "```", "{text}: {shown}");
        }
    }

    #[test]
    fn a_quote_without_its_end_is_an_error() {
        assert_eq!(CommandLine::parse("a 'b"), Err(Unfinished));
        assert_eq!(CommandLine::parse("a b\\"), Err(Unfinished));
    }

    proptest::proptest! {
        #[test]
        fn quoting_any_words_gives_them_back(words in proptest::collection::vec("\\PC*", 1..5)) {
            let quoted = shlex::try_join(words.iter().map(String::as_str)).unwrap();
            match CommandLine::parse(&quoted).unwrap() {
                CommandLine::Words(read) => proptest::prop_assert_eq!(read, words),
                // What is quoted by double quotes may have a `$` in it.
                CommandLine::Script(operator) => {
                    proptest::prop_assert!(quoted.contains('"'), "{} {}", quoted, operator);
                }
            }
        }
    }
}
