//! Variable expansion and quoting of words, as the Dockerfile reference defines them.

use regex::Regex;

/// An expansion may not become longer than this, in bytes.
const LENGTH_MAX: usize = 1 << 20;
/// `${a:-${b:-...}}` may not go deeper than this.
const DEPTH_MAX: usize = 64;

/// Where values come from; `None`: not set.
pub(crate) trait Variables {
    fn get(&self, name: &str) -> Option<&str>;
}

impl<F: Fn(&str) -> Option<&'static str>> Variables for F {
    fn get(&self, name: &str) -> Option<&str> {
        self(name)
    }
}

/// Removes quotes and replaces variables; the result is one word.
pub(crate) fn expand(
    text: &str,
    escape: char,
    variables: &dyn Variables,
) -> Result<String, String> {
    let words = run(text, escape, variables)?;
    Ok(words.text)
}

/// The same, then split at blanks that were not quoted.
pub(crate) fn expand_words(
    text: &str,
    escape: char,
    variables: &dyn Variables,
) -> Result<Vec<String>, String> {
    let words = run(text, escape, variables)?;
    let mut list = words.done;
    if !words.current.is_empty() || words.in_word {
        list.push(words.current);
    }
    Ok(list)
}

/// Replaces the variables of a here-document. Quotes are text, and `\` escapes.
pub(crate) fn expand_document(text: &str, variables: &dyn Variables) -> Result<String, String> {
    let chars = text.chars().collect();
    let quotes = false;
    let mut lexer = Lexer { chars, at: 0, escape: '\\', variables, depth: 0, quotes };
    Ok(lexer.until(None, false)?.text)
}

fn run(text: &str, escape: char, variables: &dyn Variables) -> Result<Words, String> {
    let chars = text.chars().collect();
    let mut lexer = Lexer { chars, at: 0, escape, variables, depth: 0, quotes: true };
    lexer.until(None, false)
}

/// The result in both forms: as one text, and split.
#[derive(Default)]
struct Words {
    text: String,
    done: Vec<String>,
    current: String,
    /// A quoted empty string is a word too.
    in_word: bool,
}

impl Words {
    /// A character that may separate words.
    fn push(&mut self, c: char) {
        self.text.push(c);
        match c.is_whitespace() {
            true => self.end_word(),
            false => {
                self.current.push(c);
                self.in_word = true;
            }
        }
    }

    /// A character that belongs to its word whatever it is.
    fn push_raw(&mut self, c: char) {
        self.text.push(c);
        self.current.push(c);
        self.in_word = true;
    }

    fn end_word(&mut self) {
        if self.in_word {
            self.done.push(std::mem::take(&mut self.current));
            self.in_word = false;
        }
    }
}

struct Lexer<'a> {
    chars: Vec<char>,
    at: usize,
    escape: char,
    variables: &'a dyn Variables,
    depth: usize,
    /// Whether quotes mean something.
    quotes: bool,
}

