//! Patterns of `COPY` sources: `*`, `?`, `[a-z]`, `[^a]` and `\` inside one path component
//! (the rules of Go's `filepath.Match`).

/// Why a pattern cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pattern `{pattern}` is malformed")]
pub struct BadPattern {
    pub pattern: String,
}

/// Whether a pattern has anything but plain characters.
pub fn has_wildcards(pattern: &str) -> bool {
    pattern.contains(['*', '?', '[', '\\'])
}

/// Whether `name` matches `pattern` as a whole. `*` and `?` do not match a slash.
///
/// Takes time proportional to the product of both lengths at most.
pub fn matches(pattern: &str, name: &str) -> Result<bool, BadPattern> {
    let tokens = parse(pattern).ok_or_else(|| BadPattern { pattern: pattern.to_owned() })?;
    Ok(tokens_match(&tokens, &name.chars().collect::<Vec<_>>()))
}

enum Token {
    Star,
    Any,
    One(char),
    Class { negated: bool, ranges: Vec<(char, char)> },
}

fn parse(pattern: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => Token::Star,
            '?' => Token::Any,
            '\\' => Token::One(chars.next()?),
            '[' => {
                let negated = chars.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                loop {
                    let low = match chars.next()? {
                        ']' if !ranges.is_empty() => break,
                        ']' | '-' => return None,
                        '\\' => chars.next()?,
                        c => c,
                    };
                    let high = match chars.next_if_eq(&'-') {
                        None => low,
                        Some(_) => match chars.next()? {
                            ']' | '-' => return None,
                            '\\' => chars.next()?,
                            c => c,
                        },
                    };
                    ranges.push((low, high));
                }
                Token::Class { negated, ranges }
            }
            c => Token::One(c),
        });
    }
    Some(tokens)
}

impl Token {
    fn takes(&self, c: char) -> bool {
        match self {
            Self::Star | Self::Any => c != '/',
            Self::One(one) => *one == c,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
            }
        }
    }
}

fn tokens_match(tokens: &[Token], name: &[char]) -> bool {
    let (mut token, mut at) = (0, 0);
    // Where to go on when what follows the last star does not fit.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        match tokens.get(token) {
            Some(Token::Star) => {
                retry = Some((token, at));
                token += 1;
                continue;
            }
            Some(one) if name.get(at).is_some_and(|&c| one.takes(c)) => {
                token += 1;
                at += 1;
                continue;
            }
            None if at == name.len() => return true,
            _ => (),
        }
        match retry {
            Some((star, from)) if name.get(from).is_some_and(|&c| c != '/') => {
                retry = Some((star, from + 1));
                (token, at) = (star + 1, from + 1);
            }
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        let cases = [
            ("abc", "abc", Some(true)),
            ("*", "abc", Some(true)),
            ("*c", "abc", Some(true)),
            ("a*", "a", Some(true)),
            ("a*", "ab/c", Some(false)),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", Some(true)),
            ("a*b?c*x", "abxbbxdbxebxczzx", Some(true)),
            ("a*b?c*x", "abxbbxdbxebxczzy", Some(false)),
            ("ab[c]", "abc", Some(true)),
            ("ab[b-d]", "abc", Some(true)),
            ("ab[e-g]", "abc", Some(false)),
            ("ab[^c]", "abc", Some(false)),
            ("a\\*b", "a*b", Some(true)),
            ("a\\*b", "ab", Some(false)),
            ("a?b", "a☺b", Some(true)),
            ("[a-ζ]*", "α", Some(true)),
            ("[\\]a]", "]", Some(true)),
            ("[]a]", "]", None),
            ("[-]", "-", None),
            ("[x-]", "x", None),
            ("[", "a", None),
            ("[^", "a", None),
            ("a[", "a", None),
            ("a\\", "a", None),
            ("*x", "xxx", Some(true)),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(matches(pattern, name).ok(), expected, "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn any_pattern_answers(pattern in "\\PC{0,20}", name in "\\PC{0,20}") {
            let _ = matches(&pattern, &name);
        }

        #[test]
        fn an_escaped_name_matches_itself_only(name in "[a*?\\[\\]-]{1,10}", other in "[a*?]{1,10}") {
            let pattern: String = name.chars().flat_map(|c| ['\\', c]).collect();
            prop_assert_eq!(matches(&pattern, &name), Ok(true));
            prop_assert_eq!(matches(&pattern, &other), Ok(name == other));
        }
    }
}
