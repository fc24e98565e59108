//! Filters: which repositories, and which of their tags.

use std::time::Duration;

use fancy_regex::{Regex, RegexBuilder};
use oci::RepositoryName;

/// Filters of one command.
const FILTERS_MAX: usize = 100;
/// Bytes of one filter.
const FILTER_LEN_MAX: usize = 4096;
/// Steps back that a match may take for each second that it is given. A regex without look-around
/// or references to groups takes none.
const STEPS_PER_SECOND: usize = 100_000;
/// The time for one match, if none is given, and at most.
const MATCH_TIME: Duration = Duration::from_secs(60);
const MATCH_TIME_MAX: Duration = Duration::from_secs(600);

/// Why a filter is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    #[error("the filter `{0}` does not part a repository from a tag by one `:`")]
    NotTwoParts(String),
    #[error("the filter `{0}` has an empty part")]
    EmptyPart(String),
    #[error("the filter `{filter}` is not a regular expression: {reason}")]
    BadRegex { filter: String, reason: String },
    #[error("a filter has more than {FILTER_LEN_MAX} bytes")]
    TooLong,
    #[error("there are more than {FILTERS_MAX} filters")]
    TooMany,
}

impl FilterError {
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotTwoParts(_) | Self::EmptyPart(_) => {
                Some("it looks like `REPOSITORY:TAG`; `app:.*` is every tag of `app`".to_owned())
            }
            Self::BadRegex { .. } | Self::TooLong | Self::TooMany => None,
        }
    }
}

/// A match took more steps than it may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the filter `{filter}` takes too long for `{text}`")]
pub struct MatchError {
    filter: String,
    text: String,
}

/// Bytes of what each part of a filter is compiled to.
const COMPILED_MAX: usize = 256 << 10;

/// A repository's name, or what it is to match; and what a tag is to match.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    text: String,
    repository: Repositories,
    tag: Regex,
}

#[derive(Debug, Clone)]
enum Repositories {
    /// No character of it has a meaning in a regex.
    Literal(String),
    Matching(Regex),
}

impl Filter {
    fn parse(text: &str, steps: usize) -> Result<Self, FilterError> {
        if text.len() > FILTER_LEN_MAX {
            return Err(FilterError::TooLong);
        }
        let (repository, tag) = split(text)?;
        let regex = |pattern: &str| {
            let built = RegexBuilder::new(pattern)
                .backtrack_limit(steps)
                .delegate_size_limit(COMPILED_MAX)
                .build();
            built.map_err(|error| FilterError::BadRegex {
                filter: text.to_owned(),
                reason: first_line(&error.to_string()),
            })
        };
        let is_literal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '-');
        let repository = match repository.chars().all(is_literal) {
            true => Repositories::Literal(repository.to_owned()),
            false => Repositories::Matching(regex(&format!("^{repository}$"))?),
        };
        Ok(Self { text: text.to_owned(), repository, tag: regex(tag)? })
    }

    pub(crate) fn matches_tag(&self, tag: &str) -> Result<bool, MatchError> {
        self.tag.is_match(tag).map_err(|_| self.too_long(tag))
    }

    fn matches_repository(&self, name: &str) -> Result<bool, MatchError> {
        match &self.repository {
            Repositories::Literal(literal) => Ok(literal == name),
            Repositories::Matching(regex) => regex.is_match(name).map_err(|_| self.too_long(name)),
        }
    }

    fn too_long(&self, text: &str) -> MatchError {
        MatchError { filter: self.text.clone(), text: text.to_owned() }
    }
}

/// The filters of a command.
#[derive(Debug, Clone, Default)]
pub struct Filters(Vec<Filter>);