impl Lexer<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += 1;
        Some(c)
    }

    /// Reads to the character `stop` (which is taken) or to the end. With `keep_escapes`,
    /// what is escaped outside of quotes keeps its escape: it is a pattern.
    fn until(&mut self, stop: Option<char>, keep_escapes: bool) -> Result<Words, String> {
        let mut words = Words::default();
        while let Some(c) = self.peek() {
            if Some(c) == stop {
                self.at += 1;
                return Ok(words);
            }
            match c {
                '\'' if self.quotes => self.single_quoted(&mut words)?,
                '"' if self.quotes => self.double_quoted(&mut words)?,
                '$' => {
                    let value = self.dollar()?;
                    value.chars().for_each(|c| words.push(c));
                }
                c if c == self.escape => {
                    self.at += 1;
                    let Some(escaped) = self.next() else { break };
                    if keep_escapes {
                        words.push_raw(self.escape);
                    }
                    words.push_raw(escaped);
                }
                c => {
                    self.at += 1;
                    words.push(c);
                }
            }
            if words.text.len() > LENGTH_MAX {
                return Err(format!("expands to more than {LENGTH_MAX} bytes"));
            }
        }
        match stop {
            None => Ok(words),
            Some(_) => Err("`${` has no matching `}`".to_owned()),
        }
    }

    fn single_quoted(&mut self, words: &mut Words) -> Result<(), String> {
        self.at += 1;
        words.in_word = true;
        loop {
            match self.next() {
                Some('\'') => return Ok(()),
                Some(c) => words.push_raw(c),
                None => return Err("a single quote is not closed".to_owned()),
            }
        }
    }

    fn double_quoted(&mut self, words: &mut Words) -> Result<(), String> {
        self.at += 1;
        words.in_word = true;
        loop {
            match self.peek() {
                None => return Err("a double quote is not closed".to_owned()),
                Some('"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some('$') => self.dollar()?.chars().for_each(|c| words.push_raw(c)),
                Some(c) if c == self.escape => {
                    self.at += 1;
                    match self.next() {
                        None => return Err("a double quote is not closed".to_owned()),
                        Some(c) if matches!(c, '"' | '$') || c == self.escape => words.push_raw(c),
                        Some(c) => {
                            words.push_raw(self.escape);
                            words.push_raw(c);
                        }
                    }
                }
                Some(c) => {
                    self.at += 1;
                    words.push_raw(c);
                }
            }
        }
    }

    /// `$name`, `${name}` and `${name:-word}` with its relatives.
    fn dollar(&mut self) -> Result<String, String> {
        self.at += 1;
        if self.peek() != Some('{') {
            let name = self.name();
            return Ok(match name.is_empty() {
                true => "$".to_owned(),
                false => self.variables.get(&name).unwrap_or("").to_owned(),
            });
        }
        self.at += 1;
        match self.peek() {
            None => return Err("`${` has no matching `}`".to_owned()),
            Some('{' | '}' | ':') => return Err("`${` is not followed by a name".to_owned()),
            Some(_) => (),
        }
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("substitutions are nested more than {DEPTH_MAX} deep"));
        }
        let value = self.braced();
        self.depth -= 1;
        value
    }

    fn braced(&mut self) -> Result<String, String> {
        let name = self.name();
        let Some(mut modifier) = self.next() else {
            return Err("`${` has no matching `}`".to_owned());
        };
        let mut null_is_unset = false;
        match modifier {
            '}' => return Ok(self.variables.get(&name).unwrap_or("").to_owned()),
            '/' => return self.replace(&name),
            ':' => {
                null_is_unset = true;
                modifier = self.next().unwrap_or('}');
            }
            _ => (),
        }
        let is_trim = matches!(modifier, '#' | '%');
        if !matches!(modifier, '-' | '+' | '?') && (!is_trim || null_is_unset) {
            let colon = if null_is_unset { ":" } else { "" };
            return Err(format!("`{colon}{modifier}` is not a modifier of `${{{name}}}`"));
        }
        let word = self.until(Some('}'), is_trim)?.text;
        let value = self.variables.get(&name);
        let is_set = value.is_some_and(|value| !(null_is_unset && value.is_empty()));
        let value = value.unwrap_or("").to_owned();
        match modifier {
            '-' if is_set => Ok(value),
            '-' => Ok(word),
            '+' if is_set => Ok(word),
            '+' => Ok(String::new()),
            '?' if is_set => Ok(value),
            '?' => Err(match word.is_empty() {
                false => format!("`{name}`: {word}"),
                true if self.variables.get(&name).is_some() => {
                    format!("`{name}` must not be empty")
                }
                true => format!("`{name}` must be set"),
            }),
            _ => {
                let greedy = word.starts_with(modifier);
                let pattern = if greedy { &word[1..] } else { &word[..] };
                trim(&value, pattern, self.escape, modifier == '%', greedy)
            }
        }
    }

    /// `${name/pattern/replacement}`; the name and the first slash are taken.
    fn replace(&mut self, name: &str) -> Result<String, String> {
        let all = self.peek() == Some('/');
        if all {
            self.at += 1;
        }
        let pattern = self.until(Some('/'), true)?.text;
        let replacement = self.until(Some('}'), true)?.text;
        let value = self.variables.get(name).unwrap_or("");
        let regex = regex(&tokens(&pattern, self.escape)?, true, "")?;
        let (mut replaced, mut from) = (String::new(), 0);
        for found in regex.find_iter(value).take(if all { usize::MAX } else { 1 }) {
            replaced.push_str(&value[from..found.start()]);
            replaced.push_str(&replacement);
            from = found.end();
            if replaced.len() > LENGTH_MAX {
                return Err(format!("expands to more than {LENGTH_MAX} bytes"));
            }
        }
        replaced.push_str(&value[from..]);
        Ok(replaced)
    }

    /// A name, a positional number or one special character; empty if there is none.
    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.peek() {
            let first = name.is_empty();
            if first && c.is_ascii_digit() {
                while let Some(digit) = self.peek().filter(char::is_ascii_digit) {
                    name.push(digit);
                    self.at += 1;
                }
                return name;
            }
            if first && matches!(c, '@' | '*' | '#' | '?' | '-' | '$' | '!') {
                self.at += 1;
                return c.to_string();
            }
            if !c.is_alphanumeric() && c != '_' {
                break;
            }
            name.push(c);
            self.at += 1;
        }
        name
    }
}

enum PatternToken {
    Star,
    Any,
    One(char),
}

fn tokens(pattern: &str, escape: char) -> Result<Vec<PatternToken>, String> {
    let mut tokens = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => PatternToken::Star,
            '?' => PatternToken::Any,
            c if c == escape => match chars.next() {
                Some('*') => PatternToken::One('*'),
                Some('?') => PatternToken::One('?'),
                Some(c) => PatternToken::One(c),
                None => return Err(format!("pattern `{pattern}` ends with an escape")),
            },
            c => PatternToken::One(c),
        });
    }
    Ok(tokens)
}

