//! `.dockerignore` files: which paths of a context are left out (contexts.md section 5.2,
//! with Docker's semantics).

use regex::Regex;

use crate::path::clean;
use crate::span::{DockerfileError, Text};

/// A file larger than this is refused, in bytes.
const SIZE_MAX: usize = 1 << 20;
/// More patterns than this are refused.
const PATTERNS_MAX: usize = 10_000;
/// A longer pattern is refused: it would cost too much to match.
const PATTERN_LEN_MAX: usize = 4096;

/// Base names that a packed context leaves out at any depth, unless a `!` pattern names
/// what is below (contexts.md section 5.1).
pub const ALWAYS_EXCLUDED: [&str; 7] =
    [".git", ".gitignore", ".bzr", "bzrignore", ".hg", ".hgignore", ".svn"];

/// The patterns of one ignore file. The last pattern that matches a path or one of its
/// parents decides.
#[derive(Debug, Clone, Default)]
pub struct IgnoreFile {
    patterns: Vec<Pattern>,
    has_exceptions: bool,
}

#[derive(Debug, Clone)]
struct Pattern {
    /// Starts with `!`: what matches is kept.
    is_exception: bool,
    /// Of an exception its text, which tells where it can match.
    reach: Option<String>,
    /// `*`, `**` or `**/*`.
    is_everything: bool,
    matcher: Matcher,
}

/// Most patterns need no regular expression.
#[derive(Debug, Clone)]
enum Matcher {
    /// `a/b`: exactly this path.
    Exact(String),
    /// `**/x`: this text at the end of the path, after a slash or alone.
    Suffix(String),
    /// `a/**`: anything below, not the folder itself.
    Below(String),
    Regex(Regex),
}

impl IgnoreFile {
    /// Reads an ignore file. `Err` tells the line of a malformed pattern.
    pub fn parse(text: &str) -> Result<Self, DockerfileError> {
        let refuse = |start, end, message: String| {
            DockerfileError::new(Text::new(text).span(start, end), message)
        };
        if text.len() > SIZE_MAX {
            return Err(refuse(0, 0, format!("the ignore file is larger than {SIZE_MAX} bytes")));
        }
        let mut file = Self::default();
        let mut offset = 0;
        for line in text.split_inclusive('\n') {
            let (start, end) = (offset, offset + line.trim_end().len());
            offset += line.len();
            let line = if start == 0 { line.trim_start_matches('\u{feff}') } else { line };
            if line.starts_with('#') {
                continue;
            }
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            file.add(line).map_err(|message| refuse(start, end, message))?;
        }
        Ok(file)
    }

    /// The patterns of `--exclude`, in their order.
    pub fn of_patterns(patterns: &[String]) -> Result<Self, String> {
        let mut file = Self::default();
        for pattern in patterns.iter().map(|pattern| pattern.trim()) {
            if !pattern.is_empty() {
                file.add(pattern)?;
            }
        }
        Ok(file)
    }

    fn add(&mut self, line: &str) -> Result<(), String> {
        let (is_exception, pattern) = match line.strip_prefix('!') {
            Some(rest) => (true, rest.trim()),
            None => (false, line),
        };
        if pattern.is_empty() {
            return Err("pattern `!` names nothing".to_owned());
        }
        if pattern.len() > PATTERN_LEN_MAX || self.patterns.len() >= PATTERNS_MAX {
            return Err(format!(
                "more than {PATTERNS_MAX} patterns, or one longer than {PATTERN_LEN_MAX} bytes"
            ));
        }
        let cleaned = clean(pattern);
        let pattern = match cleaned.len() {
            1 => cleaned.as_str(),
            _ => cleaned.strip_prefix('/').unwrap_or(&cleaned),
        };
        let Some(matcher) = Matcher::new(pattern) else {
            return Err(format!("pattern `{line}` is malformed"));
        };
        self.has_exceptions |= is_exception;
        let reach = is_exception.then(|| pattern.to_owned());
        let is_everything = matches!(pattern, "*" | "**" | "**/*");
        self.patterns.push(Pattern { is_exception, reach, is_everything, matcher });
        Ok(())
    }

    /// Whether a path is left out. It is relative to the context, without a leading slash.
    pub fn is_excluded(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let mut excluded = false;
        for pattern in &self.patterns {
            // A pattern can only change the answer to its own side.
            if pattern.is_exception == excluded && pattern.matches_path_or_parent(path) {
                excluded = !pattern.is_exception;
            }
        }
        excluded
    }

