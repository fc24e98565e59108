//! Functions of texts.

use gotmpl::Value;

use super::builtins::builtin;
use super::lists::strings;
use super::{ANY, CALL_COST, Call, Function, Result, function};
use crate::path::clean;

const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const DIGITS: &str = "0123456789";

pub(super) const FUNCTIONS: &[Function] = &[
    function("hello", 0, 0, |call| call.give("Hello!")),
    function("trim", 1, 1, |call| call.give(call.text(0)?.trim())),
    function("trimAll", 2, 2, trim_all),
    function("trimall", 2, 2, trim_all),
    function("trimSuffix", 2, 2, |call| {
        let text = call.text(1)?;
        call.give(text.strip_suffix(call.text(0)?).unwrap_or(text))
    }),
    function("trimPrefix", 2, 2, |call| {
        let text = call.text(1)?;
        call.give(text.strip_prefix(call.text(0)?).unwrap_or(text))
    }),
    function("upper", 1, 1, |call| call.give(call.text(0)?.to_uppercase())),
    function("lower", 1, 1, |call| call.give(call.text(0)?.to_lowercase())),
    function("title", 1, 1, |call| call.give(at_words(call.text(0)?, is_separator, upper))),
    function("untitle", 1, 1, |call| {
        call.give(at_words(call.text(0)?, char::is_whitespace, |c| c.to_lowercase().collect()))
    }),
    function("initials", 1, 1, |call| {
        let words = call.text(0)?.split_whitespace();
        call.give(words.filter_map(|word| word.chars().next()).collect::<String>())
    }),
    function("nospace", 1, 1, |call| {
        call.give(call.text(0)?.chars().filter(|c| !c.is_whitespace()).collect::<String>())
    }),
    function("swapcase", 1, 1, |call| {
        call.give(call.text(0)?.chars().map(swap).collect::<String>())
    }),
    function("snakecase", 1, 1, |call| call.give(joined_words(call.text(0)?, '_'))),
    function("kebabcase", 1, 1, |call| call.give(joined_words(call.text(0)?, '-'))),
    function("camelcase", 1, 1, |call| call.give(camel_case(call.text(0)?))),
    function("abbrev", 2, 2, |call| abbreviated(call, 0, call.int(0)?, call.text(1)?)),
    function("abbrevboth", 3, 3, |call| {
        abbreviated(call, call.int(0)?, call.int(1)?, call.text(2)?)
    }),
    function("trunc", 2, 2, |call| {
        let length = usize::try_from(call.int(0)?);
        let length = length.map_err(|_| call.fails("a length cannot be negative"))?;
        call.give(call.text(1)?.chars().take(length).collect::<String>())
    }),
    function("substr", 3, 3, substr),
    function("wrap", 2, 2, |call| wrapped(call, call.text(1)?, "\n", false)),
    function("wrapWith", 3, 3, |call| wrapped(call, call.text(2)?, call.text(1)?, true)),
    function("repeat", 2, 2, |call| {
        let (count, text) = (call.count(0)?, call.text(1)?);
        call.budget().check(count.saturating_mul(text.len()))?;
        call.give(text.repeat(count))
    }),
    function("replace", 3, 3, |call| {
        let (old, new, text) = (call.text(0)?, call.text(1)?, call.text(2)?);
        call.budget().check(text.matches(old).count().saturating_mul(new.len()))?;
        call.give(text.replace(old, new))
    }),
    function("contains", 2, 2, |call| Ok(Value::Bool(call.text(1)?.contains(call.text(0)?)))),
    function("hasPrefix", 2, 2, |call| Ok(Value::Bool(call.text(1)?.starts_with(call.text(0)?)))),
    function("hasSuffix", 2, 2, |call| Ok(Value::Bool(call.text(1)?.ends_with(call.text(0)?)))),
    function("indent", 2, 2, |call| call.give(indented(call)?)),
    function("nindent", 2, 2, |call| call.give(format!("\n{}", indented(call)?))),
    function("quote", 0, ANY, |call| {
        spaced(call, |text| {
            builtin("printf", &[Value::String("%q".into()), Value::String(text.into())])
        })
    }),
    function("squote", 0, ANY, |call| spaced(call, |text| Ok(format!("'{text}'")))),
    function("cat", 0, ANY, |call| spaced(call, Ok)),
    function("plural", 3, 3, |call| {
        call.give(if call.int(2)? == 1 { call.text(0)? } else { call.text(1)? })
    }),
    function("toString", 1, 1, |call| call.give(call.display(call.value(0))?)),
    function("join", 2, 2, |call| {
        let (separator, parts) = (call.text(0)?, strings(call, call.value(1))?);
        call.budget().check(parts.len().saturating_mul(separator.len()))?;
        call.give(parts.join(separator))
    }),
    function("randAlphaNum", 1, 1, |call| random(call, &[DIGITS, LETTERS].concat())),
    function("randAlpha", 1, 1, |call| random(call, LETTERS)),
    function("randNumeric", 1, 1, |call| random(call, DIGITS)),
    function("randAscii", 1, 1, |call| random(call, &(' '..='~').collect::<String>())),
    function("shuffle", 1, 1, shuffle),
    function("base", 1, 1, |call| call.give(base(call.text(0)?))),
    function("dir", 1, 1, |call| {
        let path = call.text(0)?;
        call.give(clean(&path[..path.rfind('/').map_or(0, |at| at + 1)]))
    }),
    function("clean", 1, 1, |call| call.give(clean(call.text(0)?))),
    function("ext", 1, 1, |call| {
        let name = call.text(0)?.rsplit('/').next().unwrap_or_default();
        call.give(name.rfind('.').map_or("", |at| &name[at..]))
    }),
    function("isAbs", 1, 1, |call| Ok(Value::Bool(call.text(0)?.starts_with('/')))),
    function("env", 1, 1, |call| call.give("")),
    function("expandenv", 1, 1, |call| call.give("")),
    function("getHostByName", 1, 1, |call| call.give("")),
];