impl Filters {
    /// Reads filters; `match_time` is how long one match may take, roughly.
    pub fn parse(
        texts: impl IntoIterator<Item = impl AsRef<str>>,
        match_time: Option<Duration>,
    ) -> Result<Self, FilterError> {
        let time = match_time.filter(|time| !time.is_zero()).unwrap_or(MATCH_TIME);
        let seconds = usize::try_from(time.min(MATCH_TIME_MAX).as_secs().max(1));
        let steps = seconds.unwrap_or(1).saturating_mul(STEPS_PER_SECOND);
        let mut filters = Vec::new();
        for text in texts {
            if filters.len() == FILTERS_MAX {
                return Err(FilterError::TooMany);
            }
            filters.push(Filter::parse(text.as_ref(), steps)?);
        }
        Ok(Self(filters))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The repositories by name, if no filter leaves it to the listing which ones they are.
    pub(crate) fn literal_repositories(&self) -> Option<Vec<String>> {
        let literal = |filter: &Filter| match &filter.repository {
            Repositories::Literal(name) => Some(name.clone()),
            Repositories::Matching(_) => None,
        };
        let mut names = self.0.iter().map(literal).collect::<Option<Vec<_>>>()?;
        names.sort();
        names.dedup();
        Some(names)
    }

    /// Those of the filters that are for a repository. A tag is meant if one of them matches it.
    pub(crate) fn of_repository(&self, name: &RepositoryName) -> Result<Vec<Filter>, MatchError> {
        let mut found = Vec::new();
        for filter in &self.0 {
            if filter.matches_repository(name.as_str())? {
                found.push(filter.clone());
            }
        }
        Ok(found)
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Parts a filter at its only `:`. That of a group's flags, of a class, or behind a backslash is
/// none.
fn split(text: &str) -> Result<(&str, &str), FilterError> {
    let mut at = None;
    let mut places = text.char_indices();
    let (mut class_start, mut in_class) = (0, false);
    let mut group = None::<usize>;
    while let Some((place, character)) = places.next() {
        match character {
            '\\' => drop(places.next()),
            // A bracket that comes first in a class is one of its characters.
            ']' if in_class && !matches!(&text[class_start..place], "[" | "[^") => in_class = false,
            // `[:alpha:]` within a class has brackets of its own.
            '[' if in_class => {
                if let Some(end) = text[place..].strip_prefix("[:").and_then(|rest| rest.find(":]"))
                {
                    let after = place + 2 + end + 2;
                    while places.clone().next().is_some_and(|(next, _)| next < after) {
                        places.next();
                    }
                }
            }
            '[' => (class_start, in_class) = (place, true),
            _ if in_class => (),
            '(' if text[place..].starts_with("(?") => group = Some(place + 2),
            ':' if group.is_some_and(|start| is_flags(&text[start..place])) => group = None,
            ':' if at.is_some() => return Err(FilterError::NotTwoParts(text.to_owned())),
            ':' => at = Some(place),
            _ => (),
        }
    }
    let at = at.ok_or_else(|| FilterError::NotTwoParts(text.to_owned()))?;
    match (&text[..at], &text[at + 1..]) {
        ("", _) | (_, "") => Err(FilterError::EmptyPart(text.to_owned())),
        parts => Ok(parts),
    }
}

/// What may be between `(?` and the colon of a group.
fn is_flags(text: &str) -> bool {
    text.len() <= 8 && text.chars().all(|c| c.is_ascii_alphabetic() || c == '-')
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(filters: &[&str], expected: Expect) {
        let line = |filter: &&str| match split(filter) {
            Ok((repository, tag)) => format!("{filter}  =>  {repository}  {tag}\n"),
            Err(error) => format!("{filter}  =>  error: {error}\n"),
        };
        expected.assert_eq(&filters.iter().map(line).collect::<String>());
    }

    fn matching(filters: &[&str], repository: &str, tags: &[&str]) -> Vec<String> {
        let filters = Filters::parse(filters, None).unwrap();
        let filters = filters.of_repository(&repository.parse().unwrap()).unwrap();
        let matches = |tag: &&&str| filters.iter().any(|filter| filter.matches_tag(tag).unwrap());
        tags.iter().filter(matches).map(|tag| (*tag).to_owned()).collect()
    }

    fn is_meant(filter: &str, repository: &str) -> bool {
        let filters = Filters::parse([filter], None).unwrap();
        !filters.of_repository(&repository.parse().unwrap()).unwrap().is_empty()
    }

    #[test]
    fn filters_are_parted_at_the_colon_of_no_group_and_no_class() {
        check(
            &[
                "a:.*",
                "a/b:^v1$",
                "a:(?i:V1)",
                "(?:a|b):x",
                "(?i-s:a):(?s:x)",
                "a:[[:digit:]]+",
                "[a:b]+:x",
                "[]:]+:x",
                "[^]:]+:x",
                r"a\:b:x",
                "a:(?=x):y",
                "(?<name>a):x",
                "a",
                "a:b:c",
                ":x",
                "a:",
                ":",
                "",
                "[a:x",
            ],
            expect![[r#"
                a:.*  =>  a  .*
                a/b:^v1$  =>  a/b  ^v1$
                a:(?i:V1)  =>  a  (?i:V1)
                (?:a|b):x  =>  (?:a|b)  x
                (?i-s:a):(?s:x)  =>  (?i-s:a)  (?s:x)
                a:[[:digit:]]+  =>  a  [[:digit:]]+
                [a:b]+:x  =>  [a:b]+  x
                []:]+:x  =>  []:]+  x
                [^]:]+:x  =>  [^]:]+  x
                a\:b:x  =>  a\:b  x
                a:(?=x):y  =>  error: the filter `a:(?=x):y` does not part a repository from a tag by one `:`
                (?<name>a):x  =>  (?<name>a)  x
                a  =>  error: the filter `a` does not part a repository from a tag by one `:`
                a:b:c  =>  error: the filter `a:b:c` does not part a repository from a tag by one `:`
                :x  =>  error: the filter `:x` has an empty part
                a:  =>  error: the filter `a:` has an empty part
                :  =>  error: the filter `:` has an empty part
                  =>  error: the filter `` does not part a repository from a tag by one `:`
                [a:x  =>  error: the filter `[a:x` does not part a repository from a tag by one `:`
            "#]],
        );
    }

    #[test]
    fn m4_the_tag_part_is_searched() {
        assert_eq!(matching(&["a:v1"], "a", &["v1", "v10", "xv1", "v2"]), ["v1", "v10", "xv1"]);
        assert_eq!(matching(&["a:1.*"], "a", &["v1.0"]), ["v1.0"]);
    }

    #[test]
    fn m5_anchors_make_it_the_whole_tag() {
        assert_eq!(matching(&["a:^v1$"], "a", &["v1", "v10", "xv1"]), ["v1"]);
    }

    #[test]
    fn m6_a_filter_needs_both_parts() {
        let error = Filters::parse(["a"], None).unwrap_err();
        assert_eq!(error, FilterError::NotTwoParts("a".to_owned()));
    }

    #[test]
    fn m7_flags_of_a_group_are_no_separator() {
        assert_eq!(matching(&["a:(?i:V1)"], "a", &["v1", "V1", "v2"]), ["v1", "V1"]);
    }

    #[test]
    fn the_repository_part_is_anchored_but_for_an_alternation() {
        assert!(is_meant("team/.*:x", "team/app"));
        assert!(!is_meant("app:x", "team/app"));
        assert!(!is_meant("ap.:x", "apps"));
        // `^a|b$`
        assert!(is_meant("a|b:x", "anything") && is_meant("a|b:x", "web"));
        assert!(!is_meant("a|b:x", "c") && !is_meant("(a|b):x", "anything"));
    }

    #[test]
    fn filters_of_one_repository_add_up() {
        let tags = ["v1", "V2", "w1", "x"];
        assert_eq!(matching(&["a:^v", "b:x", ".:^w"], "a", &tags), ["v1", "w1"]);
        // The flags of one do not reach the next.
        assert_eq!(matching(&["a:(?i)W", "a:^v"], "a", &tags), ["v1", "w1"]);
    }

    #[test]
    fn look_around_works_and_ends() {
        assert_eq!(matching(&["a:^(?!latest$).*"], "a", &["latest", "latest-1"]), ["latest-1"]);
        assert_eq!(matching(&[r"a:(?<=v)1"], "a", &["v1", "w1"]), ["v1"]);
        let filters = Filters::parse(["a:(x+x+)+(?>y)"], Some(Duration::from_secs(1)));
        let filters = filters.unwrap().of_repository(&"a".parse().unwrap()).unwrap();
        let error = filters[0].matches_tag(&"x".repeat(128)).unwrap_err().to_string();
        assert!(error.contains("takes too long"), "{error}");
    }

    #[test]
    fn what_is_no_regex_or_too_much_is_refused() {
        for (filter, reason) in [("a:(", "regular expression"), ("(a:x", "regular expression")] {
            let error = Filters::parse([filter], None).unwrap_err().to_string();
            assert!(error.contains(reason), "{filter}: {error}");
        }
        let long = format!("a:{}", "x".repeat(FILTER_LEN_MAX));
        assert_eq!(Filters::parse([long], None).unwrap_err(), FilterError::TooLong);
        let many = vec!["a:x"; FILTERS_MAX + 1];
        assert_eq!(Filters::parse(many, None).unwrap_err(), FilterError::TooMany);
    }

    #[test]
    fn names_without_a_regex_are_not_listed() {
        let literal =
            |filters: &[&str]| Filters::parse(filters, None).unwrap().literal_repositories();
        assert_eq!(literal(&["b/c-d:.*", "a_1:x", "b/c-d:y"]).unwrap(), ["a_1", "b/c-d"]);
        assert_eq!(literal(&["a:x", "b.c:x"]), None);
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in "[a-z:()?\\[\\]\\\\^$.*+i-]{0,20}", odd in "\\PC{0,20}") {
            for text in [text, odd] {
                if let Ok((repository, tag)) = split(&text) {
                    prop_assert_eq!(format!("{repository}:{tag}"), &*text);
                }
                let _either = Filters::parse([text], None);
            }
        }
    }
}