    /// Whether any pattern takes something back.
    pub fn has_exceptions(&self) -> bool {
        self.has_exceptions
    }

    /// Whether something below an excluded folder may be kept: then it must be walked. Only an
    /// exception that matches below it can do that.
    pub fn may_keep_below(&self, folder: &str) -> bool {
        let folder = folder.trim_end_matches('/');
        self.patterns.iter().any(|pattern| match &pattern.reach {
            Some(reach) => may_match_below(reach, folder),
            None => false,
        })
    }

    /// Whether a pattern leaves out all that there is, as `*` and `**` do.
    pub fn excludes_everything(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.is_everything && !pattern.is_exception)
    }

    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }
}

/// Whether a pattern can match a path below a folder. A part with a wildcard counts as one
/// that matches every name, which at most makes a folder be walked in vain.
fn may_match_below(pattern: &str, folder: &str) -> bool {
    let mut parts = pattern.split('/');
    for name in folder.split('/') {
        match parts.next() {
            None => return false,
            // These may stand for a slash, or hide one.
            Some(part) if part.contains("**") || part.contains(['[', '\\']) => return true,
            Some(part) if part.contains(['*', '?']) || part == name => (),
            Some(_) => return false,
        }
    }
    parts.next().is_some()
}

impl Pattern {
    fn matches_path_or_parent(&self, path: &str) -> bool {
        let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
        self.matcher.matches(path) || parents.into_iter().any(|parent| self.matcher.matches(parent))
    }
}

impl Matcher {
    fn new(pattern: &str) -> Option<Self> {
        let plain = |text: &str| !text.contains(['*', '?', '[', '\\']);
        if plain(pattern) {
            return Some(Self::Exact(pattern.to_owned()));
        }
        if let Some(rest) = pattern.strip_prefix("**/")
            && plain(rest)
        {
            return Some(Self::Suffix(rest.to_owned()));
        }
        if let Some(rest) = pattern.strip_suffix("/**")
            && plain(rest)
        {
            return Some(Self::Below(format!("{rest}/")));
        }
        let source = translate(pattern)?;
        let regex = regex::RegexBuilder::new(&source).size_limit(1 << 20).build().ok()?;
        Some(Self::Regex(regex))
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Suffix(suffix) => match path.strip_suffix(suffix.as_str()) {
                Some(rest) => rest.is_empty() || rest.ends_with('/'),
                None => false,
            },
            Self::Below(folder) => path.starts_with(folder.as_str()),
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

/// The regular expression of a pattern; `None` if it is malformed.
fn translate(pattern: &str) -> Option<String> {
    let mut out = String::from("(?s)^");
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.next_if_eq(&'*').is_some() => {
                // `**/` is any number of folders, none included; `**` at the end anything.
                chars.next_if_eq(&'/');
                match chars.peek() {
                    None => out.push_str(".*"),
                    Some(_) => out.push_str("(.*/)?"),
                }
            }
            '*' => out.push_str("[^/]*"),
            '?' => out.push_str("[^/]"),
            '\\' => out.push_str(&regex::escape(&chars.next()?.to_string())),
            '[' => {
                out.push('[');
                if chars.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
                let mut any = false;
                loop {
                    let low = match chars.next()? {
                        ']' if any => break,
                        ']' | '-' => return None,
                        '\\' => chars.next()?,
                        c => c,
                    };
                    out.push_str(&class_char(low));
                    if chars.next_if_eq(&'-').is_some() {
                        let high = match chars.next()? {
                            ']' | '-' => return None,
                            '\\' => chars.next()?,
                            c => c,
                        };
                        out.push('-');
                        out.push_str(&class_char(high));
                    }
                    any = true;
                }
                out.push(']');
            }
            c => out.push_str(&regex::escape(&c.to_string())),
        }
    }
    out.push('$');
    Some(out)
}