fn trim_all(call: &Call<'_>) -> Result {
    let cut = call.text(0)?;
    call.give(call.text(1)?.trim_matches(|c| cut.contains(c)))
}

fn upper(c: char) -> String {
    c.to_uppercase().collect()
}

/// What ends a word for Go: no letter, no digit and no underscore, of those in ASCII.
fn is_separator(c: char) -> bool {
    match c.is_ascii() {
        true => !c.is_ascii_alphanumeric() && c != '_',
        false => c.is_whitespace(),
    }
}

/// The text with the first character of each word changed.
fn at_words(text: &str, is_separator: fn(char) -> bool, change: fn(char) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    let mut at_start = true;
    for c in text.chars() {
        match at_start {
            true => out.push_str(&change(c)),
            false => out.push(c),
        }
        at_start = is_separator(c);
    }
    out
}

fn swap(c: char) -> char {
    let swapped = match c.is_uppercase() {
        true => c.to_lowercase().next(),
        false => c.to_uppercase().next(),
    };
    swapped.unwrap_or(c)
}

/// `HTTPServer` to `http_server`: words end at `_`, `-` and blanks, before a capital after
/// a small letter, before the last capital of several, and before a number that a small
/// letter follows.
fn joined_words(text: &str, connector: char) -> String {
    let characters: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut word_start = 0;
    for (index, &c) in characters.iter().enumerate() {
        if c == '_' || c == '-' || c.is_whitespace() {
            out.push(connector);
            word_start = index + 1;
            continue;
        }
        let previous = (index > word_start).then(|| characters[index - 1]);
        let next = characters.get(index + 1);
        let starts_word = previous.is_some_and(|previous| {
            if c.is_uppercase() {
                !previous.is_uppercase() || next.is_some_and(|next| next.is_lowercase())
            } else {
                let after = characters[index..].iter().find(|c| !c.is_ascii_digit());
                c.is_ascii_digit()
                    && previous.is_alphabetic()
                    && !characters[word_start].is_ascii_digit()
                    && after.is_some_and(|after| after.is_lowercase())
            }
        });
        if starts_word {
            out.push(connector);
            word_start = index;
        }
        out.extend(c.to_lowercase());
    }
    out
}

/// `some_words` to `SomeWords`. Connectors at both ends stay, and all but one of several.
fn camel_case(text: &str) -> String {
    let is_connector = |c: char| c == '_' || c == '-' || c.is_whitespace();
    let inner = text.trim_matches(is_connector);
    let start = text.len() - text.trim_start_matches(is_connector).len();
    if inner.is_empty() {
        return text.to_owned();
    }
    let mut out = text[..start].to_owned();
    let mut previous = None;
    let mut rest = inner.chars().peekable();
    while let Some(c) = rest.next() {
        if is_connector(c) {
            if rest.peek().is_some_and(|next| is_connector(*next)) {
                out.push(c);
            }
        } else if previous.is_none_or(is_connector) {
            out.extend(c.to_uppercase());
        } else {
            out.extend(c.to_lowercase());
        }
        previous = Some(c);
    }
    out + &text[start + inner.len()..]
}

