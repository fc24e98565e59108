//! Text from elsewhere (a build's output, names, errors) must not control the terminal.
//!
//! Only colours (SGR sequences) may pass, and they end with their line. Whatever else begins
//! an escape sequence is dropped with all of it; so are other control characters and those
//! that reorder text.

/// Whether colours pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colors {
    Keep,
    Never,
}

impl From<bool> for Colors {
    fn from(keep: bool) -> Self {
        if keep { Self::Keep } else { Self::Never }
    }
}

/// One line, harmless. Line ends within are dropped too.
pub(crate) fn sanitize(line: &str, colors: Colors) -> String {
    let mut out = String::with_capacity(line.len());
    let mut colored = false;
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        let (sequence, next) = match c {
            '\x1b' => escape(after),
            '\u{9b}' => control_sequence(after),
            '\u{90}' | '\u{98}' | '\u{9d}'..='\u{9f}' => (None, after_string(after)),
            _ => {
                if c == '\t' || !is_harmful(c) {
                    out.push(c);
                }
                (None, after)
            }
        };
        if let (Some(parameters), Colors::Keep) = (sequence, colors) {
            out.push_str("\x1b[");
            out.push_str(parameters);
            out.push('m');
            colored = true;
        }
        rest = next;
    }
    if colored {
        out.push_str("\x1b[0m");
    }
    out
}

/// Several lines, harmless and without colours.
pub(crate) fn sanitize_text(text: &str) -> String {
    text.lines().map(|line| sanitize(line, Colors::Never)).collect::<Vec<_>>().join("\n")
}

/// What follows an escape character: the parameters of a colour, if it is one, and the rest.
fn escape(rest: &str) -> (Option<&str>, &str) {
    let Some(c) = rest.chars().next() else { return (None, rest) };
    let after = &rest[c.len_utf8()..];
    match c {
        '[' => control_sequence(after),
        ']' | 'P' | 'X' | '^' | '_' => (None, after_string(after)),
        ' '..='/' => {
            let end = after.find(|c| !matches!(c, ' '..='/'));
            let after = end.map_or("", |end| &after[end..]);
            let mut chars = after.chars();
            if chars.next().is_some_and(|c| matches!(c, '0'..='~')) {
                return (None, chars.as_str());
            }
            (None, after)
        }
        '0'..='~' => (None, after),
        _ => (None, rest),
    }
}

/// The parameters, if the sequence is a colour, and what comes after it.
fn control_sequence(rest: &str) -> (Option<&str>, &str) {
    let end = rest.find(|c| !matches!(c, ' '..='?')).unwrap_or(rest.len());
    let (parameters, after) = rest.split_at(end);
    let Some(last @ '@'..='~') = after.chars().next() else { return (None, after) };
    let is_color = last == 'm' && parameters.chars().all(|c| matches!(c, '0'..='9' | ';' | ':'));
    (is_color.then_some(parameters), &after[1..])
}

/// What comes after a string for the terminal (a title, a link, a device command).
fn after_string(rest: &str) -> &str {
    for (at, c) in rest.char_indices() {
        match c {
            '\x07' | '\u{9c}' => return &rest[at + c.len_utf8()..],
            '\x1b' => {
                let after = &rest[at + 1..];
                return after.strip_prefix('\\').unwrap_or(&rest[at..]);
            }
            _ => (),
        }
    }
    ""
}

fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_colors_pass() {
        for (line, kept, stripped) in [
            ("plain\ttext", "plain\ttext", "plain\ttext"),
            ("\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m\x1b[0m", "red"),
            ("a\x1b[2Jb\x1b[10;1Hc", "abc", "abc"),
            ("\x1b]0;title\x07x\x1b]8;;http://h\x1b\\link", "xlink", "xlink"),
            ("\x1bP1;2|evil\x1b\\x", "x", "x"),
            ("\u{9b}31mred\u{9d}0;t\u{9c}x", "\x1b[31mredx\x1b[0m", "redx"),
            ("\x1b[?25lx\x1b[>1mx", "xx", "xx"),
            ("bell\x07 back\x08 del\x7f nul\0", "bell back del nul", "bell back del nul"),
            ("\x1bcreset \x1b(0 \x1b", "reset  ", "reset  "),
            ("left\u{202e}thgir", "leftthgir", "leftthgir"),
            ("\x1b]unfinished", "", ""),
            ("two\r\nlines", "twolines", "twolines"),
        ] {
            assert_eq!(sanitize(line, Colors::Keep), kept, "{line:?}");
            assert_eq!(sanitize(line, Colors::Never), stripped, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_but_colors_is_left_of_any_text(line in "(\\PC|[\x00-\x1f\u{80}-\u{9f}m;\\[\\]]){0,40}") {
            let stripped = sanitize(&line, Colors::Never);
            prop_assert!(!stripped.contains(|c| c != '\t' && is_harmful(c)), "{:?}", stripped);
            let kept = sanitize(&line, Colors::Keep);
            // Every escape that is left begins a colour, and without them nothing is harmful.
            prop_assert_eq!(sanitize(&kept, Colors::Never), stripped);
            prop_assert!(!kept.replace('\x1b', "").contains(|c| c != '\t' && is_harmful(c)));
        }
    }
}