/// A character inside `[...]` that stands for itself.
fn class_char(c: char) -> String {
    match c.is_alphanumeric() {
        true => c.to_string(),
        false => format!("\\u{{{:x}}}", u32::from(c)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(patterns: &[&str], path: &str, excluded: bool) {
        let file = IgnoreFile::parse(&patterns.join("\n")).unwrap();
        assert_eq!(file.is_excluded(path), excluded, "{patterns:?} {path}");
    }

    #[test]
    fn i21_i22_the_last_matching_pattern_decides() {
        for (path, excluded) in [("keep.md", false), ("other.md", true), ("sub/deep.md", false)] {
            check(&["*.md", "!keep.md"], path, excluded);
        }
        check(&["!keep.md", "*.md"], "keep.md", true);
        check(&["docs", "!docs/keep"], "docs/keep", false);
        check(&["docs", "!docs/keep"], "docs/keep/below", false);
        check(&["docs", "!docs/keep", "docs/keep/secret"], "docs/keep/secret", true);
        check(&["**", "!app"], "app/main.c", false);
    }

    #[test]
    fn patterns_are_anchored_at_the_root() {
        check(&["x"], "x", true);
        check(&["x"], "a/x", false);
        check(&["/x"], "x", true);
        check(&["x/"], "x/y", true);
        check(&["**/x"], "x", true);
        check(&["**/x"], "a/b/x", true);
        check(&["**/x"], "a/b/yx", false);
        check(&["a/**"], "a", false);
        check(&["a/**"], "a/b/c", true);
        check(&["a/**/c"], "a/c", true);
        check(&["a/**/c"], "a/b/b/c", true);
        check(&["*/temp*"], "some/temporary.txt", true);
        check(&["*/temp*"], "a/b/temp", false);
        check(&["temp?"], "tempa", true);
        check(&["[a-c]x"], "bx", true);
        check(&["[^a-c]x"], "bx", false);
        check(&["a\\*"], "a*", true);
        check(&["a\\*"], "ab", false);
        check(&["./a/../b"], "b", true);
    }

    #[test]
    fn only_folders_that_an_exception_reaches_into_are_walked() {
        for (patterns, folder, walked) in [
            (&["*", "!pub"][..], "private", false),
            (&["*", "!pub"], "pub", false),
            (&["*", "!pub/*.c"], "pub", true),
            (&["*", "!/a/b/c"], "a/b", true),
            (&["*", "!/a/b/c"], "a/b/c", false),
            (&["*", "!/a/b/c"], "ab", false),
            (&["*", "!*/keep"], "any", true),
            (&["*", "!*/keep"], "any/below", false),
            (&["*", "!**/keep"], "any/below", true),
            (&["*", "!a/**"], "a/b/c", true),
            (&["*", "!a/**"], "b", false),
            (&["*", "![ab]/c"], "x/y", true),
            (&["*", "a/b"], "a", false),
        ] {
            let file = IgnoreFile::parse(&patterns.join("\n")).unwrap();
            assert_eq!(file.may_keep_below(folder), walked, "{patterns:?} {folder}");
        }
    }

    #[test]
    fn comments_blanks_and_a_byte_order_mark_are_skipped() {
        let file = IgnoreFile::parse("\u{feff}a\r\n# b\n\n  c  \n").unwrap();
        for (path, excluded) in [("a", true), ("b", false), ("c", true)] {
            assert_eq!(file.is_excluded(path), excluded, "{path}");
        }
        assert!(!file.has_exceptions());
        let error = IgnoreFile::parse("a\n[\n").unwrap_err();
        assert_eq!((error.message.as_str(), error.at.line), ("pattern `[` is malformed", 2));
        assert!(IgnoreFile::parse("!").is_err());
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in "[a*?!/\\[\\]\\\\^\n#. -]{0,40}", path in "[a/.]{0,10}") {
            if let Ok(file) = IgnoreFile::parse(&text) {
                file.is_excluded(&path);
            }
        }

        #[test]
        fn what_is_kept_below_an_excluded_folder_is_found(
            patterns in "(!?[ab*?\\[\\]]{1,3}(/[ab*]{1,3}){0,2}\n){1,4}",
            path in "[ab]{1,2}(/[ab]{1,2}){1,3}",
        ) {
            let Ok(file) = IgnoreFile::parse(&patterns) else { return Ok(()) };
            if !file.is_excluded(&path) {
                for (at, _) in path.match_indices('/').filter(|(at, _)| file.is_excluded(&path[..*at])) {
                    prop_assert!(file.may_keep_below(&path[..at]), "{patterns} {path}");
                }
            }
        }

        #[test]
        fn what_is_below_an_excluded_folder_is_excluded(
            pattern in "[ab*]{1,4}(/[ab*]{1,4})?", path in "[ab]{1,3}(/[ab]{1,3}){0,2}"
        ) {
            let file = IgnoreFile::parse(&pattern).unwrap();
            if file.is_excluded(&path) {
                let below = format!("{path}/below");
                prop_assert!(file.is_excluded(&below));
            }
        }
    }
}