/// The text from `offset` on, cut to a width, with dots where something is left out.
fn abbreviated(call: &Call<'_>, offset: i64, width: i64, text: &str) -> Result {
    let characters: Vec<char> = text.chars().collect();
    if width < 4 || (offset > 0 && width < 7) {
        return call.give(text);
    }
    let width = usize::try_from(width).unwrap_or(usize::MAX);
    let length = characters.len();
    if length <= width {
        return call.give(text);
    }
    let part = |from: usize, to: usize| characters[from..to].iter().collect::<String>();
    let mut offset = usize::try_from(offset).unwrap_or(0).min(length);
    offset = offset.min(length - (width - 3));
    if offset <= 4 {
        return call.give(part(0, width - 3) + "...");
    }
    if offset + width - 3 < length {
        // The inner width is too small for dots of its own below four.
        let inner = width - 3;
        return call.give(match inner {
            0..4 => "...".to_owned(),
            _ => format!("...{}...", part(offset, offset + inner - 3)),
        });
    }
    call.give(format!("...{}", part(length - (width - 3), length)))
}

fn substr(call: &Call<'_>) -> Result {
    let (start, end) = (call.int(0)?, call.int(1)?);
    let characters: Vec<char> = call.text(2)?.chars().collect();
    let length = characters.len();
    let start = usize::try_from(start).unwrap_or(0);
    let end = usize::try_from(end).map_or(length, |end| end.min(length));
    let part = characters
        .get(start..end)
        .ok_or_else(|| call.fails(format!("the text has no part from {start} to {end}")))?;
    call.give(part.iter().collect::<String>())
}

/// Lines of a length at most; words that are longer are cut only if asked to.
fn wrapped(call: &Call<'_>, text: &str, newline: &str, cut_words: bool) -> Result {
    let width = call.count(0)?.max(1);
    let characters: Vec<char> = text.chars().collect();
    call.budget()
        .check((characters.len() / width).saturating_add(1).saturating_mul(newline.len()))?;
    let mut lines: Vec<&[char]> = Vec::new();
    let mut rest = &characters[..];
    while rest.len() > width {
        if rest[0] == ' ' {
            rest = &rest[1..];
            continue;
        }
        let blank = rest[..=width].iter().rposition(|c| *c == ' ');
        let (line, skipped) = match (blank, cut_words) {
            (Some(blank), _) => (blank, 1),
            (None, true) => (width, 0),
            (None, false) => match rest[width..].iter().position(|c| *c == ' ') {
                Some(blank) => (width + blank, 1),
                None => break,
            },
        };
        lines.push(&rest[..line]);
        rest = &rest[line + skipped..];
    }
    lines.push(rest);
    let lines: Vec<String> = lines.into_iter().map(|line| line.iter().collect()).collect();
    call.give(lines.join(newline))
}

fn indented(call: &Call<'_>) -> Result<String> {
    let (count, text) = (call.count(0)?, call.text(1)?);
    let lines = text.matches('\n').count() + 1;
    call.budget().check(lines.saturating_mul(count))?;
    let pad = " ".repeat(count);
    Ok(format!("{pad}{}", text.replace('\n', &format!("\n{pad}"))))
}

/// All arguments that are there, as texts with a blank between.
fn spaced(call: &Call<'_>, form: fn(String) -> Result<String>) -> Result {
    let mut parts = Vec::new();
    for value in call.args.iter().filter(|value| !matches!(value, Value::Nil)) {
        parts.push(form(call.display(value)?)?);
    }
    call.give(parts.join(" "))
}

fn random(call: &Call<'_>, alphabet: &str) -> Result {
    let count = call.count(0)?;
    // Each character costs a digest.
    call.budget().spend(count.saturating_mul(CALL_COST))?;
    let alphabet: Vec<char> = alphabet.chars().collect();
    call.give((0..count).map(|_| alphabet[call.random_below(alphabet.len())]).collect::<String>())
}

fn shuffle(call: &Call<'_>) -> Result {
    let mut characters: Vec<char> = call.text(0)?.chars().collect();
    call.budget().spend(characters.len().saturating_mul(CALL_COST))?;
    for index in (1..characters.len()).rev() {
        characters.swap(index, call.random_below(index + 1));
    }
    call.give(characters.into_iter().collect::<String>())
}

fn base(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    match (path.is_empty(), trimmed.is_empty()) {
        (true, _) => ".",
        (false, true) => "/",
        (false, false) => trimmed.rsplit('/').next().unwrap_or(trimmed),
    }
}