fn regex(tokens: &[PatternToken], greedy: bool, anchor: &str) -> Result<Regex, String> {
    let mut source = format!("(?s){anchor}");
    for token in tokens {
        match token {
            PatternToken::Star if greedy => source.push_str(".*"),
            PatternToken::Star => source.push_str(".*?"),
            PatternToken::Any => source.push('.'),
            PatternToken::One(c) => source.push_str(&regex::escape(&c.to_string())),
        }
    }
    let built = regex::RegexBuilder::new(&source).size_limit(1 << 20).build();
    built.map_err(|_| "the pattern is too long".to_owned())
}

/// The regular expression of a pattern, anchored, its stars greedy.
pub(crate) fn pattern(pattern: &str) -> Result<String, String> {
    Ok(regex(&tokens(pattern, '\\')?, true, "^")?.as_str().to_owned())
}

/// Takes the shortest (or, greedy, the longest) match off the front or the back.
fn trim(
    value: &str,
    pattern: &str,
    escape: char,
    from_back: bool,
    greedy: bool,
) -> Result<String, String> {
    let mut tokens = tokens(pattern, escape)?;
    if !from_back {
        let regex = regex(&tokens, greedy, "^")?;
        return Ok(regex.replace(value, "").into_owned());
    }
    // From the back it is the front of all reversed.
    tokens.reverse();
    let reversed: String = value.chars().rev().collect();
    let rest = regex(&tokens, greedy, "^")?.replace(&reversed, "").into_owned();
    Ok(rest.chars().rev().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn variables(name: &str) -> Option<&'static str> {
        match name {
            "A" => Some("apple"),
            "TWO" => Some("two words"),
            "NULL" => Some(""),
            "URL" => Some("a.b.c.tar.gz"),
            "STAR" => Some("a*b"),
            _ => None,
        }
    }

    #[test]
    fn words_are_expanded_and_unquoted() {
        let cases = [
            ("plain", Ok("plain")),
            ("'$A'", Ok("$A")),
            ("\"$A\"", Ok("apple")),
            ("\\$A", Ok("$A")),
            ("\"\\$A \\x\"", Ok("$A \\x")),
            ("x$A.y", Ok("xapple.y")),
            ("${A}y", Ok("appley")),
            ("$", Ok("$")),
            ("$MISSING.", Ok(".")),
            ("${MISSING:-d}", Ok("d")),
            ("${NULL:-d}", Ok("d")),
            ("${NULL-d}", Ok("")),
            ("${A:+set}", Ok("set")),
            ("${NULL:+set}", Ok("")),
            ("${NULL+set}", Ok("set")),
            ("${MISSING:-${A}s}", Ok("apples")),
            ("${A:?no}", Ok("apple")),
            ("${MISSING?say why}", Err("`MISSING`: say why")),
            ("${NULL:?}", Err("`NULL` must not be empty")),
            ("${MISSING?}", Err("`MISSING` must be set")),
            ("${URL#*.}", Ok("b.c.tar.gz")),
            ("${URL##*.}", Ok("gz")),
            ("${URL%.*}", Ok("a.b.c.tar")),
            ("${URL%%.*}", Ok("a")),
            ("${A#x}", Ok("apple")),
            ("${STAR#a\\*}", Ok("b")),
            ("${A/p/b}", Ok("abple")),
            ("${A//p/b}", Ok("abble")),
            ("${A/*/x}", Ok("x")),
            ("${A/p/$NULL}", Ok("aple")),
            ("${A//p/\\/}", Ok("a\\/\\/le")),
            ("${A:#a}", Err("`:#` is not a modifier of `${A}`")),
            ("${A!}", Err("`!` is not a modifier of `${A}`")),
            ("${A:", Err("`:}` is not a modifier of `${A}`")),
            ("${", Err("`${` has no matching `}`")),
            ("${}", Err("`${` is not followed by a name")),
            ("'open", Err("a single quote is not closed")),
            ("\"open", Err("a double quote is not closed")),
        ];
        for (text, expected) in cases {
            let actual = expand(text, '\\', &variables);
            assert_eq!(actual.as_deref().map_err(String::as_str), expected, "{text}");
        }
    }

    #[test]
    fn words_split_at_blanks_that_are_not_quoted() {
        let cases: [(&str, &[&str]); 6] = [
            ("a  b", &["a", "b"]),
            ("$TWO", &["two", "words"]),
            ("\"$TWO\"", &["two words"]),
            ("x$TWO'y z'", &["xtwo", "wordsy z"]),
            ("a\\ b", &["a b"]),
            ("$NULL", &[]),
        ];
        for (text, expected) in cases {
            assert_eq!(expand_words(text, '\\', &variables).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn another_escape_character_leaves_backslashes_alone() {
        assert_eq!(expand("c:\\dir`$A", '`', &variables).unwrap(), "c:\\dir$A");
    }

    #[test]
    fn nesting_has_a_bound() {
        let deep = format!("{}x{}", "${Q:-".repeat(1000), "}".repeat(1000));
        assert!(expand(&deep, '\\', &variables).unwrap_err().contains("nested"));
    }

    proptest! {
        #[test]
        fn any_word_expands_or_is_refused(text in "[$A{}:#%/*?'\"\\\\ x-]{0,30}") {
            let _ = expand(&text, '\\', &variables);
            let _ = expand_words(&text, '`', &variables);
        }
    }
}
