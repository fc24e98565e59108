//! Here-documents: the `<<EOF` words of an instruction, and the lines that belong to them.

/// Lines of text that are a part of `RUN`, `COPY` or `ADD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HereDocument {
    /// The word that ends it; for `COPY` also the name of the file.
    pub name: String,
    /// The lines, each with its line end, without the one that ends them.
    pub content: String,
    /// Variables are replaced in it, unless a part of its name is quoted.
    pub expand: bool,
    /// `<<-`: tabs at the start of lines are taken off.
    pub strip_tabs: bool,
    /// `3<<EOF`: the file descriptor a shell opens it on; 0 if none is named.
    pub descriptor: u32,
}

impl HereDocument {
    /// The lines as a file has them: without the tabs that `<<-` takes off.
    pub fn text(&self) -> String {
        match self.strip_tabs {
            false => self.content.clone(),
            true => {
                let lines = self.content.split_inclusive('\n');
                lines.map(|line| line.trim_start_matches('\t')).collect()
            }
        }
    }

    /// Whether a line of the file ends the document.
    pub(crate) fn ends_at(&self, line: &str) -> bool {
        let line = line.trim_end_matches(['\r', '\n']);
        let line = if self.strip_tabs { line.trim_start_matches('\t') } else { line };
        line == self.name
    }
}

/// Understands one word: `<<EOF`, `<<-EOF`, `3<<'EOF'`. `None` if it is something else.
pub(crate) fn marker(word: &str) -> Result<Option<HereDocument>, String> {
    let digits = word.len() - word.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (digits, rest) = word.split_at(digits);
    let Some(rest) = rest.strip_prefix("<<") else { return Ok(None) };
    let (strip_tabs, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let rest = rest.trim_start();
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let names = split(rest, Keep::Nothing)?;
    let [name] = names.as_slice() else { return Ok(None) };
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    let raw = split(rest, Keep::Quotes)?;
    // Where quotes were taken off, the name was quoted.
    let expand = raw.iter().map(|word| quotes(word)).sum::<usize>() == quotes(name);
    Ok(Some(HereDocument {
        name: name.clone(),
        content: String::new(),
        expand,
        strip_tabs,
        descriptor: digits.parse().unwrap_or(0),
    }))
}

/// The here-documents that a line announces, in their order, still without their lines.
pub(crate) fn markers(line: &str) -> Result<Vec<HereDocument>, String> {
    if !line.contains("<<") {
        return Ok(Vec::new());
    }
    // Quotes that are not closed are for the shell to complain about.
    let words = split(line, Keep::All).unwrap_or_default();
    let found: Result<Vec<_>, String> = words.iter().map(|word| marker(word)).collect();
    Ok(found?.into_iter().flatten().collect())
}

/// What of the quoting stays in the words.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Nothing,
    Quotes,
    /// Quotes and escapes.
    All,
}

/// Splits at blanks that are not quoted, as a shell does; `<<` and blanks after it are part of
/// the word that follows. Always with `\` for escapes, and without variables.
fn split(text: &str, keep: Keep) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\'' | '"' => {
                let mut closed = false;
                if keep != Keep::Nothing {
                    word.push(c);
                }
                while let Some(inner) = chars.next() {
                    if inner == c {
                        closed = true;
                        break;
                    }
                    if inner == '\\' && c == '"' {
                        let escapes = |next: &char| matches!(next, '"' | '$' | '\\');
                        match chars.next_if(escapes) {
                            Some(next) => {
                                if keep == Keep::All {
                                    word.push('\\');
                                }
                                word.push(next);
                            }
                            None => word.push('\\'),
                        }
                        continue;
                    }
                    word.push(inner);
                }
                if !closed {
                    return Err(format!("the quote `{c}` is not closed"));
                }
                if keep != Keep::Nothing {
                    word.push(c);
                }
            }
            '\\' => {
                if keep == Keep::All {
                    word.push('\\');
                }
                word.extend(chars.next());
            }
            '<' => {
                word.push('<');
                if chars.next_if_eq(&'<').is_some() {
                    word.push('<');
                    word.extend(chars.next_if_eq(&'-'));
                    while let Some(blank) = chars.next_if(|c| matches!(c, ' ' | '\t' | '\r')) {
                        word.push(blank);
                    }
                }
            }
            c if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_a_name_after_two_arrows() {
        let shown = |word: &str| match marker(word) {
            Err(error) => error,
            Ok(None) => "none".to_owned(),
            Ok(Some(found)) => {
                let HereDocument { name, expand, strip_tabs, descriptor, .. } = found;
                format!("{name} {expand} {strip_tabs} {descriptor}")
            }
        };
        let cases = [
            ("<<EOF", "EOF true false 0"),
            ("<<-EOF", "EOF true true 0"),
            ("3<<'one two'", "one two false false 3"),
            ("<<e\"o\"f", "eof false false 0"),
            ("<<it\\'s", "it's true false 0"),
            ("<< EOF", "EOF true false 0"),
            ("<<", "none"),
            ("<EOF", "none"),
            ("<<<EOF", "none"),
            ("a<<EOF", "none"),
            ("<<EOF sh", "none"),
            ("<<'EOF", "the quote `'` is not closed"),
        ];
        for (word, expected) in cases {
            assert_eq!(shown(word), expected, "{word}");
        }
    }

    #[test]
    fn markers_inside_quotes_are_text() {
        let names = |line| -> Vec<String> {
            markers(line).unwrap().into_iter().map(|found| found.name).collect()
        };
        assert_eq!(names("RUN <<A cat 3<<-B"), ["A", "B"]);
        assert_eq!(names("RUN echo '<<A' \"<<B\" \\<<C"), Vec::<String>::new());
        assert_eq!(names("RUN << A > file <<- B"), ["A", "B"]);
    }

    #[test]
    fn tabs_are_taken_off_where_the_marker_says_so() {
        let mut document = marker("<<-E").unwrap().unwrap();
        document.content = "\t\ta\n b\n".to_owned();
        assert_eq!(document.text(), "a\n b\n");
        assert!(document.ends_at("\tE\r\n"));
        assert!(!document.ends_at(" E"));
    }
}
